"""Experiments with a grid: one for each combination, named by what differs."""

import copy

import pytest
import yaml
from snakemake.utils import update_config

from selfsup.as_run import config_as_run, record_what_runs
from selfsup.config import check_config, load_config
from selfsup.errors import UserError
from selfsup.grids import MOST, read_config_file, without_grids
from selfsup.settings.yaml_reader import read_yaml
from selfsup.tables.differs_in import differs_in


@pytest.fixture
def raw(repository) -> dict:
    return read_yaml(repository / "config.yaml")


def with_grid(raw: dict, grid, **further) -> dict:
    raw = copy.deepcopy(raw)
    raw["experiments"]["sweep"] = {"recipe": "digits", "dataset": "digits", "grid": grid, **further}
    raw["tables"]["sweep"] = ["sweep", "digits"]
    return raw


def sweep(raw: dict, grid, **further):
    config = check_config(with_grid(raw, grid, **further))
    return {name: one for name, one in config.experiments.items() if name.startswith("sweep")}, config


def test_each_combination_is_an_experiment_named_by_what_differs(raw):
    grid = {"optimizer.peak_lr": [0.5, 1e-5], "byol.predictor.hidden": [64, 128]}
    made, config = sweep(raw, grid, seeds=[0, 1])
    assert list(made) == [
        "sweep-peak_lr_0.5-hidden_64",
        "sweep-peak_lr_0.5-hidden_128",
        "sweep-peak_lr_1e_05-hidden_64",
        "sweep-peak_lr_1e_05-hidden_128",
    ]
    last = made["sweep-peak_lr_1e_05-hidden_128"].recipe
    assert (last.optimizer.peak_lr, last["byol"]["predictor"]["hidden"]) == (1e-5, 128)
    assert {tuple(one.seeds) for one in made.values()} == {(0, 1)}
    assert config.tables["sweep"] == [*made, "digits"]


def test_values_in_the_grid_join_the_overrides_that_all_have(raw):
    made, _ = sweep(raw, {"byol.tau_base": [0.9, 0.99]}, overrides={"epochs": 3, "byol": {"predictor": {"hidden": 64}}})
    recipes = [one.recipe for one in made.values()]
    assert [one["byol"]["tau_base"] for one in recipes] == [0.9, 0.99]
    assert all(one.epochs == 3 and one["byol"]["predictor"]["hidden"] == 64 for one in recipes)


def test_recipes_elements_of_lists_and_named_values_can_be_varied(raw):
    made, _ = sweep(raw, {"recipe": ["digits", "simclr_digits"], "augment.views.1.flip": [0, 0.5]})
    assert list(made)[-1] == "sweep-simclr_digits-flip_0.5"
    assert [one.recipe.augment.views[1].flip for one in made.values()] == [0, 0.5, 0, 0.5]
    assert [one.recipe.method for one in made.values()] == ["byol", "byol", "simclr", "simclr"]
    made, _ = sweep(raw, {"augment.views.0.jitter": {"without": None, "half": {"p": 0.5}}})
    assert list(made) == ["sweep-jitter_without", "sweep-jitter_half"]
    assert made["sweep-jitter_without"].recipe.augment.views[0].jitter is None


def test_keys_with_one_last_part_are_named_whole(raw):
    made, _ = sweep(raw, {"byol.projector.hidden": [32], "byol.predictor.hidden": [64, 32]})
    assert next(iter(made)) == "sweep-byol.projector.hidden_32-byol.predictor.hidden_64"


def test_what_has_no_grid_is_the_same_and_writing_out_twice_changes_nothing(raw):
    assert without_grids(raw) is raw
    once = without_grids(with_grid(raw, {"epochs": [3, 4]}))
    assert without_grids(once) is once and "grid" not in once["experiments"]["sweep-epochs_3"]
    assert without_grids("no mapping") == "no mapping"


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ([0.1], r"grid is \[0\.1\], wanted recipe keys with their values"),
        ({}, r"grid is \{\}, wanted recipe keys"),
        ({"epochs": 3}, r"grid\.epochs is 3, wanted a list of numbers or words"),
        ({"epochs": []}, r"grid\.epochs is \[\], wanted a list"),
        ({"epochs": [{"a": 1}]}, r"grid\.epochs is .*, wanted a list of numbers or words, or"),
        ({"epochs": [1, 1]}, r"grid\.epochs has two values named 1"),
        ({"epochs": list(range(MOST + 1))}, rf"grid has {MOST + 1} combinations, wanted at most {MOST}"),
        ({"epoch": [1]}, r"experiments\.sweep-epoch_1: .*epoch"),
        ({"epochs": [-1]}, r"experiments\.sweep-epochs__1: .*epochs is -1"),
        ({"epochs.deep": [1]}, r"epochs"),
        ({3: [1]}, r"grid is \{3: \[1\]\}, wanted recipe keys"),
    ],
)
def test_a_mistake_is_one_line(raw, grid, told):
    with pytest.raises(UserError, match=told) as error:
        check_config(with_grid(raw, grid, overrides={"optimizer": {"peak_lr": 0.1}}))
    assert len(str(error.value).splitlines()) == 1


