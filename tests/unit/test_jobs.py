"""What jobs ask of Slurm and how they start, as texts: the true ones, written by the plugin, with no Slurm about."""

import argparse
import re
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm.validation import get_forbidden_slurm_options, validate_slurm_extra

from machines import EIGHT_NODES, JEAN_ZAY, LAPTOP, NO_SITE, ONE_NODE, V100
from selfsup import jobs
from selfsup.arguments import add_compute_arguments
from selfsup.errors import UserError


class Resources(dict):
    """The resources of a job as the plugin meets them, by key and by attribute."""

    __getattr__ = dict.__getitem__


def sbatch(resources: dict, threads: int = 1) -> str:
    """The flags of a job's sbatch call, as the plugin will write them."""
    validate_slurm_extra(SimpleNamespace(resources=Resources(resources)))
    return jobs.sbatch(Resources(resources), threads).removeprefix("sbatch ")


@pytest.mark.parametrize(
    ("block", "cluster", "flags"),
    [
        (
            LAPTOP,
            NO_SITE,
            "-t 60 --nodes=1 --ntasks=1 --cpus-per-task=2 --ntasks-per-node=1 --signal=USR1@120",
        ),
        (
            ONE_NODE,
            NO_SITE,
            "-t 1200 --nodes=1 --ntasks=2 --cpus-per-task=10 --ntasks-per-node=2 --gpus-per-node=2 --signal=USR1@120",
        ),
        (
            EIGHT_NODES,
            NO_SITE,
            "-t 1200 --nodes=8 --ntasks=32 --cpus-per-task=10 --ntasks-per-node=4 --gpus-per-node=4 --signal=USR1@120",
        ),
        (
            V100,
            JEAN_ZAY,
            "-A abc@v100 -t 1200 -C v100-32g --qos=qos_gpu-t3 --nodes=8 --ntasks=32 --cpus-per-task=10 "
            "--ntasks-per-node=4 --gpus-per-node=4 --signal=USR1@120 --hint=nomultithread",
        ),
    ],
    ids=["laptop", "one node", "eight nodes", "like Jean Zay"],
)
def test_sbatch_is_asked_for_exactly_this(block, cluster, flags):
    assert sbatch(jobs.resources(block, cluster)) == flags


def test_a_job_goes_where_the_site_wants_it():
    assert jobs.site(NO_SITE) == {"slurm_extra": ""}
    wanted = {"slurm_account": "abc@v100", "constraint": "v100-32g", "qos": "qos_gpu-t3"}
    assert jobs.site(JEAN_ZAY) == {**wanted, "slurm_extra": "--hint=nomultithread"}
    assert jobs.resources(V100, JEAN_ZAY).items() >= wanted.items()
    assert jobs.site({**NO_SITE, "partition": "gpu"}) == {"slurm_partition": "gpu", "slurm_extra": ""}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (LAPTOP, "srun -N1 -n1 --ntasks-per-node=1 -c2 -K1 -W600 python"),
        (
            ONE_NODE,
            "srun -N1 -n2 --ntasks-per-node=2 -c10 --gpus-per-task=1 -K1 -W600 python",
        ),
        (
            EIGHT_NODES,
            "srun -N8 -n32 --ntasks-per-node=4 -c10 --gpus-per-task=1 -K1 -W600 python",
        ),
    ],
    ids=["laptop", "one node", "eight nodes"],
)
def test_srun_starts_one_process_per_device(block, words):
    assert jobs.launcher(block, "python", in_slurm=True) == words
    assert jobs.launcher(block, "python", in_slurm=False) == "python"


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (LAPTOP, "--device cpu --precision fp32 --cpus 2 --checkpoint-minutes 1 --local-ranks 1"),
        (ONE_NODE, "--cpus 10 --local-ranks 2"),
        (
            {**LAPTOP, "compile": True, "deterministic": True, "recompute": False, "tf32": True, "hang_minutes": 2.5},
            "--device cpu --precision fp32 --cpus 2 --checkpoint-minutes 1 --hang-minutes 2.5 --compile "
            "--deterministic --no-recompute --tf32 --local-ranks 1",
        ),
    ],
    ids=["laptop", "one node", "every switch"],
)
def test_a_script_on_this_machine_is_told_exactly_this(block, words):
    assert jobs.arguments(block, in_slurm=False) == words


