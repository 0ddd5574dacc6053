"""A static step: the same operators on the same shapes from the first step on, compiled as one graph if asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from many_ranks import on_ranks
from operators import Operators, sequences_of
from runs import attempt_at, equal_states, on_cpu, state_of, train
from selfsup.engine.distributed import Ranks
from selfsup.engine.packed_copies import PackedCopies
from selfsup.errors import PermanentError, UserError
from selfsup.methods import Output, Step
from selfsup.recipe import load_recipe
from selfsup.training import static_step
from selfsup.training.pretraining import Pretraining, Run
from selfsup.training.segment import train_segment
from tiny import TINY, with_method

pytestmark = pytest.mark.usefixtures("shallow")

EQUIMOD = {
    "model": {"width": 4},
    "global_batch": 8,
    "epochs": 4,
    "optimizer": {"warmup_epochs": 1},
    "augment": {"size": 8, "plain": {"resize": 8, "crop": 8}},
}


@pytest.fixture
def run(tiny_store, tmp_path):
    def make(overrides=None, recipe="digits", **switches) -> Run:
        made = load_recipe(recipe, TINY if overrides is None else overrides)
        return Run(made, 0, 1, tiny_store, tmp_path / "run", on_cpu(**switches), 60)

    return make


def weights_after(training: Pretraining, steps: int) -> torch.Tensor:
    for step in range(steps):
        training.train_step(training.batches[step])
    return torch.cat([value.double().flatten() for value in training.method.networks.state_dict().values()])


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("digits", TINY),
        ("digits", {**TINY, "micro_batches": 2}),
        ("digits", with_method("moco_v3")),
        ("equimod_digits", EQUIMOD),
    ],
)
def test_static_views_train_to_the_same_bits(run, recipe, overrides):
    wanted = weights_after(Pretraining(run(overrides, recipe)), 3)
    assert weights_after(Pretraining(run(overrides, recipe, static_views=True)), 3).equal(wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_steps_0_to_3_are_one_sequence_of_operators_and_shapes(run, precision, micro_batches):
    overrides = {**TINY, "micro_batches": micro_batches}
    sequences = sequences_of(Pretraining(run(overrides, precision=precision, static_views=True)))
    assert len(sequences[0]) > 500
    assert all(sequence == sequences[0] for sequence in sequences)
    others = sequences_of(Pretraining(run(overrides, precision=precision)))
    assert any(sequence != others[0] for sequence in others)  # what was drawn decides: the test can see it


def test_the_batches_that_batch_norms_have_seen_are_counted_in_one_launch(run, one_thread):
    """Of a method that looks at each view by itself too: what is passed twice counts twice."""

    def counts_after_a_step(training: Pretraining, shared: bool) -> tuple[list[str], list[int]]:
        encoder = training.method.encoder()
        if shared:
            training.method.loss = lambda batch, step: Output(sum(encoder(view).sum() for view in batch.views))
        with Operators() as operators:
            training.train_step(training.batches[0])
        state = training.method.networks.state_dict()
        counted = [one for one in operators.seen if "torch.int64" in one and "add_" in one]
        return counted, [int(value) for name, value in state.items() if name.endswith("num_batches_tracked")]

    counted, counts = counts_after_a_step(Pretraining(run()), shared=False)
    assert len(counted) == 1 and counted[0].startswith("aten._foreach_add_") and set(counts) == {1}
    counted, counts = counts_after_a_step(Pretraining(run()), shared=True)
    assert len(counted) == 1 and set(counts) == {0, 2}


def _sequences_on_a_rank(ranks: Ranks, run: Run, precision: str) -> list[list[str]]:
    compute = on_cpu(ranks, threads=1, precision=precision, static_views=True)
    return sequences_of(Pretraining(Run(run.recipe, 0, 1, run.store, run.folder, compute, 60)))


@pytest.mark.parametrize(
    "precision", [*(pytest.param(one, marks=pytest.mark.long) for one in ("fp32", "bf16")), "fp16"]
)
def test_over_two_ranks_too(run, precision):
    for sequences in on_ranks(_sequences_on_a_rank, 2, run(), precision):
        assert len(sequences[0]) > 500
        assert all(sequence == sequences[0] for sequence in sequences)


@pytest.fixture
def graphs(monkeypatch):
    """Count the graphs that a function is compiled to, without a compiler for the processor.

    Of shallow networks, since it takes seconds to trace one; benchmarks/launches.py traces whole ones.
    """
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(static_step, "BACKEND", counter)
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


RUNNING = {"byol": {**TINY["byol"], "target_batch_norm": "running", "average_buffers": True}}
OFFICIAL = {key: value for key, value in TINY.items() if key not in ("epochs", "optimizer")}


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("cifar10", TINY),
        pytest.param("cifar10", {**TINY, **RUNNING}, marks=pytest.mark.long),
        pytest.param("cifar10_official", OFFICIAL, marks=pytest.mark.long),
        pytest.param("imagenet", {**TINY, "augment": {"size": 40}}, marks=pytest.mark.long),
        pytest.param("imagenet_official", {**OFFICIAL, "augment": {"size": 40}}, marks=pytest.mark.long),
    ],
)
def test_views_and_loss_are_one_graph_without_a_break(run, graphs, recipe, overrides):
    """float32: three steps, one graph, and the eager run's weights but for the order of sums."""
    overrides = {**overrides, "model": {**overrides["model"], "backbone": "resnet18"}}
    found = weights_after(Pretraining(run(overrides, recipe, one_graph=True)), 3)
    assert graphs.frame_count == 1
    wanted = weights_after(Pretraining(run(overrides, recipe)), 3)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.long
