import io
import multiprocessing
import os
import pickle
import signal
import tarfile

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10
from torchvision.io import encode_jpeg

from selfsup.data import loader
from selfsup.data.loader import CPU, Batches, ViewMaker
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.errors import UserError
from trees import write_tree


def test_digits_are_1437_and_360_real_images_of_ten_classes(tmp_path):
    fingerprint = prepare("digits", None, tmp_path / "digits")
    store = PackedStore(tmp_path / "digits")
    assert (len(store.train), len(store.test), len(store.classes)) == (1437, 360, 10)
    assert np.bincount(store.test.labels).tolist() == pytest.approx([36] * 10, abs=1)
    image = store.train.image(0)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert torch.equal(image[0], image[1]) and image.max() > 200
    assert prepare("digits", None, tmp_path / "again") == fingerprint


def test_a_class_folder_tree_comes_back_bit_for_bit(tmp_path):
    pictures = write_tree(tmp_path / "tree", {"train": ["bee", "ant"], "test": ["ant"]})
    prepare("folder", tmp_path / "tree", tmp_path / "store")
    store = PackedStore(tmp_path / "store")
    assert store.classes == ["ant", "bee"]
    assert store.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and store.test.labels.tolist() == [0, 0, 0]
    for index, (name, number) in enumerate([(name, number) for name in ("ant", "bee") for number in range(3)]):
        assert torch.equal(store.train.image(index), pictures["train", name, number])
        assert tuple(store.train.sizes[index]) == pictures["train", name, number].shape[1:]


def test_grey_jpegs_are_read_as_rgb_and_imagenet_tests_on_val(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["n01", "n02"], "val": ["n01", "n02"]}, encode_jpeg, "JPEG")
    grey = encode_jpeg(torch.full((1, 9, 11), 77, dtype=torch.uint8))
    (tmp_path / "tree/val/n02/0.JPEG").write_bytes(bytes(grey.numpy()))
    prepare("imagenet", tmp_path / "tree", tmp_path / "store", Packing(expect=None))
    image = PackedStore(tmp_path / "store").test.image(3)
    assert image.shape == (3, 9, 11) and (image.float() - 77).abs().max() <= 1


def test_a_broken_or_foreign_cifar10_is_named(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"not an archive")
    with pytest.raises(UserError, match="neither a tar nor a zip"):
        prepare("cifar10", archive, tmp_path / "store")
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="no intact CIFAR-10 here"):
        prepare("cifar10", archive, tmp_path / "store")


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../../escaped")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match=r"\.\./\.\./escaped: a path that leaves the archive's folder"):
        prepare("cifar10", archive, tmp_path / "data" / "store")
    assert not list(tmp_path.rglob("escaped"))


def test_cifar10_in_torchvisions_layout_is_packed_whole(tmp_path, monkeypatch):
    """The real archive's layout with 7 images a file; torchvision's checksums are replaced by this archive's."""
    random, batches = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        batches[name] = {"data": random.integers(0, 256, (7, 3072), np.uint8), "labels": list(range(7))}
    contents = {**batches, "batches.meta": {"label_names": [f"class{number}" for number in range(10)]}}
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents.items():
            data = pickle.dumps(content)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{number}", None] for number in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    with pytest.raises(UserError, match="found train 35, wanted 50,000; test 7, wanted 10,000"):
        prepare("cifar10", archive, tmp_path / "store")
    prepare("cifar10", archive, tmp_path / "store", Packing(expect=None))
    store = PackedStore(tmp_path / "store")
    assert (len(store.train), len(store.test)) == (35, 7)
    assert np.array_equal(store.train.image(8).numpy(), batches["data_batch_2"]["data"][1].reshape(3, 32, 32))
    assert store.classes[3] == "class3"


def test_a_store_without_its_last_file_or_with_a_short_one_is_refused(tmp_path, tiny_store):
    writer = StoreWriter(tmp_path, ["ant"])
    writer.write_raw("train", np.zeros((4, 3, 2, 2), np.uint8), np.zeros(4))
    with pytest.raises(UserError, match="no prepared dataset here"):
        PackedStore(tmp_path)
    writer.write_raw("test", np.zeros((4, 3, 2, 2), np.uint8), np.zeros(4))
    writer.finish()
    PackedStore(tmp_path)
    with open(tmp_path / "train_images.npy", "r+b") as file:
        file.truncate(150)
    with pytest.raises(UserError, match=r"train_images\.npy: found 150, wanted \d+ bytes"):
        PackedStore(tmp_path)


