"""LARS with a strength for each group of parameters (You et al. 2017; paper, section 5.1)."""

from collections.abc import Iterable

import torch


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, from SGD (lars_weight 0) to LARS (lars_weight 1).

    For each tensor p with gradient g:
        g <- g + weight_decay p
        trust = trust_coefficient |p| / |g|, or 1 where one of the norms is 0
        g <- ((1 - lars_weight) + lars_weight trust) g
        lr_in_momentum:      buf <- momentum buf + lr g,   p <- p - buf         (the paper's authors)
        not lr_in_momentum:  buf <- momentum buf + g,      p <- p - lr buf      (the official code, torch.optim.SGD)

    The two differ while lr changes. `lars_weight` is a key of a parameter group, 1 where a group does not set it.
    Gradients are left as they are. Raises ValueError for a value out of range.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        lr_in_momentum: bool = True,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lr_in_momentum": lr_in_momentum,
            "lars_weight": 1.0,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for key in ("lr", "momentum", "weight_decay", "trust_coefficient"):
                if not group[key] >= 0:
                    raise ValueError(f"{key} is {group[key]}, wanted at least 0")
            if not 0 <= group["lars_weight"] <= 1:
                raise ValueError(f"lars_weight is {group['lars_weight']}, wanted 0 to 1")

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict, parameters: list[torch.Tensor]) -> None:
        updates = [p.grad for p in parameters]
        if group["weight_decay"]:
            updates = torch._foreach_add(updates, parameters, alpha=group["weight_decay"])
        if group["lars_weight"]:
            updates = torch._foreach_mul(updates, _scales(group, parameters, updates))
        buffers = [self._momentum_buffer(p) for p in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=group["lr"] if group["lr_in_momentum"] else 1)
        torch._foreach_add_(parameters, buffers, alpha=-1 if group["lr_in_momentum"] else -group["lr"])

    def _momentum_buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _scales(group: dict, parameters: list[torch.Tensor], updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """The factor of each tensor's step, a scalar tensor each: nothing is read back to the host."""
    weights, gradients = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(updates))
    trust = torch.where((weights > 0) & (gradients > 0), group["trust_coefficient"] * weights / gradients, 1.0)
    strength = group["lars_weight"]
    return list(((1 - strength) + strength * trust).unbind())
