import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from frozen import judged_of, plain_features, run
from many_ranks import on_ranks
from runs import on_cpu
from selfsup.data.store import PackedStore
from selfsup.evaluation import extraction, knn
from selfsup.evaluation.knn import Nearest, largest
from selfsup.measures import votes


def restated(bank, labels, queries, truth, count, temperature, classes) -> tuple[float, float]:
    """top1 and the mean over classes in %, in float64, a picture at a time; of equal cosines or votes, the first."""
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    hits = []
    for query in queries:
        cosines = bank @ query
        nearest = sorted(range(len(bank)), key=lambda place: (-cosines[place], place))[:count]
        votes = [sum(np.exp(cosines[one] / temperature) for one in nearest if labels[one] == c) for c in range(classes)]
        hits.append(int(np.argmax(votes)))
    right = np.array(hits) == truth
    per_class = [right[truth == label].mean() for label in range(classes) if (truth == label).any()]
    return 100 * right.mean(), 100 * np.mean(per_class)


def test_knn_follows_a_restatement_of_its_protocol(tiny_recipe, tiny_store, tmp_path):
    """Counted, so exactly: no two cosines of random pictures are as near to each other as float32 is to float64."""
    task = run("knn", judged_of(tiny_recipe, tiny_store), tmp_path)
    judged, classes = task.judged, 3
    bank, queries = (plain_features(judged, one).double().numpy() for one in (tiny_store.train, tiny_store.test))
    for row, count in zip(task.rows, [3, 7], strict=True):
        wanted = restated(bank, tiny_store.train.labels, queries, tiny_store.test.labels, count, 0.07, classes)
        assert (row["neighbours"], row["top1"], row["mean_per_class"]) == (count, *map(pytest.approx, wanted))
    assert task.finished and task.further_rows == task.rows[1:]
    assert task.figures() == {key: task.rows[0][key] for key in ("top1", "top5", "mean_per_class")}


@pytest.mark.parametrize("count", [1, 3, 6, 20])
def test_of_equal_cosines_the_first_is_the_nearer(count):
    """Small whole numbers, so that most rows have ties, at the last place that counts too."""
    random = np.random.default_rng()
    values = random.integers(0, 4, (200, 12))
    found, places = largest(torch.from_numpy(values).float(), count)
    wanted = np.stack([sorted(range(12), key=lambda place, row=row: (-row[place], place))[:count] for row in values])
    assert (places.numpy() == wanted).all()
    assert (found.numpy() == np.take_along_axis(values, wanted, 1)).all()


@pytest.mark.parametrize("part", [1, 4, 7, 50])
def test_a_bank_in_parts_has_the_same_neighbours_as_a_whole_one(part):
    """Vectors of whole numbers with equal ones among them, and not normalised, so that products are exact."""
    random = np.random.default_rng()
    bank, queries = (torch.from_numpy(random.integers(-2, 3, (rows, 2))).float() for rows in (50, 9))
    block = Nearest(queries, 6)
    block._queries = queries
    for start in range(0, 50, part):
        block.look_in(bank[start : start + part], torch.arange(50)[start : start + part])
    products = queries @ bank.T
    wanted = [sorted(range(50), key=lambda place, row=row: (-float(row[place]), place))[:6] for row in products]
    assert block.labels.tolist() == wanted


def figures_on(ranks, folder, recipe, store):
    extraction.CHUNK, extraction.BATCH, knn.QUERIES_AT_ONCE, knn.BANK_AT_ONCE = 16, 8, 4, 10
    judged = judged_of(recipe, PackedStore(store), compute=on_cpu(ranks, threads=1))
    return run("knn", judged, folder).rows


def test_figures_are_the_same_on_1_2_and_4_ranks(tiny_recipe, tiny_store, tmp_path):
    """With more ranks than blocks of test pictures, some have none."""
    rows = [on_ranks(figures_on, size, tmp_path / str(size), tiny_recipe, tiny_store.folder)[0] for size in (1, 2, 4)]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 2


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operator gives."""

    elements = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        found = operator(*arguments, **(options or {}))
        self.elements = max(self.elements, found.numel() if isinstance(found, torch.Tensor) else 0)
        return found


def test_votes_of_a_thousand_classes_are_sums_over_neighbours_and_take_no_more_than_their_own_memory():
    random = np.random.default_rng()
    cosines, labels = random.uniform(-1, 1, (64, 200)), random.integers(0, 1000, (64, 200))
    wanted = np.zeros((64, 1000))
    np.add.at(wanted, (np.arange(64)[:, None], labels), np.exp(cosines / 0.07))
    with Largest() as seen:
        found = votes(torch.from_numpy(cosines).float(), torch.from_numpy(labels), 1000, 0.07)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=5e-6)
    assert seen.elements == 64 * 1000


def test_classes_with_equal_neighbours_have_equal_votes():
    """So that the lower one wins, wherever its neighbours stand."""
    cosines = torch.rand(3).repeat_interleave(2)[None]
    one, other = votes(cosines, torch.tensor([[0, 4, 4, 0, 0, 4]]), 5, 0.07)[0, [0, 4]].tolist()
    assert one == other
