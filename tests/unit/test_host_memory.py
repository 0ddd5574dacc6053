"""Freed memory is kept for the next allocation: a step on a CPU takes the same pages again, without page faults."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"
PAGES = 64 * 2**20 // 4096

FAULTS = """
import sys; sys.path.insert(0, sys.argv[1])
import argparse, os, resource, torch
from selfsup.arguments import add_compute_arguments
from selfsup.job.place import Place
from selfsup.engine.compute import start_compute
from selfsup.engine.host_memory import keep_freed_memory

parser = argparse.ArgumentParser()
add_compute_arguments(parser)
start_compute(parser.parse_args(["--device", "cpu"]), Place())

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**24)  # 64 MB in fp32
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if not os.fork():  # a copy of a process that has allocated nothing yet
    keep_freed_memory(False)
    faults()
    print(faults(), flush=True)
    os._exit(0)
os.wait()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another C library")
@pytest.mark.long
def test_a_run_on_a_cpu_keeps_what_it_has_freed_and_can_give_it_back():
    run = subprocess.run([sys.executable, "-c", FAULTS, SCRIPTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept < PAGES / 100  # of three tensors
    # With huge pages a fault brings 512 pages; without, each page of each tensor its own.
    assert given_back >= 3 * PAGES / 512
