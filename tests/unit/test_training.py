"""Segments, stops and checkpoints on a network that trains in a second."""

import contextlib
import json
import logging
import os
import shutil
import signal
import time
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision

from export_encoder import trained_encoder
from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.engine import checkpoint
from selfsup.engine.compute import Compute
from selfsup.engine.saving import host_copy
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation.encoder import load_encoder, save_encoder
from selfsup.job.ledger import read_ledger
from selfsup.job.stopping import StopRequest
from selfsup.layout import boundary_name, card_name
from selfsup.methods import Output
from selfsup.methods.byol import BYOL
from selfsup.recipe import load_recipe
from selfsup.segments import recorded_cards
from selfsup.training.clock import Due, Progress, duration
from selfsup.training.history import History
from selfsup.training.pretraining import Pretraining, Run
from tiny import TINY

pytestmark = pytest.mark.usefixtures("shallow")

STEPS_PER_EPOCH = 5  # 43 images in batches of 8


@pytest.fixture
def run(tiny_recipe, tiny_store, tmp_path):
    def make(folder="run", **changes) -> Run:
        settings = {"recipe": tiny_recipe, "seed": 0, "revision": 1, "store": tiny_store, "folder": tmp_path / folder}
        made = Run(**{**settings, "compute": on_cpu(), "checkpoint_minutes": 60, **changes})
        made.folder.mkdir(exist_ok=True)
        return made

    return make


@pytest.fixture
def log(caplog):
    """Its `text` is what the job has logged."""
    caplog.set_level(logging.INFO, logger="selfsup")
    return caplog


@pytest.fixture(scope="module")
def ended_at(tiny_recipe, tiny_store, tmp_path_factory):
    """A function of an epoch: a run that was trained up to it in one segment, once for all tests; they only read it."""

    @cache
    def trained(epoch: int) -> Run:
        made = Run(tiny_recipe, 0, 1, tiny_store, tmp_path_factory.mktemp("run"), on_cpu(), 60)
        assert train(made, epoch, stop=StopAfter(100))  # never, but no test's signals are touched
        return made

    return trained


@pytest.fixture
def uninterrupted(ended_at) -> dict:
    return state_of(ended_at(4))


@pytest.mark.parametrize("ends", [(2, 4), (1, 2, 3, 4)])
def test_a_run_in_segments_equals_an_uninterrupted_one(run, uninterrupted, ends):
    parts = run("parts")
    assert train(parts, *ends)
    assert equal_states(state_of(parts), uninterrupted)
    assert json.loads((parts.folder / "segments.json").read_text())["boundaries"] == list(ends)


@pytest.mark.parametrize("checks", [0, 3, 7, 13])
def test_a_run_stopped_in_mid_epoch_and_continued_equals_an_uninterrupted_one(run, uninterrupted, checks):
    stopped = run("stopped")
    assert not train(stopped, 4, stop=StopAfter(checks))
    assert not (stopped.folder / boundary_name(4)).exists()
    assert [path.name for path in stopped.partial.glob("*.pt")] == [f"step_{checks + 1:09d}.pt"]
    assert train(stopped, 4)
    assert equal_states(state_of(stopped), uninterrupted)
    assert [attempt["start_step"] for attempt in state_of(stopped)["attempts"]] == [0, checks + 1]


def test_step_k_uses_the_schedules_of_step_k(run, monkeypatch):
    training, asked = Pretraining(run()), []
    monkeypatch.setattr(training.method, "before_step", lambda step: asked.append(("before", step.number)))
    monkeypatch.setattr(training.method, "after_step", lambda step: asked.append(("after", step.number)))
    for step in range(7):
        training.train_step(training.batches[step])
        assert {group["lr"] for group in training.optimizer.param_groups} == {training.learning_rate(step)}
    assert asked == [(moment, step) for step in range(7) for moment in ("before", "after")]


def test_another_seed_gives_another_encoder(run, uninterrupted):
    other = run("other", seed=1)
    assert train(other, 4)
    assert not equal_states(state_of(other), uninterrupted)


