"""Recipes: how an encoder is trained and evaluated, as data. Imports no torch: Snakemake reads this in every job.

A recipe is a file of workflow/recipes, or the differences from others that it names: `selfsup.settings.library`.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from selfsup.errors import UserError
from selfsup.settings.extensions import load_extensions
from selfsup.settings.library import Library, without_base
from selfsup.settings.notes import Bounds, Count
from selfsup.settings.registries import BACKBONES, METHODS, OPTIMIZERS, TASKS, Chosen, Registry
from selfsup.settings.typed import (
    Elsewhere,
    Settings,
    hints,
    kind_of,
    optional,
    plain,
    read,
    suggest,
    with_numbers,
    without_later,
)

RECIPES = Path(__file__).parents[2] / "recipes"
LIBRARY = Library(RECIPES, "recipe")


class RecipeError(UserError):
    """A recipe that cannot be used; the message is one line."""


class Recipe(Settings):
    """A whole recipe. The method's own settings are a block of its name; a recipe has that of its method and no other.

    A method whose block has a key `wraps` builds on the method named there, whose block stands in the recipe too.

    Every key is required, but for those that came later: nothing hides in a default elsewhere. Where each value comes
    from stands in the recipe's file.
    """

    method: str
    """the self-supervised method, a file in selfsup/methods"""
    epochs: Count
    """length of pretraining, in passes over the training images"""
    global_batch: Annotated[int, Bounds(at_least=2)]
    """images in one optimiser step, over all devices; each gives one picture per view"""
    micro_batches: Count
    """parts a device cuts its batch into, gradients accumulated; above 1 batch norm sees only a part"""
    model: Annotated[Settings, Chosen(BACKBONES, "backbone")]
    optimizer: Annotated[Settings, Chosen(OPTIMIZERS, "name")]
    augment: Annotated[Settings, Elsewhere("selfsup.augment.settings:Augment")]
    linear: Annotated[Settings, Elsewhere("selfsup.evaluation.linear_settings:LinearSettings")]

    @classmethod
    def keys_of(cls, mapping: Mapping) -> Mapping[str, Any]:
        return {**hints(cls), **{name: METHODS[name] for name in METHODS if name in mapping}}

    @property
    def own(self) -> Settings:
        """The method's settings."""
        return self[self.method]

    def problems(self) -> Iterator[str]:
        if self.global_batch % self.micro_batches:
            yield f"global_batch {self.global_batch} cannot be cut into {self.micro_batches} equal micro_batches"
        blocks, wanted = {name for name in METHODS if name in self}, methods_of(self)
        if self.method not in METHODS:
            yield f"method is {self.method!r}, wanted one of {', '.join(METHODS)}"
        elif wrong := _wrong_to_wrap(wanted):
            yield wrong
        elif blocks != set(wanted):
            also = f" and of {wanted[1]!r}, which it wraps," if wanted[1:] else ""
            found = ", ".join(sorted(blocks)) or "none"
            yield (
                f"method is {self.method!r}, wanted the block of that name{also} and of no other method, found {found}"
            )
        for block in self.values():
            yield from block.problems_in(self) if isinstance(block, Settings) else ()


def methods_of(recipe: Mapping) -> list[str]:
    """Return the names of a recipe's method and, where its block says that it `wraps` another, of that one."""
    block = recipe.get(recipe["method"])
    wrapped = block.get("wraps") if isinstance(block, Mapping) else None
    return [recipe["method"], *([wrapped] if isinstance(wrapped, str) else [])]


def _wrong_to_wrap(methods: list[str]) -> str | None:
    """Return what is wrong with what a method wraps. methods: as `methods_of` returns them."""
    others = sorted({*METHODS} - {methods[0]})
    if set(methods[1:]) <= set(others):
        return None
    return f"{methods[0]}.wraps is {methods[1]!r}, wanted another method{suggest(methods[1], others)}"


