"""What binds on this GPU, a part at a time: benchmarks/gpu.sh OUT --check runs them all.

    python benchmarks/gpu_check.py convolutions|steps|start|resnet50|profile|run [--json FILE]

steps          a step of CIFAR-10's recipe in the first CHECKED ways of WAYS, or in those of --ways, with the share of
               the roofline sum that its networks reach (as one graph: that the whole step reaches), and what of a step
               as one graph its views are
start          two starts of pretrain.py with one_graph, the second with what the first has compiled
resnet50       the step of ImageNet's recipe with 256 pictures, as one graph and eager
profile        the kernels of an eager step and of one as a graph by their own time, and the host's operations
run            pretrain.py itself: rows, health figures, milestones, a checkpoint after 4 of 40 epochs, and from it to 6
convolutions   each shape of ResNet-18 at 32 pixels alone, forward and both gradients

What was measured is in FILE as soon as it is known. --quick compiles graphs as far as operators (aot_eager), of a
network of four blocks: Inductor takes minutes for a CPU's code.
"""

import argparse
import collections
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import measuring
import torch
from our_byol import OurStep, as_shipped
from pictures import small_store
from roofline import Peaks, kernels_of, measured_peaks, roofline_sum, tell_peaks
from short_training import pictures, rows, script
from start_up import first_step
from torch._inductor import config as inductor
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchvision.models.resnet import BasicBlock

from selfsup.data.store import PackedStore
from selfsup.errors import run_script
from selfsup.layout import boundary_name
from selfsup.models.backbone import LAYERS
from selfsup.recipe import Recipe, canonical, load_recipe
from selfsup.training import static_step

REPEATS = 20
PROFILED_STEPS, PROFILE_ROWS = 3, 40
RUN_EPOCHS, STOP_AT, END_AT = 40, 4, 6


@dataclass(frozen=True)
class Convolution:
    """A shape of ResNet-18's on pictures of 32 pixels. count: how many of them the network has."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    pixels: int
    count: int

    def __str__(self) -> str:
        return f"{self.inputs}-{self.outputs} {self.kernel}x{self.kernel}/{self.stride} {self.pixels}px"

    def flops(self, images: int) -> int:
        side = self.pixels // self.stride
        return 2 * images * side**2 * self.inputs * self.outputs * self.kernel**2


RESNET18 = [
    Convolution(3, 64, 3, 1, 32, 1),
    *(Convolution(64, 64, 3, 1, 32, 4), Convolution(64, 128, 3, 2, 32, 1), Convolution(128, 128, 3, 1, 16, 3)),
    *(Convolution(128, 256, 3, 2, 16, 1), Convolution(256, 256, 3, 1, 8, 3), Convolution(256, 512, 3, 2, 8, 1)),
    *(Convolution(512, 512, 3, 1, 4, 3), Convolution(64, 128, 1, 2, 32, 1), Convolution(128, 256, 1, 2, 16, 1)),
    *(Convolution(256, 512, 1, 2, 8, 1), Convolution(8, 64, 3, 1, 32, 0)),  # the last: a stem of padded channels
]


def main() -> None:
    parts = {"steps": steps, "start": start, "resnet50": resnet50, "profile": profiles, "run": run}
    parts |= {"convolutions": convolutions}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="+", choices=sorted(parts))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="of the part steps: only these")
    parser.add_argument("--cifar10", type=Path, help="of the part run: CIFAR-10's archive, folder or tree")
    parser.add_argument("--results", type=Path, help="of the part run: copy history.csv, knn.csv and ledger.csv there")
    with measuring.report("gpu_check", parser) as (report, options), tempfile.TemporaryDirectory() as folder:
        if options.quick:
            static_step.BACKEND = "aot_eager"
            LAYERS["resnet18"] = (BasicBlock, (1, 1, 1, 1))
        for part in options.part:
            parts[part](report, options, Path(folder))


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Return the median of a call's milliseconds, on a GPU by the device's own clock."""
    for _ in range(3):
        call()
    found = []
    for _ in range(repeats if device.type == "cuda" else 1):
        measuring.synchronize()
        began = time.perf_counter()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        for event in events[:1]:
            event.record()
        call()
        for event in events[1:]:
            event.record()
            event.synchronize()
        found.append(events[0].elapsed_time(events[1]) if events else 1e3 * (time.perf_counter() - began))
    return statistics.median(found)


