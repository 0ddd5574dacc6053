"""The packed store beside well-kept formats: speed of random reads and of writing, size.

    pip install pyarrow h5py lmdb mosaicml-streaming "webdataset<1"   # beside the lock, in an environment of their own
    python benchmarks/store_formats.py [--images FOLDER] [--count 5000] [--rounds 5]

The same encoded pictures are written in every format that is installed, with their labels, and all are read in one
random order, bytes and label, into memory of their own, as a decoder needs them; warm, in one process, the formats
taking turns. Prints for each the median of the rounds, and as ratio how much longer a read takes than the store's.
docs/data.md says what came out and why the store is as it is.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measuring
import numpy as np
from pictures import jpegs

from selfsup.data.store import PackedStore, StoreWriter, write_bytes_header

BATCH = 1000  # pictures in a batch of Arrow's
Read = Callable[[int], tuple[bytes | np.ndarray, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder whose pictures are taken, in any depth; default: made ones")
    parser.add_argument("--count", type=int, default=5000, help="pictures; default 5000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    with measuring.report("store_formats", parser) as (report, arguments):
        some = list(jpegs(arguments.images))
        compare(report, [some[index % len(some)] for index in range(arguments.count)], arguments)


def compare(report: measuring.Report, contents: list[bytes], arguments: argparse.Namespace) -> None:
    size, readers, written = sum(map(len, contents)), {}, {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for label, (package, write) in FORMATS.items():
            if package and not importlib.util.find_spec(package):
                report.say(f"{label}: {package} is not installed")
                continue
            folder = Path(name) / label.replace(" ", "_")
            folder.mkdir()
            began = time.perf_counter()
            readers[label] = write(folder, contents)
            seconds = time.perf_counter() - began
            written[label] = seconds, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        check(readers, contents)
        reads = measure(readers, np.random.default_rng(0).permutation(len(contents)), arguments.rounds)
    report.say(f"{len(contents):,} pictures, {size / 1e6:.0f} MB, median of {arguments.rounds} rounds")
    for label, taken in reads.items():
        (writing, stored), seconds = written[label], taken.wall / len(contents)
        times = measuring.ratio(taken, reads[STORE])
        report.say(
            f"{label:20} read {1e6 * seconds:7.1f} µs a picture  ratio {times:6.2f}   "
            f"written at {size / 1e6 / writing:6,.0f} MB/s   size {stored / size:.3f}",
            **{label: {"read_s": seconds, "ratio": times, "write_s": writing, "bytes": stored}},
        )


def check(readers: dict[str, Read], contents: list[bytes]) -> None:
    """Every format must give back what it was given."""
    for label, read in readers.items():
        for index in (0, len(contents) // 2, len(contents) - 1):
            content, number = read(index)
            if bytes(content) != contents[index] or number != index % 1000:
                raise SystemExit(f"{label}: picture {index} has changed")


def measure(readers: dict[str, Read], order: np.ndarray, rounds: int) -> dict[str, measuring.Taken]:
    """Return what reading every picture once took in each format."""

    def read_all(read: Read) -> None:
        for index in order.tolist():
            read(index)

    return measuring.in_turn({label: partial(read_all, read) for label, read in readers.items()}, rounds)


def packed_store(folder: Path, contents: list[bytes]) -> Read:
    writer, ends = StoreWriter(folder, ["any"]), np.cumsum([len(content) for content in contents])
    labels = np.arange(len(contents)) % 1000
    for split in ("train", "test"):
        chosen = slice(None) if split == "train" else slice(1)
        with open(writer.unfinished / f"{split}_images.npy", "wb") as file:
            write_bytes_header(file, int(ends[chosen][-1]))
            file.writelines(contents[chosen])
        spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)[chosen]
        sizes, digests = np.zeros_like(spans), np.zeros((len(spans), 32), np.uint8)
        writer.add_encoded(split, spans=spans, sizes=sizes, labels=labels[chosen], digests=digests)
    writer.finish()
    split = PackedStore(folder).train
    return lambda index: (split.encoded(index), int(split.labels[index]))


def arrow(folder: Path, contents: list[bytes]) -> Read:
    """Arrow's IPC file, memory-mapped."""
    import pyarrow as pa

    schema = pa.schema([("image", pa.large_binary()), ("label", pa.int64())])
    with pa.OSFile(str(folder / "images.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(contents), BATCH):
            part = contents[start : start + BATCH]
            labels = [index % 1000 for index in range(start, start + len(part))]
            writer.write_batch(pa.record_batch([pa.array(part, pa.large_binary()), pa.array(labels)], schema=schema))
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "images.arrow")))
    batches = [reader.get_batch(number).columns for number in range(reader.num_record_batches)]

    def read(index: int) -> tuple[bytes, int]:
        images, labels = batches[index // BATCH]
        return images[index % BATCH].as_py(), labels[index % BATCH].as_py()

    return read


def hdf5(folder: Path, contents: list[bytes]) -> Read:
    """HDF5 with a dataset of variable length."""
    import h5py

    with h5py.File(folder / "images.h5", "w") as file:
        images = file.create_dataset("images", len(contents), h5py.vlen_dtype(np.uint8))
        for index, content in enumerate(contents):
            images[index] = np.frombuffer(content, np.uint8)
        file["labels"] = np.arange(len(contents)) % 1000
    file = h5py.File(folder / "images.h5")
    images, labels = file["images"], file["labels"]
    return lambda index: (images[index], int(labels[index]))


def lmdb(folder: Path, contents: list[bytes]) -> Read:
    """LMDB, whose authors advise against remote file systems; the label stands before the bytes."""
    import lmdb

    environment = lmdb.open(str(folder), map_size=4 * sum(map(len, contents)) + (1 << 24))
    with environment.begin(write=True) as transaction:
        for index, content in enumerate(contents):
            transaction.put(index.to_bytes(8, "big"), (index % 1000).to_bytes(8, "big") + content)
    environment.close()
    transaction = lmdb.open(str(folder), readonly=True, lock=False, readahead=False).begin(buffers=True)

    def read(index: int) -> tuple[bytes, int]:
        value = transaction.get(index.to_bytes(8, "big"))
        return bytes(value[8:]), int.from_bytes(value[:8], "big")

    return read


def mosaic(folder: Path, contents: list[bytes]) -> Read:
    """MosaicML Streaming's shards, read by index."""
    from streaming import LocalDataset, MDSWriter

    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for index, content in enumerate(contents):
            writer.write({"image": content, "label": index % 1000})
    dataset = LocalDataset(str(folder))

    def read(index: int) -> tuple[bytes, int]:
        sample = dataset[index]
        return sample["image"], sample["label"]

    return read


def webdataset(folder: Path, contents: list[bytes]) -> Read:
    """WebDataset's tars have no index; wids, which comes with it, makes one and reads by it."""
    import webdataset
    from wids.wids import IndexedTarSamples

    with webdataset.TarWriter(str(folder / "images.tar")) as writer:
        for index, content in enumerate(contents):
            writer.write({"__key__": f"{index:08}", "jpg": content, "cls": index % 1000})
    samples = IndexedTarSamples(path=str(folder / "images.tar"))

    def read(index: int) -> tuple[bytes, int]:
        sample = samples[index]
        return sample[".jpg"].read(), int(sample[".cls"].read())

    return read


STORE = "packed store (.npy)"
FORMATS: dict[str, tuple[str, Callable[[Path, list[bytes]], Read]]] = {
    STORE: ("", packed_store),
    "Arrow": ("pyarrow", arrow),
    "HDF5": ("h5py", hdf5),
    "LMDB": ("lmdb", lmdb),
    "Mosaic Streaming": ("streaming", mosaic),
    "WebDataset": ("wids", webdataset),
}

if __name__ == "__main__":
    main()
