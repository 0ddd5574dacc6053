"""Draws, orders, initial weights and losses are the recorded ones; golden_values.py says when to renew them."""

import json

import pytest
from golden_values import CHANGELOG, FILE, digest, exact, rounded

GOLDEN = json.loads(FILE.read_text())
WAY = "if it is meant: python tests/conformance/golden_values.py '<words of docs/changelog.md that allow it>'"


@pytest.mark.parametrize("part", GOLDEN["exact"])
def test_draws_and_orders_never_change(part):
    assert json.loads(json.dumps(exact()[part])) == GOLDEN["exact"][part], WAY


def test_initial_weights_and_losses_never_change():
    """Weights to 1e-5 relative, losses to 1e-3: each step carries on what processors sum in different orders."""
    found = rounded()
    assert found.keys() == GOLDEN["rounded"].keys()
    for name, recorded in GOLDEN["rounded"].items():
        weights = found[name]["initial weights"]
        assert weights.keys() == recorded["initial weights"].keys(), f"{name}: {WAY}"
        for key, wanted in recorded["initial weights"].items():
            assert weights[key] == pytest.approx(wanted, rel=1e-5), f"{name}, {key}: {WAY}"
        assert found[name]["losses"] == pytest.approx(recorded["losses"], rel=1e-3), f"{name}: {WAY}"


def test_the_changelog_allows_the_values_that_are_recorded():
    """An edit by hand, or without words of the changelog, is found."""
    changelog, allowed = " ".join(CHANGELOG.read_text().split()), GOLDEN["allowed"]
    now = digest({key: GOLDEN[key] for key in ("exact", "rounded")})
    assert list(allowed)[-1] == now, WAY
    assert [words for words in allowed.values() if words not in changelog] == []
