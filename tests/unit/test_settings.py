"""Typed settings: what a class of settings reads, says and leaves out; and that none of it needs torch."""

import copy
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

from selfsup import augment, methods, models, optim
from selfsup.config import ConfigFile, load_config
from selfsup.errors import UserError
from selfsup.recipe import (
    Recipe,
    RecipeError,
    canonical,
    check_recipe,
    evaluation_part,
    fingerprint,
    load_recipe,
    pretraining_part,
)
from selfsup.settings.described import leaves, meanings
from selfsup.settings.notes import Bounds, Count, Distinct, Hours, Length, Name, Share
from selfsup.settings.registries import METHODS, OPTIMIZERS, Chosen, Registry
from selfsup.settings.typed import Settings, plain, read, since, without_later

SHAPES = Registry("selfsup.settings")  # a package without files of settings


@SHAPES.add("circle", "disc", builds="builtins:dict")
class Round(Settings):
    kind: str
    radius: Count


@SHAPES.add("square", builds="builtins:list")
class Square(Settings):
    kind: str
    side: Count
    colour: str = since("red")

    def problems(self):
        if self.side == 13:
            yield "side is 13, wanted luck"


class Drawing(Settings):
    shape: Annotated[Settings, Chosen(SHAPES, "kind")]
    """what is drawn"""
    share: Share
    sizes: Annotated[list[Count], Length(2), Distinct()]
    """so large,
    and so large"""
    by_name: dict[Name, int | None]
    mode: Literal["ink", "chalk"] = since("ink")
    hours: Annotated[float, Bounds(more_than=0), Hours()] = 2.0


GOOD = {
    "shape": {"kind": "square", "side": 3},
    "share": 0.5,
    "sizes": [1, 2],
    "by_name": {"a": 1, "b": None},
}


def test_settings_are_a_mapping_equal_to_the_plain_one():
    drawing = read(Drawing, GOOD, "a test")
    whole = {**GOOD, "shape": {**GOOD["shape"], "colour": "red"}, "mode": "ink"}
    assert drawing == whole and whole == drawing and dict(drawing) == whole and {**drawing} == whole
    assert drawing["shape"]["side"] == drawing.shape.side == 3 and drawing.get("nothing", 7) == 7
    assert "mode" in drawing and "nothing" not in drawing and drawing != {**whole, "mode": "chalk"}
    assert type(plain(drawing)["shape"]) is dict and json.loads(canonical(drawing)) == whole


def test_a_plain_default_is_the_attributes_and_no_key_until_it_is_given():
    drawing = read(Drawing, GOOD, "a test")
    assert drawing.hours == 2 and "hours" not in drawing and "hours" not in plain(drawing)
    given = read(Drawing, {**GOOD, "hours": "1:30"}, "a test")
    assert given.hours == given["hours"] == 1.5


def test_a_key_that_came_later_is_filled_in_and_left_out_of_what_names_a_run():
    drawing = read(Drawing, GOOD, "a test")
    assert drawing.mode == "ink" and without_later(Drawing, drawing) == GOOD
    chalk = {**GOOD, "mode": "chalk"}
    assert without_later(Drawing, read(Drawing, chalk, "a test")) == chalk


