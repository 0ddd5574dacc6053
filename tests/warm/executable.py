"""The executable that tests give to Snakemake, and start scripts by, in place of `python`."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = "programs"  # the folder beside the executable whose scripts are forked too
# What Snakemake sets for its jobs: the number of their threads.
SET_FOR_THREADS = ("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SET_FOR_THREADS += ("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")


def python_in(folder: Path, scripts: Iterable[str], owner: int, imported: str = "all") -> Path:
    """Write client.py into a new folder as an executable, for as long as the process `owner` lives; return its path.

    scripts: the ends of the paths of the folders whose scripts are forked: workflow/scripts is that folder of any copy
    of the repository. imported: what these scripts find imported, of server.py.
    """
    programs = folder / PROGRAMS
    programs.mkdir(parents=True)
    settings = {
        "python": sys.executable,
        "server": str(HERE / "server.py"),
        "scripts": {**dict.fromkeys((*scripts, str(programs)), imported), str(HERE): "snakemake"},
        "folder": str(folder),
        "owner": owner,
    }
    python = folder / "python"
    # Isolated and without site-packages it starts in some 20 ms.
    python.write_text(f"#!{sys.executable} -IS\n{(HERE / 'client.py').read_text()}\n\nmain({settings!r})\n")
    python.chmod(0o755)
    return python


def can_fork() -> bool:
    """Whether this system has what client and server are made of, as Linux does, and a path that fits into `#!`."""
    try:
        os.close(os.pidfd_open(os.getpid()))  # old containers forbid it
    except (AttributeError, OSError):
        return False
    return " " not in sys.executable and len(sys.executable) < 200
