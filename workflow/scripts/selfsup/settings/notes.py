"""Notes on a type, as Annotated has them: bounds, lengths, patterns; and the kinds of numbers that settings share.

Each note's `problem` returns what is wrong with a value of the right type, as the end of a sentence, or None.
"""

import math
import re
from collections.abc import Sized
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

DURATION = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d))?")  # hours:minutes or hours:minutes:seconds


@dataclass(frozen=True)
class Bounds:
    """Of a number."""

    at_least: float = -math.inf
    more_than: float = -math.inf
    at_most: float = math.inf
    less_than: float = math.inf

    def problem(self, found: float) -> str | None:
        holds = {
            f"at least {self.at_least}": found >= self.at_least,
            f"more than {self.more_than}": found > self.more_than,
            f"at most {self.at_most}": found <= self.at_most,
            f"less than {self.less_than}": found < self.less_than,
        }
        return next((f" is {found}, wanted {text}" for text, held in holds.items() if not held), None)


@dataclass(frozen=True)
class Length:
    """Of a list, a mapping or a text."""

    at_least: int = 0
    at_most: float = math.inf

    def problem(self, found: Sized) -> str | None:
        if self.at_least <= len(found) <= self.at_most:
            return None
        if not found and self.at_least == 1:
            return " is empty, wanted one at least"
        wanted = f"{self.at_least}" + ("" if self.at_least == self.at_most else " at least")
        return f" has {len(found)} items, wanted {wanted}"


@dataclass(frozen=True)
class Distinct:
    """No item of a list stands in it twice."""

    def problem(self, found: list) -> str | None:
        twice = [item for place, item in enumerate(found) if item in found[:place]]
        return f" has {twice[0]!r} twice" if twice else None


@dataclass(frozen=True)
class Pattern:
    """Of a text. what: it is no such thing, "name: letters and digits"."""

    pattern: str
    what: str

    def problem(self, found: str) -> str | None:
        return None if re.search(self.pattern, found) else f": {found!r} is no {self.what}"


@dataclass(frozen=True)
class OrWord:
    """A word may stand for the value, which is found later."""

    word: str

    @property
    def example(self) -> str:
        return f"or {self.word}"


@dataclass(frozen=True)
class Hours:
    """A number of hours, which may be written "1:30" or "1:30:00"."""

    example: ClassVar[str] = 'of hours, for example 1.5, or "1:30:00" in quotes'

    def number(self, text: str) -> Any:
        duration = DURATION.fullmatch(text)
        if not duration:
            return text
        hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        return hours + minutes / 60 + seconds / 3600


NAME = "name: letters, digits, '_', '-' and '.', beginning with a letter or digit"

Count = Annotated[int, Bounds(at_least=1)]
Natural = Annotated[int, Bounds(at_least=0)]
Seed = Annotated[int, Bounds(at_least=0, at_most=2**32 - 1)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
NotNegative = Annotated[float, Bounds(at_least=0)]
Positive = Annotated[float, Bounds(more_than=0)]
Momentum = Annotated[float, Bounds(at_least=0, less_than=1)]
Name = Annotated[str, Pattern(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", NAME)]
RGB = Annotated[list[float], Length(3, 3)]
RGBOfDataset = Annotated[RGB, OrWord("dataset")]
Range = Annotated[list[Positive], Length(2, 2)]
ParameterKinds = Annotated[list[Literal["bias", "norm"]], Distinct()]
