"""The transfer data sets, in small copies of their publishers' layouts, beside torchvision's own readers of these."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from publishers import LAYOUTS, picture
from selfsup.data.local_copy import open_store
from selfsup.data.preparing import Packing, prepare
from selfsup.data.source import Counts
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.settings.registries import SOURCES
from trees import tar_of

pytestmark = pytest.mark.usefixtures("kept_as_files")

ANY = Packing(expect=None)
# Of each small copy.
COUNTS = {
    "food101": Counts(9, 6, 3),
    "dtd": Counts(6, 4, 2, 2),
    "sun397": Counts(6, 6, 3),
    "stanford_cars": Counts(4, 4, 3),
    "fgvc_aircraft": Counts(6, 3, 3, 3),
    "oxford_pets": Counts(6, 3, 3),
    "caltech101": Counts(90, 6, 3),
    "flowers102": Counts(6, 6, 3, 3),
    "birdsnap": Counts(6, 2, 2),
    "voc2007": Counts(6, 3, 20, 3),
}
MEASURES = dict.fromkeys(("fgvc_aircraft", "oxford_pets", "caltech101", "flowers102"), "mean per class")
MEASURES["voc2007"] = "11-point mAP"


@pytest.fixture(params=LAYOUTS)
def source(request):
    return request.param


@pytest.fixture
def root(tmp_path, source):
    LAYOUTS[source](tmp_path / "root")
    return tmp_path / "root"


def packed(source: str, path: Path, folder: Path, packing: Packing = ANY) -> PackedStore:
    prepare(source, path, folder, packing)
    return PackedStore(folder)


def digests(split) -> list[str]:
    return [hashlib.sha256(split.encoded(index)).hexdigest() for index in range(len(split))]


def theirs(source: str, root: Path, split: str) -> list[tuple[Path, int]]:
    """Return the pictures of "train", "val" or "test" with labels, as torchvision's reader lists them."""
    readers = {
        "food101": ("Food101", {}),
        "dtd": ("DTD", {}),
        "stanford_cars": ("StanfordCars", {}),
        "fgvc_aircraft": ("FGVCAircraft", {}),
        "oxford_pets": ("OxfordIIITPet", {"train": "trainval"}),
        "flowers102": ("Flowers102", {}),
    }
    name, splits = readers[source]
    kind = getattr(torchvision.datasets, name)
    dataset = kind(root, splits.get(split, split))
    samples = getattr(dataset, "_samples", None)
    files = [file for file, _ in samples] if samples else getattr(dataset, "_image_files", None) or dataset._images
    labels = [label for _, label in samples] if samples else dataset._labels
    return [(Path(file), int(label)) for file, label in zip(files, labels, strict=True)]


def expected(pictures: list[tuple[Path, int]]) -> tuple[list[str], list[int]]:
    found = [hashlib.sha256(file.read_bytes()).hexdigest() for file, _ in pictures]
    return found, [label for _, label in pictures]


@pytest.mark.parametrize(
    "source", ["food101", "dtd", "stanford_cars", "fgvc_aircraft", "oxford_pets", "flowers102"], indirect=True
)
def test_pictures_and_labels_are_those_of_torchvisions_reader(source, root, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)  # MD5s of the whole
    store = packed(source, root, tmp_path / "store")
    train = theirs(source, root, "train") + (theirs(source, root, "val") if store.validation else [])
    for split, wanted in ((store.train, train), (store.test, theirs(source, root, "test"))):
        files, labels = expected(wanted)
        assert digests(split) == files and split.labels.tolist() == labels
    if store.validation:
        assert digests(store.train)[-store.validation :] == expected(theirs(source, root, "val"))[0]


def test_a_store_tells_counts_validation_and_measure(source, root, tmp_path):
    store = packed(source, root, tmp_path / "store", Packing(expect=COUNTS[source]._asdict()))
    assert (len(store.train), len(store.test), len(store.classes)) == COUNTS[source][:3]
    assert store.validation == COUNTS[source].validation and store.multi_label == (source == "voc2007")
    assert store.measure == MEASURES.get(source, "top-1") == SOURCES[source].measure
    copy = open_store(tmp_path / "store", str(tmp_path / "node"))
    assert copy.folder != store.folder and np.array_equal(copy.train.labels, store.train.labels)
    assert (copy.validation, copy.measure) == (store.validation, store.measure)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "archives in a folder"])
