"""The columns of results/evaluations.csv are explained where a reader looks for them."""

import re

from selfsup.tables.evaluations import COLUMNS


def test_every_column_is_explained_in_the_docs(repository):
    text = (repository / "docs" / "results.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)).items() >= COLUMNS.items()