def test_micro_batches_are_one_graph_too(run, graphs):
    """By the first loss, to 1e-4: a compiler rounds views otherwise, and batch norms of four images make much of it."""
    overrides = {**with_method("barlow_twins"), "micro_batches": 2}
    compiled, plain = (Pretraining(run(overrides, one_graph=one_graph)) for one_graph in (True, False))
    found, wanted = (float(one.train_step(one.batches[0])) for one in (compiled, plain))
    assert graphs.frame_count == 1 and found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.long
def test_one_graph_counts_batches_as_an_eager_step_does(run, graphs):
    """With a compiled update there are two graphs: views with loss, and the update, of whatever rate."""
    counts = []
    for one_graph in (True, False):
        training = Pretraining(run(one_graph=one_graph, compiled_update=one_graph))
        for step in range(3):
            training.train_step(training.batches[step])
        state = training.method.networks.state_dict()
        counts.append({name: int(value) for name, value in state.items() if name.endswith("num_batches_tracked")})
    assert counts[0] == counts[1] and set(counts[0].values()) == {3} and graphs.frame_count == 2


@pytest.mark.long
def test_a_gpu_would_launch_no_more_kernels_than_it_was_counted_to():
    """In Inductor's code for CIFAR-10's step; the same count was seen on an H200, with 42 for batch norms' numbers."""
    found = _launches()
    assert 40 < found.pop("outside") <= 63 and 10 < found.pop("outside, update compiled") <= 17
    assert 10 < found["combined"]["update"]["all"] <= 13 < found["alone"]["update"]["all"] <= 54
    counts = {way: (one["views"]["all"], one["forward"]["all"] + one["backward"]["all"]) for way, one in found.items()}
    views, everything = counts["alone"]
    assert 20 < views <= 28 and 400 < everything <= 434
    views, everything = counts["combined"]
    assert 15 < views <= 25 and 200 < everything <= 330
    views, everything = counts["combined but for sums"]
    assert 15 < views <= 25 and 300 < everything <= 371


@pytest.mark.long
def test_over_ranks_a_gpu_would_launch_collectives_and_merge_what_they_bring():
    """43 calls of a batch norm gather, and merge by a kernel of their own; 22 sum their gradients."""
    found = _launches("--ranks", "2", "--ways", "alone")["alone"]
    assert (found["forward"]["collectives"], found["backward"]["collectives"]) == (43, 22)
    assert 500 < found["forward"]["all"] + found["backward"]["all"] <= 434 + 2 * 43 + 22


def _launches(*options: str) -> dict:
    pytest.importorskip("triton")
    script = Path(__file__).parents[2] / "benchmarks" / "launches.py"
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_combined_kernels_are_asked_of_the_compiler(run, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **settings: asked.append(settings["options"]) or function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **settings: asked.append(settings["options"]))
    for switches in ({"one_graph": True}, {"compile": True}):
        for combined, wanted in ((False, None), (True, {"combo_kernels": True})):
            Pretraining(run(**switches, combined_kernels=combined))
            assert asked and all(options == wanted for options in asked)
            asked.clear()
    with pytest.raises(UserError, match=r"combined_kernels is true, but nothing is compiled .*: set one_graph or"):
        Pretraining(run(combined_kernels=True))