def test_a_stop_at_the_last_step_leaves_the_boundary(run):
    last = run("last")
    assert train(last, 1, stop=StopAfter(STEPS_PER_EPOCH - 1))
    assert (last.folder / boundary_name(1)).exists()


def test_rolling_checkpoints_come_by_time_and_two_are_kept(run):
    rolling = run("rolling", checkpoint_minutes=1e-9)
    assert not train(rolling, 4, stop=StopAfter(8))
    assert sorted(path.name for path in rolling.partial.glob("*.pt")) == ["step_000000008.pt", "step_000000009.pt"]
    assert train(rolling, 4)
    assert not list(rolling.partial.glob("*.pt")) and (rolling.folder / boundary_name(4)).exists()


def test_a_late_job_for_an_earlier_segment_undoes_nothing(run):
    """One that sat in the queue while others went on. A segment that was finished is found finished; one that was not,
    of segments that were cut anew, is refused; the newer checkpoints stay."""
    early = run("early", checkpoint_minutes=1e-9)
    assert train(early, 1)
    assert not train(early, 4, stop=StopAfter(8))
    (early.folder / boundary_name(1)).unlink()
    before = sorted(path.name for path in early.partial.iterdir())
    assert train(early, 1) and not (early.folder / boundary_name(1)).exists()
    with pytest.raises(UserError, match=r"has already reached epoch 2\.8; training up to 2 again would undo that"):
        train(early, 2)
    assert sorted(path.name for path in early.partial.iterdir()) == before
    assert not (early.folder / "failed.json").exists()


def test_pruning_never_deletes_what_is_newer(run):
    rolling = run("rolling", checkpoint_minutes=1e-9)
    assert not train(rolling, 4, stop=StopAfter(8))
    for step in (3, 7):  # as a slower job would write them now
        path = rolling.partial / f"step_{step:09d}.pt"
        checkpoint.save_checkpoint(path, {}, {"step": step})
        checkpoint.prune(rolling.partial, keep=path)
    names = sorted(path.name for path in rolling.partial.glob("*.pt"))
    assert names == [f"step_{step:09d}.pt" for step in (3, 7, 8, 9)]
    boundary = rolling.partial / boundary_name(1)
    checkpoint.save_checkpoint(boundary, {}, {"step": 5})
    checkpoint.prune(rolling.partial, keep=boundary)
    assert [step for step in (3, 7, 8, 9) if (rolling.partial / f"step_{step:09d}.pt").exists()] == [7, 8, 9]


def test_a_rolling_checkpoint_at_a_boundary_that_was_cut_anew_becomes_it(run, uninterrupted):
    cut = run("cut")
    assert not train(cut, 4, stop=StopAfter(9))  # after step 10: the end of epoch 2
    assert train(cut, 2, 4)
    assert state_of(cut, 2)["step"] == 10 and equal_states(state_of(cut), uninterrupted)
    whole = run("in two segments")
    assert train(whole, 2, 4)
    cards = [json.loads((one.folder / card_name(2)).read_text()) for one in (cut, whole)]
    assert cards[0]["health"] == cards[1]["health"] and cards[0]["floors"] == cards[1]["floors"]
    assert (cut.folder / "knn.csv").read_text() == (whole.folder / "knn.csv").read_text()


def test_a_file_system_that_is_away_for_a_moment_costs_no_checkpoint(run, monkeypatch, uninterrupted):
    away = run("away", checkpoint_minutes=1e-9)
    assert not train(away, 4, stop=StopAfter(8))

    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(checkpoint, "sha256", stale)
    with pytest.raises(UserError, match=r"cannot be read .*Stale file handle.*start again when it can"):
        train(away, 4)
    assert not list(away.partial.glob("*.damaged")) and not (away.folder / "failed.json").exists()
    monkeypatch.undo()
    assert train(away, 4) and equal_states(state_of(away), uninterrupted)


