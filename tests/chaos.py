"""Kills a run again and again, by whatever kills runs, and compares its encoder with that of an undisturbed one.

    make chaos                                              the demo's recipe, 25 kills
    python tests/chaos.py --kills 40 --seed 7 --folder /tmp/chaos

Moments and kinds of the kills are drawn from the seed, which is printed. Kinds: SIGKILL and SIGTERM of the trainer,
SIGKILL of the trainer in the middle of a checkpoint's write, SIGKILL of Snakemake, whose trainer then goes on alone.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow" / "scripts"))

from selfsup.engine.checkpoint import load_checkpoint  # noqa: E402
from selfsup.job.ledger import read_ledger  # noqa: E402
from selfsup.job.lock import living_holder  # noqa: E402
from selfsup.provenance import sha256  # noqa: E402
from selfsup.settings.yaml_reader import read_yaml  # noqa: E402

TRAINER, TERMINATED, WRITE, SNAKEMAKE = "SIGKILL", "SIGTERM", "SIGKILL while it writes", "SIGKILL of Snakemake"
KINDS = (TRAINER, TERMINATED, WRITE, SNAKEMAKE)
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Plan:
    """What is run and how it is disturbed. changes: of the experiment `digits` in config.yaml.

    latest_s: of a kill after the trainer has taken its lock, from the loading of torch to well into the training.
    """

    changes: dict
    kills: int
    seed: int
    checkpoint_minutes: float
    latest_s: float


class Run:
    """A folder in which Snakemake makes the encoder of the experiment `digits`."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.writes_hit = folder, 0
        self.pretrain = folder / "results" / "digits" / "seed0" / "pretrain"
        self.encoder = self.pretrain.parent / "encoder.safetensors"
        config = read_yaml(REPOSITORY / "config.yaml")
        config["experiments"]["digits"].update(copy.deepcopy(plan.changes))
        config["experiments"]["digits"]["compute"]["pretrain"]["checkpoint_minutes"] = plan.checkpoint_minutes
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self, *arguments: str) -> subprocess.Popen:
        snakemake = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--cores", "2"]
        words = arguments or ("--retries", "1000", "--rerun-incomplete", self.encoder.relative_to(self.folder))
        with open(self.folder / "snakemake.log", "a") as log:
            return subprocess.Popen(
                [*map(str, [*snakemake, *words])],
                cwd=self.folder,
                env={key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Let Snakemake bring the run to its end."""
        if self.start().wait() != 0:
            raise AssertionError((self.folder / "snakemake.log").read_text()[-3000:])

    def state(self) -> dict:
        """The newest boundary's whole state, without what tells of attempts."""
        state = load_checkpoint(max(self.pretrain.glob("epoch_*.pt")))
        return {key: state[key] for key in ("method", "optimizer", "scaler", "step")}


def disturb(run: Run, kinds: list[str], draw: random.Random, latest_s: float) -> int:
    """Bring the run to its end through the kills of `kinds`. Returns how many there were before it had ended."""
    snakemake, kills = run.start(), 0
    while kills < len(kinds):
        pid = _trainer(run, snakemake)
        if pid is None:
            break  # the run has ended already
        kind = kinds[kills]
        if not _kill(run, snakemake, kind, pid, draw.uniform(0, latest_s)):
            continue
        if kind == TERMINATED and draw.random() < 0.5:  # else the next kill may meet it while it saves and leaves
            _wait_until_gone(run, pid)
        kills += 1
        _check_files(run)
        if snakemake.poll() is not None:
            run.start("--unlock").wait()
            _outlive_or_end_the_trainer(run, draw)
            snakemake = run.start()
    if snakemake.wait() != 0:
        raise AssertionError((run.folder / "snakemake.log").read_text()[-3000:])
    return kills


def _trainer(run: Run, snakemake: subprocess.Popen) -> int | None:
    """Wait for a trainer and return its process number; None when Snakemake has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        holder = living_holder(run.pretrain)
        if holder is not None:
            return holder.pid
        if snakemake.poll() is not None:
            return None
        time.sleep(0.01)
    raise AssertionError(f"no trainer in {PATIENCE_S} s:\n" + (run.folder / "snakemake.log").read_text()[-3000:])


def _kill(run: Run, snakemake: subprocess.Popen, kind: str, pid: int, moment: float) -> bool:
    """Kill in the given way, `moment` seconds after the trainer was seen. Returns False when it had ended before."""
    if kind == WRITE:
        began = time.monotonic()
        if not _stop_in_a_write(run, pid):
            return False
        moment = time.monotonic() - began
    else:
        time.sleep(moment)
    newest = max((_step(path) for path in run.pretrain.rglob("*.json")), default=0)
    with contextlib.suppress(ProcessLookupError):
        if kind == SNAKEMAKE:
            snakemake.kill()
            snakemake.wait()
        else:
            os.kill(pid, signal.SIGTERM if kind == TERMINATED else signal.SIGKILL)
        print(f"{kind} {moment:.2f} s after its start, newest checkpoint of step {newest}", flush=True)
        if kind in (TERMINATED, SNAKEMAKE):
            return True
        _wait_until_gone(run, pid)
        run.writes_hit += kind == WRITE
        return True
    return False


def _wait_until_gone(run: Run, pid: int) -> None:
    while (holder := living_holder(run.pretrain)) is not None and holder.pid == pid:
        time.sleep(0.01)


def _stopped_while(holds: Callable[[], Any], pid: int) -> bool:
    """Stop a process where it is; let it go on, and return False, if what should hold no longer does."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while not _stands_still(pid):  # the signal reaches a thread that is in a system call when that ends
            time.sleep(0.001)
        if holds():
            return True
        os.kill(pid, signal.SIGCONT)
    return False


def _stands_still(pid: int) -> bool:
    """Whether no thread of a process runs any more (Linux: its state follows its name, which is in brackets)."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state in "TtZX" for state in states)


def _stop_in_a_write(run: Run, pid: int) -> bool:
    """Stop the trainer while it writes a checkpoint. Returns False when it had ended before it wrote one."""
    deadline, folder = time.monotonic() + PATIENCE_S, run.pretrain / "partial"
    leftover = _unfinished(folder)  # of an earlier kill
    while time.monotonic() < deadline:
        now = _unfinished(folder)
        if now - leftover and _stopped_while(lambda new=now - leftover: new & _unfinished(folder), pid):
            return True
        leftover &= now
        holder = living_holder(run.pretrain)
        if holder is None or holder.pid != pid:
            return False
    raise AssertionError(f"no checkpoint was written in {PATIENCE_S} s")


def _outlive_or_end_the_trainer(run: Run, draw: random.Random) -> None:
    """A new Snakemake must refuse to start beside the orphan; then that is killed, or left to end by itself."""
    holder = living_holder(run.pretrain)
    if holder is None:
        return
    refused = run.start()
    status = refused.wait()
    told = (run.folder / "snakemake.log").read_text()
    if status == 0 or f"in use by process {holder.pid}" not in told:
        if living_holder(run.pretrain) is None:
            return  # it has ended meanwhile
        raise AssertionError(f"a second Snakemake was not refused:\n{told[-3000:]}")
    if draw.random() < 0.75:
        print("  killed the trainer that went on alone", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, signal.SIGKILL)
    while living_holder(run.pretrain) is not None:
        time.sleep(0.05)


def _check_files(run: Run) -> None:
    """No checkpoint that stands under its name is damaged."""
    for path in run.pretrain.rglob("*.pt"):
        try:
            whole = sha256(path) == json.loads(path.with_suffix(".json").read_text())["sha256"]
        except FileNotFoundError:
            whole = False
        if not whole and path.exists():  # else replaced by a newer one while we looked
            raise AssertionError(f"{path} is damaged, or lacks its card")
    if list(run.pretrain.rglob("*.damaged")):
        raise AssertionError("a checkpoint was found damaged")


def _unfinished(folder: Path) -> set[str]:
    """The names of the files that are being written, or were when their writer was killed."""
    try:
        return {name for name in os.listdir(folder) if name.endswith(".tmp")}
    except FileNotFoundError:
        return set()


def _step(card: Path) -> int:
    try:
        return json.loads(card.read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def equal(one, other) -> bool:
    """Whether nested dicts and lists with tensors are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool((one == other).all()) and one.dtype == other.dtype if hasattr(one, "dtype") else one == other


def compare(folder: Path, plan: Plan) -> list[Run]:
    """Run undisturbed and disturbed; raise AssertionError where they differ. Returns the disturbed runs."""
    print(f"seed {plan.seed}: {plan.kills} kills", flush=True)
    draw = random.Random(plan.seed)
    kinds = [*KINDS, TRAINER, *draw.choices(KINDS, k=max(plan.kills - 5, 0))][: plan.kills]
    draw.shuffle(kinds)
    undisturbed = Run(folder / "undisturbed", plan)
    undisturbed.finish()
    done, runs = 0, []
    while done < plan.kills:  # a run may end before its last kill: then another takes the rest
        runs.append(Run(folder / f"disturbed{len(runs) + 1}", plan))
        kills = disturb(runs[-1], kinds[done:], draw, plan.latest_s)
        if not equal(undisturbed.state(), runs[-1].state()):
            raise AssertionError(f"the last checkpoints of {undisturbed.folder} and {runs[-1].folder} differ")
        if undisturbed.encoder.read_bytes() != runs[-1].encoder.read_bytes():
            raise AssertionError(f"the encoders of {undisturbed.folder} and {runs[-1].folder} differ")
        done += kills
    rows = [row for run in runs for row in read_ledger(run.pretrain / "ledger.csv")]
    ends = [row["how_it_ended"] for row in rows]
    summary = ", ".join(f"{ends.count(one)} {one}" for one in dict.fromkeys(ends))
    redone = sum(int(row["steps_redone"] or 0) for row in rows)
    total, hits = undisturbed.state()["step"], sum(run.writes_hit for run in runs)
    if WRITE in kinds and not hits:
        raise AssertionError("no kill met a checkpoint's write")
    print(f"{done} kills ({hits} in the middle of a write) in {len(runs)} runs of {total} steps")
    print(f"{len(rows)} attempts: {summary}; {redone} steps done again; all encoders and states equal to the bit")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a random one, printed")
    parser.add_argument("--folder", type=Path, required=True, help="a folder to make")
    arguments = parser.parse_args()
    # The demo, with a checkpoint every 1.2 seconds.
    plan = Plan({}, arguments.kills, arguments.seed, checkpoint_minutes=0.02, latest_s=6)
    compare(arguments.folder, plan)


if __name__ == "__main__":
    main()
