"""Equal small image files are kept as their pixels, under the fingerprint of the files; others as before."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg, encode_png

from selfsup.data import decoded, packing
from selfsup.data.loader import Batches, ViewMaker, fits_on
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore, StoreWriter, decode
from selfsup.errors import UserError
from selfsup.recipe import load_recipe
from tiny import TINY
from trees import tar_of

LARGE = (32, 32)
ENCODERS = {"jpg": lambda picture: encode_jpeg(picture, 75), "png": encode_png}


@pytest.fixture
def tree(tmp_path):
    """Makes a class tree of so many training pictures; returns it and the pictures as decoded, in the store's order."""

    def make(suffix="jpg", sizes=(LARGE,) * 30, tests=(LARGE,) * 10):
        random, pictures = np.random.default_rng(3), {"train": [], "test": []}
        for split, of_split in {"train": sizes, "test": tests}.items():
            for number, size in enumerate(of_split):
                noise = torch.from_numpy(random.integers(0, 256, (3, *size), np.uint8))
                content = ENCODERS[suffix](noise).numpy()
                file = tmp_path / f"tree/{split}/{'ant' if 2 * number < len(of_split) else 'bee'}/{number:03}.{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.tobytes())
                pictures[split].append(decode(content))
        return tmp_path / "tree", pictures

    return make


def as_before(monkeypatch):
    """Pack as versions did that kept every file as it is."""
    monkeypatch.setattr(packing, "size_of_all", lambda sizes: None)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_equal_small_files_are_kept_as_their_pixels_in_order(tree, tmp_path, suffix):
    root, pictures = tree(suffix)
    prepare("folder", root, tmp_path / "store")
    store = PackedStore(tmp_path / "store")
    for split in ("train", "test"):
        found = getattr(store, split)
        assert found.raw is not None and np.array_equal(found.raw, torch.stack(pictures[split]).numpy())
        assert found.sizes.tolist() == [list(LARGE)] * len(pictures[split])
        assert found.labels.tolist() == sorted(found.labels.tolist())
    assert fits_on(torch.device("cpu"), store.train)  # what a GPU's memory is asked about
    assert not (tmp_path / "store/packing").exists() and not (tmp_path / "store/train_spans.npy").exists()


def test_neither_fingerprint_nor_statistics_nor_what_a_picture_is_depend_on_how_it_is_kept(tree, tmp_path, monkeypatch):
    root, _ = tree()
    new = prepare("folder", root, tmp_path / "new")
    assert prepare("folder", tar_of(root, tmp_path / "tree.tar"), tmp_path / "from_tar") == new
    files = [(tmp_path / name / "train_images.npy").read_bytes() for name in ("new", "from_tar")]
    assert files[0] == files[1]
    as_before(monkeypatch)
    assert prepare("folder", root, tmp_path / "old") == new
    old, new = (PackedStore(tmp_path / name) for name in ("old", "new"))
    assert old.train.raw is None and old.statistics == new.statistics
    assert np.array_equal(old.train.labels, new.train.labels)
    assert all(torch.equal(old.test.image(number), new.test.image(number)) for number in range(len(old.test)))


@pytest.mark.parametrize(
    "sizes", [(LARGE,) * 29 + ((32, 31),), ((65, 65),) * 30, ((40, 60),) * 30], ids=["mixed", "large", "other test"]
)
def test_pictures_of_several_sizes_or_large_ones_are_kept_as_files(tree, tmp_path, sizes):
    tests = (sizes[0],) * 10 if sizes[0] != (40, 60) else (LARGE,) * 10
    root, pictures = tree(sizes=sizes, tests=tests)
    prepare("folder", root, tmp_path / "store")
    store = PackedStore(tmp_path / "store")
    assert store.train.raw is None and store.test.raw is None
    assert all(torch.equal(store.train.image(n), one) for n, one in enumerate(pictures["train"]))


