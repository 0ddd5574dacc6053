"""Parquet files as sources, as the Hugging Face datasets are stored: a row is a picture, its bytes in a column.

A column of pictures is a struct of `bytes` and `path`, or of bytes alone. Classes are a column of whole numbers or
texts, with names where the file's metadata has them (ClassLabel of the datasets library). The split is told by a file's
name, `train-00000-of-00005.parquet`, or by the folder that it lies in. pyarrow, which reads them, is optional.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfsup.data.listing import Listing, Member, Picture, Row, divided
from selfsup.data.spelling import utf8
from selfsup.data.splits import TESTS, TRAIN, WITHOUT_CLASSES, WITHOUT_SPLIT, Wanted, find_layout
from selfsup.errors import UserError

SPLIT_OF_A_NAME = re.compile(rf"({'|'.join((TRAIN, *TESTS))})(?=[-_.])")
NO_LABEL = -1  # what the datasets library has for a picture whose class is not published
CACHED_BYTES = 1 << 28  # of row groups, beyond two of them: pictures are read in order, by several threads


class Columns(NamedTuple):
    """Names of columns, None where the files tell which it is. label: of classes."""

    image: str | None = None
    label: str | None = None


class Entry(NamedTuple):
    """A row of a file. value: its class as the column has it, a number or a text; path: of the picture, "" for none."""

    member: Member
    value: Any
    path: str


def list_parquet(
    root: Path, wanted: Wanted, columns: Columns, seen: Callable[[int], None] = lambda count: None
) -> Listing:
    """List the pictures in a Parquet file, or in all of a folder and its folders, in the order of the files' names.

    Raises UserError where the files cannot be read, or do not tell what is wanted.
    """
    found = _by_split(root)
    files = {split: [_File(file, root, columns, wanted) for file in of_split] for split, of_split in found.items()}
    layout = find_layout(root, wanted, {name for split in files for name in (split, f"{split}/")})
    wholes = files.get(TRAIN, []) if layout.train else [file for of_split in files.values() for file in of_split]
    if not layout.labels:
        return Listing([], {"train": [Picture(entry.member, 0) for file in wholes for entry in file.entries(seen)]}, "")
    if layout.test_share is not None:
        return _divided(root, wholes, layout.test_share, seen)
    for split in (layout.train, layout.test):
        if split not in files:
            hint = f"{WITHOUT_SPLIT}, {WITHOUT_CLASSES}" if split == TRAIN else WITHOUT_SPLIT
            raise UserError(f"{root}: has no {split}-*.parquet and no folder {split}/ with Parquet files; {hint}")
    tests = [layout.test, *(name for name in wanted.tests if name in files and name != layout.test)]
    return _with_test(root, files, tests, seen)


def _with_test(root: Path, files: Mapping[str, list["_File"]], tests: list[str], seen: Callable) -> Listing:
    train = [entry for file in files[TRAIN] for entry in file.entries(seen)]
    classes = _Classes(root, files[TRAIN], train)
    for split in tests:
        classes.check(files[split])
        test = [entry for file in files[split] for entry in file.entries(seen)]
        if any(classes.is_known(entry.value) for entry in test):
            pictures = {"train": list(classes.pictures(train)), "test": list(classes.pictures(test))}
            return Listing(classes.names, pictures, "")
    raise UserError(
        f"{root}: the pictures of {' and of '.join(tests)} have none of train's classes: remove these files, and "
        f"{WITHOUT_SPLIT}"
    )


def _divided(root: Path, files: list["_File"], share: float, seen: Callable) -> Listing:
    entries = [entry for file in files for entry in file.entries(seen)]
    classes = _Classes(root, files, entries)
    paths = {entry.member.name: entry.path for entry in entries}

    def name_of(picture: Picture) -> str:
        return f"{classes.names[picture.label]}/{paths[picture.member.name] or picture.member.name}"

    return Listing(classes.names, divided(classes.pictures(entries), share, classes.names, root, name_of), "")


class _Classes:
    """The classes of files, `names` in label order: those of their metadata, or what stands in the column, sorted."""

    def __init__(self, root: Path, files: list["_File"], entries: list[Entry]):
        self._root, self._first, self._named = root, files[0].name, files[0].class_names
        self.check(files)
        values = sorted({entry.value for entry in entries if entry.value is not None}) if self._named is None else []
        self._labels = {value: label for label, value in enumerate(values)}
        self.names = list(map(str, values)) if self._named is None else self._named

    def check(self, files: list["_File"]) -> None:
        """Raise UserError where a file's metadata has other names of classes: the same number is another class."""
        for file in files:
            if file.class_names != self._named:
                raise UserError(
                    f"{self._root}: {file.name} and {self._first} name their classes differently: fetch both again"
                )

    def is_known(self, value: Any) -> bool:
        return value in self._labels if self._named is None else value is not None and 0 <= value < len(self._named)

    def pictures(self, entries: list[Entry]) -> Iterator[Picture]:
        for member, value, _ in entries:
            if self.is_known(value):
                yield Picture(member, value if self._named is not None else self._labels[value])
            else:
                none = value is None or (self._named is not None and value == NO_LABEL)
                problem = "has no class" if none else f"is of the class {value}, which train does not have"
                yield Picture(member._replace(problem=problem), 0)