EQUIMOD_SIMCLR = {
    **{key: value for key, value in TINY.items() if key != "byol"},
    "augment": {"size": 8, "plain": {"resize": 8, "crop": 8, "interpolation": "bilinear"}},
    "equimod": {"parameters": "measured"},
}


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        pytest.param("equimod_digits", EQUIMOD, marks=pytest.mark.long),
        pytest.param("equimod_digits", {**EQUIMOD, "micro_batches": 2}, marks=pytest.mark.long),
        pytest.param("equimod_simclr_cifar10", EQUIMOD_SIMCLR, marks=pytest.mark.long),
    ],
)
def test_equimod_is_one_graph_with_what_was_drawn_in_the_one_copy(run, graphs, recipe, overrides):
    """Over BYOL and over SimCLR, float64 after the views: three steps' losses to 1e-6 of eager's."""
    losses = []
    for one_graph in (True, False):
        training = Pretraining(run(overrides, recipe, one_graph=one_graph, static_views=True))
        training.method.networks.to(torch.float64)
        views_of = training.make_views.views_of
        training.make_views.views_of = lambda *inputs, make=views_of: tuple(one.double() for one in make(*inputs))
        losses.append([float(training.train_step(training.batches[step])) for step in range(3)])
    assert graphs.frame_count == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.long
def test_equimod_as_one_graph_continues_to_the_bit(tiny_store, tmp_path, graphs):
    """Segments of 1 and 3 epochs, the second from a checkpoint, beside one of 4."""
    states = []
    for ends in ((4,), (1, 4)):
        recipe = load_recipe("equimod_digits", EQUIMOD)
        one = Run(recipe, 0, 1, tiny_store, tmp_path / str(len(ends)), on_cpu(one_graph=True), 60)
        one.folder.mkdir()
        assert train(one, *ends)
        states.append(state_of(one))
    assert equal_states(*states)


def test_what_a_loss_is_told_is_what_the_host_says(run, graphs):
    """float32, to the bit: rows of views and images, and of a micro-batch's own images."""
    training = Pretraining(run({**EQUIMOD, "micro_batches": 2}, "equimod_digits", one_graph=True))
    batch, method = training.batches[0], training.method
    weight = next(method.encoder().parameters())
    method.loss = lambda piece, step: Output(weight.sum(), {"told": piece.told.clone()})
    seen = [output().scalars["told"] for output in training._one_graph.losses(batch, Step(0), 2)]
    assert torch.cat(seen, dim=1).equal(torch.from_numpy(method.told(batch.draws)))


def test_views_are_made_outside_of_autocast(run, graphs):
    """In bf16 one graph's views are eager ones of float32, to 1e-5, as its operators round; bf16 is 5e-2 away."""
    training = Pretraining(run(one_graph=True, precision="bf16"))
    batch, method = training.batches[0], training.method
    weight = next(method.encoder().parameters())

    def loss(batch, step):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return Output(weight.sum(), {"views": torch.stack(batch.views), "product": product})

    method.loss = loss
    ((views, product),) = (output().scalars.values() for output in training._one_graph.losses(batch, Step(0), 1))
    assert product.dtype == torch.bfloat16 and views.dtype == torch.float32
    assert float((views - torch.stack(tuple(training.make_views(batch)))).abs().max()) < 1e-5


def test_a_loss_that_reads_what_stays_on_the_host_is_refused_in_one_line(run, graphs):
    training = Pretraining(run(one_graph=True))
    training.method.loss = lambda batch, step: Output(torch.from_numpy(batch.parameters.views[0].sigma).sum())
    refused = r"^compute.one_graph is true, but the loss of BYOL [^\n]* give the method a `told`$"
    with pytest.raises(PermanentError, match=refused):
        training.train_step(training.batches[0])


@pytest.mark.parametrize("told", [np.zeros((2, 8, 3)), np.zeros((2, 7, 3), np.float32), np.zeros((2, 8), np.float32)])
def test_what_a_method_tells_its_loss_in_another_shape_is_refused_in_one_line(run, graphs, told):
    training = Pretraining(run(one_graph=True))
    training.method.told = lambda draws: told
    with pytest.raises(PermanentError, match=r"^the method's `told` returns [^\n]* wanted float32 \[2, 8, P\][^\n]*$"):
        training.train_step(training.batches[0])


