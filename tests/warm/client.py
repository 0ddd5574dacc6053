"""Stands in for `python` where tests start scripts: a process that has imported torch already is forked for each.

A start of torch and torchvision costs three seconds of processor time; a fork of a process that has them, hundredths.
executable.py writes this file into a folder as an executable `python`. `python workflow/scripts/<name>.py ...` is
handed to the server of server.py, by a socket beside the executable, and so is Snakemake, to one that has imported it;
signals are passed on, and the end of this process is the end of the other. Whatever else it is asked for, and wherever
no server can be had, becomes the real interpreter.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import zlib

# What libraries and Python read when they are loaded: a process may only be forked from one in which these are equal.
READ_AT_START = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "VECLIB_", "NUMEXPR_", "DNNL_", "ONEDNN_"),
    *("ATEN_", "TORCH", "PYTORCH_", "CUDA_", "NCCL_", "GLOO_", "MALLOC_", "GLIBC_", "LD_", "PYTHON"),
    *("LANG", "LC_", "MPL"),
)
PASSED_ON = [
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
    signal.SIGQUIT,
]


def main(settings: dict) -> None:
    arguments = sys.argv[1:]
    try:
        imported = needed(arguments, settings)
        server = connect(settings, imported) if imported else None
        if server:
            process = this_process(arguments, os.path.join(settings["folder"], "python"))
            socket.send_fds(server, [json.dumps(process).encode()], [0, 1, 2])
    except OSError:
        server = None
    if not server:
        os.execv(settings["python"], [settings["python"], *arguments])
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: pass_on(server, number))
    end_as(int(server.recv(100) or b"70"))


def pass_on(server: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the other process may have ended
        server.send(str(int(number)).encode())


def needed(arguments: list[str], settings: dict) -> str | None:
    """Return what the process is to have imported that a script is run in; None for what is no such script."""
    if not arguments or not arguments[0].endswith(".py"):
        return None
    folder = os.path.dirname(os.path.realpath(arguments[0]))
    return next((what for end, what in settings["scripts"].items() if f"/{folder}".endswith(f"/{end}")), None)


def connect(settings: dict, imported: str) -> socket.socket:
    """Return a connection to the server of this environment, which is started where there is none."""
    read = {name: value for name, value in os.environ.items() if name.startswith(READ_AT_START)}
    highest = [hard for _, (_, hard) in limits()]
    same = json.dumps([imported, sorted(read.items()), sorted(os.sched_getaffinity(0)), highest])
    path = os.path.join(settings["folder"], f"{zlib.crc32(same.encode()):08x}")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(f"{path}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            start_server(settings, path, imported)
    server.connect(path)
    return server


def start_server(settings: dict, path: str, imported: str) -> None:
    """Start a server in a session of its own, child of nobody here, and return when it listens or has failed."""
    ready, told = os.pipe()
    first = os.fork()
    if not first:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.set_inheritable(told, True)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        words = [path, imported, str(settings["owner"]), str(told)]
        os.execv(settings["python"], [settings["python"], settings["server"], *words])
    os.close(told)
    os.waitpid(first, 0)
    os.read(ready, 1)
    os.close(ready)


def limits() -> list[tuple[int, tuple[int, int]]]:
    """Return the soft and the hard limit of each resource."""
    numbers = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
    return [(number, resource.getrlimit(number)) for number in numbers]


def this_process(arguments: list[str], python: str) -> dict:
    """What a process has from the one that starts it, beside its standard files. python: starts further ones."""
    umask = os.umask(0)
    os.umask(umask)
    catchable = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return {
        "python": python,
        "arguments": arguments,
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "umask": umask,
        "nice": os.nice(0),
        "limits": limits(),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "ignored": [int(number) for number in catchable if signal.getsignal(number) is signal.SIG_IGN],
    }


def end_as(status: int) -> None:
    """End as the other process has: with its exit status, or by the signal -status."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
