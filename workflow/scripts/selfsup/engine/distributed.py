"""Ranks: one process per device, and what they say to each other."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from selfsup.errors import UserError
from selfsup.job.place import Place
from selfsup.job.waiting import waiting_for_ranks

TIMEOUT = timedelta(minutes=30)  # the watchdog, which tells the stacks, is quicker
LAST_S = 3.0  # the rank that failed is to speak first


class Ranks:
    """The processes of a run, as seen by one of them. Methods are collective: every rank calls them, in one order."""

    def __init__(self, place: Place | None = None, device: torch.device | None = None):
        place = place or Place()
        self.rank, self.size = place.rank, place.size
        self._control = None
        if self.size > 1:
            backend = "nccl" if device is not None and device.type == "cuda" else "gloo"
            with _others_may_die(), _port_may_be_taken(place):
                dist.init_process_group(
                    backend, init_method=place.url, rank=self.rank, world_size=self.size, timeout=TIMEOUT
                )
                # Decisions travel over a group of the host's own: on NCCL they would make the host wait for the device.
                self._control = dist.new_group(backend="gloo") if backend == "nccl" else dist.group.WORLD

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`, made the sum over ranks in place."""
        if self.size > 1:
            with _others_may_die():
                dist.all_reduce(tensor)
        return tensor

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Begin to make `tensor` the sum over ranks in place. Returns what waits for it; until then, leave it alone."""
        with _others_may_die():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _others_may_die():
                work.wait()

        return wait

    def start_any(self, flags: Sequence[bool]) -> Callable[[], list[bool]]:
        """Begin to ask which of the flags, equally many on all ranks, are set on any rank; does not touch the device.

        Returns what waits for the answer.
        """
        answer = torch.tensor(flags, dtype=torch.uint8)
        if self.size == 1:
            return answer.bool().tolist
        with _others_may_die():
            work = dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._control, async_op=True)

        def wait() -> list[bool]:
            with _others_may_die():
                work.wait()
            return answer.bool().tolist()

        return wait

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean over ranks."""
        return self.all_reduce(tensor.clone()) / self.size

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' tensors stacked: [size, ...]."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _others_may_die():
            dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def gather_with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' rows, [size N, ...] for [N, ...] on each, through which gradients flow back.

        For losses that compare with the whole batch: the mean over ranks of the gradients is then the gradient that one
        rank with all rows would compute.
        """
        return tensor if self.size == 1 else _Gather.apply(tensor, self)

    def all_reduce_with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks, through which gradients flow back, as for `gather_with_gradient`.

        For losses of statistics of the whole batch, such as a covariance.
        """
        return tensor if self.size == 1 else _Sum.apply(tensor, self)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; does not touch the device."""
        return bool(self.highest(int(flag)))

    def highest(self, number: int) -> int:
        """Return the highest of the ranks' numbers; does not touch the device."""
        if self.size == 1:
            return number
        answer = torch.tensor(number)
        with _others_may_die():
            dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._control)
        return int(answer)

    def from_main(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.size > 1:
            with _others_may_die():
                dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, a plain one, in the order of ranks; does not touch the device."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        with _others_may_die():
            dist.all_gather_object(values, value, group=self._control)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.any(False)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make each gradient the mean over ranks: of few parameters, after their backward pass.

        For whole networks there is `selfsup.engine.gradients`, whose rule for a missing gradient holds here too.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        anywhere = self.start_any([one.grad is not None for one in parameters])()
        given = [one for one, found in zip(parameters, anywhere, strict=True) if found]
        if not given:
            return
        for one in given:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        flat = self.all_reduce(torch.cat([one.grad.flatten() for one in given])) / self.size
        for one, mean in zip(given, flat.split([one.numel() for one in given]), strict=True):
            one.grad.copy_(mean.view_as(one))

    def close(self) -> None:
        """Leave the group, after all ranks have come here."""
        if self.size > 1:
            self.barrier()
            dist.destroy_process_group()
            self._control = None  # a group that outlives the interpreter aborts the process


class _Gather(torch.autograd.Function):
    """Forward: the rows of all ranks. Backward: what all ranks' losses say of this rank's rows, summed."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks, ctx.rows = ranks, len(tensor)
        return ranks.all_gather(tensor).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        begin = ctx.ranks.rank * ctx.rows
        return ctx.ranks.all_reduce(gradient.clone())[begin : begin + ctx.rows], None


class _Sum(torch.autograd.Function):
    """Forward: the sum over ranks. Backward: what all ranks' losses say of it, summed, for each rank's part alike."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return ranks.all_reduce(tensor.clone())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.ranks.all_reduce(gradient.clone()), None


@contextmanager
def _port_may_be_taken(place: Place) -> Iterator[None]:
    """Tell of a port that rank 0 cannot listen at: no other rank is to blame for that."""
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {place.port} of {place.address}, where rank 0 listens, is taken by another process "
            f"({place.port_from}): see which by `ss -ltnp sport = :{place.port}` there, and end it, or wait for its end"
        ) from error


@contextmanager
def _others_may_die() -> Iterator[None]:
    """Turn the library's report of a connection that broke into one line, after the rank at fault has spoken."""
    try:
        with waiting_for_ranks():
            yield
    except RuntimeError as error:
        time.sleep(LAST_S)
        reason = str(error).splitlines()[0]
        raise UserError(f"the connection to another rank broke ({reason}); that rank's own message says why") from error
