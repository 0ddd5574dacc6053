"""What commands are told, and what tables and the report are made from: without Snakemake."""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from selfsup import commands, parts
from selfsup.config import Config, check_config, load_config
from selfsup.errors import UserError
from selfsup.layout import RunPaths
from selfsup.settings.yaml_reader import read_yaml
from selfsup.targets import experiment_asked_for


@pytest.fixture
def config(repository, tmp_path, monkeypatch) -> Config:
    """That of the repository, seen from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return load_config(repository / "config.yaml")


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_words_of_a_command_line_are_quoted_and_what_is_not_there_is_left_out():
    given = {"--path": Path("my data/a"), "--flag": True, "--no": False, "--none": None, "--zero": 0}
    assert shlex.split(commands.words(given)) == ["--path", "my data/a", "--flag", "--zero", "0"]
    assert commands.words({}) == ""


def test_a_command_names_files_from_the_folder_that_it_is_called_in():
    here = Path("/home/me/my runs")
    assert commands.near("/home/me/my runs/.venv/bin/python", here) == ".venv/bin/python"
    assert shlex.split(commands.near(Path("/opt/the code/a.py"), here)) == ["/opt/the code/a.py"]
    assert commands.near("/home/me/my runs of old/a.py", here) == "'/home/me/my runs of old/a.py'"


def test_a_file_for_jobs_is_named_by_what_it_says(config):
    planned = commands.told_file("recipe", {"epochs": 3, "b": 1}, write=False)
    assert planned.startswith("results/.told/recipe_") and not Path("results").exists()
    assert commands.told_file("recipe", {"b": 1, "epochs": 3}, write=True) == planned
    assert Path(planned).read_text() == '{"b": 1, "epochs": 3}'
    assert commands.told_file("recipe", {"epochs": 4, "b": 1}, write=False) != planned
    Path(planned).write_text("damaged")
    commands.told_file("recipe", {"epochs": 3, "b": 1}, write=True)
    assert Path(planned).read_text() == '{"b": 1, "epochs": 3}'


def test_a_digest_of_code_is_of_content_alone(tmp_path):
    make(tmp_path / "a.py", tmp_path / "package" / "b.py", tmp_path / "package" / "notes.txt")
    names = ("a.py", "package")
    before = commands.code_digest(tmp_path, names)
    (tmp_path / "a.py").touch()
    (tmp_path / "package" / "notes.txt").write_text("more")
    assert commands.code_digest(tmp_path, names) == before and len(before) == 16
    (tmp_path / "package" / "b.py").write_text("1")
    assert commands.code_digest(tmp_path, names) != before


def test_several_nodes_are_refused_where_there_is_one_machine(config):
    commands.refuse_several_nodes(config.experiments["imagenet"], "evaluate")
    with pytest.raises(
        UserError, match=r"imagenet asks for 8 nodes: use --profile .*imagenet\.compute\.pretrain\.nodes to 1"
    ):
        commands.refuse_several_nodes(config.experiments["imagenet"], "pretrain")


def test_preflight_is_of_the_largest_experiment_that_can_run(config):
    assert commands.largest(config, in_slurm=True).name == "imagenet"
    assert commands.largest(config, in_slurm=False).name == "cifar10"
    alone = replace(config, experiments={"imagenet": config.experiments["imagenet"]})
    assert commands.largest(alone, in_slurm=False).name == "imagenet"


def test_the_keys_of_a_dataset_say_how_it_is_packed(config):
    block = {"source": "folder", "resize": 256, "skip_damaged": True, "expect": {"train": 2, "classes": 1}}
    words = ["--resize", "256", "--skip-damaged", "--expect", '{"classes": 1, "train": 2}']
    assert shlex.split(commands.packing_words(block)) == words
    assert commands.packing_words({"source": "folder", "skip_damaged": False, "resize": None}) == ""
    assert commands.packing_words({"source": "cifar10", "expect": None}) == "--expect null"  # no check of known numbers
    assert [commands.packing_threads(config, name) for name in ("digits", "cifar10", "imagenet", "other")] == [
        2,
        20,
        40,
        1,
    ]


def test_a_source_is_told_with_how_its_files_are_taken():
    """What stands here alone has a dataset packed anew; of those of before it is the same word."""
    for source in ("digits", "cifar10", "imagenet", "folder"):
        assert commands.source_words({"source": source, "path": "/a", "resize": 256, "skip_damaged": True}) == source
    block = {"source": "parquet", "test_share": 0.25, "image_column": "my img", "label_column": "fine"}
    words = "parquet --test-share 0.25 --image-column 'my img' --label-column fine"
    assert commands.source_words(block) == words
    assert commands.source_words({"source": "folder", "labels": False}) == "folder --no-labels"


def test_the_report_has_what_was_trained_without_labels_and_needs_no_evaluation_of_it(config, repository, tmp_path):
    raw = read_yaml(repository / "config.yaml")
    raw["datasets"]["mine"] = {"source": "folder", "path": "/pictures", "labels": False}
    raw["experiments"]["mine"] = {**raw["experiments"]["digits"], "dataset": "mine"}
    raw["tables"]["mine"] = ["mine"]
    config, encoder = check_config(raw), RunPaths(Path("results"), "mine", 0).encoder.weights
    assert parts.metrics_of_experiment(config, "mine") == [encoder]
    with pytest.raises(UserError, match="no table is finished yet"):
        parts.parts_of_report(config)
    make(encoder)
    names = [str(path) for path in parts.parts_of_report(config)]
    assert "results/figures/mine.svg" in names and "results/report/mine.html" not in names


def test_the_gate_is_told_of_bands_and_of_going_on_where_config_yaml_has_them(config):
    digits = config.experiments["digits"]
    assert commands.gate_words(digits) == ""
    told = commands.gate_words(replace(digits, bands="my bands.yaml", continue_after_collapse=True))
    assert shlex.split(told) == ["--bands", "my bands.yaml", "--continue-after-collapse"]


def test_a_local_copy_of_the_dataset_is_told_with_the_machine(config):
    cifar10 = config.experiments["cifar10"]
    assert commands.machine_words(config, cifar10, "evaluate", "cifar10", in_slurm=False) == "--cpus 10 --local-ranks 1"
    copied = replace(config, datasets={"cifar10": {"source": "cifar10", "local_copy": "$TMPDIR"}})
    words = commands.machine_words(copied, cifar10, "pretrain", "cifar10", in_slurm=True)
    assert words == "--cpus 10 --local-copy '$TMPDIR' --time-limit 1200"


def test_a_table_is_made_from_the_evaluations_of_its_encoders_trained_and_untrained(config):
    config = replace(config, experiments={"digits": replace(config.experiments["digits"], seeds=[0, 3])})
    assert list(map(str, parts.metrics_of_table(config, "demo"))) == [
        f"results/digits/seed{seed}/{untrained}{evaluation}/metrics.csv"
        for seed in (0, 3)
        for untrained in ("", "random_init/")
        for evaluation in ("linear", "knn", "ten_percent")
    ]
    curves = parts.metrics_of_experiment(config, "digits")
    made = [
        f"results/digits/seed{seed}/{evaluation}/metrics.csv"
        for seed in (0, 3)
        for evaluation in ("linear", "knn", "ten_percent")
    ]
    assert list(map(str, curves)) == made
    assert parts.rows_of_table(config, "demo") == ["digits 30 64 [0, 3] ['linear', 'knn', 'ten_percent']"]


def test_the_report_shows_the_tables_whose_evaluations_are_all_there(config):
    with pytest.raises(UserError, match=r"no table is finished yet.*snakemake --cores all results/demo.csv first"):
        parts.parts_of_report(config)
    make(*parts.metrics_of_table(config, "demo"))
    assert list(map(str, parts.parts_of_report(config))) == [
        "results/report.html",
        "results/report/demo.html",
        "results/figures/digits.svg",
        "results/report/digits_recipe.html",
        "results/figures/views_digits.png",
        "results/report/compute.html",
    ]
    make(*parts.metrics_of_table(config, "table1")[:-1])
    assert len(parts.parts_of_report(config)) == 6
    assert list(map(str, parts.parts_of_landing_page(config))) == [
        "results/demo.md",
        "results/figures/digits.svg",
        "results/figures/views_digits.png",
        "results/compute.csv",
    ]


def test_costs_are_counted_from_the_ledgers_that_are_there(config):
    assert parts.ledgers(config) == []
    run = RunPaths(Path("results"), "cifar10", 0)
    features = [one.extraction("cifar10-0123abcd").ledger for one in (run.encoder, run.random_init)]
    there = [run.pretrain.ledger, features[0], features[1], run.random_init.evaluation().ledger]
    make(*there, Path("results/unknown/seed0/pretrain/ledger.csv"))
    assert parts.ledgers(config) == there


def test_jobs_are_told_the_part_of_config_yaml_that_they_are_made_from(repository):
    """Which is a configuration of its own; the rest may change without making anything anew."""
    raw = read_yaml(repository / "config.yaml")
    one = parts.config_of_experiment(raw, "digits")
    assert list(check_config(one).experiments) == ["digits"] and one["tables"] == {}
    table = parts.config_of_table(raw, "demo")
    assert table["tables"] == {"demo": ["digits"]} and table["experiments"] == one["experiments"]
    raw["experiments"]["cifar10"]["seeds"] = [7]
    assert parts.config_of_table(raw, "demo") == table and parts.config_of_experiment(raw, "digits") == one


def test_a_seed_is_one_that_config_yaml_lists_as_it_is_written_there(config):
    assert experiment_asked_for(config, "digits", "0") is experiment_asked_for(config, "digits", None)
    with pytest.raises(
        UserError, match=r"has no seed 7: experiments\.digits\.seeds in config\.yaml is \[0\]; to run it too"
    ):
        experiment_asked_for(config, "digits", "7")
    with pytest.raises(UserError, match=r"has no seed 00: .*; ask for seed0"):
        experiment_asked_for(config, "digits", "00")


def test_a_line_that_is_no_text_hides_none_after_it(tmp_path):
    """As of a folder's name in another encoding; details are in the log alone."""
    script, utf8 = shlex.split(commands.TEE), {**os.environ, "LC_ALL": "C.UTF-8"}
    said = b"one\0\n09:00:00 . a detail\nan \xff\nlast\n"
    shown = subprocess.run([*script, tmp_path / "log"], input=said, capture_output=True, check=True, env=utf8).stdout
    assert shown == said.replace(b"09:00:00 . a detail\n", b"") and (tmp_path / "log").read_bytes() == said
