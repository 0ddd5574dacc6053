"""Folders for a model hub: loaded back by torchvision, timm and this package, with metadata that the hub reads."""

import json
import re
import shutil
import sys
from importlib.metadata import distribution

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_export import lively

import publish
from selfsup.errors import UserError
from selfsup.evaluation.encoder import encoder_card, load_encoder, save_encoder
from selfsup.importing import imported_backbone
from selfsup.importing.hub_folder import read_hub_folder
from selfsup.layout import AuditPaths
from selfsup.models import initial_backbone
from selfsup.provenance import sha256
from selfsup.recipe import load_recipe

TRAINING = {
    "fingerprint": "f1",
    "dataset_fingerprint": "d1",
    "epoch": 30.0,
    "numerics": {"device": "cpu"},
    "attempts": [],
    "ledger": {"attempts": 3, "killed": 1, "gpu_hours": 7.5, "device_hours": 8.0},
}
EVALUATIONS = {
    "linear": {
        "top1": 91.456,
        "top5": 99.7,
        "n_test": 360,
        "protocol": "linear, 90 epochs",
        "dataset_fingerprint": "d1",
    },
    "birds": {"top1": 50.0, "n_test": 10, "protocol": "k-NN", "dataset_fingerprint": "another"},
}
# A name of config.yaml's experiments, by what its network is.
NETWORKS = {
    "standard": {"recipe": "imagenet", "overrides": {"model": {"backbone": "resnet18"}}},
    "small_stem": {"recipe": "cifar10", "overrides": {}},
    "narrow": {"recipe": "digits", "overrides": {}},
    "vit": {
        "recipe": "digits",
        "overrides": {"model": {"backbone": "timm/vit_tiny_patch16_224", "arguments": {}}, "augment": {"size": 16}},
    },
}
IN_TIMM = ("standard", "vit")


