"""An encoder's file in plain torchvision, and what its card tells."""

import csv
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from runs import on_cpu, train
from selfsup.augment import centre_view
from selfsup.errors import UserError
from selfsup.evaluation import encoder as encoder_module
from selfsup.evaluation import record
from selfsup.evaluation.encoder import check_same_features, encoder_card, save_encoder
from selfsup.job.ledger import ledger_totals
from selfsup.layout import boundary_name
from selfsup.models import initial_backbone
from selfsup.recipe import canonical, load_recipe
from selfsup.tables.figure_keys import figure_keys
from selfsup.training.pretraining import Run


def lively(backbone):
    """Batch norms as after a training, so that a layer that was mixed up shows."""
    for name, value in backbone.state_dict().items():
        if value.dim() == 1:
            value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_(0, 0.3)
    return backbone


@pytest.mark.parametrize(
    "recipe",
    [
        load_recipe("cifar10"),
        load_recipe("imagenet", {"augment": {"size": 64}}),
        load_recipe("imagenet_official", {"augment": {"size": 64}}),
        load_recipe("cifar10", {"model": {"batch_norm": {"eps": 1e-3}, "stem": {"max_pool": True}}}),
    ],
    ids=["cifar10", "imagenet", "imagenet_official", "another stem"],
)
def test_the_lines_of_the_card_load_the_file_into_torchvision_with_equal_features(recipe, tmp_path, monkeypatch):
    backbone, path = lively(initial_backbone(recipe, 0)).eval(), tmp_path / "encoder.safetensors"
    save_encoder(path, backbone, encoder_card("a test", recipe, 0))
    check_same_features(path, backbone, recipe)
    card = json.loads(path.with_suffix(".json").read_text())
    monkeypatch.chdir(tmp_path)
    names = {}  # the lines import what they need
    exec("\n".join(card["torchvision"]), names)
    assert isinstance(names["network"], torchvision.models.ResNet)
    pictures = torch.rand(2, 3, recipe["augment"]["size"], recipe["augment"]["size"])
    mean, std = (torch.tensor(recipe["augment"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = names["network"](names["normalise"](pictures))
        assert torch.equal(features, backbone((pictures - mean) / std))


def test_a_file_whose_features_differ_in_torchvision_is_refused(tmp_path, monkeypatch):
    recipe, path = load_recipe("cifar10"), tmp_path / "encoder.safetensors"
    backbone = lively(initial_backbone(recipe, 0)).eval()
    save_encoder(path, backbone, encoder_card("a test", recipe, 0))
    wrong = load_recipe("cifar10", {"model": {"stem": {"stride": 2}}})["model"]
    twin = encoder_module.torchvision_twin
    monkeypatch.setattr(encoder_module, "torchvision_twin", lambda model: twin(wrong))
    with pytest.raises(UserError, match=r"in torchvision's network the file's features differ"):
        check_same_features(path, backbone, recipe)


def test_a_width_that_torchvision_has_not_is_told_by_the_card(tmp_path):
    recipe, path = load_recipe("digits"), tmp_path / "encoder.safetensors"
    backbone = initial_backbone(recipe, 0).eval()
    save_encoder(path, backbone, encoder_card("a test", recipe, 0))
    check_same_features(path, backbone, recipe)
    told = " ".join(json.loads(path.with_suffix(".json").read_text())["torchvision"])
    assert "have a width of 64, this one has 16" in told and "load_encoder" in told


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_lines_of_the_docs_give_an_encoders_features_of_a_picture(repository, tmp_path, starter, program, name):
    """As printed, on the demo's narrow encoder and on one of full width that lies in its place."""
    recipe, path = load_recipe(name), tmp_path / "results/digits/seed0/encoder.safetensors"
    backbone = lively(initial_backbone(recipe, 0)).eval()
    save_encoder(path, backbone, encoder_card("a test", recipe, 0))
    (tmp_path / "workflow").symlink_to(repository / "workflow")
    picture = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    torchvision.io.write_png(picture, str(tmp_path / "picture.png"))
    (snippet,) = re.findall(
        r"^```python\n(.*?)^```", (repository / "docs/results.md").read_text(), re.DOTALL | re.MULTILINE
    )
    told = 'torch.save(features, "features.pt")'
    subprocess.run([starter, program(f"{snippet}\n{told}")], cwd=tmp_path, check=True)
    with torch.no_grad():
        wanted = backbone(centre_view(recipe, [picture]))
    assert torch.load(tmp_path / "features.pt").allclose(wanted, rtol=1e-4, atol=1e-5)


def test_a_card_has_the_newest_evaluation_of_each_kind_and_none_of_another_encoder(tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.with_suffix(".json").write_text(json.dumps({"network": "a test", "encoder_sha256": "12"}))
    for kind, top1, checksum in (
        ("linear", 50.0, "12"),
        ("linear", 60.0, "12"),
        ("knn", 40.0, "12"),
        ("old", 9.0, "34"),
    ):
        record.keep(tmp_path / kind, {"of": "a test"}, {"metrics.csv": f"top1,encoder_sha256\n{top1},{checksum}\n"})
        record.collect(path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["evaluations"] == {"linear": {"top1": 60.0}, "knn": {"top1": 40.0}}
    assert card["network"] == "a test" and card["encoder_sha256"] == "12"


def test_evaluations_that_end_at_once_lose_no_figure(tmp_path):
    """Eight of them, many times over; each writes its own file and then collects."""
    path = tmp_path / "encoder.safetensors"
    for turn in range(20):
        path.with_suffix(".json").write_text(json.dumps({"encoder_sha256": "12"}))

        def end(number: int, turn: int = turn) -> None:
            text = f"top1,encoder_sha256\n{turn + number / 10},12\n"
            record.keep(tmp_path / f"task{number}", {"of": number}, {"metrics.csv": text})
            record.collect(path)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(end, range(8)))
        noted = json.loads(path.with_suffix(".json").read_text())["evaluations"]
        assert noted == {f"task{number}": {"top1": turn + number / 10} for number in range(8)}


def test_totals_of_a_ledger_count_what_was_lost_and_done_again(tmp_path):
    hours = {"devices": 2, "gpu_hours": 1.5, "device_hours": 1.5}
    rows = [
        {"attempt": 1, "how_it_ended": "killed", **hours, "steps_done": 30, "steps_lost": 10, "steps_redone": 0},
        {"attempt": 2, "how_it_ended": "refused"},
        {"attempt": 3, "how_it_ended": "stopped", **hours, "steps_done": 40, "steps_lost": 0, "steps_redone": 10},
    ]
    with open(tmp_path / "ledger.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "start_step"])
        writer.writeheader()
        writer.writerows(rows)
    assert ledger_totals(tmp_path / "ledger.csv") == {
        "attempts": 2,
        "killed": 1,
        "gpu_hours": 3.0,
        "device_hours": 3.0,
        "steps_done": 70,
        "steps_lost": 10,
        "steps_redone": 10,
    }
    assert ledger_totals(tmp_path / "none.csv")["attempts"] == 0


def test_the_card_of_a_trained_encoder_tells_data_protocol_ledger_and_accuracy(
    repository, tiny_recipe, tiny_store, tmp_path, starter
):
    folder, output = tmp_path / "pretrain", tmp_path / "encoder.safetensors"
    run = Run(tiny_recipe, 0, 1, tiny_store, folder, on_cpu(), 60)
    folder.mkdir()
    assert train(run, 2, 4)
    common = ["--recipe", canonical(tiny_recipe), "--output"]

    def script(name, *arguments):
        command = [starter, f"workflow/scripts/{name}.py", *common, *map(str, arguments)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    script("export_encoder", output, "--checkpoint", folder / boundary_name(4))
    card = json.loads(output.with_suffix(".json").read_text())
    training, ledger = card["training"], card["training"]["ledger"]
    assert (training["epoch"], training["step"]) == (4, 20)
    assert training["dataset_fingerprint"] == tiny_store.fingerprint and len(training["fingerprint"]) == 64
    assert (ledger["attempts"], ledger["steps_done"], ledger["steps_lost"], ledger["gpu_hours"]) == (2, 20, 0, 0)
    assert card["protocol"].startswith("linear, 2 epochs, batch 8") and card["recipe"] == tiny_recipe
    assert set(card["versions"]) == {"python", "torch", "torchvision", "numpy"}
    assert "this one has 4" in card["torchvision"][0]
    assert "evaluations" not in card  # there is none yet
    script("linear_eval", tmp_path / "linear", "--encoder", output, "--data", tiny_store.folder, "--device", "cpu")
    metrics = pd.read_csv(tmp_path / "linear" / "metrics.csv").iloc[0]
    noted = json.loads(output.with_suffix(".json").read_text())["evaluations"]["linear"]
    assert noted["top1"] == metrics["top1"] and noted["top5"] == metrics["top5"]
    assert noted["protocol"] == metrics["protocol"] == card["protocol"]
    keys = figure_keys(card, n_train=43)
    assert (keys["method"], keys["epochs"], keys["global_batch"], keys["width"]) == ("byol", 4, 8, 4)
    assert {key: metrics[key] for key in keys} == keys  # by which the table holds it against published figures
    assert noted["n_test"] == 19 and isinstance(noted["n_test"], int | np.integer)
