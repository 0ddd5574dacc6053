"""Recipes: how an encoder is trained and evaluated, as data. Imports no torch: Snakemake reads this in every job.

A recipe is a file of workflow/recipes: a complete one, or the differences from others, which its key `base` names:
`base: cifar10`, or `base: [cifar10, implementations/authors]`, merged in that order. Folders hold parts of recipes.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.settings.schema import check_schema, read_schema, suggest, with_defaults, with_numbers, without_defaults
from selfsup.settings.yaml_reader import read_yaml

RECIPES = Path(__file__).parents[2] / "recipes"


class RecipeError(UserError):
    """A recipe that cannot be used; the message is one line."""


def load_recipe(name: str, overrides: Mapping | None = None) -> dict[str, Any]:
    """Return the recipe workflow/recipes/<name>.yaml with `overrides` merged into it, validated.

    Raises RecipeError for an unknown name, an override that names no recipe key, a value the schema refuses, or values
    that contradict each other.
    """
    try:
        parts = [read_recipe_file(path) for path in recipe_files(name)]
        recipe = reduce(lambda base, more: merge(_of_method(base, more), more), [*parts, overrides or {}])
        return check_recipe(recipe, f"recipe {name}" + (" with its overrides" if overrides else ""))
    except RecipeError:
        raise
    except UserError as error:
        raise RecipeError(str(error)) from error


def recipe_names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_files(name: str) -> list[Path]:
    """Return the files that make up a recipe, in the order in which they are merged: its bases first.

    Raises RecipeError for an unknown name, and for a recipe that is its own base.
    """
    if name not in recipe_names():
        raise RecipeError(f"recipe {name!r} does not exist in workflow/recipes{suggest(name, recipe_names())}")
    return _chain(name, ())


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Return what one file of workflow/recipes says itself, without its bases."""
    return {key: value for key, value in with_numbers(_mapping(path), "recipe").items() if key != "base"}