def test_a_job_that_fails_waits_for_its_last_checkpoint(run, monkeypatch):
    """The lock is given up when the file is there, and the ledger knows of it."""
    slow, honest = run(checkpoint_minutes=1e-9), torch.save

    def slowly(state, file):
        time.sleep(0.5)
        honest(state, file)

    monkeypatch.setattr(torch, "save", slowly)
    monkeypatch.setattr(Pretraining, "train_step", _fails_after(2))
    with pytest.raises(ValueError, match="surprise"):
        train(slow, 4)
    (row,) = read_ledger(slow.folder / "ledger.csv")
    assert (row["saved_step"], row["end_step"], row["steps_lost"]) == ("2", "2", "0")
    assert (slow.partial / "step_000000002.pt").exists()


def _fails_after(steps: int):
    honest = Pretraining.train_step

    def train_step(self, batch):
        if self.step == steps:
            raise ValueError("surprise")
        return honest(self, batch)

    return train_step


def test_a_full_disk_ends_in_one_line_and_leaves_no_half_file(run, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot be written.*free space"):
        train(run(), 1)
    assert not list(run().partial.glob("*"))


def test_a_write_in_the_background_that_fails_is_made_up_for(run, uninterrupted, monkeypatch, log):
    """A disk that is full for a moment costs nothing; torch.save fails on the checkpoint of step 1 alone."""
    honest, calls = torch.save, []

    def full_at_first(state, file):
        calls.append(state["step"])
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        honest(state, file)

    monkeypatch.setattr(torch, "save", full_at_first)
    briefly = run(checkpoint_minutes=1e-9)
    assert train(briefly, 4)
    told = log.text
    assert "step_000000001.pt: the checkpoint cannot be written" in told
    assert "trying again with the newest state" in told
    assert equal_states(state_of(briefly), uninterrupted)
    assert [call for call in calls if call <= 3] == [1, 2, 3]


def test_a_disk_that_stays_full_stops_the_run(run, monkeypatch, uninterrupted):
    """The checkpoint before is whole, no retry is in vain: it is no failure for good."""
    full, honest = run(checkpoint_minutes=1e-9), torch.save

    def full_after_step_5(state, file):
        if state["step"] > 5:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        honest(state, file)

    monkeypatch.setattr(torch, "save", full_after_step_5)
    with pytest.raises(UserError, match=r"step_0000000\d\d\.pt: the checkpoint cannot be written.*free space"):
        train(full, 4)
    assert sorted(path.name for path in full.partial.iterdir() if path.suffix != ".json") == [
        "step_000000004.pt",
        "step_000000005.pt",
    ]
    assert not (full.folder / "failed.json").exists()
    monkeypatch.undo()
    assert train(full, 4) and equal_states(state_of(full), uninterrupted)


def test_a_copy_for_the_background_is_a_copy():
    weights = torch.zeros(3)
    state = {"a": [weights, 1], "b": {"c": torch.ones(2)}, "d": "text", "e": torch.tensor(4)}
    copied = host_copy(state)
    weights += 1
    assert copied["a"][0].tolist() == [0, 0, 0] and copied["d"] == "text" and copied["a"][1] == 1
    again = host_copy(state, copied)
    assert again["a"][0] is copied["a"][0] and again["a"][0].tolist() == [1, 1, 1]  # memory is taken once
    assert host_copy({"a": [torch.zeros(5)]}, copied)["a"][0].tolist() == [0] * 5
    column = torch.arange(6.0).view(2, 3).t()
    assert host_copy({"x": column})["x"].equal(column)


def test_an_encoder_is_at_random_initialisation_what_training_starts_from(run, tiny_recipe):
    from selfsup.models import initial_backbone

    start = Pretraining(run()).method.encoder().state_dict()
    untrained = initial_backbone(tiny_recipe, 0).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in untrained.items())


