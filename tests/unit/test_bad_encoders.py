"""Bad input by machine, continued: encoders with their cards, records of evaluations, and files to be imported.

Each file is cut at every length, a long one at some hundred, and has bytes changed, left out and put in:
`test_bad_input` has the rest.
"""

import copy
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_bad_input import FUZZ, SMALL_CONFIG, cases, changed, damaged, told

from selfsup import provenance
from selfsup.cards import card_if_any
from selfsup.config import Config, Experiment, check_config
from selfsup.errors import UserError
from selfsup.evaluation import record
from selfsup.evaluation.encoder import encoder_card, load_encoder, save_encoder
from selfsup.finished import encoder_finished, evaluation
from selfsup.importing.authors import read_authors
from selfsup.importing.hub_folder import read_hub_folder
from selfsup.importing.official import read_official
from selfsup.importing.published import Published
from selfsup.importing.state_dicts import read_state_dict
from selfsup.layout import EncoderPaths, RunFolder
from selfsup.models import initial_backbone
from selfsup.recipe import fingerprint, load_recipe
from tiny import TINY

pytestmark = pytest.mark.usefixtures("shallow")

SMALL, LENGTHS = 1024, 300 * FUZZ  # bytes: what is no longer is cut at every length; of others, about so many lengths
FILES = ["encoder.safetensors", "encoder.json", "linear/record.json", "linear/metrics.csv"]


@dataclass(frozen=True)
class Exported:
    """A seed's folder with an encoder and an evaluation of it, and the experiment that they are of."""

    folder: Path
    config: Config
    experiment: Experiment

    def copied(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(self.folder, tmp_path / str(len(list(tmp_path.iterdir())))))

    def encoder(self, folder: Path) -> torch.nn.Module | None:
        """The encoder in a folder, if it can be loaded."""
        found = told(load_encoder, folder / "encoder.safetensors", self.experiment.recipe)
        return found and found[0]

    def known(self, folder: Path) -> tuple[bool, bool]:
        """Ask all that a plan asks of the folder's cards and records: is the encoder, is the evaluation finished?"""
        encoder, one = EncoderPaths(folder), self.experiment.evaluations["linear"]
        of = self.config, self.experiment, RunFolder(folder), encoder
        done = told(encoder_finished, *of, 0)
        judged = told(evaluation, *of, one, 0, adopt=False)
        told(record.collect, encoder.weights)
        return bool(done), bool(judged and judged.finished)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    content = copy.deepcopy(SMALL_CONFIG)
    content["data_dir"] = str(folder / "none")
    content["experiments"]["digits"] |= {"overrides": TINY, "evaluations": ["linear"]}
    config = check_config(content)
    one = config.experiments["digits"]
    encoder = initial_backbone(one.recipe, 0)
    training = {"fingerprint": fingerprint(one.recipe, one.revision), "dataset_fingerprint": "d", "epoch": 4.0}
    card = {**encoder_card("online backbone", one.recipe, 0), "training": training}
    checksum = save_encoder(folder / "seed0/encoder.safetensors", encoder, card)
    metrics = f"encoder_sha256,seed,top1,measure\n{checksum},0,12.5,top-1\n"
    linear, weights = one.evaluations["linear"], folder / "seed0/encoder.safetensors"
    made_from = record.identity(linear, one.recipe, 0, weights, folder / "none", folder / "seed0/linear")
    record.keep(folder / "seed0/linear", made_from, {"metrics.csv": metrics})
    record.collect(weights)
    exported = Exported(folder / "seed0", config, one)
    assert exported.known(folder / "seed0") == (True, True)
    return exported


def lengths(content: bytes) -> set[int]:
    """The lengths at which a file is cut; more than its last newline is gone."""
    size = len(content.rstrip(b"\n"))
    return {*range(0, size, 1 if size <= SMALL else max(1, size // LENGTHS)), size - 1}


@pytest.mark.parametrize("name", FILES)
def test_an_encoder_a_card_or_a_record_cut_at_any_length(tmp_path, exported, name):
    folder = exported.copied(tmp_path)
    for length in sorted(lengths((folder / name).read_bytes()), reverse=True):
        os.truncate(folder / name, length)
        card, finished = card_if_any(folder / "encoder.json"), exported.known(folder)
        assert card or finished == (False, False), "without a card nothing is known"
        if "record" in name:
            assert finished == (True, False)
        if name.startswith("encoder"):
            assert exported.encoder(folder) is None


@cases(60)
@given(st.sampled_from(FILES), st.data())
def test_whatever_bytes_an_encoder_a_card_or_a_record_has(tmp_path, exported, name, data):
    folder = exported.copied(tmp_path)
    (folder / name).write_bytes(data.draw(damaged((exported.folder / name).read_bytes())))
    exported.known(folder)
    loaded = exported.encoder(folder)
    assert loaded is None or torch.equal(loaded.conv1.weight, exported.encoder(exported.folder).conv1.weight)


def test_figures_of_a_damaged_evaluation_are_left_out_of_the_card(tmp_path, exported):
    folder = exported.copied(tmp_path)
    assert json.loads((folder / "encoder.json").read_text())["evaluations"]["linear"]["top1"] == 12.5
    metrics = folder / "linear/metrics.csv"
    metrics.write_text(metrics.read_text().replace("12.5", "12.5 %"))
    record.collect(folder / "encoder.safetensors")
    assert json.loads((folder / "encoder.json").read_text())["evaluations"] == {}


@cases(80)
@given(st.sampled_from(["encoder.json", "linear/record.json"]), st.data())
def test_whatever_a_card_or_a_record_says(tmp_path, exported, name, data):
    folder = exported.copied(tmp_path)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data.draw(changed(content))))
    exported.known(folder)
    exported.encoder(folder)


NETWORK = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.BatchNorm2d(2))
RECIPE = load_recipe("digits")