def test_the_same_store_from_archives(source, root, tmp_path, kind):
    whole = packed(source, root, tmp_path / "store")
    archives = tmp_path / "archives"
    archives.mkdir()
    if kind == "archives in a folder":
        (inner,) = list(root.iterdir()) if source != "sun397" else [root]
        for folder in [one for one in inner.iterdir() if one.is_dir()]:
            tar_of(folder, archives / f"{folder.name}.tgz", "w:gz", top=folder.name)
        for file in [one for one in inner.iterdir() if one.is_file()]:
            shutil.copy(file, archives)
    elif kind == "zip":
        with zipfile.ZipFile(archives / "all.zip", "w") as packed_files:
            for file in sorted(root.rglob("*")):
                packed_files.write(file, file.relative_to(root))
        archives /= "all.zip"
    else:
        archives = tar_of(root, archives / f"all.{kind}", "w:gz" if kind == "tar.gz" else "w", top="")
    assert packed(source, archives, tmp_path / "again").fingerprint == whole.fingerprint
    assert not (tmp_path / "again" / "packing").exists()


def test_a_wrong_number_is_told_in_one_line(source, root, tmp_path):
    with pytest.raises(UserError, match="the source is incomplete") as told:
        prepare(source, root, tmp_path / "store")
    known, message = SOURCES[source].counts, str(told.value)
    assert "\n" not in message and f"wanted {known.train:,}" in message and f"wanted {known.test:,}" in message


def test_what_is_missing_is_told_with_where_to_get_it(source, root, tmp_path):
    need = SOURCES[source].needs[0]
    (missing,) = [file for file in root.rglob("*") if f"/{file}".endswith(f"/{need}")]
    missing.unlink()
    with pytest.raises(UserError) as told:
        prepare(source, root, tmp_path / "store", ANY)
    assert str(told.value) == f"{root}: holds no {need}; {SOURCES[source].where}"


@pytest.mark.parametrize("source", ["food101"], indirect=True)
def test_a_listed_picture_that_is_missing_is_a_damaged_one(source, root, tmp_path):
    (root / "food-101" / "images" / "sushi" / "15.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 15 images cannot be packed.*sushi/15.jpg: the publisher's list has it"):
        prepare(source, root, tmp_path / "store", ANY)
    store = packed(source, root, tmp_path / "store", Packing(expect=None, skip_damaged=True))
    assert len(store.train) == 8 and store.skipped == {"train": 1, "test": 0}


@pytest.mark.parametrize("source", ["dtd"], indirect=True)
def test_damaged_pictures_are_no_longer_counted_for_validation(source, root, tmp_path):
    for name in ("train1.txt", "val1.txt"):
        first = (root / "dtd" / "dtd" / "labels" / name).read_text().split()[0]
        (root / "dtd" / "dtd" / "images" / first).write_bytes(b"")
    store = packed(source, root, tmp_path / "store", Packing(expect=None, skip_damaged=True))
    assert (len(store.train), store.validation) == (4, 1)