def test_a_change_of_numerics_is_told(run, log):
    assert not train(run(), 4, stop=StopAfter(2))
    assert train(run(compute=on_cpu(threads=2)), 1)
    assert "other numerics" in log.text


@pytest.mark.parametrize(("before", "told"), [("0.1", True), (None, False)])
def test_the_library_that_decodes_and_resizes_is_of_the_numerics_and_older_checkpoints_lack_it(
    run, monkeypatch, log, before, told
):
    numerics = on_cpu().numerics()
    assert numerics["torchvision"] == torchvision.__version__
    old = {key: value for key, value in numerics.items() if key != "torchvision"} | (
        {} if before is None else {"torchvision": before}
    )
    with monkeypatch.context() as patch:
        patch.setattr(Compute, "numerics", lambda self: old)
        assert not train(run(), 4, stop=StopAfter(2))
    assert train(run(), 4)
    found = log.text
    assert ("other numerics" in found) == told
    assert f"torchvision: wanted {torchvision.__version__}, found {before}" in found or not told
    _, training = trained_encoder(run().folder / boundary_name(4), run().recipe, 0)
    assert len(training["attempts"]) == 2 and training["numerics_changes"] == int(told)


def test_a_boundary_that_an_older_version_left_in_partial_comes_back_without_training(run, log):
    finished = run()
    assert train(finished, 2)
    whole, record = (finished.folder / boundary_name(2)).read_bytes(), finished.folder / "segments.json"
    finished.partial.mkdir(exist_ok=True)
    for name in (boundary_name(2), card_name(2)):
        (finished.folder / name).rename(finished.partial / name)
    record.write_text(json.dumps({**json.loads(record.read_text()), "boundaries": [], "cards": {}}))
    log.clear()
    assert train(finished, 2)
    assert (finished.folder / boundary_name(2)).read_bytes() == whole and (finished.folder / card_name(2)).exists()
    assert "steps" not in log.text