def test_as_many_as_would_not_stay_on_a_device_are_kept_as_files(tree, tmp_path, monkeypatch):
    root, _ = tree()
    for bound, raw in ((40 * 3 * 32 * 32, True), (40 * 3 * 32 * 32 - 1, False)):
        monkeypatch.setattr(decoded, "MOST_BYTES", bound)
        prepare("folder", root, tmp_path / str(raw))
        assert (PackedStore(tmp_path / str(raw)).train.raw is not None) == raw


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["while decoding", "while moving"])
def test_a_packing_killed_late_goes_on_to_the_same_store(tree, tmp_path, monkeypatch, moment):
    root, _ = tree()
    wanted = prepare("folder", root, tmp_path / "a")

    def dies(*_):
        raise Killed

    place = "selfsup.data.decoded.to_disk" if moment == "while decoding" else "selfsup.data.store.os.replace"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, dies)
        prepare("folder", root, tmp_path / "b")
    assert not (tmp_path / "b/store.json").exists()
    assert prepare("folder", root, tmp_path / "b") == wanted
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_pictures_made_equal_by_resize_and_some_left_out_are_kept_as_pixels(tree, tmp_path):
    root, _ = tree(sizes=((80, 80), (96, 96)) * 15, tests=((70, 70),) * 10)
    (root / "train/ant/004.jpg").write_bytes(b"no picture")
    prepare("folder", root, tmp_path / "store", Packing(resize=48, skip_damaged=True))
    store = PackedStore(tmp_path / "store")
    assert store.train.raw.shape == (29, 3, 48, 48) and store.skipped["train"] == 1
    assert len(store.train.labels) == 29


def test_a_name_that_stands_twice_is_kept_once_and_each_picture_with_its_own_label(tree, tmp_path, monkeypatch):
    root, pictures = tree("png")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.write(root / "train/bee/015.png", "train/ant/000.png")
    pack = packing.pack
    all_listed = len(pictures["train"]) + 1  # are held out, and so both of that name
    monkeypatch.setattr(
        packing, "pack", lambda listing, *to, **how: pack(replace(listing, validation=all_listed), *to, **how)
    )
    prepare("folder", tmp_path / "twice.zip", tmp_path / "store", Packing(skip_damaged=True))
    store = PackedStore(tmp_path / "store")
    assert np.array_equal(store.train.raw, torch.stack(pictures["train"]).numpy())
    assert store.train.labels.tolist() == [0] * 15 + [1] * 15
    assert (store.skipped["train"], store.validation) == (1, 30)


def test_a_store_with_another_number_of_labels_than_of_images_is_not_read(tree, tmp_path):
    root, _ = tree()
    prepare("folder", root, tmp_path / "store")
    labels, card = tmp_path / "store/train_labels.npy", tmp_path / "store/store.json"
    np.save(labels, np.load(labels)[:-1])
    told = json.loads(card.read_text())
    told["files"][labels.name] = labels.stat().st_size
    card.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"train has 30 images, but 29 labels, .* prepare the dataset again$") as error:
        PackedStore(tmp_path / "store")
    assert "\n" not in str(error.value)


def test_pixels_of_more_images_than_were_added_are_not_kept(tmp_path):
    writer, ones = StoreWriter(tmp_path, ["ant"]), np.ones((2, 2), np.int64)
    np.save(writer.unfinished / "train_images.npy", np.zeros(2, np.uint8))
    writer.add_encoded("train", ones, ones, np.zeros(2), np.zeros((2, 32), np.uint8))
    np.save(writer.unfinished / "train_pixels.npy", np.zeros((3, 3, 1, 1), np.uint8))
    with pytest.raises(ValueError, match=r"train_pixels\.npy: found the pixels of 3 images, wanted those of 2"):
        writer.keep_pixels("train", "train_pixels.npy")


def test_a_step_sees_the_same_pictures_either_way(tree, tmp_path, monkeypatch):
    root, _ = tree()
    prepare("folder", root, tmp_path / "new")
    as_before(monkeypatch)
    prepare("folder", root, tmp_path / "old")
    recipe = load_recipe("digits", TINY)
    seen = []
    for name in ("old", "new"):
        split = PackedStore(tmp_path / name).train
        batch = Batches(split, recipe, seed=1, stage="pretrain")[0]
        seen.append((batch.indices.tolist(), ViewMaker(split, recipe, torch.device("cpu"))(batch)))
    assert seen[0][0] == seen[1][0]
    for old, new in zip(seen[0][1], seen[1][1], strict=True):  # cropped one by one, and together
        torch.testing.assert_close(old, new, rtol=0, atol=1e-5)
