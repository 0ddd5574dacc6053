"""Pictures as people have them: without classes, without a split, with a validation set; in folders, tars and zips."""

import hashlib
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup.data.loader import Batches
from selfsup.data.local_copy import open_store
from selfsup.data.preparing import Packing, prepare
from selfsup.data.splits import TESTS, falls_to_test
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.recipe import load_recipe
from tiny import TINY
from trees import tar_of, write_tree

pytestmark = pytest.mark.usefixtures("kept_as_files")

UNLABELLED = Packing(labels=False)
KINDS = ["folder", "tar", "tar.gz", "zip"]


def write_pictures(root: Path, *names: str) -> None:
    """Write a picture of its own under each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4])
        noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
        Image.fromarray(noise).save(path, "PNG")


def packed_as(kind: str, tree: Path, top: str = ".") -> Path:
    """The tree itself, or an archive of it."""
    archive = tree.with_name(f"{tree.name}_{top.strip('.')}.{kind}")
    if kind == "folder":
        return tree
    if kind.startswith("tar"):
        return tar_of(tree, archive, "w:gz" if kind == "tar.gz" else "w", top)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(tree.rglob("*"), reverse=True):
            file.write(path, f"{top}/{path.relative_to(tree)}".removeprefix("./"))
    return archive


def encoded(store: PackedStore, split: str = "train") -> list[bytes]:
    images = getattr(store, split)
    return [images.encoded(index).tobytes() for index in range(len(images))]


NESTED = ["b.png", "a/2.png", "a/1.png", "a/deep/er/0.png", "test/of a lens.png", ".thumbnails/1.png"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [".", "photos"])
def test_pictures_without_classes_are_all_for_training_whatever_their_folders(tmp_path, kind, top):
    write_pictures(tmp_path / "tree", *NESTED)
    fingerprint = prepare("folder", packed_as(kind, tmp_path / "tree", top), tmp_path / "store", UNLABELLED)
    store = PackedStore(tmp_path / "store")
    assert store.classes == [] and not store.labelled and store.train.labels is None and store.test is None
    files = sorted(path for path in NESTED if not path.startswith("."))
    assert encoded(store) == [(tmp_path / "tree" / name).read_bytes() for name in files]
    assert fingerprint == prepare("folder", tmp_path / "tree", tmp_path / "again", UNLABELLED)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "store.json",
        *(f"train_{part}.npy" for part in ("images", "sizes", "spans")),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_folder_is_packed_without_classes_and_told_of_with_them(tmp_path, kind):
    write_pictures(tmp_path / "tree", *(f"{number}.png" for number in range(4)))
    path = packed_as(kind, tmp_path / "tree")
    prepare("folder", path, tmp_path / "store", UNLABELLED)
    assert len(PackedStore(tmp_path / "store").train) == 4
    with pytest.raises(UserError, match=r"has no folder train/, .*test_share: 0\.2.*labels: false") as told:
        prepare("folder", path, tmp_path / "other")
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_classes_the_pictures_beside_a_test_set_are_trained_on_alone(tmp_path, kind, caplog):
    """A folder called train is no split where no test set stands beside it: it may hold pictures of trains."""
    write_pictures(tmp_path / "tree", "train/ant/0.png", "train/1.png", "other/2.png")
    path = packed_as(kind, tmp_path / "tree")
    caplog.set_level("INFO")
    prepare("folder", path, tmp_path / "store", UNLABELLED)
    assert len(PackedStore(tmp_path / "store").train) == 3 and "alone" not in caplog.text
    for test in TESTS:
        tree = tmp_path / test
        shutil.copytree(tmp_path / "tree", tree)
        write_pictures(tree, f"{test}/ant/9.png")
        prepare("folder", packed_as(kind, tree), tmp_path / f"store_{test}", UNLABELLED)
        contents = encoded(PackedStore(tmp_path / f"store_{test}"))
        assert contents == [(tree / name).read_bytes() for name in ("train/1.png", "train/ant/0.png")]
    assert caplog.text.count("has a test set beside train/, so that train/ alone is packed") == len(TESTS)


def test_pictures_of_one_name_in_an_archives_folder_and_beside_it_are_both_packed(tmp_path):
    write_pictures(tmp_path / "tree", "all/0.png", "all/1.png", "0.png")
    (tmp_path / "tree/0.png").write_bytes((tmp_path / "tree/all/1.png").read_bytes())
    prepare("folder", packed_as("zip", tmp_path / "tree"), tmp_path / "store", UNLABELLED)
    assert encoded(PackedStore(tmp_path / "store")) == [
        (tmp_path / "tree" / name).read_bytes() for name in ("0.png", "all/0.png", "all/1.png")
    ]


def test_the_loader_gives_no_labels_where_there_are_none(tmp_path):
    write_pictures(tmp_path / "tree", *(f"{number}.png" for number in range(9)))
    prepare("folder", tmp_path / "tree", tmp_path / "store", UNLABELLED)
    batches = Batches(PackedStore(tmp_path / "store").train, load_recipe("digits", TINY), seed=0, stage="pretrain")
    (batch,) = batches.read(0, 1, workers=0, pin_memory=False)
    assert batch.labels is None and len(batch.indices) == 8
    (other,) = batches.read(0, 1, workers=1, pin_memory=False)
    assert other.labels is None and torch.equal(other.pictures[0], batch.pictures[0])


def test_a_nodes_copy_needs_no_labels_and_no_test_set(tmp_path):
    write_pictures(tmp_path / "tree", "0.png", "1.png")
    prepare("folder", tmp_path / "tree", tmp_path / "store", UNLABELLED)
    copy = open_store(tmp_path / "store", str(tmp_path / "disk"))
    assert copy.folder.parent == tmp_path / "disk" and not copy.labelled
    assert encoded(copy) == encoded(PackedStore(tmp_path / "store"))


def test_what_is_no_picture_is_told_or_left_out_without_classes_too(tmp_path):
    write_pictures(tmp_path / "tree", "0.png", "a/1.png")
    (tmp_path / "tree/README.txt").write_text("mine")
    with pytest.raises(UserError, match=r"1 of 3 images .* skip_damaged: .*README\.txt: cannot be read as an image"):
        prepare("folder", tmp_path / "tree", tmp_path / "store", UNLABELLED)
    prepare("folder", tmp_path / "tree", tmp_path / "store", Packing(labels=False, skip_damaged=True))
    assert PackedStore(tmp_path / "store").skipped == {"train": 1, "test": 0}
    (tmp_path / "empty/in").mkdir(parents=True)
    with pytest.raises(UserError, match="no pictures that can be packed: the source holds no picture"):
        prepare("folder", tmp_path / "empty", tmp_path / "store", UNLABELLED)
    write_pictures(tmp_path / "bad", "0.png")
    (tmp_path / "bad/0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="train: all images are damaged"):
        prepare("folder", tmp_path / "bad", tmp_path / "store", Packing(labels=False, skip_damaged=True))


def test_counts_are_compared_without_classes_too(tmp_path):
    write_pictures(tmp_path / "tree", "0.png", "1.png")
    prepare("folder", tmp_path / "tree", tmp_path / "store", Packing(labels=False, expect={"train": 2, "test": 0}))
    with pytest.raises(UserError, match="found train 2, wanted 3"):
        prepare("folder", tmp_path / "tree", tmp_path / "store", Packing(labels=False, expect={"train": 3}))


def names_of(store: Path, tree: Path) -> dict[str, set[str]]:
    """The names of the pictures that a store's splits hold, found by their bytes."""
    names = {path.read_bytes(): str(path.relative_to(tree)) for path in tree.rglob("*.png")}
    packed = PackedStore(store)
    return {split: {names[content] for content in encoded(packed, split)} for split in ("train", "test")}