def test_a_script_in_a_slurm_job_is_told_its_time_limit_and_the_nodes_own_disk():
    words = "--device cuda --precision fp16 --cpus 10 --hang-minutes 5 --no-channels-last"
    assert jobs.arguments(V100, in_slurm=True) == f"{words} --time-limit 1200"
    copied = jobs.arguments(V100, in_slurm=True, local_copy="$TMPDIR/my data")
    assert copied == f"{words} --local-copy '$TMPDIR/my data' --time-limit 1200"


def test_memory_type_of_gpu_and_reservation_reach_sbatch_and_srun():
    block, cluster = {**EIGHT_NODES, "memory_gb": 320, "gpu_type": "a100"}, {**NO_SITE, "reservation": "lab"}
    flags = "-t 1200 --mem 320000 --nodes=8 --ntasks=32 --cpus-per-task=10 --ntasks-per-node=4"
    wanted = f"{flags} --gpus-per-node=a100:4 --signal=USR1@120 --reservation=lab"
    assert sbatch(jobs.resources(block, cluster)) == wanted
    assert "-c10 --gpus-per-task=a100:1 -K1 -W600" in jobs.launcher(block, "python", in_slurm=True)
    assert "gpu" not in sbatch(jobs.resources({**LAPTOP, "memory_gb": 4}, cluster))


def test_jobs_that_pack_and_export_get_the_sites_flags_too():
    assert sbatch(jobs.single(NO_SITE, minutes=20)) == "-t 20 --mem 8000 --ntasks=1 --cpus-per-task=1"
    site = {**JEAN_ZAY, "reservation": "lab", "memory_gb": 0}
    flags = "-A abc@v100 -t 600 -C v100-32g --qos=qos_gpu-t3 --ntasks=1 --cpus-per-task=4"
    assert sbatch(jobs.single(site, minutes=600), threads=4) == f"{flags} --reservation=lab --hint=nomultithread"


def examples(pattern: str) -> list[str]:
    """Flags that one of the plugin's patterns refuses: "--mem[=\\s]" and "--time[=\\s]|-t\\s" among them."""
    flags = [one.replace("[=\\s]", "").replace("\\s?", "").replace("\\s", "") for one in pattern.split("|")]
    return [f"{flag}=1" if flag.startswith("--") else f"{flag} 1" for flag in flags]


@pytest.mark.parametrize("pattern", get_forbidden_slurm_options())
def test_every_flag_that_the_plugin_refuses_is_refused_by_the_plan(pattern):
    for example in examples(pattern):
        assert re.search(pattern, example)
        with pytest.raises(UserError, match="instead: "):
            jobs.refuse_flags(f"--hint=nomultithread {example}")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--mem=4G", "memory_gb of experiments.<name>.compute.<stage> or of cluster"),
        ("--mem-per-cpu 4000", "memory_gb"),
        ("--gres=gpu:a100:1", "devices_per_node and gpu_type"),
        ("--gpus-per-node=a100:4", "devices_per_node and gpu_type"),
        ("-N4", "nodes and devices_per_node"),
        ("-t 10", "hours"),
        ("-p gpu", "cluster.partition"),
        ("-Aabc", "cluster.account"),
    ],
)
def test_a_flag_that_has_a_key_is_refused_with_the_key(extra, words):
    with pytest.raises(UserError, match="instead: ") as error:
        jobs.refuse_flags(f"--hint=nomultithread {extra}")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "--hint=nomultithread",
        "--reservation=lab --exclusive",
        "--mail-user=me@here.org --mail-type=END",
        "--tmp=9G",
    ],
)
def test_other_flags_of_the_sites_are_taken(extra):
    jobs.refuse_flags(extra)
    assert sbatch(jobs.resources(ONE_NODE, {**NO_SITE, "extra": extra})).endswith(extra)


def test_minutes_and_cores_are_those_of_the_block():
    assert jobs.minutes({**LAPTOP, "hours": 1.5}) == 90
    assert jobs.threads(EIGHT_NODES) == 40


def test_what_a_command_leaves_out_is_what_the_scripts_take_by_themselves():
    parser = argparse.ArgumentParser()
    add_compute_arguments(parser)
    words = [jobs.arguments(block, in_slurm=False).split() for block in (ONE_NODE, {**ONE_NODE, "cpus_per_device": 1})]
    whole = vars(parser.parse_args(["--cpus", "1", "--local-ranks", "2", "--hang-minutes", "10"]))
    assert {**vars(parser.parse_args(words[0])), "cpus": 1} == vars(parser.parse_args(words[1])) == whole
    assert whole["device"] == whole["precision"] == "auto" and whole["checkpoint_minutes"] == 10
