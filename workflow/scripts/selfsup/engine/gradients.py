"""Averages gradients over ranks, summing them while the backward pass is still running."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from selfsup.engine.distributed import Ranks

BUCKET_ELEMENTS = 8 * 2**20  # of an all-reduce: 32 MB in float32, enough to fill a network link


class GradientAverager:
    """Replaces the gradients of `parameters` by their means over ranks.

    The buckets depend on the parameter list alone. torch's DDP rebuilds its buckets after the first backward pass,
    which changes the order of the sums, and with it the bits after a resume. All ranks start the buckets' sums in the
    same order, from the last parameters to the first, as the backward pass reaches them.

    A gradient that only some ranks have counts as zeros on the others, so that all ranks update the parameter alike. A
    parameter without a gradient on any rank keeps none, as on a single rank, and the optimiser leaves it alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks):
        self._ranks, self._open = ranks, False
        self._buckets = [_Bucket(bucket) for bucket in _cut(reversed(parameters))] if ranks.size > 1 else []
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._arrived(bucket))

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """For a step's last backward pass: buckets are summed once complete; at the end all gradients are means."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._waiting = list(self._buckets)
        self._open = True
        yield
        self._open = False
        while self._waiting:
            self._start()
        given = self._ranks.start_any([one.grad is not None for bucket in self._buckets for one in bucket.parameters])
        for bucket in self._buckets:
            bucket.wait(self._ranks.size)
        anywhere = iter(given())
        for bucket in self._buckets:
            bucket.give(list(islice(anywhere, len(bucket.parameters))))

    def _arrived(self, bucket: "_Bucket"):
        def hook(_: torch.Tensor) -> None:
            if self._open:
                bucket.missing -= 1
                while self._waiting and self._waiting[0].missing == 0:
                    self._start()

        return hook

    def _start(self) -> None:
        bucket = self._waiting.pop(0)
        bucket.sum = self._ranks.start_all_reduce(bucket.filled())


class _Bucket:
    """Parameters whose gradients are summed in one piece of memory. missing: how many gradients are not final yet.

    The memory is taken at once, so that the first step is like the others.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.missing, self.sum = parameters, 0, None
        self._take_memory()

    def _take_memory(self) -> None:
        """Views are the gradients in their parameters' layouts: torch's foreach functions are fast if those agree."""
        first, elements = self.parameters[0], sum(one.numel() for one in self.parameters)
        self._memory = torch.zeros(elements, dtype=first.dtype, device=first.device)
        pieces = self._memory.split([one.numel() for one in self.parameters])
        pairs = zip(pieces, self.parameters, strict=True)
        self._views = [piece.as_strided(one.shape, one.stride()) for piece, one in pairs]

    @torch.no_grad()
    def filled(self) -> torch.Tensor:
        """Return the memory, filled with this rank's gradients, and zeros for parameters without one."""
        if self._memory.dtype != self.parameters[0].dtype:  # the network was converted after this was built
            self._take_memory()
        pairs = [(view, one.grad) for view, one in zip(self._views, self.parameters, strict=True)]
        if present := [pair for pair in pairs if pair[1] is not None]:
            torch._foreach_copy_(*map(list, zip(*present, strict=True)))
        for view, gradient in pairs:
            if gradient is None:
                view.zero_()
        return self._memory

    @torch.no_grad()
    def wait(self, world_size: int) -> None:
        """Wait for the sum, and divide it by the number of ranks."""
        self.sum()
        self.sum = None  # it refers to the process group, which must be destroyed before the process ends
        self._memory /= world_size

    def give(self, anywhere: list[bool]) -> None:
        """Set the means as gradients of the parameters that have a gradient on any rank."""
        for view, one, found in zip(self._views, self.parameters, anywhere, strict=True):
            if found:
                one.grad = view


def _cut(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket, elements = [], 0
    for parameter in parameters:
        bucket.append(parameter)
        elements += parameter.numel()
        if elements >= BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
    if bucket:
        yield bucket
