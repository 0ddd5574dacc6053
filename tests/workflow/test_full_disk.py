"""A disk that is full, played by a limit on the size of files: one line, and nothing that looks finished."""

import resource
import subprocess
import sys

import pytest

LIMIT_BYTES = 200_000


@pytest.mark.parametrize(
    ("script", "arguments", "unfinished"),
    [
        ("prepare_dataset.py", ["--source", "digits", "--output", "store"], "store/store.json"),
        ("export_encoder.py", ["--recipe", "digits", "--random-init", "--output", "e.safetensors"], "e.safetensors"),
    ],
)
def test_a_full_disk_is_told_in_one_line(repository, tmp_path, script, arguments, unfinished):
    done = subprocess.run(
        [sys.executable, repository / "workflow" / "scripts" / script, *arguments],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and unfinished.split("/")[0] in line
    assert "cannot be written" in line and "free space" in line
    assert not (tmp_path / unfinished).exists()


def test_a_folder_that_cannot_be_written_is_named(repository):
    script = repository / "workflow" / "scripts" / "make_table.py"
    command = [sys.executable, script, "--table", "demo", "--output", "/proc/demo.csv"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("error: /proc/demo.md.tmp: No such file or directory")
