"""Parquet files as sources, in the shapes in which the datasets library and others write them."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsup.data import parquet_listing
from selfsup.data.preparing import Packing, prepare
from selfsup.data.splits import falls_to_test
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from trees import write_tree

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["ant", "bee", "cow"]
UNLABELLED = Packing(labels=False)


@pytest.fixture
def pictures(tmp_path) -> list[bytes]:
    """Thirty pictures of differing sizes, as PNG."""
    write_tree(tmp_path / "tree", {"all": ["of them"]}, count=30)
    return [(tmp_path / f"tree/all/of them/{number}.png").read_bytes() for number in range(30)]


def write(
    path: Path, pictures: list[bytes], labels=None, *, features=True, rows=4, image="image", label="label", **more
):
    """Write a file as the datasets library does. rows: in a group."""
    columns = {image: [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(pictures)]}
    known = {image: {"_type": "Image"}}
    if labels is not None:
        columns[label] = labels
        known[label] = {"names": CLASSES, "_type": "ClassLabel"}
    table = pa.table(columns | more)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": known}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def contents(store: PackedStore, split: str = "train") -> list[bytes]:
    images = getattr(store, split)
    return [images.encoded(index).tobytes() for index in range(len(images))]


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-0000{}-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train/000{}.parquet", "plain_text/validation/0000.parquet"),
        ("train.{}.parquet", "val.parquet"),
    ],
)
def test_files_of_the_datasets_library_are_packed_in_their_order(tmp_path, pictures, names):
    labels = [number % 3 for number in range(30)]
    for part, (begin, end) in enumerate([(0, 9), (9, 20)]):
        write(tmp_path / "hub" / names[0].format(part), pictures[begin:end], labels[begin:end])
    write(tmp_path / "hub" / names[1], pictures[20:], labels[20:])
    prepare("parquet", tmp_path / "hub", tmp_path / "store", Packing(cpus=3, expect={"train": 20, "test": 10}))
    store = PackedStore(tmp_path / "store")
    assert store.classes == CLASSES
    assert contents(store) == pictures[:20] and contents(store, "test") == pictures[20:]
    assert store.train.labels.tolist() == labels[:20] and store.test.labels.tolist() == labels[20:]
    assert len(store.statistics["mean"]) == 3


@pytest.mark.parametrize("values", [[7, 3, 12], ["finch", "auk", "été"]])
def test_plain_numbers_and_texts_are_classes_in_their_order(tmp_path, pictures, values):
    labels = [values[number % 3] for number in range(30)]
    write(tmp_path / "hub/train-0.parquet", pictures[:20], labels[:20], features=False)
    write(tmp_path / "hub/test-0.parquet", pictures[20:], labels[20:], features=False)
    prepare("parquet", tmp_path / "hub", tmp_path / "store")
    store = PackedStore(tmp_path / "store")
    assert store.classes == [str(value) for value in sorted(values)]
    assert [store.classes[label] for label in store.train.labels] == list(map(str, labels[:20]))


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("cached", [0, 1 << 28])
def test_groups_of_any_size_give_the_same_store(tmp_path, pictures, rows, cached, monkeypatch):
    monkeypatch.setattr(parquet_listing, "CACHED_BYTES", cached)
    write(tmp_path / "hub/train-0.parquet", pictures, rows=rows)
    wanted = prepare("parquet", tmp_path / "hub", tmp_path / "a", UNLABELLED)
    for name in ("b", "c"):
        assert prepare("parquet", tmp_path / "hub", tmp_path / name, Packing(labels=False, cpus=4)) == wanted
    assert contents(PackedStore(tmp_path / "c")) == pictures


def test_few_groups_of_rows_are_held_at_once(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(parquet_listing, "CACHED_BYTES", 0)
    write(tmp_path / "hub/train-0.parquet", pictures, rows=2)
    groups, held = parquet_listing.RowGroups(), []
    listing = parquet_listing.list_parquet(
        tmp_path / "hub", parquet_listing.Wanted(labels=False), parquet_listing.Columns()
    )
    for picture, content in zip(listing.splits["train"], pictures, strict=True):
        assert groups.read(picture.member, lambda head: None, 12).tobytes() == content
        held.append(len(groups._held))
    assert max(held) == 2


def test_without_classes_all_files_are_for_training_unless_there_is_a_test_set(tmp_path, pictures):
    write(tmp_path / "one.parquet", pictures[:10])
    prepare("parquet", tmp_path / "one.parquet", tmp_path / "a", UNLABELLED)
    store = PackedStore(tmp_path / "a")
    assert contents(store) == pictures[:10] and not store.labelled and store.test is None
    write(tmp_path / "hub/a.parquet", pictures[:10])
    write(tmp_path / "hub/more/b.parquet", pictures[10:20], features=False)
    prepare("parquet", tmp_path / "hub", tmp_path / "b", UNLABELLED)
    assert contents(PackedStore(tmp_path / "b")) == pictures[:20]
    write(tmp_path / "hub/train-0.parquet", pictures[20:])
    write(tmp_path / "hub/test-0.parquet", pictures[:5])
    prepare("parquet", tmp_path / "hub", tmp_path / "c", UNLABELLED)
    assert contents(PackedStore(tmp_path / "c")) == pictures[20:]


def test_a_share_becomes_the_test_set_by_class_and_path_whatever_file_holds_it(tmp_path, pictures):
    labels = [number % 3 for number in range(30)]
    write(tmp_path / "hub/a.parquet", pictures, labels)
    prepare("parquet", tmp_path / "hub", tmp_path / "a", Packing(test_share=0.3))
    tested = [number for number in range(30) if falls_to_test(f"{CLASSES[number % 3]}/{number}.png", 0.3)]
    store = PackedStore(tmp_path / "a")
    assert contents(store, "test") == [pictures[number] for number in tested]
    assert store.test.labels.tolist() == [number % 3 for number in tested]


def test_a_test_set_whose_classes_are_secret_gives_way_to_the_validation_set(tmp_path, pictures):
    """As ImageNet is stored: its test split has -1 for every class."""
    write(tmp_path / "hub/data/train-0.parquet", pictures[:20], [number % 3 for number in range(20)])
    write(tmp_path / "hub/data/test-0.parquet", pictures[20:25], [-1] * 5)
    with pytest.raises(UserError, match="the pictures of test have none of train's classes"):
        prepare("parquet", tmp_path / "hub", tmp_path / "store")
    write(tmp_path / "hub/data/validation-0.parquet", pictures[25:], [0, 1, 2, 0, 1])
    prepare("parquet", tmp_path / "hub", tmp_path / "store")
    assert contents(PackedStore(tmp_path / "store"), "test") == pictures[25:]


def test_rows_that_are_no_pictures_are_told_and_left_out_on_demand(tmp_path, pictures):
    pictures[2], pictures[5] = b"no picture", None
    labels = [0, None, 1, 2, -1, *[number % 3 for number in range(25)]]
    write(tmp_path / "hub/train-0.parquet", pictures, labels)
    write(tmp_path / "hub/test-0.parquet", pictures[6:8], [0, 1])
    with pytest.raises(UserError, match="4 of 32 images cannot be packed"):
        prepare("parquet", tmp_path / "hub", tmp_path / "store")
    lines = (tmp_path / "store/damaged.txt").read_text().splitlines()
    for row, reason in {
        1: "has no class",
        2: "no JPEG, PNG",
        4: "has no class",
        5: "the file does not hold its bytes",
    }.items():
        (line,) = [line for line in lines if f"train-0.parquet#{row}: " in line]
        assert reason in line
    prepare("parquet", tmp_path / "hub", tmp_path / "store", Packing(skip_damaged=True))
    assert PackedStore(tmp_path / "store").skipped == {"train": 4, "test": 0}


def test_a_column_of_bytes_alone_holds_pictures_too(tmp_path, pictures):
    path = tmp_path / "hub/train-0.parquet"
    path.parent.mkdir()
    labels = pa.array([f"class{number % 2}" for number in range(30)]).dictionary_encode()  # as pandas' categories are
    pq.write_table(pa.table({"jpg": pictures, "label": labels}), path)
    prepare("parquet", tmp_path / "hub", tmp_path / "store", Packing(test_share=0.3))
    store = PackedStore(tmp_path / "store")
    assert sorted(contents(store) + contents(store, "test")) == sorted(pictures)
    assert torch.equal(store.train.image(0), PackedStore(tmp_path / "store").train.image(0))


def test_columns_are_chosen_where_the_files_leave_a_choice(tmp_path, pictures):
    """CIFAR-100 has two columns of classes."""
    fine, coarse = [number % 3 for number in range(20)], [number % 2 for number in range(20)]
    kinds = {"image": {"_type": "Image"}, "other": {"_type": "Image"}}
    kinds |= {name: {"names": CLASSES, "_type": "ClassLabel"} for name in ("fine_label", "coarse_label")}
    cells = {
        name: [{"bytes": one, "path": None} for one in pictures[begin : begin + 20]]
        for name, begin in (("image", 0), ("other", 10))
    }
    table = pa.table(cells | {"fine_label": fine, "coarse_label": coarse})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    for split in ("train", "test"):
        (tmp_path / "hub").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"hub/{split}-0.parquet")
    for packing, told in (
        (Packing(), "columns image, other hold pictures .*: set the dataset's key image_column to one"),
        (Packing(image_column="image"), "columns fine_label, coarse_label hold classes.*key label_column to one"),
        (Packing(image_column="fine_label"), "image_column is fine_label, wanted one of image, other of the file's"),
        (Packing(image_column="image", label_column="x"), "label_column is x, wanted one of fine_label, coarse_label"),
    ):
        with pytest.raises(UserError, match=told) as error:
            prepare("parquet", tmp_path / "hub", tmp_path / "store", packing)
        assert len(str(error.value).splitlines()) == 1
    prepare("parquet", tmp_path / "hub", tmp_path / "store", Packing(image_column="other", label_column="coarse_label"))
    store = PackedStore(tmp_path / "store")
    assert contents(store) == pictures[10:30] and store.train.labels.tolist() == coarse


def test_what_is_wrong_with_the_files_is_told_in_one_line(tmp_path, pictures):
    labels = [number % 3 for number in range(10)]
    write(tmp_path / "no split/a.parquet", pictures[:10], labels)
    write(tmp_path / "no test/train-0.parquet", pictures[:10], labels)
    write(tmp_path / "no label/train-0.parquet", pictures[:10])
    for name in ("one", "two"):
        write(tmp_path / f"twice/{name}/train-0.parquet", pictures[:10], labels)
    write(tmp_path / "one class/train-0.parquet", pictures[:10], ["ant"] * 10, features=False)
    write(tmp_path / "one class/test-0.parquet", pictures[:10], ["ant"] * 10, features=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    whole = (tmp_path / "no test/train-0.parquet").read_bytes()
    (tmp_path / "cut/train-0.parquet").write_bytes(whole[: len(whole) // 2])
    for name, told in {
        "no split": r"no split: has no train-\*\.parquet and no folder train/.*test_share: 0\.2.*labels: false",
        "no test": r"has no test-\*\.parquet and no folder test/.*test_share: 0\.2",
        "no label": "none of the columns image holds classes.*labels: false.*label_column",
        "twice": "have files of train each: set the dataset's path to one of them",
        "one class": r"all pictures are of one class, ant\. If one class is on purpose.*\{classes: 1\}",
        "empty": r"holds no \*\.parquet",
        "cut": r"train-0\.parquet: cannot be read as Parquet \(.*\): fetch the file again",
    }.items():
        with pytest.raises(UserError, match=told) as error:
            prepare("parquet", tmp_path / name, tmp_path / "store")
        assert len(str(error.value).splitlines()) == 1, error.value


def test_a_test_set_that_numbers_its_classes_otherwise_is_refused(tmp_path, pictures, monkeypatch):
    write(tmp_path / "hub/train-0.parquet", pictures[:20], [number % 3 for number in range(20)])
    monkeypatch.setattr(sys.modules[__name__], "CLASSES", ["bee", "ant", "cow"])
    write(tmp_path / "hub/test-0.parquet", pictures[20:], [number % 3 for number in range(10)])
    with pytest.raises(UserError, match=r"test-0\.parquet and train-0\.parquet name their classes differently"):
        prepare("parquet", tmp_path / "hub", tmp_path / "store")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files that are open are known on Linux")
def test_no_file_is_left_open(tmp_path, pictures):
    for number in range(10):
        write(tmp_path / f"hub/{number}.parquet", pictures[number : number + 1])
    listing = parquet_listing.list_parquet(
        tmp_path / "hub", parquet_listing.Wanted(labels=False), parquet_listing.Columns()
    )
    assert len(listing.splits["train"]) == 10
    open_now = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [path for path in open_now if path.startswith(f"{tmp_path}/hub")]


def test_a_kill_costs_no_picture_that_was_packed(tmp_path, pictures, monkeypatch):
    write(tmp_path / "hub/a.parquet", pictures)
    wanted = prepare("parquet", tmp_path / "hub", tmp_path / "a", UNLABELLED)
    bad = [*pictures[:29], b"no picture"]
    write(tmp_path / "hub/b.parquet", bad[29:])
    with pytest.raises(UserError, match="1 of 31"):
        prepare("parquet", tmp_path / "hub", tmp_path / "b", UNLABELLED)
    (tmp_path / "hub/b.parquet").unlink()
    monkeypatch.setattr(parquet_listing.RowGroups, "read", None)  # would fail, were it called
    assert prepare("parquet", tmp_path / "hub", tmp_path / "b", UNLABELLED) == wanted


def test_a_missing_library_is_told_with_how_to_get_it(tmp_path, pictures, monkeypatch):
    write(tmp_path / "hub/a.parquet", pictures)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="read with pyarrow, which is not installed: pip install pyarrow"):
        prepare("parquet", tmp_path / "hub", tmp_path / "store", UNLABELLED)


def test_the_mean_of_parquet_files_is_that_of_the_same_pictures_in_a_folder(tmp_path, pictures):
    write(tmp_path / "hub/a.parquet", pictures)
    prepare("parquet", tmp_path / "hub", tmp_path / "a", UNLABELLED)
    prepare("folder", tmp_path / "tree", tmp_path / "b", UNLABELLED)
    assert PackedStore(tmp_path / "a").statistics == PackedStore(tmp_path / "b").statistics
    assert np.all(np.array(PackedStore(tmp_path / "a").statistics["std"]) > 0.2)
