"""Our training step with its data, beside a plain PyTorch reference, lightly's building blocks and the roofline.

    python benchmarks/training_step.py [--size cifar10 resnet50] [--levers] [--memory]

From packed pictures to updated networks, in turn in one process: batch norm, heads, loss, LARS, moving average and
augmentation of the recipe, whoever computes them. Ratios, as medians over rounds of neighbours in time:

as shipped       ours as a run without options computes it; the peers in float32 and NCHW, as a student and lightly's
                 example have them, with as many loader processes as cores
equal            the peers with our precision, memory layout, threads, loader processes and malloc settings
a lever removed  ours without one of its means, the others kept (--levers)

Then where our step's time goes, what it reaches of the roofline (roofline.py has the model), and the peak memory of
each, every one in a process of its own (--memory). lightly takes part where it is installed (`make bench` does it).
Sizes: ResNet-18 on 32-pixel pictures as CIFAR-10's, and ResNet-50 at 224 pixels on JPEGs of ImageNet's mean size.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measuring
import torch
from contenders import EQUAL, LIGHTLY, OURS, PLAIN, SIZES, Contender, Field
from our_byol import OurStep
from roofline import kernels_of, measured_peaks, roofline_sum, tell_peaks, total
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from selfsup.engine.compute import Compute
from selfsup.errors import UserError

PROFILE_ROWS = 20
WANTED = {"cpu": {PLAIN: 3.5, LIGHTLY: 2.5, LIGHTLY + EQUAL: 1.3}}  # of ResNet-18 with CIFAR-10's pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=sorted(SIZES), default=sorted(SIZES))
    parser.add_argument("--levers", action="store_true", help="measure ours without each of its levers too")
    parser.add_argument("--memory", action="store_true", help="measure each contender's peak memory too")
    parser.add_argument("--profile", action="store_true", help="print the operations that take most of our step")
    parser.add_argument("--only", nargs="+", help="of these contenders, by name; ours is always one")
    parser.add_argument("--batch", type=int, help="default: by size and device")
    parser.add_argument("--steps", type=int, help="of a turn; default: by size and device")
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the process that --memory starts for a contender
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    if "--memory-of" in sys.argv:
        print(json.dumps(peak_memory(measuring.arguments_of(parser))))
        return
    with measuring.report("training_step", parser) as (report, options):
        for size in options.size:
            with tempfile.TemporaryDirectory() as folder:
                compare(report, size, Path(folder), options)


def compare(report: measuring.Report, size: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure all contenders on one size."""
    field, rounds = Field(size, folder, options), options.rounds or (1 if options.quick else 3)
    built = field.contenders(levers=options.levers)
    if options.only:
        built = {name: make for name, make in built.items() if name == OURS or name in options.only}
    backbone, pixels = field.recipe["model"]["backbone"], field.recipe["augment"]["size"]
    report.say(
        f"\n{size}: {backbone}, {pixels} pixels, batch {field.batch}, {describe(field.compute)}; "
        f"{rounds} rounds of {field.steps} steps"
    )
    if LIGHTLY not in built and not options.only:
        report.say("lightly is not installed: pip install --no-deps -r requirements-bench.txt")
    # First: a process of its own needs the memory that the contenders here would hold.
    memory = {name: memory_of(name, size, folder, options, field.batch) for name in built if options.memory}
    steps = ready(report, built)
    ways = {name: partial(step.turn, field.steps) for name, step in steps.items()}
    taken = measuring.in_turn(ways, rounds, warm_up=0)
    images, figures = field.steps * field.batch, {}
    for name, seconds in taken.items():
        text, figures[name] = line(name, seconds, taken[OURS], images, memory.get(name), wanted(size, field, name))
        report.say(text)
    step_s = taken[OURS].wall / field.steps
    own = steps[OURS]
    steps.clear()
    figures["parts"] = tell_parts(report, own, field.steps)
    figures["roofline"] = tell_roofline(report, field, own, step_s)
    if options.profile:
        figures["profile"] = tell_profile(report, own)
    if options.memory:
        figures["per_image"] = tell_memory_per_image(report, size, folder, field, options, memory[OURS])
    if size == "cifar10":
        epoch = 50_000 // field.batch * step_s
        report.say(f"an epoch of CIFAR-10, {50_000 // field.batch} such steps: {epoch:.2f} s")
        figures["epoch_s"] = epoch
    report.say(**{size: {"batch": field.batch, "compute": describe(field.compute), **figures}})


