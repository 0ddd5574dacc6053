"""A step that is compiled as one graph over several ranks: what ranks say to each other is in the graph."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from many_ranks import on_ranks
from operators import sequences_of
from runs import StopAfter, equal_states, on_cpu, state_of, train, train_until_killed
from selfsup.engine.distributed import Ranks
from selfsup.models.backbone import LAYERS
from selfsup.recipe import load_recipe
from selfsup.training import static_step
from selfsup.training.pretraining import Pretraining, Run
from tiny import SHALLOW, TINY, with_method

SIMCLR = {key: value for key, value in TINY.items() if key != "byol"}
EQUIMOD = {**SIMCLR, "augment": {"size": 8, "plain": {"resize": 8, "crop": 8}}}


def counted() -> CompileCounterWithBackend:
    """Count, in a rank's own process, the graphs of shallow networks, without a compiler for the processor."""
    static_step.BACKEND = CompileCounterWithBackend("aot_eager")
    LAYERS["resnet18"] = SHALLOW
    torch._dynamo.reset()
    return static_step.BACKEND


def started(ranks: Ranks, store, folder, overrides, recipe="digits", **switches: bool) -> tuple[Pretraining, object]:
    """A pretraining, and the counter of the graphs that it is compiled to."""
    counter = counted()
    run = Run(load_recipe(recipe, overrides), 0, 1, store, folder, on_cpu(ranks, **switches), 60)
    return Pretraining(run), counter


def in_double(training: Pretraining) -> None:
    """Have it compute in float64, from views that no compiler rounds: a corner of the pictures, and that mirrored."""

    def views_of(pictures: torch.Tensor, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = (pictures[places.long(), :, :8, :8].double() / 255 for places in parameters[:, :, 0])
        return first, second.flip(-1)

    training.method.networks.double()
    training.make_views.views_of = views_of


def _trained(ranks: Ranks, store, folder, overrides, recipe, double: bool, switches: dict) -> dict:
    training, graphs = started(ranks, store, folder, overrides, recipe, static_views=True, **switches)
    if double:
        in_double(training)
    losses, gradients = [], []
    for step in range(3):
        losses.append(float(ranks.mean(training.train_step(training.batches[step]))))
        given = [one.parameter.grad for one in training.treatments if one.parameter.grad is not None]
        gradients.append(torch.cat([one.double().flatten() for one in given]).tolist())
    state = training.method.networks.state_dict().values()
    weights = torch.cat([value.double().flatten() for value in state]).tolist()
    return {"losses": losses, "gradients": gradients, "weights": weights, "graphs": graphs.frame_count}


def both(*arguments) -> tuple[list[dict], list[dict]]:
    """What two ranks have found, each in turn as one graph and operator by operator."""
    return on_ranks(_trained, 2, *arguments, {"one_graph": True}), on_ranks(_trained, 2, *arguments, {})


def apart(found: list[float], wanted: list[float]) -> float:
    found, wanted = (torch.tensor(one, dtype=torch.float64) for one in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("digits", {**TINY, "micro_batches": 2}),
        ("simclr_digits", SIMCLR),
        *(("digits", with_method(name)) for name in ("simsiam", "barlow_twins", "vicreg", "moco_v3")),
        ("equimod_digits", EQUIMOD),
    ],
)
@pytest.mark.long
def test_a_step_over_two_ranks_is_one_graph_that_computes_what_operators_do(tiny_store, tmp_path, recipe, overrides):
    """float64, three steps: gradients and weights to 1e-9, relative; without a break, and ranks equal to the bit."""
    found, wanted = both(tiny_store, tmp_path, overrides, recipe, True)
    assert [one["graphs"] for one in found] == [1, 1] and [one["graphs"] for one in wanted] == [0, 0]
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0]["losses"] == pytest.approx(wanted[0]["losses"], rel=1e-6)  # added up in float32
    for one, other in zip(found[0]["gradients"], wanted[0]["gradients"], strict=True):
        assert apart(one, other) < 1e-9
    assert apart(found[0]["weights"], wanted[0]["weights"]) < 1e-9


@pytest.mark.long
def test_in_float32_too_and_a_compiled_update_has_the_bits_of_an_eager_one(tiny_store, tmp_path):
    """The first step's gradient to 4e-6: eager float32 is as far from float64."""
    given = tiny_store, tmp_path, TINY, "digits", False
    found, wanted = both(*given)
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0]["losses"] == pytest.approx(wanted[0]["losses"], rel=1e-6)
    assert apart(found[0]["gradients"][0], wanted[0]["gradients"][0]) < 4e-6
    updated = on_ranks(_trained, 2, *given, {"one_graph": True, "compiled_update": True})
    assert [one["graphs"] for one in (*found, *updated)] == [1, 1, 2, 2]
    assert all(one["weights"] == found[0]["weights"] for one in updated)


def _of_all_rows(ranks: Ranks, rows: torch.Tensor, way: str, compiled: bool) -> torch.Tensor:
    """The gradient of a linear map's weights, for a loss of all ranks' rows."""
    weights = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    mine = rows.chunk(ranks.size)[ranks.rank]

    def loss() -> torch.Tensor:
        own = mine @ weights
        if way == "gathered":
            return (own @ ranks.gather_with_gradient(own).T).logsumexp(1).mean()
        return ranks.all_reduce_with_gradient(own.T @ own).square().sum()

    (torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss)().backward()
    return ranks.mean(weights.grad).tolist()


@pytest.mark.long
@pytest.mark.parametrize("way", ["gathered", "summed"])
def test_compiled_losses_of_all_rows_have_the_gradient_of_one_rank(way):
    rows = torch.randn(8, 4, dtype=torch.float64)
    wanted = _of_all_rows(Ranks(), rows, way, False)
    for found in on_ranks(_of_all_rows, 2, rows, way, True):
        assert apart(found, wanted) < 1e-12


def _sequences(ranks: Ranks, store, folder) -> tuple[list[list[str]], int]:
    """Of steps 0 to 3, after a step in which the graph was made."""
    training, graphs = started(ranks, store, folder, TINY, one_graph=True)
    training.train_step(training.batches[0])
    training.step = 0
    return sequences_of(training), graphs.frame_count


@pytest.mark.long
def test_steps_0_to_3_are_one_sequence_of_operators_and_shapes(tiny_store, tmp_path):
    for sequences, graphs in on_ranks(_sequences, 2, tiny_store, tmp_path):
        assert graphs == 1 and any(one.startswith("_c10d_functional") for one in sequences[0])
        assert all(sequence == sequences[0] for sequence in sequences)


def _stopped_and_killed(ranks: Ranks, store, folder) -> bool:
    """Whether a run that is stopped, then killed with its checkpoint lost, ends as one that is left alone does."""
    counted()

    def run(name: str) -> Run:
        compute = on_cpu(ranks, one_graph=True)
        return Run(load_recipe("digits", TINY), 0, 1, store, folder / name, compute, 1e-9)

    assert train(run("whole"), 4)
    assert not train(run("stopped"), 4, stop=StopAfter(3))
    train_until_killed(run("stopped"), 4, steps=6)
    assert train(run("stopped"), 4)
    return equal_states(state_of(run("whole")), state_of(run("stopped")))


@pytest.mark.long
def test_a_stop_and_a_kill_change_no_bit(tiny_store, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert on_ranks(_stopped_and_killed, 2, tiny_store, tmp_path) == [True, True]
