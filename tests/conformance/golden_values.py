"""What must never change: draws, the order of samples, initial weights, the losses of each method's first 20 steps, the
figures of each task.

    .venv/bin/python tests/conformance/golden_values.py [--part further] "<words of docs/changelog.md that allow it>"

writes golden_values.json beside this file anew, or that part alone: first losses of further recipes, and the tasks'
figures. A changed loss means that a run begun before goes on to other bits, a changed figure that two evaluations of
one encoder cannot be compared: the changelog has to say so, and the file names its words.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "workflow" / "scripts")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from golden_figures import close, figures  # noqa: E402

from runs import on_cpu  # noqa: E402
from selfsup.augment import draw, draws  # noqa: E402
from selfsup.data.store import PackedStore  # noqa: E402
from selfsup.methods import build_method  # noqa: E402
from selfsup.random_draws import Stream, network_seeds, shuffled, torch_seed, words  # noqa: E402
from selfsup.recipe import load_recipe  # noqa: E402
from selfsup.training.pretraining import Pretraining, Run  # noqa: E402
from tiny import SMALL_VIT, write_tiny_store  # noqa: E402

FILE = Path(__file__).with_suffix(".json")
CHANGELOG = Path(__file__).parents[2] / "docs/changelog.md"
# A recipe of each method, made so small that 20 steps take a second.
RECIPES = ("digits", "simclr_digits", "simsiam_digits", "barlow_twins_digits", "vicreg_digits", "moco_v3_digits")
RECIPES += ("equimod_digits",)
SMALL = {"epochs": 4, "global_batch": 8, "model": {"width": 4}}
STEPS = 20
# What those do not have: an inner BYOL, a summed loss, padding as SAME, clipped trust, a transformer with AdamW.
NARROW = {**SMALL, "augment": {"size": 8}, "optimizer": {"warmup_epochs": 1}}
TWINS: dict[str, dict] = {
    "equimod_byol_cifar10": {
        **NARROW,
        "augment": {"size": 8, "plain": {"resize": None, "crop": 8}},
        "equimod": {"parameters": "measured"},  # the authors' constants are of 32 pixels
    },
    "simclr_cifar10_official": NARROW,
    "cifar10_official": NARROW,
    "barlow_twins_cifar10_solo": NARROW,
    "moco_v3_vit_small_imagenet": {
        **NARROW,
        "model": {"backbone": "timm/vit_tiny_patch16_224", "arguments": SMALL_VIT},
        "augment": {"size": 16},
        "linear": {"test": {"resize": 18, "crop": 16}},
    },
}
EQUAL_ANYWHERE = 4  # losses, within 1e-4: each step carries on what processors sum in different orders
WIDE = (30, 100)  # pixels, height and width: a quarter of the tries of a crop fit
OPERATIONS = ("CROP", "FLIP", "JITTER", "JITTER_FACTORS", "GRAYSCALE", "BLUR", "SOLARIZE", "CROP_TRIES")


def exact() -> dict[str, Any]:
    """Return what is the same to the bit on every machine."""
    one = np.array([5])
    return {
        "streams": {stream.name: int(stream) for stream in Stream},
        "words of seed 1, epoch 2, sample 5, view 1, operation 3": {
            stream.name: words(1, stream, epoch=2, indices=one, view=1, operation=3)[0].tolist() for stream in Stream
        },
        "operations": {name: getattr(draws, name) for name in OPERATIONS},
        "torch_seed": {f"{stream.name}, purpose 1, draw 2": torch_seed(1, stream, 1, 2) for stream in Stream},
        "network_seeds": network_seeds(1, steps=range(5, 8), rank=2, micro_batch=3),
        "order of 43 samples, epoch 3": {
            stream.name: shuffled(np.arange(43), seed=1, stream=stream, epoch=3, size=43)[:12].tolist()
            for stream in Stream
        },
        "views": {stream.name: _views(stream) for stream in (Stream.PRETRAIN, Stream.LINEAR)},
    }


def _views(stream: Stream) -> dict[str, Any]:
    """Return one view's parameters of a few samples, and digests of many: every operation takes part."""
    recipe = load_recipe("imagenet")
    policies = draws.Policies(recipe.augment["views"][1:], None, stream)
    indices = np.arange(400)
    sizes = np.tile(np.array(WIDE), (len(indices), 1))
    view = draw(recipe, seed=1, epoch=2, indices=indices, sizes=sizes, stage=policies).views[-1]
    names = ("boxes", "flip", "jitter", "factors", "order", "grayscale", "sigma", "solarize")
    arrays = {name: np.ascontiguousarray(getattr(view, name)) for name in names}
    return {
        "of three samples": {name: array[:3].tolist() for name, array in arrays.items()},
        "SHA-256 of 400": {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()},
    }


