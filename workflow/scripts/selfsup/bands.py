"""Floors and expected bands of health figures: the verdict on a segment's end. No torch: it runs on a login node.

A floor is its method's, for every recipe: an encoder below it has collapsed. Bands are recorded, for one recipe.
A band is the interval in which a further seed's figure falls with 99.9 % probability, if seeds scatter normally: with
five figures at each of ten boundaries one healthy run in twenty is stopped by chance, and goes on when told so.
"""

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from selfsup.errors import UserError
from selfsup.recipe import differences, pretraining_part
from selfsup.settings.notes import Count, Distinct, Length
from selfsup.settings.typed import Settings, plain, read
from selfsup.settings.yaml_reader import read_yaml

BANDS = Path(__file__).parents[2] / "bands"
FEWEST_SEEDS = 3
CONFIDENCE = 0.999
HIGHER_IS_BETTER = ("knn_top1",)  # has no upper end: too good is no reason to stop


class Band(Settings):
    low: float | None
    """null: any value is as good"""
    high: float | None
    """null: any value is as good"""
    values: Annotated[list[float], Length(FEWEST_SEEDS)]
    """of the recorded seeds, in their order"""


class Boundary(Settings):
    epoch: Count
    """after which the figures were measured"""
    figures: dict[str, Band]
    """a band by its figure"""


class Bands(Settings):
    """A file of a recipe's expected health figures: workflow/bands/<recipe>.yaml, written by record_bands.py."""

    recorded: dict
    """where the values come from: code revision, numerics of the runs"""
    seeds: Annotated[list[int], Length(FEWEST_SEEDS), Distinct()]
    """of the runs that were recorded"""
    recipe: dict
    """what was trained, without its linear evaluation; the bands are for this and nothing else"""
    boundaries: Annotated[list[Boundary], Length(1)]


@dataclass(frozen=True)
class Outside:
    """A figure below its floor or out of its band. low, high: None where there is no such end."""

    figure: str
    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None and self.high is None:
            return f"{self.figure} {self.value:.4g} (wanted a number)"
        if self.high is None:
            return f"{self.figure} {self.value:.4g} (wanted at least {self.low:.4g})"
        return f"{self.figure} {self.value:.4g} (wanted {self.low:.4g} to {self.high:.4g})"


def band(figure: str, values: list[float]) -> dict[str, Any]:
    """Return the prediction interval for one more value: mean ± t s sqrt(1 + 1/n), as a file of bands has it.

    values: one per seed, three at least.
    """
    from scipy.stats import t  # comes with scikit-learn; only recording needs it

    half = (
        float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
    )
    mean = statistics.mean(values)
    high = None if figure in HIGHER_IS_BETTER else round(mean + half, 4)
    return {"low": round(mean - half, 4), "high": high, "values": [round(value, 4) for value in values]}


def read_bands(path: Path) -> Bands:
    """Read a file of bands. Raises UserError where it is missing or no such file."""
    return read(Bands, read_yaml(path), str(path))


def recorded_for(bands: Mapping, recipe: Mapping) -> list[str]:
    """Return the differences between the recipe that was recorded and `recipe`; none means that the bands apply.

    Keys that the recorded recipe lacks do not count: they came later, with the value that keeps the old behaviour.
    """
    wanted = pretraining_part(recipe)
    return differences(bands["recipe"], _restricted(wanted, bands["recipe"]))


def collapsed(health: Mapping[str, float], floors: Mapping[str, float]) -> list[Outside]:
    """Return the figures below their method's floor, and those that are not a number, whether they have a floor or not.

    A figure that was not measured is no reason to stop.
    """
    limits = {name: {"low": floors.get(name), "high": None} for name in health}
    return [
        Outside(name, health[name], limit["low"], None)
        for name, limit in limits.items()
        if not _within(health[name], limit)
    ]


def outside(health: Mapping[str, float], bands: Mapping, epoch: int) -> list[Outside]:
    """Return the figures at a boundary that have left their band, in the bands' order.

    A figure that was not measured, or an epoch that was not recorded, is no reason to stop.
    """
    return [
        Outside(name, health[name], band["low"], band["high"])
        for name, band in _at(bands, epoch).items()
        if name in health and not _within(health[name], band)
    ]


def has_epoch(bands: Mapping, epoch: int) -> bool:
    """Return whether the bands say anything of the boundary after `epoch` epochs."""
    return bool(_at(bands, epoch))


def record(cards: Mapping[int, list[Mapping]], seeds: list[int], recipe: Mapping) -> dict[str, Any]:
    """Return bands from boundaries' cards: for each epoch one card per seed, in the seeds' order.

    Raises UserError for fewer than three seeds, cards of different runs, without figures or of a collapsed run.
    """
    if len(seeds) < FEWEST_SEEDS:
        raise UserError(f"{len(seeds)} seeds are recorded, wanted {FEWEST_SEEDS} at least: a spread needs several runs")
    boundaries = []
    for epoch, ones in sorted(cards.items()):
        for problem in _problems(epoch, ones):
            raise UserError(problem)
        names = [name for name in ones[0]["health"] if all(name in one["health"] for one in ones)]
        figures = {name: band(name, [one["health"][name] for one in ones]) for name in names}
        boundaries.append({"epoch": epoch, "figures": figures})
    numerics = ones[0]["numerics"]
    return {"recorded": dict(numerics), "seeds": seeds, "recipe": plain(recipe), "boundaries": boundaries}


def _problems(epoch: int, cards: list[Mapping]) -> Iterator[str]:
    if any(not card.get("health") for card in cards):
        yield f"epoch {epoch}: a card has no health figures: it was written before they were measured; train anew"
    for card in cards:
        if below := collapsed(card.get("health", {}), card.get("floors", {})):
            found = "; ".join(map(str, below))
            yield f"epoch {epoch}: seed {card['seed']} had collapsed, {found}: bands want healthy runs; train it anew"
    if len({card["fingerprint"] for card in cards}) > 1:
        yield f"epoch {epoch}: the seeds are of different recipes or revisions: train them alike"


def _at(bands: Mapping, epoch: int) -> Mapping[str, Mapping]:
    return next((one["figures"] for one in bands["boundaries"] if one["epoch"] == epoch), {})


def _within(value: float, band: Mapping) -> bool:
    low, high = band["low"], band["high"]
    return math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)


def _restricted(value: Any, like: Any) -> Any:
    """Return `value` without the mapping keys that `like` lacks."""
    if not (isinstance(value, Mapping) and isinstance(like, Mapping)):
        return value
    return {key: _restricted(part, like[key]) for key, part in value.items() if key in like}