@pytest.mark.parametrize("source", ["oxford_pets"], indirect=True)
def test_a_list_that_cannot_be_read_is_told_in_one_line(source, root, tmp_path):
    (root / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Abyssinian_7\n")
    with pytest.raises(UserError, match=r"its publisher's lists cannot be read \(ValueError.*fetch the files again"):
        prepare(source, root, tmp_path / "store", ANY)


@pytest.mark.parametrize("source", ["sun397"], indirect=True)
def test_sun397_has_the_classes_of_its_list_and_the_first_partition(source, root, tmp_path):
    store = packed(source, root, tmp_path / "store")
    assert store.classes == ["abbey", "church/indoor", "zoo"]
    names = (root / "Testing_01.txt").read_text().split()
    wanted = [hashlib.sha256((root / f"SUN397{name}").read_bytes()).hexdigest() for name in names]
    assert digests(store.test) == wanted and store.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("source", ["caltech101"], indirect=True)
def test_caltech_101_is_trained_on_30_fixed_pictures_of_each_class(source, root, tmp_path):
    store = packed(source, root, tmp_path / "store")
    assert np.bincount(store.train.labels).tolist() == [30, 30, 30]
    base, chosen = root / "caltech101" / "101_ObjectCategories", []
    for folder in sorted(base.iterdir()):
        names = sorted((f"{folder.name}/{file.name}" for file in folder.iterdir()), key=sha256_of_text)
        chosen += sorted(names[:30])
    assert digests(store.train) == [hashlib.sha256((base / name).read_bytes()).hexdigest() for name in chosen]


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("source", ["birdsnap"], indirect=True)
def test_birdsnap_tests_on_what_its_list_names(source, root, tmp_path):
    store, images = packed(source, root, tmp_path / "store"), root / "birdsnap" / "images"
    wanted = [images / "Acadian_Flycatcher" / "0.jpg", images / "Yellow_Warbler" / "2.jpg"]
    assert digests(store.test) == [hashlib.sha256(file.read_bytes()).hexdigest() for file in wanted]
    assert store.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("source", ["voc2007"], indirect=True)
def test_voc_2007_has_a_label_for_each_class(source, root, tmp_path):
    store = packed(source, root, tmp_path / "store")
    assert store.train.labels.shape == (6, 20) and store.train.labels.dtype == np.int64
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for place, name in enumerate(store.classes):
        for split, of in {
            "train": store.train.labels[:3],
            "val": store.train.labels[3:],
            "test": store.test.labels,
        }.items():
            values = [int(line.split()[1]) for line in (lists / f"{name}_{split}.txt").read_text().splitlines()]
            assert of[:, place].tolist() == [{1: 1, -1: 0, 0: -1}[value] for value in values]
    assert {-1, 0, 1} == set(np.unique(store.train.labels))


def test_cifar_100_is_read_by_torchvision(tmp_path, monkeypatch):
    import pickle

    random, base = np.random.default_rng(0), tmp_path / "cifar-100-python"
    base.mkdir()
    wanted = {}
    for name, count in {"train": 5, "test": 3}.items():
        pixels = random.integers(0, 256, (count, 3072), np.uint8)
        labels = random.integers(0, 3, count).tolist()
        (base / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
        wanted[name] = pixels.reshape(-1, 3, 32, 32), labels
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "cloud"]}))
    kind = torchvision.datasets.CIFAR100
    md5 = {name: hashlib.md5((base / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(kind, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["meta"]})
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    tar_of(base, downloads / kind.filename, "w:gz", top=kind.base_folder)
    for number, path in enumerate((base, tmp_path, downloads, downloads / kind.filename)):
        store = packed("cifar100", path, tmp_path / f"store{number}")
        for split, (pixels, labels) in {store.train: wanted["train"], store.test: wanted["test"]}.items():
            assert np.array_equal(split.raw, pixels) and split.labels.tolist() == labels
        assert store.classes == ["apple", "bear", "cloud"]


def test_facts_of_sources_need_no_torch():
    code = (
        "import sys; from selfsup.settings.registries import SOURCES\n"
        "for name in SOURCES: SOURCES[name].counts\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    scripts = Path(__file__).parents[2] / "workflow" / "scripts"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(scripts)})


def test_a_download_is_whole_or_not_there(tmp_path, monkeypatch):
    from selfsup.data import downloading

    asked = []

    def broken(url, folder, name, md5):
        asked.append(url)
        (folder / name).write_bytes(b"half")
        raise OSError("the network is gone")

    monkeypatch.setattr(downloading, "download_url", broken)
    for _ in range(2):
        with pytest.raises(UserError, match=r"fgvc-aircraft-2013b.tar.gz could not be downloaded.*network is gone"):
            SOURCES["fgvc_aircraft"].download(tmp_path)
    assert len(asked) == 2 and not (tmp_path / "downloaded.txt").exists()

    def working(url, folder, name, md5):
        if not (folder / name).exists():  # as torchvision's own, which takes what is there where there is no MD5
            (folder / name).write_bytes(b"whole")

    monkeypatch.setattr(downloading, "download_url", working)
    SOURCES["fgvc_aircraft"].download(tmp_path)
    assert (tmp_path / "fgvc-aircraft-2013b.tar.gz").read_bytes() == b"whole"
    assert (tmp_path / "downloaded.txt").read_text() == "fgvc-aircraft-2013b.tar.gz\n"


OUTSIDE = """
from selfsup.data.listing import Listing, Picture, read_folders
from selfsup.data.source import Counts, Source
from selfsup.settings.registries import SOURCES


class Flat(Source):
    counts = Counts(train=2, test=1, classes=2)
    measure = "mean per class"

    def listing(self, pool, folder, seen):
        members, _, _ = read_folders(self.path, [""], seen)
        pictures = [Picture(one, int(one.name[0])) for one in sorted(members)]
        return Listing(["zero", "one"], {"train": pictures[:-1], "test": pictures[-1:]})


SOURCES.added["flat"] = "flat_source:Flat"
"""


def test_a_source_from_outside_is_packed_and_chosen_in_config_yaml(tmp_path, repository, starter):
    (tmp_path / "flat_source.py").write_text(OUTSIDE)
    for name in ("0_a.jpg", "1_b.jpg", "1_c.jpg"):
        picture(tmp_path / "pictures" / name)
    scripts = repository / "workflow" / "scripts"
    words = ["--source", "flat", "--path", str(tmp_path / "pictures"), "--output", str(tmp_path / "store")]
    command = [starter, str(scripts / "prepare_dataset.py"), *words]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr.startswith("error: --source is flat, which does not exist")
    subprocess.run([*command, "--extension", str(tmp_path / "flat_source.py")], check=True, capture_output=True)
    store = PackedStore(tmp_path / "store")
    assert (
        store.classes == ["zero", "one"] and store.train.labels.tolist() == [0, 1] and store.measure == "mean per class"
    )
    code = (
        "import yaml; from selfsup.config import check_config\n"
        f"raw = yaml.safe_load(open({str(repository / 'config.yaml')!r})) | {{'extensions': ['flat_source.py']}}\n"
        "raw['datasets']['mine'] = {'source': 'flat', 'path': '/pictures'}\n"
        "assert check_config(raw).datasets['mine'].source == 'flat'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(scripts)})
