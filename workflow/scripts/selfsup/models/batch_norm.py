"""Batch normalisation over the global batch, on any device, with statistics of all views together or of each view.

torch.nn.SyncBatchNorm refuses CPU tensors, knows no views and makes the host wait for the device in every layer; this
one gives the same numbers on CPU and GPU, where it uses the same kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F


class BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """Batch norm of [N, C] or [N, C, H, W], torch's parameters and buffers.

    In train mode the batch is cut along N into `groups` equal parts, each normalised with its own mean and variance and
    each updating the running statistics, in order: equal to as many calls. With `ranks`, the statistics are those of
    all ranks' parts together. Both are set by `configure_batch_norm`.
    """

    groups = 1
    ranks = None
    in_graph = False  # of a step that is compiled as one graph
    recomputing = False  # of all batch norms: a forward pass that is done again in the backward pass counts once
    recomputed = False  # of one: whatever it does in a backward pass is done again

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() not in (2, 4):
            raise ValueError(f"expected 2 or 4 dimensions, got {x.dim()}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        if self.groups == 1:
            return self._normalise(x)
        if len(x) % self.groups:
            raise ValueError(f"a batch of {len(x)} cannot be cut into {self.groups} views")
        if x.device.type != "cpu" or self._over_ranks() or torch.compiler.is_compiling():
            return torch.cat([self._normalise(view) for view in x.chunk(self.groups)])
        momenta = [self._momentum() for _ in range(self.groups)]
        shared = [self.weight, self.bias] * self.groups
        return _OfEachView.apply(x, self.running_mean, self.running_var, momenta, self.eps, *shared)

    def _over_ranks(self) -> bool:
        return self.ranks is not None and self.ranks.size > 1

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        momentum, running = self._momentum(), (self.running_mean, self.running_var)
        if self._over_ranks() and self.in_graph and torch.compiler.is_compiling():
            return _in_graph(x, *running, self.weight, self.bias, momentum, self.eps, self.ranks)
        if self._over_ranks():
            return _synchronised(x, *running, self.weight, self.bias, momentum, self.eps, self.ranks)
        return F.batch_norm(x, *running, self.weight, self.bias, True, momentum, self.eps)

    def _momentum(self) -> float:
        """Return the momentum of a pass, and count it."""
        if BatchNorm.recomputing or (self.recomputed and torch._C._current_graph_task_id() != -1):
            return 0.0
        if _passes is None:
            self.num_batches_tracked.add_(1)
        else:
            _passes.append(self)
        return self.momentum


class BatchNormAct(BatchNorm):
    """A batch norm with what timm's BatchNormAct2d has behind it: its modules `drop` and `act`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


@contextmanager
def recomputation() -> Iterator[None]:
    """Inside, batch norms leave running statistics alone: the same forward pass has updated them before."""
    BatchNorm.recomputing = True
    try:
        yield
    finally:
        BatchNorm.recomputing = False


_passes: list[BatchNorm] | None = None  # whose number of batches is counted at the end of `counted_together`


@contextmanager
def counted_together() -> Iterator[None]:
    """Around a forward pass: batch norms count it at its end, all in one kernel, where each would launch its own."""
    global _passes
    _passes, passes = [], _passes
    try:
        yield
    finally:
        _passes, passes = passes, _passes
    times: dict[BatchNorm, int] = {}
    for norm in passes:
        times[norm] = times.get(norm, 0) + 1
    for number in sorted(set(times.values())):
        torch._foreach_add_([norm.num_batches_tracked for norm, own in times.items() if own == number], number)