def _mapping(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: wanted the keys of a recipe, found {content!r}")
    return content


def _chain(name: str, above: tuple[str, ...]) -> list[Path]:
    path = RECIPES / f"{name}.yaml"
    if name in above:
        raise RecipeError(f"recipe {name} is its own base: {' -> '.join([*above, name])}")
    if not path.is_file():
        raise RecipeError(f"recipe {above[-1]}: its base {name!r} does not exist in workflow/recipes")
    bases = _mapping(path).get("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    return [*(file for base in bases for file in _chain(base, (*above, name))), path]


def parse_recipe(text: str) -> dict[str, Any]:
    """Return a validated recipe from a script's --recipe: its name, a file that holds it as JSON, or the JSON."""
    if text.endswith(".json"):
        return _parsed(_content(Path(text)), text)
    return _parsed(text, "--recipe") if text.lstrip().startswith("{") else load_recipe(text)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--recipe {path}: cannot be read ({error.strerror})") from error


def _parsed(text: str, thing: str) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{thing} is not valid JSON ({error})") from error
    return check_recipe(recipe, thing)


def check_recipe(recipe: dict[str, Any], thing: str) -> dict[str, Any]:
    """Return `recipe` if the schema accepts it and its values fit together; raise RecipeError otherwise."""
    try:
        recipe = check_schema(with_defaults(recipe, "recipe"), "recipe", thing)
    except UserError as error:
        raise RecipeError(str(error)) from error
    for problem in _contradictions(recipe):
        raise RecipeError(f"{thing}: {problem}")
    return recipe


def _of_method(recipe: Mapping, overrides: Mapping) -> Mapping:
    """Return `recipe`, its method's block replaced by that of another method which the overrides choose and bring."""
    former, method = recipe.get("method"), overrides.get("method")
    if not isinstance(method, str) or method == former or method not in overrides:
        return recipe
    return {**{key: value for key, value in recipe.items() if key != former}, method: overrides[method]}


def merge(base: Mapping | list, overrides: Mapping, where: str = "") -> Any:
    """Return `base` with `overrides` merged in, mapping by mapping; lists and scalars are replaced whole.

    A mapping whose keys are places changes those elements of a list: {views: {1: {flip: 0.0}}}. Raises RecipeError when
    an override names a key or a place that `base` lacks.
    """
    merged = copy.deepcopy(dict(enumerate(base)) if isinstance(base, list) else dict(base))
    for key, value in overrides.items():
        path = f"{where}{key}"
        key = int(key) if isinstance(base, list) and str(key).isdigit() else key
        if key not in merged:
            raise RecipeError(f"override {path!r} names no recipe key{suggest(str(key), list(map(str, merged)))}")
        inside = isinstance(value, Mapping) and (isinstance(merged[key], Mapping) or _holds_mappings(merged[key]))
        merged[key] = merge(merged[key], value, f"{path}.") if inside else copy.deepcopy(value)
    return list(merged.values()) if isinstance(base, list) else merged


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(item, Mapping) for item in value)


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal recipes give equal text, whatever their order."""
    return json.dumps(value, sort_keys=True)


def pretraining_part(recipe: Mapping) -> dict[str, Any]:
    """Return what an encoder's weights depend on: the recipe without its linear evaluation and without later defaults.

    A changed evaluation must not retrain an encoder that cost thousands of GPU-hours, nor a key that came after it.
    """
    return {key: value for key, value in without_defaults(recipe, "recipe").items() if key != "linear"}


def evaluation_part(recipe: Mapping) -> dict[str, Any]:
    """Return what a linear evaluation depends on, beside the encoder's weights."""
    known = without_defaults(recipe, "recipe")
    return {key: known[key] for key in ("model", "augment", "linear", "micro_batches")}


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
            lines.append(f"{where}{key}: wanted {one}, found {other}")
    return lines


def methods() -> list[str]:
    """Return the names of all methods, as the schema has them."""
    return read_schema("recipe")["properties"]["method"]["enum"]


def _contradictions(recipe: Mapping) -> Iterator[str]:
    optimizer, augment, linear = recipe["optimizer"], recipe["augment"], recipe["linear"]
    if optimizer["warmup_epochs"] > recipe["epochs"]:
        yield (
            f"optimizer.warmup_epochs is {optimizer['warmup_epochs']}, longer than the training's {recipe['epochs']} "
            "epochs: shorten the warm-up or train longer"
        )
    if optimizer["lr_floor"] > optimizer["peak_lr"]:
        yield f"optimizer.lr_floor is {optimizer['lr_floor']}, above the peak_lr of {optimizer['peak_lr']}"
    if recipe["global_batch"] % recipe["micro_batches"]:
        yield f"global_batch {recipe['global_batch']} cannot be cut into {recipe['micro_batches']} equal micro_batches"
    blocks = [name for name in methods() if name in recipe]
    if blocks != [recipe["method"]]:
        found = ", ".join(blocks) or "none"
        yield f"method is {recipe['method']!r}, wanted the block of that name and of no other method, found {found}"
    elif recipe["method"] == "byol":
        yield from _contradictions_of_byol(recipe["byol"], len(augment["views"]))
    if augment["jitter_operations"] == "official" and augment["quantize"] != "none":
        yield "augment.jitter_operations is 'official', which works on floats: set augment.quantize: none"
    for number, one in enumerate(linear["further"]):
        if one["peak_lr"] < linear["lr_floor"]:
            yield f"linear.further.{number}.peak_lr is {one['peak_lr']}, below the lr_floor of {linear['lr_floor']}"
    if linear["test"]["crop"] > linear["test"]["resize"]:
        test = linear["test"]
        yield f"linear.test.crop is {test['crop']}, larger than the resized picture of {test['resize']}"
    views = {f"augment.views.{number}": view for number, view in enumerate(augment["views"])}
    for name, view in {**views, "linear.train_view": linear["train_view"]}.items():
        yield from _view_contradictions(name, view)


def _view_contradictions(name: str, view: Mapping) -> Iterator[str]:
    ranges = {"crop.scale": view["crop"]["scale"], "crop.ratio": view["crop"]["ratio"]}
    if view["blur"]:
        ranges["blur.sigma"] = view["blur"]["sigma"]
        if view["blur"]["kernel"] % 2 == 0:
            yield f"{name}.blur.kernel is {view['blur']['kernel']}, wanted an odd number"
    for key, (low, high) in ranges.items():
        if low > high:
            yield f"{name}.{key} is [{low}, {high}], wanted the smaller number first"


def _contradictions_of_byol(byol: Mapping, views: int) -> Iterator[str]:
    if byol["projector"]["out"] != byol["predictor"]["out"]:
        yield f"byol.predictor.out is {byol['predictor']['out']}, wanted {byol['projector']['out']} as the projector's"
    if byol["target_batch_norm"] == "running" and not byol["average_buffers"]:
        yield "byol.target_batch_norm is 'running', but nothing moves those statistics: set average_buffers: true"
    if views != 2:
        yield f"augment.views has {views} views, wanted 2 for BYOL"
