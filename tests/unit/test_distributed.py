"""Ranks: found in the environment, and several of them computing what one does."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch

from many_ranks import on_ranks
from runs import StopAfter, compute_in, on_cpu, part_in_float64, train, train_until_killed
from selfsup.engine import distributed
from selfsup.engine.checkpoint import load_checkpoint
from selfsup.engine.device import build_problem, choose_device, choose_precision
from selfsup.engine.distributed import Ranks
from selfsup.errors import UserError
from selfsup.job import place as place_module
from selfsup.job.local_ranks import reserved_port
from selfsup.job.place import PORT_FROM_JOB, Place, discover_place, first_host
from selfsup.layout import boundary_name
from selfsup.models import BatchNorm
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Pretraining, Run
from tiny import TINY

pytestmark = pytest.mark.usefixtures("shallow")

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-05]",
    "SLURM_JOB_ID": "123456",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_places_under_srun_torchrun_and_alone():
    assert discover_place({}) == Place()
    assert discover_place(SLURM) == Place(5, 8, 1, "gpu03", 23456, shared_node=False, port_from=PORT_FROM_JOB)
    assert discover_place(TORCHRUN) == Place(1, 2, 1, "localhost", 29500)
    assert discover_place({**SLURM, **TORCHRUN}).size == 2  # torchrun inside a Slurm job


# As Slurm 22.05 sets them in shells; only a step tells how many processes there are.
JOB = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "4"}
STEP_OF_ONE = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu03", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    "shell",
    [
        JOB,
        {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**JOB, **STEP_OF_ONE, "SLURM_STEP_ID": "4294967290", "SLURM_PTY_PORT": "36537"},
        {**JOB, **STEP_OF_ONE, "SLURM_NTASKS": "1", "SLURM_PTY_PORT": "36537"},
    ],
    ids=["salloc -n4", "a batch script of -n4", "salloc -n4, with an interactive step", "srun -n1 --pty bash"],
)
def test_one_process_trains_in_the_shell_of_an_allocation_of_four(shell):
    assert discover_place(shell).size == 1


def test_the_first_shell_of_several_waits_for_no_other(monkeypatch):
    shell = {**SLURM, "SLURM_PTY_PORT": "36537"}
    monkeypatch.setattr(place_module, "_has_terminal", lambda: True)
    with pytest.raises(UserError, match=r"the first of 8 tasks of `srun --pty`.*--ntasks=1 --pty bash"):
        discover_place(shell)
    monkeypatch.setattr(place_module, "_has_terminal", lambda: False)  # a step that was started from such a shell
    assert discover_place(shell).size == 8


def test_steps_of_a_job_that_run_side_by_side_listen_at_different_ports():
    ports = [discover_place({**SLURM, "SLURM_STEP_ID": str(step)}).port for step in (0, 1, 2, 4294967290)]
    assert len(set(ports)) == 4 and ports[0] == 23456 and all(20_000 <= port < 30_000 for port in ports)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_half_an_environment_is_refused(missing):
    environment = {key: value for key, value in TORCHRUN.items() if key != missing}
    with pytest.raises(UserError, match=f"the environment of torchrun is incomplete: {missing} not set"):
        discover_place(environment)


def test_half_an_environment_of_slurm_is_refused():
    with pytest.raises(UserError, match="the environment of srun is incomplete: SLURM_STEP_NUM_TASKS"):
        discover_place({key: value for key, value in SLURM.items() if key != "SLURM_STEP_NUM_TASKS"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("login", "login"), ("gpu[003-005,9],login", "gpu003"), ("a1,a2", "a1"), ("n[7]", "n7"), ("x-1-[2,4]", "x-1-2")],
)
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


def test_a_processor_computes_in_bf16_where_its_hardware_does(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, wanted in (({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision("auto", cpu) == wanted


def test_a_build_without_code_for_the_gpu_is_named():
    build = ["sm_75", "sm_80", "sm_90", "sm_120"]
    assert build_problem("H100", (9, 0), build) is None
    assert build_problem("A10", (8, 6), build) is None  # code for 8.0 runs on 8.6
    problem = build_problem("Tesla V100", (7, 0), build)
    assert "Tesla V100 has compute capability 7.0" in problem and "sm_75" in problem and "module" in problem
    assert build_problem("future", (13, 0), build) is not None
    assert build_problem("future", (13, 0), [*build, "compute_120"]) is None  # compiled when loaded


def test_devices_and_precisions_that_do_not_exist_are_refused():
    cpu = torch.device("cpu")
    assert choose_device("cpu", 0) == cpu
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(UserError, match="fp16, which is for GPUs"):
        choose_precision("fp16", cpu)
    if not torch.cuda.is_available():
        assert choose_device("auto", 0) == cpu
        with pytest.raises(UserError, match="no usable GPU"):
            choose_device("cuda", 0)


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine on which torch sees a single H100."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "H100",
        "get_device_capability": (9, 0),
        "get_arch_list": ["sm_90"],
        "set_device": None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


def test_two_ranks_of_a_node_never_share_its_one_gpu(one_gpu):
    assert choose_device("auto", 0) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="local rank 1 has no GPU: this node shows 1; set devices_per_node to 1"):
        choose_device("auto", 1)
    # srun may show each task a GPU of its own, always as number 0
    assert choose_device("auto", 1, shared_node=False) == torch.device("cuda", 0)


def test_a_job_with_gpus_does_not_fall_back_to_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    with pytest.raises(UserError, match="SLURM_JOB_GPUS is set, but torch finds no usable GPU"):
        choose_device("auto", 0)


def test_ranks_meet_at_an_ipv6_address(starter, program, repository):
    with reserved_port("::1") as port, ThreadPoolExecutor() as side_by_side:
        start = [starter, program(JOIN), repository / "workflow/scripts", str(port)]
        other = side_by_side.submit(subprocess.run, [*start, "1"], timeout=300)
        first = subprocess.run([*start, "0"], timeout=300)
    assert (first.returncode, other.result().returncode) == (0, 0)


JOIN = """
import sys
sys.path.insert(0, sys.argv[1])
from selfsup.job.place import Place
from selfsup.engine.distributed import Ranks
port, rank = map(int, sys.argv[2:])
ranks = Ranks(Place(rank, 2, rank, "::1", port))
assert ranks.gather(rank) == [0, 1]
ranks.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a kept port takes the connections to rank 0")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_port_of_ranks_on_one_machine_is_given_to_nobody_else_before_rank_0_listens(address):
    """It takes seconds to load torch; another process that asks for any port, as each does, might get this one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with reserved_port(address) as port:
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))
        with socket.socket(family) as rank_0:
            rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            rank_0.bind((address, port))
            rank_0.listen()
            socket.create_connection((address, port)).close()


@pytest.mark.parametrize("port_from", ["MASTER_PORT", PORT_FROM_JOB])
def test_a_port_that_is_taken_is_told_and_no_other_rank_accused(port_from):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of localhost, where rank 0 listens, is taken") as told:
            Ranks(Place(0, 2, 0, "localhost", port, port_from=port_from))
    assert port_from in str(told.value) and "another rank" not in str(told.value)


def as_double(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _batch_norm(ranks: Ranks, groups: int) -> list:
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm(3).double()
    norm.groups, norm.ranks = groups, ranks
    with torch.no_grad():
        norm.weight.copy_(torch.rand(3, generator=generator) + 0.5)
    views = torch.randn(2, 8, 3, 4, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 8, 3, 4, 4, generator=generator, dtype=torch.float64)
    mine = slice(ranks.rank * 8 // ranks.size, (ranks.rank + 1) * 8 // ranks.size)
    x = views[:, mine].flatten(0, 1).requires_grad_()
    y = norm(x)
    (y * weights[:, mine].flatten(0, 1)).sum().backward()
    shape = (2, -1, 3, 4, 4)
    outputs = [y.detach().view(shape), x.grad.view(shape)]
    return [*(value.tolist() for value in outputs), *(value.tolist() for value in (norm.weight.grad, norm.running_var))]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [2, 4])
def test_batch_norm_over_ranks_equals_one_process(size, groups):
    """Outputs, gradients and running statistics in float64, to 1e-12."""
    (alone,) = [_batch_norm(Ranks(), groups)]
    parts = on_ranks(_batch_norm, size, groups)
    for place in (0, 1):
        together = torch.cat([as_double(part[place]) for part in parts], dim=1)
        torch.testing.assert_close(together, as_double(alone[place]), rtol=1e-12, atol=1e-12)
    weight_grad = sum(as_double(part[2]) for part in parts)
    torch.testing.assert_close(weight_grad, as_double(alone[2]), rtol=1e-12, atol=1e-12)
    for part in parts:
        torch.testing.assert_close(as_double(part[3]), as_double(alone[3]), rtol=1e-12, atol=1e-12)


def _contrast(ranks: Ranks, rows: list) -> list:
    """The gradient of a linear map's weights, for a loss of every row against all rows (InfoNCE without views)."""
    rows = as_double(rows)
    weights = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3))
    mine = rows.chunk(ranks.size)[ranks.rank] @ weights
    logits = mine @ ranks.gather_with_gradient(mine).T
    first = ranks.rank * len(mine)
    torch.nn.functional.cross_entropy(logits, torch.arange(first, first + len(mine))).backward()
    ranks.average_gradients([weights])
    return weights.grad.tolist()


