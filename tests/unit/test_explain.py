import subprocess

import pytest

from selfsup.recipe import flattened, load_recipe, recipe_names
from selfsup.reports.explain import differing, explained, explained_block, file_sources, table, warnings


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_of_every_recipe_has_a_source(name):
    values = explained(name)
    assert {one.key: one.value for one in values} == flattened(load_recipe(name))
    assert [one.key for one in values if not one.source] == []


def test_a_source_is_the_lines_comment_or_that_of_the_nearest_key_around_it(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(
        """\
# a head
a: "x # y"  # first
b:  # second
  c: 1
  d: {e: 2, f: [3, 4]}  # third
  g:
    - h: 5  # fourth
      i: 6
    - {h: 7, i: 8}
j: 9
base: nothing  # no value
"""
    )
    assert file_sources(path) == {
        "a": "first",
        "b.c": "second",
        "b.d.e": "third",
        "b.d.f": "third",
        "b.g.0.h": "fourth",
        "b.g.0.i": "second",
        "b.g.1.h": "second",
        "b.g.1.i": "second",
        "j": "",
    }


def test_a_value_has_the_source_of_the_file_that_set_it_last():
    found = {one.key: one for one in explained("imagenet_official_40", {"optimizer": {"momentum": 0.8}})}
    assert (found["epochs"].file, found["model.padding"].file) == ("imagenet_official_40", "official")
    assert (found["global_batch"].source, found["global_batch"].file) == ("6.3", "imagenet")
    assert (found["optimizer.momentum"].value, found["optimizer.momentum"].file) == (0.8, "overrides")
    whole = explained("cifar10", {"augment": {"views": load_recipe("digits")["augment"]["views"]}})
    assert {one.file for one in whole if one.key.startswith("augment.views")} == {"overrides"}


def test_differences_name_both_values():
    lines = differing(explained("cifar10"), explained("cifar10_authors"))
    assert [(key, here.value, there.value) for key, here, there in lines][:2] == [
        ("epochs", 1000, 800),
        ("optimizer.lr_start_factor", 0.0, 1e-8),
    ]
    without = explained("cifar10", {"augment": {"views": {1: {"jitter": None}}}})
    keys = {key: (here, there) for key, here, there in differing(explained("cifar10"), without)}
    assert keys["augment.views.1.jitter.p"][1] is None and keys["augment.views.1.jitter"][0] is None


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (
            "cifar10",
            {"epochs": 100},
            ["epochs is 100 instead of 1000", "peak_lr: 2", "weight_decay: 1e-06", "tau_base"],
        ),
        ("cifar10", {"epochs": 100, "byol": {"tau_base": 0.99}}, ["tau_base is 0.99", "peak_lr: 2"]),
        ("imagenet", {"global_batch": 1024}, ["global_batch is 1024", "peak_lr: 3.2", "proportional"]),
        ("imagenet", {"augment": {"size": 160}}, ["linear.test.crop: 224"]),
    ],
)
def test_a_value_that_leaves_its_preset_without_its_partners_is_warned_of(name, overrides, words):
    text = "\n".join(warnings(load_recipe(name), load_recipe(name, overrides)))
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("imagenet", {}),
        ("imagenet", {"optimizer": {"peak_lr": 3.0}}),
        ("imagenet", {"global_batch": 1024, "optimizer": {"peak_lr": 0.8}}),
        # the official preset for 300 epochs, reached from that for 100: two of its values are the same
        ("imagenet_official_100", {"epochs": 300, "optimizer": {"peak_lr": 4.8}}),
    ],
)
def test_values_that_moved_together_or_stand_in_a_preset_are_not(name, overrides):
    assert list(warnings(load_recipe(name), load_recipe(name, overrides))) == []


def test_the_table_has_a_line_for_each_value():
    lines = table(explained("digits")).splitlines()
    assert len(lines) == 1 + len(flattened(load_recipe("digits")))
    assert next(line for line in lines if line.startswith("byol.tau_base")).split()[1] == "0.97"


@pytest.mark.parametrize("text", ["", "[1]", "experiments: 3", "experiments: {one: 3}", "experiments: {one: {}}"])
def test_a_config_without_the_experiment_is_told_in_one_line(repository, tmp_path, text, starter):
    config = tmp_path / "config.yaml"
    config.write_text(text + "\n")
    script = [starter, "workflow/scripts/explain.py", "--experiment", "one", "--config", config]
    run = subprocess.run(script, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1 and "config.yaml" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 0, ["cifar10_authors\n", "imagenet_official_40\n"]),
        (["cifar10"], 0, ["epochs", "1000", "6.3; the authors' launch script has 800"]),
        (["cifar10", "cifar10_authors"], 0, ["epochs", "800", "run_byol_cifar10.slurm"]),
        (
            ["cifar10", "--meanings"],
            0,
            ["\n    pixels, odd, of a Gaussian; null: Pillow", "\naugment.views.1.blur", "\n    classifiers"],
        ),
        (["cifar10", "cifar10"], 0, ["no difference"]),
        (["cifar10", "--overrides", "{epochs: 100}"], 0, ["[--overrides]", "warning: epochs is 100"]),
        (["--experiment", "digits"], 0, ["tau_base", "0.97"]),
        (["cifar"], 1, ["'cifar' does not exist", "did you mean cifar10?"]),
        (["--experiment", "digit"], 1, ["no experiment 'digit'", "digits"]),
        (["cifar10", "--overrides", "[1]"], 1, ["wanted recipe keys"]),
        (["cifar10", "--overrides", "{epoch: 1}"], 1, ["'epoch' names no recipe key"]),
    ],
)
def test_the_command(repository, arguments, status, words, starter):
    script = [starter, "workflow/scripts/explain.py", *arguments]
    run = subprocess.run(script, cwd=repository, capture_output=True, text=True)
    assert run.returncode == status and "Traceback" not in run.stderr
    for word in words:
        assert word in run.stdout + run.stderr


def test_an_experiments_own_keys_are_told_with_what_was_given_and_what_is_a_default():
    given = {"recipe": "digits", "dataset": "digits", "seeds": [3], "compute": {"pretrain": {"hours": 2}}}
    found = {one.key: one for one in explained_block(given, "one")}
    assert (found["seeds"].value, found["seeds"].file) == ([3], "config.yaml")
    assert (found["revision"].value, found["revision"].file) == (1, "the key's default")
    assert (found["compute.pretrain.hours"].value, found["compute.pretrain.hours"].file) == (2, "config.yaml")
    assert found["compute.evaluate.hours"].value == 20 and found["compute.evaluate.hours"].meaning
    assert not any(key.startswith(("overrides", "grid")) for key in found)
