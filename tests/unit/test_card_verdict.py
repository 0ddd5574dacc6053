"""The verdict that a model card tells: of a table's row on its encoder, and none where the table cannot be read."""

import json
from types import SimpleNamespace

import pytest

from selfsup.parts import verdict

CONFIG = SimpleNamespace(tables={"demo": []})
COLUMNS = "experiment,task,encoder_sha256,verdict,verdict_reason"


def told(folder, table: str | bytes | None, checksum="abc") -> str:
    card = folder / "encoder.json"
    card.write_text(json.dumps({"encoder_sha256": checksum}))
    if table is not None:
        (folder / "demo.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return verdict(CONFIG, card, folder)


def test_it_is_that_of_the_row_on_the_linear_evaluation_of_the_encoder(tmp_path):
    rows = "digits,knn,abc,no,\nother,linear,def,no,\ndigits,linear,abc,yes,within two points\n"
    assert told(tmp_path, f"{COLUMNS}\n{rows}") == "yes (within two points)"
    assert told(tmp_path, None, checksum="other") == "none yet"


@pytest.mark.parametrize(
    "table",
    [
        None,
        "",
        f"{COLUMNS}\ndigits,linear\n",  # cut in a row
        f"{COLUMNS}\n".encode() + b"d\xe9,linear,abc,yes,\n",  # saved again by a spreadsheet
        f"{COLUMNS}\n\0,linear\n",
    ],
)
def test_a_table_that_cannot_be_read_has_none(tmp_path, table):
    assert told(tmp_path, table) == "none yet"


def test_a_row_that_is_cut_before_its_verdict_has_an_empty_one(tmp_path):
    assert told(tmp_path, f"{COLUMNS}\ndigits,linear,abc\n") == ""


@pytest.mark.parametrize("checksum", [None, 5, ["abc"]])
def test_a_checksum_that_is_no_text_is_in_no_table(tmp_path, checksum):
    assert told(tmp_path, f"{COLUMNS}\ndigits,linear,abc,yes,\n", checksum) == "none yet"
