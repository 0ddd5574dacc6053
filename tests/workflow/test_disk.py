"""A disk that is full, played by a limit on the size of files, or not to be written: one line, nothing half done."""

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from selfsup.engine.checkpoint import save_checkpoint
from selfsup.errors import UserError
from selfsup.job.ledger import read_ledger
from selfsup.recipe import canonical, load_recipe
from tiny import TINY
from trees import write_tree

LIMIT_BYTES = 200_000


def limited(count: int) -> Callable[[], None]:
    """What a process calls before it begins: no file may become larger than `count` bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))


@pytest.mark.parametrize(
    ("script", "arguments", "unfinished"),
    [
        ("prepare_dataset.py", ["--source", "digits", "--output", "store"], "store/store.json"),
        ("export_encoder.py", ["--recipe", "digits", "--random-init", "--output", "e.safetensors"], "e.safetensors"),
    ],
)
def test_a_full_disk_is_told_in_one_line(repository, tmp_path, starter, script, arguments, unfinished):
    done = subprocess.run(
        [starter, repository / "workflow" / "scripts" / script, *arguments],
        cwd=tmp_path,
        preexec_fn=limited(LIMIT_BYTES),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and unfinished.split("/")[0] in line
    assert "cannot be written" in line and "free space" in line
    assert not (tmp_path / unfinished).exists()


def test_a_checkpoint_says_that_the_disk_is_full(tmp_path):
    """/dev/full is a disk without space; torch tells of it in words of its own, of a place in the file."""
    (tmp_path / "epoch_0001.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"epoch_0001.*\(the disk is full: No space left on device\): free space"):
        save_checkpoint(tmp_path / "epoch_0001.pt", {"weights": torch.zeros(100_000)}, {"step": 1})


def test_a_folder_that_cannot_be_written_is_named(repository, tmp_path, starter):
    script = repository / "workflow" / "scripts" / "make_table.py"
    command = [starter, script, "--table", "demo", "--output", "/proc/demo.csv", "--results", tmp_path]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("error: /proc/demo.md: No such file or directory")


@pytest.fixture
def pretraining(repository, tmp_path, tiny_store, starter):
    """The command of a tiny pretraining, with a checkpoint after every step, and its environment."""
    scripts = repository / "workflow" / "scripts"
    command = [starter, scripts / "pretrain.py", "--recipe", canonical(load_recipe("digits", TINY))]
    command += ["--data", tiny_store.folder, "--run-folder", tmp_path / "run", "--device", "cpu", "--cpus", "1"]
    return [*map(str, [*command, "--checkpoint-minutes", "1e-9"])]


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def test_a_disk_that_fills_in_the_middle_of_a_checkpoint_harms_none(pretraining, tmp_path):
    """Two epochs with enough space; then files may grow to half a checkpoint; then there is space again."""
    folder = tmp_path / "run"
    assert run([*pretraining, "--until-epoch", "2"]).returncode == 0
    whole = (folder / "epoch_0002.pt").read_bytes()
    half = len(whole) // 2
    full = run(
        [*pretraining, "--until-epoch", "4", "--previous", str(folder / "epoch_0002.pt")],
        preexec_fn=limited(half),
    )
    assert full.returncode == 1 and "Traceback" not in full.stderr
    (error,) = full.stderr.strip().splitlines()
    assert (
        "the checkpoint cannot be written (File too large)" in error and "free space" in error and str(folder) in error
    )
    assert (folder / "epoch_0002.pt").read_bytes() == whole
    assert [path.suffix for path in (folder / "partial").iterdir() if path.suffix != ".json"] == []
    assert not (folder / "failed.json").exists()  # no failure for good: a retry may find space
    done = run([*pretraining, "--until-epoch", "4", "--previous", str(folder / "epoch_0002.pt")])
    assert done.returncode == 0 and "steps 10 to 20 of 20" in done.stdout
    ends = [row["how_it_ended"] for row in read_ledger(folder / "ledger.csv")]
    assert ends[0] == ends[2] == "reached its goal" and "cannot be written" in ends[1]


# Root may write everywhere: privileges are dropped once all that lies in root's own folders has been loaded.
UNPRIVILEGED = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import pretrain, torch, selfsup.training.segment, selfsup.engine.compute, selfsup.data.store
from selfsup.errors import run_script
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
run_script(pretrain.main)
"""