def test_a_boundary_without_any_card_is_believed_if_its_own_checksums_hold(run, log):
    lost = run()
    assert train(lost, 2)
    record, card = lost.folder / "segments.json", lost.folder / card_name(2)
    before = json.loads(card.read_text())
    record.write_text(json.dumps({**json.loads(record.read_text()), "cards": {}}))
    card.unlink()
    assert train(lost, 2) and "was finished before" in log.text
    assert json.loads(card.read_text()).items() <= before.items()
    record.write_text(json.dumps({**json.loads(record.read_text()), "cards": {}}))
    card.unlink()
    content = bytearray((lost.folder / boundary_name(2)).read_bytes())
    content[len(content) // 2] ^= 1
    (lost.folder / boundary_name(2)).write_bytes(content)
    with pytest.raises(UserError, match=r"epoch_0002\.pt: no valid checkpoint is left"):
        train(lost, 2)


@pytest.mark.parametrize("writes", range(12))
def test_a_kill_between_any_two_writes_at_a_boundary_loses_nothing(run, ended_at, uninterrupted, monkeypatch, writes):
    """The process ends before its n-th renaming of a file from the moment that the second boundary is written."""
    killed, honest, left = run("killed"), os.replace, [None]
    shutil.copytree(ended_at(1).folder, killed.folder, dirs_exist_ok=True)

    class Killed(BaseException):
        pass

    def replace(source, target):
        if left[0] is None and Path(target).name == "segments.json":
            left[0] = writes
        if left[0] is not None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        honest(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(Killed):
        train(killed, 2)
    monkeypatch.undo()
    (killed.folder / "lock.json").unlink(missing_ok=True)  # its holder lives on here
    assert train(killed, 2, 4)
    assert equal_states(state_of(killed), uninterrupted)
    cards = {epoch: json.loads((killed.folder / card_name(epoch)).read_text()) for epoch in (1, 2, 4)}
    assert recorded_cards(killed.folder) == {str(epoch): card for epoch, card in cards.items()}
    assert all({"loss", "health", "sha256"} <= card.keys() for card in cards.values())
    assert not list(killed.folder.rglob("*.damaged"))


def test_history_has_a_row_per_logged_step_and_is_cut_back_on_a_resume(run):
    logged = run()
    assert not train(logged, 4, stop=StopAfter(6))
    with open(logged.folder / "history.csv", "a") as file:
        file.write("15,3,9.9,0,0,0,0\n")  # of a step after the checkpoint, whose work was lost
    assert train(logged, 4)
    rows = (logged.folder / "history.csv").read_text().splitlines()
    measured = "feature_spread,alignment,cosine,projection_spread"
    assert rows[0] == f"step,epoch,loss,lr,tau,images_per_s,data_wait,steps_done,epochs_done,{measured}"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(20))
    assert not any(row.startswith("15,3,9.9") for row in rows)


def test_the_loss_falls_and_lr_and_tau_follow_their_schedules(run):
    logged = run()
    assert train(logged, 4)
    rows = [row.split(",") for row in (logged.folder / "history.csv").read_text().splitlines()[1:]]
    assert float(rows[0][3]) == 0 and float(rows[0][4]) == 0.97
    assert float(rows[STEPS_PER_EPOCH][3]) == TINY["optimizer"].get("peak_lr", 2.0)
    assert 0 < float(rows[-1][3]) < 0.1 and 0.999 < float(rows[-1][4]) < 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"overrides": {"optimizer": {"warmup_epochs": 1, "peak_lr": 1.0}}},
            "optimizer.peak_lr: wanted 1.0, found 2.0",
        ),
        ({"seed": 3}, "seed: wanted 3, found 0"),
        ({"revision": 2}, "revision: wanted 2, found 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(run, changes, words):
    assert not train(run(), 4, stop=StopAfter(2))
    (run().folder / "segments.json").unlink()
    overrides = changes.pop("overrides", None)
    if overrides:
        changes["recipe"] = load_recipe("digits", {**TINY, **overrides})
    with pytest.raises(UserError, match=words) as refusal:
        train(run(**changes), 4)
    assert isinstance(refusal.value, PermanentError) == (
        "seed" not in words
    )  # a slip on the command line blocks nothing


def test_a_checkpoint_of_another_dataset_is_refused(run, tmp_path):
    from selfsup.data.preparing import prepare
    from selfsup.data.store import PackedStore

    prepare("digits", None, tmp_path / "digits")
    assert not train(run(), 4, stop=StopAfter(2))
    with pytest.raises(UserError, match="dataset_fingerprint: wanted"):
        train(run(store=PackedStore(tmp_path / "digits")), 4)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no card"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(run, uninterrupted, damage, log):
    damaged = run("damaged", checkpoint_minutes=1e-9)
    assert not train(damaged, 4, stop=StopAfter(8))
    newest = damaged.partial / "step_000000009.pt"
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_suffix(".json").unlink()
    assert train(damaged, 4)
    assert equal_states(state_of(damaged), uninterrupted)
    assert "step_000000009.pt" in log.text
    assert newest.with_suffix(".damaged").exists()


def test_nothing_is_begun_anew_when_all_checkpoints_are_damaged(run):
    """Nor by the retry, which finds them set aside."""
    assert not train(run(), 4, stop=StopAfter(2))
    (only,) = run().partial.glob("*.pt")
    only.write_bytes(b"")
    with pytest.raises(UserError, match="no valid checkpoint is left"):
        train(run(), 4)
    with pytest.raises(UserError, match=r"has reached epoch 0\.6, but has no checkpoint left: restore one"):
        train(run(), 4)


def test_a_checkpoint_of_a_newer_format_is_refused(run):
    assert train(run(), 1)
    record = run().folder / "segments.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(UserError, match="format 99, this code reads up to 1"):
        checkpoint.load_checkpoint(run().folder / boundary_name(1))


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch evil",)

    path = tmp_path / "epoch_0001.pt"
    torch.save({"method": Evil()}, path)
    card = {"format": 1, "sha256": checkpoint.sha256(path), "step": 1}
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_checkpoint(path)


def test_weights_that_are_not_finite_are_never_saved(run, monkeypatch):
    """A weight goes bad in the update of step 7, after a rolling checkpoint of every step before."""
    honest = Pretraining.train_step

    def broken(self, batch):
        loss = honest(self, batch)
        if self.step == 8:
            next(iter(self.method.networks.parameters())).data[0] = float("nan")
        return loss

    honest_save = torch.save
    monkeypatch.setattr(torch, "save", lambda *a: (time.sleep(0.1), honest_save(*a)))  # still at it when step 7 fails
    monkeypatch.setattr(Pretraining, "train_step", broken)
    with pytest.raises(PermanentError, match=r"not finite at step 7 \(epoch 1\.40\).*checkpoint: .*step_000000007\.pt"):
        train(run(checkpoint_minutes=1e-9), 4)
    assert sorted(path.name for path in run().partial.glob("*.pt")) == ["step_000000006.pt", "step_000000007.pt"]


@pytest.mark.parametrize(("bad", "precision"), [(float("inf"), "fp32"), (float("nan"), "bf16")])
def test_a_loss_that_is_not_finite_stops_the_run_for_good(run, monkeypatch, bad, precision):
    """The gradient and so the weights stay finite: only the loss of step 3 tells."""
    honest = BYOL.loss
    monkeypatch.setattr(
        BYOL,
        "loss",
        lambda self, batch, step: Output(honest(self, batch, step).loss + (bad if step.number == 3 else 0)),
    )
    with pytest.raises(PermanentError, match=r"not finite at step 3 .*last good checkpoint: none") as told:
        train(run(compute=on_cpu(precision=precision)), 1)
    assert ("or set precision: fp32" in str(told.value)) == (precision != "fp32")  # what it is already helps no further
    assert not list(run().folder.rglob("*.pt"))
    failed = json.loads((run().folder / "failed.json").read_text())
    assert failed["fingerprint"] == "a test" and "step 3" in failed["message"]
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"failed for good on .*step 3.*delete .*failed\.json and start again"):
        train(run(), 1)
    (run().folder / "failed.json").unlink()
    assert train(run(), 1)


