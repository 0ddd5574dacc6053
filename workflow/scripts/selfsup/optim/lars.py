"""LARS with a strength for each group of parameters (You et al. 2017; paper, section 5.1)."""

from collections.abc import Iterable

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

    Nothing is read back to the host: `lr` may be a scalar tensor on the device, so that a captured step can be played
    again with another one, and torch.amp.GradScaler's verdict on a step stays on the device. A step whose gradients
    have overflowed changes neither parameters nor buffers; `skipped` tells of it: a bool tensor, or None, no scaler.
    """

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
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Take a state over. Buffers get their parameters' memory layout: the layouts of a list must be alike."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])

    def _update(self, group: dict, parameters: list[torch.Tensor]) -> None:
        updates = gradients = [p.grad for p in parameters]
        rate, momentum = group["lr"], group["momentum"]
        if self.skipped is not None:
            updates = self._unscaled(updates)
            rate, momentum = torch.where(self.skipped, 0.0, rate), torch.where(self.skipped, 1.0, momentum)
        if group["weight_decay"]:
            updates = torch._foreach_add(updates, parameters, alpha=group["weight_decay"])
        if group["lars_weight"]:
            scales = _scales(group, parameters, updates)
            if updates is gradients:
                updates = torch._foreach_mul(updates, scales)
            else:  # in place: new memory of the weights' size costs a CPU more than the product
                torch._foreach_mul_(updates, scales)
        buffers = [self._momentum_buffer(p) for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        if group["lr_in_momentum"]:
            _add(buffers, updates, rate)
            _add(parameters, buffers, -1 if self.skipped is None else torch.where(self.skipped, 0.0, -1.0))
        else:
            _add(buffers, updates, 1 if self.skipped is None else torch.where(self.skipped, 0.0, 1.0))
            _add(parameters, buffers, -rate)

    def _unscaled(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradients without the scaler's factor, if they have it still; zeros where the step is skipped."""
        if getattr(self, "grad_scale", None) is not None:
            gradients = torch._foreach_mul(gradients, self.grad_scale.reciprocal())
        return [torch.where(self.skipped, 0.0, gradient) for gradient in gradients]  # fp16 alone pays for this loop

    def _momentum_buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        elif state["momentum_buffer"].dtype != parameter.dtype:  # the network was converted after this was built
            state["momentum_buffer"] = state["momentum_buffer"].to(parameter.dtype)
        return state["momentum_buffer"]


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


def _scales(group: dict, parameters: list[torch.Tensor], updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """The factor of each tensor's step, a scalar tensor each: nothing is read back to the host."""
    weights, gradients = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(updates))
    trust = group["trust_coefficient"] * weights / gradients
    if group["clip_trust"]:
        trust = (trust / group["lr"]).clamp_max(1)  # infinite at a rate of 0, and so 1
    trust = torch.where((weights > 0) & (gradients > 0), trust, 1.0)
    strength = group["lars_weight"]
    return list(((1 - strength) + strength * trust).unbind())
