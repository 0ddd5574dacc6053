"""Archives as sources: joined, damaged and foreign ones are read whole or refused; a zip is as good as a tar."""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from trees import tar_of, write_tree

OPENERS = {"tar": open, "tar.gz": gzip.open, "tar.xz": lzma.open, "tar.bz2": bz2.open}


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "tree", {"train": ["bee", "ant"], "test": ["ant"]})
    return tmp_path / "tree"


@pytest.fixture
def parts(tmp_path, tree):
    """The tree in two tars, each a whole one."""
    archives = []
    for number in range(2):
        archive = tmp_path / f"part{number}.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(tree.rglob("*.png"))[number::2]:
                tar.add(path, path.relative_to(tree))
        archives.append(archive)
    return archives


def compressed(content: bytes, kind: str) -> bytes:
    return {"tar": bytes, "tar.gz": gzip.compress, "tar.xz": lzma.compress, "tar.bz2": bz2.compress}[kind](content)


@pytest.mark.parametrize("kind", OPENERS)
def test_tars_joined_by_cat_are_packed_whole(tmp_path, tree, parts, kind):
    joined = tmp_path / f"joined.{kind}"
    joined.write_bytes(b"".join(compressed(part.read_bytes(), kind) for part in parts))
    assert prepare("folder", joined, tmp_path / "a") == prepare("folder", tree, tmp_path / "b")
    if kind != "tar":
        joined.write_bytes(compressed(b"".join(part.read_bytes() for part in parts), kind))
        assert prepare("folder", joined, tmp_path / "c") == prepare("folder", tree, tmp_path / "b")


def test_what_stands_in_both_of_two_joined_tars_is_told(tmp_path, tree, parts):
    joined = tmp_path / "joined.tar"
    joined.write_bytes(parts[0].read_bytes() + tar_of(tree, tmp_path / "all.tar").read_bytes())
    with pytest.raises(UserError, match=r"5 of 14 images .*"):
        prepare("folder", joined, tmp_path / "store")
    assert (tmp_path / "store/damaged.txt").read_text().count("is in the archive twice") == 5


def test_a_tar_padded_with_zeros_is_whole(tmp_path, tree):
    archive = tar_of(tree, tmp_path / "t.tar")
    archive.write_bytes(archive.read_bytes() + bytes(100_000))
    assert prepare("folder", archive, tmp_path / "a") == prepare("folder", tree, tmp_path / "b")


def first_headers(archive: Path) -> list[int]:
    with tarfile.open(archive) as tar:
        return [info.offset for info in tar]


@pytest.mark.parametrize("place", ["a header in the middle", "the header after a join", "after the end"])
def test_a_tar_that_is_damaged_between_its_files_is_refused(tmp_path, tree, parts, place):
    """tarfile takes what is no header for the end: what comes after it would be left out without a word."""
    whole, second = tar_of(tree, tmp_path / "t.tar").read_bytes(), parts[1].read_bytes()
    damaged = {
        "a header in the middle": (offset := first_headers(tmp_path / "t.tar")[5], whole),
        "the header after a join": (len(whole), whole + second),
        "after the end": (len(whole), whole + b"signature".ljust(1024, b".")),
    }[place]
    offset, content = damaged
    archive = tmp_path / "damaged.tar"
    archive.write_bytes(content[:offset] + b"\xff" * 100 + content[offset + 100 :])
    with pytest.raises(
        UserError, match=rf"damaged\.tar: at byte {offset:,} there is neither .*: fetch the archive again"
    ):
        prepare("folder", archive, tmp_path / "store", Packing(skip_damaged=True))


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2"])
def test_a_plain_tar_joined_to_a_compressed_one_is_refused(tmp_path, parts, kind):
    joined = tmp_path / f"joined.{kind}"
    joined.write_bytes(compressed(parts[0].read_bytes(), kind) + parts[1].read_bytes())
    with pytest.raises(UserError, match=rf"joined\.{kind}: .*: fetch the archive again"):
        prepare("folder", joined, tmp_path / "store")


