"""An encoder that others have trained, from config.yaml to the table, without pretraining."""

import copy
import csv

import pytest
import timm
import torch

from selfsup.methods import build_method
from selfsup.recipe import load_recipe
from workflows import QUICK, jobs


def test_published_weights_are_evaluated_and_told_apart_in_the_table(workflow):
    recipe = load_recipe("digits", QUICK)
    backbone = build_method(recipe, seed=7, total_steps=1).networks["online"]["backbone"]
    weights = {f"resnet.{name}": value for name, value in backbone.state_dict().items()}
    workflow.folder.mkdir(exist_ok=True)
    more = {"last_epoch": 799, "momentum_model": torch.zeros(300_000)}  # of small files Snakemake compares checksums
    torch.save({"model": weights, **more}, workflow.path("weights.pt"))
    workflow.digits.update(overrides=copy.deepcopy(QUICK), published={"publisher": "authors", "path": "weights.pt"})
    workflow.on_one_thread()
    plan = workflow.run("-n", "results/demo.csv")
    assert (jobs(plan, "import_encoder"), jobs(plan, "pretrain_segment"), jobs(plan, "export_encoder")) == (1, 0, 0)
    workflow.run("results/demo.csv")
    assert "| Published weights     | digits" in workflow.read("results/demo.md")
    assert "| Random initialisation | digits" in workflow.read("results/demo.md")
    assert "This work" not in workflow.read("results/demo.md")
    assert '"epochs": 800' in workflow.read("results/digits/seed0/encoder.json")
    assert "Nothing to be done" in workflow.run("-n", "results/demo.csv")
    workflow.path("weights.pt").touch()  # a copy with another age is the same file
    assert "Nothing to be done" in workflow.run("-n", "results/demo.csv")


def test_a_published_file_that_is_missing_is_told_before_anything_runs(workflow):
    workflow.digits.update(published={"publisher": "authors", "path": "nowhere.pt"})
    printed = workflow.run("-n", "results/demo.csv", ok=False)
    assert "experiments.digits.published.path is nowhere.pt, which is no file" in printed
    assert "Traceback" not in printed


@pytest.mark.long
def test_timms_weights_are_a_row_whose_training_is_not_told(workflow):
    weights = timm.create_model("test_resnet").state_dict()
    workflow.folder.mkdir(exist_ok=True)
    torch.save({"model": weights}, workflow.path("weights.pth"))
    published = {"publisher": "timm", "backbone": "test_resnet", "path": "weights.pth"}
    quick = {key: one for key, one in QUICK.items() if key != "model"}
    workflow.digits.update(overrides=copy.deepcopy(quick), published=published, evaluations=["linear", "knn"])
    workflow.run("results/demo.csv")
    rows = list(csv.DictReader(workflow.read("results/demo.csv").splitlines()))
    ours = [row for row in rows if row["implementation"] == "Published weights"]
    assert [row["evaluation"] for row in ours] == ["linear", "knn"]
    assert {row["backbone"] for row in ours} == {"timm/test_resnet"}
    assert {row[key] for row in ours for key in ("method", "epochs", "global_batch", "head")} == {""}
    assert {row["verdict"] for row in ours} == {"no reference"}
    assert "Nothing to be done" in workflow.run("-n", "results/demo.csv")
    published["prefix"] = "ema."
    assert "no part" not in workflow.run("-n", "results/demo.csv")
    printed = workflow.run("results/digits/seed0/encoder.safetensors", ok=False)
    assert "weights.pth: ema.conv1" in printed and "Traceback" not in printed
