"""A process that has imported torch, or Snakemake, and is forked for each script that client.py asks it to run.

    python server.py SOCKET torch|all|snakemake OWNER READY

It has computed nothing, so that torch has started no threads, and imported nothing of this repository. It ends with the
process OWNER, and with a client it kills what runs for it.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Iterable


def import_torch() -> None:
    """Import what takes long, with what the package sets before torch is loaded: selfsup/__init__.py."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    import torchvision.transforms.v2.functional  # noqa: F401


def import_all_of_scripts() -> None:
    import_torch()
    import_each(SCRIPTS_IMPORT)


def import_snakemake() -> None:
    """Import it, and let it look for its plugins: a tenth of each call."""
    import snakemake.cli

    import_each(SNAKEMAKE_IMPORTS)
    for name in ("Executor", "Storage", "Report", "Logger", "Scheduler"):
        getattr(snakemake.cli, f"{name}PluginRegistry")()


def import_each(names: Iterable[str]) -> None:
    """Import what is here: what is not, a script imports itself, and fails as it does for users."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


# What tables, figures, packed digits and pages of neighbours need, 0.2 to 2 s of processor time each.
SCRIPTS_IMPORT = (
    *("yaml", "pandas", "matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg"),
    *("sklearn.datasets", "sklearn.model_selection", "sklearn.decomposition", "sklearn.manifold", "pyarrow.parquet"),
)
# What Snakemake imports by the way: a third of a second of each call.
SNAKEMAKE_IMPORTS = (
    *("snakemake.profiles", "snakemake.report.html_reporter", "snakemake.storage", "smart_open", "platformdirs"),
)


def settle() -> None:
    """What is imported here stays as it is to the end: no child looks through it for garbage, or takes it down.

    Torch would take its operators down one by one, a tenth of what a short script takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    gc.enable()
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False


IMPORTS = {"torch": import_torch, "all": import_all_of_scripts, "snakemake": import_snakemake}


class Server:
    """Serves until the owner has ended; in a child, `serve` returns what the child is to be."""

    def __init__(self, path: str, owner: int):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(100)
        self.events = selectors.DefaultSelector()
        self.events.register(self.listener, selectors.EVENT_READ, self.accept)
        self.events.register(os.pidfd_open(owner), selectors.EVENT_READ, self.end)
        self.clients: set[socket.socket] = set()
        self.children: set[int] = set()
        self.child: tuple[dict, list[int]] | None = None

    def serve(self) -> tuple[dict, list[int]]:
        while not self.child:
            for key, _ in self.events.select():
                key.data()
                if self.child:
                    break
        return self.child

    def accept(self) -> None:
        client, _ = self.listener.accept()
        client.settimeout(60)
        try:
            request, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
        except OSError:
            request, files = b"", []
        if len(files) < 3:
            client.close()
            return
        pid = os.fork()
        self.clients.add(client)
        if not pid:
            self.close()
            self.child = json.loads(request), files
            return
        for file in files:
            os.close(file)
        ended = os.pidfd_open(pid)
        self.children.add(ended)
        self.events.register(client, selectors.EVENT_READ, lambda: self.heard(client, ended))
        self.events.register(ended, selectors.EVENT_READ, lambda: self.ended(client, ended, pid))

    def heard(self, client: socket.socket, child: int) -> None:
        """Pass on a signal that the client was sent; its end is the child's."""
        if client not in self.clients:  # both have ended at once
            return
        number = b""
        with contextlib.suppress(OSError):
            number = client.recv(100)
        if not number:
            self.events.unregister(client)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, int(number or signal.SIGKILL))

    def ended(self, client: socket.socket, child: int, pid: int) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):
            client.send(str(status).encode())
        with contextlib.suppress(KeyError):
            self.events.unregister(client)
        self.events.unregister(child)
        self.children.remove(child)
        os.close(child)
        self.clients.remove(client)
        client.close()

    def end(self) -> None:
        """End with the owner, and with all that runs for it."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
        os._exit(0)

    def close(self) -> None:
        """In a child: close all that is the server's."""
        for key in list(self.events.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
        for one in (self.events, self.listener, *self.clients):
            one.close()


def become(process: dict, files: list[int]) -> str:
    """Take over what a process has from the one that starts it; return the script to run."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ignored = number in process["ignored"] or number == signal.SIGPIPE  # which Python ignores always
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    if signal.SIGINT not in process["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, process["blocked"])
    os.setpgid(0, 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(process["folder"])
    os.umask(process["umask"])
    os.nice(process["nice"] - os.nice(0))
    os.environ.clear()
    os.environ.update(process["environment"])
    for number, limits in process["limits"]:
        resource.setrlimit(number, tuple(limits))
    sys.executable = process["python"]  # what the script starts is forked too: ranks of one machine
    os.getppid = lambda: parent_of(process["pid"])
    sys.argv = process["arguments"]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    tempfile.tempdir = None  # it may be another one here
    # As a process that is started: numbers that all draw alike would make look repeatable what is not.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    return sys.argv[0]


def parent_of(pid: int) -> int:
    """The parent of the client of a script: ranks look for the end of their launcher there."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def run(script: str) -> int:
    """Run a script in this process as `python script` does; return the exit status."""
    module = types.ModuleType("__main__")
    module.__file__ = os.path.join(os.getcwd(), script)
    sys.modules["__main__"] = module
    with open(script, "rb") as file:
        code = compile(file.read(), module.__file__, "exec")
    try:
        exec(code, module.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        print(end.code, file=sys.stderr)
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def leave(status: int) -> None:
    """End as Python does, but for taking all of torch down: half a second that no script sees."""
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    gc.disable()
    IMPORTS[sys.argv[2]]()
    settle()
    server = Server(sys.argv[1], int(sys.argv[3]))
    os.close(int(sys.argv[4]))
    leave(run(become(*server.serve())))
