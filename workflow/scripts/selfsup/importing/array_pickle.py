"""Pickles of nested dictionaries of arrays, read without running anything of theirs.

A pickle names functions to be called. Here these names lead to this file's own: ones that build NumPy arrays of
numbers, dictionaries for Haiku's, and `Inert` objects for all else of the libraries that JAX programs save with. None
of those is imported. Any other name ends the reading.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.errors import UserError

NUMBERS = "fiub"  # kinds of dtypes: floats, integers, truth values
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
LIBRARIES = ("haiku", "jax", "jaxlib", "optax", "byol", "dill")


class Inert:
    """Stands for an object of a class that is not loaded: keeps what it was made of, and does nothing."""

    fields: tuple[str, ...] = ()

    def __new__(cls, *args, **kwargs):
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def as_dict(self) -> dict[str, Any]:
        """A named tuple's values by the names of its fields."""
        return dict(zip(self.fields, self.args, strict=True))


class HaikuMapping(dict):
    """Haiku's immutable dictionaries of several versions: made from a dictionary, or given their slots."""

    def __setstate__(self, state: Any) -> None:
        slots = state[1] if isinstance(state, tuple) else state
        self.update(slots.get("_storage") or slots.get("_mapping") or {})


def read_array_pickle(path: Path, named_tuples: dict[str, tuple[str, ...]]) -> Any:
    """Return what a pickle holds. named_tuples: fields of classes that are pickled by their name alone.

    Raises UserError for a name that has no place in such a file, and for a file that is damaged or no pickle.
    """
    try:
        with open(path, "rb") as file:
            return _Reader(path, file, named_tuples).load()
    except (UserError, OSError):
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise UserError(f"{path}: cannot be read as a pickle of arrays ({type(error).__name__}: {error})") from error


class _Reader(pickle.Unpickler):
    def __init__(self, path: Path, file, named_tuples: dict[str, tuple[str, ...]]):
        super().__init__(file)
        self._path, self._named_tuples = path, named_tuples

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if module.split(".")[0] not in LIBRARIES:
            raise UserError(
                f"{self._path}: names {module}.{name}, which no pickle of arrays needs: not read, nothing in it was run"
            )
        if name in ("frozendict", "FlatMapping", "FlatMap"):
            return HaikuMapping
        if name == "_create_namedtuple":
            return _named_tuple
        if name == "_create_array":
            return _array_of_dill
        return _named_tuple(name, self._named_tuples.get(name, ()))


def _named_tuple(name: str, fields: tuple[str, ...], *rest: Any) -> type[Inert]:
    return type(str(name), (Inert,), {"fields": tuple(fields)})


class _ArrayType(Inert):
    """Stands for numpy.ndarray, which could be called with any size."""


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """NumPy's first half of an array, which gets shape, type and content by its __setstate__."""
    if kind is not _ArrayType or tuple(shape) != (0,):
        raise ValueError("an array that is not made in NumPy's way")
    return np.empty(0, np.int8)


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    found = np.dtype(str(code), False, True)
    if found.kind not in NUMBERS:
        raise ValueError(f"arrays of {code}, wanted numbers")
    return found


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    return np.frombuffer(content, dtype)[0]


def _array_of_dill(make: Any, args: tuple, state: tuple, attributes: Any = None) -> np.ndarray:
    array = _empty_array(*args)
    array.__setstate__(state)
    return array


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 writes them from Python 3."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding}, wanted latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_ADMITTED = {
    **{(module, "_reconstruct"): _empty_array for module in MULTIARRAY},
    **{(module, "scalar"): _scalar for module in MULTIARRAY},
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
}
