"""A dataset and a recipe so small that a training takes a second, made anew for each test session."""

import fcntl
import gc
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType

import pytest
import torch

from selfsup.data.store import PackedStore
from selfsup.job.place import TORCHRUN
from selfsup.models.backbone import LAYERS
from selfsup.recipe import load_recipe
from selfsup.settings import extensions
from selfsup.settings.registries import BACKBONES, METHODS, OPTIMIZERS, TASKS, TRACKERS
from selfsup.signals import STOP_SIGNALS
from tiny import SHALLOW, TINY, write_tiny_store
from warm.executable import PROGRAMS, SET_FOR_THREADS, can_fork, python_in

# A shell without a terminal starts what it leaves in the background with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup with SIGHUP, which a job then leaves ignored.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

HANDLERS = {number: signal.getsignal(number) for number in STOP_SIGNALS}

# Inside a job of Slurm, under torchrun or with a tracker of one's own the tests are what they are elsewhere.
for name in list(os.environ):
    if name in TORCHRUN or name.startswith(("SLURM", "SNAKEMAKE_", "WANDB_", "MLFLOW_")):
        del os.environ[name]

# And whatever one keeps to oneself: some tests drop root's privileges, and read what was written before.
os.umask(0o022)

LONG = ("slow", "long")
RANKS = {"on_ranks", "check_steps_over_ranks", "forking", "kill_in_process"}  # of many_ranks.py, and what calls them

# One thread, for fixtures of modules too: two take five times the processor's time for networks as small as these.
torch.set_num_threads(1)
# For scripts as well, as Snakemake does it for a job: then one process is enough to fork them all from.
os.environ |= dict.fromkeys(SET_FOR_THREADS, "1")


def pytest_xdist_auto_num_workers(config) -> int:
    """One process more than there are cores: a third of the time, tests wait for processes, signals and locks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_finish(session):
    """What all tests have imported is no garbage: looking through it took a twentieth of the time of quick tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config, items):
    """Give out the long tests first, where several processes share them, so that all have work to the end.

    One of these processes has all tests that call on ranks: it alone keeps another one from which they are forked.
    """
    for item in items:
        if RANKS.intersection(names_in(item.function.__code__)):
            item.add_marker(pytest.mark.xdist_group("ranks"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.path.parent.name != "workflow", not any(map(item.get_closest_marker, LONG))))


def names_in(code: CodeType) -> Iterator[str]:
    """The names that code reads, of what stands within it too: a comprehension is code of its own in Python 3.11."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


@pytest.fixture(scope="session")
def tiny_recipe() -> dict:
    """The digits recipe with a network, pictures and a length that fit into a second."""
    return load_recipe("digits", TINY)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> PackedStore:
    """43 training and 19 test images, 12 pixels high and 10 wide, of three classes; neither number divides a batch."""
    folder = tmp_path_factory.mktemp("store")
    write_tiny_store(folder)
    return PackedStore(folder)


@pytest.fixture(scope="module")
def shallow():
    """In a file that uses it, a resnet18 has one block a stage: half of the time, where depth is no part of a claim.

    On ranks of many_ranks.py as well, and in no script.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "resnet18", SHALLOW)
        yield


@pytest.fixture
def of_shapes_alone():
    """Networks are built without numbers: those of full size take seconds to draw."""
    with torch.device("meta"):
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function of a name and of what fills a folder: it is filled by the first process of the tests that asks for it,
    and the others wait for that. Tests only read what is in it, for they share it."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, made = common / name, common / f"{name}.made"
        with open(common / f"{name}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                fill(folder)
                made.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def warm_python(made_once) -> Path | None:
    """What starts a script in a tenth of the time, by a fork of a process that has torch; None where there is none."""
    if not can_fork():
        return None
    # The processes that are forked end with the one that the user started.
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    scripts = ("workflow/scripts", "benchmarks", "docs")
    python = made_once("warm", lambda folder: python_in(folder, scripts, owner)) / "python"
    return python if os.access(python, os.X_OK) else None  # where temporary folders hold nothing that may be run


@pytest.fixture(scope="session")
def starter(warm_python) -> str:
    """What starts a script of workflow/scripts, benchmarks or docs, given by its path."""
    return str(warm_python or sys.executable)


@pytest.fixture(scope="session")
def program(warm_python, tmp_path_factory) -> Callable[[str], Path]:
    """A function that makes code a script that `starter` starts: `starter program(code)` is `python -c code`."""
    folder = warm_python.parent / PROGRAMS if warm_python else tmp_path_factory.mktemp(PROGRAMS)

    def written(code: str) -> Path:
        path = folder / f"{zlib.crc32(code.encode()):08x}.py"
        unfinished = path.with_suffix(f".{os.getpid()}")  # another process of the tests may write the same
        unfinished.write_text(code)
        return unfinished.replace(path)

    return written


@pytest.fixture
def forgotten(monkeypatch, tmp_path):
    """What a test adds to the registries, and imports from its own folder, is gone after it.

    All registries read their own files first: one that the test alone had read would lose them with the test.
    """
    for registry in (METHODS, BACKBONES, OPTIMIZERS, TASKS):
        registry.read_own()
        monkeypatch.setattr(registry, "classes", dict(registry.classes))
        monkeypatch.setattr(registry, "components", dict(registry.components))
    monkeypatch.setattr(TRACKERS, "added", dict(TRACKERS.added))
    monkeypatch.setattr(extensions, "_LOADED", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def one_thread():
    """No test leaves another number of threads to the next."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def two_threads(one_thread):
    """A test computes as a run with cpus_per_device: 2 does."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def own_signals():
    """An attempt takes the signals that ask to stop, and ignores them when it has ended; here the process goes on.

    What a module's fixture has trained comes before the test, and what a test starts would ignore them too.
    """
    put_back(HANDLERS)
    yield
    put_back(HANDLERS)


def put_back(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture
def kept_as_files(monkeypatch):
    """Equal small pictures are packed as files, as large ones are, so that a test knows them by their bytes."""
    monkeypatch.setattr("selfsup.data.packing.size_of_all", lambda sizes: None)
