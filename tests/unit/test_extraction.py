import hashlib

import numpy as np
import pytest
import torch

from frozen import judged_of, plain_features, settings_of, small_chunks
from many_ranks import on_ranks
from runs import StopAfter, on_cpu
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.evaluation import extraction
from selfsup.evaluation.extraction import Features, extract, features_of, is_whole
from selfsup.job.attempt import Attempt
from selfsup.job.place import Place


@pytest.fixture(autouse=True)
def chunks_of_16(monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK", 16)
    monkeypatch.setattr(extraction, "BATCH", 8)


def extracted(judged, folder, settings=None, stop=None) -> list[int]:
    place = Place(judged.compute.ranks.rank, judged.compute.ranks.size)
    told = {"stage": "features", "goal": "the last image", "fingerprint": "a test", "place": place, "stop": stop}
    with Attempt(folder / "job", **told) as attempt:
        return list(extract(judged, settings or settings_of("knn"), folder / "made", attempt))


def digest(folder) -> str:
    files = sorted((folder / "made").glob("*.npy"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_features_are_the_encoders_of_each_image_in_its_place(tiny_recipe, tiny_store, tmp_path, precision):
    """To 1e-5 of their size for batches of other sizes; float16 to its own 1e-3."""
    judged, settings = judged_of(tiny_recipe, tiny_store), settings_of("knn", precision=precision)
    assert extracted(judged, tmp_path, settings) == [0, 1, 2, 3, 4, 5]
    found = Features.read(tmp_path / "made", judged, settings)
    assert [part.dtype.name for part in found.train.parts] == [precision] * 3
    for part, split in ((found.train, tiny_store.train), (found.test, tiny_store.test)):
        wanted, order = plain_features(judged, split), np.random.default_rng().permutation(len(split))
        close = 1e-5 if precision == "float32" else 1e-3
        torch.testing.assert_close(part.rows(order), wanted[order], rtol=close, atol=close)
        assert part.labels(order).tolist() == split.labels[order].tolist() and len(part) == len(split)
    assert found.train.rows([]).shape == (0, judged.encoder.out_features)


def on_a_rank(ranks, folder, recipe, store):
    small_chunks()
    judged = judged_of(recipe, PackedStore(store), compute=on_cpu(ranks, threads=1))
    extracted(judged, folder)
    return digest(folder)


def test_the_bits_are_the_same_on_1_2_and_4_ranks_and_with_a_loader_process(tiny_recipe, tiny_store, tmp_path):
    recipe = {**tiny_recipe}
    digests = {
        size: on_ranks(on_a_rank, size, tmp_path / str(size), recipe, tiny_store.folder)[0] for size in (1, 2, 4)
    }
    assert len(set(digests.values())) == 1
    extracted(judged_of(recipe, tiny_store, compute=on_cpu(threads=1, workers=1)), tmp_path / "loader")
    assert digest(tmp_path / "loader") == digests[1]


@pytest.mark.parametrize("checks", [1, 3, 7])
def test_an_extraction_that_was_stopped_goes_on_with_the_chunks_that_are_missing(
    tiny_recipe, tiny_store, tmp_path, checks
):
    judged = judged_of(tiny_recipe, tiny_store)
    extracted(judged, tmp_path / "whole")
    extracted(judged, tmp_path / "parts", stop=StopAfter(checks))
    assert not is_whole(tmp_path / "parts" / "made")
    there = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts" / "made").glob("*.npy")}
    assert len(there) == (checks + 1) // 2  # a question before each batch, two batches a chunk
    assert extracted(judged, tmp_path / "parts")[0] == len(there)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in there} == there


def test_chunks_of_another_encoder_are_not_gone_on_with(tiny_recipe, tiny_store, tmp_path):
    extracted(judged_of(tiny_recipe, tiny_store, name="another", seed=1), tmp_path, stop=StopAfter(7))
    assert extracted(judged_of(tiny_recipe, tiny_store), tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "another encoder"}, "encoder_sha256"),
        ({"test": {"resize": 10, "crop": 8, "interpolation": "bicubic"}}, "made"),
        ({"precision": "float16"}, "made"),
    ],
)
def test_features_of_something_else_are_refused_in_a_line(tiny_recipe, tiny_store, tmp_path, change, key):
    judged = judged_of(tiny_recipe, tiny_store)
    extracted(judged, tmp_path)
    own = {key: value for key, value in change.items() if key != "name"}
    other = judged_of(tiny_recipe, tiny_store, name=change.get("name", "a test"))
    with pytest.raises(UserError, match=f"features.json has {key} .* delete the folder") as caught:
        Features.read(tmp_path / "made", other, settings_of("knn", **own))
    assert "\n" not in str(caught.value)


def test_features_that_lack_a_file_are_refused_in_a_line(tiny_recipe, tiny_store, tmp_path):
    judged = judged_of(tiny_recipe, tiny_store)
    extracted(judged, tmp_path)
    (tmp_path / "made" / "test_000001.npy").unlink()
    with pytest.raises(UserError, match=r"not whole .*test_000001.npy"):
        Features.read(tmp_path / "made", judged, settings_of("knn"))


def test_a_task_that_is_given_features_computes_none(tiny_recipe, tiny_store, tmp_path):
    extracted(judged_of(tiny_recipe, tiny_store), tmp_path)
    judged = judged_of(tiny_recipe, tiny_store, features=tmp_path / "made")
    judged.encoder.forward = None  # would fail
    with Attempt(tmp_path / "job", stage="a test", goal="its end", fingerprint="") as attempt:
        found = features_of(judged, settings_of("knn"), attempt, tmp_path / "partial")
    assert len(found.train) == 43 and not (tmp_path / "partial").exists()


def test_tasks_share_features_by_all_that_these_depend_on(tiny_recipe):
    from selfsup.protocols import evaluation_of
    from selfsup.recipe import Recipe

    recipe = Recipe.of(tiny_recipe)

    def name(protocol, recipe=recipe, dataset="digits", **overrides):
        return evaluation_of("mine", protocol, overrides, recipe, dataset).features(recipe)

    assert name("knn") == name("logistic") == name("knn", neighbours=[1])
    assert name("linear") is None
    other = recipe.changed(augment=recipe.augment.changed(mean=[0.1, 0.2, 0.3]))
    names = [name("knn"), name("knn", precision="float16"), name("knn", dataset="cifar10"), name("knn", recipe=other)]
    names.append(name("knn", test={"resize": 20, "crop": 8, "interpolation": "bicubic"}))
    assert len(set(names)) == 5 and names[0].startswith("digits-") and names[2].startswith("cifar10-")
