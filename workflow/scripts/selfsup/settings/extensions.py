"""Files from outside the package that add components, from methods to trackers: config.yaml's `extensions`.

Each is a Python file that registers settings by the decorators of `selfsup.settings.registries`. Its folder is put on
sys.path, so that `builds="my_method:MyMethod"` names a file beside it, which may import torch. The file itself should
not: Snakemake reads it in every job. Imports no torch.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from selfsup.errors import UserError
from selfsup.settings.registries import BACKBONES, METHODS, OPTIMIZERS, TASKS


def load_extensions(paths: Iterable[str | Path]) -> None:
    """Import the files, each once. Raises UserError for one that is missing, that fails, or whose name is taken."""
    for path in map(Path, paths):
        _load(path, path.resolve())


def loaded_extensions() -> dict[str, str]:
    """Return {file's name: SHA-256 of it and of all Python files beside it} of what was loaded: it may change a run."""
    found = {}
    for file in _LOADED:
        digest = hashlib.sha256()
        for one in sorted(file.parent.glob("*.py")):
            digest.update(one.name.encode() + b"\0" + one.read_bytes())
        found[file.name] = digest.hexdigest()
    return found


_LOADED: list[Path] = []


def _load(path: Path, file: Path) -> None:
    if file in _LOADED:
        return
    if not file.is_file():
        raise UserError(f"extensions: {path} is no file: mend the path, or take it from config.yaml")
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UserError(f"extensions: {path} is no name of a Python module, wanted for example my_method.py: rename it")
    _refuse_another(path, file.stem, file)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    registries = (METHODS, BACKBONES, OPTIMIZERS, TASKS)
    for registry in registries:
        registry.read_own()
    before = [dict(registry.components) for registry in registries]
    _execute(path, file)
    for registry, known in zip(registries, before, strict=True):
        for place in {place for name, place in registry.components.items() if known.get(name) != place}:
            _check_code(path, file, place)
    _LOADED.append(file)


def _execute(path: Path, file: Path) -> None:
    specification = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[file.stem] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[file.stem]
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"extensions: {path}{_line(error, file)}: {said}") from error


def _refuse_another(path: Path, module: str, file: Path) -> None:
    """Raise UserError where a module of that name is another file, which Python would take instead."""
    known = sys.modules.get(module)
    found = getattr(known, "__file__", None) if known else getattr(importlib.util.find_spec(module), "origin", None)
    if (known or found) and (found is None or Path(found).resolve() != file):
        raise UserError(f"extensions: {path} needs {file.name}, but Python finds another {module} ({found}): rename it")


def _check_code(path: Path, file: Path, place: str) -> None:
    """Check that the code that `builds` names can be found, without importing it."""
    module = place.partition(":")[0]
    beside = file.with_name(f"{module}.py")
    if beside.is_file():
        _refuse_another(path, module, beside)
    elif importlib.util.find_spec(module.partition(".")[0]) is None:
        raise UserError(f"extensions: {path} has builds={place!r}, but {beside} is no file: mend one of them")


def _line(error: BaseException, file: Path) -> str:
    """Return the place in the file where it failed: its own line, whatever was called there."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""
