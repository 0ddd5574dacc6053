"""Snakemake that asks Slurm for its jobs' states every other second, where the plugin asks after 5, 20, 45, 80 s."""

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

SECONDS = 2

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda self: SECONDS, lambda self, seconds: None)
    main()
