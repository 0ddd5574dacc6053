"""Protocols: how an encoder is judged, as data; and the evaluations that config.yaml makes of them. Imports no torch.

A protocol is a file of workflow/protocols: a key `task`, a file of selfsup/evaluation, and that task's settings. The
protocol `linear` is the recipe's own block of that name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.layout import LINEAR
from selfsup.recipe import Recipe, canonical, merge
from selfsup.settings.library import Library, without_base
from selfsup.settings.registries import TASKS
from selfsup.settings.typed import read, suggest, with_numbers

PROTOCOLS = Library(Path(__file__).parents[2] / "protocols", "protocol")


@dataclass(frozen=True)
class Evaluation:
    """How an encoder is judged: a task by its settings, on a dataset of config.yaml.

    at_every_boundary: of the pretraining, and not at its end alone.
    """

    name: str
    task: str
    settings: Any
    dataset: str
    at_every_boundary: bool = False

    def told(self) -> dict[str, Any]:
        """Return what a job is told of it, as `told_evaluation` reads it."""
        return {"name": self.name, "task": self.task, "settings": self.settings, "dataset": self.dataset}

    def features(self, recipe: Mapping) -> str | None:
        """Return the name of the features that it looks at, <dataset>-<8 digits>; None if at pictures themselves."""
        made = self.settings.features(recipe)
        return made and f"{self.dataset}-{hashlib.sha256(canonical(made).encode()).hexdigest()[:8]}"


def evaluation_of(name: str, protocol: str, overrides: Mapping, recipe: Recipe, dataset: str) -> Evaluation:
    """Return an evaluation of a recipe's encoders. Raises UserError for what cannot be used."""
    if protocol == LINEAR:
        whole = linear_evaluation(recipe, dataset)
    elif protocol in PROTOCOLS:
        content = reduce(merge, map(_said, PROTOCOLS.files(protocol)))
        settings = {key: value for key, value in content.items() if key != "task"}
        whole = read_evaluation(f"protocol {protocol}", content.get("task"), settings, dataset)
    else:
        known = [LINEAR, *PROTOCOLS.names()]
        raise UserError(f"protocol is {protocol!r}, which does not exist{suggest(protocol, known)}")
    settings = merge(whole.settings, with_numbers(type(whole.settings), overrides))
    return replace(read_evaluation("overrides", whole.task, settings, dataset), name=name)


def asked_for(protocol: str, name: str, recipe: Recipe, dataset: str) -> Evaluation:
    """Return the evaluation that a command's --protocol names: one of the library, or a file that holds one as JSON.

    name, dataset: of one of the library. Raises UserError for one that cannot be used.
    """
    if not protocol.endswith(".json"):
        return evaluation_of(name, protocol, {}, recipe, dataset)
    try:
        told = json.loads(Path(protocol).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--protocol {protocol}: cannot be read as JSON ({error})") from error
    return told_evaluation(told, f"--protocol {protocol}")


def told_evaluation(told: Mapping, thing: str) -> Evaluation:
    """Return the evaluation that a job was told of. Raises UserError where it is none."""
    missing = {"name", "task", "settings", "dataset"} - set(told)
    if missing:
        raise UserError(f"{thing}: no evaluation, lacks {', '.join(sorted(missing))}")
    return read_evaluation(told["name"], told["task"], told["settings"], told["dataset"])


def read_evaluation(name: str, task: Any, settings: Mapping, dataset: str) -> Evaluation:
    """Return an evaluation, its settings read. Raises UserError with the first mistake, which `name` begins."""
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"{name}: task is {task!r}, wanted one of {', '.join(TASKS)}")
    return Evaluation(name, task, read(TASKS[task], with_numbers(TASKS[task], settings), name), dataset)


def linear_evaluation(recipe: Recipe, dataset: str) -> Evaluation:
    """Return the recipe's own linear evaluation."""
    return Evaluation(LINEAR, LINEAR, recipe.linear, dataset)


def _said(path: Path) -> dict[str, Any]:
    return without_base(PROTOCOLS.content(path))
