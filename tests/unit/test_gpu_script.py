"""benchmarks/gpu.sh, for the rare minutes on a GPU, works in small on a processor."""

import json
import os
import re
import signal
import subprocess
import tarfile

import pytest
from safetensors.torch import load

FROM_BENCHMARKS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gpu_check
"""
WAYS = """
import json
from dataclasses import replace
import torch
from our_byol import as_shipped

shipped = as_shipped(torch.device("cpu"))
numerics = {way: sorted(replace(shipped, **own).numerics().items()) for way, own in gpu_check.WAYS.items()}
print(json.dumps([numerics, gpu_check.STARTS, list(gpu_check.WAYS)[:gpu_check.CHECKED]]))
"""
PART_BYTES = 16 * 2**20
# The part `steps`, whose second way is being measured for as long as one likes.
ENDLESS = """
import time

def of_step(store, recipe, compute, folder, turn, calls=[]):
    calls.append(way := len(calls) + 1)
    yield {"step_ms": float(way)}
    if way == 2:
        print("the second", flush=True)
        time.sleep(600)

gpu_check._of_step = of_step
gpu_check.main()
"""


@pytest.fixture
def gpu_script(repository, tmp_path, starter):
    """Calls the script with arguments; returns its status and what it printed. All calls have one folder for work."""

    def call(*arguments: str) -> tuple[int, str]:
        command = [repository / "benchmarks/gpu.sh", tmp_path / "out", "--work", tmp_path / "work", *arguments]
        done = subprocess.run(command, env={**os.environ, "PYTHON": starter}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return call


def test_the_ways_of_a_step_are_switches_that_a_run_can_have_and_fit_into_the_checks_time(repository, starter, program):
    """Those of one name but for what is said behind it differ in Inductor's own settings, or in the precision.

    The time is by an H200's starts, 10 s to load, 10 for the roofline's peaks and sum, 15 to compile views, 4 for each
    way.
    """
    command = [starter, program(FROM_BENCHMARKS + WAYS), repository / "benchmarks"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numerics, starts, checked = json.loads(done.stdout)
    on = {way: {key for key, value in items if value is True} for way, items in numerics.items()}
    eager = on.pop("eager")
    assert on.pop("one graph, combined kernels") == eager | {"one_graph", "combined_kernels"}
    assert on["one graph, combined kernels, update too"] >= {"one_graph", "combined_kernels", "compiled_update"}
    assert on["one graph"] == eager | {"one_graph"} and on["fp16"] == eager
    limit = int(re.search(r"part steps (\d+) ", (repository / "benchmarks/gpu.sh").read_text())[1])
    assert checked[:3] == ["one graph", "one graph, combined kernels", "one graph, combined kernels, update too"]
    assert list(starts) == checked and sum(starts.values()) + 10 + 10 + 15 + 4 * len(checked) <= limit


def brought_back(folder) -> dict[str, int]:
    """The bytes of what a call has left for its caller, within what a machine that is lent may give back."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert len(sizes) <= 8 and max(sizes.values()) <= PART_BYTES
    return sizes


