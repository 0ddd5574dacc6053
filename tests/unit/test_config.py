import argparse
import copy
import math
from pathlib import Path

import numpy as np
import pytest

from selfsup.arguments import seed
from selfsup.config import check_config, dataset_problem, from_command_line, labels_problem, load_config
from selfsup.errors import UserError
from selfsup.random_draws import Stream, words
from selfsup.settings.typed import Settings, read
from selfsup.settings.yaml_reader import read_yaml

SGD = {"name": "sgd", "momentum": 0.9, "nesterov": False}


@pytest.fixture
def raw(repository) -> dict:
    return read_yaml(repository / "config.yaml")


def changed(raw: dict, path: str, value) -> dict:
    raw = copy.deepcopy(raw)
    *parents, last = path.split(".")
    block = raw
    for key in parents:
        block = block[key]
    block[last] = value
    return raw


def test_the_shipped_configuration_is_valid(repository):
    config = load_config(repository / "config.yaml")
    assert config.tables["table1"] == ["cifar10", "imagenet"]
    imagenet = config.experiments["imagenet"].compute["pretrain"]
    assert imagenet["nodes"] * imagenet["devices_per_node"] == 32  # paper, section 6.6


def test_the_last_seed_is_the_last_word_of_32_bits(raw):
    """In config.yaml and on a script's command line; it draws other numbers than its neighbours."""
    last = 2**32 - 1
    config = check_config(changed(raw, "experiments.digits.seeds", [0, last]))
    assert config.experiments["digits"].seeds == [0, last] and seed(str(last)) == last
    drawn = {words(one, Stream.PRETRAIN, epoch=0, indices=np.array([0])).tobytes() for one in (0, last - 1, last)}
    assert len(drawn) == 3
    for text in (str(last + 1), "-1", "1.0", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a seed, wanted 0 to 4294967295"):
            seed(text)


def test_a_recipe_and_a_dataset_are_an_experiment(raw):
    """All else has a default: one run, one segment, one device."""
    one = check_config(changed(raw, "experiments.short", {"recipe": "digits", "dataset": "digits"})).experiments[
        "short"
    ]
    assert (one.seeds, one.revision, one.segment_epochs, list(one.evaluations)) == (
        [0],
        1,
        one.recipe.epochs,
        ["linear"],
    )
    assert one.compute["pretrain"] == one.compute["evaluate"] and (one.overrides, one.bands) == ({}, None)
    assert one.compute["pretrain"]["nodes"] * one.compute["pretrain"]["devices_per_node"] == 1


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("data_dirr", "x", ["unknown key 'data_dirr'", "did you mean data_dir"]),
        ("experiments.digits.sedes", [1], ["unknown key 'sedes' in experiments.digits", "seeds"]),
        ("tables.demo", ["digit"], ["tables.demo", "'digit'", "did you mean digits"]),
        ("tables.demo", [], ["tables.demo"]),
        ("tables.plan", ["digits"], ["tables.plan", "reserved"]),
        ("experiments.compute", {}, ["experiments.compute"]),
        ("experiments.digits.dataset", "mnist", ["experiments.digits.dataset", "'mnist'", "known: digits"]),
        ("experiments.digits.recipe", "digit", ["experiments.digits", "'digit'", "did you mean digits"]),
        ("experiments.digits.segment_epochs", 0, ["segment_epochs is 0", "at least 1"]),
        ("experiments.digits.seeds", [], ["seeds"]),
        ("experiments.digits.seeds", [-1], ["seeds.0 is -1", "at least 0"]),
        ("experiments.digits.seeds", [2**32], ["seeds.0 is 4294967296", "at most 4294967295"]),
        (
            "experiments.digits.overrides",
            {"optimizer": {"lr": 1}},
            ["experiments.digits", "optimizer.lr", "no recipe key"],
        ),
        ("experiments.digits.overrides", {"optimizer": {"peak_lr": -1}}, ["experiments.digits", "peak_lr is -1"]),
        ("experiments.digits.overrides", {"optimizer": {"peak_lr": "1,5"}}, ["peak_lr is '1,5'", "text"]),
        ("experiments.digits.overrides", {"epochs": 1}, ["warmup_epochs is 2", "1 epochs"]),
        ("experiments.cifar10.compute.pretrain.devices_per_node", 3, ["global_batch is 512", "3 devices"]),
        ("experiments.cifar10.compute.pretrain.nodes", 0, ["nodes is 0", "at least 1"]),
        ("experiments.imagenet.compute.evaluate.devices_per_node", 3, ["linear.batch is 256", "3 devices"]),
        ("experiments.digits.published", {"publisher": "me", "path": "x"}, ["publisher is 'me'", "authors, official"]),
        (
            "experiments.digits.published",
            {"publisher": "authors"},
            ["digits.published lacks the key 'path'"],
        ),
        ("experiments.cifar10.compute.pretrain.device", "gpu", ["device is 'gpu'", "auto, cuda, cpu"]),
        ("experiments.digits.compute.pretrain.compile", "yes", ["compile is 'yes'"]),
        ("experiments.digits.compute.evaluate.recompute", True, ["compute.evaluate.recompute", "compute.pretrain"]),
        ("experiments.digits.compute.evaluate.one_graph", True, ["compute.evaluate.one_graph", "compute.pretrain"]),
        (
            "experiments.digits.compute.evaluate.combined_kernels",
            True,
            ["evaluate.combined_kernels", "compute.pretrain"],
        ),
        (
            "experiments.digits.compute.pretrain.combined_kernels",
            True,
            ["pretrain.combined_kernels is true", "set one_graph or compile"],
        ),
        ("experiments.digits.compute.evaluate.compiled_update", True, ["evaluate.compiled_update", "compute.pretrain"]),
        (
            "experiments.digits.compute.pretrain.compiled_update",
            True,
            ["compiled_update is true, but one_graph is not"],
        ),
        (
            "experiments.digits",
            {
                "recipe": "digits",
                "dataset": "digits",
                "overrides": {"optimizer": {**SGD, "peak_lr": 0.1, "weight_decay": 0.1}},
                "compute": {"pretrain": {"one_graph": True, "compiled_update": True}},
            },
            ["compiled_update is true, but the optimiser is sgd, wanted lars"],
        ),
        (
            "experiments.digits.compute.pretrain",
            {"one_graph": True, "recompute": True},
            ["one_graph and recompute", "set one of them to false"],
        ),
        ("datasets.digits", {"source": "mnist"}, ["source is 'mnist'"]),
        ("datasets.digits", {"source": "digits", "resize": 16}, ["datasets.digits.resize", "not for digits"]),
        ("datasets.imagenet.resize", 0, ["resize is 0", "at least 1"]),
        ("datasets.imagenet.skip_damaged", "yes", ["skip_damaged is 'yes'"]),
        ("datasets.imagenet.expect", {"trian": 5}, ["unknown key 'trian'", "did you mean train"]),
        ("datasets", {"a b": {"source": "digits"}}, ["datasets: 'a b' is no name"]),
        ("tables.demo", "digits", ["tables.demo is 'digits'", "wanted a list, for example [digits]"]),
        ("experiments.digits.seeds", 3, ["seeds is 3", "wanted a list, for example [3]"]),
        ("experiments.digits.overrides", [], ["overrides is []", "wanted keys with values"]),
        ("experiments", {}, ["experiments is empty"]),
        ("tables", {100: ["digits"]}, ["tables.100", "write it in quotes"]),
        ("experiments.digits.recipe", 100, ["recipe is 100", "write '100' in quotes"]),
        ("cluster.account", 17, ["account is 17", "write '17' in quotes"]),
        ("experiments.digits.compute.pretrain.hours", math.inf, ["hours is inf", "finite"]),
        pytest.param("experiments.digits.compute.pretrain.hours", 10**400, ["hours is", "finite"], id="400 digits"),
        ("experiments.digits.compute.evaluate.checkpoint_minutes", math.nan, ["checkpoint_minutes is nan", "finite"]),
        ("experiments.digits.compute.pretrain.hours", 0.005, ["hours is 0.005", "less than a minute"]),
        ("experiments.digits.compute.pretrain.hours", "1:75", ["hours is '1:75'", "for example 1.5", '"1:30:00"']),
        ("experiments.digits.compute.pretrain.hours", "2", ["hours is '2'", "a number of hours"]),
        ("experiments.digits.compute.pretrain.gpu_type", "a100", ["gpu_type is 'a100'", "device is cpu"]),
        ("experiments.cifar10.compute.pretrain.gpu_type", "gpu:a100", ["gpu_type: 'gpu:a100' is no name"]),
        ("experiments.cifar10.compute.pretrain.memory_gb", -1, ["memory_gb is -1", "at least 0"]),
        ("cluster.extra", "--hint=x --mem=4G", ["cluster.extra has --mem=4G", "memory_gb"]),
        ("cluster.extra", "--comment='a", ["cluster.extra is", "open quote"]),
    ],
)
def test_each_mistake_is_named_in_one_line(raw, path, value, words):
    with pytest.raises(UserError) as error:
        check_config(changed(raw, path, value))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_experiment_with_a_reserved_name_is_refused(raw):
    with pytest.raises(UserError, match="figures has a reserved name"):
        check_config(changed(raw, "experiments.figures", raw["experiments"]["digits"]))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("experiments.x", "experiments.views_x", ["experiments.views_x would write", "figures/views_x.png, as exp"]),
        ("experiments.views_x", "experiments.x", ["experiments.x would write", "as experiments.views_x does: rename"]),
        ("experiments.demo.csv", "tables.demo", ["experiments.demo.csv would write results/demo.csv, as tables.demo"]),
        ("experiments.x", "tables.x_recipe", ["experiments.x would write results/report/x_recipe.html, as tables.x_"]),
        ("experiments.birds", "experiments.Birds", ["results/Birds, as experiments.birds does (results/birds), where"]),
        ("tables.birds", "tables.BIRDS", ["tables.BIRDS would write results/BIRDS.csv, as tables.birds does"]),
        ("datasets.birds", "datasets.bIrds", ["datasets.bIrds would write <data_dir>/bIrds, as datasets.birds does"]),
        ("datasets.birds", "datasets.Downloads", ["<data_dir>/Downloads, as the workflow itself does"]),
        ("experiments.x", "experiments.Report.HTML", ["results/Report.HTML, as the workflow itself does"]),
        ("experiments.x", "experiments.Figures", ["experiments.Figures has a reserved name"]),
        ("experiments.x", "experiments.audit", ["would write results/audit, as the workflow itself does"]),
        ("experiments.x", "experiments.Published", ["would write results/Published, as the workflow itself does"]),
    ],
)
def test_two_names_for_one_file_are_refused_on_every_file_system(raw, first, second, words):
    examples = {"tables": ["digits"], "experiments": raw["experiments"]["digits"], "datasets": {"source": "digits"}}

    def with_names(*names):
        config = copy.deepcopy(raw)
        for kind, name in (one.split(".", 1) for one in names):
            config[kind][name] = examples[kind]
        return config

    with pytest.raises(UserError) as error:
        check_config(with_names(first, second))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    check_config(with_names("experiments.x", "experiments.x.y", "tables.x", "datasets.x", "experiments.views_y"))


