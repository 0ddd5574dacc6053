"""How close packing comes to what binds it: the decoder, or the disk.

    python benchmarks/packing.py [--images FOLDER] [--count 10000] [--cpus 2] [--rounds 3]

Packs a class tree of --count pictures: copies of those in --images, or JPEGs of ImageNet's mean size that are made for
it. In turn with that, the limits. The decoder's: the same bytes decoded from memory to RGB, as training does, on the
same cores and nothing else. The disk's: the same files read and written to one, to the end (fsync), and nothing else.
Prints the ratio of the limit that binds to the packing, in time and in processor time; where other work goes on, the
latter. Beside decoding, packing sums the pixels of training pictures, for mean and standard deviation.
"""

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import measuring
import numpy as np
import torch
from pictures import jpegs, make_tree

from selfsup.data.packing import threads
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import decode

CHUNK = 16
WANTED = 0.65  # 0.90 if no sums were wanted: colours and sums take a third of a training picture's time
DECODING = ("decoding, threads", "decoding, processes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder whose pictures are taken, in any depth")
    parser.add_argument("--count", type=int, help="pictures to pack; default 10000, quick 500")
    parser.add_argument("--cpus", type=int, default=2, help="cores; default 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    with (
        measuring.report("packing", parser) as (report, arguments),
        tempfile.TemporaryDirectory(dir=arguments.folder) as name,
        ProcessPoolExecutor(arguments.cpus) as processes,
    ):
        count = arguments.count or (500 if arguments.quick else 10_000)
        files = make_tree(Path(name) / "tree", list(jpegs(arguments.images)), {"train": count, "test": count // 20})
        measure(report, files, Path(name), processes, arguments)


def measure(
    report: measuring.Report, files: list[Path], folder: Path, processes: Executor, arguments: argparse.Namespace
) -> None:
    contents = [file.read_bytes() for file in files]
    size = sum(map(len, contents)) / 1e6
    with threads(arguments.cpus) as pool:
        ways = {
            DECODING[0]: lambda: decode_all(pool, contents),
            DECODING[1]: lambda: decode_all(processes, files),
            "reading and writing alone": lambda: copy_all(files, folder / "copy"),
            "packing": lambda: pack_all(folder, arguments.cpus),
        }
        taken = measuring.in_turn(ways, arguments.rounds)
    report.say(f"{len(files):,} images, {size:.0f} MB, {arguments.cpus} cores, median of {arguments.rounds} rounds")
    for way, seconds in taken.items():
        rate = f"{len(files) / seconds.wall:8,.0f} images/s {size / seconds.wall:6,.0f} MB/s"
        processor = None if way == DECODING[1] else seconds.processor  # of processes that go on: not counted
        own = "" if processor is None else f", of processors {processor:.2f} s"
        report.say(
            f"{way:26} {rate}   {seconds.wall:.2f} s{own}",
            **{way: {"images_per_s": len(files) / seconds.wall, "processor_s": processor}},
        )
    decoding = min((taken[way] for way in DECODING), key=lambda seconds: seconds.wall)
    copying, packing = taken["reading and writing alone"], taken["packing"]
    limit, name = max((decoding, "the decoder"), (copying, "the disk"), key=lambda pair: pair[0].wall)
    of_time = measuring.ratio(limit, packing)
    known = limit is not taken[DECODING[1]]
    own = f"; of processor time {limit.processor / packing.processor:.2f}" if known else ""
    report.say(f"what binds: {name}; ratio {of_time:.2f}{own} (wanted {WANTED})", binds=name, ratio=of_time)


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


def pack_all(folder: Path, cpus: int) -> float:
    """Pack, and return the seconds; the store before is deleted on nobody's account, but for its processor time."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        prepare("folder", folder / "tree", folder / "store", Packing(cpus=cpus))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
