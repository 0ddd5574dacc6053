"""Draws, orders, initial weights and losses are the recorded ones; golden_values.py says when to renew them."""

import json

import pytest
from golden_values import CHANGELOG, EQUAL_ANYWHERE, FILE, STEPS, digest, exact, machine, rounded, twins

pytestmark = pytest.mark.usefixtures("two_threads")

GOLDEN = json.loads(FILE.read_text())
WAY = "if it is meant: python tests/conformance/golden_values.py '<words of docs/changelog.md that allow it>'"


@pytest.mark.parametrize("part", GOLDEN["exact"])
def test_draws_and_orders_never_change(part):
    assert json.loads(json.dumps(exact()[part])) == GOLDEN["exact"][part], WAY


@pytest.mark.parametrize("steps", [EQUAL_ANYWHERE, pytest.param(STEPS, marks=pytest.mark.long)])
def test_initial_weights_and_losses_never_change(steps):
    """Weights to 1e-5 relative, the first four losses to 1e-4; all to 1e-3 on the machine that they were recorded on.

    Each step carries on what is summed in another order, by another processor or by other numbers of threads: EquiMod's
    losses are within 4e-7 of each other in four steps, up to 1e-2 apart after six, and percents after ten.
    """
    comparable = steps if machine() == GOLDEN["machine"] else EQUAL_ANYWHERE
    found = rounded(comparable)
    assert found.keys() == GOLDEN["rounded"].keys()
    for name, recorded in GOLDEN["rounded"].items():
        weights = found[name]["initial weights"]
        assert weights.keys() == recorded["initial weights"].keys(), f"{name}: {WAY}"
        for key, wanted in recorded["initial weights"].items():
            assert weights[key] == pytest.approx(wanted, rel=1e-5), f"{name}, {key}: {WAY}"
        losses, wanted = found[name]["losses"], recorded["losses"][:comparable]
        assert losses[:EQUAL_ANYWHERE] == pytest.approx(wanted[:EQUAL_ANYWHERE], rel=1e-4), f"{name}: {WAY}"
        assert losses == pytest.approx(wanted, rel=1e-3), f"{name}: {WAY}"


def test_first_losses_of_further_recipes_never_change():
    found, recorded = twins(), GOLDEN["further"]["losses"]
    assert found.keys() == recorded.keys(), WAY
    for name, losses in found.items():
        assert losses == pytest.approx(recorded[name], rel=1e-4), f"{name}: {WAY}"


@pytest.mark.parametrize(
    ("recorded", "parts"), [(GOLDEN, ("exact", "rounded")), (GOLDEN["further"], ("losses", "figures"))]
)
def test_the_changelog_allows_the_values_that_are_recorded(recorded, parts):
    """An edit by hand, or without words of the changelog, is found."""
    changelog, allowed = " ".join(CHANGELOG.read_text().split()), recorded["allowed"]
    now = digest({key: recorded[key] for key in parts})
    assert list(allowed)[-1] == now, WAY
    assert [words for words in allowed.values() if words not in changelog] == []
