"""Trackers by their real libraries, offline: one run over all jobs, and a replay that has each step once."""

import json
import sqlite3
import struct
import subprocess

import pytest

from selfsup.errors import UserError
from selfsup.training import sinks
from selfsup.training.sinks import check_trackers, open_trackers

NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
HISTORY = """step,epoch,steps_done,epochs_done,loss,feature_spread
1,0,2,0.4,4.0,
3,0,4,0.8,3.0,0.5
5,1,6,1.2,2.0,
7,1,8,1.6,1."""  # the last row is being written
KNN = "step,epoch,steps_done,epochs_done,knn_top1,bank,queries\n6,1.0,6,1.2,87.5,40,10\n"
LOSS, TOP1 = [(1, 4.0), (3, 3.0), (5, 2.0)], [(5, 87.5)]


def tensorboard_curves(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(path):
    """Yield the records of an offline file of wandb's: LevelDB's log format, behind a header of 7 bytes."""
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no record begins at the end of a block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


def wandb_curves(folder):
    """All that wandb would send, file by file."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    curves, ids = {}, set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        ids.add(path.stem)
        for content in wandb_records(path):
            record = wandb_internal_pb2.Record.FromString(content)
            items = {one.key or "/".join(one.nested_key): one.value_json for one in record.history.item}
            for name, value in items.items():
                if not name.startswith("_"):
                    curves.setdefault(name, []).append((json.loads(items["_step"]), float(value)))
    assert len(ids) == 1  # one over all jobs
    return curves


def mlflow_curves(folder):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow" / "runs").resolve().as_uri())
    experiment = client.get_experiment_by_name("selfsup").experiment_id
    (run,) = client.search_runs([experiment])  # one over all jobs
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((one.step, one.value) for one in history) for name, history in histories.items()}


def trackio_curves(folder):
    with sqlite3.connect(folder / "trackio" / "selfsup.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1  # one over all jobs
    curves = {}
    for _, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            curves.setdefault(name, []).append((step, value))
    return {name: sorted(one) for name, one in curves.items()}


READ = {
    "tensorboard": tensorboard_curves,
    "wandb": wandb_curves,
    "mlflow": mlflow_curves,
    "trackio": trackio_curves,
}


@pytest.fixture(params=NAMES)
def tracker(request, monkeypatch):
    """A tracker whose library is installed; nothing that it might be told from outside."""
    pytest.importorskip(request.param)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return request.param


def test_two_jobs_are_one_run(tracker, tmp_path, repository, starter, program):
    """In processes of their own: libraries keep their folders for as long as theirs lives."""
    job = (
        f"import sys; sys.path.insert(0, {str(repository / 'workflow/scripts')!r})\n"
        "from pathlib import Path\n"
        "from selfsup.training.sinks import open_trackers\n"
        f"(one,) = open_trackers([{tracker!r}], Path('run'), start=START)\n"
        "for step in STEPS: one.append({'step': step, 'epoch': 0, 'loss': 4.0 - step})\n"
        "one.close()\n"
    )
    (tmp_path / "run").mkdir()
    for steps in ((0, 1), (2, 3)):
        code = job.replace("START", str(steps[0])).replace("STEPS", str(steps))
        done = subprocess.run([starter, program(code)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    curves = READ[tracker](tmp_path / "run")
    assert curves["loss"] == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)] and "epoch" not in curves


def test_a_replay_has_each_step_of_the_files_once_however_often_it_is_made(tracker, tmp_path, repository, starter):
    run = tmp_path / "digits" / "seed0"
    (run / "pretrain").mkdir(parents=True)
    (run / "pretrain/history.csv").write_text(HISTORY)
    (run / "knn.csv").write_text(KNN)
    command = [starter, repository / "workflow/scripts/track.py", "--run", run, "--tracker", tracker]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "4 rows, up to step 5" in done.stdout
    curves = READ[tracker](run / "pretrain" / "tracked")
    assert (curves["loss"], curves["knn_top1"], curves["feature_spread"]) == (LOSS, TOP1, [(3, 0.5)])
    assert set(curves) == {"loss", "knn_top1", "feature_spread"}


def test_a_run_that_has_no_history_is_one_line(tmp_path, repository, starter):
    pytest.importorskip("tensorboard")
    command = [starter, repository / "workflow/scripts/track.py", "--run", tmp_path / "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "history.csv has no rows yet, or is not there" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("step,loss\n1,4.0\nx,3.0\n", "history.csv: line 3: step is 'x', wanted a number"),
        ("step,loss\n1,four\n", "history.csv: line 2: loss is 'four', wanted a number"),
        ("step,loss\n,4.0\n", "history.csv: line 2: step is '', wanted a number"),
        ("loss\n4.0\n", "history.csv: line 2: step is '', wanted a number"),
        ("step,loss\n1,4.0,5.0\n", "history.csv: line 2: more cells than columns"),
        ("step,loss\n1,\udcff\n", "history.csv: no text"),
    ],
)
def test_a_damaged_history_is_one_line(tmp_path, repository, content, words, starter):
    pytest.importorskip("tensorboard")
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/history.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    command = [starter, repository / "workflow/scripts/track.py", "--run", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and words in line and "restore it" in line
    assert not (tmp_path / "pretrain/tracked").exists()


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("trackio", "trackio")],
)
def test_a_missing_library_is_one_line_with_the_command_that_installs_it(name, package, monkeypatch):
    monkeypatch.setattr(sinks, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"^the tracker {name} is asked for, .*: pip install {package}, or") as error:
        check_trackers([name])
    assert "\n" not in str(error.value)


def test_an_id_is_made_once(tmp_path):
    assert sinks.run_id(tmp_path / "one") == sinks.run_id(tmp_path / "one") != sinks.run_id(tmp_path / "two")
    assert sinks.run_name(tmp_path / "digits/seed0/pretrain/tracked") == "digits/seed0"
    assert open_trackers([], tmp_path, 0) == []
