"""What happens to jobs on a cluster, for real: each case ends with the encoder of an undisturbed run, to the bit."""

import contextlib
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
from chaos_slurm import LocalRun, on_slurm, possible_events
from slurm_workflow import CHECKPOINT_MINUTES, LONG, RUN, STEPS, SlurmWorkflow

from chaos import Plan
from selfsup.job.ledger import read_ledger
from workflows import QUICK, Workflow, jobs


def endings(run: Workflow) -> list[str]:
    return [row["how_it_ended"] for row in read_ledger(run.path(f"{RUN}/pretrain/ledger.csv"))]


def lost(run: Workflow) -> int:
    return sum(int(row["steps_lost"] or 0) for row in read_ledger(run.path(f"{RUN}/pretrain/ledger.csv")))


def pending(pid: int) -> set[int]:
    """Return the signals that a process has been sent and has not taken yet."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    waiting = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return {number for number in range(1, 65) if waiting >> (number - 1) & 1}


def finish(run: SlurmWorkflow, process, undisturbed: Workflow) -> str:
    """Wait for snakemake's end, and compare the encoder with the undisturbed one."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed[-6000:]
    encoders = [one.path(f"{RUN}/encoder.safetensors").read_bytes() for one in (run, undisturbed)]
    assert encoders[0] == encoders[1]
    return printed


def test_the_chain_runs_on_two_nodes_and_its_evaluation_runs_again_alone(tmp_path, repository, cluster, warm_python):
    """Two segments of 2 nodes x 2 ranks, exports, evaluations, table; one resource is set on the command line."""
    run = SlurmWorkflow(tmp_path / "slurm", repository, cluster)
    run.digits.update(overrides={**QUICK, "epochs": 2}, segment_epochs=1)
    before = len(cluster.sbatch_calls.read_text().splitlines()) if cluster.sbatch_calls.exists() else 0
    run.run("--set-resources", "pretrain_segment:mem_mb=1500", "--", "results/demo.csv")
    calls = cluster.sbatch_calls.read_text().splitlines()[before:]
    segments = [call for call in calls if "rule_pretrain_segment" in call]
    assert len(segments) == 2 and len(calls) == 7
    for call in segments:
        for flag in ("1500", "--signal=USR1@120", "--ntasks-per-node=2", "--nodes=2", "--cpus-per-task=1"):
            assert flag in call.replace("\\", ""), (flag, call)
    for epoch, goal in enumerate(["0 to 5", "5 to 10"], 1):
        log = run.read(f"logs/pretrain/digits_seed0_epoch000{epoch}.log")
        assert f"steps {goal} of 10" in log and "over 4 ranks" in log
    rows = read_ledger(run.path(f"{RUN}/pretrain/ledger.csv"))
    assert [(row["how_it_ended"], row["devices"]) for row in rows] == [("reached its goal", "4")] * 2
    assert all(row["job_id"] for row in rows)
    table = pd.read_csv(run.path("results/demo.csv")).set_index("implementation")
    assert table.loc["This work", ["n_test", "numerics_changes"]].tolist() == [360, 0]
    local = Workflow(tmp_path / "local", repository, warm_python)
    local.digits.update(overrides={**QUICK, "epochs": 2}, segment_epochs=2)
    local.digits["compute"]["pretrain"].update(devices_per_node=4, cpus_per_device=1)
    local.run(f"{RUN}/encoder.safetensors")
    encoders = [one.path(f"{RUN}/encoder.safetensors").read_bytes() for one in (run, local)]
    assert encoders[0] == encoders[1]  # four ranks of one thread are four ranks, on however many nodes
    assert "Nothing to be done" in run.run("results/demo.csv")
    printed = run.run("--force", f"{RUN}/linear/metrics.csv")
    assert (jobs(printed, "linear_eval"), jobs(printed, "total")) == (1, 1)
    assert len(cluster.sbatch_calls.read_text().splitlines()) - before == len(calls) + 1
    features_and_evaluations_on_two_nodes(run, local)


