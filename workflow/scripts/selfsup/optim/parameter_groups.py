"""Which parameters feel weight decay and LARS: by the type of the module that owns them, and by their dimensions."""

from dataclasses import dataclass

from torch import nn

from selfsup.optim.settings import OptimizerSettings

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class ParameterTreatment:
    """A parameter and how the optimiser treats it. kind: "weight", "norm", "bias".

    lr_scale: of the learning rate; a method may give a head another one by dataclasses.replace. lr_schedule: what that
    rate is: "lr", the optimiser's, or the name of one of the method's own `schedules`.
    """

    name: str
    parameter: nn.Parameter
    kind: str
    weight_decay: float
    lars_weight: float
    lr_scale: float = 1.0
    lr_schedule: str = "lr"


def parameter_treatments(network: nn.Module, optimizer: OptimizerSettings) -> list[ParameterTreatment]:
    """Return the treatment of each parameter that learns. optimizer: the recipe's block of that name."""
    treatments, exempt = [], _exempt(network)
    for module_name, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                whole = f"{module_name}.{name}"
                kind = _kind(module, parameter, whole in exempt)
                treated = optimizer.weight_decay_of(kind), optimizer.lars_weight_of(kind)
                treatments.append(ParameterTreatment(whole, parameter, kind, *treated))
    return treatments


def optimizer_groups(treatments: list[ParameterTreatment]) -> list[dict]:
    """Return torch parameter groups, one for each way in which parameters are treated, in order of appearance."""
    groups: dict[tuple[float | str, ...], dict] = {}
    for one in treatments:
        treated = {key: getattr(one, key) for key in ("weight_decay", "lars_weight", "lr_scale", "lr_schedule")}
        groups.setdefault(tuple(treated.values()), {"params": [], **treated})["params"].append(one.parameter)
    return list(groups.values())


def treatment_table(treatments: list[ParameterTreatment]) -> str:
    """Return a table of all parameters, a line each, for people to read."""
    width = max(len(one.name) for one in treatments)
    lines = [f"{'parameter':{width}}  {'shape':>17}  kind    weight decay  LARS"]
    for one in treatments:
        shape = " x ".join(map(str, one.parameter.shape))
        lines.append(f"{one.name:{width}}  {shape:>17}  {one.kind:6}  {one.weight_decay:12g}  {one.lars_weight:4g}")
    return "\n".join(lines)


def _exempt(network: nn.Module) -> set[str]:
    """Return the names of what networks exempt from weight decay themselves, as timm's do with position embeddings."""
    return {
        f"{module_name}.{name}"
        for module_name, module in network.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def _kind(module: nn.Module, parameter: nn.Parameter, exempt: bool) -> str:
    """Return "norm" by the module's type, "weight" for two dimensions or more unless exempt, "bias" for the rest."""
    if isinstance(module, NORMS) or type(module).__name__.endswith("Norm"):  # timm has some of its own
        return "norm"
    return "weight" if parameter.ndim >= 2 and not exempt else "bias"