class _File:
    """A Parquet file. name: within the source. class_names: of its metadata, None where it has none."""

    def __init__(self, path: Path, root: Path, columns: Columns, wanted: Wanted):
        self.name = utf8(str(path.relative_to(root)) if path != root else path.name)
        self._path, self._share = path, wanted.test_share is not None
        self._features = self._read_features()
        self._image = self._image_column(columns.image)
        self._label = self._label_column(columns.label) if wanted.labels else None

    @cached_property
    def class_names(self) -> list[str] | None:
        return self._features.get(self._label, {}).get("names")

    def entries(self, seen: Callable[[int], None]) -> Iterator[Entry]:
        """Yield the rows, without their pictures' bytes."""
        has_path = self._share and "path" in (self._fields(self._image) or ())
        columns = [*([self._label] if self._label else []), *([f"{self._image}.path"] if has_path else [])]
        row = 0
        for group in range(self._groups):
            table, count = self._read_group(group, columns)
            values = table.column(self._label).to_pylist() if self._label else [None] * count
            cells = table.column(self._image).to_pylist() if has_path else [None] * count
            for place, (value, cell) in enumerate(zip(values, cells, strict=True)):
                where = {"file": str(self._path), "length": 0, "row": Row(self._image, group, place)}
                yield Entry(Member(f"{self.name}#{row}", **where), value, (cell and cell["path"]) or "")
                row += 1
            seen(count)

    def _read_group(self, group: int, columns: list[str]) -> tuple[Any, int]:
        """Return a group's columns and number of rows. The file is not left open: there may be thousands."""
        with _opened(self._path) as opened:
            table = _reading(self._path, lambda: opened.read_row_group(group, columns, use_threads=False))
            return table, opened.metadata.row_group(group).num_rows

    @cached_property
    def _groups(self) -> int:
        with _opened(self._path) as opened:
            return opened.num_row_groups

    @cached_property
    def _schema(self):
        with _opened(self._path) as opened:
            return _reading(self._path, lambda: opened.schema_arrow)

    def _read_features(self) -> dict[str, dict]:
        """Return what the datasets library has written of the columns, {} where it has not."""
        try:
            features = json.loads(self._schema.metadata[b"huggingface"])["info"]["features"]
            return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _fields(self, column: str) -> list[str] | None:
        """Return the names of a struct's fields; None where the column is none."""
        kind = self._schema.field(column).type
        return [field.name for field in kind] if _pyarrow().types.is_struct(kind) else None

    def _image_column(self, asked: str | None) -> str:
        found = [name for name in self._schema.names if self._holds_bytes(name)]
        if asked is not None:
            found = [self._asked("image_column", asked, found)]
        marked = [name for name in found if self._features.get(name, {}).get("_type") == "Image"]
        return self._only(marked or found, "pictures (their bytes, or a struct of bytes and path)", "image_column")

    def _holds_bytes(self, name: str) -> bool:
        types, kind = _pyarrow().types, self._schema.field(name).type
        if types.is_struct(kind):
            kind = next((field.type for field in kind if field.name == "bytes"), kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    def _label_column(self, asked: str | None) -> str:
        possible = [field.name for field in self._schema if _may_be_classes(field.type)]
        if asked is not None:
            return self._asked("label_column", asked, possible)
        marked = [name for name in possible if self._features.get(name, {}).get("_type") == "ClassLabel"]
        called = [name for name in possible if name == "label"]
        return self._only(marked or called, f"classes, for example label ({WITHOUT_CLASSES})", "label_column")

    def _only(self, found: list[str], what: str, key: str) -> str:
        if len(found) == 1:
            return found[0]
        told = (
            f"columns {', '.join(found)} hold"
            if found
            else f"none of the columns {', '.join(self._schema.names)} holds"
        )
        raise UserError(f"{self._path}: {told} {what}: set the dataset's key {key} to one of them")

    def _asked(self, key: str, asked: str, possible: list[str]) -> str:
        if asked not in possible:
            raise UserError(
                f"{self._path}: {key} is {asked}, wanted one of {', '.join(possible) or 'none'} of the file's columns "
                f"{', '.join(self._schema.names)}"
            )
        return asked


def _may_be_classes(kind) -> bool:
    types = _pyarrow().types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


class RowGroups:
    """Gives the bytes of rows, asked for about in their order and by several threads; holds a few groups of rows."""

    def __init__(self):
        self._held: OrderedDict = OrderedDict()
        self._reading = threading.Lock()

    def read(self, member: Member, check_head: Callable[[bytes], None], head_bytes: int) -> np.ndarray:
        """Return a row's bytes, uint8, a copy; raises ValueError where there are none, and what `check_head` does."""
        cell = self._column(member.file, member.row)[member.row.place]
        cell = cell["bytes"] if cell.is_valid and hasattr(cell, "keys") else cell
        if not cell.is_valid:
            raise ValueError("the file does not hold its bytes, at most the name of another file")
        content = np.frombuffer(cell.as_buffer(), np.uint8)
        check_head(bytes(content[:head_bytes]))
        return content.copy()

    def _column(self, file: str, row: Row):
        key = (file, row.column, row.group)
        with self._reading:
            if key not in self._held:
                self._held[key] = _column_of_group(file, row)
                while len(self._held) > 2 and sum(column.nbytes for column in self._held.values()) > CACHED_BYTES:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]


