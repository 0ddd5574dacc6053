"""A function on several ranks of this machine, processes of their own.

They are forked from one that has imported what they need and has computed nothing: importing takes longer than most
tests.
"""

import contextlib
import os
import queue
import sys
from multiprocessing import forkserver
from unittest import mock

import torch
from torch import multiprocessing

from selfsup.engine.distributed import Ranks
from selfsup.job.local_ranks import reserved_port
from selfsup.job.place import Place
from selfsup.models.backbone import LAYERS

# What the files of tests and what they call import: each rank would import it anew.
PRELOADED = ["torchvision", "pandas", "runs", "pytest", "timm", "torch._dynamo.testing"]


def on_ranks(function, size: int, *arguments):
    """Run function(ranks, *arguments) on `size` processes and return what each gave back."""
    with reserved_port() as port:
        return _gathered(function, size, port, arguments)


def forking():
    """The context of multiprocessing whose processes are forked from that one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # It is told where modules are by the environment alone.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()
    return context


def _gathered(function, size: int, port: int, arguments: tuple) -> list:
    results = forking().Queue()
    told = (size, port, dict(LAYERS), function, arguments, results)
    processes = multiprocessing.start_processes(_on_rank, told, size, join=False, start_method="forkserver")
    gathered = {}
    while len(gathered) < size:
        with contextlib.suppress(queue.Empty):
            gathered.update([results.get(timeout=0.2)])
        processes.join(timeout=0)  # raises a rank's own error
    while not processes.join():
        pass
    return [gathered[rank] for rank in range(size)]


def _on_rank(rank, size, port, layers, function, arguments, results):
    torch.set_num_threads(1)
    LAYERS.update(layers)  # networks are as deep as where the test is
    ranks = Ranks(Place(rank, size, rank, "127.0.0.1", port))
    results.put((rank, function(ranks, *arguments)))
    ranks.close()
