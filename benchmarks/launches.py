"""How many kernels a GPU would launch for one step as one graph. Needs no GPU.

    python benchmarks/launches.py [--ranks N] [--ways alone] [--code FOLDER]

The step is compiled as `compute.one_graph` compiles it, as far as its two graphs of operators, on the processor. Then
their tensors are said to lie on an H100, and Inductor writes its code for that: Triton kernels, and calls of cuDNN and
cuBLAS. That is counted as it is, with `compute.combined_kernels`, and with that for all kernels but those that sum. The
update of LARS is counted as `compute.compiled_update` compiles it, and beside it what a step launches outside of its
graphs, eager operators one by one, with the update among them and without. --ranks: of one of so many, which hears
nothing of the others; collectives are launches too. --code: keep what was written there. Prints JSON.
"""

import argparse
import copy
import json
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import measuring  # noqa: F401  puts selfsup on the path
import torch
import triton
from pictures import small_store
from roofline import CREATES
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config as inductor
from torch._inductor.compile_fx import _recursive_post_grad_passes, fake_tensor_prop, view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from selfsup.engine.compute import Compute
from selfsup.engine.distributed import Ranks
from selfsup.methods import Output
from selfsup.recipe import load_recipe
from selfsup.training import static_step
from selfsup.training.pretraining import Pretraining, Run

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="NVIDIA H100",
    type="cuda",
    index=0,
    cc=90,
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
)
COMBINED = Compute(Ranks(), torch.device("cpu"), "bf16", 1, 0, combined_kernels=True).inductor_options
WAYS = {
    "alone": {},
    "combined": COMBINED,
    "combined but for sums": COMBINED | {"combo_kernels_pointwise_only": True},
}
# Of torch's operators on lists (MultiTensorApply.cuh): a launch takes so many tensors, by the number of lists, and so
# many pieces of so many numbers.
MOST_TENSORS, MOST_PIECES, PIECE = (110, 64, 48, 36, 30), 320, 65536
LAUNCHES_NOTHING = (*CREATES, "detach", "lift_fresh", "_record_function_enter_new", "_record_function_exit")
LAUNCH = re.compile(r"(triton_\w+)\.run\(|extern_kernels\.(\w+)\(|torch\.ops\.([\w.]+)\(")
COLLECTIVES = ("_c10d_functional.all_reduce", "_c10d_functional.all_gather")


class _CapturedError(Exception):
    """Ends the step once its graphs are known."""


def among(size: int) -> Ranks:
    """Return the first of `size` ranks; what it says to the others is heard by nobody."""
    if size == 1:
        return Ranks()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    ranks = Ranks()
    ranks.size = size
    return ranks


def capture(training: Pretraining, part: str) -> dict[str, GraphModule]:
    """Return the graphs that a part of a step is compiled to: views, update, or views, loss and backward pass."""
    graphs: dict[str, GraphModule] = {}

    def keep(name: str, last: bool) -> Callable:
        def compiler(graph: GraphModule, _: object) -> Callable:
            graphs[name] = _copied(graph)
            if last:
                raise _CapturedError
            return graph.forward

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward", last=part != "whole"),
        bw_compiler=keep("backward", last=True),
        inference_compiler=keep("forward", last=True),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    inputs, compute = training.make_views.inputs(training.batches[0]), training.run.compute
    torch._dynamo.reset()
    static_step.BACKEND = backend
    try:
        if part == "views":
            static_step.compiled(training.make_views.views_of, compute)(*inputs[:2])
        elif part == "update":
            training.optimizer.compile_update(partial(static_step.compiled, compute=compute))
            training.optimizer.rates = torch.ones(len(training.optimizer.param_groups)).unbind()
            for one in training.treatments:
                one.parameter.grad = torch.zeros_like(one.parameter)
            training.optimizer.step()
        else:
            one = static_step.OneGraph(training.method, training.make_views, compute)
            one._compiled(*inputs[:3], None, training._step_for_method())
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if not isinstance(error.inner_exception, _CapturedError):
            raise
    return graphs


class _Given(torch.autograd.Function):
    """A loss of 0 whose backward pass gives gradients without a launch, as a compiled graph's does by itself."""

    @staticmethod
    def forward(ctx, loss: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.weights = weights
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, slope: torch.Tensor) -> tuple:
        return None, *(torch.empty_like(one) for one in ctx.weights)