def birds(count: int, begin: int = 0) -> list[str]:
    return [f"{name}/{name}{number}.png" for name in ("ant", "bee") for number in range(begin, begin + count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", ["", "train/"])
def test_a_share_of_class_folders_becomes_the_test_set(tmp_path, kind, inside):
    write_pictures(tmp_path / "tree", *(inside + name for name in birds(30)))
    path = packed_as(kind, tmp_path / "tree", "birds" if kind == "zip" else ".")
    prepare("folder", path, tmp_path / "store", Packing(test_share=0.2))
    store, found = PackedStore(tmp_path / "store"), names_of(tmp_path / "store", tmp_path / "tree" / inside)
    assert store.classes == ["ant", "bee"]
    assert 4 <= len(found["test"]) <= 20 and found["test"].isdisjoint(found["train"])
    assert found["test"] | found["train"] == set(birds(30))
    # The rule of docs/data.md, restated.
    for name in birds(30):
        number = int(hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:16], 16)
        assert (name in found["test"]) == (number / 2**64 < 0.2)
    assert np.bincount(store.test.labels).tolist() == [
        sum(name.startswith(one) for name in found["test"]) for one in store.classes
    ]


def test_added_pictures_move_none_from_one_split_to_the_other(tmp_path):
    tree = tmp_path / "tree"
    write_pictures(tree, *birds(12))
    prepare("folder", tree, tmp_path / "a", Packing(test_share=0.3))
    before = names_of(tmp_path / "a", tree)
    write_pictures(tree, *birds(15, begin=12), *(f"cow/{number}.jpg.png" for number in range(6)))
    prepare("folder", tree, tmp_path / "b", Packing(test_share=0.3))
    after = names_of(tmp_path / "b", tree)
    assert before["train"] < after["train"] and before["test"] < after["test"]


def test_the_chosen_pictures_are_the_same_on_every_machine_and_more_with_a_larger_share():
    chosen = [name for name in birds(20) if falls_to_test(name, 0.2)]
    # By `printf ant/ant0.png | sha256sum`: begins with less than 3333, a fifth of 10000 in hexadecimal.
    assert [name.split("/")[1] for name in chosen] == [
        *("ant0.png", "ant6.png", "ant9.png", "ant14.png"),
        *("bee1.png", "bee3.png", "bee7.png"),
    ]
    assert set(chosen) < {name for name in birds(20) if falls_to_test(name, 0.5)}
    names = [f"été/{number}.png" for number in range(200)]
    for name in names:
        assert falls_to_test(unicodedata.normalize("NFD", name), 0.5) == falls_to_test(name, 0.5)
    assert 70 < sum(falls_to_test(name, 0.5) for name in names) < 130


def test_a_class_of_trains_is_a_class_where_pictures_lie_in_it(tmp_path):
    write_pictures(
        tmp_path / "tree", *(f"{name}/{number}{name}.png" for name in ("train", "car") for number in range(20))
    )
    prepare("folder", tmp_path / "tree", tmp_path / "store", Packing(test_share=0.3))
    assert PackedStore(tmp_path / "store").classes == ["car", "train"]


def test_a_share_that_cannot_be_had_is_told_in_one_line(tmp_path):
    write_tree(tmp_path / "split", {"train": ["ant", "bee"], "valid": ["ant"]})
    alone = next(name for name in (f"cow/{number}.png" for number in range(99)) if falls_to_test(name, 0.2))
    write_pictures(tmp_path / "tree", *birds(20), alone)
    write_pictures(tmp_path / "nested", *(f"images/{name}" for name in birds(20)))
    for tree, share, told in (
        ("split", 0.2, r"has train/ and valid/, .* remove the dataset's key test_share"),
        ("tree", 0.001, "test_share 0.001 makes none of the 41 pictures a test picture"),
        ("tree", 0.2, r"test_share 0\.2 puts all pictures of the class cow \(1\) into the test set: add"),
        (
            "nested",
            0.3,
            "it has one class, images, and in it the folders ant, bee: move them one level up; wanted <class>/",
        ),
    ):
        with pytest.raises(UserError, match=told) as error:
            prepare("folder", tmp_path / tree, tmp_path / "store", Packing(test_share=share))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("test", ["val", "valid", "validation"])
def test_a_validation_set_is_the_test_set_where_there_is_no_other(tmp_path, kind, test, caplog):
    write_tree(tmp_path / "tree", {"train": ["bee", "ant"], test: ["ant"]})
    caplog.set_level("INFO")
    prepare("folder", packed_as(kind, tmp_path / "tree"), tmp_path / "store")
    store = PackedStore(tmp_path / "store")
    assert (len(store.train), len(store.test)) == (6, 3) and f"the test set is {test}/" in caplog.text
    write_tree(tmp_path / "tree", {"test": ["bee"]})
    prepare("folder", packed_as(kind, tmp_path / "tree", "photos"), tmp_path / "other")
    assert PackedStore(tmp_path / "other").test.labels.tolist() == [1, 1, 1]


def test_of_two_validation_sets_the_user_chooses(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["ant", "bee"], "val": ["ant"], "valid": ["ant"]})
    with pytest.raises(UserError, match="has val/ and valid/: rename the one to test on to test/"):
        prepare("folder", tmp_path / "tree", tmp_path / "store")


@pytest.mark.parametrize("packing", [UNLABELLED, Packing(test_share=0.2)])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_without_a_split_cannot_leave_its_folder_either(tmp_path, packing, kind):
    write_pictures(tmp_path / "tree", *birds(10))
    archive = tmp_path / f"t.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.write(tmp_path / "tree/ant/ant0.png", "../escaped.png")
    else:
        tar_of(tmp_path / "tree", archive, top="..")
    with pytest.raises(UserError, match="a path that leaves the archive's folder"):
        prepare("folder", archive, tmp_path / "store", packing)
