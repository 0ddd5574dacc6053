# Before Snakemake reads config.yaml: its own reader neither says where a slip is nor what it understands differently.

import sys
from pathlib import Path

# The workflow's own folder: commands must work with `snakemake -d elsewhere` too.
BASE = Path(workflow.basedir)
SCRIPTS = BASE / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from selfsup.config import check_config_files
from selfsup.errors import UserError


def give_up(message):
    """End Snakemake with one line. A WorkflowError would add a traceback of this file's, which says nothing to a user."""
    sys.exit(f"error: {message}")


try:
    check_config_files(path for path in map(Path, ["config.yaml", *workflow.configfiles]) if path.exists())
except UserError as error:
    give_up(str(error))
