"""A step whose operators and shapes do not depend on what was drawn: run one by one, or compiled as one graph."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from selfsup.augment import Views, plain_crops
from selfsup.augment.static_views import COLUMNS, MOST_PICTURES, StaticViews, packed
from selfsup.augment.transfer import sent
from selfsup.augment.views import PIXELS_AT_ONCE, finished_plain, parts_of, side_by_side
from selfsup.data.loader import LoadedBatch, Pictures, ViewMaker
from selfsup.data.store import Split
from selfsup.engine.compute import Compute
from selfsup.engine.device import autocast
from selfsup.engine.distributed import broken_connections_told
from selfsup.engine.packed_copies import PackedCopies
from selfsup.errors import PermanentError
from selfsup.methods import Batch, Method, Output, Step
from selfsup.models import BatchNorm, counted_together

BACKEND = "inductor"  # of torch.compile
WRITTEN_OVER = "output of CUDAGraphs that has been overwritten"  # in torch's message


def compiled(function: Callable, compute: Compute, options: Mapping[str, bool] | None = None) -> Callable:
    """Return a function compiled as one graph. options: of Inductor, beside those that `compute` asks for."""
    wanted = {**compute.inductor_options, **(options or {})} or None
    return torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND, options=wanted)


class Inputs(NamedTuple):
    """What views are made from, on the device.

    pictures: uint8 [images, 3, H, W], or for each view its crops, [N, 3, size, size]. parameters: the columns that
    `static_views.packed` returns, and behind them what the method's loss is told. plain: the unaugmented pictures,
    finished, if the recipe wants them. rates: what was given for the update, float32 [groups of parameters].
    """

    pictures: Pictures
    parameters: torch.Tensor
    plain: torch.Tensor | None
    rates: torch.Tensor | None

    def part(self, rows: slice) -> "Inputs":
        """Return what the views of some images of the batch are made from."""
        pictures = self.pictures
        if not isinstance(pictures, torch.Tensor):
            pictures = tuple(crops[rows] for crops in pictures)
        plain = None if self.plain is None else self.plain[rows]
        return Inputs(pictures, self.parameters[:, rows].contiguous(), plain, self.rates)


class StaticViewMaker(ViewMaker):
    """Makes the views that `ViewMaker` makes, to the bit on a CPU, by the same operators in every step."""

    def __init__(
        self,
        split: Split,
        recipe: Mapping,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        super().__init__(split, recipe, device, memory_format)
        self._views = StaticViews(self._recipe, self._recipe.augment.views, device)
        if self._images is not None:
            torch._dynamo.mark_static_address(self._images, guard=False)  # a CUDA graph need not copy it in every step
        self._send = PackedCopies(device)

    def views_of(self, pictures: Pictures, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the views, [N, 3, size, size] each, in the memory format: a function that can be compiled."""
        whole = isinstance(pictures, torch.Tensor)
        views = self._views.of_images(pictures, parameters) if whole else self._views.of_crops(pictures, parameters)
        return tuple(view.contiguous(memory_format=self._memory_format) for view in views)

    def inputs(self, batch: LoadedBatch, told: np.ndarray | None = None, rates: np.ndarray | None = None) -> Inputs:
        """Bring to the device what the views of a batch are made from; all that the host computes, in one copy.

        told: `Method.told` of the batch. rates: for the update, float32 [groups of parameters].
        """
        pictures, places = batch.pictures, np.arange(len(batch.indices))
        if pictures is None and len(self._images) <= MOST_PICTURES:
            pictures, places = self._images, batch.indices
        elif pictures is None:
            pictures = self._images.index_select(0, sent(batch.indices, self._device))
        elif isinstance(pictures, torch.Tensor):
            pictures = pictures.to(self._device, non_blocking=True)
        else:
            pictures = tuple(crops.to(self._device, non_blocking=True) for crops in pictures)
        plain, numbers = self._plain(batch, pictures, places), packed(batch.draws, places)
        if told is not None:
            numbers = np.concatenate([numbers, _checked(told, numbers.shape[:2])], axis=2)
        numbers, *more = self._send(numbers, *([] if rates is None else [rates]))
        return Inputs(pictures, numbers, plain, *(more or [None]))

    def _plain(self, batch: LoadedBatch, pictures: Pictures, places: np.ndarray) -> torch.Tensor | None:
        augment, plain = self._recipe.augment, batch.plain
        if plain is not None:
            plain = plain.to(self._device, non_blocking=True)
        elif batch.draws.plain:
            plain = plain_crops(pictures.index_select(0, sent(places, self._device)), batch.draws.plain, augment)
        return finished_plain(plain, augment)

    def _made(self, batch: LoadedBatch) -> Views:
        inputs, count = self.inputs(batch), len(batch.indices)
        if self._device.type != "cpu":
            return Views(self.views_of(inputs.pictures, inputs.parameters), batch.draws, inputs.plain)
        pieces = list(parts_of(count, max(1, PIXELS_AT_ONCE // self._views.pixels)))
        made: dict[int, tuple[torch.Tensor, ...]] = {}

        def make(rows: slice) -> None:
            part = inputs.part(rows)
            made[rows.start] = self.views_of(part.pictures, part.parameters)

        side_by_side(make, pieces)
        views = zip(*(made[rows.start] for rows in pieces), strict=True)
        return Views(tuple(map(torch.cat, views)), batch.draws, inputs.plain)


def _checked(told: np.ndarray, rows: tuple[int, int]) -> np.ndarray:
    """Return what a method's loss is told, if it is of the type and shape that `Method.told` promises."""
    if told.dtype == np.float32 and told.shape[:-1] == rows:
        return told
    raise PermanentError(
        f"the method's `told` returns {told.dtype} {list(told.shape)}, wanted float32 [{rows[0]}, {rows[1]}, P]: a row "
        "for each view of each image"
    )


class OneGraph:
    """Views and loss of a method, compiled as one function, its backward pass too.

    A method's `loss` is given `told`, but no `parameters`, `indices` or `places`, which stay on the host.
    """

    def __init__(self, method: Method, make_views: StaticViewMaker, compute: Compute):
        self._method, self._make_views, self._compute = method, make_views, compute
        self.rates: torch.Tensor | None = None  # of the newest step's update, on the device
        for module in method.networks.modules():
            if isinstance(module, BatchNorm):
                module.in_graph = True
        options = {"triton.cudagraphs": True} if self._replays(method, compute) else {}
        self._compiled = compiled(self._loss, compute, options)

    @staticmethod
    def _replays(method: Method, compute: Compute) -> bool:
        """Say whether the kernels are launched all at once, as a CUDA graph: same bits, and no waiting for the host.

        The first step runs kernel by kernel, the second is recorded, all others are replayed. Not with micro-batches
        or over several ranks, which nobody has seen replayed.
        """
        alone = method.context.recipe.micro_batches == 1 and compute.ranks.size == 1
        return compute.device.type == "cuda" and alone

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Around a step: say in a line that a rank has gone, or that a result of the graph was kept and is no more."""
        try:
            with broken_connections_told() if self._compute.ranks.size > 1 else nullcontext():
                yield
        except Exception as error:
            if WRITTEN_OVER not in str(error):
                raise
            name = type(self._method).__name__
            raise PermanentError(
                f"compute.one_graph is true, and {name} reads what its loss made in an earlier step, which a later "
                "one has written over: keep a clone() of it outside of `loss`, or set one_graph to false"
            ) from error

    def losses(
        self, batch: LoadedBatch, step: Step, parts: int, rates: np.ndarray | None = None
    ) -> Iterator[Callable[[], Output]]:
        """Yield for each micro-batch a function that returns its loss. rates: to be brought to the device with it."""
        inputs, labels = self._make_views.inputs(batch, self._method.told(batch.draws), rates), batch.labels
        self.rates = inputs.rates
        labels = None if labels is None else labels.to(self._compute.device, non_blocking=True)
        rows = len(batch.indices) // parts
        torch.compiler.cudagraph_mark_step_begin()  # what the last step's graph has returned may be overwritten
        for part in range(parts):
            mine = slice(part * rows, (part + 1) * rows)
            own = None if labels is None else labels[mine]
            yield partial(self._one, inputs.part(mine), own, step)

    def _one(self, inputs: Inputs, labels: torch.Tensor | None, step: Step) -> Output:
        try:
            loss, scalars = self._compiled(*inputs[:3], labels, step)
        except Exception as error:
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException) or WRITTEN_OVER in str(error):
                raise
            reason = str(error).strip().splitlines()[0]
            name = type(self._method).__name__
            raise PermanentError(
                f"compute.one_graph is true, but the loss of {name} cannot be compiled as one graph ({reason}): set it "
                "to false, or, if the loss reads `batch.parameters`, give the method a `told`"
            ) from error
        return Output(loss, scalars)

    def _loss(
        self,
        pictures: Pictures,
        parameters: torch.Tensor,
        plain: torch.Tensor | None,
        labels: torch.Tensor | None,
        step: Step,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            views = self._make_views.views_of(pictures, parameters)
        told = parameters[..., COLUMNS:] if parameters.shape[2] > COLUMNS else None
        with autocast(self._compute.device, self._compute.precision), counted_together():
            output = self._method.loss(Batch(views, None, None, labels, plain, told), step)
        return output.loss, dict(output.scalars)