@pytest.fixture(scope="module", params=NETWORKS)
def made(request, tmp_path_factory):
    """The name of an experiment, its recipe, and a folder with its encoder alone and what publish.py made of it."""
    name, folder = request.param, tmp_path_factory.mktemp("made")
    if name in IN_TIMM:
        pytest.importorskip("timm")
    block = NETWORKS[name]
    recipe = load_recipe(block["recipe"], block["overrides"])
    config = {
        "data_dir": "data",
        "cluster": dict.fromkeys(("account", "partition", "constraint", "qos")) | {"extra": ""},
    }
    config |= {"datasets": {"digits": {"source": "digits"}}, "tables": {"mine": [name]}}
    config["experiments"] = {name: {**block, "dataset": "digits"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    encoder = folder / "results" / name / "seed0" / "encoder.safetensors"
    card = {**encoder_card("online backbone", recipe, 0), "training": TRAINING}
    checksum = save_encoder(encoder, lively(initial_backbone(recipe, 0)), card)
    told = json.loads(encoder.with_suffix(".json").read_text()) | {"evaluations": EVALUATIONS}
    encoder.with_suffix(".json").write_text(json.dumps(told))
    (folder / "results/mine.csv").write_text(
        f"task,encoder_sha256,verdict,verdict_reason\nknn,{checksum},no,\nlinear,{checksum},not comparable,other data\n"
    )
    (folder / "results/figures").mkdir()
    (folder / f"results/figures/{name}.png").write_bytes(b"curves")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make(patch, name)
    return name, recipe, folder


@pytest.fixture
def published(made, tmp_path, monkeypatch):
    """The name, the recipe, and what was published, in a copy of that folder, which is the one there."""
    name, recipe, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return name, recipe, tmp_path / "hub"


def make(monkeypatch, name: str, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["publish.py", "--experiment", name, "--output", "hub", *more])
    publish.main()


def test_the_lines_of_the_card_load_it_to_the_same_features(published, monkeypatch, repository):
    """In torchvision, in timm, or in this package: what the README shows is run in the folder, without the workflow."""
    name, recipe, folder = published
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    parts = re.split("# or by timm.*", code)
    assert len(parts) == (2 if name in IN_TIMM else 1) and (folder / "config.json").exists() == (name in IN_TIMM)
    encoder = load_encoder(folder / "model.safetensors", recipe)[0]
    size = recipe["augment"]["size"]
    pictures = torch.rand(2, 3, size, size)
    monkeypatch.chdir(folder)
    for part in parts:
        scope = {}
        exec(part.replace("workflow/scripts", str(repository / "workflow/scripts")), scope)
        with torch.no_grad():
            assert torch.equal(scope["network"].eval()(pictures), encoder(pictures)), part


def test_the_card_has_the_hubs_metadata_and_what_strangers_ask(published):
    name, _, folder = published
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == ("timm" if name in IN_TIMM else "torchvision") and head["license"] == "mit"
    assert head["datasets"] == ["digits"] and "byol" in head["tags"]
    (result,) = head["model-index"][0]["results"]  # of this dataset alone
    assert result["metrics"][0]["value"] == 91.46 and result["dataset"]["type"] == "digits"
    checksum = json.loads((folder / "model.json").read_text())["encoder_sha256"]
    for word in ("| linear | 91.46 | 99.70 | 360 |", "| 7.5 (8 hours", "not comparable (other data)", f"`{checksum}`"):
        assert word in text, word
    assert "![curves](curves.png)" in text and "views.png" not in text
    assert (folder / "curves.png").read_bytes() == b"curves"


def test_the_card_names_an_audit_of_another_run_as_such(published, monkeypatch):
    name, _, folder = published
    assert "Audits" not in (folder / "README.md").read_text()
    path = AuditPaths.of(name, "seed0", 20).verdict
    path.parent.mkdir(parents=True)
    run = {"seed": 0, "revision": None, "fingerprint": "another", "dataset_fingerprint": "d1"}
    found = {"verdict": "the same bits", "segment": {"number": 2, "epochs": [10, 20]}, "run": run, "differing": []}
    path.write_text(json.dumps(found | {"checkpoint_sha256": "c", "sha256": {}}))
    make(monkeypatch, name)
    assert "(fingerprint another, here f1)" in (folder / "README.md").read_text()


def test_the_hubs_own_reader_takes_the_card(published):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(published[2] / "README.md").data
    assert (data.license, data.metrics, data.eval_results[0].metric_value) == ("mit", ["accuracy"], 91.46)


def test_a_published_folder_is_imported_and_a_damaged_one_refused(published):
    _, recipe, folder = published
    weights = folder / "model.safetensors"
    backbone, told = imported_backbone(weights, "selfsup", recipe)
    wanted = load_encoder(weights, recipe)[0].state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in backbone.state_dict().items())
    assert told.facts == {"epochs": 30} and told.method == "byol"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"its SHA-256 is [0-9a-f]{16}, but its card says [0-9a-f]{16}"):
        imported_backbone(weights, "selfsup", recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_sha256": None}, "its encoder_sha256 is null"),
        ({"encoder_sha256": 7}, "its encoder_sha256 is 7"),
        ({"training": None}, "its training.epoch is null"),
        ({"training": {"epoch": "all"}}, 'its training.epoch is "all"'),
        ({"training": {"epoch": float("inf")}}, "infinity"),
        ({"recipe": []}, "its recipe.method is null"),
        ({"recipe": {"method": None}}, "its recipe.method is null"),
    ],
)
def test_a_card_that_is_not_publishs_own_is_one_line(tmp_path, change, words):
    weights = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, weights)
    card = {"encoder_sha256": sha256(weights), "recipe": {"method": "byol"}, "training": {"epoch": 30.0}}
    weights.with_suffix(".json").write_text(json.dumps(card))
    assert read_hub_folder(weights).method == "byol"
    weights.with_suffix(".json").write_text(json.dumps(card | change))
    with pytest.raises(UserError, match=r"not from a folder of publish\.py's") as error:
        read_hub_folder(weights)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_command_that_sends_it_is_one_of_the_hubs_package(published, monkeypatch, caplog, repository):
    hub = pytest.importorskip("huggingface_hub")
    with caplog.at_level("INFO", logger="selfsup"):
        make(monkeypatch, published[0])
    (told,) = re.findall(r"To send it: (\S+ upload) YOUR_NAME/\S+ hub$", caplog.text, re.MULTILINE)
    assert told in publish.__doc__ and told in (repository / "docs/results.md").read_text()
    commands = distribution(hub.__name__).entry_points.select(group="console_scripts").names
    assert told.split()[0] in commands


def test_what_cannot_be_published_is_one_line(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(repository / "config.yaml")]
    with pytest.raises(
        UserError, match=r"^results/digits/seed0/encoder\.safetensors with its card is not there: snake"
    ):
        make(monkeypatch, "digits", *config)
    with pytest.raises(UserError, match=r"^--experiment is 'digit', which config.yaml lacks; did you mean digits\?"):
        make(monkeypatch, "digit", *config)
    assert not (tmp_path / "hub").exists()
