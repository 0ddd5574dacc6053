"""What makes a step fast changes nothing that it promises to keep."""

import argparse
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runs import equal_states, on_cpu, state_of, train
from selfsup.arguments import add_compute_arguments
from selfsup.engine.compute import start_compute
from selfsup.job.place import Place
from selfsup.jobs import SWITCHES
from selfsup.methods import Batch, Step
from selfsup.models import build_head, initial_backbone, recompute_activations
from selfsup.models.backbone import LAYERS
from selfsup.recipe import load_recipe
from selfsup.training import pretraining
from selfsup.training.pretraining import Pretraining, Run
from tiny import SHALLOW, TINY


@pytest.fixture
def run(tiny_store, tmp_path):
    def make(folder="run", overrides=None, **changes) -> Run:
        recipe = load_recipe("digits", {**TINY, **(overrides or {})})
        made = Run(recipe, 0, 1, tiny_store, tmp_path / folder, changes.get("compute", on_cpu()), 60)
        made.folder.mkdir(exist_ok=True)
        return made

    return make


def weights_after(run: Run, steps: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """All parameters and buffers after so many steps, one vector in float64."""
    training = Pretraining(run)
    if dtype != torch.float32:
        training.method.networks.to(dtype)
        make_views = training.make_views
        training.make_views = lambda batch: _converted(make_views(batch), dtype)
    for step in range(steps):
        training.train_step(training.batches[step])
    return torch.cat([value.double().flatten() for value in training.method.networks.state_dict().values()])


def _converted(views, dtype: torch.dtype):
    return type(views)(tuple(view.to(dtype) for view in views), views.parameters)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class ReadsBack(TorchDispatchMode):
    """Raises where a value of a tensor goes to the host: on a GPU the host would wait there for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise AssertionError("the host waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("average_update", "static"), [("before_forward", False), ("after_step", True)])
def test_nothing_in_a_step_is_read_back_to_the_host(run, precision, average_update, static):
    """On the CPU the scaler alone looks at its flag itself, in Python: that is torch's, and left out here."""
    overrides = {"byol": {**TINY["byol"], "average_update": average_update}}
    training = Pretraining(run(overrides=overrides, compute=on_cpu(precision=precision, static_views=static)))
    training.train_step(training.batches[0])
    batch = training.batches[1]
    with ReadsBack():
        training.train_step(batch)
    with pytest.raises(AssertionError, match="waits"), ReadsBack():
        float(training.train_step(training.batches[2]))


def test_channels_last_changes_nothing_but_the_order_of_sums(run):
    """float64, 12 steps: weights to 1e-11 relative. The layout is kept by weights, momenta and pictures."""
    wanted = weights_after(run(compute=on_cpu(channels_last=False)), 12, torch.float64)
    assert relative(weights_after(run(compute=on_cpu(channels_last=True)), 12, torch.float64), wanted) < 1e-11
    training = Pretraining(run(compute=on_cpu(channels_last=True)))
    training.train_step(training.batches[0])
    kernel = training.method.encoder().conv1.weight
    momentum = training.optimizer.state[kernel]["momentum_buffer"]
    views = training.make_views(training.batches[1])
    for tensor in (kernel, momentum, kernel.grad, *views):
        assert tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_a_run_may_change_its_memory_layout_at_a_resume(run):
    """The checkpoint of one layout goes on in the other, momenta too, and the change is told in its attempts."""
    assert train(run(compute=on_cpu(channels_last=False)), 2)
    continued = run(compute=on_cpu(channels_last=True))
    training = Pretraining(continued)
    state = state_of(continued, 2)
    training.restore(continued.folder, state)
    assert state["numerics"]["channels_last"] is False and training.numerics["channels_last"] is True
    kernel = training.method.encoder().conv1.weight
    momentum = training.optimizer.state[kernel]["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last)
    saved = state["optimizer"]["state"]
    assert any(momentum.equal(value["momentum_buffer"]) for value in saved.values())
    training.train_step(training.batches[training.step])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_give_the_same_bits(run, backbone, precision):
    """Weights, momenta, averages, running statistics and their counts: a pass done again must not count twice."""
    overrides = {"model": {"width": 4, "backbone": backbone}, "epochs": 1, "optimizer": {"warmup_epochs": 0}}
    states = []
    for recompute in (False, True):
        one = run(f"recompute {recompute}", overrides, compute=on_cpu(precision=precision, recompute=recompute))
        assert train(one, 1)
        states.append(state_of(one, 1))
    assert equal_states(*states)
    assert states[0]["numerics"] == states[1]["numerics"]


def test_recomputed_activations_take_less_memory(run):
    """Bytes that the graph keeps between the passes."""
    kept = []
    for recompute in (False, True):
        training = Pretraining(run(overrides={"augment": {"size": 16}}, compute=on_cpu(recompute=recompute)))
        views, sizes = training.make_views(training.batches[0]), {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.update({tensor.untyped_storage().data_ptr(): tensor.nbytes}) or tensor,
            lambda tensor: tensor,
        )
        with hooks:
            training.method.loss(Batch.of(views, training.batches[0].indices), Step(0))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.5 * kept[0]


class Stage(torch.nn.Module):
    """The first two blocks of a ResNet, behind a function that torch.compile does not pass over."""

    def __init__(self, recipe):
        super().__init__()
        self.blocks = initial_backbone(recipe, 0).layer1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def test_recomputed_activations_of_a_compiled_network_have_its_bits_and_take_less_memory(tiny_recipe):
    """Gradients, running statistics and their counts: those of the same graph without, and of eager operators."""
    images, found, kept = torch.randn(4, 4, 8, 8), [], []
    for compiled, recompute in ((False, False), (True, False), (True, True)):
        torch._dynamo.reset()
        stage, sizes = Stage(tiny_recipe), []
        if recompute:
            recompute_activations(stage, 8, whole_graphs=True)
        if compiled:
            stage.compile(backend="aot_eager", dynamic=False, fullgraph=True)

        def note(one: torch.Tensor, sizes=sizes) -> torch.Tensor:
            sizes.append(one.nbytes)
            return one

        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            made = stage(images)
        made.square().sum().backward()
        found.append([made, *(one.grad for one in stage.parameters()), *stage.buffers()])
        kept.append(sum(sizes))
    torch._dynamo.reset()
    assert all(map(torch.equal, found[2], found[1])) and all(map(torch.equal, found[2], found[0]))
    assert {int(one) for one in found[2] if one.dtype == torch.int64} == {1}
    assert kept[2] < 0.3 * kept[1]


@pytest.mark.parametrize(
    ("switches", "whole"), [({"compile": True}, False), ({"compile": True, "recompute": True}, True)], ids=["", "both"]
)
def test_a_network_that_computes_again_is_compiled_as_a_whole_graph_or_not_at_all(run, monkeypatch, switches, whole):
    """What follows a break of the graph would count its batch norms' batches twice."""
    told = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network, **options: told.append(options["fullgraph"]))
    monkeypatch.setattr(
        pretraining, "recompute_activations", lambda networks, size, whole_graphs: told.append(whole_graphs)
    )
    Pretraining(run(compute=on_cpu(**switches)))
    assert len(told) == 5 + whole and set(told) == {whole}


def test_all_of_a_head_and_of_a_backbone_is_compiled(tiny_recipe):
    """Dynamo passes over functions of torch.nn without a word."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op in ("call_function", "call_module")])
        return graph

    head = build_head(8, tiny_recipe["byol"]["projector"], tiny_recipe["model"]["batch_norm"])
    head.compile(backend=backend)
    head(torch.randn(4, 8))
    assert len(graphs) == 1 and len(graphs[0]) >= 4  # two products, a batch norm, a ReLU
    graphs.clear()
    backbone = initial_backbone(tiny_recipe, 0)
    backbone.compile(backend=backend)
    backbone(torch.randn(4, 3, 16, 16))
    assert len(graphs) == 1 and len(graphs[0]) > 40


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants g++ for kernels of the processor")
def test_compiled_networks_compute_the_same(run, monkeypatch):
    """float32, 3 steps, to 1e-4 relative: fused kernels round otherwise. Checkpoints keep the names of parameters."""
    monkeypatch.setitem(LAYERS, "resnet18", SHALLOW)
    plain, compiled = (run(compute=on_cpu(compile=compile)) for compile in (False, True))
    assert relative(weights_after(compiled, 3), weights_after(plain, 3)) < 1e-4
    names = [Pretraining(one).method.state_dict().keys() for one in (plain, compiled)]
    assert names[0] == names[1]


def test_what_may_change_bits_is_in_the_numerics():
    numerics = [
        on_cpu(**{switch: value}).numerics() for switch in SWITCHES.keys() - {"recompute"} for value in (False, True)
    ]
    assert all(off != on for off, on in zip(numerics[::2], numerics[1::2], strict=True))
    assert on_cpu(recompute=True).numerics() == on_cpu(recompute=False).numerics()


def test_tf32_is_for_convolutions_alone(monkeypatch):
    """Matrix products crop pictures, and judge classifiers and neighbours."""
    monkeypatch.setattr("selfsup.engine.compute.keep_freed_memory", lambda: True)
    parser = argparse.ArgumentParser()
    add_compute_arguments(parser)
    backends, before = (torch.backends.cudnn, torch.backends.cuda.matmul), torch.get_num_threads()
    old = [backend.allow_tf32 for backend in backends]
    try:
        for flags, wanted in (([], [False, False]), (["--tf32"], [True, False])):
            for backend in backends:
                backend.allow_tf32 = True
            start_compute(parser.parse_args(["--device", "cpu", *flags]), Place())
            assert [backend.allow_tf32 for backend in backends] == wanted
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = False
        for backend, value in zip(backends, old, strict=True):
            backend.allow_tf32 = value
