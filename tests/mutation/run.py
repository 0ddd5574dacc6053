"""Mutants: small wrong changes of the core, each of which a test has to find. `make mutants` runs this.

    .venv/bin/python tests/mutation/run.py [--only TEXT] [--anew]

Takes each entry of mutants.yaml in turn: changes the file in a copy of the tree, runs the tests that the entry names
and notes in logs/mutants.csv whether they fail. What has been found already is not asked again until the changed file,
the tests or the entry are others, so a run that was stopped goes on; `--anew` asks everything. Ends with status 1 where
fewer than 95 % are caught, where one survives without a reason, where an entry does not fit the code, or where a test
fails without any mutant.
"""

import argparse
import compileall
import contextlib
import csv
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.yaml")
FOUND = REPOSITORY / "logs/mutants.csv"
COLUMNS = ("mutant", "verdict", "seconds", "digest")
WANTED = 0.95  # of all mutants, those with a reason to survive included
PATIENCE_S = 300  # for one mutant's tests: a few seconds as a rule, so that one which hangs is caught too
PRELOADED = ("pytest", "torch", "torchvision.transforms.v2", "torchvision.io", "pandas", "scipy.stats", "hypothesis")
CAUGHT, SURVIVED, DOES_NOT_RUN = "caught", "survived", "does not run"
NO_TESTS = 70
BY_STATUS = {0: SURVIVED, 1: CAUGHT}  # pytest's; the others are of tests that were not run at all


@dataclass(frozen=True)
class Mutant:
    """A change of `file`: the only place that has the text `was` gets `now`. tests: pytest's, one of which must fail.

    survives: why no test can find it; None for all others.
    """

    file: str
    was: str
    now: str
    tests: tuple[str, ...]
    survives: str | None = None

    def __str__(self) -> str:
        was, now = (" ".join(text.split()) for text in (self.was, self.now))
        return f"{Path(self.file).name}: {was} -> {now or '(nothing)'}"

    @property
    def test_files(self) -> set[str]:
        return {test.partition("::")[0] for test in self.tests}

    def problem(self, root: Path) -> str | None:
        """Return why it does not fit the tree; None if it does."""
        for name in (self.file, *self.test_files):
            if not (root / name).is_file():
                return f"there is no file {name}"
        count = (root / self.file).read_text().count(self.was)
        return None if count == 1 else f"its text stands {count} times in {self.file}, wanted once: {self.was!r}"

    def digest(self, root: Path) -> str:
        """Return what its verdict depends on: the entry, the file, and the tests' files."""
        content = [(root / name).read_bytes() for name in (self.file, *sorted(self.test_files))]
        return hashlib.sha256(b"\0".join([repr(self).encode(), *content])).hexdigest()[:16]


def mutants() -> list[Mutant]:
    """Read the list: {file: [{was, now, tests, survives}]}."""
    return [
        Mutant(file, one["was"], one["now"], tuple(one["tests"]), one.get("survives"))
        for file, several in yaml.safe_load(LIST.read_text()).items()
        for one in several
    ]


def copy_tree(root: Path) -> None:
    """Copy what git knows or would add, as it stands now. Compiled, so that only mutated modules are compiled anew."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = REPOSITORY / name, root / name
        if source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (root / ".venv").symlink_to((REPOSITORY / ".venv").resolve())
    compileall.compile_dir(root / "workflow/scripts", quiet=2)


def run_tests(root: Path, tests: Iterable[str], patience: float | None = None) -> int | None:
    """Return pytest's exit status, or None if it took too long. What the tests leave running ends with them.

    In a process forked from this one, which has imported what takes long, but nothing of the tree.
    """
    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os._exit(_in_the_child(root, scratch, tests))
        finally:  # whatever happens, what follows is the parent's alone
            traceback.print_exc()
            os._exit(NO_TESTS)
    try:
        return _waited_for(child, patience)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


def _in_the_child(root: Path, scratch: Path, tests: Iterable[str]) -> int:
    import pytest

    os.setsid()
    os.chdir(root)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)}
    sys.dont_write_bytecode, tempfile.tempdir = True, str(scratch)
    with open(root / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = ["pytest", "-x", "-q", "-n0", "--tb=short", "-p", "no:cacheprovider", *tests]
    status = int(pytest.main(sys.argv[1:]))
    sys.stdout.flush()
    return status


def _waited_for(child: int, patience: float | None) -> int | None:
    end = time.monotonic() + (patience or float("inf"))
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)


def preload() -> None:
    """Import what tests import, but for the code that is changed."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in the Makefile: threads that wait leave the cores to others
    for name in PRELOADED:
        importlib.import_module(name)


