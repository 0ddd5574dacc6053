"""Mean and std of the training pictures: measured when they are packed, and used where a recipe says `dataset`."""

import json
import os

import numpy as np
import pytest
import torch

from runs import on_cpu
from selfsup.data import statistics
from selfsup.data.loader import CPU, Batches, ViewMaker
from selfsup.data.preparing import Packing, prepare
from selfsup.data.statistics import add_statistics, resolved
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.errors import UserError
from selfsup.models.torchvision_network import feeding_lines
from selfsup.recipe import RecipeError, fingerprint, load_recipe
from selfsup.training.pretraining import Pretraining, Run
from tiny import TINY
from trees import write_tree

WORDS = {"augment": {"mean": "dataset", "std": "dataset"}}


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["ant", "bee"], "test": ["ant"]}, count=20)
    return tmp_path / "tree"


def of_pixels(store: PackedStore) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std over all pixels of the training pictures, plainly, in float64."""
    pixels = [store.train.image(index).numpy().reshape(3, -1) for index in range(len(store.train))]
    everything = np.concatenate(pixels, axis=1).astype(np.float64) / 255
    return everything.mean(1), everything.std(1)


@pytest.mark.parametrize("resize", [None, 9])
def test_packing_measures_the_training_pictures_as_they_are_stored(tmp_path, tree, resize):
    prepare("folder", tree, tmp_path / "store", Packing(resize=resize))
    store = PackedStore(tmp_path / "store")
    mean, std = of_pixels(store)
    # Both are float64; NumPy's own sum of 10^4 values is right to some 1e-16 times a few.
    assert store.statistics["mean"] == pytest.approx(mean, rel=1e-13)
    assert store.statistics["std"] == pytest.approx(std, rel=1e-12)


def test_the_numbers_are_the_same_to_the_bit_for_any_number_of_cores_and_after_a_kill(tmp_path, tree, monkeypatch):
    prepare("folder", tree, tmp_path / "a")
    wanted = json.loads((tmp_path / "a/store.json").read_text())
    prepare("folder", tree, tmp_path / "b", Packing(cpus=5))
    assert json.loads((tmp_path / "b/store.json").read_text()) == wanted
    (tree / "train/bee/7.png").rename(tmp_path / "7.png")
    (tree / "train/bee/7.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="1 of 60 images"):
        prepare("folder", tree, tmp_path / "c")
    (tmp_path / "7.png").rename(tree / "train/bee/7.png")
    monkeypatch.setattr("selfsup.data.packing.sums_of", lambda image: _counted.append(1) or statistics.sums_of(image))
    _counted = []
    prepare("folder", tree, tmp_path / "c")
    assert json.loads((tmp_path / "c/store.json").read_text()) == wanted
    assert len(_counted) == 1  # the others' sums stand in the journal


def test_digits_are_measured_too(tmp_path):
    prepare("digits", None, tmp_path / "digits")
    store = PackedStore(tmp_path / "digits")
    mean, std = of_pixels(store)
    assert store.statistics["mean"] == pytest.approx(mean, rel=1e-12)
    assert store.statistics["std"] == pytest.approx(std, rel=1e-12)


def as_by_an_older_version(folder):
    """The store without mean and std; returns its description before that."""
    path = folder / "store.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in whole.items() if key not in ("mean", "std")}))
    return whole


@pytest.mark.parametrize("source", ["folder", "digits"])
def test_an_older_store_gets_the_numbers_without_being_packed_again(tmp_path, tree, source):
    folder = tmp_path / "store"
    prepare(source, tree if source == "folder" else None, folder)
    whole = as_by_an_older_version(folder)
    os.utime(folder / "store.json", (1e9, 1e9))
    with pytest.raises(UserError, match=rf"has no mean and std.*prepare_dataset\.py --measure --output {folder}"):
        resolved(load_recipe("digits", WORDS), PackedStore(folder))
    add_statistics(folder, cpus=3)
    assert json.loads((folder / "store.json").read_text()) == whole
    assert (folder / "store.json").stat().st_mtime == 1e9  # or Snakemake would take it for another dataset


def test_a_recipe_keeps_the_word_and_its_views_have_the_numbers(tmp_path, tree):
    prepare("folder", tree, tmp_path / "store")
    store, recipe = (
        PackedStore(tmp_path / "store"),
        load_recipe("digits", TINY | WORDS | {"augment": {"size": 8, **WORDS["augment"]}}),
    )
    assert recipe.augment.mean == "dataset" and fingerprint(recipe, 1) != fingerprint(load_recipe("digits", TINY), 1)
    numbers = resolved(recipe, store)
    assert numbers.augment.mean == store.statistics["mean"] and numbers.augment.std == store.statistics["std"]
    by_hand = load_recipe("digits", TINY | {"augment": {"size": 8, **store.statistics}})
    assert numbers == by_hand
    other = {"mean": [0.5] * 3, "std": [0.1] * 3}
    assert resolved(recipe, store, {"recipe": {"augment": other}}).augment.mean == [0.5] * 3
    assert resolved(recipe, store, {"recipe": {"augment": WORDS["augment"]}}) == by_hand  # of an untrained encoder
    assert resolved(by_hand, store, {"recipe": {"augment": other}}) == by_hand  # numbers are numbers
    run = Run(recipe, 0, 1, store, tmp_path / "run", on_cpu(), 60.0)
    training = Pretraining(run)
    (batch,) = training.batches.read(0, 1, workers=0, pin_memory=False)
    plain = Batches(store.train, by_hand, seed=0, stage="pretrain")
    (same,) = plain.read(0, 1, workers=0, pin_memory=False)
    maker = ViewMaker(store.train, by_hand, CPU)
    for one, two in zip(training.make_views(batch), maker(same), strict=True):
        assert torch.equal(one, two)
    state = training.state()
    assert state["normalisation"] == store.statistics and state["recipe"]["augment"]["mean"] == "dataset"
    assert "normalisation" not in Pretraining(Run(by_hand, 0, 1, store, tmp_path / "run", on_cpu(), 60.0)).state()


def test_a_channel_that_is_the_same_everywhere_is_told(tmp_path):
    writer = StoreWriter(tmp_path, ["ant"])
    for split in ("train", "test"):
        writer.write_raw(split, np.full((2, 3, 4, 4), 7, np.uint8), np.zeros(2))
    writer.finish()
    add_statistics(tmp_path)
    with pytest.raises(UserError, match=r"std is \[0\.0, 0\.0, 0\.0\].*write numbers into the recipe's augment\.mean"):
        resolved(load_recipe("digits", WORDS), PackedStore(tmp_path))


def test_another_word_than_dataset_is_refused():
    with pytest.raises(RecipeError, match=r"augment\.mean is 'datset', wanted a list or dataset"):
        load_recipe("digits", {"augment": {"mean": "datset"}})
    with pytest.raises(RecipeError, match=r"augment\.std has 2 items, wanted 3"):
        load_recipe("digits", {"augment": {"std": [0.1, 0.2]}})


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 7, 9), (3, 64, 64), (3, 1500, 1700), (5, 3, 31, 33)])
@pytest.mark.parametrize("laid", ["by channel", "by pixel"])
def test_sums_are_exact_whatever_the_size_and_the_layout(shape, laid):
    pictures = torch.from_numpy(np.random.default_rng(3).integers(0, 256, shape, np.uint8))
    pictures[..., 0, :, :] = 255  # the largest sums that there are
    channels = pictures.movedim(-3, 0).reshape(3, -1).numpy().astype(np.uint64)
    if laid == "by pixel":  # as torchvision decodes
        pictures = pictures.movedim(-3, -1).contiguous().movedim(-1, -3)
    found = statistics.sums_of(pictures)
    assert found.pixels == channels.shape[1]
    assert found.values == tuple(channels.sum(1).tolist()) and found.squares == tuple((channels**2).sum(1).tolist())
    assert statistics.Sums.read(found.text(), found.pixels) == found


def test_what_an_encoders_card_says_of_normalising_is_numbers_where_they_are_known():
    recipe = load_recipe("cifar10", WORDS)
    known = statistics.with_numbers(recipe, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    assert "normalise = torchvision.transforms.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])" in feeding_lines(known)
    assert any("<mean of the pictures>, <std of the pictures>" in line for line in feeding_lines(recipe))