def features_and_evaluations_on_two_nodes(run: SlurmWorkflow, local: Workflow) -> None:
    """Two ranks, one a node, share the pictures, and have the figures of one process."""
    names = ["near", "regression"]
    strengths = {"strengths": 3, "range": [1e-3, 10.0]}
    evaluations = {"near": {"protocol": "knn"}, "regression": {"protocol": "logistic", "overrides": strengths}}
    metrics = [f"{RUN}/{name}/metrics.csv" for name in names]
    before = len(run.cluster.sbatch_calls.read_text().splitlines())
    for one in (run, local):
        one.config["evaluations"] = evaluations
        one.digits["evaluations"] = ["linear", *names]
        one.run(*metrics)
    calls = run.cluster.sbatch_calls.read_text().splitlines()[before:]
    rules = [re.search(r"rule_([a-z_]+)_wildcards", call.replace("\\", "")).group(1) for call in calls]
    assert sorted(rules) == ["evaluate", "evaluate", "extract_features"]
    assert all("--nodes=2" in call.replace("\\", "") for call in calls)
    folders = [*run.path(f"{RUN}/features").glob("*_job"), *(run.path(path).parent for path in metrics)]
    for folder in folders:
        (row,) = read_ledger(folder / "ledger.csv")
        assert (row["how_it_ended"], row["devices"]) == ("reached its goal", "2") and row["job_id"], folder
    for path in metrics:
        assert run.read(path) == local.read(path)


def test_a_job_that_reaches_its_time_limit_is_continued_by_a_retry(slurm, undisturbed):
    """A real limit of four minutes. Slurm signals two to three minutes ahead of it; until then a rank is frozen."""
    slurm.digits["compute"]["pretrain"]["hours"] = 0.06
    process = slurm.start("--retries", "9", "--", f"{RUN}/encoder.safetensors")  # a busy machine needs several
    slurm.wait_for_step(1)
    with contextlib.suppress(IndexError, FileNotFoundError, ProcessLookupError):  # it has been signalled, and is gone
        frozen = slurm.cluster.processes("SLURM_PROCID=3", "pretrain.py")[0]
        os.kill(frozen, signal.SIGSTOP)
        slurm.wait_for("Slurm's signal", lambda: signal.SIGUSR1 in pending(frozen))
        os.kill(frozen, signal.SIGCONT)
    finish(slurm, process, undisturbed)
    ends = endings(slurm)
    assert ends[-1] == "reached its goal" and len(ends) > 1
    assert all(
        re.fullmatch("stopped by (SIGUSR1|SIGTERM|the approaching time limit|another rank's request)", end)
        for end in ends[:-1]
    )
    assert lost(slurm) == 0