def write_authors(path: Path) -> None:
    model = {f"resnet.{name}": value for name, value in NETWORK.state_dict().items()}
    model["proj_head_inv.0.weight"] = torch.ones(2, 2)
    torch.save({"model": model, "last_epoch": 9}, path)


def write_official(path: Path) -> None:
    conv, norm = "res_net/~/initial_conv", "res_net/~/initial_batchnorm"
    array, vector = np.ones((1, 1, 3, 2), np.float32), np.ones((1, 1, 1, 2), np.float32)
    average = {"average": vector, "counter": np.array(3)}
    state = {
        "online_params": {conv: {"w": array}, norm: {"scale": vector, "offset": vector}},
        "online_state": {f"{norm}/~/{kind}": average for kind in ("mean_ema", "var_ema")},
    }
    path.write_bytes(pickle.dumps({"experiment_state": state, "step": 7, "rng": array}, protocol=2))


def write_hub_folder(path: Path) -> None:
    save_file(NETWORK.state_dict(), path)
    write_its_card(path)


def write_its_card(path: Path) -> None:
    """As if the card were of these very bytes: then they are read, however damaged."""
    card = {"encoder_sha256": provenance.sha256(path), "recipe": {"method": "byol"}, "training": {"epoch": 3.0}}
    path.with_suffix(".json").write_text(json.dumps(card))


def read_torchs(path: Path) -> Published:
    return read_state_dict(path, NETWORK, RECIPE, None)


READERS = {
    "authors.pt": (write_authors, read_authors),
    "official.pkl": (write_official, read_official),
    "hub.safetensors": (write_hub_folder, read_hub_folder),
    "network.pth": (lambda path: torch.save({"net": NETWORK.state_dict()}, path), read_torchs),
    "network.safetensors": (lambda path: save_file(NETWORK.state_dict(), path), read_torchs),
}


@pytest.fixture(scope="module")
def importable(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("importable")
    for name, (write, read) in READERS.items():
        write(folder / name)
        assert read(folder / name).weights
    return folder


def rewritten(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    if path.name.startswith("hub"):
        write_its_card(path)
    return path


@pytest.mark.parametrize("name", READERS)
def test_a_file_to_be_imported_cut_at_any_length(tmp_path, importable, name):
    whole = (importable / name).read_bytes()
    for length in lengths(whole):
        assert told(READERS[name][1], rewritten(tmp_path / name, whole[:length])) is None


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x020.", b"\x80\x02K\x01K\x02R.", b"\x80\x02)R."])
def test_a_pickle_that_its_reader_stumbles_over_is_one_line(tmp_path, content):
    """torch's reader raises IndexError, TypeError and others for them."""
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pt: no checkpoint of the authors \(.+\)$"):
        read_authors(tmp_path / "weights.pt")


@cases(150)
@given(st.sampled_from(sorted(READERS)), st.data())
def test_whatever_bytes_a_file_to_be_imported_has(tmp_path, importable, name, data):
    content = data.draw(damaged((importable / name).read_bytes()))
    found = told(READERS[name][1], rewritten(tmp_path / name, content))
    assert found is None or all(isinstance(one, torch.Tensor) for one in found.weights.values())


@cases(30)
@given(st.data())
def test_whatever_the_card_of_a_published_encoder_says(tmp_path, importable, data):
    path = Path(shutil.copy(importable / "hub.safetensors", tmp_path / "hub.safetensors"))
    card = json.loads((importable / "hub.json").read_text())
    path.with_suffix(".json").write_text(json.dumps(data.draw(changed(card))))
    told(read_hub_folder, path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for name, (_, read) in READERS.items():
        (tmp_path / name).write_bytes(pickle.dumps({"model": Runs(), "experiment_state": Runs()}, protocol=2))
        with pytest.raises(UserError):
            read(tmp_path / name)
    assert not (tmp_path / "made").exists()
