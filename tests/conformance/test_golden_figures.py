"""Figures of each evaluation, recorded. A change of code that changes one has to raise the task's version, so that
finished evaluations run again; then record the new figures here, under the new version."""

import pytest
from test_recipe_keys import BUSY

from frozen import judged_of, run
from runs import evaluate, evaluation, fine_tuning
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.evaluation.linear_settings import LinearSettings
from selfsup.models import initial_backbone
from selfsup.recipe import load_recipe, merge
from selfsup.settings.registries import TASKS
from tiny import TINY

# By (task, version): training loss of each row of history.csv, top-1 and top-5 of the last, on the tests' tiny dataset.
FIGURES = {
    ("linear", 1): ([1.11752, 1.06764], 100 * 8 / 19, 100.0),
    ("fine_tune", 1): ([1.13437, 1.04409, 1.13437, 1.02525, 0.96143, 1.07706, 1.06966], 100 * 8 / 19, 100.0),
}
# Of tasks on frozen features: all numbers of their rows and of metrics.csv.
FROZEN = {
    ("knn", 1): [3, 42.1052632, 100, 33.3333333, 7, 36.8421053, 100, 36.1111111, 42.1052632, 100, 33.3333333],
    ("logistic", 1): [
        *(10, 1.07336071, 44.4444444, 1, 1.07315517, 44.4444444, 0.1, 1.07116409, 44.4444444),
        *(0.01, 1.05586532, 44.4444444, 0.001, 1.00400566, 44.4444444),
        *(42.1052632, 100, 33.3333333, 10, 44.4444444),
    ],
}


def test_the_figures_of_the_linear_evaluation_are_those_of_its_version(tiny_store, tmp_path):
    """Every operation of a view takes part. Losses to 1e-4 relative: processors sum in different orders."""
    recipe = merge(load_recipe("digits", TINY), {"linear": {"train_view": BUSY}})
    encoder = initial_backbone(recipe, 0).eval().requires_grad_(False)
    rows = evaluate(evaluation(encoder, tiny_store, recipe), tmp_path)
    found = [row["train_loss"] for row in rows], rows[-1]["top1"], rows[-1]["top5"]
    version = LinearSettings.version
    assert ("linear", version) in FIGURES, f"record the figures of version {version} here: {found}"
    losses, *accuracies = FIGURES["linear", version]
    changed = f"the linear evaluation's figures have changed: raise LinearSettings.version. Now: {found}"
    assert found[0] == pytest.approx(losses, rel=1e-4), changed
    assert list(found[1:]) == pytest.approx(accuracies), changed


def test_the_figures_of_fine_tuning_are_those_of_its_version(tiny_store, tmp_path):
    """Losses to 1e-3 relative: each step carries on what processors sum in different orders."""
    recipe = load_recipe("digits", TINY)
    encoder = initial_backbone(recipe, 0).eval().requires_grad_(False)
    changes = {
        "train_view": merge(recipe["linear"]["train_view"], BUSY),
        "lengths": [1],
        "peak_lrs": [0.005, 0.01],
        "weight_decays": [1e-3],
    }
    rows = evaluate(fine_tuning(encoder, tiny_store, recipe, changes), tmp_path)
    found = [row["train_loss"] for row in rows], rows[-1]["top1"], rows[-1]["top5"]
    version = FineTuneSettings.version
    assert ("fine_tune", version) in FIGURES, f"record the figures of version {version} here: {found}"
    losses, *accuracies = FIGURES["fine_tune", version]
    changed = f"fine-tuning's figures have changed: raise FineTuneSettings.version. Now: {found}"
    assert found[0] == pytest.approx(losses, rel=1e-3), changed
    assert list(found[1:]) == pytest.approx(accuracies), changed


@pytest.mark.parametrize("task", ["knn", "logistic"])
def test_the_figures_on_frozen_features_are_those_of_their_version(task, tiny_recipe, tiny_store, tmp_path):
    """To 1e-5 relative: processors sum in different orders. Iterations are left out for the same reason."""
    done = run(task, judged_of(tiny_recipe, tiny_store), tmp_path)
    lines = [*done.rows, done.figures()]
    found = [value for line in lines for key, value in line.items() if key != "iterations"]
    version = TASKS[task].version
    assert (task, version) in FROZEN, f"record the figures of version {version} here: {found}"
    changed = f"the figures of {task} have changed: raise the version of its settings. Now: {found}"
    assert found == pytest.approx(FROZEN[task, version], rel=1e-5), changed