def load_recipe(name: str, overrides: Mapping | None = None) -> Recipe:
    """Return the recipe workflow/recipes/<name>.yaml with `overrides` merged into it, checked.

    Raises RecipeError for an unknown name, an override that names no recipe key, a value of another type or out of its
    bounds, or values that contradict each other.
    """
    try:
        parts = [read_recipe_file(path) for path in recipe_files(name)]
        recipe = reduce(overridden, [*parts, overrides or {}])
        return check_recipe(recipe, f"recipe {name}" + (" with its overrides" if overrides else ""))
    except RecipeError:
        raise
    except UserError as error:
        raise RecipeError(str(error)) from error


def recipe_names() -> list[str]:
    """Return the names of all recipes."""
    return LIBRARY.names()


def recipe_files(name: str) -> list[Path]:
    """Return the files that make up a recipe, as `Library.files` does. Raises RecipeError for an unknown name."""
    try:
        return LIBRARY.files(name)
    except UserError as error:
        raise RecipeError(str(error)) from error


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Return what one file of workflow/recipes says itself, without its bases."""
    return without_base(with_numbers(Recipe, LIBRARY.content(path)))


def parse_recipe(text: str) -> Recipe:
    """Return a checked recipe from a script's --recipe: its name, a file that holds it as JSON, or the JSON.

    In JSON a key `extensions`, which is no part of the recipe, names files that are loaded before it is checked.
    """
    if text.endswith(".json"):
        return _parsed(_content(Path(text)), text)
    return _parsed(text, "--recipe") if text.lstrip().startswith("{") else load_recipe(text)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--recipe {path}: cannot be read ({error.strerror})") from error


def _parsed(text: str, thing: str) -> Recipe:
    try:
        recipe = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{thing} is not valid JSON ({error})") from error
    extensions = recipe.pop("extensions", []) if isinstance(recipe, dict) else []
    if not isinstance(extensions, list) or not all(isinstance(one, str) for one in extensions):
        raise RecipeError(f"{thing}: extensions is {extensions!r}, wanted a list of files")
    load_extensions(extensions)
    return check_recipe(recipe, thing)


def check_recipe(recipe: Mapping, thing: str) -> Recipe:
    """Return a mapping as a recipe; raise RecipeError where a key is wrong or values do not fit together."""
    try:
        return read(Recipe, recipe, thing)
    except UserError as error:
        raise RecipeError(str(error)) from error


def overridden(recipe: Mapping, overrides: Mapping) -> Mapping:
    """Return `recipe` with overrides merged in, which may choose another method, backbone or optimiser. Not checked."""
    return merge(_as_chosen(recipe, overrides), overrides)


def _as_chosen(recipe: Mapping, overrides: Mapping) -> Mapping:
    """Return `recipe` with the blocks of what the overrides choose instead of the recipe's method, backbone, optimiser.

    Another method's block, which the overrides bring, stands in for the former's, unless it wraps that. Another
    optimiser's or backbone's keeps the keys that both have.
    """
    method = overrides.get("method", recipe.get("method"))
    if isinstance(method, str) and method not in METHODS:
        raise RecipeError(f"method is {method!r}, which does not exist{suggest(method, list(METHODS))}")
    if isinstance(method, str):
        recipe = _with_blocks_of(method, recipe, overrides)
    for key, hint in hints(Recipe).items():
        chosen, blocks = kind_of(hint).note(Chosen), (recipe.get(key), overrides.get(key))
        if chosen and all(isinstance(block, Mapping) for block in blocks):
            recipe = {**recipe, key: _of_class(*blocks, chosen.registry, chosen.key)}
    return recipe


def _with_blocks_of(method: str, recipe: Mapping, overrides: Mapping) -> Mapping:
    """Return `recipe` with the blocks of a method and of what it wraps, and of no other, if either has the method's."""
    blocks = [side[method] for side in (recipe, overrides) if isinstance(side.get(method), Mapping)]
    if not blocks:
        return recipe
    wanted = methods_of({"method": method, method: reduce(lambda one, more: {**one, **more}, blocks)})
    if wrong := _wrong_to_wrap(wanted):
        raise RecipeError(wrong)
    kept = {key: value for key, value in recipe.items() if key not in METHODS or key in wanted}
    return {**kept, **{name: overrides[name] for name in wanted if name in overrides and name not in kept}}


