"""One reader for all YAML: what has two meanings is refused, with the place and what to write."""

import pytest

from selfsup.errors import UserError
from selfsup.settings.yaml_reader import parse_yaml, read_yaml

SHIPPED = ("workflow/**/*.yaml", "config.yaml", "profiles/slurm/*.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {hours: 1:30}", ["line 1, column 12", "1:30", "counted in sixties", '"1:30" in quotes']),
        ("a:\n  hours: 20:00:00", ["line 2, column 10", '"20:00:00" in quotes']),
        ("a: 1:30.5", ["1:30.5", "counted in sixties"]),
        ("a: yes", ["yes is true to some", "write true", "'yes' in quotes"]),
        ("a: Off", ["Off is false to some", "write false"]),
        ("on: 1", ["line 1, column 1", "'on' in quotes"]),
        ("a: [no]", ["write false, or 'no' in quotes"]),
        ("2024-05-01: 1", ["is a date", "write '2024-05-01' in quotes"]),
        ("a: 2024-13-45", ["is a date"]),
        ("a: 017", ["without the leading 0", "'017' in quotes"]),
        ("a: 0o17", ["without the leading 0"]),
        ("a: 089", ["without the leading 0"]),
        ("a: -01", ["without the leading 0"]),
        ("a: 0b11", ["without the leading 0"]),
        ("a: 1_000", ["write 1000", "'1_000' in quotes"]),
        ("a: 1_0.5", ["write 10.5"]),
    ],
)
def test_plain_text_with_two_meanings_is_refused_with_its_place_and_what_to_write(text, words):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "mine.yaml")
    message = str(error.value)
    assert message.startswith("mine.yaml, line ") and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'1:30'", "1:30"),
        ('"yes"', "yes"),
        ("'2024-05-01'", "2024-05-01"),
        ("'017'", "017"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("-1", -1),
        ("0", 0),
        ("0x1F", 31),
        ("0.5", 0.5),
        ("1e-6", "1e-6"),  # a number only where one is wanted: reading settings makes it one
        ("v100-32g", "v100-32g"),
        ("12:ab", "12:ab"),
        ("|\n  yes\n", "yes\n"),
    ],
)
def test_what_has_one_meaning_is_read(text, value):
    assert parse_yaml(text, "mine.yaml") == value


@pytest.mark.parametrize("pattern", SHIPPED)
def test_every_file_that_is_shipped_has_one_meaning(repository, pattern):
    files = list(repository.glob(pattern))
    assert files and all(read_yaml(path) for path in files)


def test_a_file_is_utf8_whatever_the_locale_and_another_encoding_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufeff# Größe, 猫\na: ü\n".encode())
    assert read_yaml(path) == {"a": "ü"}
    path.write_bytes("a: 1\n# Größe\n".encode("iso-8859-1"))
    with pytest.raises(UserError, match=r"config\.yaml, line 2: not in UTF-8: save the file as UTF-8"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [b\nc: d", "line 2, column 2: not valid YAML"),
        ("a:\n\t- b", "line 2, column 1: not valid YAML"),
        ("a: {[b]: c}", "not valid YAML: a mapping or a list stands where a key belongs"),
        ("a: !!int ten", "not valid YAML"),
        ("a: !!python/object:os.system x", "line 1, column 4: not valid YAML"),
    ],
)
def test_a_slip_is_told_with_line_and_column(text, words):
    with pytest.raises(UserError, match=words):
        parse_yaml(text, "mine.yaml")


@pytest.mark.parametrize("depth", [600, 5000])
def test_what_is_nested_too_deeply_is_one_line(depth):
    with pytest.raises(UserError, match=r"^mine\.yaml: nested too deeply .*: write it flatter$"):
        parse_yaml("[" * depth + "]" * depth, "mine.yaml")
