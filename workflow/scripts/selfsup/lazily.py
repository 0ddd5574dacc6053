"""Packages whose members are imported when they are asked for: settings beside a network's code need no torch."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, members: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], list[str]]:
    """Return a package's `__getattr__` (PEP 562) and its `__all__`. members: names by the module that has them."""
    modules = {name: module for module, names in members.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, sorted(modules)
