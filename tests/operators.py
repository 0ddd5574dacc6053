"""Which operators a step calls, on which shapes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfsup.training.pretraining import Pretraining


class Operators(TorchDispatchMode):
    """Notes each operator with the shapes and types of its tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else torch compiles nothing while this looks on

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [
            one for one in torch.utils._pytree.tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)
        ]
        self.seen.append(" ".join([str(function), *(f"{tuple(one.shape)} {one.dtype}" for one in tensors)]))
        return made


def sequences_of(training: Pretraining) -> list[list[str]]:
    """Return the operators of steps 0 to 3."""
    sequences = []
    for step in range(4):
        with Operators() as operators:
            training.train_step(training.batches[step])
        sequences.append(operators.seen)
    return sequences