def _column_of_group(file: str, row: Row):
    try:
        with _pyarrow().parquet.ParquetFile(file) as opened:
            struct = _pyarrow().types.is_struct(opened.schema_arrow.field(row.column).type)
            wanted = f"{row.column}.bytes" if struct else row.column
            return opened.read_row_group(row.group, [wanted], use_threads=False).column(row.column)
    except (_pyarrow().ArrowException, OSError) as error:
        raise ValueError(f"its group of rows cannot be read: {_first_line(error)}") from error


def _by_split(root: Path) -> dict[str, list[Path]]:
    """Return a source's files by their split, "" of those that tell none, in the order of their names."""
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts)]
    if not files:
        raise UserError(f"{root}: holds no *.parquet, wanted Parquet files with a column of pictures")
    found: dict[str, list[Path]] = {}
    homes: dict[str, set[Path]] = {}
    for file in files:
        split, home = _split_of(file, root)
        found.setdefault(split, []).append(file)
        homes.setdefault(split, set()).add(home)
    for split, folders in homes.items():
        if split and len(folders) > 1:
            names = ", ".join(sorted(str(folder) for folder in folders))
            raise UserError(f"{root}: {names} have files of {split} each: set the dataset's path to one of them")
    return found


def _split_of(file: Path, root: Path) -> tuple[str, Path]:
    """Return the split that a file's name, or else a folder's, tells, and the folder that this lies in."""
    if named := SPLIT_OF_A_NAME.match(file.name):
        return named[1], file.parent
    for folder in file.parents if file != root else ():
        if folder == root:
            break
        if folder.name in (TRAIN, *TESTS):
            return folder.name, folder.parent
    return "", root


def _opened(path: Path):
    return _reading(path, lambda: _pyarrow().parquet.ParquetFile(path))


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (_pyarrow().ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({_first_line(error)}): fetch the file again") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files are read with pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow
