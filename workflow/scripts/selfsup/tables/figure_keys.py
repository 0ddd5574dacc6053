"""What an accuracy depends on: the keys by which a published figure and one of ours are held against each other.

Ours stand in metrics.csv, written by the evaluation from the encoder's card, its recipe and the dataset; the published
ones in workflow/reference/published.csv, with their sources. Imports no torch.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from selfsup.recipe import methods_of

# What data sets are compared by: the column of metrics.csv that has it. The first is that of most.
TOP1, MEAN_PER_CLASS = "top-1", "mean per class"
MEASURES = {TOP1: "top1", MEAN_PER_CLASS: "mean_per_class", "11-point mAP": "mean_average_precision"}

# Column of both files: its name in a sentence. The dataset, a key too, is config.yaml's to name.
KEYS = {
    "method": "method",
    "backbone": "backbone",
    "width": "width",
    "stem": "stem",
    "head": "head",
    "epochs": "epochs",
    "global_batch": "batch",
    "task": "task",
    "protocol": "protocol",
    "settings": "settings of the evaluation",
    "labels": "share of labels (%)",
    "n_train": "training images",
    "n_test": "test images",
    "measure": "measure",
}
IN_WORDS = ("protocol", "settings")
OF_RESNETS = ("width", "stem")  # timm's models have neither, which is not the same as a width that is not known
WHERE_TOLD = ("head",)  # told by a reference only where the method's figures differ by it; elsewhere not compared


def figure_keys(card: Mapping, n_train: int | None) -> dict[str, Any]:
    """Return what metrics.csv tells of an encoder by its card; None where that is not known.

    n_train: training images of the dataset, None where that is not known.
    """
    trained = card.get("recipe", {})
    model = trained.get("model", {})
    untrained = "training" not in card and "imported" not in card
    if "method" in card.get("imported", {}):  # weights that no recipe tells the training of
        trained = {"model": model}
    return {
        "method": None if untrained else method_in_words(trained),
        "backbone": model.get("backbone"),
        "width": model.get("width"),
        "stem": _stem(model["stem"]) if "stem" in model else None,
        "head": None if untrained else _head(trained),
        "epochs": 0 if untrained else _epochs(card, trained, n_train),
        "global_batch": None if untrained else trained.get("global_batch"),
    }


def method_in_words(recipe: Mapping) -> str | None:
    """Return the name of a recipe's method, behind that of the one it wraps: "simclr + equimod"."""
    return " + ".join(reversed(methods_of(recipe))) if "method" in recipe else None


def differences(line: Mapping, reference: Mapping) -> list[str]:
    """Return in words each key in which one of our figures differs from a published one, or which is not known."""
    ours, theirs = ({"measure": TOP1} | _known(side) for side in (line, reference))
    ours, theirs = ({key: side.get(key) for key in KEYS} for side in (ours, theirs))
    left_out = OF_RESNETS if str(ours["backbone"]).startswith("timm/") else ()
    compared = [key for key in KEYS if key not in left_out and (key not in WHERE_TOLD or theirs[key] is not None)]
    unknown = [KEYS[key] for key in compared if ours[key] is None]
    words = [_difference(key, ours[key], theirs[key]) for key in compared if ours[key] is not None]
    known = [text for text in words if text]
    return known + ([f"not told by metrics.csv: {', '.join(unknown)}"] if unknown else [])


def plain(value: Any) -> Any:
    """Return a cell as Python's own: None for a blank one, 512 for 512.0."""
    if value is None or pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known(side: Mapping) -> dict[str, Any]:
    values = {key: plain(side.get(key)) for key in KEYS}
    return {key: value for key, value in values.items() if value is not None}


def _difference(key: str, ours: Any, theirs: Any) -> str | None:
    if theirs is None:
        return f"{KEYS[key]} {ours}, the reference's is unknown"
    if key in IN_WORDS:
        more, less = _unlike(ours, theirs)
        return f"{KEYS[key]}: {more}, the reference: {less}" if more else None
    return None if ours == theirs else f"{KEYS[key]} {ours}, the reference {theirs}"


def _unlike(ours: str, theirs: str) -> tuple[str, str]:
    """Return the phrases of each that the other has not. Ours may say more: "cosine to 0" for a mere "cosine"."""
    mine, wanted = ours.split(", "), theirs.split(", ")

    def says(phrase: str, other: str) -> bool:
        return phrase == other or phrase.startswith(f"{other} to ")

    more = [phrase for phrase in mine if not any(says(phrase, other) for other in wanted)]
    less = [other for other in wanted if not any(says(phrase, other) for phrase in mine)]
    return (", ".join(more) or "nothing more", ", ".join(less) or "nothing more") if more or less else ("", "")


def _stem(stem: Mapping) -> str:
    pool = ", max-pool" if stem["max_pool"] else ""
    return f"{stem['kernel']} x {stem['kernel']}, stride {stem['stride']}{pool}"


def _head(trained: Mapping) -> str | None:
    """Return in words the projector of a method, of the one that is wrapped where one is; None where there is none."""
    block = trained.get(methods_of(trained)[-1]) if "method" in trained else None
    head = block.get("projector") if isinstance(block, Mapping) else None
    if not isinstance(head, Mapping):
        return None
    layers = head["layers"] if "layers" in head else [head["hidden"], head["out"]]
    last = head.get("last_batch_norm", "none").replace("_", " ")
    return "-".join(map(str, layers)) + ("" if last == "none" else f", last batch norm {last}")


def _epochs(card: Mapping, trained: Mapping, n_train: int | None) -> int | None:
    """Return how long an encoder was trained: by its checkpoint, or by what the file said that was imported."""
    if "training" in card:
        return int(card["training"]["epoch"])
    imported = card["imported"]
    if "epochs" in imported:
        return int(imported["epochs"])
    return round(imported["steps"] * trained["global_batch"] / n_train) if "steps" in imported and n_train else None
