"""What is said before anything runs: the plan, and one line for each mistake."""

import copy
import json
import subprocess
import sys

import pytest

from selfsup.grids import MOST
from workflows import QUICK, jobs

# What Snakemake's Slurm plugin looks for; a plan asks none of them anything.
SLURM_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel", "sacctmgr")


def error_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("error: ")]


def test_the_demos_plan_has_three_segments(workflow):
    printed = workflow.run("-n", "results/demo.csv")
    assert "pretrain_segment               3" in printed
    for epoch in ("0010", "0020", "0030"):
        assert f"Pretrain digits, seed 0, to epoch {epoch}" in printed


def test_switches_of_a_compute_block_reach_the_jobs(workflow):
    compute = workflow.digits["compute"]
    compute["pretrain"] |= {"compile": True, "channels_last": False, "hang_minutes": 5}
    compute["evaluate"] |= {"tf32": True}
    commands = [line for line in workflow.run("-n", "-p", "results/demo.csv").splitlines() if "--precision" in line]
    pretraining = [line for line in commands if "pretrain.py" in line]
    evaluation = [line for line in commands if "linear_eval.py" in line]
    assert len(pretraining) == 3 and len(evaluation) == 2
    assert all("--compile" in line and "--no-channels-last" in line and "--tf32" not in line for line in pretraining)
    assert all("--hang-minutes 5" in line and "--deterministic" not in line for line in pretraining)
    assert all("--tf32" in line and "--compile" not in line for line in evaluation)


def test_without_a_target_table_1_is_meant_and_the_missing_path_is_told_in_one_line(workflow):
    printed = workflow.run("-n", ok=False)
    (line,) = error_lines(printed)
    assert "datasets.imagenet.path in config.yaml is not set" in line
    assert "results/demo.csv" in line and "take imagenet from tables.table1" in line
    assert "Traceback" not in printed


def test_only_what_the_target_needs_is_asked_for(workflow):
    workflow.config["tables"]["table1"] = ["cifar10"]
    printed = workflow.run("-n")
    assert "download_cifar10" in printed and "pretrain_segment               3" in printed
    workflow.config["datasets"]["cifar10"]["path"] = "/no/such/folder"
    (line,) = error_lines(workflow.run("-n", ok=False))
    assert "datasets.cifar10.path is /no/such/folder, which does not exist" in line


def test_a_transfer_data_set_is_downloaded_or_said_where_to_get(workflow):
    workflow.config["datasets"] |= {"textures": {"source": "dtd"}, "scenes": {"source": "sun397"}}
    workflow.config["evaluations"] |= {"on_textures": {"protocol": "knn", "dataset": "textures"}}
    workflow.digits["evaluations"] = ["on_textures"]
    printed = workflow.run("-n", "-p", "results/demo.csv")
    assert "Download the images of dtd" in printed and "--source dtd --path" in printed
    (command,) = [line for line in printed.splitlines() if "--source dtd --path" in line]
    assert "downloads/dtd --output" in command
    workflow.config["evaluations"]["on_textures"]["dataset"] = "scenes"
    (line,) = error_lines(workflow.run("-n", "results/demo.csv", ok=False))
    assert "datasets.scenes.path in config.yaml is not set" in line and "Partitions.zip" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.update(colour="red"), "unknown key 'colour'"),
        (lambda config: config["tables"].update(demo=["digit"]), "did you mean digits"),
        (lambda config: config["experiments"]["digits"].update(segment_epochs=0), "segment_epochs is 0"),
        (
            lambda config: config["experiments"]["digits"].update(overrides={"optimizer": {"peak_lr": -1}}),
            "peak_lr is -1",
        ),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(workflow, change, words):
    change(workflow.config)
    printed = workflow.run("-n", "results/demo.csv", ok=False)
    (line,) = error_lines(printed)
    assert words in line and "Traceback" not in printed and "File " not in printed


