"""What is said before anything runs: the plan, and one line for each mistake."""

import copy

import pytest


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
