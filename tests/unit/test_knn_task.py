import numpy as np
import pytest
import torch

from frozen import judged_of, plain_features, run
from many_ranks import on_ranks
from runs import on_cpu
from selfsup.data.store import PackedStore
from selfsup.evaluation import extraction, knn
from selfsup.evaluation.knn import Nearest, largest


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
