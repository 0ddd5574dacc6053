"""Disturbs a run again and again, by whatever befalls runs, and compares its encoder with that of an undisturbed one.

    make chaos                                              the demo's recipe, 25 events
    python tests/chaos.py --events 40 --seed 7 --folder /tmp/chaos
    make chaos-slurm                                        four ranks on two nodes of Slurm, 100 events (as root)

Moments and kinds of the events are drawn from the seed, which is printed: the same seed draws the same ones again.
Kinds: SIGKILL and SIGTERM of the trainer, SIGKILL of the trainer in the middle of a checkpoint's write, SIGKILL of
Snakemake, whose trainer then goes on alone, a trainer that stands still for seconds, a newest checkpoint that is
damaged; with a C compiler, a clock that jumps; as root, a full disk and a results folder that is read-only.
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
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY / "workflow" / "scripts"), str(REPOSITORY / "tests")]

from chaos_books import (  # noqa: E402
    check_files,
    check_ledger,
    check_lost,
    check_saving,
    check_seconds,
    check_writers,
    quickest,
)
from chaos_events import EVENTS, PATIENCE_S, SNAKEMAKE, WITH_CLOCK, WITH_DISK, WRITE, Event, send  # noqa: E402
from faults import COMPILER, Faults, SmallDisk, can_mount  # noqa: E402
from selfsup.engine.checkpoint import load_checkpoint  # noqa: E402
from selfsup.job.ledger import read_ledger  # noqa: E402
from selfsup.job.lock import living_holder  # noqa: E402
from selfsup.settings.yaml_reader import read_yaml  # noqa: E402

RESTARTS = 20  # of a Snakemake that ended because of an event, between two events


@dataclass(frozen=True)
class Plan:
    """What is run and how it is disturbed. changes: of the experiment `digits` in config.yaml.

    latest_s: of an event after the trainer has taken its lock, from the loading of torch to well into the training.
    """

    changes: dict
    events: int
    seed: int
    checkpoint_minutes: float
    latest_s: float


def available() -> dict[str, Event]:
    """Return the events that this machine can have, by name, and say which it cannot."""
    clock, disk = WITH_CLOCK if COMPILER else {}, WITH_DISK if can_mount() else {}
    missing = [*(WITH_CLOCK.keys() - clock), *(WITH_DISK.keys() - disk)]
    if missing:
        print(f"left out, for want of a C compiler or of the right to mount: {', '.join(sorted(missing))}", flush=True)
    return {**EVENTS, **clock, **disk}


def drawn(kinds: Mapping[str, float], count: int, draw: random.Random) -> list[str]:
    """Return so many events in a random order: each kind once as long as they suffice, the others by their weights."""
    names = list(kinds)
    first = draw.sample(names, min(count, len(names)))
    events = first + draw.choices(names, weights=list(kinds.values()), k=count - len(first))
    draw.shuffle(events)
    return events


class Run:
    """A folder in which Snakemake makes the encoder of the experiment `digits`, on this machine."""

    def __init__(self, folder: Path, plan: Plan, disturbed: bool = True):
        self.folder, self.writes_hit, self.damaged, self.restarts = folder, 0, set[str](), 0
        self.pretrain = folder / "results" / "digits" / "seed0" / "pretrain"
        self.encoder = self.pretrain.parent / "encoder.safetensors"
        self.began = time.monotonic()
        self.faults = Faults(folder / "faults") if disturbed and COMPILER else None
        self.disk = SmallDisk(folder / "results") if disturbed and can_mount() else None
        self.snakemake: subprocess.Popen | None = None
        config = self.configuration(plan)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def configuration(self, plan: Plan) -> dict:
        config = read_yaml(REPOSITORY / "config.yaml")
        config["experiments"]["digits"].update(copy.deepcopy(plan.changes))
        config["experiments"]["digits"]["compute"]["pretrain"]["checkpoint_minutes"] = plan.checkpoint_minutes
        return config

    def command(self) -> list[str]:
        return [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", "2"]

    def environment(self) -> dict[str, str]:
        outer = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        return {**outer, **(self.faults.environment() if self.faults else {})}

    def start(self, *arguments: str) -> subprocess.Popen:
        words = arguments or ("--retries", "1000", "--rerun-incomplete", str(self.encoder.relative_to(self.folder)))
        with open(self.folder / "snakemake.log", "a") as log:
            return subprocess.Popen(
                [*self.command(), *words],
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Let Snakemake bring the run to its end."""
        self.snakemake = self.start()
        if self.snakemake.wait() != 0:
            raise AssertionError(self.told())

    def told(self) -> str:
        """The end of what Snakemake has said."""
        return (self.folder / "snakemake.log").read_text()[-3000:]

    def close(self) -> None:
        """Give back the disk; end what is left of the run."""
        if self.faults:
            self.faults.jump(0)
        if self.snakemake and self.snakemake.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.snakemake.pid, signal.SIGKILL)
        if holder := living_holder(self.pretrain):
            send(self, holder.pid, signal.SIGKILL)
        if self.disk:
            self.disk.remount("rw")
            self.disk.clear()
            self.disk.close()

    def state(self) -> dict:
        """The newest boundary's whole state, without what tells of attempts."""
        state = self._newest()
        return {key: state[key] for key in ("method", "optimizer", "scaler", "step")}

    def batch(self) -> int:
        """Images per step."""
        return self._newest()["recipe"]["global_batch"]

    def _newest(self) -> dict:
        return load_checkpoint(max(self.pretrain.glob("epoch_*.pt")))

    def ranks(self, pid: int) -> list[int]:
        """The processes of all ranks, of which `pid` is the first."""
        return [pid]

    def terminate(self, pid: int) -> bool:
        """Ask the job to stop."""
        return send(self, pid, signal.SIGTERM)

    def trainer(self) -> int | None:
        """Wait for a trainer and return its process number; None when the run has come to its end."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            holder = living_holder(self.pretrain)
            if holder is not None:
                self.restarts = 0
                return holder.pid
            status = self.snakemake.poll()
            if status == 0:
                return None
            if status is not None:
                self.go_on()
            time.sleep(0.01)
        raise AssertionError(f"no trainer in {PATIENCE_S} s:\n{self.told()}")

    def go_on(self) -> None:
        """Start Snakemake again, as a person would who finds that it has ended."""
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise AssertionError(f"Snakemake has ended {RESTARTS} times without an event:\n{self.told()}")
        self.start("--unlock").wait()
        self.snakemake = self.start()


def disturb(run: Run, kinds: list[str], events: Mapping[str, Event], draw: random.Random, latest_s: float) -> int:
    """Bring the run to its end through the events of `kinds`. Returns how many there were before it had ended."""
    run.snakemake, count = run.start(), 0
    for kind in kinds:
        if not _happens(run, kind, events[kind], draw, latest_s):
            break
        count += 1
        check_files(run.pretrain, run.damaged)
        if kind == SNAKEMAKE:
            run.start("--unlock").wait()
            _outlive_or_end_the_trainer(run, draw)
            run.snakemake = run.start()
    while run.trainer() is not None:
        run.snakemake.wait()
    return count


def _happens(run: Run, kind: str, event: Event, draw: random.Random, latest_s: float) -> bool:
    """Wait for a trainer and let the event happen; False if the run comes to its end without it."""
    while (pid := run.trainer()) is not None:
        moment = draw.uniform(0, latest_s)
        if kind != WRITE:
            time.sleep(moment)
        newest = max((_step(path) for path in run.pretrain.rglob("*.json")), default=0)
        if event(run, pid, draw):
            after = time.monotonic() - run.began
            print(f"{after:7.1f} s  {kind}; newest checkpoint of step {newest}", flush=True)
            return True
    return False


def _outlive_or_end_the_trainer(run: Run, draw: random.Random) -> None:
    """A new Snakemake must refuse to start beside the orphan; then that is killed, or left to end by itself."""
    holder = living_holder(run.pretrain)
    if holder is None:
        return
    status, told = run.start().wait(), run.told()
    if status == 0 or f"in use by {str(holder).split(' on ')[0]} " not in told:
        if living_holder(run.pretrain) is None:
            return  # it has ended meanwhile
        raise AssertionError(f"a second Snakemake was not refused:\n{told}")
    if draw.random() < 0.75:
        print("           killed the trainer that went on alone", flush=True)
        send(run, holder.pid, signal.SIGKILL)
    while living_holder(run.pretrain) is not None:
        time.sleep(0.05)


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


def compare(undisturbed: Run, make_run, plan: Plan, events: Mapping[str, Event], kinds: list[str]) -> list[Run]:
    """Disturb runs until all events have happened; raise AssertionError where one differs from `undisturbed`.

    make_run: a function of a number that makes the disturbed run of that number. Returns those runs.
    """
    draw, runs, done = random.Random(plan.seed), [], 0
    try:
        undisturbed.finish()
    finally:
        undisturbed.close()
    interval_s = plan.checkpoint_minutes * 60
    check_saving(read_ledger(undisturbed.pretrain / "ledger.csv"), interval_s, undisturbed.batch())
    while done < len(kinds):  # a run may end before its last event: then another takes the rest
        runs.append(make_run(len(runs) + 1))
        try:
            done += disturb(runs[-1], kinds[done:], events, draw, plan.latest_s)
            wall = time.monotonic() - runs[-1].began
        finally:
            runs[-1].close()
        if not equal(undisturbed.state(), runs[-1].state()):
            raise AssertionError(f"the last checkpoints of {undisturbed.folder} and {runs[-1].folder} differ")
        if undisturbed.encoder.read_bytes() != runs[-1].encoder.read_bytes():
            raise AssertionError(f"the encoders of {undisturbed.folder} and {runs[-1].folder} differ")
        _check_books(runs[-1], undisturbed, wall, interval_s)
    if WRITE in kinds and not sum(run.writes_hit for run in runs):
        raise AssertionError("no kill met a checkpoint's write")
    happened = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))
    print(f"{len(kinds)} events in {len(runs)} runs: {happened}; all encoders and states equal to the bit")
    return runs


def _check_books(run: Run, undisturbed: Run, wall_s: float, interval_s: float) -> None:
    total_steps = undisturbed.state()["step"]
    rows = check_ledger(run.pretrain / "ledger.csv", total_steps, damaged=bool(run.damaged))
    check_seconds(rows, wall_s)
    if run.faults:
        inside = [one for one in run.faults.writings() if "pretrain" in one.path.parts]
        check_writers(inside, rows)
    images_per_s = max(quickest(one.pretrain / "history.csv") for one in (run, undisturbed))
    damaged = [int(stem.removeprefix("step_")) for stem in run.damaged]
    lost_s = check_lost(rows, interval_s, images_per_s, run.batch(), damaged)
    ends = Counter(row["how_it_ended"] for row in rows)
    redone, most = (method(int(row["steps_redone"] or 0) for row in rows) for method in (sum, max))
    print(f"{len(rows)} attempts in {wall_s:.0f} s: " + ", ".join(f"{count} {end}" for end, count in ends.items()))
    print(f"the ledger adds up: {redone} of {total_steps} steps done again, {most} at most by one attempt")
    print(f"an event cost {lost_s:.1f} s of work at most, with a checkpoint every {interval_s:g} s", flush=True)


def on_this_machine(folder: Path, plan: Plan) -> list[Run]:
    """Disturb the demo on this machine."""
    events = available()
    kinds = drawn(dict.fromkeys(events, 1.0), plan.events, random.Random(plan.seed))
    print(f"seed {plan.seed}: {plan.events} events", flush=True)
    undisturbed = Run(folder / "undisturbed", plan, disturbed=False)
    return compare(undisturbed, lambda number: Run(folder / f"disturbed{number}", plan), plan, events, kinds)


def options(description: str, events: int) -> argparse.Namespace:
    """What a driver is told on its command line. events: how many of them where nobody says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=events)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a random one, printed")
    parser.add_argument("--folder", type=Path, required=True, help="a folder to make")
    return parser.parse_args()


def main() -> None:
    arguments = options(__doc__, events=25)
    # The demo, with a checkpoint every 1.2 seconds.
    plan = Plan({}, arguments.events, arguments.seed, checkpoint_minutes=0.02, latest_s=6)
    on_this_machine(arguments.folder.resolve(), plan)


if __name__ == "__main__":
    main()
