"""A method's state must be equal on all ranks: a checkpoint holds only rank 0's, and all ranks continue from it."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from selfsup.engine.distributed import Ranks
from selfsup.errors import PermanentError


def check_equal_on_all_ranks(state: Mapping[str, Any], ranks: Ranks) -> None:
    """Raise PermanentError on every rank, naming the first part of a method's state whose bits differ between ranks.

    state: a method's state_dict. Collective. Copies the state to the host and hashes it: under a second for ResNet-50.
    """
    if ranks.size == 1:
        return
    mine = dict(_digests(state))
    wanted = ranks.from_main(mine)
    different = next((name for name in {**wanted, **mine} if wanted.get(name) != mine.get(name)), None)
    for rank, name in enumerate(ranks.gather(different)):
        if name is not None:
            raise PermanentError(
                f"{name}, of the method's state, differs between rank 0 and rank {rank}, but a checkpoint holds only "
                "rank 0's: compute it from all ranks' values, by ranks.mean or ranks.all_gather (docs/extend.md)"
            )


def _digests(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _digests(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _digests(part, f"{name}.{place}")
    else:
        yield name, _digest(value)


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(bits, digest_size=16).hexdigest()}"
