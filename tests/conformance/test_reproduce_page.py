"""docs/reproduce.md and methods.md name keys, recipes and files that exist."""

import re
from fnmatch import fnmatch

import pytest

from selfsup.recipe import Recipe, load_recipe, recipe_names
from selfsup.settings.described import leaves
from selfsup.settings.registries import METHODS


@pytest.fixture
def page(repository) -> str:
    return (repository / "docs" / "reproduce.md").read_text()


def paths() -> set[str]:
    """Every key of recipes, mappings included, as "byol.tau_base" and "byol"; of views without their numbers."""
    found = [*leaves(Recipe), *(leaf for name, block in METHODS.items() for leaf in leaves(block, f"{name}."))]
    keys = [leaf.path.replace(".*.", ".").split(".") for leaf in found]
    return {".".join(parts[first:last]) for parts in keys for last in range(1, len(parts) + 1) for first in range(last)}


def test_its_keys_are_the_recipes(page):
    known = paths()
    rows = [line.split("|") for line in page.split("## Claim by claim")[1].split("##")[0].splitlines() if "|" in line]
    named = [key for row in rows[2:] for key in re.findall(r"`([a-z_.*]+)`", row[-2])]
    assert len(named) > 25
    for key in named:
        assert any(fnmatch(path, key) for path in known), key


def recipes_of(method: str) -> list[str]:
    return [name for name in recipe_names() if load_recipe(name).method == method]


def test_its_table_has_every_recipe_of_the_papers_methods_and_no_other(page):
    rows = [line for line in page.split("## The default")[0].splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1])]
    wanted = sorted({*recipes_of("byol"), *recipes_of("simclr"), *recipes_of("equimod")} - {"simclr_digits"})
    short = [name for name in named if name.startswith("_")]  # `imagenet_official_40`, `_100`
    assert sorted([*set(named) - set(short), *(f"imagenet_official{name}" for name in short)]) == wanted


def test_the_page_of_methods_has_every_method_and_its_recipes(repository):
    page = (repository / "docs" / "methods.md").read_text()
    rows = [line.split("|") for line in page.split("## Recipes")[0].splitlines() if line.startswith("| `")]
    found = {row[1].strip(" `"): sorted(re.findall(r"`([a-z0-9_]+)`", row[-2])) for row in rows}
    assert found.keys() >= set(METHODS)
    for method in set(METHODS) - {"byol"}:
        assert found[method] == recipes_of(method), method


def test_its_commands_are_scripts_with_these_arguments(page, repository):
    commands = re.findall(r"python (workflow/scripts/\w+\.py)((?:[^\n]|\\\n)*)", page)
    assert len(commands) >= 5
    for script, arguments in commands:
        text = (repository / script).read_text() + (repository / "workflow/scripts/selfsup/arguments.py").read_text()
        if "from evaluate import" in text:
            text += (repository / "workflow/scripts/evaluate.py").read_text()
        for option in re.findall(r"--[a-z-]+", arguments):
            assert f'"{option}"' in text, (script, option)