def test_a_loss_over_gathered_rows_has_the_gradient_of_one_rank():
    rows = torch.randn(8, 4, dtype=torch.float64).tolist()
    wanted = as_double(_contrast(Ranks(), rows))
    for found in on_ranks(_contrast, 2, rows):
        torch.testing.assert_close(as_double(found), wanted, rtol=1e-12, atol=1e-12)


def _decorrelate(ranks: Ranks, rows: list) -> list:
    """The same for a loss of the whole batch's covariance, as Barlow Twins and VICReg have."""
    rows = as_double(rows)
    weights = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3))
    mine = rows.chunk(ranks.size)[ranks.rank] @ weights
    mean = ranks.all_reduce_with_gradient(mine.sum(0)) / len(rows)
    covariance = ranks.all_reduce_with_gradient((mine - mean).T @ (mine - mean)) / (len(rows) - 1)
    (covariance - torch.eye(3, dtype=torch.float64)).square().sum().backward()
    ranks.average_gradients([weights])
    return weights.grad.tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_a_loss_of_sums_over_ranks_has_the_gradient_of_one_rank(size):
    rows = torch.randn(8, 4, dtype=torch.float64).tolist()
    wanted = as_double(_decorrelate(Ranks(), rows))
    for found in on_ranks(_decorrelate, size, rows):
        torch.testing.assert_close(as_double(found), wanted, rtol=1e-12, atol=1e-12)


