"""Frozen evaluations of the tiny store, in a test's own process."""

import torch

from runs import evaluate, on_cpu
from selfsup.evaluation import extraction
from selfsup.evaluation.task import Judged, Task, build_task
from selfsup.models import initial_backbone
from selfsup.protocols import read_evaluation
from selfsup.recipe import Recipe

VIEW = {"resize": 9, "crop": 8, "interpolation": "bicubic"}
PROTOCOLS = {
    "knn": {"neighbours": [3, 7], "temperature": 0.07, "test": VIEW, "precision": "float32"},
    "logistic": {
        "range": [1e-3, 10.0],
        "strengths": 5,
        "validation": 0.2,
        "tolerance": 1e-10,
        "test": VIEW,
        "precision": "float32",
    },
}


def settings_of(task: str, **changes):
    return read_evaluation("a test", task, {**PROTOCOLS[task], **changes}, "tiny").settings


def judged_of(recipe, store, *, compute=None, seed: int = 0, name: str = "a test", features=None) -> Judged:
    encoder = initial_backbone(recipe, seed).eval().requires_grad_(False)
    compute = compute or on_cpu()
    return Judged(encoder, store, Recipe.of(recipe), seed, compute, features, encoder_sha256=name)


def task_of(name: str, judged: Judged, **changes) -> Task:
    return build_task(name, judged, settings_of(name, **changes), {"of": judged.encoder_sha256})


def run(name: str, judged: Judged, folder, stop=None, **changes) -> Task:
    """A task, continued to its end or until it is stopped."""
    task = task_of(name, judged, **changes)
    task.resume(folder / "partial")
    evaluate(task, folder, stop)
    return task


def small_chunks(chunk: int = 16, batch: int = 8) -> None:
    extraction.CHUNK, extraction.BATCH = chunk, batch


def plain_features(judged: Judged, split, view=VIEW) -> torch.Tensor:
    """What the encoder makes of a split's images, all at once."""
    from selfsup.augment import centre_view
    from selfsup.augment.settings import Plain

    with torch.no_grad():
        return judged.encoder(centre_view(judged.recipe, map(split.image, range(len(split))), Plain.of(view)))
