"""Sources: the same pictures give the same store, however they are kept; numbers of images are checked."""

import lzma
import os
import tarfile

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision.io import encode_jpeg

from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from trees import add_file, tar_of, write_tree

ANY = Packing(expect=None)


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["bee", "ant"], "test": ["ant"]})
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("name", "mode", "top"),
    [("t.tar", "w", "."), ("t.tar.gz", "w:gz", "images"), ("t.tar.xz", "w:xz", "."), ("t.tar.bz2", "w:bz2", "images")],
)
def test_a_tar_of_a_tree_gives_the_store_of_the_tree(tmp_path, tree, name, mode, top):
    wanted = prepare("folder", tree, tmp_path / "a")
    assert prepare("folder", tar_of(tree, tmp_path / name, mode, top), tmp_path / "b") == wanted
    for file in (tmp_path / "a").glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in (tmp_path / "a").iterdir()
    )


def test_links_in_a_tar_are_followed_within_it(tmp_path, tree):
    wanted = prepare("folder", tree, tmp_path / "a")
    other = (tree / "test/ant/2.png").read_bytes()
    (tree / "test/ant/2.png").unlink()
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere/2.png").write_bytes(other)
    (tree / "test/ant/2.png").symlink_to("../../elsewhere/2.png")
    assert prepare("folder", tree, tmp_path / "b") == wanted
    assert prepare("folder", tar_of(tree, tmp_path / "t.tar"), tmp_path / "c") == wanted


def test_pictures_in_folders_within_a_class_belong_to_it(tmp_path, tree):
    wanted = prepare("folder", tree, tmp_path / "a")
    (tree / "train/bee/more").mkdir()
    os.rename(tree / "train/bee/2.png", tree / "train/bee/more/2.png")
    (tree / "train/bee/.thumbnails").mkdir()
    (tree / "train/bee/._0.png").write_bytes(b"what macOS leaves")
    assert prepare("folder", tree, tmp_path / "b") == wanted