def _train_steps(ranks: Ranks, store, folder, dtype: torch.dtype, steps: int) -> tuple:
    run = Run(load_recipe("digits", TINY), 0, 1, store, folder, on_cpu(ranks, threads=1), 60)
    training = Pretraining(run)
    compute_in(dtype, training)
    losses, gradients = [], None
    for step in range(steps):
        losses.append(float(ranks.mean(training.train_step(training.batches[step]))))
        gradients = gradients or [one.parameter.grad.tolist() for one in training.treatments]
    weights = torch.cat([p.detach().flatten() for p in training.method.networks.parameters()])
    return losses, gradients, weights.tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_one_steps_gradient_is_that_of_the_global_batch(tiny_store, tmp_path, size):
    """float32, to 1e-5 relative in the norm; a single tensor's, in which terms may cancel, to 3e-5."""
    losses, gradients, _ = _train_steps(Ranks(), tiny_store, tmp_path, torch.float32, 1)
    for other_losses, other_gradients, _ in on_ranks(_train_steps, size, tiny_store, tmp_path, torch.float32, 1):
        assert other_losses == pytest.approx(losses, rel=1e-6)
        for wanted, found in zip(map(as_double, gradients), map(as_double, other_gradients), strict=True):
            # The projector's last bias is cancelled by the predictor's batch norm: its gradient is rounding, 4e-7.
            assert (wanted - found).norm() <= max(3e-5 * wanted.norm(), 1e-6)
        whole, others = (torch.cat([as_double(g).flatten() for g in given]) for given in (gradients, other_gradients))
        assert (whole - others).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_many_ranks_train_as_one_does(tiny_store, tmp_path, size):
    """float64, 20 steps, four epochs: weights to 1e-9 relative, equal to the bit between the ranks."""
    _, _, weights = _train_steps(Ranks(), tiny_store, tmp_path, torch.float64, 20)
    parts = on_ranks(_train_steps, size, tiny_store, tmp_path, torch.float64, 20)
    assert all(part[2] == parts[0][2] for part in parts)
    wanted, found = as_double(weights), as_double(parts[0][2])
    assert (wanted - found).norm() < 1e-9 * wanted.norm()


def test_a_run_may_change_its_number_of_ranks_at_any_resume(tiny_store, tiny_recipe, tmp_path):
    """7 steps on one rank, 6 on four, 7 on two, in float64: the weights of 20 steps on one, to 1e-9 relative."""
    wanted = part_in_float64(Ranks(), tiny_store, tiny_recipe, tmp_path / "whole.pt", 20)
    path = tmp_path / "changing.pt"
    part_in_float64(Ranks(), tiny_store, tiny_recipe, path, 7)
    on_ranks(part_in_float64, 4, tiny_store, tiny_recipe, path, 13)
    for weights in on_ranks(part_in_float64, 2, tiny_store, tiny_recipe, path, 20):
        assert np.linalg.norm(weights - wanted) < 1e-9 * np.linalg.norm(wanted)


