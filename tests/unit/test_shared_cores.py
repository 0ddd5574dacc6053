"""bf16 threads on cores that are not theirs alone are told of in a line; nothing else is, and nothing is changed."""

import pytest
import torch

from selfsup.engine import shared_cores
from selfsup.engine.shared_cores import tell_shared_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of four cores: sets which may be used, the quota of the control group, and how busy cores are."""

    def make(allowed=range(4), quota: str | None = None, busy=(0, 0, 0, 0)):
        monkeypatch.setattr(shared_cores, "_allowed", lambda: set(allowed))
        (tmp_path / "cpu.max").write_text(quota or "max 100000")
        monkeypatch.setattr(shared_cores, "_groups", lambda: [tmp_path])
        state = {"ticks": 0}

        def stat() -> str:
            now = state["ticks"] = state["ticks"] + 100
            lines = [
                f"cpu{core} {int(now * share)} 0 0 {now - int(now * share)} 0 0 0 0 0 0"
                for core, share in enumerate(busy)
            ]
            return "\n".join(["cpu  1 2 3", *lines, "intr 5"])

        class Stat:
            read_text = staticmethod(stat)

        monkeypatch.setattr(shared_cores, "STAT", Stat)
        monkeypatch.setattr(shared_cores, "SAMPLE_S", 0)

    return make


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"allowed": [0]}, "1 may be used, wanted 2"),
        ({"quota": "150000 100000"}, "quota is 1.5, wanted 2"),
        ({"busy": (1, 1, 0.9, 0)}, "2.9 of 4 are busy with other work, wanted 2"),
    ],
)
def test_shared_cores_are_told_with_what_to_do(machine, given, wanted):
    machine(**given)
    line = tell_shared_cores("bf16", 2)
    assert wanted in line and "precision: fp32" in line and "cpus_per_device: 1" in line and "\n" not in line


@pytest.mark.parametrize(
    ("precision", "threads", "given"),
    [
        ("fp32", 2, {"allowed": [0], "busy": (1, 1, 1, 1)}),
        ("bf16", 1, {"allowed": [0], "busy": (1, 1, 1, 1)}),
        ("bf16", 2, {}),
        ("bf16", 2, {"quota": "200000 100000", "busy": (1, 1, 0.2, 0)}),
        ("bf16", 2, {"allowed": [2, 3], "busy": (1, 1, 0, 0)}),  # the others are not ours
    ],
)
def test_fp32_one_thread_and_cores_of_its_own_are_silent(machine, precision, threads, given):
    machine(**given)
    assert tell_shared_cores(precision, threads) is None


def test_several_ranks_on_a_node_count_together_and_do_not_take_each_other_for_others(machine):
    machine(busy=(1, 1, 1, 1))
    assert tell_shared_cores("bf16", 2, ranks_here=2) is None
    assert "4 may be used, wanted 6" in tell_shared_cores("bf16", 3, ranks_here=2)


def test_a_quota_of_cgroup_v1_counts_and_a_machine_that_tells_nothing_is_silent(tmp_path, monkeypatch, machine):
    machine()
    (tmp_path / "cpu.max").unlink()
    assert tell_shared_cores("bf16", 2) is None
    (tmp_path / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert "quota is 1, wanted 2" in tell_shared_cores("bf16", 2)
    monkeypatch.undo()
    monkeypatch.setattr(shared_cores, "STAT", tmp_path / "nothing")
    assert shared_cores._busy([0]) == 0.0


def test_neither_threads_nor_precision_are_changed(machine):
    machine(allowed=[0])
    before = torch.get_num_threads()
    assert tell_shared_cores("bf16", 2)
    assert torch.get_num_threads() == before


def test_a_job_in_bf16_tells_it_at_its_start(machine, monkeypatch, caplog):
    from our_byol import as_shipped

    machine(allowed=[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    caplog.set_level("INFO")
    for precision, told in (("fp32", False), ("bf16", True)):
        caplog.clear()
        as_shipped(torch.device("cpu"), precision)
        assert ("on shared cores (1 may be used" in caplog.text) == told
