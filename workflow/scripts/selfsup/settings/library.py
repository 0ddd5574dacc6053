"""Folders of YAML files that build on each other: recipes, protocols.

A file is complete, or has the differences from others, which its key `base` names: `base: cifar10`, or
`base: [cifar10, implementations/authors]`, merged in that order. Folders in the folder hold parts. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.settings.typed import suggest
from selfsup.settings.yaml_reader import read_yaml

SUFFIX = ".yaml"


@dataclass(frozen=True)
class Library:
    """The files of a folder. what: one of them is, in messages."""

    folder: Path
    what: str

    def names(self) -> list[str]:
        """Return the names of all that can be used by itself."""
        return sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}"))

    def files(self, name: str) -> list[Path]:
        """Return the files that make up `name`, in the order in which they are merged: its bases first.

        name: of the folder, or the path of a file elsewhere, which ends in .yaml and whose bases are of the folder.
        Raises UserError for an unknown name, and for a file that is its own base.
        """
        if name not in self:
            elsewhere = f", nor as the path of a file: {Path(name).resolve()}" if name.endswith(SUFFIX) else ""
            known = suggest(name, self.names())
            raise UserError(f"{self.what} {name!r} does not exist in {self._place}{elsewhere}{known}")
        return self._chain(name, ())

    def __contains__(self, name: str) -> bool:
        return Path(name).is_file() if name.endswith(SUFFIX) else name in self.names()

    def content(self, path: Path) -> dict[str, Any]:
        """Return what one file says itself, its key `base` included."""
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: wanted the keys of a {self.what}, found {content!r}")
        return content

    @property
    def _place(self) -> str:
        return f"workflow/{self.folder.name}"

    def _chain(self, name: str, above: tuple[str, ...]) -> list[Path]:
        path = Path(name) if name.endswith(SUFFIX) else self.folder / f"{name}{SUFFIX}"
        if name in above:
            raise UserError(f"{self.what} {name} is its own base: {' -> '.join([*above, name])}")
        if not path.is_file():
            raise UserError(f"{self.what} {above[-1]}: its base {name!r} does not exist in {self._place}")
        bases = self.content(path).get("base", [])
        bases = bases if isinstance(bases, list) else [bases]
        return [*(file for base in bases for file in self._chain(base, (*above, name))), path]


def without_base(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says itself without its key `base`."""
    return {key: value for key, value in content.items() if key != "base"}
