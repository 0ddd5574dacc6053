"""How much memory a pretraining takes on each device, and how much disk, counted from its recipe. Imports no torch.

Counted are torchvision's ResNets. Of any other network nothing is known here, since only its own code knows its layers.

Memory is the weights with gradients, momenta and 16-bit copies, and what a step keeps for its backward pass; buffers
that kernels and losses use for a moment come on top. For a ResNet-18 at 32 pixels and a batch of 512 in bf16 this
counts 2.8 GB, where 3.3 GB were measured on an H100.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from selfsup.config import Experiment
from selfsup.methods.equimod_constants import parameter_count
from selfsup.models.head_settings import HeadSettings, LayersSettings
from selfsup.models.resnet_settings import ResNetSettings
from selfsup.recipe import Recipe, methods_of
from selfsup.segments import boundaries

# Blocks of each stage, and convolutions of a block; as torchvision builds them (He et al. 2016, table 1).
STAGES = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
    "resnet152": ((3, 8, 36, 3), 3),
}
FULL, HALF, INDEX = 4, 2, 8  # bytes of a float32, of a bf16 or fp16, and of a place that a max-pool remembers
MOMENTA = {"adamw": 2}  # of each parameter; all other optimisers have one
ROLLING = 2  # checkpoints of a running job, beside those at the segments' ends


@dataclass(frozen=True)
class Convolution:
    """kept: whether what follows its batch norm is kept, too; a shortcut's is added to something that is."""

    block: int
    inner: int
    outer: int
    kernel: int
    side: int  # of its output, in pixels
    kept: bool = True

    @property
    def parameters(self) -> int:
        """Of the convolution and its batch norm."""
        return self.inner * self.outer * self.kernel**2 + 2 * self.outer

    def activations(self) -> int:
        """Return how many numbers an image leaves for the backward pass: the batch norm's input, and its output."""
        return self.outer * self.side**2 * (1 + self.kept)


def memory_bytes(experiment: Experiment) -> int | None:
    """Return the bytes that a step takes on each device at least; None for a network that is not counted."""
    recipe, block = experiment.recipe, experiment.compute["pretrain"]
    if not isinstance(recipe.model, ResNetSettings):
        return None
    online, averaged = _parameters(recipe)
    width = number_bytes(block["device"], block["precision"])
    states = FULL * (online * (2 + _momenta(recipe)) + averaged)
    copies = (online + averaged) * HALF if width == HALF else 0
    images = recipe["global_batch"] // (block["nodes"] * block["devices_per_node"] * recipe["micro_batches"])
    return states + copies + images * kept_bytes(recipe, width, recompute=block.get("recompute", False))


def disk_bytes(experiment: Experiment) -> int | None:
    """Return the bytes of all seeds' checkpoints and encoders; histories, tables and figures are megabytes."""
    recipe = experiment.recipe
    if not isinstance(recipe.model, ResNetSettings):
        return None
    online, averaged = _parameters(recipe)
    checkpoints = len(boundaries(recipe["epochs"], experiment.segment_epochs)) + ROLLING
    encoders = 2 * backbone_parameters(recipe.model)  # trained and untrained
    numbers = checkpoints * (online * (1 + _momenta(recipe)) + averaged) + encoders
    return FULL * numbers * len(experiment.seeds)


def number_bytes(device: str, precision: str) -> int:
    """Return the bytes of an activation. Without a word a GPU computes in 16 bits, and a processor may."""
    return FULL if precision == "fp32" or (precision == "auto" and device == "cpu") else HALF


def kept_bytes(recipe: Recipe, width: int, *, recompute: bool = False) -> int:
    """Return the bytes that an image, all its views together, leaves for the backward pass. width: of an activation."""
    augment = recipe.augment
    sizes = [view.size or augment.size for view in augment.views] + ([augment.plain.crop] if augment.plain else [])
    heads = sum(inner + 2 * sum(head.layers) for inner, head in _heads(recipe))
    return sum(_kept_of_a_view(recipe.model, size, width, recompute=recompute) + width * heads for size in sizes)


def backbone_parameters(model: ResNetSettings) -> int:
    """Return the number of a ResNet's parameters."""
    return sum(one.parameters for one in convolutions(model, 32))


