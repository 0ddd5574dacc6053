"""A user's own dataset from its folder to the table, with all keys that a dataset may have."""

import copy
import csv
import json

import pytest

from trees import write_tree
from workflows import QUICK


@pytest.mark.slow
def test_the_table_says_what_was_done_to_the_images(workflow, monkeypatch):
    write_tree(workflow.path("images"), {"train": ["ant", "bee", "cat"], "test": ["ant", "bee"]}, count=12)
    (workflow.path("images") / "train/bee/cut.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.setenv("NODE_DISK", str(workflow.path("disk")))
    dataset = {"source": "folder", "path": str(workflow.path("images")), "resize": 12}
    dataset |= {"expect": {"train": 37, "test": 24}, "local_copy": "$NODE_DISK/sets"}
    overrides = copy.deepcopy(QUICK) | {"epochs": 2, "global_batch": 16}
    overrides["optimizer"], overrides["linear"]["batch"] = {"warmup_epochs": 1}, 16
    overrides["augment"] |= {"mean": "dataset", "std": "dataset"}
    workflow.config["datasets"]["mine"] = dataset
    workflow.on_one_thread()
    workflow.config["experiments"]["mine"] = copy.deepcopy(workflow.digits) | {"dataset": "mine", "segment_epochs": 2}
    workflow.config["experiments"]["mine"]["overrides"] = overrides
    workflow.config["tables"]["mine"] = ["mine"]
    printed = workflow.run("results/mine.csv", ok=False)
    assert "1 of 61 images cannot be packed" in printed and "train/bee/cut.jpg: cannot be read as an image" in printed
    dataset["skip_damaged"] = True
    printed = workflow.run("results/mine.csv")
    rows = list(csv.DictReader(workflow.read("results/mine.csv").splitlines()))
    assert [row["n_test"] for row in rows] == ["24", "24"]
    for row in rows:
        assert row["protocol"].endswith("images packed with shorter side 12, damaged images skipped: 1 of train")
    assert printed.count("copied data/mine to") == 1  # by the first of the three jobs
    (copied,) = [path for path in (workflow.path("disk") / "sets").iterdir() if path.is_dir()]
    assert (copied / "store.json").read_text() == workflow.read("data/mine/store.json")


@pytest.mark.slow
def test_pictures_without_classes_are_trained_on_and_their_evaluation_is_refused(workflow):
    write_tree(workflow.path("images"), {"of mine": ["one", "two"], "of others": ["three"]}, count=12)
    overrides = copy.deepcopy(QUICK) | {"epochs": 2, "global_batch": 16, "optimizer": {"warmup_epochs": 1}}
    overrides["augment"] |= {"mean": "dataset", "std": "dataset"}
    workflow.config["datasets"]["mine"] = {"source": "folder", "path": str(workflow.path("images")), "labels": False}
    workflow.on_one_thread()
    workflow.config["experiments"]["mine"] = copy.deepcopy(workflow.digits) | {"dataset": "mine", "segment_epochs": 2}
    workflow.config["experiments"]["mine"]["overrides"] = overrides
    workflow.config["tables"]["mine"] = ["mine"]
    for target in ("results/mine.csv", "results/mine/seed0/random_init/linear/metrics.csv"):
        (line,) = [line for line in workflow.run("-n", target, ok=False).splitlines() if "error" in line]
        assert line.startswith("error: dataset mine has labels: false, so no encoder can be evaluated on it")
    printed = workflow.run("results/mine/seed0/encoder.safetensors", "results/figures/mine.svg")
    assert printed.count("data/mine has no labels: k-NN accuracy is left out of knn.csv") == 1
    assert "36 images without labels" in printed and not workflow.path("data/mine/train_labels.npy").exists()
    card, store = (
        json.loads(workflow.read(name)) for name in ("results/mine/seed0/encoder.json", "data/mine/store.json")
    )
    assert store["classes"] == [] and card["recipe"]["augment"]["mean"] == store["mean"]
    assert card["recipe"]["augment"]["std"] == store["std"]
    assert "report" in workflow.run("-n", "report")
