"""Packing: what a kill leaves is used again, a half store never looks whole, all damaged images are told at once."""

import io
import json
import os
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import encode_jpeg, encode_png

from many_ranks import forking
from selfsup.data import packing
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore, decode, decoded_size
from selfsup.errors import UserError
from trees import add_file, tar_of, write_tree
from workflows import wait_until

COUNT = 40  # of each of the four class folders


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["ant", "bee", "cat"], "test": ["ant"]}, count=COUNT)
    return tmp_path / "tree"


@pytest.fixture
def reads(monkeypatch):
    """The names of the images that are read, in any order."""
    names, read = [], packing.Reader.read

    def noted(self, member):
        names.append(member.name)
        return read(self, member)

    monkeypatch.setattr(packing.Reader, "read", noted)
    return names


class Killed(BaseException):
    pass


@contextmanager
def killed_after(count: int):
    """In this context a packing ends, as by a kill, when so many images are safe: nothing more reaches the disk."""
    append, left = packing.ImagesFile.append, [count]

    def mortal(self, name, checked):
        if not left[0]:
            raise Killed
        left[0] -= 1
        append(self, name, checked)
        self.commit()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(packing.ImagesFile, "append", mortal)
        yield


@pytest.mark.parametrize("count", [1, 50, 130])
def test_a_packing_that_was_killed_goes_on_to_the_same_files(tmp_path, tree, reads, count):
    wanted = prepare("folder", tree, tmp_path / "a")
    with killed_after(count):
        prepare("folder", tree, tmp_path / "b")
    with pytest.raises(UserError, match="no prepared dataset here"):
        PackedStore(tmp_path / "b")
    reads.clear()
    assert prepare("folder", tree, tmp_path / "b") == wanted
    assert len(reads) == 4 * COUNT - count
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def pack_slowly(tree: Path, folder: Path) -> None:
    """In a process of its own: pack, and come to a halt at the ninetieth picture."""
    packing.COMMIT_S, read, left = 0.02, packing.Reader.read, [90]

    def read_slowly(self, member):
        left[0] -= 1
        time.sleep(0.01 if left[0] > 0 else 600)  # whoever is to kill it may come late
        return read(self, member)

    packing.Reader.read = read_slowly
    prepare("folder", tree, folder)


def test_sigkill_at_any_moment_costs_seconds_at_most(tmp_path, tree, reads):
    wanted = prepare("folder", tree, tmp_path / "a")
    journal = tmp_path / "b/packing/train_journal.jsonl"
    for lines in (10, 60):
        process = forking().Process(target=pack_slowly, args=(tree, tmp_path / "b"))
        process.start()
        wait_until(lambda: journal.exists() and journal.read_text().count("\n") > lines, f"{lines} images")  # noqa: B023
        process.kill()
        process.join()
        assert not (tmp_path / "b/store.json").exists()
    reads.clear()
    assert prepare("folder", tree, tmp_path / "b") == wanted
    assert 0 < len(reads) < 4 * COUNT - 60


def test_a_journal_cut_in_a_line_or_ahead_of_its_file_is_believed_only_so_far(tmp_path, tree, reads):
    wanted = prepare("folder", tree, tmp_path / "a")
    with killed_after(50):
        prepare("folder", tree, tmp_path / "b")
    work = tmp_path / "b/packing"
    with open(work / "train_images.npy", "r+b") as file:  # a machine that lost its power: the newest bytes are gone
        file.truncate(file.seek(0, os.SEEK_END) - 10)
    text = (work / "train_journal.jsonl").read_text()
    (work / "train_journal.jsonl").write_text(text + '["train/bee/9.png", [12')
    reads.clear()
    assert prepare("folder", tree, tmp_path / "b") == wanted
    assert len(reads) == 4 * COUNT - 49