def test_settings_cannot_be_changed_by_accident_but_copied_with_a_change():
    drawing = read(Drawing, GOOD, "a test")
    with pytest.raises(AttributeError):
        drawing.share = 1.0
    with pytest.raises(TypeError):
        drawing["share"] = 1.0
    other = drawing.changed(share=1.0)
    assert (other.share, drawing.share) == (1.0, 0.5) and "hours" not in other


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_equal_and_of_the_same_class(copied):
    """Loader workers and ranks get recipes in this way."""
    recipe = load_recipe("digits")
    assert copied(recipe) == recipe and type(copied(recipe)) is Recipe
    assert type(copied(recipe).byol) is type(recipe.byol) and copied(recipe).model.padding == "symmetric"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": {"kind": "blob"}}, "shape.kind is 'blob', wanted one of circle, disc, square"),
        ({"shape": {"kind": ["disc"]}}, "shape.kind is ['disc'], wanted one of circle, disc, square"),
        ({"shape": {"side": 1}}, "shape lacks the key 'kind'"),
        ({"shape": {"kind": "disc", "side": 1}}, "unknown key 'side' in shape; known: kind, radius (and 1 more)"),
        ({"shape": 3}, "shape is 3, wanted keys with values"),
        ({"shape": {"kind": "square", "side": 13}}, "shape.side is 13, wanted luck"),
        ({"share": -1}, "share is -1, wanted at least 0"),
        ({"share": None}, "share is None, wanted a number"),
        ({"share": float("nan")}, "share is nan, wanted a number that is finite"),
        ({"share": -(10**400)}, "share is a number of more than 308 digits, wanted a number that is finite"),
        ({"share": "1,5"}, "share is '1,5' (text; numbers are written without quotes), wanted a number"),
        ({"sizes": [1]}, "sizes has 1 items, wanted 2 at least"),
        ({"sizes": [3, 3]}, "sizes has 3 twice"),
        ({"sizes": [1, 2.5]}, "sizes.1 is 2.5, wanted a whole number"),
        ({"sizes": [1, True]}, "sizes.1 is True, wanted a whole number"),
        (
            {"by_name": {"a b": 1}},
            "by_name: 'a b' is no name: letters, digits, '_', '-' and '.', beginning with a lett",
        ),
        (
            {"by_name": {"a": "b"}},
            "by_name.a is 'b' (text; numbers are written without quotes), wanted a whole number or",
        ),
        ({"mode": True}, "mode is True, wanted one of ink, chalk"),
        ({"hours": "1:75"}, "hours is '1:75', wanted a number of hours, for example 1.5, or"),
        ({"hours": 0}, "hours is 0, wanted more than 0"),
        ({"moode": "ink"}, "unknown key 'moode' in the top level; did you mean mode?"),
        ({"share": 2, "sizes": 1}, "share is 2, wanted at most 1 (and 1 more)"),
    ],
)
def test_a_mistake_names_the_key_what_was_found_and_what_is_wanted(change, message):
    with pytest.raises(UserError) as error:
        read(Drawing, {**GOOD, **change}, "a test")
    assert str(error.value).startswith(f"a test: {message}") and "\n" not in str(error.value)


def test_every_missing_key_is_counted():
    with pytest.raises(UserError, match=r"^Drawing: the top level lacks the key 'shape' \(and 3 more\)$"):
        Drawing()


def test_a_meaning_is_the_docstring_below_the_field():
    assert meanings(Drawing) == {"shape": "what is drawn", "sizes": "so large, and so large"}
    found = {leaf.path: leaf for leaf in leaves(Drawing)}
    assert list(found) == [
        "shape.kind",
        "shape.radius",
        "shape.side",
        "shape.colour",
        "share",
        "sizes",
        "by_name",
        "mode",
        "hours",
    ]
    assert [path for path, leaf in found.items() if leaf.optional] == ["shape.colour", "mode", "hours"]


def test_every_key_of_the_configuration_has_a_meaning():
    found = list(leaves(ConfigFile))
    assert len(found) > 40 and [leaf.path for leaf in found if not leaf.meaning] == []


