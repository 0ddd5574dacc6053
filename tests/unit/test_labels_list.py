"""Lists of file names whose labels are used, as SimCLR's authors publish them, and the names that a store keeps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from frozen import judged_of
from runs import TINY_TUNING, fine_tuning
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation import record
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.evaluation.subsets import LabelledImages, listed_images
from selfsup.protocols import read_evaluation
from selfsup.settings.typed import read
from trees import write_tree

CLASSES = ["n01", "n02", "n03"]


def tree(folder, count=14):
    """A tree whose files are named as ImageNet's are, n01_7.png."""
    write_tree(folder, {"train": CLASSES, "test": CLASSES}, count=count)
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    return folder


@pytest.fixture
def store(tmp_path) -> PackedStore:
    prepare("folder", tree(tmp_path / "tree"), tmp_path / "store")
    return PackedStore(tmp_path / "store")


def settings_of(tmp_path, lines, **changes) -> FineTuneSettings:
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
    given = {**TINY_TUNING, "labels": 50, "labels_list": str(tmp_path / "list.txt"), **changes}
    return read(FineTuneSettings, given, "a protocol")


LISTED = [f"{name}_{number}.png" for name in CLASSES for number in range(1, 14, 2)]  # half of 42


def test_a_store_keeps_the_names_of_its_files_and_its_fingerprint(store, tmp_path, monkeypatch):
    names = store.train.names()
    assert names[:2] == ["train/n01/n01_0.png", "train/n01/n01_1.png"] and len(names) == len(store.train) == 42
    whole = StoreWriter.add_encoded

    def without_names(self, *given, names=None, **named):
        whole(self, *given, **named)

    monkeypatch.setattr(StoreWriter, "add_encoded", without_names)
    assert prepare("folder", tmp_path / "tree", tmp_path / "older") == store.fingerprint
    older = PackedStore(tmp_path / "older")
    with pytest.raises(PermanentError, match=r"older: does not know its images' file names .* pack it again") as error:
        older.train.names()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("held_out_of", ["share", "rest"])
def test_the_listed_images_labels_are_used_and_no_others(store, tiny_recipe, tmp_path, held_out_of):
    settings = settings_of(tmp_path, LISTED, held_out_of=held_out_of)
    task = fine_tuning(judged_of(tiny_recipe, store).encoder, store, tiny_recipe, settings)
    names, images = store.train.names(), task.images
    assert sorted(names[place].rpartition("/")[2] for place in images.share) == sorted(LISTED)
    assert len(images.held_out) == 8 and not set(images.tried) & set(images.held_out)
    assert (set(images.held_out) <= set(images.share)) == (held_out_of == "share")
    drawn = LabelledImages.of(store.train.labels, read(FineTuneSettings, {**TINY_TUNING, "labels": 50}, "a protocol"))
    assert set(drawn.share) != set(images.share)
    assert "the labels of list.txt" in task.settings.in_words(tiny_recipe)


def test_paths_and_windows_lines_are_read_and_a_name_that_stands_twice_is_not_guessed(tmp_path):
    for path in tree(tmp_path / "tree", 4).rglob("*.png"):  # 0.png in every class
        path.rename(path.with_name(path.name.partition("_")[2]))
    prepare("folder", tmp_path / "tree", tmp_path / "store", Packing(expect=None))
    store = PackedStore(tmp_path / "store")
    paths = ["n01/0.png\r", "", "train/n02/3.png", *(f"n03/{number}.png" for number in range(4))]
    assert listed_images(store, settings_of(tmp_path, paths)).tolist() == [0, 7, 8, 9, 10, 11]
    with pytest.raises(
        PermanentError, match=r"list\.txt: 0\.png is 3 times in the training set of .*: give paths, class/name"
    ):
        listed_images(store, settings_of(tmp_path, ["0.png"]))


def test_lists_that_do_not_fit_are_told_in_a_line(store, tmp_path):
    for lines, labels, words in (
        ([*LISTED[:-1], "n09_1.png"], 50, r"list\.txt: n09_1\.png is not in the training set of .*store"),
        (LISTED, 10, r"labels is 10 %, but labels_list .*list\.txt names 21 of 42 training images: set labels to 50"),
        (LISTED, 100, "labels is 100, but labels_list names only some of the images"),
    ):
        with pytest.raises(UserError, match=words) as error:
            listed_images(store, settings_of(tmp_path, lines, labels=labels))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"labels_list is nowhere\.txt, which is no file"):
        read(FineTuneSettings, {**TINY_TUNING, "labels_list": "nowhere.txt"}, "a protocol")


def test_results_are_of_the_lists_content(store, tiny_recipe, tmp_path):
    def identity(lines):
        settings = settings_of(tmp_path, lines)
        evaluation = read_evaluation("mine", "fine_tune", settings, "tiny")
        return record.identity(evaluation, tiny_recipe, 0, tmp_path / "encoder", store.folder, tmp_path / "results")

    one, other = identity(LISTED), identity(LISTED[::-1])
    assert one != other and {**one, "labels_list": ""} == {**other, "labels_list": ""}
    assert json.dumps(one) and len(one["labels_list"]) == 64


def test_as_many_as_in_the_published_lists_are_one_percent(tmp_path):
    """12,811 of 1,281,167 are less than a hundredth."""
    settings = settings_of(tmp_path, [], labels=1, held_out=10009, held_out_of="rest")
    labels, listed = np.arange(1_281_167) % 1000, np.arange(0, 1_281_100, 100)
    found = LabelledImages.of(labels, settings, listed)
    assert len(found.share) == 12811 and set(found.share) == set(listed) and not set(found.held_out) & set(listed)


class _Named(list):
    def names(self) -> list[str]:
        return list(self)


@pytest.mark.parametrize(("count", "fits"), [(495, True), (505, True), (494, False), (506, False)])
def test_a_list_may_differ_from_the_share_by_a_hundredth(tmp_path, count, fits):
    """ImageNet's list of 1 % has 12,811 names."""
    names = [f"n01/{number}.png" for number in range(1000)]
    settings = settings_of(tmp_path, names[:count])
    listed = SimpleNamespace(train=_Named(names), folder=tmp_path)
    if fits:
        assert len(listed_images(listed, settings)) == count
    else:
        with pytest.raises(PermanentError, match=rf"names {count} of 1,000 training images: set labels to"):
            listed_images(listed, settings)


def test_all_images_without_a_label_may_be_held_out(tmp_path):
    labels = np.arange(10) % 2
    for held_out, fits in ((5, True), (6, False)):
        settings = settings_of(tmp_path, [], held_out=held_out, held_out_of="rest", labels_list=None)
        if fits:
            assert len(LabelledImages.of(labels, settings).held_out) == held_out
        else:
            with pytest.raises(PermanentError, match="held_out is 6, but only 5 of 10 training images are not among"):
                LabelledImages.of(labels, settings)