@pytest.mark.long
def test_the_check_measures_every_part_and_goes_on_after_one_that_fails(gpu_script, tmp_path):
    (tmp_path / "no_pictures.tar").touch()
    status, said = gpu_script("--check", "--smoke", "--within", "3000", "--cifar10", str(tmp_path / "no_pictures.tar"))
    assert status == 1 and "failed: run (status 1)" in said, said  # the only part that wants pictures
    assert "Traceback" not in said
    parts = ("convolutions", "steps", "start", "profile", "resnet50")
    assert {"gpu.txt", *(f"{name}.json" for name in parts)} <= set(brought_back(tmp_path / "out"))
    figures = {name: json.loads((tmp_path / f"out/{name}.json").read_text())["figures"] for name in parts}
    assert figures["convolutions"]["step_convolutions_ms"] > 0
    assert len(figures["start"]["starts_s"]) == 2 and min(figures["start"]["starts_s"]) > 0
    eager = figures["steps"]["eager"]
    assert eager["step_ms"] > 0 and eager["views_alone_ms"] > 0 and eager["networks_ms"] > 0
    for part, way in (
        ("steps", "one graph"),
        ("resnet50", "one graph"),
    ):
        graph = figures[part][way]
        assert graph["step_ms"] > 0 and 0 < graph["views_share"] == graph["views_ms"] / graph["step_ms"]
    status, said = gpu_script("--check", "--smoke", "--only", "run")
    assert status == 0 and "all parts ran" in said, said
    attempts = json.loads((tmp_path / "out/run.json").read_text())["figures"]["attempts"]
    assert len(attempts) == 2  # the second continues the first's checkpoint
    with tarfile.open(tmp_path / "out/run.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["run_history.csv", "run_knn.csv", "run_ledger.csv"]


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_part_whose_time_is_over_leaves_the_ways_it_has_measured(repository, tmp_path, starter, program, how):
    """SIGTERM is what a part's limit sends first: it also leaves no pictures behind."""
    (tmp_path / "temporary").mkdir()
    words = [
        str(repository / "benchmarks"),
        "steps",
        "--quick",
        "--device",
        "cpu",
        "--json",
        str(tmp_path / "steps.json"),
    ]
    with subprocess.Popen(
        [starter, program(FROM_BENCHMARKS + ENDLESS), *words],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert any(line == "the second\n" for line in process.stdout)
        finally:
            process.send_signal(how)
    figures = json.loads((tmp_path / "steps.json").read_text())["figures"]
    assert [one["step_ms"] for one in figures.values()] == [1.0, 2.0]
    if how == signal.SIGTERM:
        assert process.returncode == 128 + how and not list((tmp_path / "temporary").iterdir())


def test_parts_for_which_no_time_is_left_are_named(gpu_script, tmp_path):
    status, said = gpu_script("--check", "--smoke", "--only", "facts,steps", "--within", "1")
    assert status == 0 and "no time was left for: facts steps" in said and "all parts ran" not in said
    assert not (tmp_path / "out/steps.json").exists()


@pytest.mark.long
def test_table_1_is_trained_while_its_caller_is_away_and_comes_home_in_pieces(gpu_script, tmp_path):
    """The second call waits for the end of what the first has left going on."""
    status, said = gpu_script("--train", "1", "--smoke", "--leave", "1")
    assert status == 0 and "goes on" in said, said
    status, said = gpu_script("--fetch", "--leave", "300")
    assert status == 0 and "all parts ran" in said, said
    sizes = brought_back(tmp_path / "out")
    assert {"gpu.txt", "training.json", "small.tar.gz", "encoder.part00"} <= set(sizes)
    pieces = sorted(name for name in sizes if name.startswith("encoder.part"))
    assert load(b"".join((tmp_path / "out" / name).read_bytes() for name in pieces))
    figures = json.loads((tmp_path / "out/training.json").read_text())["figures"]
    for name in ("trained_linear", "trained_knn", "untrained_knn"):
        assert 0 < float(figures[name]["top1"]) <= 100
    with tarfile.open(tmp_path / "out/small.tar.gz") as tar:
        assert {"run/pretrain/history.csv", "run/pretrain/epoch_0001.json", "run/trained/encoder.json"} <= set(
            tar.getnames()
        )


def test_a_second_training_beside_a_living_one_is_refused(gpu_script, tmp_path):
    work = tmp_path / "work"
    (work / "tree").mkdir(parents=True)
    (work / "pid").write_text(f"{os.getpid()}\n")  # a process that lives
    status, said = gpu_script("--train", "1", "--smoke", "--leave", "1")
    assert status == 2 and f"process {os.getpid()}: use --fetch" in said, said
    assert list((work / "tree").iterdir()) == []  # the first one's, as it was


def test_the_check_needs_no_procps_and_packs_no_earlier_run(gpu_script, tmp_path, monkeypatch):
    for name in ("free", "uptime"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/bin/sh\nexit 127\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/run_history.csv").touch()
    status, said = gpu_script("--check", "--smoke", "--only", "facts")
    assert status == 0 and "all parts ran" in said, said
    assert not (tmp_path / "out/run.tar.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--train"], "--train wants a value"),
        (["--check", "--within", "1.5"], "--within wants whole seconds, found 1.5"),
        (["--train", "ten"], "want a number of minutes, found ten"),
        (["--cifar10", "nowhere.tar"], "nowhere.tar: no such file"),
        (["--check", "--leave", "5"], "--leave is for --train and --arms"),
        (["--sheck"], "unknown argument --sheck"),
        (["--fetch"], "no work that was left going on"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line(gpu_script, arguments, wanted):
    status, said = gpu_script(*arguments)
    assert status == 2 and wanted in said.splitlines()[0]