def test_what_has_changed_since_the_kill_is_read_again(tmp_path, tree, reads):
    with killed_after(50):
        prepare("folder", tree, tmp_path / "b")
    new = torch.full((3, 9, 9), 200, dtype=torch.uint8)
    (tree / "train/ant/0.png").write_bytes(bytes(encode_png(new).numpy()))
    (tree / "train/ant/1.png").unlink()
    reads.clear()
    fingerprint = prepare("folder", tree, tmp_path / "b")
    assert len(reads) == 4 * COUNT - 49 and torch.equal(PackedStore(tmp_path / "b").train.image(0), new)
    assert fingerprint == prepare("folder", tree, tmp_path / "fresh")
    with killed_after(50):  # another resize is another packing
        prepare("folder", tree, tmp_path / "c")
    assert prepare("folder", tree, tmp_path / "c", Packing(resize=10)) == prepare(
        "folder", tree, tmp_path / "d", Packing(resize=10)
    )


def test_a_store_in_use_is_replaced_whole_and_its_readers_keep_what_they_have(tmp_path, tree):
    prepare("folder", tree, tmp_path / "store")
    old = PackedStore(tmp_path / "store")
    before = old.train.image(5)
    for path in (tree / "train/ant").iterdir():
        path.unlink()
    (tree / "train/ant/0.png").write_bytes(bytes(encode_png(torch.zeros(3, 40, 40, dtype=torch.uint8)).numpy()))
    prepare("folder", tree, tmp_path / "store")
    assert torch.equal(old.train.image(5), before)
    assert len(PackedStore(tmp_path / "store").train) == 2 * COUNT + 1


def test_two_packings_do_not_write_one_store(tmp_path, tree):
    process = forking().Process(target=pack_slowly, args=(tree, tmp_path / "b"))
    process.start()
    try:
        wait_until(lambda: (tmp_path / "b/packing/train_journal.jsonl").exists(), "the first packing")
        with pytest.raises(UserError, match=f"is in use by process {process.pid}"):
            prepare("folder", tree, tmp_path / "b")
    finally:
        process.kill()
        process.join()
    prepare("folder", tree, tmp_path / "b")


def jpeg(height=60, width=70):
    random = np.random.default_rng(1)
    return bytes(encode_jpeg(torch.from_numpy(random.integers(0, 256, (3, height, width), np.uint8))).numpy())


