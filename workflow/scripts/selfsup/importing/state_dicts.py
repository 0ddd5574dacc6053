"""State dicts of torchvision's, timm's or one's own networks, in files of torch or safetensors.

The file's mappings are opened up, their keys joined by points, and the backbone is what lies under one prefix: "" in
torchvision's and timm's own files, `state_dict.module.encoder_q.` in MoCo's, `teacher.backbone.` in DINO's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsup import models
from selfsup.errors import UserError
from selfsup.importing.published import Published, read_tensors
from selfsup.models.timm_settings import TimmSettings
from selfsup.recipe import Recipe

UNCOUNTED = "num_batches_tracked"  # files of the years before 2018 have none; evaluation does not look at it
SHOWN = 4  # names in a message


def read_state_dict(path: Path, backbone: nn.Module, recipe: Recipe, prefix: str | None) -> Published:
    """Return the backbone's weights from a file, and the prefix that they had there.

    prefix: of their names; None: the only one under which all of them are. Heads are left out. Raises UserError where
    they do not fit in name and shape, or part of the file's backbone would be left out.
    """
    if isinstance(recipe.model, TimmSettings):
        _check_batch_norms(recipe)
    found = dict(_tensors(read_tensors(path, "state dict that can be read without running its code")))
    wanted = backbone.state_dict()
    prefix = _prefix(path, found, wanted, recipe) if prefix is None else prefix
    _check(path, found, wanted, prefix, recipe)
    left_out = sorted(name for name in found if name.startswith(prefix) and name.removeprefix(prefix) not in wanted)
    _check_left_out(path, left_out, wanted, prefix, recipe)
    weights = {name: found.get(prefix + name, torch.tensor(0)) for name in wanted}
    return Published(weights, {"prefix": prefix, "left_out": left_out})


def _tensors(content: Any, where: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nested mappings by the keys that lead to them, joined by points."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, torch.Tensor):
            yield f"{where}{key}", value
        else:
            yield from _tensors(value, f"{where}{key}.")


def _prefix(path: Path, found: Mapping, wanted: Mapping, recipe: Recipe) -> str:
    """Return the only prefix under which all weights are; the most likely one where there is none, for its mistakes."""
    first = next(iter(wanted))
    prefixes = sorted(name.removesuffix(first) for name in found if name == first or name.endswith(f".{first}"))
    fitting = [prefix for prefix in prefixes if not _misfit(found, wanted, prefix)]
    if len(fitting) > 1:
        raise UserError(
            f"{path}: {recipe.model.backbone} is there more than once, under the prefixes {', '.join(fitting)}: set "
            "prefix to one of them"
        )
    if not prefixes:
        names = ", ".join(list(found)[:SHOWN]) or "no tensors"
        raise UserError(f"{path}: no weights of {recipe.model.backbone}, which has {first}; it has {names}")
    return (fitting or prefixes)[0]


def _misfit(found: Mapping, wanted: Mapping, prefix: str) -> str | None:
    """Return the first weight that the file has not, or has in another shape."""
    for name, tensor in wanted.items():
        there = found.get(prefix + name)
        if there is None and not name.endswith(UNCOUNTED):
            return f"{prefix}{name} is missing, wanted {tuple(tensor.shape)}"
        if there is not None and there.shape != tensor.shape:
            return f"{prefix}{name} is of shape {tuple(there.shape)}, wanted {tuple(tensor.shape)}"
    return None


def _check(path: Path, found: Mapping, wanted: Mapping, prefix: str, recipe: Recipe) -> None:
    if wrong := _misfit(found, wanted, prefix):
        raise UserError(
            f"{path}: {wrong} for {recipe.model.backbone}: state the backbone, its overrides under model, and the "
            "prefix that the file was made with"
        )


def _check_left_out(path: Path, names: list[str], wanted: Mapping, prefix: str, recipe: Recipe) -> None:
    """Raise UserError where what is left out is part of a backbone: the file is then of a larger one."""
    heads = models.timm_heads(recipe) if isinstance(recipe.model, TimmSettings) else ()
    parts = {name.split(".")[0] for name in wanted}
    for name in (one.removeprefix(prefix) for one in names):
        if name.split(".")[0] in parts and not any(name.startswith(f"{head}.") for head in heads):
            raise UserError(
                f"{path}: {prefix}{name} is no part of {recipe.model.backbone}: the file is of another network, state "
                "its backbone"
            )


def _check_batch_norms(recipe: Recipe) -> None:
    """Raise UserError where the recipe gives timm's batch norms another eps than the weights were trained with."""
    found, own = recipe.model.batch_norm.eps, models.timm_eps(recipe)
    if own - {found}:
        raise UserError(
            f"model.batch_norm.eps is {found:g}, but {recipe.model.backbone} is made with {', '.join(map(str, own))}: "
            f"set overrides: {{model: {{batch_norm: {{eps: {max(own)}}}}}}}"
        )
