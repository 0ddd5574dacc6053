"""Files from outside the package that add methods, backbones, optimisers and trackers: config.yaml's `extensions`.

Each is a Python file that registers settings by the decorators of `selfsup.settings.registries`. Its folder is put on
sys.path, so that `builds="my_method:MyMethod"` names a file beside it, which may import torch. The file itself should
not: Snakemake reads it in every job. Imports no torch.
"""

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from selfsup.errors import UserError


def load_extensions(paths: Iterable[str | Path]) -> None:
    """Import the files, each once. Raises UserError for one that is missing, that fails, or whose name is taken."""
    for path in map(Path, paths):
        _load(path, path.resolve())


def _load(path: Path, file: Path) -> None:
    name = file.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return
    if not file.is_file():
        raise UserError(f"extensions: {path} is no file: mend the path, or take it from config.yaml")
    if known is not None or importlib.util.find_spec(name) is not None:
        raise UserError(f"extensions: {path} has the name of another Python module, {name}: rename the file")
    sys.path.append(str(file.parent))
    specification = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"extensions: {path}{_line(error, file)}: {type(error).__name__}: {error}") from error


def _line(error: Exception, file: Path) -> str:
    """Return the place in the file where it failed: its own line, whatever was called there."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""