def test_an_fp16_step_that_overflows_counts_and_moves_nothing(run):
    """The scaled gradient of step 2 is made infinite, the loss stays finite: scale halves, the skip is counted.

    The average of a step is taken before the next one's forward pass here: there it is left out. Step 0 has a learning
    rate of 0, so the average first moves in step 2.
    """
    training = Pretraining(run(compute=on_cpu(precision="fp16")))
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)  # the default overflows by itself at first
    states = []
    for step in range(4):
        if step == 2:
            hook = training.treatments[0].parameter.register_hook(lambda grad: grad * float("inf"))
        training.train_step(training.batches[step])
        if step == 2:
            hook.remove()
        weights = [
            torch.cat([p.detach().flatten() for p in training.method.networks[name].parameters()])
            for name in ("online", "target")
        ]
        states.append((*weights, training.skipped, training.scaler.get_scale()))
    online, target = ([state[place] for state in states] for place in (0, 1))
    assert online[1].equal(online[2]) and not online[2].equal(online[3])
    assert not target[1].equal(target[2]) and target[2].equal(target[3])
    assert [state[2:] for state in states] == [(0, 2.0**8), (0, 2.0**8), (1, 2.0**7), (1, 2.0**7)]
    assert training.step == 4
    training.checked_loss(torch.zeros(()))  # no reason to stop


def test_skipped_steps_are_logged_and_survive_a_resume(run):
    fp16 = run(compute=on_cpu(precision="fp16"))
    training = Pretraining(fp16)
    state = training.state() | {"skipped": 2}
    again = Pretraining(fp16)
    again.restore(fp16.folder, state)
    assert again.skipped == 2
    assert train(fp16, 1)
    assert (fp16.folder / "history.csv").read_text().splitlines()[0].startswith("step,epoch,loss,lr,tau,skipped,")