@pytest.mark.parametrize("where", ["run", "run/partial"])
def test_a_folder_that_is_read_only_is_told_in_one_line(pretraining, program, repository, tmp_path, tiny_store, where):
    folder = tmp_path / "run"
    (folder / "partial").mkdir(parents=True)
    for path in (folder, folder / "partial"):
        path.chmod(0o555 if path == tmp_path / where else 0o777)
    opened = [tmp_path, *tmp_path.parents, tiny_store.folder, *tiny_store.folder.parents]
    for path in opened:  # and left open: tests that run beside this one have the upper folders in common
        if "pytest-" in str(path):
            path.chmod(0o755)
    starter, _, *words = pretraining
    scripts = str(repository / "workflow" / "scripts")
    told = run([starter, str(program(UNPRIVILEGED)), scripts, *words, "--until-epoch", "4"])
    for path in (folder, folder / "partial"):
        path.chmod(0o755)
    assert told.returncode == 1, told.stdout + told.stderr
    error = told.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "ermission denied" in error and str(tmp_path / where) in error
    assert "Traceback" not in told.stderr
    assert not list(folder.rglob("*.pt")) and not (folder / "lock.json").exists()


def test_an_image_that_has_become_unreadable_is_named_and_no_retry_tries_it_again(pretraining, tmp_path, kept_as_files):
    from selfsup.data.preparing import Packing, prepare

    for place in range(20):
        path = tmp_path / "images" / ("train" if place else "test") / "ant" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_png(path, place)
    prepare("folder", tmp_path / "images", tmp_path / "store", Packing(expect={"classes": 1}))
    packed = tmp_path / "store" / "train_images.npy"
    content = packed.read_bytes()
    packed.write_bytes(content[:128] + bytes(len(content) - 128))  # the header of a .npy stays
    command = [str(tmp_path / "store") if "store" in word else word for word in pretraining]
    for attempt in ("cannot be decoded", "failed for good"):
        told = run([*command, "--until-epoch", "4"])
        (error,) = told.stderr.strip().splitlines()
        assert told.returncode == 1 and attempt in error and "train image" in error


def _write_png(path: Path, value: int) -> None:
    import torch
    from torchvision.io import write_png

    write_png(torch.full((3, 12, 12), value, dtype=torch.uint8), str(path))


PACK = ["prepare_dataset.py", "--source", "folder", "--path", "images", "--output", "store"]


def pack(starter: str, repository: Path, folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    script, *words = PACK
    command = [starter, str(repository / "workflow" / "scripts" / script), *words, *arguments]
    return run(command, cwd=folder, **options)


def test_a_disk_that_fills_while_images_are_packed_harms_none_of_them(repository, tmp_path, starter):
    write_tree(tmp_path / "images", {"train": ["ant", "bee"], "test": ["ant"]}, count=120)
    full = pack(starter, repository, tmp_path, preexec_fn=limited(90_000))
    (line,) = full.stderr.strip().splitlines()
    assert full.returncode == 1 and "store/packing/train_" in line and "free space" in line
    assert not (tmp_path / "store/store.json").exists()
    done = pack(starter, repository, tmp_path)
    assert done.returncode == 0 and "360/360" in done.stdout
    whole = pack(starter, repository, tmp_path, "--output", "again")
    assert done.stdout.split("fingerprint")[1] == whole.stdout.split("fingerprint")[1]


UNPRIVILEGED_PACK = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import prepare_dataset, torch
from selfsup.errors import run_script
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
run_script(prepare_dataset.main)
"""


def test_images_and_folders_without_read_permission_are_named(repository, tmp_path, starter, program):
    write_tree(tmp_path / "images", {"train": ["ant", "bee", "cat"], "test": ["ant"]})
    for path in (tmp_path, *tmp_path.parents):
        if "pytest-" in str(path):
            path.chmod(0o755)
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    secret = tmp_path / "images/train/ant/1.png"
    secret.chmod(0)
    command = [starter, str(program(UNPRIVILEGED_PACK)), str(repository / "workflow" / "scripts"), *PACK[1:]]
    told = run(command, cwd=tmp_path).stderr
    assert "1 of 12 images cannot be packed" in told and "ant/1.png: cannot be read (Permission denied)" in told
    (tmp_path / "images/train/bee").chmod(0)
    told = run(command, cwd=tmp_path).stderr
    assert "train/bee: the folder cannot be read (Permission denied)" in told and "Traceback" not in told
    (tmp_path / "images/train/bee").chmod(0o755)
