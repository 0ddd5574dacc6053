"""The roofline: what a step must compute and move, against what the device can, measured in the same run.

    python benchmarks/roofline.py [--recipe imagenet] [--batch 256]

The model. A step is the list of kernels that eager execution launches. Each computes the operations of its convolutions
and matrix products (torch's own counting formulas; 2 for a multiply-add) and moves every tensor that it reads or writes
once, from and to memory; views move nothing. A kernel takes at least the longer of operations over the device's peak in
their precision and bytes over its bandwidth; the roofline sum is that over all kernels. Fused or compiled execution may
move less, and caches may serve what this model takes from memory: then a share above 1 is possible.

Run by itself it counts the kernels of a recipe's step on two small batches on this machine, and extends each kernel, a
linear function of the batch, to --batch images; the times of devices that are not here are computed from their data
sheets, and are labelled so.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch
from our_byol import OurStep, as_shipped
from pictures import small_store
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from selfsup.engine.device import DTYPES
from selfsup.recipe import load_recipe

# Matrix products large enough for the peak, copies larger than any cache.
MATRIX = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
REPEATS = 10
# Dense operations and bytes per second, by NVIDIA's data sheets: H100 SXM (2023), Tesla V100 SXM2 (2018).
DATA_SHEETS = {"H100 SXM, bf16": (989e12, 3.35e12), "V100 SXM2, fp16": (125e12, 0.9e12)}
CREATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")  # write nothing


@dataclass(frozen=True)
class Kernel:
    """One operation of a step: floating-point operations, bytes moved, and the type that it computes in."""

    name: str
    flops: float
    bytes: float
    dtype: torch.dtype

    def seconds(self, peaks: "Peaks") -> float:
        return max(self.flops / peaks.flops[self.dtype] if self.flops else 0.0, self.bytes / peaks.bytes)


@dataclass(frozen=True)
class Peaks:
    """What a device reaches: operations per second by type, bytes per second."""

    flops: Mapping[torch.dtype, float]
    bytes: float


class Kernels(TorchDispatchMode):
    """Records the kernels of what is run inside, backward passes included."""

    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        name = operation.overloadpacket.__name__
        if not operation.is_view and name not in CREATES:
            count = flop_registry.get(operation.overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            read, written = list(_tensors((args, kwargs))), list(_tensors(out))
            moved = sum({tensor.data_ptr(): _size(tensor) for tensor in read}.values()) + sum(map(_size, written))
            self.kernels.append(Kernel(name, flops, moved, (written or read or [torch.empty(0)])[0].dtype))
        return out


def _tensors(tree) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


def _size(tensor: torch.Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def kernels_of(step: Callable[[], object]) -> list[Kernel]:
    """Return the kernels that a call launches."""
    with Kernels() as recorded:
        step()
    return recorded.kernels


def kept_for_backward(step: Callable[[], object], parameters: Iterable[torch.Tensor]) -> int:
    """Return the bytes of all storages that a call's forward passes keep for the backward pass, parameters apart."""
    known, kept = {parameter.untyped_storage().data_ptr() for parameter in parameters}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(size for place, size in kept.items() if place not in known)


def total(kernels: list[Kernel]) -> tuple[float, float]:
    """Return the kernels' operations and bytes."""
    return sum(kernel.flops for kernel in kernels), sum(kernel.bytes for kernel in kernels)


def roofline_sum(kernels: list[Kernel], peaks: Peaks) -> float:
    """Return the seconds that the kernels take at least."""
    return sum(kernel.seconds(peaks) for kernel in kernels)


def extended(one: list[Kernel], two: list[Kernel], images: tuple[int, int], wanted: int) -> list[Kernel]:
    """Return the kernels for a batch of `wanted`, from those of two batches: each is linear in the batch."""
    if [kernel.name for kernel in one] != [kernel.name for kernel in two]:
        raise ValueError("the two batches launched different kernels")
    share = (wanted - images[0]) / (images[1] - images[0])
    return [
        Kernel(a.name, a.flops + share * (b.flops - a.flops), a.bytes + share * (b.bytes - a.bytes), a.dtype)
        for a, b in zip(one, two, strict=True)
    ]