def _fp16_steps(training: Pretraining, until: int, overflow_at: int) -> None:
    """Steps up to `until`; the scaled gradient of one of them is made infinite, so that it is skipped."""
    parameter = training.treatments[0].parameter
    for step in range(training.step, until):
        hook = parameter.register_hook(lambda gradient: gradient * float("inf")) if step == overflow_at else None
        training.train_step(training.batches[step])
        if hook:
            hook.remove()


@pytest.mark.parametrize("stop", [5, 7, 8])
def test_an_fp16_run_resumed_before_or_after_a_skipped_step_equals_an_uninterrupted_one(run, tmp_path, stop):
    """Step 6 is skipped, so the scale has changed, and after 7 steps the average has to leave step 6 out."""
    fp16 = run(compute=on_cpu(precision="fp16"))
    whole, first, second = Pretraining(fp16), Pretraining(fp16), Pretraining(fp16)
    for training in (whole, first):
        training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=4)
    _fp16_steps(whole, 12, overflow_at=6)
    _fp16_steps(first, stop, overflow_at=6)
    path = tmp_path / "stopped.pt"
    checkpoint.save_checkpoint(path, first.state(), {"step": stop})
    second.restore(path, checkpoint.load_checkpoint(path))
    _fp16_steps(second, 12, overflow_at=6)
    assert equal_states(second.state(), whole.state())
    assert (second.skipped, second.scaler.state_dict()) == (whole.skipped, whole.scaler.state_dict())
    assert whole.skipped == 1 and whole.scaler.get_scale() == 2.0**10  # doubled after every four steps, halved once


def test_micro_batches_accumulate_the_mean_gradient(tiny_store, run):
    """With batch norm taken out of training, two halves give the whole batch's gradient to float32's rounding."""
    gradients = []
    for parts in (1, 2):
        recipe = load_recipe("digits", {**TINY, "micro_batches": parts})
        training = Pretraining(run(f"micro{parts}", recipe=recipe))
        training.method.networks.eval()
        training.train_step(training.batches[0])
        gradients.append([one.parameter.grad for one in training.treatments])
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)


def test_a_batch_larger_than_the_dataset_is_refused(run):
    with pytest.raises(UserError, match="global_batch is 64, more than the 43 training images"):
        Pretraining(run(recipe=load_recipe("digits", {**TINY, "global_batch": 64})))


def test_an_encoder_file_is_checked_against_its_card_and_the_recipe(run, tiny_recipe, tmp_path):
    encoder = Pretraining(run()).method.encoder()
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, {"network": "online backbone"})
    loaded, card = load_encoder(path, tiny_recipe)
    assert card["network"] == "online backbone" and not loaded.training
    assert torch.equal(loaded.conv1.weight, encoder.conv1.weight)
    with pytest.raises(UserError, match="does not fit the recipe's resnet18 of width 8"):
        load_encoder(path, load_recipe("digits", {**TINY, "model": {"width": 8}}))
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UserError, match="checksum"):
        load_encoder(path, tiny_recipe)


def test_signals_are_remembered_and_further_ones_change_nothing():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        stop = StopRequest()
        assert stop.reason is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGUSR1"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_progress_line_tells_what_a_person_wants_to_know():
    progress = Progress(start=0, segment_end=50, run_end=100, steps_per_epoch=10, batch=8)
    row = {"step": 4, "epoch": 0, "loss": 1.5, "lr": 0.25, "tau": 0.996, "images_per_s": 1234.5}
    line = progress.line(5, row)
    for word in (
        "epoch   0.50/10",
        "step 5/100",
        "loss 1.5",
        "lr 0.25",
        "tau 0.996",
        "1,234 images/s",
        "segment",
        "run",
    ):
        assert word in line
    assert duration(3725.4) == "1:02:05"