def moving_gif():
    frames = [Image.fromarray(np.full((9, 9, 3), value, np.uint8)) for value in (0, 99)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


DAMAGED = {
    "train/cat/moving.gif": (moving_gif(), "an animation of 2 pictures"),
    "train/ant/cut.jpg": (jpeg()[:-500], "incomplete or truncated"),
    "train/ant/headless.jpg": (jpeg()[40:], "no JPEG, PNG, WebP or GIF"),
    "train/bee/cut.png": (bytes(encode_png(torch.zeros(3, 90, 90, dtype=torch.uint8)).numpy())[:-60], "read"),
    "train/bee/empty.jpg": (b"", "an empty file"),
    "train/bee/page.jpg": (b"<html>404 not found</html>", "no JPEG, PNG, WebP or GIF"),
    "test/ant/notes.txt": (b"by hand", "no JPEG, PNG, WebP or GIF"),
    "test/loose.jpg": (jpeg(), "is in no class folder"),
}


@pytest.fixture
def damaged(tree):
    """The tree with every kind of damaged file; returns what must be told of each."""
    for name, (content, _) in DAMAGED.items():
        (tree / name).write_bytes(content)
    (tree / "test/ant/gone.jpg").symlink_to("/nowhere/x.jpg")
    (tree / "train/cat/pipe.jpg").unlink(missing_ok=True)
    os.mkfifo(tree / "train/cat/pipe.jpg")
    told = {name: reason for name, (_, reason) in DAMAGED.items()}
    return told | {"test/ant/gone.jpg": "leads nowhere (/nowhere/x.jpg)", "train/cat/pipe.jpg": "neither a file nor"}


def test_all_damaged_files_are_told_at_once(tmp_path, tree, damaged):
    with pytest.raises(UserError) as told:
        prepare("folder", tree, tmp_path / "store")
    message, listed = str(told.value), (tmp_path / "store/damaged.txt").read_text()
    assert "10 of 170 images cannot be packed" in message and "skip_damaged: true" in message
    for name, reason in damaged.items():
        for text in (message, listed):
            (line,) = [line for line in text.splitlines() if f"{tree / name}: " in line]
            assert reason in line
    with pytest.raises(UserError, match="no prepared dataset here"):
        PackedStore(tmp_path / "store")


def test_damaged_files_are_skipped_on_demand_and_counted(tmp_path, tree, damaged, reads):
    with pytest.raises(UserError):
        prepare("folder", tree, tmp_path / "store")
    reads.clear()
    fingerprint = prepare("folder", tree, tmp_path / "store", Packing(skip_damaged=True))
    assert set(reads) < set(damaged)  # the good ones are not read again
    store = PackedStore(tmp_path / "store")
    assert store.skipped == {"train": 7, "test": 3} and (len(store.train), len(store.test)) == (3 * COUNT, COUNT)
    assert store.remarks() == ["damaged images skipped: 7 of train and 3 of test"]
    assert len((tmp_path / "store/damaged.txt").read_text().splitlines()) == 10
    for name in damaged:
        (tree / name).unlink()
    assert prepare("folder", tree, tmp_path / "clean") == fingerprint


def test_mended_files_alone_are_read_again(tmp_path, tree, damaged, reads):
    with pytest.raises(UserError):
        prepare("folder", tree, tmp_path / "store")
    for name in damaged:
        (tree / name).unlink()
        if name.startswith("train"):
            (tree / name).write_bytes(jpeg())
    reads.clear()
    fingerprint = prepare("folder", tree, tmp_path / "store")
    assert sorted(reads) == sorted(name for name in damaged if name.startswith("train"))
    assert fingerprint == prepare("folder", tree, tmp_path / "fresh")
    assert not (tmp_path / "store/damaged.txt").exists()
    for index in (0, 40, 119):
        here, there = (PackedStore(tmp_path / name).train.image(index) for name in ("store", "fresh"))
        assert torch.equal(here, there)


def test_of_many_damaged_files_the_message_shows_twenty_and_the_list_all(tmp_path, tree):
    for number in range(30):
        (tree / f"train/bee/{number}.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="30 of 160 images cannot be packed") as told:
        prepare("folder", tree, tmp_path / "store")
    assert str(told.value).count("no JPEG") == 20
    assert (tmp_path / "store/damaged.txt").read_text().count("no JPEG") == 30
    with pytest.raises(UserError, match="train: of class bee all images are damaged"):
        for number in range(30, COUNT):
            (tree / f"train/bee/{number}.png").write_bytes(b"nothing")
        prepare("folder", tree, tmp_path / "store", Packing(skip_damaged=True))


def test_pictures_with_another_content_than_their_name_says_are_packed(tmp_path, tree):
    """ImageNet has one PNG and 22 CMYK pictures among its .JPEG files."""
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    (tree / "test/ant/0.JPEG").write_bytes(bytes(encode_png(image).numpy()))
    colours = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((300, 200), Image.Resampling.BICUBIC)
    colours.convert("CMYK").save(tree / "test/ant/00.JPEG", quality=95)
    colours.save(tree / "test/ant/000.png", format="WEBP", lossless=True)
    prepare("folder", tree, tmp_path / "store")
    test = PackedStore(tmp_path / "store").test
    names = sorted(path.name for path in (tree / "test/ant").iterdir())
    assert torch.equal(test.image(names.index("0.JPEG")), image)
    wanted = torch.from_numpy(np.array(colours)).permute(2, 0, 1).int()
    assert torch.equal(test.image(names.index("000.png")).int(), wanted)
    with Image.open(tree / "test/ant/00.JPEG") as picture:
        pil = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).int()
    cmyk = test.image(names.index("00.JPEG")).int()
    assert (cmyk - pil).abs().max() <= 1 and (cmyk - wanted).float().abs().mean() < 4


def test_mistakes_in_a_tree_are_all_told_before_an_image_is_read(tmp_path, tree, reads):
    (tree / "train/dog").mkdir()
    write_tree(tree, {"test": ["cow", "emu"]})
    (tree / "train/cat/loop").symlink_to(tree / "train")
    with pytest.raises(UserError) as told:
        prepare("folder", tree, tmp_path / "store", Packing(skip_damaged=True))
    for mistake in (
        "train/dog: an empty class folder",
        "test/cow: no such class",
        "test/emu: no such class",
        "loop: a sy",
    ):
        assert mistake in str(told.value)
    assert not reads
    with pytest.raises(UserError, match=r"has no folder val/.*\n.*has no class folders|has no folder train/"):
        prepare("imagenet", tree / "train", tmp_path / "store")
    with pytest.raises(UserError, match="which does not exist; wanted the existing folder or archive"):
        prepare("folder", tmp_path / "missing", tmp_path / "store")


def test_a_tar_that_would_leave_its_folder_is_refused_whole(tmp_path, tree):
    for number, name in enumerate(["../../escaped.png", "/escaped.png", "train/../../escaped.png"]):
        archive = tar_of(tree, tmp_path / f"{number}.tar")
        with tarfile.open(archive, "a") as tar:
            add_file(tar, name, jpeg())
        with pytest.raises(UserError, match=r"\.tar: \S*escaped\.png: a path that leaves the archive's folder"):
            prepare("folder", archive, tmp_path / "store", Packing(skip_damaged=True))
    assert not list(tmp_path.rglob("escaped*"))


def test_names_that_stand_twice_in_a_tar_are_told(tmp_path, tree):
    archive = tar_of(tree, tmp_path / "twice.tar")
    with tarfile.open(archive, "a") as tar:
        tar.add(tree / "train/ant/1.png", "train/ant/0.png")
        link = tarfile.TarInfo("train/ant/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../nowhere.png"
        tar.addfile(link)
    with pytest.raises(UserError) as told:
        prepare("folder", archive, tmp_path / "store")
    assert "twice.tar: train/ant/0.png: is in the archive twice" in str(told.value)
    assert "train/ant/link.png: a link that leads to no file of the archive (train/ant/../nowhere.png)" in str(
        told.value
    )
    prepare("folder", archive, tmp_path / "store", Packing(skip_damaged=True))
    assert PackedStore(tmp_path / "store").skipped == {"train": 2, "test": 0}
    assert json.loads((tmp_path / "store/store.json").read_text())["skipped"] == {"train": 2, "test": 0}


def pictures():
    """Pictures of every kind that a .JPEG has been seen to hold, by name."""
    noise = np.random.default_rng(2).integers(0, 256, (12, 16, 3), np.uint8)
    colours = Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC)
    kinds = {"colour": colours, "grey": colours.convert("L"), "cmyk": colours.convert("CMYK")}
    options = {"plain": {}, "progressive": {"progressive": True}, "sampled": {"subsampling": 2}}
    for kind, image in kinds.items():
        for option, keys in options.items():
            out = io.BytesIO()
            image.save(out, "JPEG", quality=90, **keys)
            yield f"{kind} {option}", out.getvalue()
    for keep in ({}, {"keep_rgb": True}):
        out = io.BytesIO()
        colours.save(out, "JPEG", **keep)
        yield f"colour {keep}", out.getvalue()
    for kind in ("RGBA", "P", "L", "1", "I;16"):
        out = io.BytesIO()
        (colours.convert("L").convert("I;16") if kind == "I;16" else colours.convert(kind)).save(out, "PNG")
        yield f"png {kind}", out.getvalue()


@pytest.mark.parametrize(("name", "content"), [pytest.param(*pair, id=pair[0]) for pair in pictures()])
def test_what_is_packed_is_what_can_be_decoded(name, content):
    for length in (len(content), len(content) - 3, len(content) * 2 // 3, 700, 300, 50, 2, 1):
        encoded = np.frombuffer(bytearray(content[:length]), np.uint8)
        try:
            wanted = tuple(decode(encoded).shape)
        except ValueError:
            wanted = None
        try:
            found = (3, *decoded_size(encoded))
        except ValueError:
            found = None
        assert found == wanted
        assert found == (3, 72, 96) if length == len(content) else (found is None or length > len(content) - 12)