def measured_peaks(device: torch.device, precision: str) -> Peaks:
    """Measure matrix products in float32 and the precision given, and copying."""
    flops = {torch.float32: _matrix_product(device, torch.float32)}
    if precision != "fp32":
        flops[DTYPES[precision]] = _matrix_product(device, DTYPES[precision])
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return Peaks(flops, 2 * source.nbytes / _best(lambda: target.copy_(source)))


def _matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    side = MATRIX[device.type]
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * side**3 / _best(lambda: torch.mm(one, other, out=out))


def _best(run: Callable[[], object]) -> float:
    """Return the fewest seconds of several calls: a peak is what the device does undisturbed."""
    seconds = []
    for _ in range(REPEATS):
        measuring.synchronize()
        began = time.perf_counter()
        run()
        measuring.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def tell_peaks(report: measuring.Report, peaks: Peaks) -> None:
    types = {str(dtype).removeprefix("torch."): flops for dtype, flops in peaks.flops.items()}
    text = ", ".join(f"{name} {flops / 1e12:.3g} TFLOP/s" for name, flops in types.items())
    report.say(
        f"peaks measured: matrix products {text}; copying {peaks.bytes / 1e9:.4g} GB/s (read and written)",
        peaks={**types, "bytes_per_s": peaks.bytes},
    )


def tell_memory(report: measuring.Report, networks: torch.nn.ModuleDict, image: float, batch: int) -> None:
    """Tell what a step holds at least: activations, and for each weight of online network and target its copies."""
    online, target = (sum(p.numel() for p in networks[name].parameters()) for name in ("online", "target"))
    weights = online * (4 + 4 + 4 + 2) + target * (4 + 2)  # float32 weight, gradient, momentum, and a 16-bit copy
    report.say(
        f"kept for the backward pass: {image / 1e6:.1f} MB an image; with weights, gradients and momentum computed for "
        f"batch {batch}: {(image * batch + weights) / 1e9:.1f} GB, besides what kernels use for a moment",
        image_kept_bytes=image,
        weights_bytes=weights,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--batch", type=int, help="images on the device; default: the recipe's")
    parser.add_argument("--precision", choices=["bf16", "fp16", "fp32"], default="bf16")
    with measuring.report("roofline", parser) as (report, arguments), tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(arguments.recipe)
        batch, size = arguments.batch or recipe["global_batch"], recipe["augment"]["size"]
        store = small_store(Path(folder), 8, size)
        counted, kept, images = [], [], (2, 4)
        for count in images:
            compute = as_shipped(arguments.device, arguments.precision)
            step = OurStep(store, load_recipe(arguments.recipe, {"global_batch": count}), compute, Path(folder))
            run, networks = step.on_ready_views(), step.training.method.networks
            counted.append(kernels_of(run))
            kept.append(kept_for_backward(run, networks.parameters()))
        kernels = extended(*counted, images, batch)
        flops, moved = total(kernels)
        report.say(
            f"{arguments.recipe}, {arguments.precision}, batch {batch}: {len(kernels)} kernels, "
            f"{flops / batch / 1e9:.1f} GFLOP and {moved / batch / 1e6:.0f} MB an image",
            kernels=len(kernels),
            flops=flops,
            bytes=moved,
        )
        tell_memory(report, networks, (kept[1] - kept[0]) / (images[1] - images[0]), batch)
        for name, (peak, bandwidth) in DATA_SHEETS.items():
            peaks = Peaks({dtype: peak for dtype in {kernel.dtype for kernel in kernels}}, bandwidth)
            seconds = roofline_sum(kernels, peaks)
            report.say(
                f"{name}, computed: arithmetic alone {1e3 * flops / peak:.0f} ms, "
                f"bytes alone {1e3 * moved / bandwidth:.0f} ms, "
                f"roofline sum {1e3 * seconds:.0f} ms: {batch / seconds:,.0f} images/s",
                **{name: {"arithmetic_s": flops / peak, "bytes_s": moved / bandwidth, "sum_s": seconds}},
            )


if __name__ == "__main__":
    main()