def zip_of(root: Path, archive: Path, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(root.rglob("*"), reverse=True):
            file.write(path, f"{top}{path.relative_to(root)}")
    return archive


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("top", ["", "birds/", "./"])
def test_a_zip_of_a_tree_gives_the_store_of_the_tree(tmp_path, tree, method, top):
    archive = zip_of(tree, tmp_path / "birds.zip", top, method)
    assert prepare("folder", archive, tmp_path / "b", Packing(cpus=3)) == prepare("folder", tree, tmp_path / "a")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("source", ["cifar10", "imagenet"])
def test_a_zip_may_hold_the_tree_of_any_source(tmp_path, tree, source):
    if source == "imagenet":
        (tree / "test").rename(tree / "val")
    archive = zip_of(tree, tmp_path / "t.zip")
    prepare(source, archive, tmp_path / "store", Packing(expect=None))
    assert PackedStore(tmp_path / "store").classes == ["ant", "bee"]


def test_what_macos_and_windows_put_into_a_zip_changes_nothing(tmp_path, tree):
    archive = tmp_path / "t.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.mkdir("__MACOSX")
        file.writestr("__MACOSX/birds/train/ant/._0.png", b"a resource fork")
        file.writestr("birds/.DS_Store", b"a window's place")
        for path in sorted(tree.rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.create_system, info.filename = 0, "birds\\" + str(path.relative_to(tree)).replace("/", "\\")
            file.writestr(info, path.read_bytes())
    assert prepare("folder", archive, tmp_path / "b") == prepare("folder", tree, tmp_path / "a")


def test_a_zips_names_are_read_as_utf_8_even_where_it_does_not_say_so(tmp_path, tree):
    for split in ("train", "test"):
        (tree / split / "ant").rename(tree / split / "été")
    archive = zip_of(tree, tmp_path / "t.zip")
    content = archive.read_bytes()
    assert content.count(b"\x00\x08") > 0
    with zipfile.ZipFile(archive) as file:
        flagged = [info for info in file.infolist() if info.flag_bits & 0x800]
    assert flagged
    archive.write_bytes(without_utf8_flag(content))
    assert prepare("folder", archive, tmp_path / "b") == prepare("folder", tree, tmp_path / "a")
    assert PackedStore(tmp_path / "b").classes == ["bee", "été"]


def without_utf8_flag(content: bytes) -> bytes:
    """The zip as programs write it that know nothing of the flag."""
    changed = bytearray(content)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found = -1
        while (found := content.find(signature, found + 1)) >= 0:
            (flags,) = struct.unpack_from("<H", content, found + place)
            struct.pack_into("<H", changed, found + place, flags & ~0x800)
    return bytes(changed)


@pytest.mark.parametrize(
    "name", ["../../escaped.png", "/escaped.png", "train/../../escaped.png", "..\\..\\escaped.png"]
)
def test_a_zip_that_would_leave_its_folder_is_refused_whole(tmp_path, tree, name):
    archive = zip_of(tree, tmp_path / "t.zip")
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo(name)
        info.create_system = 0 if "\\" in name else 3
        file.writestr(info, b"evil")
    with pytest.raises(UserError, match=r"t\.zip: \S*escaped\.png: a path that leaves the archive's folder"):
        prepare("folder", archive, tmp_path / "store", Packing(skip_damaged=True))
    assert not list(tmp_path.rglob("escaped*"))


def flagged(content: bytes, flag: int) -> bytes:
    """The zip with this bit set in the flags of each member in its directory."""
    changed, found = bytearray(content), -1
    while (found := content.find(b"PK\x01\x02", found + 1)) >= 0:
        changed[found + 8] |= flag
    return bytes(changed)


@pytest.mark.parametrize("kind", ["encrypted", "lzma", "bzip2"])
def test_a_zip_that_cannot_be_read_is_told_in_one_line_with_the_way_out(tmp_path, tree, kind):
    method = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_DEFLATED)
    archive = zip_of(tree, tmp_path / "t.zip", method=method)
    if kind == "encrypted":
        archive.write_bytes(flagged(archive.read_bytes(), 1))
    with pytest.raises(
        UserError, match=rf"t\.zip: .*\.png: .*{kind}.*: unpack the zip .* set the dataset's path"
    ) as told:
        prepare("folder", archive, tmp_path / "store")
    assert len(str(told.value).splitlines()) == 1


def test_a_zip_that_is_cut_short_or_joined_to_another_is_refused(tmp_path, tree):
    content = zip_of(tree, tmp_path / "t.zip").read_bytes()
    for length in (len(content) - 30, len(content) // 2, 10):
        (tmp_path / "cut.zip").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.zip: cannot be read as a zip \(.*\): fetch the archive again"):
            prepare("folder", tmp_path / "cut.zip", tmp_path / "store")
    later = bytearray(content)
    later[content.index(b"PK\x01\x02") + 6] = 99  # a version of the format that is not there yet
    (tmp_path / "later.zip").write_bytes(later)
    with pytest.raises(UserError, match=r"later\.zip: cannot be read as a zip \(zip file version 9\.9\)"):
        prepare("folder", tmp_path / "later.zip", tmp_path / "store")
    (tmp_path / "joined.zip").write_bytes(content * 2)
    with pytest.raises(UserError, match=r"joined\.zip: .*like two zips joined.* unpack both into one folder"):
        prepare("folder", tmp_path / "joined.zip", tmp_path / "store")


def test_damaged_members_of_a_zip_are_told_and_skipped_on_demand(tmp_path, tree):
    (tree / "train/ant/notes.txt").write_bytes(b"by hand " * 100)
    (tree / "train/ant/empty.jpg").write_bytes(b"")
    archive = zip_of(tree, tmp_path / "t.zip")
    with zipfile.ZipFile(archive, "a") as file:
        link = zipfile.ZipInfo("train/ant/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "0.png")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.write(tree / "train/ant/1.png", "train/ant/0.png")
        places = {info.filename: info.header_offset for info in file.infolist()}
    content = bytearray(archive.read_bytes())
    content[places["train/bee/1.png"] + 30 + len("train/bee/1.png") + 60] ^= 255  # in its packed bytes
    content[places["train/bee/0.png"]] ^= 255  # in the header before them
    archive.write_bytes(content)
    told = {
        "train/ant/notes.txt": "no JPEG, PNG, WebP or GIF",
        "train/ant/empty.jpg": "an empty file",
        "train/ant/link.png": "a symlink, which is not followed in a zip",
        "train/ant/0.png": "is in the archive twice",
        "train/bee/1.png": "its bytes in the zip are damaged",
        "train/bee/0.png": "its bytes in the zip are damaged",
    }
    with pytest.raises(UserError, match="6 of 13 images cannot be packed"):
        prepare("folder", archive, tmp_path / "store")
    lines = (tmp_path / "store/damaged.txt").read_text().splitlines()
    for name, reason in told.items():
        (line,) = [line for line in lines if f"t.zip: {name}: " in line]
        assert reason in line
    prepare("folder", archive, tmp_path / "store", Packing(skip_damaged=True))
    assert PackedStore(tmp_path / "store").skipped == {"train": 6, "test": 0}


def test_of_a_zips_member_no_more_is_unpacked_than_its_directory_says(tmp_path, tree):
    """A few kB can hold gigabytes: the directory's size is what is unpacked at most, and told if it is wrong."""
    png = (tree / "train/ant/0.png").read_bytes()
    archive = zip_of(tree, tmp_path / "t.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/ant/bomb.png", png + bytes(50_000_000))
    content = bytearray(archive.read_bytes())
    entry = content.rindex(b"train/ant/bomb.png") - 46
    struct.pack_into("<I", content, entry + 24, len(png))
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"bomb\.png: cannot be read as an image \(its bytes in the zip are damaged\)"):
        prepare("folder", archive, tmp_path / "store")


FOREIGN = {
    "birds.tar.zst": (b"\x28\xb5\x2f\xfd" + bytes(600), r"Zstandard.*`zstd -d birds\.tar\.zst`.*tar or folder"),
    "birds.tar.lz4": (b"\x04\x22\x4d\x18" + bytes(600), r"LZ4.*`lz4 -d"),
    "birds.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), r"7-Zip.*`7z x"),
    "birds.rar": (b"Rar!\x1a\x07\x01\x00" + bytes(600), r"RAR.*`unrar x"),
    "birds.parquet": (b"PAR1" + bytes(600), "a Parquet file: set the dataset's source to parquet"),
    "birds.csv": (b"name,label\n" * 60, "neither a tar nor a zip: .* the folder of its unpacked files"),
    "birds.tar": (b"<html>log in</html>", "neither a tar nor a zip"),
}


@pytest.mark.parametrize("source", ["folder", "cifar10", "imagenet"])
@pytest.mark.parametrize("name", FOREIGN)
def test_an_archive_of_a_kind_that_is_not_read_is_told_with_what_to_do(tmp_path, name, source):
    content, told = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        prepare(source, tmp_path / name, tmp_path / "store")
    assert len(str(error.value).splitlines()) == 1


def without_ustar(content: bytes) -> bytes:
    """The tar with the headers of before POSIX, which had no magic word."""
    changed, offset = bytearray(content), 0
    while any(header := changed[offset : offset + 512]):
        header[148:156], header[257:265] = b" " * 8, bytes(8)
        header[148:156] = b"%06o\0 " % sum(header)
        changed[offset : offset + 512] = header
        offset += 512 + -(-int(header[124:135], 8) // 512) * 512
    return bytes(changed)


@pytest.mark.parametrize("kind", ["v7", "ustar", "gnu", "pax"])
def test_a_tar_is_known_by_its_content_whatever_its_name_and_format(tmp_path, tree, kind):
    formats = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=formats.get(kind, tarfile.USTAR_FORMAT)) as tar:
        tar.add(tree, ".")
    archive = tmp_path / "birds.dat"
    archive.write_bytes(without_ustar(out.getvalue()) if kind == "v7" else out.getvalue())
    assert (b"ustar" in archive.read_bytes()) == (kind != "v7")
    assert prepare("folder", archive, tmp_path / "b") == prepare("folder", tree, tmp_path / "a")