def configure_batch_norm(network: torch.nn.Module, *, groups: int, ranks) -> None:
    """Set the groups and ranks of all batch norms of a network."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.groups, module.ranks = groups, ranks


class _OfEachView(torch.autograd.Function):
    """Normalisation of each view by itself on a CPU, with F.batch_norm's kernels and bits.

    Each view is written to its place in the result: views joined afterwards take twice as long. Weight and bias are
    given once for each view, so that autograd adds their gradients in the order of as many calls.
    """

    @staticmethod
    def forward(ctx, x, running_mean, running_var, momenta, eps, *shared):
        weight, bias = shared[:2]
        made, statistics = torch.empty_like(x), []
        for view, place, momentum in zip(x.chunk(len(momenta)), made.chunk(len(momenta)), momenta, strict=True):
            found = place, _channels(x, 0.0), _channels(x, 0.0)
            torch.native_batch_norm(view, weight, bias, running_mean, running_var, True, momentum, eps, out=found)
            statistics += found[1:]
        ctx.save_for_backward(x, weight, *statistics)
        ctx.eps = eps
        return made

    @staticmethod
    def backward(ctx, grad):
        x, weight, *statistics = ctx.saved_tensors
        views = len(statistics) // 2
        given = zip(grad.chunk(views), x.chunk(views), statistics[::2], statistics[1::2], strict=True)
        x_grads, *shared = zip(*(_gradients(*one, weight, ctx.eps) for one in given), strict=True)
        last_first = [grad for of_view in reversed(list(zip(*shared, strict=True))) for grad in of_view]
        return torch.cat(x_grads), None, None, None, None, *last_first


def _gradients(grad, x, mean, inverse_std, weight, eps):
    statistics = None, None, mean, inverse_std
    return torch.ops.aten.native_batch_norm_backward(grad, x, weight, *statistics, True, eps, [True] * 3)


def _in_graph(x, running_mean, running_var, weight, bias, momentum, eps, ranks) -> torch.Tensor:
    """Normalise by the statistics of all ranks, which have equally many rows."""
    normalised, mean, variance = _InGraph.apply(x, weight, bias, eps, ranks)
    with torch.no_grad():
        count = ranks.size * (x.numel() // x.shape[1])
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return normalised


class _InGraph(torch.autograd.Function):
    """What `_Synchronised` computes, in operators that a compiler fuses with those around them.

    With a backward pass of its own: that of torch.var_mean would compute the mean again, reading all of x for it.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps, ranks):
        wide, over = _wide(x), [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(wide, over, correction=0)
        means, variances = ranks.all_gather(torch.stack([mean, variance])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        inverse_std = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, variance)
        normalised = (wide - _of(x, mean)) * _of(x, inverse_std * weight) + _of(x, bias)
        return _as(normalised, x.dtype), mean, variance

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, mean, inverse_std = ctx.saved_tensors
        grad, centred, over = _wide(grad), _wide(x) - _of(x, mean), [0, *range(2, x.dim())]
        sum_grad, sum_product = grad.sum(over), (grad * centred).sum(over)
        sums = ctx.ranks.all_reduce(torch.stack([sum_grad, sum_product]))
        mean_grad, mean_product = sums / (ctx.ranks.size * (x.numel() // x.shape[1]))
        x_grad = grad - _of(x, mean_grad) - centred * _of(x, mean_product * inverse_std.square())
        x_grad = x_grad * _of(x, inverse_std * weight)
        return x_grad.to(x.dtype), (sum_product * inverse_std).to(weight.dtype), sum_grad.to(weight.dtype), None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32 or wider."""
    return _as(x, torch.promote_types(x.dtype, torch.float32))


def _as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x.to(dtype). Where that is x itself, torch 2.11 compiles gradients of zero for what returns it."""
    return x if x.dtype == dtype else x.to(dtype)


def _of(x: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Return [C] so that it broadcasts over x, [N, C] or [N, C, H, W]."""
    return channels.view(-1, *[1] * (x.dim() - 2))


@torch.compiler.disable  # the graphs of `compile` must end here, or runs that were begun with it would change bits
def _synchronised(x, running_mean, running_var, weight, bias, momentum, eps, ranks) -> torch.Tensor:
    return _Synchronised.apply(x, weight, bias, running_mean, running_var, momentum, eps, ranks)


class _Synchronised(torch.autograd.Function):
    """Normalisation with the statistics of all ranks; of the activations only `x` is kept, in its own dtype."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, ranks):
        kernels = _CudaKernels if x.is_cuda else _CpuKernels
        mean, inverse_std = kernels.statistics(x, eps)
        count = mean.new_full((1,), x.numel() // x.shape[1])
        gathered = ranks.all_gather(torch.cat([mean, inverse_std, count]))
        means, inverse_stds, counts = (part.contiguous() for part in gathered.split([len(mean), len(mean), 1], dim=1))
        mean, inverse_std = kernels.together(
            x, means, inverse_stds, running_mean, running_var, momentum, eps, counts.flatten()
        )
        ctx.save_for_backward(x, weight, mean, inverse_std, counts)
        ctx.ranks, ctx.kernels = ranks, kernels
        return kernels.normalised(x, weight, bias, mean, inverse_std, eps)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mean, inverse_std, counts = ctx.saved_tensors
        if not grad.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous()
        sum_grad, sum_product, weight_grad, bias_grad = ctx.kernels.sums(grad, x, mean, inverse_std, weight)
        sums = ctx.ranks.all_reduce(torch.cat([sum_grad, sum_product]))
        x_grad = ctx.kernels.input_gradient(grad, x, mean, inverse_std, weight, *sums.view(2, -1), counts)
        return x_grad, weight_grad.to(weight.dtype), bias_grad.to(weight.dtype), None, None, None, None, None


class _CudaKernels:
    """What torch.nn.SyncBatchNorm is made of: one pass over the activations each, sums in float32."""

    @staticmethod
    def statistics(x, eps):
        return torch.batch_norm_stats(x, eps)

    @staticmethod
    def together(x, means, inverse_stds, running_mean, running_var, momentum, eps, counts):
        return torch.batch_norm_gather_stats_with_counts(
            x, means, inverse_stds, running_mean, running_var, momentum, eps, counts
        )

    @staticmethod
    def normalised(x, weight, bias, mean, inverse_std, eps):
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, eps)

    @staticmethod
    def sums(grad, x, mean, inverse_std, weight):
        return torch.batch_norm_backward_reduce(grad, x, mean, inverse_std, weight, True, True, True)

    @staticmethod
    def input_gradient(grad, x, mean, inverse_std, weight, sum_grad, sum_product, counts):
        counts = counts.flatten().to(torch.int32)
        return torch.batch_norm_backward_elemt(grad, x, mean, inverse_std, weight, sum_grad, sum_product, counts)


class _CpuKernels:
    """The same of torch's batch norm for CPUs, whose passes compute in float32 or wider and know no other ranks."""

    @staticmethod
    def statistics(x, eps):
        ones = _channels(x, 1.0)
        _, mean, inverse_std = torch.native_batch_norm(x, ones, torch.zeros_like(ones), None, None, True, 0.0, eps)
        return mean, inverse_std

    @staticmethod
    def together(x, means, inverse_stds, running_mean, running_var, momentum, eps, counts):
        total, shares = counts.sum(), (counts / counts.sum())[:, None]
        mean = (shares * means).sum(0)
        variance = (shares * (inverse_stds**-2 - eps + (means - mean) ** 2)).sum(0)
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * total / (total - 1)).to(running_var.dtype), momentum)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def normalised(x, weight, bias, mean, inverse_std, eps):
        scale = weight.to(mean.dtype) * inverse_std
        return _affine(x, scale, bias.to(mean.dtype) - mean * scale)

    @staticmethod
    def sums(grad, x, mean, inverse_std, weight):
        _, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(
            grad, x, torch.ones_like(mean), None, None, mean, inverse_std, True, 0.0, [False, True, True]
        )
        return bias_grad, weight_grad / inverse_std, weight_grad, bias_grad

    @staticmethod
    def input_gradient(grad, x, mean, inverse_std, weight, sum_grad, sum_product, counts):
        total, scale = counts.sum(), inverse_std * weight.to(inverse_std.dtype)
        slope = scale * sum_product / total * inverse_std**2
        return _affine(grad, scale, -scale * sum_grad / total).sub_(_affine(x, slope, -mean * slope))


def _affine(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return x * scale + shift, both [C], in one pass: a batch norm in eval mode. Computed in their dtype."""
    return torch.native_batch_norm(x, scale, shift, torch.zeros_like(scale), torch.ones_like(scale), False, 0.0, 0.0)[0]


def _channels(x: torch.Tensor, value: float) -> torch.Tensor:
    """Return [C] of a value, in float32 or wider."""
    return x.new_full((x.shape[1],), value, dtype=torch.promote_types(x.dtype, torch.float32))
