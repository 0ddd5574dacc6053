"""Cutting a pretraining into segments, each a bounded job. Imports no torch: Snakemake reads this in every job."""


def boundaries(epochs: int, segment_epochs: int, finished: list[int] = ()) -> list[int]:
    """Return the epochs at which segments end, in order; the last is `epochs`.

    `finished` are the boundaries that exist already: they stay, and only the epochs after the last of them are cut
    into pieces of `segment_epochs`, so that a changed length never makes finished epochs run again.
    """
    done = sorted(epoch for epoch in set(finished) if 0 < epoch <= epochs)
    start = done[-1] if done else 0
    return done + list(range(start + segment_epochs, epochs, segment_epochs)) + ([epochs] if start < epochs else [])


def boundary_name(epoch: int) -> str:
    """Return the file name of the checkpoint after `epoch` epochs."""
    return f"epoch_{epoch:04d}.pt"


def steps_per_epoch(images: int, global_batch: int) -> int:
    """Return the optimiser steps of an epoch: whole global batches only, a shorter last one is left out."""
    return images // global_batch
