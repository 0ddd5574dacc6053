"""Batch normalisation over the global batch, on any device, with statistics of all views together or of each view.

torch.nn.SyncBatchNorm refuses CPU tensors and knows no views; this one gives the same numbers on CPU and GPU.
"""

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
        return torch.cat([self._normalise(view) for view in x.chunk(self.groups)])

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        self.num_batches_tracked.add_(1)
        if self.ranks is None or self.ranks.size == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        return _Synchronised.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps, self.ranks
        )


def configure_batch_norm(network: torch.nn.Module, *, groups: int, ranks) -> None:
    """Set the groups and ranks of all batch norms of a network."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.groups, module.ranks = groups, ranks


class _Synchronised(torch.autograd.Function):
    """Normalisation with the statistics of all ranks: gathered as count, mean and variance, in float32 or wider."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, ranks):
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = torch.var_mean(values, over, correction=0)
        count = values.new_full((1,), values.numel() / values.shape[1])
        counts, means, variances = ranks.all_gather(torch.cat([count, mean, variance])).split(
            [1, len(mean), len(mean)], dim=1
        )
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * total / (total - 1), momentum)
        shape = [1, -1] + [1] * (x.dim() - 2)
        inverse_std = torch.rsqrt(variance + eps)
        normalised = (values - mean.view(shape)) * inverse_std.view(shape)
        ctx.save_for_backward(normalised, weight, inverse_std, total)
        ctx.ranks, ctx.over, ctx.shape = ranks, over, shape
        return (normalised * weight.to(normalised.dtype).view(shape) + bias.to(normalised.dtype).view(shape)).to(
            x.dtype
        )

    @staticmethod
    def backward(ctx, grad):
        normalised, weight, inverse_std, total = ctx.saved_tensors
        gradient = grad.to(normalised.dtype)
        bias_grad, weight_grad = gradient.sum(ctx.over), (gradient * normalised).sum(ctx.over)
        sums = ctx.ranks.all_reduce(torch.cat([bias_grad, weight_grad])) / total
        mean_grad, mean_projection = sums.view(2, -1)
        centred = gradient - mean_grad.view(ctx.shape) - normalised * mean_projection.view(ctx.shape)
        x_grad = centred * (inverse_std * weight.to(normalised.dtype)).view(ctx.shape)
        return (
            x_grad.to(grad.dtype),
            weight_grad.to(weight.dtype),
            bias_grad.to(weight.dtype),
            None,
            None,
            None,
            None,
            None,
        )
