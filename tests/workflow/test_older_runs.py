"""Runs of an older version of this software, in tests/fixtures as it left them: finished stays finished, begun goes on.

The archive was made by commit 5741ae6, the first that others may have used, from a tiny network on the digits:
"digits" is finished, "begun" was stopped at step 136 of 264. expected.json has what 5741ae6 itself made of "begun" when
it went on. Images are left out: the store is packed again here, and has to be the same.
"""

import json
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from selfsup.job.ledger import read_ledger
from selfsup.settings.yaml_reader import read_yaml
from workflows import Workflow, jobs

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "runs_of_5741ae6.tar.xz"

pytestmark = pytest.mark.slow


@pytest.fixture
def older(tmp_path, repository, python) -> Workflow:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "older", filter="data")
    workflow = Workflow(tmp_path / "older", repository, python)
    workflow.config = read_yaml(workflow.path("config.yaml"))
    return workflow


def test_a_finished_run_of_an_older_version_stays_finished(older):
    encoder, ledger = (
        older.path(f"results/digits/seed0/{name}") for name in ("encoder.safetensors", "pretrain/ledger.csv")
    )
    before = [path.read_bytes() for path in (encoder, ledger)]
    figures = pd.read_csv(older.path("results/digits/seed0/linear/metrics.csv"))
    printed = older.run("results/demo.csv")
    assert not any(jobs(printed, rule) for rule in ("pretrain_segment", "export_encoder", "export_random_init"))
    assert [path.read_bytes() for path in (encoder, ledger)] == before
    now = pd.read_csv(older.path("results/digits/seed0/linear/metrics.csv"))
    pd.testing.assert_frame_equal(now[figures.columns], figures)
    assert "Nothing to be done" in older.run("results/demo.csv")


@pytest.mark.long
def test_a_begun_run_of_an_older_version_goes_on_to_the_same_bits(older):
    expected = json.loads(older.read("expected.json"))["begun"]
    older.run("results/begun/seed0/encoder.safetensors")
    last = read_ledger(older.path("results/begun/seed0/pretrain/ledger.csv"))[-1]
    assert (int(last["start_step"]), int(last["end_step"])) == (136, 264)
    history = pd.read_csv(older.path("results/begun/seed0/pretrain/history.csv"))
    assert list(history["step"]) == sorted(set(history["step"]))
    # Bits are promised for one numerics and one kind of processor; another one rounds otherwise, for 128 steps.
    assert history["loss"].iloc[-1] == pytest.approx(expected["last_loss"], rel=0.05)
    card = json.loads(older.read("results/begun/seed0/encoder.json"))
    if _processor() == expected["processor"] and expected["numerics"].items() <= card["training"]["numerics"].items():
        assert card["encoder_sha256"] == expected["encoder_sha256"]


def _processor() -> str:
    """The name, family and model of the processor, as Linux tells them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    told = dict(re.split(r"\s*: ?", line, maxsplit=1) for line in lines if ":" in line)
    return ", ".join(told.get(key, "") for key in ("model name", "cpu family", "model"))