def test_two_tables_of_one_name_are_found_by_snakemake_too(workflow, repository):
    twice = (
        (repository / "config.yaml")
        .read_text()
        .replace("  demo:   [digits]", "  demo:   [digits]\n  demo:   [cifar10]")
    )
    workflow.path("twice.yaml").write_text(twice)
    (line,) = error_lines(workflow.run("-n", "results/demo.csv", "--configfile", "twice.yaml", ok=False))
    assert "'demo' stands twice" in line


@pytest.mark.parametrize("seed", ["7", "00"])
@pytest.mark.parametrize(
    "file", ["pretrain/epoch_0010.json", "encoder.safetensors", "linear/metrics.csv", "random_init/encoder.safetensors"]
)
def test_a_seed_that_config_yaml_lacks_is_told_in_one_line(workflow, file, seed):
    """It would train for hours what no table, report or status shows; seed00 would be seed 0 once more."""
    workflow.digits["seeds"] = [0, 3]
    printed = workflow.run("-n", f"results/digits/seed{seed}/{file}", ok=False)
    way = {"7": "to run it too, add it there", "00": "ask for seed0"}[seed]
    wanted = f"experiment digits has no seed {seed}: experiments.digits.seeds in config.yaml is [0, 3]; {way}"
    assert error_lines(printed) == [f"error: {wanted}"] and "Traceback" not in printed
    assert "Pretrain digits, seed 3" in workflow.run("-n", "results/digits/seed3/pretrain/epoch_0010.json")


def test_an_experiment_of_several_nodes_needs_the_cluster_profile(workflow):
    workflow.digits["compute"]["pretrain"].update(nodes=2)
    assert "pretrain_segment               3" in workflow.run("-n", "results/demo.csv")
    printed = workflow.run("results/demo.csv", ok=False)
    assert "asks for 2 nodes: use --profile profiles/slurm" in printed


def test_a_new_experiment_needs_no_code(workflow):
    workflow.config["experiments"]["mine"] = {**copy.deepcopy(workflow.digits), "seeds": [3, 4]}
    workflow.config["tables"]["compared"] = ["digits", "mine"]
    printed = workflow.run("-n", "results/compared.csv")
    assert "Pretrain mine, seed 4, to epoch 0030" in printed and "pretrain_segment               9" in printed


def commands(printed: str) -> list[str]:
    """The command lines that -p shows."""
    return [line.removeprefix("Shell command: ") for line in printed.splitlines() if line.startswith("Shell command: ")]


def test_a_jobs_command_line_is_short_and_holds_no_recipe(workflow):
    plan = workflow.run(
        "-n", "-p", "results/demo.csv", "preflight", "results/compute.csv", "results/figures/digits.svg"
    )
    lengths = {line.split(".py")[0].rpartition("/")[2]: len(line) for line in commands(plan) if ".py" in line}
    assert {"pretrain", "linear_eval", "export_encoder", "make_table", "make_curves", "compute_table"} <= lengths.keys()
    assert max(lengths.values()) < 600, lengths
    assert not any("{" in line for line in commands(plan))
    assert not workflow.path("results").exists()  # a plan writes nothing


@pytest.mark.slow
def test_commands_do_not_grow_with_the_number_of_experiments(workflow):
    experiments = workflow.config["experiments"]
    for number in range(MOST - len(experiments)):
        experiments[f"experiment_{number}"] = {**copy.deepcopy(workflow.digits), "overrides": QUICK}
    assert f"experiment_{number}" in workflow.run("plan")


def test_more_experiments_than_one_grid_may_have_are_refused_unless_they_were_run(workflow):
    whole = {**workflow.digits, "grid": {"optimizer.peak_lr": list(range(1, MOST + 1))}, "evaluations": ["linear"]}
    workflow.config["experiments"]["sweep"] = whole
    count = MOST - 1 + len(workflow.config["experiments"])
    refused = workflow.run("-n", "data/digits/store.json", ok=False)
    assert refused.splitlines()[-1].startswith(f"error: config.yaml: experiments are {count}, those of grids written")
    workflow.path("results").mkdir()
    workflow.path("results/config.json").write_text(json.dumps(workflow.config))
    workflow.run("-n", "--configfile", "results/config.json", "--", "data/digits/store.json")


