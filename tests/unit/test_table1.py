"""benchmarks/table1.py, for the rare minutes on a GPU: a training that overruns is judged, another call goes on."""

import json
import sys
from argparse import Namespace

import pytest
import table1
import torch

from runs import StopAfter, on_cpu, train
from selfsup.errors import UserError
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Run
from tiny import TINY

AT_ONCE = 0.0001  # minutes: over before the first step


class Said:
    """A report that keeps what it is told."""

    def __init__(self):
        self.lines, self.figures = [], {}

    def say(self, line: str, **figures) -> None:
        self.lines.append(line)
        self.figures |= figures


def options(work, **others) -> Namespace:
    given = {"quick": True, "cifar10": None, "minutes": 9, "epoch_seconds": None, "switches": [], "began": 0}
    given["as_far_as"] = None
    return Namespace(work=work, device=torch.device("cpu"), **{**given, **others})


def card(path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


@pytest.mark.slow
def test_an_overrun_is_exported_and_the_next_call_exports_what_it_has_trained(
    tiny_store, tmp_path, monkeypatch, starter
):
    monkeypatch.setattr(sys, "executable", starter)
    recipe, run, report = load_recipe("digits", TINY), tmp_path / "run", Said()
    folder = run / "trained"

    def trained(limit: float | None) -> dict:
        checkpoint = table1.pretrained(report, recipe, tiny_store, run, options(tmp_path), limit)
        table1.export(recipe, ["--checkpoint", str(checkpoint)], folder)
        return card(folder / "encoder")["training"]

    with pytest.raises(UserError, match="before the first checkpoint"):
        trained(AT_ONCE)
    begun = Run(recipe, 0, 1, tiny_store, run / "pretrain", on_cpu(), 60)
    assert not train(begun, recipe["epochs"], stop=StopAfter(3))
    first = trained(AT_ONCE)
    assert 0 < first["epoch"] < 1 and report.figures["unfinished"] == f"step_{first['step']:09d}.pt"
    (folder / "knn").mkdir()
    (folder / "knn/metrics.csv").write_text("top1\n50\n")  # what the first call judged
    assert trained(None)["epoch"] == recipe["epochs"]
    assert not (folder / "knn").exists()
    (folder / "knn").mkdir()
    trained(None)
    assert (folder / "knn").exists()  # of the same checkpoint


def test_other_pictures_are_packed_anew_and_set_the_trained_aside(tiny_store, tmp_path, monkeypatch):
    asked = []

    def packed(options, folder):
        asked.append(options.cifar10)
        return tiny_store, "CIFAR-10" if options.cifar10 else "made ones"

    monkeypatch.setattr(table1, "pictures", packed)
    report, work = Said(), tmp_path / "work"
    table1.prepared(report, options(work))
    (work / "run/pretrain").mkdir(parents=True)
    table1.prepared(report, options(work))
    assert asked == [None] and (work / "run").exists()
    table1.prepared(report, options(work, cifar10=tmp_path / "cifar10.tar"))
    assert asked == [None, tmp_path / "cifar10.tar"] and report.figures["pictures"] == "CIFAR-10"
    assert not (work / "run").exists() and (work / "run_before0/pretrain").exists()


def test_other_minutes_choose_the_epochs_anew(tiny_store, tmp_path):
    def chosen(minutes: float) -> int:
        given = options(tmp_path, quick=False, minutes=minutes, epoch_seconds=2, began=table1.time.monotonic())
        return table1.chosen_recipe(Said(), tiny_store, given)[0]["epochs"]

    few = chosen(6)
    (tmp_path / "run/pretrain").mkdir(parents=True)
    assert chosen(6) == few and (tmp_path / "run").exists()
    assert chosen(12) > few
    assert (tmp_path / "run_before0/pretrain").exists()


def test_a_short_training_moves_as_far_as_a_long_one(tiny_store, tmp_path):
    """Learning rate and 1 - tau, summed over the epochs, are those of the recipe's 800."""
    given = options(tmp_path, quick=False, minutes=12, epoch_seconds=2, began=table1.time.monotonic())
    plain, _ = table1.chosen_recipe(Said(), tiny_store, given)
    given.as_far_as = 800
    recipe, _ = table1.chosen_recipe(Said(), tiny_store, given)
    epochs = recipe["epochs"]
    assert epochs == plain["epochs"] < 800 and plain["optimizer"]["peak_lr"] == 2.0
    assert epochs * recipe["optimizer"]["peak_lr"] == pytest.approx(800 * 2.0, rel=1e-3)
    assert epochs * (1 - recipe["byol"]["tau_base"]) == pytest.approx(800 * 0.004, rel=1e-3)