def convolutions(model: ResNetSettings, size: int) -> Iterator[Convolution]:
    """Yield a ResNet's convolutions in their order, for pictures of `size` pixels; the stem's block is 0."""
    stem, (stages, depth) = model.stem, STAGES[model.backbone]
    side = (size + 2 * stem.padding - stem.kernel) // stem.stride + 1
    yield Convolution(0, 3, model.width, stem.kernel, side)
    side = (side + 1) // 2 if stem.max_pool else side
    inner, block = model.width, 0
    for stage, blocks in enumerate(stages):
        width = model.width * 2**stage
        outer = width * (4 if depth == 3 else 1)
        for place in range(blocks):
            block += 1
            after = (side + 1) // 2 if stage and not place else side
            if depth == 3:
                yield Convolution(block, inner, width, 1, side)
                yield Convolution(block, width, width, 3, after)
                yield Convolution(block, width, outer, 1, after)
            else:
                yield Convolution(block, inner, width, 3, after)
                yield Convolution(block, width, width, 3, after)
            if after != side or inner != outer:
                yield Convolution(block, inner, outer, 1, after, kept=False)
            inner, side = outer, after


def _kept_of_a_view(model: ResNetSettings, size: int, width: int, *, recompute: bool) -> int:
    known = list(convolutions(model, size))
    pixels = 3 * size**2 * (FULL + (width if width != FULL else 0))  # the view, and a copy in the step's precision
    by_block = [sum(one.activations() for one in known if one.block == block) for block in range(known[-1].block + 1)]
    ends = [[one for one in known if one.block == block and one.kept][-1] for block in range(len(by_block))]
    pooled = model.width * ((known[0].side + 1) // 2) ** 2 if model.stem.max_pool else 0
    numbers = sum(by_block)
    if recompute:  # blocks keep their inputs, and one at a time is computed again
        numbers = by_block[0] + sum(one.outer * one.side**2 for one in ends[1:]) + max(by_block[1:])
    return pixels + (numbers + pooled) * width + pooled * INDEX


def _parameters(recipe: Recipe) -> tuple[int, int]:
    """Return how many parameters learn, and how many follow them as a moving average."""
    backbone, heads = backbone_parameters(recipe.model), list(_heads(recipe))
    averaging = [block for block in _blocks(recipe) if getattr(block, "moving_average", None) is True]
    averaged = sum(backbone + _head_parameters(_features(recipe), block.projector) for block in averaging)
    return backbone + sum(_head_parameters(inner, head) for inner, head in heads), averaged


def _blocks(recipe: Recipe) -> list[Any]:
    return [recipe[name] for name in methods_of(recipe)]


def _features(recipe: Recipe) -> int:
    return [one for one in convolutions(recipe.model, 32) if one.kept][-1].outer


def _heads(recipe: Recipe) -> Iterator[tuple[int, HeadSettings | LayersSettings]]:
    """Yield what goes into each head of the recipe's methods, and the head."""
    for block in _blocks(recipe):
        heads: Mapping[str, Any] = {
            name: value for name in block if isinstance(value := block[name], HeadSettings | LayersSettings)
        }
        codes = heads.get("parameter_encoder")
        for name, head in heads.items():
            inner = _features(recipe)
            if name == "predictor" and "projector" in heads:
                inner = heads["projector"].out + (codes.out if codes else 0)
            elif head is codes:
                inner = parameter_count(recipe.augment.views)
            yield inner, head


def _head_parameters(inner: int, head: HeadSettings | LayersSettings) -> int:
    widths = [inner, *head.layers]
    weights = sum(one * other for one, other in pairwise(widths))
    between = sum(head.layers[:-1]) * (2 + head.bias_before_bn)
    return weights + between + head.out * (head.bias_last + 2 * (head.last_batch_norm != "none"))


def _momenta(recipe: Recipe) -> int:
    return MOMENTA.get(recipe.optimizer.name, 1)


def size(count: int | None) -> str:
    """Return bytes for people: 53 MB, 1.5 GB, 150 GB; "?" for an unknown number."""
    if count is None:
        return "?"
    unit, name = (1e9, "GB") if count >= 0.9995e9 else (1e6, "MB")
    return f"{count / unit:.2g} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