def test_two_tables_of_one_name_are_refused_with_their_lines(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("tables:\n  demo: [a]\n  demo: [b]\n")
    with pytest.raises(UserError, match="'demo' stands twice, in lines 2 and 3"):
        load_config(path)


def test_broken_yaml_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(UserError, match="cannot be read"):
        load_config(path)
    path.write_text("tables:\n\t- a")
    with pytest.raises(UserError, match="line 2, column 1: not valid YAML"):
        load_config(path)
    path.write_text("just text")
    with pytest.raises(UserError, match="the top level is 'just text'"):
        load_config(path)


def test_a_missing_dataset_path_is_told_with_two_ways_on(raw, tmp_path):
    config = check_config(raw)
    assert dataset_problem(config, "digits") is None
    assert dataset_problem(config, "cifar10") is None
    problem = dataset_problem(config, "imagenet")
    assert "datasets.imagenet.path in config.yaml is not set" in problem
    assert "results/demo.csv" in problem
    assert "take imagenet from tables.table1" in problem
    elsewhere = check_config(changed(raw, "datasets.imagenet.path", "/no/such/folder"))
    assert "/no/such/folder, which does not exist" in dataset_problem(elsewhere, "imagenet")
    here = check_config(changed(raw, "datasets.imagenet.path", str(tmp_path)))
    assert dataset_problem(here, "imagenet") is None


def test_numbers_like_1e_minus_6_are_read_as_numbers(tmp_path, repository):
    text = (
        Path(repository / "config.yaml")
        .read_text()
        .replace("overrides: {}", "overrides: {optimizer: {weight_decay: 1e-6}}", 1)
    )
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_config(path).experiments["digits"].recipe["optimizer"]["weight_decay"] == 1e-6


@pytest.mark.parametrize(("hours", "found"), [("1:30", 1.5), ("20:00:00", 20), ("0:00:36", 0.01), ("1e1", 10), (2, 2)])
def test_hours_are_a_number_or_a_duration_in_quotes(raw, hours, found):
    config = check_config(changed(raw, "experiments.digits.compute.pretrain.hours", hours))
    assert config.experiments["digits"].compute["pretrain"]["hours"] == pytest.approx(found)


def test_a_text_that_looks_like_a_number_stays_a_text_where_a_text_is_wanted(raw):
    raw = changed(raw, "cluster.account", "5e10")
    raw["tables"]["1e3"] = raw["tables"].pop("demo")
    raw["experiments"]["2e4"] = {**raw["experiments"]["digits"], "overrides": {"epochs": "3e1"}}
    raw["tables"]["1e3"] = ["2e4"]
    config = check_config(raw)
    assert config.cluster["account"] == "5e10" and config.tables["1e3"] == ["2e4"]
    assert config.experiments["2e4"].recipe["epochs"] == 30 and "1:30" not in config.tables


def test_the_command_lines_texts_become_numbers_where_no_text_is_wanted():
    block = {"seeds": ["0", "1"], "overrides": {"epochs": "60", "model": {"backbone": "resnet34"}}, "bands": "null"}
    compute = {"pretrain": {"hours": "1:30", "device": "cpu", "compile": "true"}}
    given = {"experiments": {"17": {**block, "recipe": "17", "compute": compute}}, "cluster": {"account": "17"}}
    assert from_command_line(given) == {
        "experiments": {
            "17": {
                "seeds": [0, 1],
                "overrides": {"epochs": 60, "model": {"backbone": "resnet34"}},
                "bands": None,
                "recipe": "17",
                "compute": {"pretrain": {"hours": "1:30", "device": "cpu", "compile": True}},
            }
        },
        "cluster": {"account": "17"},
    }


class Numbers(Settings):
    a: int
    b: float
    c: float | None
    d: int | None


def test_a_number_is_read_as_the_type_that_its_key_names_or_is_left_empty():
    found = read(Numbers, {"a": 2.0, "b": 2, "c": 2, "d": 2.0}, "a test")
    assert found == {"a": 2, "b": 2.0, "c": 2.0, "d": 2}
    assert [type(value).__name__ for value in found.values()] == ["int", "float", "float", "int"]
    assert read(Numbers, {"a": 1, "b": "1e-2", "c": None, "d": None}, "a test") == {
        "a": 1,
        "b": 0.01,
        "c": None,
        "d": None,
    }


def test_paths_may_name_variables_that_are_set(raw, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert check_config(changed(raw, "data_dir", "$SCRATCH/data")).data_dir == "/scratch/me/data"
    with pytest.raises(UserError, match=r"data_dir is \$NOWHERE/data, which names a variable that is not set"):
        check_config(changed(raw, "data_dir", "$NOWHERE/data"))


def test_yaml_anchors_and_merges_are_read(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text("a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}
    path.write_text("demo: {[digits]}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(path)


def test_what_is_said_of_pictures_as_people_have_them_is_read(raw):
    mine = {"source": "folder", "path": "/pictures", "labels": False}
    config = check_config(changed(raw, "datasets.mine", mine))
    assert config.datasets["mine"].labels is False and config.datasets["digits"].labels
    mine = {"source": "parquet", "path": "/hub", "test_share": 0.2, "image_column": "img", "label_column": "fine_label"}
    assert check_config(changed(raw, "datasets.mine", mine)).datasets["mine"].test_share == 0.2


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"source": "cifar10", "labels": False}, "labels is for the source folder or parquet, not for cifar10"),
        ({"source": "imagenet", "test_share": 0.2}, "test_share is for the source folder or parquet, not for imagenet"),
        ({"source": "folder", "image_column": "img"}, "image_column is for the source parquet, not for folder"),
        ({"source": "folder", "labels": False, "test_share": 0.2}, "labels is false, but test_share is for classes"),
        (
            {"source": "parquet", "labels": False, "label_column": "a"},
            "labels is false, but label_column is for classes",
        ),
        ({"source": "folder", "test_share": 1}, "test_share is 1, wanted less than 1"),
        ({"source": "folder", "test_share": 0}, "test_share is 0, wanted more than 0"),
        ({"source": "folder", "labels": "no"}, "labels is 'no', wanted true or false"),
    ],
)
def test_what_does_not_fit_pictures_as_people_have_them_is_told_in_one_line(raw, block, told):
    with pytest.raises(UserError, match=rf"^config\.yaml: datasets\.mine.*{told}") as error:
        check_config(changed(raw, "datasets.mine", block))
    assert len(str(error.value).splitlines()) == 1


def test_nothing_can_be_evaluated_on_a_dataset_without_labels(raw):
    config = check_config(changed(raw, "datasets.mine", {"source": "folder", "path": "/pictures", "labels": False}))
    assert labels_problem(config, "digits") is None
    problem = labels_problem(config, "mine")
    assert "dataset mine has labels: false" in problem and "encoder.safetensors" in problem
    assert len(problem.splitlines()) == 1


def test_a_missing_dataset_of_an_evaluation_is_told_with_the_evaluation(raw):
    raw = changed(raw, "evaluations.knn", {"protocol": "knn", "dataset": "imagenet"})
    problem = dataset_problem(check_config(raw), "imagenet")
    assert problem.endswith("Or take knn from experiments.moco_v3_digits.evaluations.") and "\n" not in problem
    assert "take knn from experiments.digits.evaluations." in problem
