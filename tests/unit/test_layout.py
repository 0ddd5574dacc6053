"""The files of a run: where they lie, and that each name is spelt once."""

import ast
import re
from pathlib import Path

import pytest

from selfsup.layout import (
    RESULTS,
    PretrainPaths,
    RunFolder,
    RunPaths,
    boundary_files,
    data_of,
    epoch_of,
    probe_of,
    seed_of,
    store_in,
)

# What users and other programs find: fixed.
FILES = {
    "results/digits/seed3/pretrain/epoch_0010.pt": lambda run: run.pretrain.checkpoint(10),
    "results/digits/seed3/pretrain/epoch_0010.json": lambda run: run.pretrain.card(10),
    "results/digits/seed3/pretrain/health_0010.json": lambda run: run.pretrain.verdict(10),
    "results/digits/seed3/pretrain/segments.json": lambda run: run.pretrain.record,
    "results/digits/seed3/pretrain/history.csv": lambda run: run.pretrain.history,
    "results/digits/seed3/pretrain/ledger.csv": lambda run: run.pretrain.ledger,
    "results/digits/seed3/pretrain/failed.json": lambda run: run.pretrain.failed,
    "results/digits/seed3/pretrain/partial": lambda run: run.pretrain.partial,
    "results/digits/seed3/knn.csv": lambda run: run.knn,
    "results/digits/seed3/encoder.safetensors": lambda run: run.encoder.weights,
    "results/digits/seed3/encoder.json": lambda run: run.encoder.card,
    "results/digits/seed3/linear/metrics.csv": lambda run: run.encoder.evaluation().metrics,
    "results/digits/seed3/linear/history.csv": lambda run: run.encoder.evaluation().history,
    "results/digits/seed3/linear/further.csv": lambda run: run.encoder.evaluation().further,
    "results/digits/seed3/linear/ledger.csv": lambda run: run.encoder.evaluation().ledger,
    "results/digits/seed3/linear/record.json": lambda run: run.encoder.evaluation().record,
    "results/digits/seed3/few_labels/metrics.csv": lambda run: run.encoder.evaluation("few_labels").metrics,
    "results/digits/seed3/random_init/encoder.safetensors": lambda run: run.random_init.weights,
    "results/digits/seed3/random_init/linear/partial": lambda run: run.random_init.evaluation().partial,
    "results/digits/seed3/revision_2.json": lambda run: run.begun(2),
    "results/digits/seed3_revision1": lambda run: run.aside(1).folder,
    "results/digits/seed3.json": lambda run: run.as_run,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run_has_this_name(name):
    assert str(FILES[name](RunPaths(RESULTS, "digits", 3))) == name


@pytest.mark.parametrize("name", FILES)
def test_a_pattern_filled_in_is_the_files_name(name):
    """As Snakemake fills it in; a number of an epoch is text there, of four digits."""
    filled = str(FILES[name](RunPaths(RESULTS, "{experiment}", "{seed}"))).format(experiment="digits", seed="3")
    assert filled == name
    assert RunPaths(RESULTS, "digits", "3").pretrain.card("0010") == RunPaths(RESULTS, "digits", 3).pretrain.card(10)


def test_other_files_of_an_experiment_have_these_names():
    assert str(probe_of(RESULTS, "digits").ledger) == "results/digits/probe/ledger.csv"
    assert str(store_in(data_of("data", "digits"))) == "data/digits/store.json"
    assert str(store_in(data_of("/scratch", "digits"))) == "/scratch/digits/store.json"
    assert seed_of(RunPaths(RESULTS, "digits", 12).as_run) == 12
    assert [epoch_of(name) for name in ("results/epoch_0010.pt", "epoch_12345.json", "7")] == [10, 12345, 7]


def test_a_persons_copies_are_no_boundaries(tmp_path):
    for name in ("epoch_0010.pt", "epoch_0002.pt", "epoch_0002_backup.pt", "epoch_0002.json", "epoch_0003_old.json"):
        (tmp_path / name).touch()
    assert [path.name for path in boundary_files(tmp_path)] == ["epoch_0002.pt", "epoch_0010.pt"]
    assert [path.name for path in PretrainPaths(tmp_path).cards()] == ["epoch_0002.json"]


def test_what_depends_on_the_training_is_listed_with_its_record_last(tmp_path):
    run = RunFolder(tmp_path)
    for path in (run.begun(2), run.encoder.weights, run.encoder.card, run.knn):
        path.touch()
    for folder in (run.random_init.folder, run.encoder.evaluation().folder, run.pretrain.folder, tmp_path / "notes"):
        folder.mkdir()
    names = ["revision_2.json", "knn.csv", "linear", "encoder.json", "encoder.safetensors", "pretrain"]
    assert [path.name for path in run.of_a_revision()] == names


def test_evaluations_are_those_that_have_metrics(tmp_path):
    encoder = RunFolder(tmp_path).encoder
    for name in ("linear", "few_labels", "begun"):
        encoder.evaluation(name).folder.mkdir()
    encoder.evaluation("linear").metrics.touch()
    encoder.evaluation("few_labels").metrics.touch()
    assert encoder.evaluations() == [encoder.evaluation("few_labels"), encoder.evaluation("linear")]


SPELT = re.compile(
    r"^(?:\S*/)?(?:epoch_\S*|health_\S*|encoder\.(?:safetensors|json)|(?:metrics|ledger|history|knn|further)\.csv"
    r"|(?:segments|failed|record|store)\.json|partial|revision_\S*|seed\S*\d\S*|probe)$"
)
# Where names are spelt beside it: a dataset's own package; STOP is looked for from any of a run's folders.
ALLOWED = ("layout.py", "data", "job/stopping.py")


def _texts(path: Path) -> list[str]:
    """The texts of a module but its docstrings, what stands between braces left out."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_a_runs_file_names_are_spelt_in_one_place(repository):
    scripts = repository / "workflow" / "scripts"
    found = {}
    for path in scripts.rglob("*.py"):
        name = str(path.relative_to(scripts)).removeprefix("selfsup/")
        if not name.startswith(ALLOWED) and (spelt := [text for text in _texts(path) if SPELT.match(text)]):
            found[name] = spelt
    rules = "\n".join(path.read_text() for path in (repository / "workflow" / "rules").glob("*.smk"))
    rules = re.sub(r"^ *#.*$|\"logs/.*$", "", rules, flags=re.MULTILINE)
    found["rules"] = re.findall(
        r"[\w{}/.]*(?:/seed\{|epoch_\{|health_\{|encoder\.s|metrics\.csv|ledger\.csv|\w\.json|/partial)\S*", rules
    )
    assert {name: texts for name, texts in found.items() if texts} == {}
