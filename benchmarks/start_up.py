"""How long a segment takes from process start to the end of its first step, and what the time goes into.

    python benchmarks/start_up.py [--rounds 3]

pretrain.py is run by hand, as a rule runs it, on the packed digits and on CIFAR-10's recipe with pictures of its kind,
timed until the first row of history.csv is there (the first step, the digits' second); another process times the parts:
imports, networks, the first batch with its views, the first step. Wanted: under 15 s on a CPU, without compiling.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring
import torch
from pictures import small_store

from selfsup.data.preparing import prepare
from selfsup.errors import UserError

WANTED_S = 15.0
POLL_S = 0.01
PATIENCE_S = 300.0
BATCH = {"cpu": 64, "cuda": 512}  # of CIFAR-10's recipe: a step of 512 takes half a minute on two cores
PRETRAIN = Path(__file__).parents[1] / "workflow" / "scripts" / "pretrain.py"

# What a segment does until its first step is done, timed part by part. argv: recipe, data, folder, device, threads.
PARTS = """
import time
began = time.perf_counter()
def part(name):
    global began
    now = time.perf_counter()
    print(name, now - began, flush=True)
    began = now
import sys
sys.path.insert(0, {here!r})
import measuring
from pathlib import Path
from our_byol import OurStep, as_shipped
from selfsup.data.store import PackedStore
from selfsup.recipe import parse_recipe
import torch
part("imports")
recipe, data, folder, device, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
compute = as_shipped(torch.device(device))
part("device")
step = OurStep(PackedStore(Path(data)), parse_recipe(recipe), compute, Path(folder))
part("networks and optimiser")
views = step.training.make_views(batch := next(step.batches(1)))
part("first batch")
step.training.make_views = lambda _: views
step.training.train_step(batch)
measuring.synchronize()
part("first step")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    with measuring.report("start_up", parser) as (report, options), tempfile.TemporaryDirectory() as name:
        folder, batch = Path(name), BATCH[options.device.type]
        prepare("digits", None, folder / "digits")
        small_store(folder / "cifar10", 10 * batch)
        cases = {
            "digits": ["--recipe", "digits"],
            "cifar10": ["--recipe", recipe_of("cifar10", batch)],
        }
        for case, recipe in cases.items():
            measure(report, case, recipe, folder, options)


def recipe_of(name: str, batch: int) -> str:
    from selfsup.recipe import canonical, load_recipe

    return canonical(load_recipe(name, {"global_batch": batch}))


def measure(report: measuring.Report, case: str, recipe: list[str], folder: Path, options: argparse.Namespace) -> None:
    rounds, device = options.rounds or (1 if options.quick else 3), options.device.type
    seconds, busy, parts = [], [], []
    for number in range(rounds):
        began = measuring.processor_seconds()
        seconds.append(first_step(recipe, folder / case, folder / f"{case}{number}", device))
        busy.append(measuring.processor_seconds() - began)
        parts.append(parts_of(recipe[1], folder / case, folder / f"{case}{number}_parts", device))
    whole = statistics.median(seconds)
    report.say(
        f"{case}: {whole:.2f} s from process start to the first step, {statistics.median(busy):.2f} s of processors, "
        f"median of {rounds} (wanted under {WANTED_S:g})",
        **{case: {"seconds": whole, "all": seconds, "processor_s": busy}},
    )
    medians = {name: statistics.median(one[name] for one in parts) for name in parts[0]}
    told = ", ".join(f"{name} {value:.2f} s" for name, value in medians.items())
    report.say(f"  in a process of its own: {told}", **{f"{case}_parts": medians})


def first_step(recipe: list[str], data: Path, folder: Path, device: str) -> float:
    """Return the seconds from starting pretrain.py to the first row of its history.csv, and end it."""
    command = [sys.executable, str(PRETRAIN), *recipe, "--data", str(data), "--run-folder", str(folder)]
    command += ["--until-epoch", "1", "--device", device, "--cpus", str(torch.get_num_threads())]
    log, began = folder.with_suffix(".log"), time.perf_counter()
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ})
        try:
            while not rows(folder / "history.csv"):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                    raise UserError(f"pretrain.py did not come to its first step: {log.read_text()[-500:]}")
                time.sleep(POLL_S)
            return time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def rows(path: Path) -> int:
    try:
        return path.read_text().count("\n") - 1
    except OSError:
        return 0


def parts_of(recipe: str, data: Path, folder: Path, device: str) -> dict[str, float]:
    """Return the seconds of each part of a start, in a process that does the same."""
    program = PARTS.format(here=str(Path(__file__).parent))
    arguments = [recipe, str(data), str(folder), device, str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the start could not be taken apart: {done.stderr[-500:]}")
    lines = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    return {name: float(seconds) for name, seconds in lines}


if __name__ == "__main__":
    main()
