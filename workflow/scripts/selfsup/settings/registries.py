"""What recipes and protocols choose from. The files *_settings.py of a package register classes here.

A new method is methods/<name>.py and methods/<name>_settings.py, a backbone models/<name>.py and its settings; so on.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.errors import PermanentError, UserError


class Registry(Mapping):
    """Settings classes by name: of methods, backbones, optimisers, tasks. A name is known once its file is read.

    A name that ends in "*" answers for all that begin with what stands before it, and are no names themselves.
    package: whose files *_settings.py are read when the first name is asked for, none of which may import torch.
    """

    def __init__(self, package: str):
        self._package, self._read = package, False
        self.classes: dict[str, type] = {}
        self.components: dict[str, str] = {}

    def add(self, *names: str, builds: str) -> Callable[[type], type]:
        """Return a decorator of a settings class. builds: what is built of them, "package.module:name"."""

        def added(cls: type) -> type:
            for name in names:
                if name in self.classes and self.classes[name].__module__ != cls.__module__:
                    raise UserError(f"the name {name!r} is taken by {self.classes[name].__module__}: choose another")
            self.classes |= dict.fromkeys(names, cls)
            self.components |= dict.fromkeys(names, builds)
            return cls

        return added

    def component(self, name: str) -> Any:
        """Import and return what is built of a name's settings."""
        self[name]
        return named(self.components[self._registered(name)])

    def is_own(self, name: str) -> bool:
        """Return whether what is built of a name's settings is of this package, and no extension's."""
        self[name]
        return self.components[self._registered(name)].startswith("selfsup.")

    def __getitem__(self, name: str) -> type:
        known = self._known()
        return known[self._registered(name) if isinstance(name, str) else repr(name)]  # a list is no name, and no error

    def _registered(self, name: str) -> str:
        """Return the name under which `name` was added."""
        families = (one for one in self.classes if one.endswith("*") and name.startswith(one[:-1]))
        return name if name in self.classes else next(families, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def read_own(self) -> None:
        """Read the package's own files, whose names nobody else may take."""
        self._known()

    def _known(self) -> dict[str, type]:
        if not self._read:
            self._read = True  # at once: a file may ask for a name while it is being read
            try:
                for folder in importlib.import_module(self._package).__path__:
                    for path in sorted(Path(folder).glob("*_settings.py")):
                        importlib.import_module(f"{self._package}.{path.stem}")
            except BaseException:
                self._read = False  # the next question tells the fault again, not that a name is unknown
                raise
        return self.classes


@dataclass(frozen=True)
class Chosen:
    """One of a registry's settings, by the value of `key` among them."""

    registry: Registry
    key: str


def named(place: str) -> Any:
    """Import and return "package.module:name". Raises PermanentError where there is no such thing."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module:
            raise  # of a package that the module itself wants
        raise PermanentError(f"{place!r}, named by `builds` or as a tracker, does not exist ({error})") from error


class Components(Mapping):
    """What is chosen by name and has no settings: each a file of a package, with a member of one name.

    Imports a file when its component is asked for.
    """

    def __init__(self, package: str, member: str):
        self._package, self._member = package, member
        self.added: dict[str, str] = {}  # from outside the package: "module:name" by name

    def __getitem__(self, name: str) -> Any:
        if name not in list(self):
            raise KeyError(name)
        return named(self.added.get(name) or f"{self._package}.{name}:{self._member}")

    def __contains__(self, name: object) -> bool:
        return name in list(self)  # by name alone: Mapping's own would import the component

    def __iter__(self) -> Iterator[str]:
        (folder,) = importlib.import_module(self._package).__path__
        own = (path.stem for path in Path(folder).glob("*.py") if path.stem != "__init__")
        return iter(sorted({*own, *self.added}))

    def __len__(self) -> int:
        return sum(1 for _ in self)  # list() would ask for the length


METHODS = Registry("selfsup.methods")
BACKBONES = Registry("selfsup.models")
OPTIMIZERS = Registry("selfsup.optim")
TASKS = Registry("selfsup.evaluation")
TRACKERS = Components("selfsup.training.sinks", "Tracker")
SOURCES = Components("selfsup.data.sources", "Source")
