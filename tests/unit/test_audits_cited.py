"""Verdicts of audits, as a model card cites them: of the run's own checkpoint, of another run, failed."""

import json

import pytest

from selfsup.layout import AuditPaths, RunPaths
from selfsup.reports.audits import audits_in_words

RUN = {"seed": 3, "revision": 2, "fingerprint": "f" * 64, "dataset_fingerprint": "d" * 64}
CARD = {"seed": 3, "training": {key: value for key, value in RUN.items() if key != "seed"}}
PASSED = {
    "verdict": "the same bits",
    "audited": "2026-01-02T03:04:05+00:00",
    "segment": {"number": 2, "epochs": [10, 20]},
    "run": {"folder": "results/mine/seed3", **RUN},
    "checkpoint_sha256": "c" * 64,
    "sha256": {part: {"run": part[0] * 64, "audit": part[0] * 64} for part in ("weights", "buffers", "history")},
    "differing": [],
}
OTHERS = "segment 2, epochs 10 to 20: of another run, which says nothing about this one "


@pytest.fixture
def cited(tmp_path, monkeypatch):
    """A function that returns how a verdict is cited, given what is other in it than in one that passed."""
    monkeypatch.chdir(tmp_path)
    pretrain = RunPaths(tmp_path / "results", "mine", 3).pretrain
    pretrain.folder.mkdir(parents=True)
    boundaries = {"20": {"sha256": "c" * 64}}
    monkeypatch.setattr("selfsup.reports.audits.recorded_cards", {pretrain.folder: boundaries}.get)

    def cite(name: str = "verdict", **others: object) -> list[str]:
        path = getattr(AuditPaths.of("mine", "seed3", 20), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({key: value for key, value in (PASSED | others).items() if value is not None}))
        return audits_in_words(tmp_path / "results", "mine", 3, CARD)

    return cite


def test_a_passed_audit_is_cited_with_segment_sums_and_time(cited):
    (line,) = cited()
    assert line == (
        "segment 2, epochs 10 to 20: the same bits, audited 2026-01-02T03:04:05+00:00; SHA-256 of "
        f"weights `{'w' * 16}`, buffers `{'b' * 16}`, history `{'h' * 16}`, of the checkpoint `{'c' * 64}`"
    )


def test_a_verdict_that_is_older_than_its_time_is_cited_without(cited):
    assert "the same bits; SHA-256" in cited(audited=None)[0]


@pytest.mark.parametrize("key", RUN)
def test_an_audit_of_another_run_or_revision_is_named_as_such(cited, key):
    (line,) = cited(run={**PASSED["run"], key: 7})
    assert line == f"{OTHERS}({key} 7, here {RUN[key]})"


def test_an_audit_of_another_checkpoint_is_named_as_such(cited):
    assert cited(checkpoint_sha256="e" * 64) == [f"{OTHERS}(checkpoint {'e' * 16}, here {'c' * 16})"]
    assert cited(segment={"number": 2, "epochs": [10, 21]})[0].endswith(f"(checkpoint {'c' * 16}, here not recorded)")


def test_a_failed_audit_is_told(cited):
    (line,) = cited("differing", verdict="other bits in weights", differing=["weights"])
    assert line == "segment 2, epochs 10 to 20: failed, other bits in weights, audited 2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    "others",
    [
        {"segment": None},
        {"sha256": {"weights": None}},
        {"run": {"seed": 3}},
        {"differing": None},
        {"checkpoint_sha256": None},
    ],
)
def test_what_is_no_verdict_is_called_so(cited, others):
    assert cited(**others) == [f"{AuditPaths.of('mine', 'seed3', 20).verdict.absolute()} is no verdict on a segment"]


def test_without_an_audit_nothing_is_cited_and_no_record_is_read(tmp_path):
    pretrain = RunPaths(tmp_path, "mine", 3).pretrain
    pretrain.folder.mkdir(parents=True)
    (pretrain.folder / "segments.json").write_text("damaged")
    assert audits_in_words(tmp_path, "mine", 3, CARD) == []