class _Launched(TorchDispatchMode):
    """Notes the kernels that eager operators would launch on a GPU."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        if not operation.is_view and name not in LAUNCHES_NOTHING:
            self.names += [name] * (_of_lists(name, args, made) if name.startswith("_foreach") else 1)
        return made


def _of_lists(name: str, args: tuple, made: object) -> int:
    """Return the launches of an operator on lists: few, or one for each tensor where the lists' shapes differ."""
    lists = [one for one in (*args, made) if isinstance(one, list | tuple) and isinstance(one[0], torch.Tensor)]
    if name == "_foreach_norm":
        return _of_lists("", args, None) + 1  # and one that sums the pieces
    if any(one.shape != other.shape for one, other in zip(lists[0], lists[-1], strict=True)):
        return len(lists[0])
    launches, tensors, pieces = 0, 0, 0
    for one in lists[0]:
        tensors += 1
        for left in range(-(-one.numel() // PIECE) - 1, -1, -1):
            pieces += 1
            if pieces == MOST_PIECES or (tensors == MOST_TENSORS[len(lists) - 1] and left == 0):
                launches, tensors, pieces = launches + 1, int(left > 0), 0
    return launches + (pieces > 0)


def outside(training: Pretraining, update: bool = True) -> list[str]:
    """Return what a step launches beside views, loss and backward pass. update: with the optimiser's."""
    weights = [one.parameter for one in training.treatments]
    loss = _Given.apply(torch.zeros(()), *weights)
    own = training._outputs, training.optimizer.step
    training._outputs = lambda batch, parts: [lambda: Output(loss)]
    if not update:
        training.optimizer.step = lambda: None
    batch = training.batches[0]
    with _Launched() as launched:
        training.train_step(batch)
    training._outputs, training.optimizer.step = own
    return launched.names


def _copied(graph: GraphModule) -> GraphModule:
    made = copy.deepcopy(graph)
    for old, new in zip(graph.graph.nodes, made.graph.nodes, strict=True):
        new.meta = dict(old.meta)
    return made


def pretend_a_gpu() -> None:
    """Have this process believe that it has an H100, as far as code for one is written."""
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda *_: H100
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch._C._select_conv_backend = lambda *_, **__: torch._C._ConvBackend.Cudnn
    for owner in (CudaInterface, CudaInterface.Worker):
        owner.get_device_properties = staticmethod(lambda *_: H100)
        owner.current_device = staticmethod(lambda: 0)
    CudaInterface.is_available = staticmethod(lambda: True)
    CudaInterface.get_compute_capability = staticmethod(lambda *_: 90)
    CudaInterface.is_triton_capable = staticmethod(lambda *_: True)
    CudaInterface.raise_if_triton_unavailable = staticmethod(lambda *_: None)
    torch.utils._triton.has_triton.cache_clear()  # asked before
    torch._subclasses.fake_tensor.init_gpu_context = lambda *_: None
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0))


def code_for_a_gpu(graph: GraphModule) -> str:
    """Return what Inductor writes for a graph of operators if its tensors lie on a GPU."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        inputs = [_there(node.meta["val"]) for node in graph.graph.nodes if node.op == "placeholder"]
        for node in graph.graph.nodes:
            node.meta.clear()
            node.args = tuple(GPU if isinstance(one, torch.device) else one for one in node.args)
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": GPU}
            if node.op == "get_attr" and isinstance(getattr(graph, node.target), torch.Tensor):
                setattr(graph, node.target, _there(getattr(graph, node.target)))
    graph.recompile()
    with V.set_fake_mode(mode), torch.no_grad():
        view_to_reshape(graph)
        fake_tensor_prop(graph, inputs, force_allow_non_fake_inputs=True)
        _recursive_post_grad_passes(graph, is_inference=False)
        lowered = GraphLowering(graph, example_inputs=inputs, is_inference=False)
        with V.set_graph_handler(lowered), V.set_debug_handler(DebugContext()):
            lowered.run(*inputs)
            return lowered.codegen()[0].value


def _there(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def launches(code: str) -> list[str]:
    """Return the kernels that code of Inductor's launches, in order."""
    call = code[code.index("def call(") :]
    return [next(filter(None, found.groups())) for found in LAUNCH.finditer(call)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--code", type=Path)
    options = parser.parse_args()
    torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._inductor.config.compile_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("cifar10")
        store = small_store(Path(folder) / "store", recipe["global_batch"])
        compute = Compute(among(options.ranks), torch.device("cpu"), "bf16", 1, 0, one_graph=True)
        training = Pretraining(Run(recipe, 0, 1, store, Path(folder) / "run", compute, 60))
        beside = {
            "outside": len(outside(training)),
            "outside, update compiled": len(outside(training, update=False)),
        }
        graphs = {part: capture(training, part)["forward"] for part in ("views", "update")}
        graphs |= capture(training, "whole")
    pretend_a_gpu()
    print(json.dumps({way: counted(graphs, way, options.code) for way in options.ways} | beside))


def counted(graphs: dict[str, GraphModule], way: str, folder: Path | None) -> dict[str, dict]:
    """Return the launches of each graph's code. folder: where the code is kept."""
    figures = {}
    for name, graph in graphs.items():
        with inductor.patch(WAYS[way]):
            code = code_for_a_gpu(_copied(graph))
        if folder:
            (folder / f"{name}, {way}.py").write_text(code)
        found = launches(code)
        figures[name] = {
            "triton": sum(one.startswith("triton_") for one in found),
            "collectives": sum(one.startswith(COLLECTIVES) for one in found),
            "all": sum("wait_tensor" not in one for one in found),
        }
    return figures


if __name__ == "__main__":
    main()