@pytest.mark.parametrize("target", ["plan", "preflight"])
def test_what_makes_no_file_is_done_whenever_it_is_asked_for(workflow, target):
    (kept := workflow.path(f"logs/benchmarks/{target}.tsv")).parent.mkdir(parents=True)
    kept.write_text("of an earlier call")
    assert jobs(workflow.run("-n", target), target) == 1


@pytest.mark.slow
def test_the_recipe_that_a_job_reads_is_the_one_of_config_yaml(workflow):
    target = "results/digits/seed0/random_init/encoder.safetensors"
    workflow.digits["overrides"] = {"model": {"width": 4}}
    workflow.run(target)
    (first,) = workflow.path("results/.told").glob("recipe_*.json")
    assert '"width": 4' in first.read_text() and '"width": 4' in workflow.read(target.replace(".safetensors", ".json"))
    workflow.digits["overrides"] = {"model": {"width": 8}}
    first.write_text("damaged")
    workflow.run(target)
    assert '"width": 8' in workflow.read(target.replace(".safetensors", ".json"))
    workflow.digits["overrides"] = {"model": {"width": 4}}
    workflow.run(target)
    assert '"width": 4' in workflow.read(target.replace(".safetensors", ".json"))


def test_a_failed_jobs_own_error_is_the_last_thing_on_the_screen(workflow):
    workflow.path("pictures/train/ant").mkdir(parents=True)
    workflow.config["datasets"]["mine"] = {"source": "folder", "path": str(workflow.path("pictures"))}
    printed = workflow.run("data/mine/store.json", ok=False)
    *_, named, last = printed.strip().splitlines()
    assert named == "logs/prepare_dataset/mine.log:" and last.startswith("error: ")
    assert last in workflow.read("logs/prepare_dataset/mine.log") and "cleanup-metadata" not in printed


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("results/demos.csv", "no rule makes results/demos.csv; did you mean results/demo.csv?"),
        ("demo", "did you mean results/demo.csv?"),
        ("prefligth", "did you mean preflight?"),
        ("results/digit/seed0/encoder.safetensors", "did you mean results/digits/seed0/encoder.safetensors?"),
        ("xyzzy", "there are results/table1.csv, results/demo.csv, preflight, plan and report"),
    ],
)
def test_for_an_unknown_target_the_nearest_is_told(workflow, target, words):
    printed = workflow.run("-n", "--", target, ok=False)
    (line,) = error_lines(printed)
    assert words in line and "MissingRuleException" not in printed


def test_a_slip_in_config_yaml_is_told_with_its_place_before_snakemake_reads_it(workflow):
    for text, words in {
        "tables:\n  demo: [digits\nexperiments: {}\n": "config.yaml, line 3, column 12: not valid YAML",
        "tables:\n  2024-05-01: [digits]\n": "config.yaml, line 2, column 3: 2024-05-01 is a date",
        "# Gr\xf6\xdfe\n": "config.yaml, line 1: not in UTF-8",
    }.items():
        workflow.path("config.yaml").write_text(text, encoding="iso-8859-1")
        process = subprocess.run([*workflow.command(), "-n"], cwd=workflow.folder, capture_output=True, text=True)
        printed = process.stdout + process.stderr
        (line,) = error_lines(printed)
        assert process.returncode == 1 and words in line and "Traceback" not in printed


def test_ambiguous_hours_of_another_file_are_refused_with_its_name_and_line(workflow):
    workflow.path("site.yaml").write_text("experiments:\n  digits: {compute: {pretrain: {hours: 1:30}}}\n")
    (line,) = error_lines(workflow.run("-n", "results/demo.csv", "--configfile", "site.yaml", ok=False))
    assert "site.yaml, line 2" in line and "1:30 is counted in sixties" in line