def test_a_preempted_job_goes_back_to_the_queue_and_loses_nothing(slurm, undisturbed):
    slurm.config["cluster"]["partition"] = "low"
    process = slurm.start(f"{RUN}/encoder.safetensors")
    job = slurm.job()
    slurm.wait_for_step(8)
    slurm.cluster.ask("sbatch", "-p", "main", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    slurm.wait_for("the preemption", lambda: slurm.state(job) != "RUNNING")
    finish(slurm, process, undisturbed)
    assert endings(slurm) == ["stopped by SIGTERM", "reached its goal"] and lost(slurm) == 0
    rows = read_ledger(slurm.path(f"{RUN}/pretrain/ledger.csv"))
    assert {row["job_id"] for row in rows} == {job}  # the same job, requeued


def test_a_cancelled_job_is_continued_by_a_retry(slurm, undisturbed):
    """Its first job waits in the queue at first, where `make status` finds it."""
    slurm.cluster.ask("scontrol", "update", "PartitionName=main", "State=DOWN")
    process = slurm.start(f"{RUN}/encoder.safetensors")
    slurm.wait_for("a job in the queue", lambda: "PENDING" in slurm.queue())
    told = slurm.status()
    slurm.cluster.ask("scontrol", "update", "PartitionName=main", "State=UP")
    job = slurm.job()
    assert re.search(rf"^digits .* {job} +pending$", told, re.MULTILINE), told
    slurm.wait_for_step(8)
    slurm.cluster.ask("scancel", job)
    finish(slurm, process, undisturbed)
    assert endings(slurm) == ["stopped by SIGTERM", "reached its goal"] and lost(slurm) == 0


def test_the_stop_file_and_ctrl_c_stop_for_good(slurm, undisturbed):
    process = slurm.start(f"{RUN}/encoder.safetensors")
    slurm.wait_for_step(5)
    slurm.path(f"{RUN}/STOP").touch()
    process.communicate(timeout=300)
    assert process.returncode != 0 and endings(slurm)[0] == f"stopped by the file {RUN}/STOP, for good"
    refused = len(endings(slurm)) - 1
    assert refused == 3 and "STOP is there, so the run stays stopped" in endings(slurm)[-1]
    slurm.path(f"{RUN}/STOP").unlink()
    process = slurm.start(f"{RUN}/encoder.safetensors")
    slurm.wait_for_step(12)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    slurm.wait_for("an empty queue", lambda: not slurm.cluster.ask("squeue", "-h").strip())
    assert endings(slurm)[1 + refused :] == ["stopped by SIGTERM"] and lost(slurm) == 0
    finish(slurm, slurm.start(f"{RUN}/encoder.safetensors"), undisturbed)


def test_a_node_that_dies_costs_no_more_than_the_last_seconds(slurm, undisturbed):
    """The first node, with the batch script and rank 0: daemon, steps and tasks end at once; it comes back later."""
    process = slurm.start(f"{RUN}/encoder.safetensors")
    slurm.wait_for_step(10)
    slurm.wait_for("a checkpoint", lambda: list(slurm.path(f"{RUN}/pretrain/partial").glob("*.pt")))
    first, _ = slurm.cluster.nodes
    job = slurm.job()
    slurm.cluster.lose_node(first)
    slurm.wait_for("the job to leave its nodes", lambda: slurm.state(job) == "PENDING")
    slurm.cluster.start_node(first)
    finish(slurm, process, undisturbed)
    assert endings(slurm) == ["killed", "reached its goal"]
    rows = read_ledger(slurm.path(f"{RUN}/pretrain/ledger.csv"))
    assert 0 < int(rows[1]["start_step"]) <= STEPS and int(rows[1]["steps_redone"]) < 30


def test_a_new_snakemake_does_not_start_beside_the_job_of_a_killed_one(slurm, undisturbed):
    process = slurm.start(f"{RUN}/encoder.safetensors")
    job = slurm.job()
    slurm.wait_for_step(5)
    process.kill()
    process.communicate()
    slurm.run("--unlock")
    printed = slurm.run(f"{RUN}/encoder.safetensors", ok=False)
    assert f"is in use by Slurm job {job} on " in printed
    assert slurm.cluster.ask("squeue", "-h", "-o", "%A").split() == [job]  # nothing was submitted
    slurm.wait_for("the job's end", lambda: slurm.state(job) == "COMPLETED")
    finish(slurm, slurm.start(f"{RUN}/encoder.safetensors"), undisturbed)
    rows = read_ledger(slurm.path(f"{RUN}/pretrain/ledger.csv"))
    assert [row["steps_done"] for row in rows] in ([str(STEPS)], [str(STEPS), "0"])  # nothing was trained again


CHAOS = ["SIGKILL of slurmctld", "disk full", "frozen for seconds", "clock jumps", "SIGKILL"]


@pytest.mark.slow
def test_five_events_one_after_the_other_change_no_bit_and_the_ledger_adds_up(tmp_path, cluster, undisturbed):
    """`make chaos-slurm` in short; one of the five ends the job."""
    seed, changes = random.randrange(10**6), {"overrides": LONG, "segment_epochs": LONG["epochs"] // 2}
    plan = Plan(changes, len(CHAOS), seed, CHECKPOINT_MINUTES, latest_s=4)
    shutil.copytree(undisturbed.folder, tmp_path / "undisturbed")
    left_alone = LocalRun(tmp_path / "undisturbed", plan, disturbed=False)
    kinds = [kind for kind in CHAOS if kind in possible_events()]
    runs = on_slurm(left_alone, tmp_path, plan, cluster, kinds)
    ends = [row["how_it_ended"] for run in runs for row in read_ledger(run.pretrain / "ledger.csv")]
    assert ends.count("reached its goal") >= 2 and len(ends) > 2


def test_preflight_prints_a_verdict_a_line(slurm):
    slurm.config["experiments"] = {"digits": slurm.digits}  # imagenet, the largest, asks for more nodes than there are
    slurm.config["tables"] = {"demo": ["digits"]}
    printed = slurm.run("preflight")
    table = printed[printed.index("ok      ranks") :]
    assert "4 ranks on 2 nodes: {} 2, {} 2".format(*slurm.cluster.nodes) in table and "preflight: all is well" in table
    for check in ("devices", "software", "all-reduce", "batch norm", "store", "results folder", "clocks", "time limit"):
        assert f"ok      {check}" in table