def ready(report: measuring.Report, built: dict[str, Callable[[], Contender]]) -> dict[str, Contender]:
    """Build the contenders and let each train a little, to warm up; tell of those that cannot."""
    steps = {}
    for name, make in built.items():
        try:
            steps[name] = make()
            steps[name].turn(1)
        except torch.cuda.OutOfMemoryError as error:
            if name == OURS:
                raise UserError("our own step does not fit into the GPU's memory: take a smaller --batch") from error
            steps.pop(name, None)
            report.say(f"{name}: out of memory, left out")
            torch.cuda.empty_cache()
        except Exception as error:  # of whatever kind: the others' figures are not lost for it
            if name == OURS:
                raise
            steps.pop(name, None)
            report.say(f"{name}: left out, {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
    return steps


def describe(compute: Compute) -> str:
    layout = "channels-last" if compute.channels_last else "NCHW"
    compiled = ", compiled" if compute.compile else ""
    return f"{compute.precision}, {layout}{compiled}, {compute.threads} threads, {compute.workers} loader processes"


def wanted(size: str, field: Field, name: str) -> float | None:
    return WANTED.get(field.device.type, {}).get(name) if size == "cifar10" else None


def line(
    name: str, seconds: measuring.Taken, ours: measuring.Taken, images: int, memory: int | None, goal: float | None
) -> tuple[str, dict]:
    """Return what is said of a contender, and its figures."""
    times, (low, high) = measuring.ratio(seconds, ours), measuring.spread(seconds, ours)
    held = "" if memory is None else f"   peak memory {memory / 1e6:8,.0f} MB"
    hoped = f" (wanted {goal:g})" if goal else ""
    busy = measuring.processor_ratio(seconds, ours)
    compared = f"   ours is {times:5.2f} times as fast, {low:.2f} to {high:.2f}, by processor time {busy:.2f}{hoped}"
    compared = "" if seconds is ours else compared
    figures = {"images_per_s": images / seconds.wall, "ratio": times, "spread": [low, high], "processor_ratio": busy}
    figures["peak_bytes"] = memory
    return f"{name:30} {images / seconds.wall:9.2f} images/s{held}{compared}", figures


def tell_parts(report: measuring.Report, step: OurStep, steps: int) -> dict[str, float]:
    """Tell where the time of our step goes."""
    step.parts(1)
    parts = step.parts(max(steps, 2))
    whole = sum(parts.values())
    shares = ", ".join(f"{name} {1e3 * seconds:.1f} ms ({seconds / whole:.1%})" for name, seconds in parts.items())
    report.say(f"parts of our step, the device made to finish each: {shares}")
    return parts


def tell_roofline(report: measuring.Report, field: Field, step: OurStep, step_s: float) -> dict[str, float]:
    """Tell what our step reaches of what the device can do."""
    peaks = measured_peaks(field.device, field.compute.precision)
    tell_peaks(report, peaks)
    eager = step if not field.compute.compile else field.ours(compile=False)
    kernels = kernels_of(eager.on_ready_views())
    (flops, moved), least = total(kernels), roofline_sum(kernels, peaks)
    report.say(
        f"networks, loss, optimiser: {len(kernels)} kernels, {flops / 1e9:.0f} GFLOP, {moved / 1e9:.2f} GB a step; "
        f"with data: {flops / step_s / 1e12:.3g} TFLOP/s, {moved / step_s / 1e9:.4g} GB/s; "
        f"roofline sum {1e3 * least:.1f} of {1e3 * step_s:.1f} ms: {least / step_s:.1%}"
    )
    return {"flops": flops, "bytes": moved, "sum_s": least, "step_s": step_s, "share": least / step_s}


def tell_profile(report: measuring.Report, step: OurStep) -> list[dict]:
    """Tell which operations our step's time goes into, with reading, by torch's profiler."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_initialized()
    with profile(activities=activities, acc_events=True) as profiled:
        step.turn(2)
    rows = []
    for event in profiled.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time stands with the operation that started it
        own = event.self_device_time_total if torch.cuda.is_initialized() else event.self_cpu_time_total
        rows.append({"operation": event.key, "calls": event.count, "ms": own / 1e3})
    whole = sum(row["ms"] for row in rows)
    rows = sorted(rows, key=lambda row: -row["ms"])[:PROFILE_ROWS]
    report.say("three steps by operation:      ms   share    calls")
    for row in rows:
        report.say(f"  {row['ms']:10.1f} {row['ms'] / whole:7.1%} {row['calls']:8}  {row['operation'][:90]}")
    return rows


def memory_of(name: str, size: str, folder: Path, options: argparse.Namespace, batch: int) -> int | None:
    """Return the bytes that a contender holds at most, or None where it ran out of memory."""
    command = [sys.executable, __file__, "--memory-of", name, "--size", size, "--folder", str(folder)]
    command += ["--device", options.device.type, "--batch", str(batch), "--threads", str(torch.get_num_threads())]
    command += ["--levers"] + ["--quick"] * options.quick
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def peak_memory(options: argparse.Namespace) -> dict[str, int]:
    """Build the contender of --memory-of, train two steps and return the peak beyond what the process held before."""
    field = Field(options.size[0], options.folder, options)
    memory = measuring.PeakMemory(options.device)
    with contextlib.redirect_stdout(sys.stderr):
        if options.device.type == "cuda":
            torch.zeros(1, device=options.device)
        memory.reset()
        field.contenders(levers=True)[options.memory_of]().turn(1)
    return {"peak_bytes": memory.bytes()}


def tell_memory_per_image(
    report: measuring.Report, size: str, folder: Path, field: Field, options: argparse.Namespace, whole: int | None
) -> dict[str, float]:
    """Tell what an image takes, from two batches, and what the recipe's batches per device would."""
    half = memory_of(OURS, size, folder, options, field.batch // 2)
    if not whole or not half:
        return {}
    each = (whole - half) / (field.batch - field.batch // 2)
    fixed = whole - each * field.batch
    computed = ", ".join(f"{count} images {(fixed + each * count) / 1e9:.1f} GB" for count in (128, 256))
    report.say(
        f"ours, from batches of {field.batch // 2} and {field.batch}: {each / 1e6:.1f} MB an image and "
        f"{fixed / 1e6:.0f} MB besides; computed for {computed}"
    )
    return {"image_bytes": each, "fixed_bytes": fixed}


if __name__ == "__main__":
    main()
