# This runs before Snakemake reads config.yaml: its own reader does not say where a mistake is, nor which values it
# reads differently than they look.

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import traceback
from argparse import Namespace
from functools import wraps
from pathlib import Path

from snakemake.cli import parse_args


def laid_out(rules):
    """Return the folder of the workflow, whose scripts must be files. rules: Snakemake's name of this file's folder.

    Of a module in a git repository Snakemake reads single files only. The whole version is laid out under .snakemake.
    """
    if not hasattr(rules, "ref"):
        return Path(rules).parents[1]
    repository = getattr(rules, "repo_path", None) or rules.hosted_repo.repo_clone
    git = ["git", "-C", str(repository)]
    commit = subprocess.run([*git, "rev-parse", f"{rules.ref}^{{commit}}"], capture_output=True, check=True, text=True)
    folder = Path(".snakemake", "selfsup", commit.stdout.strip()).absolute()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            archive = subprocess.run([*git, "archive", commit.stdout.strip()], capture_output=True, check=True)
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
                tar.extractall(Path(unpacked, "whole"), filter="data")
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(Path(unpacked, "whole"), folder)
    return folder.joinpath(rules.path).parents[1]


# The workflow's own folder: commands must work with `snakemake -d elsewhere` too, and in a module of another workflow.
BASE = laid_out(workflow.current_basedir)
SCRIPTS = BASE / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from selfsup.config import check_config_files
from selfsup.errors import UserError


def give_up(message):
    """End Snakemake with one line. A WorkflowError would add a traceback of this file, which does not help a user."""
    sys.exit(f"error: {message}")


def ends_on_error(look):
    """Decorate a function that Snakemake calls for a job, so that an error ends Snakemake. Otherwise it would take any
    exception for a rule that does not fit, and an existing file for finished."""

    @wraps(look)
    def looking(*arguments, **named):
        try:
            return look(*arguments, **named)
        except UserError as error:
            give_up(str(error))
        except Exception as error:
            traceback.print_exc()
            give_up(f"{type(error).__name__}, shown above, is a fault of this workflow, not of its settings")

    return looking


@ends_on_error
def read_before_snakemake(paths):
    check_config_files(path for path in paths if path.exists())


def typed():
    """Return the command line. Snakemake tells a Snakefile neither targets nor executor, with -n not even later."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a profile is announced once already
            return parse_args(sys.argv[1:])[1]
    except SystemExit:  # Snakemake was not started by its own command
        return Namespace(targets=[], executor=None)


# A module gets its configuration from the workflow that uses it. Files and command line are that workflow's.
IS_MODULE = not workflow.modifier.is_main_snakefile()
if not IS_MODULE:
    read_before_snakemake([Path("config.yaml"), *map(Path, workflow.configfiles)])
TYPED = typed()