def test_two_grids_that_make_one_name_are_refused(raw):
    taken = with_grid(raw, {"optimizer.peak_lr": [1], "epochs": [3]})
    taken["experiments"]["sweep-peak_lr_1"] = {"recipe": "digits", "dataset": "digits", "grid": {"epochs": [3]}}
    with pytest.raises(UserError, match=r"sweep.* both make sweep-peak_lr_1-epochs_3: rename one"):
        check_config(taken)


def written(tmp_path, experiments: dict):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"experiments": experiments}))
    return path


def test_more_experiments_than_one_grid_may_have_are_refused_by_hand_and_by_several_grids_too(tmp_path):
    block = {"recipe": "digits", "dataset": "digits"}
    by_hand = {f"experiment_{number}": block for number in range(MOST)}
    assert len(read_config_file(written(tmp_path, by_hand))["experiments"]) == MOST
    grid = {**block, "grid": {"epochs": list(range(1, 201))}}
    for experiments, count in (({**by_hand, "another": block}, MOST + 1), ({"first": grid, "second": grid}, 400)):
        with pytest.raises(UserError, match=rf"^config.yaml: experiments are {count}, .*, wanted at most {MOST}: .*$"):
            read_config_file(written(tmp_path, experiments))
    for content in ("", "experiments: [1]"):  # for others to refuse
        (tmp_path / "config.yaml").write_text(content)
        read_config_file(tmp_path / "config.yaml")


def test_what_was_run_in_the_course_of_time_may_be_more(raw, tmp_path, monkeypatch):
    """Those of another --configfile than today's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    ran = without_grids(with_grid(raw, {"epochs": [3, 4]}))
    record_what_runs(tmp_path / "results", check_config(ran), ran, {("sweep-epochs_4", 0)})
    monkeypatch.setattr("selfsup.grids.MOST", len(raw["experiments"]))
    known = config_as_run("config.yaml", tmp_path / "results")
    assert len(known.experiments) == len(raw["experiments"]) + 1 and "sweep-epochs_4" in known.experiments


def test_an_experiment_that_stands_there_itself_is_taken(raw, tmp_path, repository):
    """As `make report` lays what was run over config.yaml: by Snakemake's merging, mapping by mapping."""
    swept = with_grid(raw, {"epochs": [3, 4]})
    ran = without_grids(with_grid(raw, {"epochs": [3, 4]}, overrides={"global_batch": 32}))
    merged = copy.deepcopy(swept)
    update_config(merged, copy.deepcopy(ran))
    config = check_config(merged)
    assert list(config.experiments).count("sweep-epochs_4") == 1 and "sweep" not in config.experiments
    assert config.experiments["sweep-epochs_4"].recipe.global_batch == 32
    assert config.tables["sweep"] == ["sweep-epochs_3", "sweep-epochs_4", "digits"]


def test_scripts_and_records_know_the_experiments_that_a_grid_made(raw, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(with_grid(raw, {"epochs": [3, 4]})))
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path / "config.yaml")
    written = without_grids(read_yaml(tmp_path / "config.yaml"))
    record_what_runs(tmp_path / "results", config, written, {("sweep-epochs_4", 0)})
    assert (tmp_path / "results/sweep-epochs_4/seed0.json").exists()
    known = config_as_run("config.yaml", tmp_path / "results")
    assert known.experiments["sweep-epochs_4"].recipe.epochs == 4 and "sweep" not in known.experiments


def test_a_table_says_in_what_its_experiments_of_one_recipe_differ(raw):
    made, config = sweep(raw, {"optimizer.peak_lr": [0.5, 1.0], "augment.views.1.solarize": [None]})
    found = differs_in([*made.values(), config.experiments["simclr_digits"]])
    assert found["sweep-peak_lr_0.5-solarize_null"] == "optimizer.peak_lr 0.5"
    assert found["sweep-peak_lr_1.0-solarize_null"] == "optimizer.peak_lr 1.0"
    assert found["simclr_digits"] is None
    assert differs_in([config.experiments["digits"]]) == {"digits": None}