def _of_class(base: Mapping, more: Mapping, registry: Registry, key: str) -> Mapping:
    """Return `base`, or where `more` chooses another class of settings by `key`, what both have and what it brings.

    Of keys that may be left out `more` may bring one that `base` lacks, and of a mapping of any keys, such as a
    backbone's `arguments`, another.
    """
    former = registry.get(base.get(key))
    wanted = registry.get(more.get(key), former)
    if wanted is None:
        return base
    if wanted is not former:
        base = {**more, **{name: value for name, value in base.items() if name in hints(wanted)}}
    base = {**{name: value for name, value in more.items() if name in optional(wanted)}, **base}
    free = [name for name, hint in hints(wanted).items() if kind_of(hint).base is dict and name in more]
    return {**base, **{name: _with_keys_of(base[name], more[name]) for name in free}}


def _with_keys_of(base: Any, more: Any) -> Any:
    both = isinstance(base, Mapping) and isinstance(more, Mapping)
    return {**more, **base} if both else base


def merge(base: Mapping | list, overrides: Mapping, where: str = "") -> Any:
    """Return `base` with `overrides` merged in, mapping by mapping; lists and scalars are replaced whole.

    A mapping whose keys are places changes those elements of a list: {views: {1: {flip: 0.0}}}. Raises RecipeError when
    an override names a key or a place that `base` lacks.
    """
    merged = plain(dict(enumerate(base)) if isinstance(base, list) else base)
    for key, value in overrides.items():
        path = f"{where}{key}"
        key = int(key) if isinstance(base, list) and str(key).isdigit() else key
        if key not in merged:
            raise RecipeError(f"override {path!r} names no recipe key{suggest(str(key), list(map(str, merged)))}")
        inside = isinstance(value, Mapping) and (isinstance(merged[key], Mapping) or _holds_mappings(merged[key]))
        merged[key] = merge(merged[key], value, f"{path}.") if inside else copy.deepcopy(plain(value))
    return list(merged.values()) if isinstance(base, list) else merged


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(item, Mapping) for item in value)


def flattened(value: Any, where: str = "") -> dict[str, Any]:
    """Return {path: value} for what is neither a mapping nor a list of mappings."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {where: value}
    inner = (flattened(item, f"{where}.{key}" if where else str(key)) for key, item in value.items())
    return {path: item for part in inner for path, item in part.items()}


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal recipes give equal text, whatever their order."""
    return json.dumps(value, sort_keys=True, default=plain)


def pretraining_part(recipe: Mapping) -> dict[str, Any]:
    """Return what an encoder's weights depend on: the recipe without its linear evaluation and without later defaults.

    A changed evaluation must not retrain an encoder that cost thousands of GPU-hours, nor a key that came after it.
    """
    return {key: value for key, value in without_later(Recipe, recipe).items() if key != "linear"}


def evaluation_part(recipe: Mapping, task: str = "linear", settings: Mapping | None = None) -> dict[str, Any]:
    """Return what an evaluation depends on, beside the encoder's weights. settings: of the task; None: the recipe's."""
    known = without_later(Recipe, recipe)
    own = known[task] if settings is None else without_later(TASKS[task], settings)
    return {**{key: known[key] for key in ("model", "augment", "micro_batches")}, task: own}


def fingerprint(recipe: Mapping, revision: int) -> str:
    """Return 64 hexadecimal digits that name a pretraining: its recipe and `revision`, and nothing of how it is run."""
    text = canonical({"recipe": pretraining_part(recipe), "revision": revision})
    return hashlib.sha256(text.encode()).hexdigest()


def differences(wanted: Mapping, found: Mapping, where: str = "") -> list[str]:
    """Return a line "key: wanted X, found Y" for each value in which two recipes differ."""
    lines = []
    for key in sorted({*wanted, *found}, key=str):
        one, other = wanted.get(key, "nothing"), found.get(key, "nothing")
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, f"{where}{key}.")
        elif one != other:
            lines.append(f"{where}{key}: wanted {plain(one)}, found {plain(other)}")
    return lines