def test_a_comment_in_utf8_is_read_whatever_the_locale(workflow, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    workflow.path("mine.yaml").write_text("# Größe, 猫\ndata_dir: data\n", encoding="utf-8")
    assert "pretrain_segment" in workflow.run("-n", "results/demo.csv", "--configfile", "mine.yaml")


def test_numbers_on_the_command_line_are_numbers_in_the_jobs_too(workflow):
    target = "results/digits/seed1/random_init/encoder.safetensors"
    given = "experiments={digits: {seeds: [0, 1], overrides: {model: {width: 4}, optimizer: {weight_decay: 1e-5}}}}"
    workflow.run(target, "--config", given)
    card = workflow.read(target.replace(".safetensors", ".json"))
    assert '"width": 4' in card and '"weight_decay": 1e-05' in card


@pytest.fixture
def cluster(workflow, tmp_path, monkeypatch):
    """A workflow whose plan is made for Slurm, on a machine that has none."""
    workflow.path("bin").mkdir()
    for name in SLURM_COMMANDS:
        workflow.path(f"bin/{name}").write_text("#!/bin/sh\nexit 1\n")
        workflow.path(f"bin/{name}").chmod(0o755)
    monkeypatch.setenv("PATH", f"{workflow.path('bin')}:/usr/bin:/bin")
    workflow.options = lambda: ["--profile", str(workflow.repository / "profiles" / "slurm")]
    workflow.config["datasets"]["imagenet"]["path"] = str(tmp_path)
    workflow.config["cluster"] |= {"account": "abc@v100", "reservation": "lab", "extra": "--hint=nomultithread"}
    workflow.config["experiments"]["imagenet"]["compute"]["pretrain"] |= {"gpu_type": "a100", "memory_gb": 300}
    return workflow


SITE = "--reservation=lab --hint=nomultithread"


def test_a_plan_for_slurm_shows_what_sbatch_and_srun_will_be_asked_for(cluster):
    printed = cluster.run("-n", "-p", "results/imagenet/seed0/linear/metrics.csv")
    lines = [line.strip() for line in printed.splitlines()]
    assert (
        "sbatch -A abc@v100 -t 1200 --mem 300000 --nodes=8 --requeue --ntasks=32 --cpus-per-task=10 "
        f"--ntasks-per-node=4 --gpus-per-node=a100:4 --signal=USR1@120 {SITE}" in lines
    )
    single = "--mem 8000 --requeue --ntasks=1 --cpus-per-task"
    assert f"sbatch -A abc@v100 -t 600 {single}=40 {SITE}" in lines  # packs, on a node's cores
    assert f"sbatch -A abc@v100 -t 20 {single}=1 {SITE}" in lines  # exports
    (first,) = (line for line in commands(printed) if "--until-epoch 100 " in line)
    python = cluster.python or sys.executable
    srun = f"srun -N8 -n32 --ntasks-per-node=4 -c10 --gpus-per-task=a100:1 -K1 -W600 {python} "
    assert first.startswith(srun) and "--cpus 10 --time-limit 1200 2>&1 |" in first


def test_preflight_on_a_cluster_takes_the_experiment_with_the_most_devices_of_all(cluster):
    printed = cluster.run("-n", "preflight")
    assert "as imagenet will use them" in printed and "-t 15 --mem 300000 --nodes=8 " in printed


def test_a_flag_that_the_plugin_refuses_is_refused_by_the_plan(cluster):
    cluster.config["cluster"]["extra"] = "--mem-per-cpu=4000"
    (line,) = error_lines(cluster.run("-n", "results/demo.csv", ok=False))
    assert "cluster.extra has --mem-per-cpu=4000" in line and "memory_gb" in line
