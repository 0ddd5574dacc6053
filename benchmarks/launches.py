"""How many kernels Inductor would launch on a GPU for views, loss and backward pass of one step. Needs no GPU.

    python benchmarks/launches.py [--code FOLDER]

The step is compiled as `compute.one_graph` compiles it, as far as its two graphs of operators, on the processor. Then
their tensors are said to lie on an H100, and Inductor writes its code for that: Triton kernels, and calls of cuDNN and
cuBLAS. Nothing runs: as it is, with `compute.combined_kernels`, and with that for all kernels but those that sum.
--code: keep what was written there. Prints JSON.
"""

import argparse
import copy
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import measuring  # noqa: F401  puts selfsup on the path
import torch
import triton
from pictures import small_store
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

from selfsup.engine.compute import Compute
from selfsup.engine.distributed import Ranks
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
LAUNCH = re.compile(r"(triton_\w+)\.run\(|extern_kernels\.(\w+)\(|torch\.ops\.([\w.]+)\(")


class _CapturedError(Exception):
    """Ends the step once its graphs are known."""


def capture(training: Pretraining, views_alone: bool) -> dict[str, GraphModule]:
    """Return the graphs that a step's views, or its views, loss and backward pass, are compiled to."""
    graphs: dict[str, GraphModule] = {}

    def keep(name: str, last: bool) -> Callable:
        def compiler(graph: GraphModule, _: object) -> Callable:
            graphs[name] = _copied(graph)
            if last:
                raise _CapturedError
            return graph.forward

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward", last=views_alone),
        bw_compiler=keep("backward", last=True),
        inference_compiler=keep("forward", last=True),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    batch = training.batches[0]
    inputs = training.make_views.inputs(batch)
    torch._dynamo.reset()
    try:
        if views_alone:
            torch.compile(training.make_views.views_of, backend=backend, fullgraph=True)(*inputs[:2])
        else:
            static_step.BACKEND = backend
            one = static_step.OneGraph(training.method, training.make_views, training.run.compute)
            one._compiled(*inputs, None, training._step_for_method())
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if not isinstance(error.inner_exception, _CapturedError):
            raise
    return graphs


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
    parser.add_argument("--code", type=Path)
    options = parser.parse_args()
    torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._inductor.config.compile_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("cifar10")
        store = small_store(Path(folder) / "store", recipe["global_batch"])
        compute = Compute(Ranks(), torch.device("cpu"), "bf16", 1, 0, one_graph=True)
        training = Pretraining(Run(recipe, 0, 1, store, Path(folder) / "run", compute, 60))
        graphs = {"views": capture(training, views_alone=True)["forward"], **capture(training, views_alone=False)}
    pretend_a_gpu()
    print(json.dumps({way: counted(graphs, way, options.code) for way in WAYS}))


def counted(graphs: dict[str, GraphModule], way: str, folder: Path | None) -> dict[str, dict]:
    """Return the launches of each graph's code. folder: where the code is kept."""
    figures = {}
    for name, graph in graphs.items():
        with inductor.patch(WAYS[way]):
            code = code_for_a_gpu(_copied(graph))
        if folder:
            (folder / f"{name}, {way}.py").write_text(code)
        found = launches(code)
        figures[name] = {"triton": sum(one.startswith("triton_") for one in found), "all": len(found)}
    return figures


if __name__ == "__main__":
    main()