def verdict_on(mutant: Mutant, root: Path) -> str:
    """Run the tests on a tree with this mutant. The tree is then what it was, with the file's time."""
    path = root / mutant.file
    text, status = path.read_text(), path.stat()
    path.write_text(text.replace(mutant.was, mutant.now))
    try:
        ended = run_tests(root, mutant.tests, PATIENCE_S)
        return CAUGHT if ended is None else BY_STATUS.get(ended, DOES_NOT_RUN)
    finally:
        path.write_text(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def known(anew: bool) -> dict[str, dict[str, str]]:
    """Return former rows by their digests."""
    if anew or not FOUND.exists():
        return {}
    with open(FOUND, newline="") as file:
        return {row["digest"]: row for row in csv.DictReader(file)}


def ask(waiting: list[Mutant], digests: dict[Mutant, str], root: Path) -> Iterator[dict[str, str]]:
    """Yield a row for each mutant, and print how far it is."""
    began = time.monotonic()
    for number, mutant in enumerate(waiting, 1):
        start = time.monotonic()
        verdict = verdict_on(mutant, root)
        now = time.monotonic()
        left = (now - began) / number * (len(waiting) - number) / 60
        print(f"{number}/{len(waiting)}  {verdict}  {now - start:.1f} s  {mutant}  ({left:.0f} min left)", flush=True)
        if verdict != CAUGHT:
            print((root / "output.txt").read_text()[-1500:], flush=True)
        row = {"mutant": str(mutant), "verdict": verdict, "seconds": f"{now - start:.1f}"}
        yield {**row, "digest": digests[mutant]}


def report(asked: list[Mutant], verdicts: dict[Mutant, str]) -> int:
    """Print the score and the survivors; return the exit status."""
    for mutant, verdict in verdicts.items():
        if verdict != CAUGHT:
            print(f"{verdict}: {mutant}: {mutant.survives or 'no reason is given, so a test is missing'}")
        elif mutant.survives:
            print(f"caught, though it is said to survive: {mutant}")
    caught = sum(verdict == CAUGHT for verdict in verdicts.values())
    print(f"{caught} of {len(asked)} mutants caught, {100 * caught / len(asked):.1f} %, wanted {100 * WANTED:g} %")
    unexplained = [one for one, verdict in verdicts.items() if verdict != CAUGHT and not one.survives]
    return int(caught < WANTED * len(asked) or DOES_NOT_RUN in verdicts.values() or bool(unexplained))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose file or text has this")
    parser.add_argument("--anew", action="store_true", help="ask again what has been found")
    arguments = parser.parse_args()
    asked = [one for one in mutants() if arguments.only in f"{one.file} {one}"]
    problems = [f"{one}: {problem}" for one in asked if (problem := one.problem(REPOSITORY))]
    if problems or not asked:
        print("\n".join(problems) or f"error: no mutant has {arguments.only!r}")
        return 1
    found = known(arguments.anew)
    with tempfile.TemporaryDirectory(prefix="mutants.") as scratch:
        root = Path(scratch)
        copy_tree(root)
        preload()
        # Of the copy, which nobody edits while the mutants are asked.
        digests = {one: one.digest(root) for one in asked}
        waiting = [one for one in asked if digests[one] not in found]
        tests = sorted({test for one in waiting for test in one.tests})
        if tests:
            print(f"the tests of {len(waiting)} mutants, first without any", flush=True)
        if tests and run_tests(root, tests) != 0:
            print((root / "output.txt").read_text()[-3000:])
            print("error: without any mutant these tests have to pass")
            return 1
        FOUND.parent.mkdir(exist_ok=True)
        new = arguments.anew or not FOUND.exists()
        with open(FOUND, "w" if new else "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            for row in ask(waiting, digests, root):
                found[row["digest"]] = row
                writer.writerow(row)
                file.flush()
    return report(asked, {one: found[digests[one]]["verdict"] for one in asked})


if __name__ == "__main__":
    sys.exit(main())
