"""How often the ranks of a pretraining talk to each other in a step, and about how much."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed as dist

from runs import on_cpu, train
from selfsup.data.store import PackedStore
from selfsup.engine.distributed import Ranks
from selfsup.recipe import load_recipe
from selfsup.training import pretraining
from selfsup.training.pretraining import Pretraining, Run

COUNTED = ("all_reduce", "all_gather_into_tensor", "broadcast_object_list", "all_gather_object")


@dataclass
class Traffic:
    """Collectives and the bytes that a rank gave to them."""

    calls: int = 0
    bytes: int = 0


@contextmanager
def counting() -> Iterator[Traffic]:
    """A context in which all collectives of this process are counted."""
    traffic, honest = Traffic(), {name: getattr(dist, name) for name in COUNTED}

    def counted(name: str):
        def call(*arguments, **named):
            given = arguments[1:] if name == "all_gather_into_tensor" else arguments  # what it fills comes first
            traffic.calls += 1
            traffic.bytes += sum(one.nbytes for one in given if isinstance(one, torch.Tensor))
            return honest[name](*arguments, **named)

        return call

    try:
        for name in COUNTED:
            setattr(dist, name, counted(name))
        yield traffic
    finally:
        for name, function in honest.items():
            setattr(dist, name, function)


def of_a_step(ranks: Ranks, store: PackedStore, folder: Path, recipe: str, overrides: Mapping) -> Traffic:
    """Train an epoch by the loop that jobs have; return the traffic between the starts of two steps inside it.

    A step that writes no row of history.csv: most of a real run's.
    """
    seen: list[Traffic] = []
    run = Run(load_recipe(recipe, overrides), 0, 1, store, folder, on_cpu(ranks, threads=1), 60)
    honest, rows = Pretraining.train_step, pretraining.ROWS_PER_EPOCH
    with counting() as traffic:

        def train_step(self, batch):
            seen.append(Traffic(traffic.calls, traffic.bytes))
            return honest(self, batch)

        try:
            Pretraining.train_step, pretraining.ROWS_PER_EPOCH = train_step, 1
            train(run, 1)
        finally:
            Pretraining.train_step, pretraining.ROWS_PER_EPOCH = honest, rows
    one, other = seen[1:3]
    return Traffic(other.calls - one.calls, other.bytes - one.bytes)
