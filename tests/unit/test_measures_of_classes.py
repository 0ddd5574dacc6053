import numpy as np
import pytest
import torch

from selfsup.engine.distributed import Ranks
from selfsup.measures import average_precision, mean_average_precision, mean_per_class


def test_the_mean_over_classes_weighs_each_class_alike():
    """Against a loop; a class without pictures is left out, and of equal logits the lower class is predicted."""
    random = np.random.default_rng()
    logits, labels = random.integers(0, 3, (60, 5)), random.integers(0, 4, 60)
    shares = [
        np.mean([logits[one].tolist().index(max(logits[one])) == label for one in np.flatnonzero(labels == label)])
        for label in range(5)
        if (labels == label).any()
    ]
    found = mean_per_class(torch.from_numpy(logits).float(), torch.from_numpy(labels), Ranks())
    assert found == pytest.approx(100 * np.mean(shares))


def restated(scores, targets) -> float:
    """VOC 2007's own way (Everingham et al. 2010, section 4.2), a picture at a time."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    true = false = 0
    recalls, precisions = [], []
    for place in order:
        if targets[place] < 0:
            continue
        true, false = true + (targets[place] == 1), false + (targets[place] == 0)
        recalls.append(round(true / np.sum(targets == 1), 12))
        precisions.append(true / (true + false))
    total = 0.0
    for recall in np.round(np.linspace(0, 1, 11), 12):
        total += max((p for r, p in zip(recalls, precisions, strict=True) if r >= recall), default=0.0) / 11
    return total


@pytest.mark.parametrize("positives", [1, 3, 10, 30])
def test_the_average_precision_by_11_points_follows_a_restatement(positives):
    """Recalls of a tenth each, exactly at a point, are among them."""
    random = np.random.default_rng()
    scores, targets = random.integers(0, 40, 60) / 7, np.zeros(60, int)
    targets[random.permutation(60)[:positives]] = 1
    targets[random.choice(np.flatnonzero(targets == 0), 8, replace=False)] = -1
    found = average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    assert found == pytest.approx(restated(scores, targets), rel=1e-12)
    both = mean_average_precision(
        torch.from_numpy(np.stack([scores, -scores], 1)), torch.from_numpy(targets)[:, None].expand(-1, 2)
    )
    assert both == pytest.approx(50 * (restated(scores, targets) + restated(-scores, targets)), rel=1e-12)


def test_a_perfect_order_has_an_average_precision_of_1_and_no_positives_have_none():
    assert average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1, 1, 0])) == 1
    assert np.isnan(average_precision(torch.tensor([3.0]), torch.tensor([0])))
