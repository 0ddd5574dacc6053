"""Snakemake whose jobs are started by client.py: `PYTHON workflow.py PYTHON ...`, PYTHON as executable.py wrote it."""

import os
import sys

from snakemake.cli import main

if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m snakemake` has it
    sys.executable = sys.argv.pop(1)
    main()
