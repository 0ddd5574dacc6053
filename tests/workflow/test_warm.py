"""The processes that tests fork for scripts are what the user's are: same bits, same surroundings, same end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runs import equal_states
from selfsup.engine.checkpoint import load_checkpoint
from selfsup.layout import boundary_name
from selfsup.recipe import canonical
from warm.executable import SET_FOR_THREADS, can_fork, python_in
from workflows import wait_until

pytestmark = pytest.mark.skipif(not can_fork(), reason="a Linux of 2019 or later has pidfd_open")

# What a script can see of the process that it is run in.
PROBE = """
import json, os, random, resource, signal, sys, tempfile
import numpy, torch, selfsup
seen = {
    "words": sys.argv,
    "file": __file__,
    "path": sys.path,
    "name": __name__,
    "python": sys.executable,
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "umask": os.umask(0),
    "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
    "signals": [str(signal.getsignal(number)).split(" at ")[0] for number in sorted(signal.valid_signals())],
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "files": sorted(one for one in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{one}")),
    "drawn": [random.random(), numpy.random.random(), torch.rand(()).item()],
    "stdin": sys.stdin.read(),
    "temporary": tempfile.gettempdir(),
    "threads": torch.get_num_threads(),
    "cores": sorted(os.sched_getaffinity(0)),
    "leader": os.getpgid(0) == os.getpid(),
    "parent": os.getppid(),
}
print(json.dumps(seen))
print("told", file=sys.stderr)
sys.exit(7)
"""
WAITS = """
import signal, sys, time
from pathlib import Path
import os
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))
Path("pid").write_text(str(os.getpid()))
time.sleep(300)
"""


@pytest.fixture
def owner():
    """A process whose end is the end of all that is forked for it."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def forking(tmp_path, repository, owner) -> Path:
    """An executable for the scripts of this file alone."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "selfsup").symlink_to(repository / "workflow/scripts/selfsup")
    for name, text in {"probe": PROBE, "waits": WAITS, "raises": "import torch\n1 / 0\n"}.items():
        (scripts / f"{name}.py").write_text(text)
    return python_in(tmp_path / "forks", [str(scripts)], owner.pid, imported="torch")


def servers(folder: Path) -> list[int]:
    """The processes that forks are made of."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(folder)) for word in words) and b"server.py" in b" ".join(words[:2]):
            found.append(int(path.parent.name))
    return found


@pytest.mark.long
def test_a_forked_training_gives_the_bits_of_one_from_the_start(
    tiny_recipe, tiny_store, tmp_path, repository, warm_python
):
    script = repository / "workflow/scripts/pretrain.py"
    states = {}
    for name, python in {"cold": sys.executable, "forked": warm_python}.items():
        told = ["--recipe", canonical(tiny_recipe), "--data", tiny_store.folder, "--run-folder", tmp_path / name]
        told += ["--until-epoch", "2", "--cpus", "2", "--device", "cpu"]
        subprocess.run([python, script, *map(str, told)], check=True, capture_output=True)
        states[name] = load_checkpoint(tmp_path / name / boundary_name(2))
    assert equal_states(states["cold"], states["forked"])
    assert states["cold"]["numerics"] == states["forked"]["numerics"]


@pytest.mark.long
def test_a_forked_script_sees_what_one_from_the_start_sees(forking, tmp_path, monkeypatch):
    """Under one environment, and under another one that libraries read when they are loaded."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in SET_FOR_THREADS:
        monkeypatch.delenv(name)
    for more in ({"OWN": "1"}, {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}):
        seen = []
        for python in (sys.executable, forking, forking):
            command = f"umask 027; ulimit -n 200; trap '' HUP; exec {python} ../scripts/probe.py a 'b c'"
            process = {"cwd": folder, "env": {**os.environ, **more}, "input": "given", "start_new_session": True}
            process["preexec_fn"] = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, **process)
            assert (done.returncode, done.stderr) == (7, "told\n")
            seen.append(json.loads(done.stdout))
        drawn = [number for one in seen for number in one.pop("drawn")]
        assert [one.pop("python") for one in seen] == [sys.executable, str(forking), str(forking)]
        assert seen[0] == seen[1] == seen[2] and len(set(drawn)) == 9
    assert seen[1]["threads"] == 1 and len(servers(forking.parent)) == 2


@pytest.mark.long
def test_signals_errors_and_ends_are_those_of_the_script(forking, tmp_path, owner):
    def waiting() -> tuple[subprocess.Popen, int]:
        (tmp_path / "pid").unlink(missing_ok=True)
        process = subprocess.Popen([forking, "scripts/waits.py"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the script")
        return process, int((tmp_path / "pid").read_text())

    for number, status in {signal.SIGUSR1: 75, signal.SIGTERM: -signal.SIGTERM}.items():
        process, pid = waiting()
        assert pid != process.pid
        process.send_signal(number)
        assert process.wait(300) == status
    process, pid = waiting()
    os.kill(pid, signal.SIGKILL)
    assert process.wait(300) == -signal.SIGKILL
    process, pid = waiting()
    process.kill()
    process.wait(300)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of what was forked for it")
    raised = subprocess.run([forking, "scripts/raises.py"], cwd=tmp_path, capture_output=True, text=True)
    assert raised.returncode == 1 and raised.stderr.endswith("\nZeroDivisionError: division by zero\n")
    other = subprocess.run([forking, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    assert other.stdout.strip() == sys.executable and len(servers(forking.parent)) == 1
    process, pid = waiting()
    owner.kill()
    owner.wait()
    assert process.wait(300) != 0
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of what is forked for an owner that has ended")
    wait_until(lambda: not servers(forking.parent), "the end of the processes that forks are made of")
