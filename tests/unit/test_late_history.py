"""Rows of history.csv that are written one row late, as on a GPU: the same file, and nothing lost at a checkpoint."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from runs import StopAfter, on_cpu, train
from selfsup.engine.late_numbers import LateNumbers
from selfsup.errors import PermanentError
from selfsup.methods import Output
from selfsup.methods.byol import BYOL
from selfsup.training import loop
from selfsup.training.history import steps_logged
from selfsup.training.pretraining import Pretraining, Run

pytestmark = pytest.mark.usefixtures("shallow")

BY_THE_CLOCK = ["images_per_s", "data_wait"]
EPOCH = 5  # steps, of 43 images in batches of 8


@pytest.fixture
def run(tiny_recipe, tiny_store, tmp_path):
    def make(folder, **changes) -> Run:
        settings = {"compute": on_cpu(), "checkpoint_minutes": 60, **changes}
        made = Run(tiny_recipe, 0, 1, tiny_store, tmp_path / folder, **settings)
        made.folder.mkdir(exist_ok=True)
        return made

    return make


@pytest.fixture
def late(monkeypatch):
    """Rows as on a GPU, of which each is seen to be missing until something writes it."""
    seen = []
    honest = loop._Records.after_step

    def watched(self, loss, saver):
        figures = honest(self, loss, saver)
        seen.append(steps_logged(self._training.run.paths.history) - self._training.step)
        return figures

    monkeypatch.setattr(loop, "reads_late", lambda device: True)
    monkeypatch.setattr(loop._Records, "after_step", watched)
    return seen


def rows(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.paths.history).drop(columns=BY_THE_CLOCK)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_history_written_late_is_the_history(run, request, precision):
    compute = on_cpu(precision=precision)
    plain = run("plain", compute=compute)
    assert train(plain, 1, 2)
    lags = request.getfixturevalue("late")
    one = run("late", compute=compute)
    assert train(one, 1, 2)
    pd.testing.assert_frame_equal(rows(one), rows(plain), check_exact=True)
    assert lags[:EPOCH] == [-1, -1, -1, -1, 0]  # one row behind, but at the segment's end


def test_no_checkpoint_is_ahead_of_its_rows(run, late, monkeypatch):
    """Each save finds the rows of all steps before it written; a stopped run goes on with the same rows."""
    behind, honest = [], Pretraining.save

    def save(self, *arguments, **options):
        behind.append(self.step - steps_logged(self.run.paths.history))
        honest(self, *arguments, **options)

    monkeypatch.setattr(Pretraining, "save", save)
    often, stopped = run("often", checkpoint_minutes=1e-9), run("stopped")
    assert train(often, 1)
    assert not train(stopped, 1, stop=StopAfter(3)) and train(stopped, 1)
    assert behind == [0] * (EPOCH + 2)
    pd.testing.assert_frame_equal(rows(stopped), rows(often), check_exact=True)


def test_a_loss_that_is_not_finite_is_found_one_row_later_and_is_in_no_row(run, late, monkeypatch):
    honest = BYOL.loss
    bad = {2: float("inf")}
    monkeypatch.setattr(
        BYOL, "loss", lambda self, batch, step: Output(honest(self, batch, step).loss + bad.get(step.number, 0))
    )
    one = run("bad")
    with pytest.raises(PermanentError, match=r"not finite at step 2 .*last good checkpoint: none"):
        train(one, 1)
    assert rows(one)["step"].tolist() == [0, 1] and len(late) == 3


def test_trackers_get_rows_in_the_order_of_steps(run, late, monkeypatch):
    """A milestone's row after that of its step, which had not been written yet."""
    told = []
    tracker = SimpleNamespace(append=lambda row: told.append((int(row["step"]), "loss" not in row)), close=lambda: None)
    monkeypatch.setattr(loop, "open_trackers", lambda *_: [tracker])
    assert train(run("tracked"), 1, 2)
    assert told == sorted(told) and (EPOCH - 1, True) in told and len(told) == 2 * EPOCH + 2


def test_numbers_are_those_of_the_moment_when_they_were_noted():
    loss, count = torch.tensor([0.1]), torch.tensor(2**40 + 1)
    noted = LateNumbers([loss, count, torch.tensor(float("inf"))], torch.device("cpu"))
    loss.fill_(7.0)
    assert noted.read() == [float(torch.tensor(0.1)), 2**40 + 1, float("inf")]
