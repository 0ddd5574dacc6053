"""The device and the precision to compute in, and whether this build of torch supports the device."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from selfsup.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str, local_rank: int, shared_node: bool = True) -> torch.device:
    """Return the device for "auto", "cuda" or "cpu". Raises UserError if it is missing or not supported."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "device is cuda, but torch finds no usable GPU here: check nvidia-smi and the torch build, or set "
            "device: cpu"
        )
    given = [name for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS") if os.environ.get(name)]
    if wanted == "auto" and not available and given:
        raise UserError(
            f"{given[0]} is set, but torch finds no usable GPU: check nvidia-smi and the build, or set device: cpu"
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    devices = torch.cuda.device_count()
    index = 0 if devices == 1 and not shared_node else local_rank  # srun --gpus-per-task shows each task only its own
    if index >= devices:
        raise UserError(
            f"local rank {local_rank} has no GPU: this node shows {devices}; set devices_per_node to {devices} or fewer"
        )
    problem = build_problem(
        torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    )
    if problem:
        raise UserError(problem)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def build_problem(name: str, capability: tuple[int, int], built_for: list[str]) -> str | None:
    """Return one line that says that a torch build has no code for a GPU and what to use instead, or None if it has.

    capability: compute capability, (7, 0) for a V100. built_for: torch.cuda.get_arch_list(), like ["sm_75", "sm_90"].
    """

    def architectures(kind: str) -> list[tuple[int, int]]:
        found = (re.fullmatch(rf"{kind}_(\d+)(\d)[af]?", architecture) for architecture in built_for)
        return [(int(match[1]), int(match[2])) for match in found if match]

    binary = any(major == capability[0] and minor <= capability[1] for major, minor in architectures("sm"))
    portable = any(architecture <= capability for architecture in architectures("compute"))
    if binary or portable:
        return None
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]}, "
        f"but torch {torch.__version__} was built for {', '.join(built_for)}: "
        "use the site's own PyTorch module, torch 2.6 or newer, or another build (docs/install.md)"
    )


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return "bf16", "fp16" or "fp32". "auto": the fastest that the hardware supports; emulated bf16 does not count.

    It is looked up, not measured, so that a job that continues another never chooses differently on a busy machine.
    """
    if wanted != "auto":
        if wanted == "fp16" and device.type == "cpu":
            raise UserError("precision is fp16, which is for GPUs: set precision: fp32 or bf16 on a CPU")
        return wanted
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in torch 2.6
        return "bf16" if _computes_in_bf16(capabilities) else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _computes_in_bf16(capabilities: Mapping) -> bool:
    """Return whether a processor multiplies bf16 in hardware. capabilities: torch.cpu.get_capabilities()."""
    return bool(capabilities.get("avx512_bf16", False))  # true with AMX as well; others were not measured


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context for a forward pass in this precision."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, DTYPES[precision])


@contextmanager
def full_fp32() -> Iterator[None]:
    """Inside, fp32 convolutions use all bits of their inputs, whatever `compute.tf32` says."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def without_trials() -> Iterator[None]:
    """Inside, cuDNN takes the plan that it expects to be the fastest, without trying all.

    For shapes that come rarely: trials of one convolution cost what hundreds of its passes do.
    """
    tried = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tried