def test_settings_and_configuration_are_read_without_torch(repository):
    """As Snakemake does in every job: importing torch would cost it seconds. Each component's settings lie in its
    package, whose members are imported when they are asked for."""
    code = (
        "import sys; sys.path.insert(0, 'workflow/scripts')\n"
        "from pathlib import Path\n"
        "from selfsup.config import load_config\n"
        "from selfsup.settings.registries import BACKBONES, METHODS, OPTIMIZERS\n"
        "import selfsup.bands, selfsup.tables.rows, selfsup.jobs, selfsup.reports.explain\n"
        "load_config(Path('config.yaml')); [list(one) for one in (BACKBONES, METHODS, OPTIMIZERS)]\n"
        "print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


@pytest.mark.parametrize("package", [augment, methods, models, optim])
def test_a_lazy_package_has_all_its_members_and_none_is_called_as_its_module(package):
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert package.__all__ and not modules & set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_a_checkpoint_takes_a_recipe_as_plain_mappings(tmp_path):
    recipe = load_recipe("digits")
    torch.save({"recipe": plain(recipe)}, tmp_path / "one.pt")
    assert torch.load(tmp_path / "one.pt", weights_only=True)["recipe"] == recipe


TOY = '''
from selfsup.settings.notes import Share
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings


@METHODS.add("toy", builds="selfsup.methods.toy:Toy")
class ToySettings(Settings):
    pull: Share
    """how fast the centre follows"""

    def problems_in(self, whole):
        if len(whole.augment.views) < 3:
            yield "augment.views has too few for toy"
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A method in files of its own beside BYOL's, as a user adds it: toy.py and toy_settings.py, nothing else."""
    (tmp_path / "toy_settings.py").write_text(TOY)
    (tmp_path / "toy.py").write_text("class Toy:\n    pass\n")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    registry = Registry("selfsup.methods")
    for name in ("selfsup.settings.registries", "selfsup.recipe"):
        monkeypatch.setattr(f"{name}.METHODS", registry)
    byol = importlib.import_module("selfsup.methods.byol_settings")
    registry.add("byol", builds="selfsup.methods.byol:BYOL")(byol.BYOLSettings)
    yield registry
    for module in ("selfsup.methods.toy", "selfsup.methods.toy_settings"):
        sys.modules.pop(module, None)


def test_a_method_is_found_by_its_files_and_chosen_by_its_name(toy):
    assert sorted(toy) == ["byol", "toy"] and toy.component("toy").__module__ == "selfsup.methods.toy"
    views = load_recipe("digits").augment.views
    three = {"augment": {"views": [views[0]] * 3}}
    recipe = load_recipe("digits", {"method": "toy", "toy": {"pull": 0.1}, **three})
    assert (
        recipe.own.pull == 0.1
        and "byol" not in recipe
        and fingerprint(recipe, 1) != fingerprint(load_recipe("digits"), 1)
    )
    with pytest.raises(RecipeError, match=r"augment\.views has too few for toy"):
        load_recipe("digits", {"method": "toy", "toy": {"pull": 0.1}})
    with pytest.raises(RecipeError, match=r"toy\.pull is 2, wanted at most 1"):
        load_recipe("digits", {"method": "toy", "toy": {"pull": 2}, **three})
    with pytest.raises(RecipeError, match=r"method is 'toi', wanted one of byol, toy"):
        check_recipe({**load_recipe("digits"), "method": "toi"}, "a test")


class Plain(Settings):
    name: Literal["plain"]
    peak_lr: float
    betas: list[float]


def test_another_optimiser_keeps_the_keys_that_both_have_and_brings_its_own(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS.classes, "plain", Plain)
    recipe = load_recipe("digits", {"optimizer": {"name": "plain", "betas": [0.9, 0.99]}})
    peak = load_recipe("digits").optimizer.peak_lr
    assert recipe.optimizer == {"name": "plain", "peak_lr": peak, "betas": [0.9, 0.99]}
    with pytest.raises(RecipeError, match=r"override 'optimizer\.betas' names no recipe key"):
        load_recipe("digits", {"optimizer": {"betas": [0.9, 0.99]}})


def test_what_names_a_run_is_the_same_of_typed_and_of_stored_recipes():
    recipe = load_recipe("imagenet", {"linear": {"further": [{"peak_lr": 0.1}]}})
    stored = json.loads(canonical(recipe))
    assert pretraining_part(stored) == pretraining_part(recipe) and evaluation_part(stored) == evaluation_part(recipe)
    assert evaluation_part(recipe)["linear"]["further"] == [{"peak_lr": 0.1}]
    assert fingerprint(stored, 1) == fingerprint(recipe, 1)


def test_the_configurations_attributes_and_keys_are_one(repository):
    config = load_config(repository / "config.yaml")
    block = config.experiments["imagenet"].compute["pretrain"]
    assert block.nodes == block["nodes"] and config.experiments["imagenet"].compute.pretrain is block
    assert block.hang_minutes == 10 and block.channels_last and not block.compile and "compile" not in block
    assert METHODS[config.experiments["digits"].recipe.method] is type(config.experiments["digits"].recipe.own)


def test_a_settings_file_that_cannot_be_read_is_told_each_time(toy, tmp_path):
    (tmp_path / "broken_settings.py").write_text("raise ImportError('a package that is not there')\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="a package that is not there"):
            sorted(toy)