SEVEN = {**TINY, "epochs": 7, "global_batch": 16}
STEPS = 14  # two an epoch
WAYS = {"whole": (7,), "three": (2, 4, 7), "two": (3, 7), "seven": (1, 2, 3, 4, 5, 6, 7)}


def _in_every_way(ranks: Ranks, store, folder, ways: int, times: int) -> dict[str, bytes]:
    """The seven epochs in so many WAYS, stopped so many times, and killed so many times; the weights of each."""
    weights, segments = {}, dict(islice(WAYS.items(), ways))

    def run_in(name: str, minutes: float = 60) -> Run:
        path = folder / name
        path.mkdir(exist_ok=True)
        return Run(load_recipe("digits", SEVEN), 0, 1, store, path, on_cpu(ranks, threads=1), minutes)

    for name, ends in segments.items():
        assert train(run_in(name), *ends)
    for name, minutes in {"stopped": 60, "killed": 1e-9}.items():
        run = run_in(name, minutes)
        for steps in (2, 3, 1, 4, 2)[:times]:
            if name == "stopped":  # asked for by the last rank alone
                asking = ranks.rank == ranks.size - 1
                assert not train(run, 7, stop=StopAfter(steps - 1 if asking else STEPS))
            else:
                train_until_killed(run, 7, steps + 1)
        assert train(run, 7)
    for name in (*segments, "stopped", "killed"):
        state = load_checkpoint(folder / name / boundary_name(7))
        buffers = [one["momentum_buffer"] for one in state["optimizer"]["state"].values()]
        weights[name] = b"".join(value.numpy().tobytes() for value in [*state["method"].values(), *buffers])
    return weights


LONGER = [pytest.param(*one, marks=pytest.mark.long) for one in ((1, 4, 5), (2, 4, 5), (4, 2, 2))]


@pytest.mark.parametrize(("size", "ways", "times"), [(2, 1, 1), *LONGER])
def test_segments_stops_and_kills_change_no_bit(tiny_store, tmp_path, size, ways, times):
    """Weights, buffers and momenta of 14 steps: in 1, 3, 2 and 7 segments, stopped five times, killed five times.

    Two ranks at first in one segment, stopped once and killed once; in all of these ways, they are long. Four ranks,
    which take three times the processor time of two: in 1 and 3, stopped twice, killed twice.
    """
    told = (tiny_store, tmp_path, ways, times)
    found = on_ranks(_in_every_way, size, *told) if size > 1 else [_in_every_way(Ranks(), *told)]
    for weights in found:
        assert [name for name in weights if weights[name] != found[0]["whole"]] == []


def _needs_a_gradient(ranks) -> tuple[bool, list[float]]:
    gathered = ranks.all_gather(2 * torch.tensor([1.0 + ranks.rank], requires_grad=True))
    return gathered.requires_grad, gathered.flatten().tolist()


def test_what_is_gathered_without_a_gradient_has_none():
    """A queue that takes it would otherwise reach into the graphs of all earlier steps."""
    assert on_ranks(_needs_a_gradient, 2) == [(False, [2.0, 4.0])] * 2


def _averaged(ranks):
    given = torch.full((2,), float(ranks.rank))
    mean = ranks.mean(given)
    one, nowhere = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    one.grad = torch.full((2,), 4.0) if ranks.is_main else None
    ranks.average_gradients([one, nowhere])
    ranks.average_gradients([nowhere])
    return given.tolist(), mean.tolist(), one.grad.tolist(), nowhere.grad


def test_a_mean_leaves_what_it_is_of_and_a_gradient_that_a_rank_lacks_counts_as_zero():
    assert on_ranks(_averaged, 2) == [([rank] * 2, [0.5, 0.5], [2.0, 2.0], None) for rank in (0.0, 1.0)]


def test_around_a_graph_only_a_broken_connection_is_told_as_one(monkeypatch):
    monkeypatch.setattr(distributed, "LAST_S", 0.0)
    with pytest.raises(UserError, match="connection to another rank broke"), distributed.broken_connections_told():
        raise RuntimeError("[gloo/transport] Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^another error$"), distributed.broken_connections_told():
        raise RuntimeError("another error")
