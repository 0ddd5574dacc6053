"""Files of CSV that were damaged, or saved by a program for tables: in a line, by all that reads them."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import cases, damaged, told

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.job.ledger import COLUMNS, NEEDED, NUMBERS, Ledger, ledger_totals, read_ledger
from selfsup.reports.costs import costs_paid
from selfsup.reports.figures import read_run
from selfsup.reports.plan import costs
from selfsup.reports.status import standings, to_text
from selfsup.segments import record_run
from selfsup.tables import frames

NOTE = {"attempt": "1", "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:00:00+00:00", "job_id": ""}
METRICS = {**dict.fromkeys(frames.NUMBERS, "7"), "protocol": "linear", "encoder_sha256": "ab", "measure": "top-1"}
FILES = {
    "pretrain/ledger.csv": [{**dict.fromkeys(COLUMNS, "7"), **NOTE, "attempt": str(number)} for number in (1, 2)],
    "pretrain/history.csv": [
        {"step": step, "epoch": step / 22, "loss": 3.5, "images_per_s": 200.0, "data_wait": 0.1} for step in (21, 43)
    ],
    "knn.csv": [{"step": 22, "epoch": 1.0, "knn_top1": 80.5}, {"step": 44, "epoch": 2.0, "knn_top1": 90.0}],
    "linear/metrics.csv": [METRICS],
}


def text_of(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def with_cell(name: str, column: str, value: str) -> str:
    """The text of a file whose last row has another value."""
    return text_of([*FILES[name][:-1], {**FILES[name][-1], column: value}])


@pytest.fixture
def run(tmp_path, repository) -> Path:
    """The folder of a begun run of `digits` that has one evaluation."""
    folder = tmp_path / "digits" / "seed0"
    for name, rows in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text_of(rows))
    record_run(folder / "pretrain", load_config(repository / "config.yaml").experiments["digits"].recipe, 1, boundary=1)
    return folder


def read_by_all(run: Path, config) -> None:
    """What status, plan, costs, curves, tables and an export read of a run."""
    results = run.parents[1]
    to_text(list(standings(config, results)))
    told(lambda: list(costs(config, results)))
    told(lambda: list(costs_paid(config, results)))
    told(read_run, run, 0, [1])
    told(frames.read_metrics, run / "linear/metrics.csv")
    told(ledger_totals, run / "pretrain/ledger.csv")


@pytest.mark.parametrize("column", NUMBERS)
def test_a_ledgers_cell_that_is_no_number_is_named_with_its_line(run, column):
    path = run / "pretrain/ledger.csv"
    path.write_text(with_cell("pretrain/ledger.csv", column, "1,5"))
    with pytest.raises(UserError, match=rf"ledger\.csv: line 3: {column} is '1,5', wanted a number: restore it"):
        read_ledger(path, NUMBERS)
    if column in NEEDED:
        with pytest.raises(UserError, match=f"line 3: {column}"):
            read_ledger(path)
    else:  # a job goes on, whatever a person has made of what it does not need
        Ledger(path.parent).open({"started": "2026-01-02T00:00:00+00:00"})
        assert read_ledger(path)[1][column] == "1,5"


@pytest.mark.parametrize("column", frames.NUMBERS)
def test_a_figure_that_is_no_number_is_named(run, column):
    path = run / "linear/metrics.csv"
    assert frames.read_metrics(path)[column].tolist() == [7]
    path.write_text(with_cell("linear/metrics.csv", column, "97,2"))
    with pytest.raises(UserError, match=rf"metrics\.csv: line 2: {column} is '97,2', .* and evaluate again$"):
        frames.read_metrics(path)


@pytest.mark.parametrize("column", frames.NEVER_BLANK)
def test_metrics_without_what_tells_of_what_they_are_are_refused(run, column):
    path = run / "linear/metrics.csv"
    path.write_text(with_cell("linear/metrics.csv", column, ""))
    with pytest.raises(UserError, match=rf"not the metrics of one evaluation \(lacks {column}\): delete it"):
        frames.read_metrics(path, frames.METRICS)


def test_metrics_of_an_older_version_have_the_figure_alone_and_are_drawn(run):
    (run / "linear/metrics.csv").write_text("top1\n97.5\n")
    assert frames.read_metrics(run / "linear/metrics.csv")["top1"].tolist() == [97.5]


@pytest.mark.parametrize(
    ("name", "column"),
    [("pretrain/history.csv", column) for column in FILES["pretrain/history.csv"][0]]
    + [("knn.csv", column) for column in FILES["knn.csv"][0]],
)
def test_curves_name_the_cell_that_they_cannot_draw(run, name, column):
    assert len(read_run(run, 0, [1]).history) == len(read_run(run, 0, [1]).knn) == 2
    (run / name).write_text(with_cell(name, column, "much"))
    with pytest.raises(UserError, match=rf"{Path(name).name}: line 3: {column} is 'much', wanted a number"):
        read_run(run, 0, [1])


@pytest.mark.parametrize(
    ("name", "column"), [("pretrain/history.csv", "loss"), ("knn.csv", "knn_top1"), ("linear/metrics.csv", "figure")]
)
def test_status_tells_of_a_damaged_file_in_the_line_of_its_run(run, repository, name, column):
    config = load_config(repository / "config.yaml")
    (run / name).write_text(with_cell(name, column, "much"))
    lines = {line.experiment: line.state for line in standings(config, run.parents[1])}
    assert f"{Path(name).name}: {column} is 'much', wanted a number" in lines["digits"]
    assert lines["cifar10"] == "not begun"


def test_status_tells_of_metrics_without_a_figure(run, repository):
    (run / "linear/metrics.csv").write_text("")
    lines = {line.experiment: line.state for line in standings(load_config(repository / "config.yaml"), run.parents[1])}
    assert "metrics.csv: not the metrics of one evaluation: delete it and evaluate again" in lines["digits"]


@cases(40)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_whatever_bytes_a_file_of_csv_has(run, repository, name, data):
    for other, rows in FILES.items():
        (run / other).write_text(text_of(rows))
    (run / name).write_bytes(data.draw(damaged(text_of(FILES[name]).encode())))
    read_by_all(run, load_config(repository / "config.yaml"))
