"""Ranks, one process per device, and the communication between them."""

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

TIMEOUT = timedelta(minutes=30)  # longer than the watchdog's, which prints the stacks
_c10d = torch.ops._c10d_functional  # what torch.distributed does, as operators that can be compiled
LAST_S = 3.0  # the others wait for so long, so that the rank that failed prints its message first


class Ranks:
    """The processes of a run, as seen by one of them. The methods are collective: all ranks call them in one order.

    Those that sum or gather tensors can be compiled: they become operators of the graph, around whose calls there is
    to be `broken_connections_told`.
    """

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
                # Decisions travel over a group on the host: over NCCL the host would have to wait for the device.
                self._control = dist.new_group(backend="gloo") if backend == "nccl" else dist.group.WORLD

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`, made the sum over ranks in place."""
        if self.size > 1 and torch.compiler.is_compiling():
            return tensor.copy_(_compiled_sum(tensor))
        if self.size > 1:
            with _others_may_die():
                dist.all_reduce(tensor)
        return tensor

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Start to sum `tensor` over ranks in place. Returns a function that waits; do not use `tensor` before."""
        with _others_may_die():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _others_may_die():
                work.wait()

        return wait

    def start_any(self, flags: Sequence[bool]) -> Callable[[], list[bool]]:
        """Start to find out which flags are set on any rank; all ranks give as many. Does not touch the device.

        Returns a function that waits for the answer.
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
        flat = tensor.detach().flatten()  # no gradient: see gather_with_gradient
        if torch.compiler.is_compiling():
            whole = _c10d.wait_tensor(_c10d.all_gather_into_tensor(flat, self.size, dist.group.WORLD.group_name))
        else:
            whole = flat.new_empty(self.size * len(flat))
            with _others_may_die():
                dist.all_gather_into_tensor(whole, flat)
        return whole.view(self.size, *tensor.shape)

    def gather_with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' rows, [size N, ...] from [N, ...] on each rank; gradients flow back through it.

        For losses over the whole batch: the gradients' mean over ranks equals the gradient that a single rank with all
        rows would compute.
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
        """Return the values of all ranks, no tensors, in the order of ranks; does not touch the device."""
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
        """Replace each gradient by its mean over ranks: for few parameters, after their backward pass.

        For whole networks use `selfsup.engine.gradients`; the rule for missing gradients is the same.
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
        """Leave the group once all ranks have called this."""
        if self.size > 1:
            self.barrier()
            dist.destroy_process_group()
            self._control = None  # a group that outlives the interpreter aborts the process


class _Gather(torch.autograd.Function):
    """Forward: the rows of all ranks. Backward: the gradients of all ranks' losses by this rank's rows, summed."""

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
        return _compiled_sum(tensor) if torch.compiler.is_compiling() else ranks.all_reduce(tensor.clone())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.ranks.all_reduce(gradient.clone()), None


def _compiled_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks as a new tensor: for one that was written to, torch 2.11 compiles gradients of zero."""
    summed = _c10d.wait_tensor(_c10d.all_reduce(tensor, "sum", dist.group.WORLD.group_name))
    return summed.view(tensor.shape)


@contextmanager
def _port_may_be_taken(place: Place) -> Iterator[None]:
    """Report a port at which rank 0 cannot listen as such: no other rank is to blame."""
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {place.port} of {place.address}, where rank 0 listens, is taken by another process "
            f"({place.port_from}): find it by `ss -ltnp sport = :{place.port}` there, and end it, or wait until it ends"
        ) from error


@contextmanager
def _others_may_die() -> Iterator[None]:
    """Turn torch's report of a broken connection into one line, after the rank at fault has printed its own."""
    try:
        with waiting_for_ranks():
            yield
    except RuntimeError as error:
        raise _broken_connection(error) from error


@contextmanager
def broken_connections_told() -> Iterator[None]:
    """Do the same around a compiled graph, some of whose errors come from elsewhere."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise _broken_connection(error) from error


def _broken_connection(error: RuntimeError) -> UserError:
    time.sleep(LAST_S)
    reason = str(error).splitlines()[0]
    return UserError(f"the connection to another rank broke ({reason}); that rank's own message says why")