def rounded(steps: int = STEPS) -> dict[str, Any]:
    """Return what processors round differently in the last digits: initial weights, and losses of so many steps."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tiny_store(Path(scratch) / "store")
        store = PackedStore(Path(scratch) / "store")
        return {
            name: {
                "initial weights": _weights(name),
                "losses": _losses(name, SMALL, steps, store, Path(scratch) / name),
            }
            for name in RECIPES
        }


def further() -> dict[str, Any]:
    """Return the first losses of further recipes, and the figures of tasks."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tiny_store(Path(scratch) / "store")
        return {"losses": twins(), "figures": figures(PackedStore(Path(scratch) / "store"), Path(scratch) / "tasks")}


def twins() -> dict[str, list[float]]:
    """Return the first losses of further recipes."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tiny_store(Path(scratch) / "store")
        store = PackedStore(Path(scratch) / "store")
        return {
            name: _losses(name, changes, EQUAL_ANYWHERE, store, Path(scratch) / name) for name, changes in TWINS.items()
        }


def _weights(name: str) -> dict[str, list[float]]:
    """Return mean square and first weight of each network's first and last tensor of weights."""
    method = build_method(load_recipe(name, SMALL), seed=1, total_steps=STEPS)
    several = [(key, value) for key, value in method.networks.named_parameters() if value.ndim >= 2]
    return {key: [float(value.detach().square().mean()), float(value.detach().flatten()[0])] for key, value in several}


def _losses(name: str, changes: dict, steps: int, store: PackedStore, folder: Path) -> list[float]:
    training = Pretraining(Run(load_recipe(name, changes), 1, 1, store, folder, on_cpu(), 60))
    return [float(training.train_step(training.batches[step])) for step in range(steps)]


def machine() -> dict[str, str]:
    """Return what the last losses depend on: where sums have another order, a last digit grows to percents.

    A virtual machine may hide the processor's name ("AMD EPYC"); its family, model and stepping tell generations apart.
    """
    known = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    first = {}  # of the first processor
    for key, _, value in (line.partition(":") for line in known):
        first.setdefault(key.strip(), value.strip())
    return {
        "processor": first.get("model name", platform.machine()),
        **{key: first.get(key, "") for key in ("cpu family", "model", "stepping")},
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def digest(values: dict[str, Any]) -> str:
    """Return a short digest of the file's values: a change of them needs a line of the changelog."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="of the changelog")
    parser.add_argument("--part", choices=["all", "further"], default="all", help="default: all")
    arguments = parser.parse_args()
    because = " ".join(" ".join(arguments.words).split())
    if because not in " ".join(CHANGELOG.read_text().split()):
        sys.exit(f"say which words of {CHANGELOG} allow the change: found {because!r}, which does not stand there")
    torch.set_num_threads(2)
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    if arguments.part == "all":
        values = {"exact": exact(), "rounded": rounded()}
        content |= {"allowed": content.get("allowed", {}) | {digest(values): because}, "machine": machine(), **values}
    values, known = further(), content.get("further", {})
    for version in values["figures"].keys() & known.get("figures", {}).keys():
        if not close(version.partition(",")[0], values["figures"][version], known["figures"][version]):
            sys.exit(f"the figures of {version} have changed: raise `version` in the settings of the task")
    content["further"] = {"allowed": known.get("allowed", {}) | {digest(values): because}, **values}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
