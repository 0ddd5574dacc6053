"""LARS with a strength for each group of parameters (You et al. 2017; paper, section 5.1)."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from selfsup.optim.lars_settings import LARSSettings


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, from SGD (lars_weight 0) to LARS (lars_weight 1).

    For each tensor p with gradient g:
        g <- g + weight_decay p
        trust = trust_coefficient |p| / |g|, or 1 where one of the norms is 0
        clip_trust:  trust <- min(trust / lr, 1), so that the tensor's rate is the smaller of trust and lr (LARC)
        g <- ((1 - lars_weight) + lars_weight trust) g
        lr_in_momentum:      buf <- momentum buf + lr g,   p <- p - buf         (the paper's authors)
        not lr_in_momentum:  buf <- momentum buf + g,      p <- p - lr buf      (the official code, torch.optim.SGD)

    The two differ while lr changes. `lars_weight` is a key of a parameter group, 1 where a group does not set it.
    Gradients are left as they are. Raises ValueError for a value out of range.

    Nothing is read back to the host: `lr` may be a scalar tensor on the device, and `rates`, if it is set, has such a
    tensor for each group, which stands for the group's `lr`: so one compiled update takes them all. The verdict of
    torch.amp.GradScaler on a step stays on the device. A step whose gradients have overflowed changes neither
    parameters nor buffers; `skipped` tells of it: a bool tensor, or None, no scaler.
    """

    rates: Sequence[torch.Tensor] | None = None
    _compiled: Callable | None = None  # of the class: torch copies an optimiser without what else its instances have
    _step_supports_amp_scaling = True  # to GradScaler: `step` is to be called always, with `found_inf` and `grad_scale`

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        lr_in_momentum: bool = True,
        clip_trust: bool = False,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lr_in_momentum": lr_in_momentum,
            "clip_trust": clip_trust,
            "lars_weight": 1.0,
        }
        super().__init__(params, defaults)
        self.skipped: torch.Tensor | None = None
        for group in self.param_groups:
            for key in ("lr", "momentum", "weight_decay", "trust_coefficient"):
                if not group[key] >= 0:
                    raise ValueError(f"{key} is {group[key]}, wanted at least 0")
            if not 0 <= group["lars_weight"] <= 1:
                raise ValueError(f"lars_weight is {group['lars_weight']}, wanted 0 to 1")
            for parameter in group["params"]:  # now, so that the first step is like the others
                self._momentum_buffer(parameter)

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        overflow = getattr(self, "found_inf", None)
        self.skipped = None if overflow is None else overflow > 0
        rates = self.rates or [group["lr"] for group in self.param_groups]
        groups = [self._group(group, rate) for group, rate in zip(self.param_groups, rates, strict=True)]
        update = self._compiled or _update
        update([one for one in groups if one.parameters], self.skipped, getattr(self, "grad_scale", None))
        return loss

    def compile_update(self, compiled: Callable[[Callable], Callable]) -> None:
        """Have the update of all groups compiled. `rates` must then be set, or each new rate is compiled anew."""
        self._compiled = compiled(_update)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take a state over. Buffers get their parameters' memory layout: the layouts of a list must be alike."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])

    def _group(self, group: dict, rate: float | torch.Tensor) -> "_Group":
        parameters = [p for p in group["params"] if p.grad is not None]
        buffers = [self._momentum_buffer(p) for p in parameters]
        settings = (group[name] for name in _Group._fields[4:])
        return _Group(parameters, [p.grad for p in parameters], buffers, rate, *settings)

    def _momentum_buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        elif state["momentum_buffer"].dtype != parameter.dtype:  # the network was converted after this was built
            state["momentum_buffer"] = state["momentum_buffer"].to(parameter.dtype)
        return state["momentum_buffer"]


class _Group(NamedTuple):
    """A group's tensors, its rate, and what its parameter group says."""

    parameters: list[torch.Tensor]
    gradients: list[torch.Tensor]
    buffers: list[torch.Tensor]
    rate: float | torch.Tensor
    momentum: float
    weight_decay: float
    trust_coefficient: float
    lr_in_momentum: bool
    clip_trust: bool
    lars_weight: float


def _update(groups: list[_Group], skipped: torch.Tensor | None, grad_scale: torch.Tensor | None) -> None:
    for group in groups:
        _update_group(group, skipped, grad_scale)


def _update_group(group: _Group, skipped: torch.Tensor | None, grad_scale: torch.Tensor | None) -> None:
    parameters, updates, buffers = group.parameters, group.gradients, group.buffers
    rate, momentum = group.rate, group.momentum
    if skipped is not None:
        updates = _unscaled(updates, skipped, grad_scale)
        rate, momentum = torch.where(skipped, 0.0, rate), torch.where(skipped, 1.0, momentum)
    if group.weight_decay:
        updates = torch._foreach_add(updates, parameters, alpha=group.weight_decay)
    if group.lars_weight:
        scales = _scales(group, updates)
        if updates is group.gradients:
            updates = torch._foreach_mul(updates, scales)
        else:  # in place: new memory of the weights' size costs a CPU more than the product
            torch._foreach_mul_(updates, scales)
    torch._foreach_mul_(buffers, momentum)
    if group.lr_in_momentum:
        _add(buffers, updates, rate)
        _add(parameters, buffers, -1 if skipped is None else torch.where(skipped, 0.0, -1.0))
    else:
        _add(buffers, updates, 1 if skipped is None else torch.where(skipped, 0.0, 1.0))
        _add(parameters, buffers, -rate)


def _unscaled(
    gradients: list[torch.Tensor], skipped: torch.Tensor, grad_scale: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return the gradients without the scaler's factor, if they have it still; zeros where the step is skipped."""
    if grad_scale is not None:
        gradients = torch._foreach_mul(gradients, grad_scale.reciprocal())
    return [torch.where(skipped, 0.0, gradient) for gradient in gradients]  # fp16 alone pays for this loop


def build(groups: list[dict], settings: LARSSettings) -> LARS:
    """Return the optimiser of torch parameter groups. settings: the recipe's block `optimizer`."""
    return LARS(
        groups,
        lr=settings.peak_lr,
        momentum=settings.momentum,
        trust_coefficient=settings.trust_coefficient,
        lr_in_momentum=settings.lr_in_momentum,
        clip_trust=settings.clip_trust,
    )


def _add(targets: list[torch.Tensor], values: list[torch.Tensor], factor: float | torch.Tensor) -> None:
    """targets <- targets + factor values"""
    if not isinstance(factor, torch.Tensor):
        torch._foreach_add_(targets, values, alpha=factor)
    elif factor.is_cuda and not torch.compiler.is_compiling():
        torch._foreach_add_(targets, torch._foreach_mul(values, factor))  # two launches, where addcmul takes one each
    else:  # rounded once, as with a number: the same bits
        torch._foreach_addcmul_(targets, values, [factor.to(targets[0].dtype)] * len(targets))


def _scales(group: _Group, updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """The factor of each tensor's step, a scalar tensor each: nothing is read back to the host."""
    weights, gradients = torch.stack(torch._foreach_norm(group.parameters)), torch.stack(torch._foreach_norm(updates))
    trust = group.trust_coefficient * weights / gradients
    if group.clip_trust:
        trust = (trust / group.rate).clamp_max(1)  # infinite at a rate of 0, and so 1
    trust = torch.where((weights > 0) & (gradients > 0), trust, 1.0)
    strength = group.lars_weight
    return list(((1 - strength) + strength * trust).unbind())
