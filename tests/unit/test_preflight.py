"""Preflight: a verdict a line, and what to do where a check failed."""

import pytest

from runs import on_cpu
from selfsup.job.place import Place
from selfsup.preflight import Preflight, to_text


def verdicts(tmp_path, *, ranks=1, data=(), results=None, limit=None) -> dict:
    checks = Preflight(on_cpu(), Place(), ranks, list(data), results or tmp_path / "results", limit)
    return {one.check: one for one in checks.run()}


def test_all_is_well_on_a_machine_that_has_what_is_needed(tmp_path, tiny_store, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = verdicts(tmp_path, data=[tiny_store.folder])
    assert all(one.good for one in found.values())
    assert to_text(list(found.values())).endswith("preflight: all is well\n")
    assert "43" in found[f"store {tiny_store.folder}"].found
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("ranks", {"ranks": 2}),
        ("store", {"data": ["nowhere"]}),
        ("results folder", {"results": "/proc/results"}),
        ("time limit", {}),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(tmp_path, monkeypatch, check, changes):
    from pathlib import Path

    monkeypatch.setenv("SLURM_JOB_ID", "1") if check == "time limit" else monkeypatch.delenv("SLURM_JOB_ID", False)
    if "data" in changes:
        changes = {"data": [tmp_path / "nowhere"]}
    if "results" in changes:
        changes = {"results": Path(changes["results"])}
    found = verdicts(tmp_path, **changes)
    failed = [one for one in found.values() if not one.good]
    assert [one.check.split(" /")[0] for one in failed] == [check]
    text = to_text(list(found.values()))
    assert f"FAILED  {failed[0].check}" in text and f"-> {failed[0].advice}" in text
    assert "1 of " in text.splitlines()[-1]


def test_a_known_time_limit_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert verdicts(tmp_path, limit=1200.0)["time limit"].good
