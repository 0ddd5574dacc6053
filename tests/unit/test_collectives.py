"""How many collectives a step costs: docs/performance.md has the figures, and more would slow many ranks down."""

import re

import pytest

from collectives import of_a_step
from many_ranks import on_ranks

SHORT = {"epochs": 1, "global_batch": 8, "optimizer": {"warmup_epochs": 0}}


@pytest.mark.parametrize("recipe", ["digits", "simclr_digits"])
def test_a_step_has_as_many_collectives_as_the_docs_say(recipe, repository, tiny_store, tmp_path):
    told = re.search(
        rf"^\| `{recipe}` .*\| (\d+) \| ([\d.]+) \|$", (repository / "docs/performance.md").read_text(), re.M
    )
    for one in on_ranks(of_a_step, 2, tiny_store, tmp_path, recipe, SHORT):
        assert (one.calls, round(one.bytes / 1e6, 1)) == (int(told[1]), float(told[2]))
