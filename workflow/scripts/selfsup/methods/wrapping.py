"""A method that stands beside another, whose loss it adds to: what of it is the other's."""

from torch import nn

from selfsup.augment import Views
from selfsup.errors import PermanentError
from selfsup.methods.method import Context, Method, Step
from selfsup.optim import parameter_treatments
from selfsup.optim.parameter_groups import ParameterTreatment
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings


class WrappingMethod(Method):
    """Builds the method that `settings.wraps` names, from its own block of the recipe, as `wrapped`.

    Encoder, schedules, moving averages and health are that method's. A subclass calls `add` once, and has `loss`, which
    asks `wrapped.loss_of`, and `connect`.
    """

    wrapped: Method
    module: nn.ModuleDict

    def __init__(self, settings: Settings, context: Context):
        super().__init__(settings, context)
        name = settings.wraps
        self.wrapped = METHODS.component(name)(context.recipe[name], context)
        if type(self.wrapped).loss_of is Method.loss_of:
            raise PermanentError(
                f"{context.recipe.method}.wraps is {name!r}, whose class has no `loss_of`: it cannot be wrapped"
            )

    def add(self, name: str, module: nn.ModuleDict) -> None:
        """Let a module of this method's own learn beside the wrapped one's networks."""
        self._name, self.module = name, module
        self.networks = nn.ModuleDict({"wrapped": self.wrapped.networks, name: module})

    def encoder(self) -> nn.Module:
        return self.wrapped.encoder()

    def parameter_groups(self) -> list[ParameterTreatment]:
        own = nn.ModuleDict({self._name: self.module})
        return self.wrapped.parameter_groups() + parameter_treatments(own, self.context.recipe.optimizer)

    def schedules(self, step: int) -> dict[str, float]:
        return self.wrapped.schedules(step)

    def before_step(self, step: Step) -> None:
        self.wrapped.before_step(step)

    def after_backward(self, step: Step) -> None:
        self.wrapped.after_backward(step)

    def after_step(self, step: Step) -> None:
        self.wrapped.after_step(step)

    @property
    def floors(self) -> dict[str, float]:
        return self.wrapped.floors

    def health(self, views: Views) -> dict[str, float]:
        return self.wrapped.health(views)

    def state_dict(self) -> dict:
        parts = {"wrapped": self.wrapped.state_dict(), self._name: self.module.state_dict()}
        return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}

    def load_state_dict(self, state: dict) -> None:
        for part, network in {"wrapped": self.wrapped, self._name: self.module}.items():
            begin = f"{part}."
            network.load_state_dict({name.removeprefix(begin): state[name] for name in state if name.startswith(begin)})
