"""Which parameters feel weight decay and LARS: decided by the type of the module that owns them, never by name."""

from dataclasses import dataclass

from torch import nn

from selfsup.optim.settings import OptimizerSettings

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
LINEAR_OR_CONV = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class ParameterTreatment:
    """A parameter and how the optimiser treats it. kind: "weight" (of a linear or conv layer), "norm", "bias"."""

    name: str
    parameter: nn.Parameter
    kind: str
    weight_decay: float
    lars_weight: float


def parameter_treatments(network: nn.Module, optimizer: OptimizerSettings) -> list[ParameterTreatment]:
    """Return the treatment of each parameter that learns. optimizer: the recipe's block of that name."""
    treatments = []
    for module_name, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                kind = _kind(module, name)
                decay = 0.0 if kind in optimizer.exclude_from_weight_decay else optimizer.weight_decay
                strength = 0.0 if kind in optimizer.exclude_from_lars else optimizer.lars_weight
                treatments.append(ParameterTreatment(f"{module_name}.{name}", parameter, kind, decay, strength))
    return treatments


def optimizer_groups(treatments: list[ParameterTreatment]) -> list[dict]:
    """Return torch parameter groups, one per combination of weight decay and LARS strength, in order of appearance."""
    groups: dict[tuple[float, float], dict] = {}
    for one in treatments:
        group = {"params": [], "weight_decay": one.weight_decay, "lars_weight": one.lars_weight}
        groups.setdefault((one.weight_decay, one.lars_weight), group)["params"].append(one.parameter)
    return list(groups.values())


def treatment_table(treatments: list[ParameterTreatment]) -> str:
    """Return a table of all parameters, a line each, for people to read."""
    width = max(len(one.name) for one in treatments)
    lines = [f"{'parameter':{width}}  {'shape':>17}  kind    weight decay  LARS"]
    for one in treatments:
        shape = " x ".join(map(str, one.parameter.shape))
        lines.append(f"{one.name:{width}}  {shape:>17}  {one.kind:6}  {one.weight_decay:12g}  {one.lars_weight:4g}")
    return "\n".join(lines)


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, NORMS):
        return "norm"
    return "weight" if isinstance(module, LINEAR_OR_CONV) and name == "weight" else "bias"
