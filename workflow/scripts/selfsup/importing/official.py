"""The checkpoints of BYOL's JAX release: storage.googleapis.com/deepmind-byol/checkpoints/pretrain_res50x1.pkl.

A pickle (written by dill, protocol 2) of {experiment_state, step, rng}; the state is a named tuple of Haiku
dictionaries {module: {name: array}} (deepmind-research/byol: byol_experiment.py, checkpointing.py). Their evaluation
reads `online_params` and `online_state`. Convolutions are HWIO in NHWC, batch norm's arrays [1, 1, 1, C]; the running
statistics are exponential averages with Adam's correction, of which `average` is used (haiku: batch_norm.py,
moving_averages.py). The network pads as SAME: selfsup.models.same_padding.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsup.errors import UserError
from selfsup.importing.array_pickle import Inert, read_array_pickle
from selfsup.importing.published import Published

STATE_FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")
HEADS = re.compile(r"(projector|predictor|classifier)(/|$)")
STEM = re.compile(r"[^/]+/(?:~/)?initial_(conv|batchnorm)(?:_1)?$")
BLOCK = re.compile(r"[^/]+/(?:~/)?block_group_(\d)/(?:~/)?block_(\d+)/(?:~/)?(shortcut_)?(conv|batchnorm)(?:_(\d))?$")
STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}
PARAMETERS = {"w": "weight", "scale": "weight", "offset": "bias"}


def read_official(path: Path) -> Published:
    """Return a checkpoint's online backbone; runs no code of the file's. Raises UserError for another format."""
    content = read_array_pickle(path, {"_ByolExperimentState": STATE_FIELDS})
    state = content.get("experiment_state") if isinstance(content, dict) else None
    state = state.as_dict() if isinstance(state, Inert) and state.fields else state
    if not isinstance(state, dict) or not {"online_params", "online_state"} <= set(state):
        raise UserError(
            f"{path}: no checkpoint of the official code: it lacks experiment_state with the online network"
        )
    try:
        weights = dict(_backbone(state["online_params"], state["online_state"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its online network is not the official code's ({error})") from error
    step = content.get("step")
    return Published(weights, {"steps": int(step)} if isinstance(step, int | np.integer) else {})


def _backbone(parameters: Mapping[str, Mapping], state: Mapping[str, Mapping]) -> Iterator[tuple[str, torch.Tensor]]:
    for module, arrays in parameters.items():
        if not HEADS.match(module):
            layer = torchvision_name(module)
            for name, array in arrays.items():
                yield f"{layer}.{PARAMETERS[name]}", _tensor(array)
    for module, averages in state.items():
        if not HEADS.match(module):
            norm, kind = module.removesuffix("/").rsplit("/~/", 1)
            layer = torchvision_name(norm)
            yield f"{layer}.{STATISTICS[kind]}", _tensor(averages["average"])
            if kind == "mean_ema":
                yield f"{layer}.num_batches_tracked", torch.tensor(int(averages["counter"]))


def torchvision_name(module: str) -> str:
    """Return the layer of torchvision's ResNet for a module of the official one; KeyError for one that is none."""
    if found := STEM.match(module):
        return {"conv": "conv1", "batchnorm": "bn1"}[found[1]]
    if not (found := BLOCK.match(module)):
        raise KeyError(f"{module} is no part of a ResNet")
    group, block, shortcut, kind, number = found.groups()
    if shortcut:
        layer = {"conv": "downsample.0", "batchnorm": "downsample.1"}[kind]
    else:
        layer = {"conv": "conv", "batchnorm": "bn"}[kind] + str(int(number) + 1)
    return f"layer{int(group) + 1}.{block}.{layer}"


def _tensor(array: Any) -> torch.Tensor:
    """Kernels from HWIO to OIHW, vectors from [1, 1, 1, C] to [C]."""
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype.kind != "f":
        raise ValueError(f"found {type(array).__name__} {getattr(array, 'shape', '')}, wanted an array of 4 dimensions")
    is_vector = array.shape[:3] == (1, 1, 1)
    return torch.from_numpy(np.ascontiguousarray(array.reshape(-1) if is_vector else array.transpose(3, 2, 0, 1)))