@pytest.mark.parametrize("hook", ["before_step", "after_backward", "after_step"])
def test_what_a_method_keeps_of_a_graph_that_wrote_it_over_is_told_in_one_line(run, hook):
    """With torch's own message, which a GPU alone gives rise to; another error stays what it is."""
    from torch._inductor.cudagraph_trees import CUDAGraphTreeManager  # a second, which other tests need not wait

    said = CUDAGraphTreeManager.format_dealloc_msg(None)

    def reads(step):
        raise RuntimeError(said)

    training = Pretraining(run(one_graph=True))
    weights = list(training.method.encoder().parameters())
    training._outputs = lambda batch, parts: [lambda: Output(sum(one.sum() for one in weights))]
    setattr(training.method, hook, reads)
    with pytest.raises(PermanentError, match=r"^compute.one_graph is true, and BYOL reads what its loss [^\n]*$"):
        training.train_step(training.batches[0])
    said = "another"
    with pytest.raises(RuntimeError, match=r"^another$"):
        training.train_step(training.batches[0])


def test_one_graph_does_not_go_with_recompute(run):
    with pytest.raises(UserError, match="one_graph is true, and cannot go with recompute, too: set one of them to fa"):
        Pretraining(run(one_graph=True, recompute=True))


@pytest.fixture
def update_alone(graphs, monkeypatch):
    """Count the graphs of an update alone: views and loss are as they would be compiled, but are not."""
    monkeypatch.setattr(static_step, "compiled", lambda function, *_: function)
    return graphs


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.long), "fp16"])
@pytest.mark.parametrize("optimizer", [{}, {"clip_trust": True, "lr_in_momentum": False}])
def test_a_compiled_update_is_one_graph_and_has_the_bits_of_an_eager_one(run, update_alone, precision, optimizer):
    """Weights, averages and momenta of four steps, each of another rate; in fp16 the first one's gradients overflow."""
    found, overrides = [], {**TINY, "optimizer": {**TINY["optimizer"], **optimizer}}
    for compiled_update in (True, False):
        training = Pretraining(run(overrides, one_graph=True, compiled_update=compiled_update, precision=precision))
        if precision == "fp16":
            training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, backoff_factor=2.0**-90)
        weights = weights_after(training, 4)
        momenta = [one["momentum_buffer"] for one in training.optimizer.state_dict()["state"].values()]
        found.append((weights, torch.cat([one.flatten() for one in momenta]), training.skipped))
        lr = training.optimizer.state_dict()["param_groups"][0]["lr"]
        assert isinstance(lr, float) and lr == training.learning_rate(3) > 0  # in a checkpoint as it always was
        if compiled_update:
            assert update_alone.frame_count == 1  # of whatever rate
    (weights, momenta, skipped), (wanted, eager_momenta, eager_skipped) = found
    assert weights.equal(wanted) and momenta.equal(eager_momenta) and skipped == eager_skipped
    assert (skipped > 0) == (precision == "fp16") and skipped < 4 and momenta.any()


def test_a_compiled_update_continues_to_the_bit(tiny_store, tmp_path, update_alone):
    """After a checkpoint, and as an eager update from it."""
    states = []
    for name, ends, last in (("whole", (4,), True), ("parts", (1, 4), True), ("eager", (1, 4), False)):
        folder = tmp_path / name
        folder.mkdir()
        for end, previous in zip(ends, (0, *ends), strict=False):
            switches = {"one_graph": True, "compiled_update": end < 4 or last}
            one = Run(load_recipe("digits", TINY), 0, 1, tiny_store, folder, on_cpu(**switches), 60)
            with attempt_at(one, end) as attempt:
                assert train_segment(one, attempt, until_epoch=end, previous=previous)
        states.append(state_of(one))
    assert all(equal_states(states[0], other) for other in states[1:])


@pytest.mark.parametrize(
    ("overrides", "switches", "said"),
    [
        (TINY, {}, "one_graph is not"),
        (
            {
                **TINY,
                "optimizer": {"name": "sgd", "peak_lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": False},
            },
            {"one_graph": True},
            "the optimiser is sgd, wanted lars",
        ),
    ],
)
def test_an_update_that_is_not_compiled_is_refused_in_one_line(run, overrides, switches, said):
    with pytest.raises(UserError, match=f"^compute.compiled_update is true, but {said}: set compiled_update to false$"):
        Pretraining(run(overrides, compiled_update=True, **switches))


def test_what_is_sent_to_the_device_is_what_was_given():
    send = PackedCopies(torch.device("cpu"))
    arrays = [np.full((2, 3), number, np.float32) for number in range(9)]
    sent = [send(array) for array in arrays]
    assert all(one.equal(torch.from_numpy(array)) for (one,), array in zip(sent, arrays, strict=True))
    for array in arrays:
        rates = np.arange(3, dtype=np.float32)
        numbers, more = send(array, rates)
        assert numbers.equal(torch.from_numpy(array)) and more.equal(torch.from_numpy(rates))
        assert numbers.untyped_storage().data_ptr() == more.untyped_storage().data_ptr()
