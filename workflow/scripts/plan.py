"""Print what experiments will cost: segments, GPU-hours, days, memory and disk, beside the paper's GPU-hours.

    python workflow/scripts/plan.py

The experiments are those of config.yaml and those that were run with --configfile. Reads them, the ledgers and probes
under --results, and the packed datasets' numbers of images. Speed is what was measured there, on as many devices as the
experiment asks for; if nothing was measured, it says how to measure it. Memory and disk are computed from the recipe,
before anything has run, for torchvision's ResNets; for other networks they are not known. Needs no torch.
"""

import argparse
from pathlib import Path

from selfsup.as_run import config_as_run
from selfsup.errors import run_script
from selfsup.reports.plan import costs, datasets_to_text, to_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    arguments = parser.parse_args()
    config = config_as_run(arguments.config, arguments.results)
    print(to_text(list(costs(config, arguments.results))) + datasets_to_text(config), end="")


if __name__ == "__main__":
    run_script(main)
