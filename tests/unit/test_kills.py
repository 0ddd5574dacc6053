"""What tests/cuda does with a GPU, a run killed three times, works on a processor."""

import pytest

from kills import MORTAL, trained
from runs import equal_states
from selfsup.recipe import load_recipe
from tiny import TINY

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.mark.long
@pytest.mark.parametrize(
    ("switches", "kills"), [((), (10, 25, 40)), (("--one-graph",), (25,))], ids=["eager", "one_graph"]
)
def test_kills_change_no_bit(tiny_store, tmp_path, starter, program, switches, kills):
    """As one graph once, because each process compiles for half a minute, even as far as operators only."""
    recipe = load_recipe("digits", {**TINY, "epochs": 12})
    arguments = ("--device", "cpu", "--precision", "fp32", "--cpus", "1", "--checkpoint-minutes", "0.0005", *switches)
    told = {"backend": "aot_eager", "program": [starter, program(MORTAL)]}
    whole = trained(recipe, tiny_store.folder, tmp_path / "whole", *arguments, **told)
    parts = trained(recipe, tiny_store.folder, tmp_path / "parts", *arguments, kills=kills, **told)
    assert max(attempt["start_step"] for attempt in parts["attempts"]) > 0
    assert {attempt["one_graph"] for attempt in parts["attempts"]} == {bool(switches)}
    assert equal_states(whole, parts)
    name, weights = next(iter(parts["method"].items()))
    parts["method"][name] = weights + 1e-6
    assert not equal_states(whole, parts)