def test_the_fingerprint_follows_every_pixel_and_label(tmp_path):
    fingerprints = set()
    for number, (pixel, label) in enumerate([(0, 0), (1, 0), (0, 1)]):
        writer = StoreWriter(tmp_path / str(number), ["ant", "bee"])
        images, labels = np.zeros((2, 3, 2, 2), np.uint8), np.zeros(2, np.int64)
        images[1, 2, 1, 1], labels[1] = pixel, label
        writer.write_raw("train", images, labels)
        writer.write_raw("test", images * 0, labels * 0)
        fingerprints.add(writer.finish())
    assert len(fingerprints) == 3


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_each_global_batch_and_see_what_one_would(tiny_store, tiny_recipe, ranks):
    alone = Batches(tiny_store.train, tiny_recipe, seed=0, stage="pretrain")
    parts = [
        Batches(tiny_store.train, tiny_recipe, seed=0, stage="pretrain", rank=r, world_size=ranks) for r in range(ranks)
    ]
    make_views = ViewMaker(tiny_store.train, tiny_recipe, CPU)
    for step in (0, 6):
        whole, shared = alone[step], [part[step] for part in parts]
        assert np.array_equal(np.concatenate([batch.indices for batch in shared]), whole.indices)
        for together, parts_views in zip(make_views(whole), zip(*map(make_views, shared), strict=True), strict=True):
            assert torch.equal(torch.cat(parts_views), together)


def test_an_epoch_shows_whole_batches_of_different_images(tiny_store, tiny_recipe):
    batches = Batches(tiny_store.train, tiny_recipe, seed=0, stage="pretrain")
    assert batches.steps_per_epoch == 5  # 43 images in batches of 8
    seen = np.concatenate([batches.global_indices(step)[1] for step in range(5)])
    assert len(set(seen)) == 40
    assert [batches.global_indices(step)[0] for step in (4, 5)] == [0, 1]
    assert not np.array_equal(batches.global_indices(0)[1], batches.global_indices(5)[1])


@pytest.fixture
def encoded_store(tmp_path) -> PackedStore:
    write_tree(tmp_path / "tree", {"train": ["ant", "bee", "cat", "dog"], "test": ["ant"]})
    prepare("folder", tmp_path / "tree", tmp_path / "store")
    return PackedStore(tmp_path / "store")


def test_images_of_one_size_are_carried_only_where_the_device_cannot_hold_them(tiny_store, tiny_recipe, monkeypatch):
    """The views are the same; a GPU too small for all images gets each batch's."""
    make_views = ViewMaker(tiny_store.train, tiny_recipe, CPU)
    resident = Batches(tiny_store.train, tiny_recipe, seed=0, stage="pretrain")[2]
    monkeypatch.setattr(loader, "fits_on", lambda device, split: False)
    carried = Batches(tiny_store.train, tiny_recipe, seed=0, stage="pretrain")[2]
    assert resident.pictures is None and carried.pictures.dtype == torch.uint8
    assert all(map(torch.equal, make_views(resident), make_views(carried)))


@pytest.mark.parametrize("store", ["tiny_store", "encoded_store"])
def test_loader_workers_change_nothing(store, tiny_recipe, request):
    split = request.getfixturevalue(store).train
    batches, make_views = Batches(split, tiny_recipe, seed=0, stage="pretrain"), ViewMaker(split, tiny_recipe, CPU)
    for alone, helped in zip(
        batches.read(3, 9, workers=0, pin_memory=False), batches.read(3, 9, workers=2, pin_memory=False), strict=True
    ):
        assert alone.step == helped.step and np.array_equal(alone.indices, helped.indices)
        assert all(torch.equal(a, b) for a, b in zip(make_views(alone), make_views(helped), strict=True))


def test_a_short_last_batch_is_shared_without_loss(tiny_store, tiny_recipe):
    recipe = {**tiny_recipe, "linear": {**tiny_recipe["linear"], "drop_last": False}}
    parts = [Batches(tiny_store.train, recipe, seed=0, stage="linear", rank=rank, world_size=2) for rank in range(2)]
    assert parts[0].steps_per_epoch == 6
    last = [part[5] for part in parts]
    assert [len(batch.indices) for batch in last] == [2, 1] and last[0].total == 3


def test_loader_workers_outlive_a_request_to_stop(tiny_store, tiny_recipe):
    """Slurm signals all processes of a job; the main one saves, and needs its workers until then."""
    batches = Batches(tiny_store.train, tiny_recipe, seed=0, stage="pretrain")
    reading = batches.read(0, 12, workers=2, pin_memory=False)
    next(reading), next(reading)  # one of each worker: both are past their start
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
    assert [batch.step for batch in reading] == list(range(2, 12))
