"""Gradients as means over ranks, summed while the backward pass goes on."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice

import torch
from torch import nn

from selfsup.engine.distributed import Ranks

BUCKET_ELEMENTS = 8 * 2**20  # of an all-reduce: 32 MB in float32, enough to fill a network link


class GradientAverager:
    """Makes the gradients of `parameters` means over ranks.

    The buckets are a function of the parameter list alone, in every step: torch's DDP cuts them anew after its first
    backward pass, which changes the order of sums, and so the bits, after a resume. Their sums start in one order on
    all ranks: from the last parameters to the first, as the backward pass reaches them.

    A gradient that this rank lacks and another has counts as zeros: all ranks update the parameter alike. One that no
    rank has stays away, as on a single rank: an optimiser leaves its parameter alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks):
        self._ranks, self._open = ranks, False
        self._buckets = [_Bucket(bucket) for bucket in _cut(reversed(parameters))] if ranks.size > 1 else []
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._arrived(bucket))

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """Inside, gradients become final: every bucket is summed once it is whole. At the end all are means."""
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
    """Some parameters, whose gradients lie in one piece of memory. missing: how many are not final yet."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.missing, self.sum = parameters, 0, None

    @cached_property
    def _memory(self) -> torch.Tensor:
        first, elements = self.parameters[0], sum(one.numel() for one in self.parameters)
        return torch.zeros(elements, dtype=first.dtype, device=first.device)

    @cached_property
    def _views(self) -> list[torch.Tensor]:
        """The gradients, in their parameters' own layout: lists are worked on at once only where layouts are alike."""
        pieces = self._memory.split([one.numel() for one in self.parameters])
        return [piece.as_strided(one.shape, one.stride()) for piece, one in zip(pieces, self.parameters, strict=True)]

    @torch.no_grad()
    def filled(self) -> torch.Tensor:
        """Return the memory with this rank's gradients in it; parameters without one count as zeros."""
        pairs = [(view, one.grad) for view, one in zip(self._views, self.parameters, strict=True)]
        if present := [pair for pair in pairs if pair[1] is not None]:
            torch._foreach_copy_(*map(list, zip(*present, strict=True)))
        for view, gradient in pairs:
            if gradient is None:
                view.zero_()
        return self._memory

    @torch.no_grad()
    def wait(self, ranks: int) -> None:
        """Wait for the sum, and make it the mean."""
        self.sum()
        self.sum = None  # it holds the process group, which must be gone before the process is
        self._memory /= ranks

    def give(self, anywhere: list[bool]) -> None:
        """Give the means to the parameters that have a gradient on any rank."""
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