def convolutions(report: measuring.Report, options: argparse.Namespace, folder: Path) -> None:
    """A step of BYOL's is four forward passes of a batch's views and two of each gradient, of every convolution."""
    device, images = options.device, 2 if options.quick else 1024  # two views of 512
    compute = as_shipped(device)
    peaks = measured_peaks(device, compute.precision) if not options.quick else None
    if peaks:
        tell_peaks(report, peaks)
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    found, whole = {}, [0.0, 0.0, 0.0]
    for shape in RESNET18[: 2 if options.quick else None]:
        times = _of_convolution(shape, images, dtype, device)
        rates = [shape.flops(images) / one / 1e9 for one in times]
        whole = [total + shape.count * one for total, one in zip(whole, times, strict=True)]
        found[str(shape)] = {"ms": times, "tflops": rates}
        told = [f"{ms:.3f} ms {rate:4.0f} TFLOP/s" for ms, rate in zip(times, rates, strict=True)]
        report.say(f"{shape!s:24} forward {told[0]}, input's gradient {told[1]}, weight's gradient {told[2]}")
    forward, inputs, weights = whole
    step = 2 * forward + inputs + weights  # online and target forward; the online network's gradients
    report.say(
        f"all of ResNet-18's for {images} pictures: forward {forward:.2f}, gradients {inputs:.2f} and {weights:.2f} "
        f"ms; a step's convolutions at that: {step:.2f} ms",
        convolutions=found,
        step_convolutions_ms=step,
    )


