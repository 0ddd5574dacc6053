"""What only a CUDA device can show. Left out where there is none; benchmarks/gpu.sh runs them where there is one."""

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from kills import trained
from runs import equal_states, state_of, train
from selfsup.augment import augment_batch, draw
from selfsup.data.preparing import prepare
from selfsup.engine.compute import Compute
from selfsup.engine.distributed import Ranks
from selfsup.models import BatchNorm
from selfsup.models.batch_norm import _CpuKernels, _CudaKernels
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Pretraining, Run
from selfsup.training.static_step import OneGraph
from tiny import DROPPING_VIT, TINY

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the process's first matrix product

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.xdist_group("cuda"),  # one process alone has the device
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = torch.device("cuda", 0)


def on_gpu(precision: str = "fp32", device: torch.device = GPU, **switches: bool) -> Compute:
    return Compute(Ranks(), device, precision, 2, 0, **switches)


@pytest.fixture
def run(tiny_store, tmp_path):
    def make(compute: Compute, folder: str = "run") -> Run:
        made = Run(load_recipe("digits", TINY), 0, 1, tiny_store, tmp_path / folder, compute, 60)
        made.folder.mkdir(exist_ok=True)
        return made

    return make


@pytest.fixture
def repeatable():
    """What `compute.deterministic` sets."""
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize(
    ("precision", "switches"),
    [
        ("fp32", {}),
        ("bf16", {}),
        ("fp16", {}),
        ("bf16", {"static_views": True}),
        ("bf16", {"one_graph": True}),
        ("bf16", {"one_graph": True, "combined_kernels": True, "compiled_update": True}),
    ],
)
def test_the_host_never_waits_in_a_step(run, precision, switches):
    training = Pretraining(run(on_gpu(precision, **switches)))
    for step in range(4):  # the first steps set libraries up, compile, and record
        training.train_step(training.batches[step])
    batch = training.batches[4]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_host_never_waits_to_note_a_row(run):
    """The numbers are those of the step that was the newest, whatever follows before they are read."""
    training = Pretraining(run(on_gpu("bf16")))
    training.note_row(training.train_step(training.batches[0]))  # takes the memory
    loss = training.train_step(training.batches[1])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        read = training.note_row(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in (2, 3):
        training.train_step(training.batches[step])
    row = read(None)
    assert row["step"] == 1 and row["loss"] == float(loss)


def test_a_stopped_run_continues_to_the_bit(run, repeatable):
    whole, parts = run(on_gpu("bf16", deterministic=True), "whole"), run(on_gpu("bf16", deterministic=True), "parts")
    assert train(whole, 4) and train(parts, 1, 3, 4)
    assert equal_states(state_of(whole), state_of(parts))


def test_recomputed_activations_give_the_same_bits(run, repeatable):
    states = []
    for recompute in (False, True):
        one = run(on_gpu("bf16", deterministic=True, recompute=recompute), f"recompute {recompute}")
        assert train(one, 1)
        states.append(state_of(one, 1))
    assert equal_states(*states)


def test_a_step_on_the_gpu_is_a_step_on_the_processor(run):
    """fp32 without TensorFloat-32: loss to 1e-4, and all gradients together to 1e-3 relative."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for device in (torch.device("cpu"), GPU):
        training = Pretraining(run(on_gpu(device=device)))
        loss = training.train_step(training.batches[0])
        found.append((float(loss), torch.cat([one.parameter.grad.cpu().flatten() for one in training.treatments])))
    (loss, gradient), (gpu_loss, gpu_gradient) = found
    assert gpu_loss == pytest.approx(loss, rel=1e-4)
    assert (gradient - gpu_gradient).norm() < 1e-3 * gradient.norm()


def test_a_step_as_a_cuda_graph_has_the_bits_of_its_kernels_one_by_one(run, repeatable, monkeypatch):
    """Six steps in bf16: one as it is, one recorded, four replayed, with the learning rates and averages of each."""
    found = []
    torch._dynamo.utils.counters.clear()
    for replayed in (True, False):
        monkeypatch.setattr(OneGraph, "_replays", staticmethod(lambda *_, replayed=replayed: replayed))
        training = Pretraining(run(on_gpu("bf16", deterministic=True, one_graph=True)))
        losses = [training.train_step(training.batches[step]) for step in range(6)]
        found.append((torch.stack(losses), training.method.state_dict()))
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    (replayed, found_weights), (losses, weights) = found
    assert replayed.equal(losses) and losses.unique().numel() > 1
    assert all(found_weights[name].equal(value) for name, value in weights.items())


@pytest.mark.parametrize("switches", [{"static_views": True}, {"one_graph": True}])
def test_a_step_by_the_same_operators_is_the_step_as_it_was(run, switches):
    """fp32: the loss to 1e-4, all gradients together to 1e-3: views may differ in their last digits."""
    found = []
    for own in ({}, switches):
        training = Pretraining(run(on_gpu(**own)))
        loss = training.train_step(training.batches[0])
        found.append((float(loss), torch.cat([one.parameter.grad.flatten() for one in training.treatments])))
    (loss, gradient), (other_loss, other) = found
    assert other_loss == pytest.approx(loss, rel=1e-4)
    assert (gradient - other).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_views_of_the_gpu_are_those_of_the_processor(name):
    """To 1e-4 of 1 but for few pixels, at thresholds: solarisation and rounding to 8 bits, which a blur spreads."""
    recipe = load_recipe(name, {"augment": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    images = torch.from_numpy(np.random.default_rng().integers(0, 256, (64, 3, 40, 48), np.uint8))
    drawn = draw(recipe, seed=1, epoch=0, indices=np.arange(64), sizes=np.tile([40, 48], (64, 1)))
    for ours, theirs in zip(
        augment_batch(recipe, images, drawn), augment_batch(recipe, images.to(GPU), drawn), strict=True
    ):
        difference = (ours - theirs.cpu()).abs()
        assert (difference > 1e-4).double().mean() < 1e-2


def test_views_of_two_sizes_the_unaugmented_picture_and_what_was_drawn_on_the_gpu():
    """What the GPU cuts itself may differ by its division by 255."""
    recipe = load_recipe("cifar10", {"augment": {"plain": {"resize": None, "crop": 32, "interpolation": "bilinear"}}})
    images = torch.from_numpy(np.random.default_rng().integers(0, 256, (64, 3, 40, 48), np.uint8))
    drawn = draw(recipe, seed=1, epoch=0, indices=np.arange(64), sizes=np.tile([40, 48], (64, 1)))
    drawn = replace(drawn, policies=(drawn.policies[0], drawn.policies[1].changed(size=16)))
    ours, theirs = augment_batch(recipe, images, drawn), augment_batch(recipe, images.to(GPU), drawn)
    assert [view.shape[-1] for view in theirs] == [32, 16]
    torch.testing.assert_close(theirs.plain.cpu(), ours.plain, rtol=0, atol=2e-6)
    for name, tensor in drawn.views[1].tensors(GPU).items():
        assert tensor.device == GPU and np.array_equal(tensor.cpu().numpy(), getattr(drawn.views[1], name))


@pytest.mark.parametrize("shape", [(16, 6), (16, 6, 5, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_of_batch_norm_over_ranks_agree(shape, channels_last):
    """Each of the GPU's kernels beside the processor's, in float64, to 1e-10."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1 for _ in range(2))
    if channels_last and len(shape) == 4:
        x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    weight, bias, mean, variance = torch.rand(4, 6, generator=generator, dtype=torch.float64) + 0.5
    counts = torch.tensor([[x.numel() / 6], [7.0]], dtype=torch.float64)
    results = []
    for kernels, device in ((_CpuKernels, "cpu"), (_CudaKernels, GPU)):
        a, b, w, c = x.to(device), grad.to(device), weight.to(device), bias.to(device)
        running = [mean.clone().to(device), variance.clone().to(device)]
        means, inverse_stds = (torch.stack([one, 0.9 * one]) for one in kernels.statistics(a, 1e-3))
        found = kernels.together(a, means, inverse_stds, *running, 0.3, 1e-3, counts.flatten().to(device))
        outputs = kernels.normalised(a, w, c, *found, 1e-3)
        sums = kernels.sums(b, a, *found, w)
        slope = kernels.input_gradient(b, a, *found, w, *sums[:2], counts.to(device))
        results.append([tensor.cpu() for tensor in (*found, *running, outputs, *sums, slope)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_norm_of_one_rank_agrees_with_the_processor(precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    norm = BatchNorm(8)
    x = torch.randn(32, 8, 6, 6).to(memory_format=torch.channels_last)
    wanted, found = norm(x), copy.deepcopy(norm).to(GPU)(x.to(GPU, dtype)).float().cpu()
    torch.testing.assert_close(found, wanted, rtol=2e-2 if precision == "bf16" else 1e-5, atol=2e-2)


def test_what_a_network_drops_is_a_function_of_the_step(repeatable, tiny_store, tmp_path):
    """Whatever was drawn on the device before."""
    states = []
    for before in (1, 2):
        torch.cuda.manual_seed(before)
        recipe, compute = load_recipe("digits", DROPPING_VIT), on_gpu(deterministic=True)
        training = Pretraining(Run(recipe, 0, 1, tiny_store, tmp_path, compute, 60))
        for step in range(3):
            training.train_step(training.batches[step])
        states.append(training.method.state_dict())
    assert all(states[0][name].equal(value) for name, value in states[1].items())


@pytest.mark.parametrize("switches", [(), ("--one-graph",)], ids=["eager", "one_graph"])
def test_three_kills_change_no_bit_of_a_deterministic_run(tmp_path, switches):
    """ResNet-18 of full width in bf16, as processes: each kill comes while steps are queued on the device.

    As one graph, each process compiles or takes what another has compiled, records a CUDA graph, and replays it.
    """
    prepare("digits", None, tmp_path / "digits")
    recipe = load_recipe("digits", {"epochs": 16, "model": {"width": 64}, "optimizer": {"warmup_epochs": 1}})
    arguments = ("--device", "cuda", "--precision", "bf16", "--deterministic", "--cpus", "4", *switches)
    whole = trained(recipe, tmp_path / "digits", tmp_path / "whole", *arguments)
    parts = trained(recipe, tmp_path / "digits", tmp_path / "parts", *arguments, kills=(60, 140, 240))
    assert max(attempt["start_step"] for attempt in parts["attempts"]) > 0
    assert {attempt["one_graph"] for attempt in parts["attempts"]} == {bool(switches)}
    assert equal_states(whole, parts)