@pytest.mark.parametrize("seconds_a_step", [0.001, 5.0])
def test_progress_lines_are_as_many_on_a_slow_machine_as_on_a_fast_one(monkeypatch, seconds_a_step):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def lines(until: int) -> list[int]:
        progress, due = Progress(start=10, segment_end=until, run_end=100, steps_per_epoch=10, batch=8), []
        for step in range(11, until + 1):
            now[0] += seconds_a_step
            due += [step] if progress.due(step) else []
        return due

    assert lines(50) == [30, 50]
    assert lines(11) == [11] and lines(13) == [12, 13]


def test_a_long_job_is_never_silent_for_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    due, shown = Due(0, 1000), []
    for step in range(1, 1001):
        now[0] += 10.0
        shown += [step] if due.now(step) else []
    assert shown == [*range(12, 500, 12), 500, *range(512, 1000, 12), 1000]  # two minutes, and each half


def test_a_history_survives_a_half_written_row(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,epoch,loss,lr,images_per_s,tau\n0,0,4.0,0,1,0.97\n1,0,3.")
    History(path, start=2)
    assert path.read_text().splitlines() == ["step,epoch,loss,lr,images_per_s,tau", "0,0,4.0,0,1,0.97"]


def test_a_history_takes_columns_when_they_come_and_leaves_blank_what_a_row_does_not_tell(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss\n0,4.0\n1,3.0\n")
    History(path, start=1).append({"step": 1, "loss": 3.5, "own": 7})
    again = History(path, start=2)
    again.append({"step": 2, "loss": 2.5})
    assert path.read_text().splitlines() == ["step,loss,own", "0,4.0,", "1,3.5,7", "2,2.5,"]


def test_both_files_of_a_run_count_what_was_done_alike_and_those_of_older_versions_are_continued(tmp_path):
    """history.csv has a step's own number, from 0, and its epoch's; knn.csv how many steps and epochs were done."""
    (tmp_path / "history.csv").write_text("step,epoch,loss\n3,0,4.0\n7,0,3.0\n")
    (tmp_path / "knn.csv").write_text("step,epoch,knn_top1\n8,0.8,50.0\n")
    told: list = []

    class Watching:
        def append(self, row):
            told.append(dict(row))

    history = History(tmp_path / "history.csv", start=8, also=[Watching()], steps_per_epoch=10)
    knn = History(tmp_path / "knn.csv", start=9, steps_per_epoch=10, counts_from=1)
    for number in range(2):
        history.append({"step": 11 + 8 * number, "epoch": 1, "loss": 2.0})
        knn.append({"step": 12 + 8 * number, "epoch": 1.2 + 0.8 * number, "knn_top1": 60.0})
    frames = [pd.read_csv(tmp_path / name) for name in ("history.csv", "knn.csv")]
    joined = frames[0].merge(frames[1], on=["steps_done", "epochs_done"], validate="one_to_one")
    assert joined["steps_done"].tolist() == [8, 12, 20] and joined["epochs_done"].tolist() == [0.8, 1.2, 2.0]
    assert frames[0]["step"].tolist() == [3, 7, 11, 19] and frames[1]["step"].tolist() == [8, 12, 20]
    assert told[0] == {"step": 11, "epoch": 1, "loss": 2.0}
    kept = (tmp_path / "knn.csv").read_text()
    History(tmp_path / "knn.csv", start=21, steps_per_epoch=10, counts_from=1)
    assert (tmp_path / "knn.csv").read_text() == kept


def test_the_share_of_the_time_that_batches_were_waited_for_is_told(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("selfsup.training.clock.time.monotonic", lambda: now[0])

    def take(seconds: float) -> None:
        now[0] += seconds

    progress = Progress(start=0, segment_end=50, run_end=100, steps_per_epoch=10, batch=8)

    def slow():
        for _ in range(2):
            take(3.0)
            yield None

    for _ in progress.counted(slow()):
        take(1.0)
    assert progress.since_last_row(2)["data_wait"] == 0.75
    take(1.0)
    assert progress.since_last_row(2)["data_wait"] == 0
