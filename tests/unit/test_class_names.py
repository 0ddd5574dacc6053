"""Classes: names in any letters, a class however it is spelled, and one class that is none."""

import os
import subprocess
import sys
import tarfile
import unicodedata

import pytest

from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from trees import tar_of, write_tree

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
LATIN = os.fsdecode(b"\xe9t\xe9")  # the same word as an old zip or a Windows share leaves it


def tree_of(root, train, test):
    write_tree(root, {"train": train, "test": test})
    return root


def test_a_class_whose_name_is_no_utf_8_is_packed_and_named(tmp_path):
    tree = tree_of(tmp_path / "tree", ["ant", LATIN], ["ant", LATIN])
    wanted = prepare("folder", tree, tmp_path / "a")
    store = PackedStore(tmp_path / "a")
    assert store.classes == ["ant", r"\xe9t\xe9"] and store.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert prepare("folder", tar_of(tree, tmp_path / "t.tar"), tmp_path / "b") == wanted
    assert prepare("folder", tree, tmp_path / "a") == wanted


def test_mistakes_and_damage_in_such_a_folder_are_told(tmp_path):
    tree = tree_of(tmp_path / "tree", ["ant", "bee"], ["ant", LATIN])
    with pytest.raises(UserError, match=r"test/\\xe9t\\xe9: no such class in train/"):
        prepare("folder", tree, tmp_path / "store")
    tree_of(tree, [LATIN], [])
    with open(os.fsencode(tree) + b"/train/\xe9t\xe9/0.png", "wb") as file:
        file.write(b"nothing")
    with pytest.raises(UserError, match=r"train/\\xe9t\\xe9/0\.png: cannot be read as an image"):
        prepare("folder", tree, tmp_path / "store")
    assert r"\xe9t\xe9/0.png: cannot" in (tmp_path / "store/damaged.txt").read_text()


PACK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from selfsup.data.preparing import prepare
print(*[prepare("folder", Path(tree), Path(output)) for tree, output in zip(sys.argv[2::2], sys.argv[3::2])])
"""


@pytest.mark.long
def test_a_locale_of_other_letters_changes_no_class(tmp_path, repository):
    tree = tree_of(tmp_path / "tree", ["ant", "日本", COMPOSED], ["ant", COMPOSED])
    tar, packed = tar_of(tree, tmp_path / "t.tar"), {kind: tmp_path / kind for kind in ("folder", "tar")}
    wanted = [prepare("folder", one, tmp_path / f"here{number}") for number, one in enumerate((tree, tar))]
    command = [sys.executable, "-X", "utf8=0", "-c", PACK, repository / "workflow/scripts"]
    command += [tree, packed["folder"], tar, packed["tar"]]
    environment = os.environ | {"LC_ALL": "en_US.ISO-8859-1", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().split()[-2:] == wanted
    assert all(PackedStore(path).classes == ["ant", COMPOSED, "日本"] for path in packed.values())


@pytest.mark.parametrize("spellings", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_class_that_train_and_test_spell_in_other_bytes_is_one(tmp_path, spellings, kind):
    train, test = spellings
    tree = tree_of(tmp_path / "tree", ["ant", train], ["ant", test])
    prepare("folder", tree if kind == "folder" else tar_of(tree, tmp_path / "t.tar"), tmp_path / "store")
    store = PackedStore(tmp_path / "store")
    assert store.classes == sorted(["ant", train])
    label = store.classes.index(train)
    assert sorted(store.test.labels) == [0, 0, 0, 1, 1, 1] and (store.test.labels == label).sum() == 3
    (tree / "test" / test / "0.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="1 of 12 images"):
        prepare("folder", tree, tmp_path / "store")


def test_two_folders_of_a_split_that_spell_one_class_are_told(tmp_path):
    tree = tree_of(tmp_path / "tree", ["ant", COMPOSED, DECOMPOSED], ["ant"])
    with pytest.raises(UserError, match=f"train/{COMPOSED}: 2 folders with names that look alike .*: make them one"):
        prepare("folder", tree, tmp_path / "store")


def nested(root, depth):
    """A tree of two classes with so many folders between train or test and them."""
    for split in ("train", "test"):
        inner = root.joinpath(split, *("images", "jpg")[:depth])
        write_tree(inner, {".": ["ant", "bee"]})
    return root


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_one_class_is_refused_with_what_lies_in_it(tmp_path, kind):
    for depth, found in (
        (1, "the folders ant, bee: move them one level up"),
        (2, "the folders jpg: move them one level up"),
    ):
        tree = nested(tmp_path / f"tree{depth}", depth)
        path = tree if kind == "folder" else tar_of(tree, tmp_path / f"{depth}.tar")
        with pytest.raises(UserError, match=f"train/ has one class, images, and in it {found}, in both splits; wanted"):
            prepare("folder", path, tmp_path / "store")
        assert not (tmp_path / "store/store.json").exists()
    prepare("folder", nested(tmp_path / "right", 0), tmp_path / "store")


def test_one_class_is_packed_on_purpose_and_every_table_says_so(tmp_path):
    tree = tree_of(tmp_path / "tree", ["ant"], ["ant"])
    for expect in ("known", None, {"train": 3}):
        with pytest.raises(UserError, match=r"one class, ant, and in it 3 images, no folder; .* \{classes: 1\}"):
            prepare("folder", tree, tmp_path / "store", Packing(expect=expect))
    prepare("folder", tree, tmp_path / "store", Packing(expect={"classes": 1}))
    assert PackedStore(tmp_path / "store").remarks() == ["one class: every top-1 is 100 %"]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tree, ".")
    prepare("folder", tmp_path / "t.tar", tmp_path / "store", Packing(expect={"classes": 1}))