def _of_convolution(shape: Convolution, images: int, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Return the milliseconds of the forward pass, of the input's gradient and of the weight's."""
    side, pad = shape.pixels // shape.stride, shape.kernel // 2

    def made(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device).to(dtype).contiguous(memory_format=torch.channels_last)

    x = made(images, shape.inputs, shape.pixels, shape.pixels)
    weight = made(shape.outputs, shape.inputs, shape.kernel, shape.kernel)
    slope = made(images, shape.outputs, side, side)
    settings = [shape.stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1
    back = lambda mask: torch.ops.aten.convolution_backward(slope, x, weight, None, *settings, mask)  # noqa: E731
    calls = [
        lambda: F.conv2d(x, weight, None, shape.stride, pad),
        lambda: back([True, False, False]),
        lambda: back([False, True, False]),
    ]
    return [milliseconds(call, device) for call in calls]


# The ways of computing a step, by how much they tell if the time is over.
WAYS = {
    "one graph": {"one_graph": True},
    "one graph, combined kernels": {"one_graph": True, "combined_kernels": True},
    "one graph, combined kernels, update too": {"one_graph": True, "combined_kernels": True, "compiled_update": True},
    "eager": {},
    "one graph, combined but for sums": {"one_graph": True, "combined_kernels": True},
    "static views": {"static_views": True},
    "compiled": {"compile": True},
    "fp16": {},
}
CHECKED = 4  # of them, as many as fit into the part's time
# What they take until the first step is done, in s: the first and the last as an H200 had it, the others supposed.
STARTS = dict(zip(WAYS, (46, 46, 52, 7), strict=False))
VIEWS_AT_ONCE = 10


def steps(report: measuring.Report, options: argparse.Namespace, folder: Path) -> None:
    checked = list(WAYS)[:CHECKED]
    if options.quick:
        checked.remove("one graph, combined kernels")  # the same operators as with the update
    _tell_steps(report, options, _recipe(options), folder, options.ways or checked)


def resnet50(report: measuring.Report, options: argparse.Namespace, folder: Path) -> None:
    recipe = _recipe(options, "imagenet", {"global_batch": 256, "micro_batches": 1})
    _tell_steps(report, options, recipe, folder, ["one graph", "eager"], turn=8)


def start(report: measuring.Report, options: argparse.Namespace, folder: Path) -> None:
    recipe = _recipe(options)
    store = _store(options, recipe, folder)
    arguments = ["--recipe", canonical(recipe), *([] if options.quick else ["--one-graph"])]
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # of these two alone: the first finds it empty
    seconds = []
    for number in ("first", "second"):
        seconds.append(first_step(arguments, store.folder, folder / number, options.device.type))
        report.say(f"{number} start: {seconds[-1]:.1f} s to the first row of history.csv", starts_s=seconds)


def _recipe(options: argparse.Namespace, name: str = "cifar10", changes: dict | None = None) -> Recipe:
    tiny = {"global_batch": 4, "model": {"width": 4}, "optimizer": {"warmup_epochs": 0}}
    return load_recipe("cifar10", tiny) if options.quick else load_recipe(name, changes or {})


def _tell_steps(
    report: measuring.Report,
    options: argparse.Namespace,
    recipe: Recipe,
    folder: Path,
    ways: Sequence[str],
    turn: int = 30,
) -> None:
    """Tell a step's time in each of several ways; one that fails is told, and the others go on."""
    store = _store(options, recipe, folder)
    peaks = least = None
    for way in ways:
        compute = replace(as_shipped(options.device, "fp16" if way == "fp16" else "auto"), **WAYS[way])
        peaks = peaks or (None if options.quick else measured_peaks(options.device, compute.precision))
        figures: dict[str, float] = {}
        try:
            with inductor.patch(combo_kernels_pointwise_only="but for sums" in way):
                for found in _of_step(store, recipe, compute, folder, turn=2 if options.quick else turn):
                    figures |= found
                    _tell(report, recipe, way, found, figures)
        except Exception as error:  # of whatever kind: the others' figures are not lost for it
            report.say(f"{way}: failed, {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        finally:
            torch.cuda.empty_cache()
        least = least or (1e3 * _least(store, recipe, compute, folder, peaks) if peaks and figures else None)
        if least and figures:
            share = {"roofline_share": least / figures.get("networks_ms", figures["step_ms"])}
            _tell(report, recipe, way, share, figures | share)


def _tell(report: measuring.Report, recipe: Recipe, way: str, found: dict[str, float], figures: dict) -> None:
    """Tell what was found of a way; `figures` are all that is known of it."""
    told = "  ".join(f"{name} {value:.3g}" for name, value in found.items())
    if "step_ms" in found:
        told += f", {1e3 * recipe['global_batch'] / found['step_ms']:,.0f} images/s"
    report.say(f"{recipe['model']['backbone']}, {way}: {told}", **{way: dict(figures)})


def _store(options: argparse.Namespace, recipe: Recipe, folder: Path) -> PackedStore:
    small = recipe["augment"]["size"] == 32  # as many as CIFAR-10's, for which a compiled step is then kept
    return small_store(folder / "store", 40 if options.quick else 50_000 if small else 5_000, recipe["augment"]["size"])


def _of_step(store: PackedStore, recipe: Recipe, compute, folder: Path, *, turn: int) -> Iterator[dict[str, float]]:
    """Yield a step's time, then its parts': what is known by then is not lost if the time is over."""
    began, device = time.perf_counter(), compute.device
    memory = measuring.PeakMemory(device)
    step = OurStep(store, recipe, replace(compute, workers=min(compute.workers, 8)), folder)
    step.turn(1)
    started = time.perf_counter() - began
    memory.reset()
    step_ms = min(1e3 * step.turn(turn) / turn for _ in range(2))
    yield {"start_s": started, "step_ms": step_ms, "peak_gb": memory.bytes() / 1e9}
    if compute.one_graph:
        if not compute.combined_kernels:  # to compile them once is enough
            yield _of_views(step, step_ms)
        return
    parts = {f"{name}_alone_ms": 1e3 * seconds for name, seconds in step.parts(min(turn, 10)).items()}
    yield parts | {"networks_ms": milliseconds(step.on_ready_views(), device)}


def _of_views(step: OurStep, step_ms: float) -> dict[str, float]:
    """Return the milliseconds of the views of a step as one graph, and their share of it.

    They are compiled by themselves and, on a GPU, launched several times at once, so that the host does not count.
    """
    maker, device = step.training.make_views, step.compute.device
    inputs = maker.inputs(step.training.batches[step.training.step])
    compiled = static_step.compiled(maker.views_of, step.compute)
    with torch.no_grad():
        call = _at_once(lambda: compiled(inputs.pictures, inputs.parameters), device)
        found = milliseconds(call, device) / VIEWS_AT_ONCE
    return {"views_ms": found, "views_share": found / step_ms}


def _at_once(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return a function that calls another VIEWS_AT_ONCE times; on a GPU as one CUDA graph."""

    def calls() -> None:
        for _ in range(VIEWS_AT_ONCE):
            call()

    if device.type != "cuda":
        return calls
    calls()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        calls()
    return graph.replay


def _least(store: PackedStore, recipe: Recipe, compute, folder: Path, peaks: Peaks) -> float:
    """Return the roofline sum of networks, loss, optimiser and average, in seconds."""
    step = OurStep(store, recipe, replace(compute, compile=False, one_graph=False, workers=0), folder)
    return roofline_sum(kernels_of(step.on_ready_views()), peaks)


def profiles(report: measuring.Report, options: argparse.Namespace, folder: Path) -> None:
    recipe = _recipe(options)
    store = _store(options, recipe, folder)
    for way in ("eager",) if options.quick else ("one graph", "eager"):
        compute = replace(as_shipped(options.device), workers=0, **WAYS[way])
        step = OurStep(store, recipe, compute, folder)
        step.turn(3)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device.type == "cuda")
        with profile(activities=activities) as profiled:
            step.turn(PROFILED_STEPS - 1)  # and the one that does not count
        for where, on_device in (("kernels", True), ("host", False)):
            table = list(_by_name(profiled, on_device))
            if not table:
                continue
            name = f"{where}, {way}"
            whole, calls = sum(row[1] for row in table), sum(row[2] for row in table)
            report.say(f"{name}: {whole:.2f} ms a step in {calls:.0f} events")
            for kernel, ms, count in table[: PROFILE_ROWS // 2]:
                report.say(f"  {ms:8.3f} ms {count:7.1f} x  {kernel[:110]}")
            report.say(**{name: {"ms": whole, "events": calls, "rows": table[:PROFILE_ROWS]}})
        del step


def _by_name(profiled: profile, on_device: bool) -> Iterator[tuple[str, float, float]]:
    """Yield name, milliseconds and number of a step's kernels, or of the host's operations, the longest first."""
    found = collections.defaultdict(lambda: [0.0, 0])
    for event in profiled.events():
        if (event.device_type == DeviceType.CUDA) == on_device:
            own = event.device_time if on_device else event.self_cpu_time_total
            found[event.name][0] += own / 1e3
            found[event.name][1] += 1
    for name, (ms, count) in sorted(found.items(), key=lambda item: -item[1][0]):
        yield name, ms / PROFILED_STEPS, count / PROFILED_STEPS


def run(report: measuring.Report, options: argparse.Namespace, folder: Path) -> None:
    store, meaning = pictures(options, folder / "data")
    name, stop, end = ("digits", 1, 2) if options.quick else ("cifar10", STOP_AT, END_AT)
    own = {"epochs": end if options.quick else RUN_EPOCHS, "optimizer": {"warmup_epochs": 0 if options.quick else 1}}
    recipe = load_recipe(name, own | ({"model": {"width": 4}} if options.quick else {}))
    pretrain = folder / "pretrain"
    computing = ["--data", str(store.folder), "--device", options.device.type, "--one-graph", "auto"]
    computing += ["--cpus", str(torch.get_num_threads())]
    for epoch, previous in ((stop, 0), (end, stop)):
        until = ["--until-epoch", str(epoch), "--previous", str(previous)]
        script("pretrain.py", "--recipe", canonical(recipe), *computing, "--run-folder", str(pretrain), *until)
    attempts, history = rows(pretrain / "ledger.csv"), rows(pretrain / "history.csv")
    size = (pretrain / boundary_name(stop)).stat().st_size
    steady = statistics.median(float(row["images_per_s"]) for row in history[len(history) // 10 :])
    report.say(
        f"{meaning}: {steady:,.0f} images/s, an epoch {len(store.train) / steady:.2f} s; a checkpoint of "
        f"{size / 1e6:.0f} MB; {len(attempts)} attempts, held up by {', '.join(one['stall_s'] for one in attempts)} s",
        images_per_s=steady,
        attempts=attempts,
        checkpoint_bytes=size,
    )
    if options.results:
        for file in ("history.csv", "knn.csv", "ledger.csv"):
            (options.results / f"run_{file}").write_text((pretrain / file).read_text())


if __name__ == "__main__":
    run_script(main)
