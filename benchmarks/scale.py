"""A dataset of ImageNet's size: 1,281,167 tiny JPEGs in 1,000 classes, packed, opened, read, and read on in mid-epoch.

    python benchmarks/scale.py --images 1281167 [--cpus 2] [--workers 8] [--folder FOLDER]

The pictures are few and small, and repeated: their number is what is measured. They are made as one tar, which is
packed as any dataset is. Says the seconds of packing, the bytes of what is not pictures, the seconds from a new process
to the store's first batch, what each loader process has for itself, and the seconds from a new process to a batch in
the middle of an epoch.
"""

import argparse
import contextlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import measuring
import psutil
from pictures import noise
from torchvision.io import encode_jpeg

from selfsup.data.loader import Batches
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore
from selfsup.recipe import load_recipe

CLASSES, PIXELS, KINDS = 1_000, 16, 50
EPOCH = 3  # whose middle is read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="training images; default 100000, quick 2000; 1281167: ImageNet's")
    parser.add_argument("--cpus", type=int, default=2, help="cores that pack; default 2")
    parser.add_argument("--workers", type=int, default=8, help="loader processes; default 8")
    parser.add_argument("--folder", type=Path, help="where to write 2 GB; default: the system's for temporary files")
    parser.add_argument("--first-batch", type=int, help=argparse.SUPPRESS)  # of this step: what the processes are told
    with measuring.report("scale", parser) as (report, options):
        count = options.images or (2_000 if options.quick else 100_000)
        if options.first_batch is not None:
            first_batch(report, options)
            return
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            measure(report, Path(name), count, options)


def measure(report: measuring.Report, folder: Path, count: int, options: argparse.Namespace) -> None:
    made = timed(lambda: make_tar(folder / "tiny.tar", count))
    report.say(f"{count:,} images made in {made:.0f} s, {(folder / 'tiny.tar').stat().st_size / 1e9:.2f} GB of tar")
    with contextlib.redirect_stderr(io.StringIO()):
        packing = timed(lambda: prepare("folder", folder / "tiny.tar", folder / "store", Packing(cpus=options.cpus)))
    store = folder / "store"
    sizes = {path.name: path.stat().st_size for path in store.iterdir()}
    pictures = sum(size for name, size in sizes.items() if name.endswith("images.npy"))
    report.say(
        f"packed in {packing:.0f} s, {count / packing:,.0f} images/s; the store: {pictures / 1e6:.0f} MB of pictures, "
        f"{(sum(sizes.values()) - pictures) / 1e6:.1f} MB besides",
        packing_s=packing,
        bytes=sizes,
    )
    opening = timed(lambda: PackedStore(store))
    recipe = tiny_recipe(count)
    per_epoch = Batches(PackedStore(store).train, recipe, seed=0, stage="pretrain").steps_per_epoch
    report.say(f"opened in {1e3 * opening:.0f} ms; {per_epoch:,} steps an epoch", opening_s=opening)
    for name, step in (("the first batch", 0), ("a batch in mid-epoch", EPOCH * per_epoch + per_epoch // 2)):
        own = [__file__, "--folder", str(store), "--first-batch", str(step), "--workers", str(options.workers)]
        began = time.perf_counter()
        said = subprocess.run([sys.executable, *own], check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - began
        found = {key: float(re.search(rf"{key} ([\d.]+)", said)[1]) for key in ("own_mb", "worker_mb", "batch_s")}
        report.say(
            f"{name} (step {step:,}) {seconds:.1f} s after a process's start, {found['batch_s']:.2f} of them reading; "
            f"the process has {found['own_mb']:.0f} MB for itself, each of {options.workers} loader processes "
            f"{found['worker_mb']:.0f} MB",
            **{name: {"step": step, "seconds": seconds, **found}},
        )


def first_batch(report: measuring.Report, options: argparse.Namespace) -> None:
    """Read one batch, as a job does that begins or goes on there, while its loader processes are looked at."""
    began = time.perf_counter()
    store = PackedStore(options.folder)
    batches = Batches(store.train, tiny_recipe(len(store.train)), seed=0, stage="pretrain")
    step = options.first_batch
    with contextlib.closing(batches.read(step, step + 1_000, workers=options.workers, pin_memory=False)) as reading:
        next(reading)
        seconds = time.perf_counter() - began
        workers = [own_mb(child) for child in psutil.Process().children()]
    report.say(f"own_mb {own_mb(psutil.Process()):.1f} worker_mb {max(workers, default=0):.1f} batch_s {seconds:.3f}")


def own_mb(process: psutil.Process) -> float:
    """Return the MB that a process shares with no other."""
    return process.memory_full_info().uss / 1e6


def tiny_recipe(count: int):
    size = {"size": PIXELS}
    return load_recipe("imagenet", {"global_batch": min(256, count), "micro_batches": 1, "augment": size})


def make_tar(path: Path, count: int) -> None:
    contents = [encode_jpeg(one, quality=50).numpy().tobytes() for one in noise(KINDS, PIXELS, PIXELS)]
    with tarfile.open(path, "w") as tar:
        for split, number in (("train", count), ("test", max(count // 100, CLASSES))):
            for index in range(number):
                member = tarfile.TarInfo(f"{split}/class{index % CLASSES:04}/{index:07}.jpg")
                content = contents[index % KINDS]
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def timed(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
