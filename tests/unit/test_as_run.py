"""What was run with a file of settings of its own is seen by whoever looks at the results later, without that file."""

import copy
import json

import pytest
import yaml

from selfsup.as_run import as_run, config_as_run, record_what_runs, runs_known
from selfsup.config import check_config
from selfsup.reports.plan import costs
from selfsup.reports.status import standings
from selfsup.segments import record_run
from selfsup.settings.yaml_reader import read_yaml
from workflows import shipped


@pytest.fixture
def place(tmp_path, repository, monkeypatch):
    """A folder with config.yaml; what --configfile adds is written by hand here."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(shipped(repository), sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def raw(place):
    return read_yaml(place / "config.yaml")


def ran(place, raw, name, seed, *, dataset="digits", **block) -> dict:
    """Record a call whose file of settings changes one experiment; return what was run, merged."""
    merged = copy.deepcopy(raw)
    merged["experiments"][name] = {**merged["experiments"].get(name, merged["experiments"]["digits"]), **block}
    merged["experiments"][name]["dataset"] = dataset
    merged["datasets"].setdefault(dataset, {"source": "folder", "path": "/data/birds"})
    merged["tables"][f"of_{name}"] = [name]
    record_what_runs(place / "results", check_config(merged), merged, {(name, seed)})
    return merged


def test_extensions_of_all_runs_are_needed_still(repository, tmp_path):
    """Each run was called with its own; none of them is in config.yaml now."""
    for name in ("first_as_run", "second_as_run"):
        (tmp_path / f"{name}.py").write_text("")
    now = read_yaml(repository / "config.yaml")
    results = tmp_path / "results"
    for seed, name in enumerate(("first_as_run", "second_as_run")):
        raw = {**now, "extensions": [str(tmp_path / f"{name}.py")]}
        record_what_runs(results, check_config(raw), raw, {("digits", seed)})
    merged = as_run(now, results)
    assert merged["extensions"] == [str(tmp_path / f"{name}.py") for name in ("first_as_run", "second_as_run")]
    assert "extensions" not in as_run(now, tmp_path / "nothing")


def test_runs_of_several_calls_are_all_seen_as_they_were_run(place, raw):
    ran(place, raw, "birds", 3, dataset="birds", seeds=[3], overrides={"epochs": 50})
    ran(place, raw, "digits", 0, seeds=[0], overrides={"epochs": 60})
    ran(place, raw, "digits", 7, seeds=[7], overrides={"epochs": 90})
    known = {(run.experiment.name, run.seed): run for run in runs_known(check_config(raw), place / "results")}
    epochs = {key: run.experiment.recipe["epochs"] for key, run in known.items()}
    assert epochs == {
        ("digits", 0): 60,
        ("digits", 7): 90,
        ("cifar10", 0): 1000,
        ("imagenet", 0): 1000,
        ("birds", 3): 50,
    }


def test_status_shows_a_run_with_overrides_as_what_it_is(place, raw):
    merged = ran(place, raw, "digits", 0, overrides={"epochs": 60})
    folder = place / "results/digits/seed0/pretrain"
    folder.mkdir(parents=True)
    record_run(folder, check_config(merged).experiments["digits"].recipe, 1, boundary=10)
    (line,) = [one for one in standings(check_config(raw), place / "results") if one.experiment == "digits"]
    assert line.segment == "2 of 6" and "another recipe" not in line.state


def test_plan_counts_what_was_run_until_config_yaml_says_otherwise(place, raw):
    ran(place, raw, "cifar10", 0, dataset="cifar10", segment_epochs=100)

    def planned() -> dict:
        return {one.experiment: one.segments for one in costs(config_as_run("config.yaml", place / "results"), place)}

    assert planned() == {"digits": 3, "cifar10": 10, "imagenet": 10}
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(text.replace("segment_epochs: 400", "segment_epochs: 500"))
    assert planned()["cifar10"] == 2


def test_seeds_of_the_same_settings_come_together_and_tables_stay_whole(place, raw):
    ran(place, raw, "birds", 1, dataset="birds", seeds=[1])
    ran(place, raw, "birds", 0, dataset="birds", seeds=[0])
    content = as_run(raw, place / "results")
    assert content["experiments"]["birds"]["seeds"] == [0, 1] and content["tables"]["of_birds"] == ["birds"]
    assert content["datasets"]["birds"] == {"source": "folder", "path": "/data/birds"}
    assert list(content["experiments"]) == ["digits", "cifar10", "imagenet", "birds"]
    assert check_config(content).experiments["digits"] == check_config(raw).experiments["digits"]


def test_an_experiment_that_config_yaml_has_lost_takes_nothing_with_it(place, raw):
    ran(place, raw, "digits", 0, overrides={"epochs": 60})
    without = copy.deepcopy(raw)
    del without["experiments"]["digits"], without["datasets"]["digits"], without["tables"]["demo"]
    assert set(check_config(as_run(without, place / "results")).experiments) == {"cifar10", "imagenet"}


def test_a_record_that_cannot_be_read_is_told_and_hides_no_other(place, raw, capsys):
    ran(place, raw, "digits", 0, overrides={"epochs": 60})
    (place / "results/digits/seed1.json").write_text("{")
    broken = json.loads((place / "results/digits/seed0.json").read_text())
    broken["config"]["experiments"]["digits"]["recipe"] = "gone"
    (place / "results/digits/seed2.json").write_text(json.dumps(broken))
    known = list(runs_known(check_config(raw), place / "results"))
    assert known[0].experiment.recipe["epochs"] == 60 and len(known) == 3
    told = capsys.readouterr().err
    assert told.count("warning: ") == 2 and "seed1.json" in told and "seed2.json" in told
