"""A component is one file, its settings beside it: what docs/extend.md says of each kind, for all that there are."""

import importlib
from pathlib import Path

import pytest

from selfsup.settings.registries import METHODS, OPTIMIZERS, SOURCES, TASKS, TRACKERS


@pytest.mark.parametrize("registry", [METHODS, OPTIMIZERS, TASKS])
def test_a_method_an_optimiser_and_a_task_are_a_file_of_their_name_and_its_settings(registry):
    names = [name for name in registry if registry[name].__module__.startswith("selfsup.")]
    assert len(names) >= 3
    for name in names:
        settings = registry[name].__module__
        assert settings.endswith(f".{name}_settings"), name
        assert registry.components[name].partition(":")[0] == settings.removesuffix("_settings"), name
        assert Path(importlib.import_module(settings).__file__).with_name(f"{name}.py").is_file()


def test_a_method_with_its_settings_is_short_enough_to_be_read_at_once():
    """Fewer than 150 lines that are not blank, with its settings: what grows goes to what methods share."""
    long = {}
    for name in [name for name in METHODS if METHODS[name].__module__.startswith("selfsup.")]:
        settings = Path(importlib.import_module(METHODS[name].__module__).__file__)
        texts = [path.read_text() for path in (settings, settings.with_name(f"{name}.py"))]
        lines = [line for text in texts for line in text.splitlines() if line.strip()]
        assert len(lines) > 40
        if len(lines) >= 150:
            long[name] = len(lines)
    assert long == {}


@pytest.mark.parametrize(
    ("components", "package"), [(TRACKERS, "selfsup.training.sinks"), (SOURCES, "selfsup.data.sources")]
)
def test_a_tracker_and_a_source_are_a_file_of_their_name(components, package):
    (folder,) = importlib.import_module(package).__path__
    files = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    assert files and files <= set(components)


def test_every_protocol_and_recipe_chooses_what_there_is(repository):
    from selfsup.protocols import PROTOCOLS, evaluation_of
    from selfsup.recipe import load_recipe

    tasks = {evaluation_of("one", name, {}, load_recipe("digits"), "digits").task for name in PROTOCOLS.names()}
    assert tasks <= set(TASKS) and len(tasks) == len(TASKS)
