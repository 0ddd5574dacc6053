"""How close packing comes to what binds it: the decoder, or the disk.

    python benchmarks/packing.py [--images FOLDER] [--count 10000] [--cpus 2] [--rounds 3]

Packs a class tree of --count pictures: copies of those in --images, or JPEGs of ImageNet's mean size that are made for
it. In turn with that, the limits. The decoder's: the same bytes decoded from memory to RGB, as training does, on the
same cores and nothing else. The disk's: the same files read and written to one, to the end (fsync), and nothing else.
Prints the ratio of the limit that binds to the packing, in time and in processor time; where other work goes on, the
latter. Packing may do better than 1: it decodes all of a JPEG but computes no colours.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

import numpy as np
import torch
from torchvision.io import encode_jpeg
from torchvision.transforms.v2.functional import resize

from selfsup.data.packing import threads
from selfsup.data.sources import Packing, prepare
from selfsup.data.store import decode

CLASSES, CHUNK = 10, 16
DECODING = ("decoding, threads", "decoding, processes")
# ImageNet's training images: 110 KB and 500 x 375 pixels in the mean. Enlarged noise of quality 90 comes to that.
HEIGHT, WIDTH, QUALITY = 375, 500, 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder whose pictures are taken, in any depth")
    parser.add_argument("--count", type=int, default=10_000, help="pictures to pack; default 10000")
    parser.add_argument("--cpus", type=int, default=2, help="cores; default 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, ProcessPoolExecutor(arguments.cpus) as processes:
        folder = Path(name)
        files = make_tree(folder / "tree", list(pictures(arguments.images)), arguments.count)
        contents = [file.read_bytes() for file in files]
        size = sum(map(len, contents)) / 1e6
        with threads(arguments.cpus) as pool:
            ways = {
                DECODING[0]: lambda: decode_all(pool, contents),
                DECODING[1]: lambda: decode_all(processes, files),
                "reading and writing alone": lambda: copy_all(files, folder / "copy"),
                "packing": lambda: pack_all(folder, arguments.cpus),
            }
            seconds = measure(ways, arguments.rounds)
    print(f"{len(files):,} images, {size:.0f} MB, {arguments.cpus} cores, median of {arguments.rounds} rounds")
    for way, (wall, cpu) in seconds.items():
        rate = f"{len(files) / wall:8,.0f} images/s {size / wall:6,.0f} MB/s"
        print(f"{way:26} {rate}   {wall:.2f} s, of processors {cpu:.2f} s")
    decoding = min((seconds[way] for way in DECODING), key=lambda pair: pair[0])
    copying, packing = seconds["reading and writing alone"], seconds["packing"]
    limit, name = max((decoding, "the decoder"), (copying, "the disk"))
    own = "" if limit is seconds["decoding, processes"] else f"; of processor time {limit[1] / packing[1]:.2f}"
    print(f"what binds: {name}; ratio {limit[0] / packing[0]:.2f}{own} (wanted 0.90)")


def measure(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return each way's median seconds, and this process's processor seconds.

    The ways take turns, and the first round, which fills caches, does not count.
    """
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(-1, rounds):
        for way, run in ways.items():
            began = time.perf_counter(), time.process_time()
            run()
            if number >= 0:
                seconds[way].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {way: tuple(map(statistics.median, zip(*pairs, strict=True))) for way, pairs in seconds.items()}


def pictures(folder: Path | None) -> Iterator[bytes]:
    """Yield the content of the picture files in `folder`, or 100 made ones."""
    if folder:
        yield from (path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg"))
        return
    random = np.random.default_rng(0)
    for _ in range(100):
        noise = torch.from_numpy(random.integers(0, 256, (3, HEIGHT // 3, WIDTH // 3), np.uint8))
        yield encode_jpeg(resize(noise, [HEIGHT, WIDTH], antialias=True), quality=QUALITY).numpy().tobytes()


def make_tree(root: Path, contents: list[bytes], count: int) -> list[Path]:
    files = []
    for split, number in (("train", count), ("test", count // 20)):
        for index in range(number):
            file = root / split / f"class{index % CLASSES}" / f"{index:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents[index % len(contents)])
            files.append(file)
    return files


def decode_all(pool: Executor, sources: list) -> None:
    chunks = [sources[start : start + CHUNK] for start in range(0, len(sources), CHUNK)]
    for _ in pool.map(decode_chunk, chunks):
        pass


def decode_chunk(chunk: list[bytes | Path]) -> None:
    torch.set_num_threads(1)
    for source in chunk:
        content = source if isinstance(source, bytes) else source.read_bytes()
        decode(np.frombuffer(bytearray(content), np.uint8))


def copy_all(files: list[Path], target: Path) -> None:

    with open(target, "wb") as out:
        for file in files:
            out.write(file.read_bytes())
        out.flush()
        os.fsync(out.fileno())


def pack_all(folder: Path, cpus: int) -> None:
    shutil.rmtree(folder / "store", ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        prepare("folder", folder / "tree", folder / "store", Packing(cpus=cpus))


if __name__ == "__main__":
    main()
