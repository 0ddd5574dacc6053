"""A real Slurm of two nodes on this one machine, for tests: Debian's packages, a configuration and daemons of its own.

    python tests/slurm/cluster.py up        bring it up (as root), installing the packages where that is possible
    python tests/slurm/cluster.py down      take it down, its jobs included
    . /tmp/selfsup-slurm/env.sh             use it from a shell

Each node declares two GPUs, which are copies of /dev/null. No accounting, no cgroups, no systemd. Another Slurm may run
beside it, such a cluster of another number too: sockets, ports, files and nodes are its own, but /etc/hosts.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
COMMANDS = ("srun", "sbatch", "scancel", "squeue", "sinfo", "scontrol", "sacct", "sacctmgr")
HOSTS_MARK = "# selfsup test cluster"
CONTROLLER_PORT, NODE_PORT = 27817, 27820
PORTS_APART = 10  # between clusters
JOBS_APART = 1000  # between the first jobs of clusters: a job's ranks meet at a port that its number gives

# cred_expire: Slurm's 120 s is also what a requeued job waits. SlurmdTimeout: a node counts as lost after it, with the
# jobs on it, so busy cores need Slurm's default. MessageTimeout: daemons on busy cores answer late. KillWait: from
# SIGTERM at the time limit to SIGKILL. The intervals at which waiting jobs are looked at are 60 s and 30 s by default.
CONFIGURATION = """
ClusterName=selfsup
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={lab}/run/munge.sock,cred_expire=15
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmdPidFile={lab}/run/slurmd-%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd-%n.log
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=3,bf_interval=3
MinJobAge=3600
FirstJobId={first_job}
KillWait=30
SlurmdTimeout=300
MessageTimeout=20
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=8 RealMemory=8000 Gres=gpu:test:2
NodeName={nodes} NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}]
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
"""


class Cluster:
    """The cluster of a number, in a folder of its own: cluster 0 has node1 and node2, cluster 1 node3 and node4."""

    def __init__(self, number: int = 0):
        self.number, self.nodes = number, (f"node{2 * number + 1}", f"node{2 * number + 2}")
        self.lab = Path(f"/tmp/selfsup-slurm{number or ''}")
        self.configuration = self.lab / "etc" / "slurm.conf"
        self.sbatch_calls = self.lab / "log" / "sbatch.calls"

    def up(self) -> None:
        """Bring it up, without the jobs of one that was here before; what runs already is left alone."""
        if os.getuid() != 0:
            raise SystemExit("error: the test cluster needs root, for its daemons and /etc/hosts: sudo make test-slurm")
        with _alone():
            install()
        if not _alive(self.lab / "run" / "slurmctld.pid"):
            shutil.rmtree(self.lab / "state", ignore_errors=True)
        for name in ("etc", "run", "log", "state", "spool", "dev", "bin"):  # slurmd makes the rest of its spool
            (self.lab / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        with _alone():
            self._name_nodes()
        self._munged()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        wait_for("idle nodes", lambda: len(set(self.ask("sinfo", "-hN", "-t", "idle", "-o", "%N").split())) == 2)

    def down(self) -> None:
        """Cancel all jobs and stop all daemons."""
        if _alive(self.lab / "run" / "slurmctld.pid"):
            self.ask("scancel", "--full", "--signal=KILL", "--user=root")
            self.ask("scancel", "--user=root")
            with contextlib.suppress(TimeoutError):
                wait_for("jobs to end", lambda: not self.ask("squeue", "-h", "-t", "R,CG").strip(), 20)
        for node in self.nodes:
            self.kill_node(node)
        for name in ("slurmctld", "munged"):
            _stop(self.lab / "run" / f"{name}.pid")
        with _alone():
            self._forget_nodes()

    def environment(self) -> dict[str, str]:
        """The environment of a process that uses the cluster."""
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SNAKEMAKE_"))}
        return {**mine, "SLURM_CONF": str(self.configuration), "PATH": f"{self.lab / 'bin'}:{os.environ['PATH']}"}

    def ask(self, *command: str) -> str:
        """Run a client command and return what it printed; a controller that is away blocks it no longer than 10 s."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                command, env=self.environment(), capture_output=True, text=True, timeout=10, check=False
            ).stdout
        return ""

    def keep_job(self, job: str) -> None:
        """Have slurmctld write its state to disk, with a job that runs.

        It does so seconds after a change. Killed before, it takes a running job for a pending one, starts it again and
        drains the node where it still runs ("Duplicate jobid"), until somebody resumes that node.
        """
        asked = time.time()
        self.ask("scontrol", "update", f"JobId={job}", "Comment=kept")
        wait_for("slurmctld's state", lambda: (self.lab / "state" / "job_state").stat().st_mtime > asked)

    def start_controller(self) -> None:
        """Start slurmctld, and wait until it answers."""
        self._start("slurmctld", ["slurmctld", "-f", self.configuration])
        wait_for("slurmctld", lambda: "is UP" in self.ask("scontrol", "ping"))

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._start(f"slurmd-{node}", ["slurmd", "-N", node, "-f", self.configuration])

    def kill_daemon(self, name: str) -> None:
        """End a daemon at once, slurmctld or slurmd-<node>; what runs under it goes on."""
        _stop(self.lab / "run" / f"{name}.pid", signal.SIGKILL)

    def processes(self, variable: str, word: str) -> list[int]:
        """Return the processes in this cluster's jobs that have a variable, NAME=, and a word on their command line."""
        mine = f"SLURM_CONF={self.configuration}\0"
        found = [one for one in _processes() if word in _text(one / "cmdline")]
        texts = {int(one.name): "\0" + _text(one / "environ") for one in found}
        return sorted(pid for pid, text in texts.items() if f"\0{variable}" in text and mine in text)

    def variable(self, pid: int, name: str) -> str:
        """Return a variable of a process; "" if there is none."""
        values = [one for one in _text(Path(f"/proc/{pid}/environ")).split("\0") if one.startswith(f"{name}=")]
        return values[0].partition("=")[2] if values else ""

    def kill_node(self, node: str) -> None:
        """End a node at once, with the steps and tasks that run on it."""
        self.kill_daemon(f"slurmd-{node}")
        tasks = [one for one in _processes() if f"SLURMD_NODENAME={node}\0" in _text(one / "environ")]
        parents = {Path("/proc") / _text(one / "stat").rsplit(")", 1)[-1].split()[1] for one in tasks}
        for one in [*(one for one in parents if "slurmstepd" in _text(one / "cmdline")), *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(one.name), signal.SIGKILL)

    def lose_node(self, node: str) -> None:
        """End a node as `kill_node` does, and have Slurm count it as lost until its daemon registers again.

        Slurm would find out by itself, after SlurmdTimeout; what it does then with the jobs on the node is the same.
        """
        self.kill_node(node)
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def last_words(self, lines: int = 60) -> str:
        """Return the end of each daemon's log."""
        logs = sorted((self.lab / "log").glob("slurm*.log"))
        return "\n".join(f"{one.name}:\n" + "\n".join(_text(one).splitlines()[-lines:]) for one in logs)

    def _configure(self) -> None:
        ports, nodes = self.number * PORTS_APART, ",".join(self.nodes)
        values = {"lab": self.lab, "controller_port": CONTROLLER_PORT + ports, "nodes": nodes}
        values |= {"first_port": NODE_PORT + 1 + ports, "last_port": NODE_PORT + 2 + ports}
        values |= {"first_job": self.number * JOBS_APART + 1}
        self.configuration.write_text(CONFIGURATION.format(**values))
        (self.lab / "etc" / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={nodes} Name=gpu Type=test File={self.lab}/dev/nvidia[0-1]\n"
        )
        for number in (0, 1):  # plain files would leave CUDA_VISIBLE_DEVICES empty
            device = self.lab / "dev" / f"nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        # The plugin strips every SLURM_ variable from a job's environment, SLURM_CONF too: wrappers bring it back.
        for name in COMMANDS:
            # A line a call, under a lock: two calls at once would mix theirs.
            told = f"( flock 9; printf '%q ' \"$@\" >&9; echo >&9 ) 9>> {self.sbatch_calls}\n"
            log = told if name == "sbatch" else ""
            wrapper = self.lab / "bin" / name
            wrapper.write_text(f'#!/bin/bash\nexport SLURM_CONF={self.configuration}\n{log}exec /usr/bin/{name} "$@"\n')
            wrapper.chmod(0o755)
        (self.lab / "env.sh").write_text(f"export SLURM_CONF={self.configuration} PATH={self.lab / 'bin'}:$PATH\n")

    def _name_nodes(self) -> None:
        known = Path("/etc/hosts").read_text().split()
        with open("/etc/hosts", "a") as file:
            file.writelines(self._host(node) for node in self.nodes if node not in known)

    def _forget_nodes(self) -> None:
        hosts, mine = Path("/etc/hosts"), [self._host(node) for node in self.nodes]
        hosts.write_text("".join(line for line in hosts.read_text().splitlines(keepends=True) if line not in mine))

    def _host(self, node: str) -> str:
        return f"127.0.0.1 {node} {HOSTS_MARK}\n"

    def _munged(self) -> None:
        run, key = self.lab / "run", self.lab / "etc" / "munge.key"
        if not key.exists():
            subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
        self.lab.chmod(0o755)
        run.chmod(0o755)
        told = [f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid", f"--key-file={key}"]
        told += [f"--log-file={self.lab}/log/munged.log", f"--seed-file={self.lab}/state/munged.seed", "--force"]
        self._start("munged", ["munged", *told])
        wait_for("munged", (run / "munge.sock").exists)

    def _start(self, name: str, command: list) -> None:
        if not _alive(self.lab / "run" / f"{name}.pid"):
            subprocess.run([*map(str, command)], check=True, env=self.environment())


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for other clusters that install packages or write /etc/hosts."""
    with open("/tmp/selfsup-slurm.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install() -> None:
    """Install the packages that are missing, as root on Debian or Ubuntu; elsewhere say what is needed."""
    missing = [name for name in PACKAGES if not shutil.which({"slurm-client": "srun"}.get(name, name) + _d(name))]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise SystemExit(f"error: the test cluster needs Debian's packages {' '.join(PACKAGES)}, or your system's like")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `condition` holds. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.2)


def _d(name: str) -> str:
    return "d" if name == "munge" else ""


def _pid(file: Path) -> int | None:
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text else None


def _alive(file: Path) -> bool:
    pid = _pid(file)
    return (
        pid is not None
        and Path(f"/proc/{pid}").exists()
        and file.stem.split("-")[0] in _text(Path(f"/proc/{pid}/comm"))
    )


def _stop(file: Path, number: int = signal.SIGTERM) -> None:
    if not _alive(file):
        return
    pid = _pid(file)
    os.kill(pid, number)
    end = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)


def _processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().decode(errors="replace")
    return ""


if __name__ == "__main__":
    if sys.argv[1:] not in (["up"], ["down"]):
        raise SystemExit(__doc__)
    began = time.monotonic()
    getattr(Cluster(), sys.argv[1])()
    print(f"{sys.argv[1]} in {time.monotonic() - began:.1f} s")