def test_any_number_of_cores_packs_the_same(tmp_path, tree):
    prepare("folder", tree, tmp_path / "a")
    prepare("folder", tree, tmp_path / "b", Packing(cpus=5))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def write_official(tree, folder):
    """The official archives of a train/ val/ tree whose validation images are numbered across classes."""
    folder.mkdir()
    classes = sorted(path.name for path in (tree / "train").iterdir())
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for name in reversed(classes):
            tar_of(tree / "train" / name, folder / f"{name}.tar")
            content = (folder / f"{name}.tar").read_bytes()
            add_file(outer, f"{name}.tar", content)
            (folder / f"{name}.tar").unlink()
    ids = {name: 2 * number + 1 for number, name in enumerate(classes)}  # in between: groups of classes
    tests = sorted((path for path in (tree / "val").rglob("*.JPEG")), key=lambda path: path.name)
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in tests:
            tar.add(path, path.name)
    synsets = [(ids[name], name, "words", "gloss", 0, 0) for name in classes] + [(2, "n99", "group", "gloss", 2, 0)]
    kind = [("ILSVRC2012_ID", "f8"), *((key, object) for key in ("WNID", "words", "gloss"))]
    kind += [("num_children", "f8"), ("wordnet_height", "f8")]
    savemat(folder / "meta.mat", {"synsets": np.array(synsets, dtype=kind)})
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
        kit.add(folder / "meta.mat", "ILSVRC2012_devkit_t12/data/meta.mat")
        truth = "".join(f"{ids[path.parent.name]}\n" for path in tests)
        add_file(kit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    (folder / "meta.mat").unlink()
    return folder


@pytest.fixture
def imagenet_tree(tmp_path):
    """Three classes; the validation images' numbers go through the classes in turn, as ImageNet's do."""
    root, classes = tmp_path / "imagenet", ["n01", "n02", "n05"]
    write_tree(root, {"train": classes, "val": classes}, encode_jpeg, "JPEG")
    for label, name in enumerate(classes):
        for number in range(3):
            new = f"ILSVRC2012_val_{3 * number + (label + 1) % 3 + 1:08d}.JPEG"
            os.rename(root / "val" / name / f"{number}.JPEG", root / "val" / name / new)
    return root


def test_the_official_archives_give_the_store_of_the_class_folder_tree(tmp_path, imagenet_tree):
    wanted = prepare("imagenet", imagenet_tree, tmp_path / "a", ANY)
    official = write_official(imagenet_tree, tmp_path / "official")
    assert prepare("imagenet", official, tmp_path / "b", ANY) == wanted
    store = PackedStore(tmp_path / "b")
    assert store.classes == ["n01", "n02", "n05"] and store.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(store.test.image(4), PackedStore(tmp_path / "a").test.image(4))


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_an_official_archive_that_is_missing_or_cut_short_is_named(tmp_path, imagenet_tree, name):
    official = write_official(imagenet_tree, tmp_path / "official")
    content = (official / name).read_bytes()
    for length in (len(content) // 2, len(content) // 1024 * 512 + 100, 0):
        (official / name).write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{name}.* fetch") as told:
            prepare("imagenet", official, tmp_path / "store", ANY)
        assert len(str(told.value).splitlines()) == 1
    (official / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        prepare("imagenet", official, tmp_path / "store", ANY)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [("cifar10", "50,000; test 3, wanted 10,000; classes 2, wanted 10"), ("imagenet", "1,281,167")],
)
def test_a_source_that_is_not_whole_is_refused_before_it_is_read(tmp_path, tree, source, wanted):
    (tree / "test").rename(tree / ("val" if source == "imagenet" else "test"))
    (tree / "train/ant/0.png").write_bytes(b"would be told, were it read")
    with pytest.raises(UserError, match=f"found train 6, wanted {wanted}.* the dataset's key expect"):
        prepare(source, tree, tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()


def test_the_expected_numbers_can_be_the_users_own(tmp_path, tree):
    prepare("cifar10", tree, tmp_path / "store", Packing(expect={"train": 6, "test": 3, "classes": 2}))
    with pytest.raises(UserError, match="found test 3, wanted 4: the source is incomplete"):
        prepare("folder", tree, tmp_path / "store", Packing(expect={"train": 6, "test": 4}))


def test_a_damaged_archive_is_named(tmp_path, tree):
    content = tar_of(tree, tmp_path / "whole.tar.xz", "w:xz").read_bytes()
    flipped = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    for number, damaged in enumerate([content[: len(content) // 2], flipped]):
        archive = tmp_path / f"{number}.tar.xz"
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{number}\.tar\.xz: cannot be unpacked .*: fetch the archive again"):
            prepare("folder", archive, tmp_path / "store")
    short = tmp_path / "short.tar.xz"
    short.write_bytes(lzma.compress(lzma.decompress(content)[:3000]))
    with pytest.raises(UserError, match="fetch the archive again"):
        prepare("folder", short, tmp_path / "store")


def test_a_resized_store_says_so_and_keeps_what_is_small(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["ant", "bee"], "test": ["ant"]}, count=12)
    plain = prepare("folder", tmp_path / "tree", tmp_path / "a")
    assert prepare("folder", tmp_path / "tree", tmp_path / "b", Packing(resize=12)) != plain
    whole, resized = PackedStore(tmp_path / "a"), PackedStore(tmp_path / "b")
    assert whole.resize is None and whole.remarks() == []
    assert resized.resize == 12 and resized.remarks() == ["images packed with shorter side 12"]
    assert 0 < (whole.train.sizes.min(1) > 12).sum() < 24
    for index, (before, after) in enumerate(zip(whole.train.sizes, resized.train.sizes, strict=True)):
        assert tuple(after) == tuple(resized.train.image(index).shape[1:])
        if before.min() <= 12:
            assert np.array_equal(whole.train.encoded(index), resized.train.encoded(index))
        else:
            assert after.min() == 12 and after.max() == before.max() * 12 // before.min()
