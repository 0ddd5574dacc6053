# Before the large jobs: what they will cost, how fast the devices are, and whether everything they need is there.
#
# A rule without output has no benchmark: otherwise Snakemake would take the file of the last call for the rule's product,
# and would have nothing to do when it is asked for again.


localrules:
    plan,
    preflight,


rule preflight:
    input:
        "results/preflight.txt",
    log:
        "logs/preflight.log",
    message:
        "Show what preflight has found"
    shell:
        "(cat {input} && ! grep -q ^FAILED {input}) 2>&1 | tee -i {log}"


rule preflight_checks:
    output:
        temp("results/preflight.txt"),
    log:
        "logs/preflight_checks.log",
    benchmark:
        "logs/benchmarks/preflight_checks.tsv"
    threads: threads_of("pretrain")
    resources:
        **{**resources_of("pretrain"), "runtime": 15},
    params:
        job=device_job("preflight.py", "pretrain", data=packed_datasets, ranks=number_of_ranks),
    message:
        f"Check ranks, devices, network, files and clocks as {experiment_of(None).name} will use them{{params.job[sbatch]}}"
    shell:
        "{params.job[start]} {params.job[data]} --results results --ranks {params.job[ranks]} --output {output:q}"
        " {params.job[machine]} 2>&1 | tee -i {log}"


rule plan:
    log:
        "logs/plan.log",
    params:
        job=local_job("plan.py", config=whole_config),
    message:
        "Estimate what the experiments will cost"
    shell:
        "{params.job[start]} --config {params.job[config]:q} 2>&1 | tee -i {log}"


# Three minutes of the experiment's training with its own resources, for the images/s; its weights are thrown away.
rule probe:
    input:
        data=dataset_of,
    output:
        probe_of(RESULTS, "{experiment}").ledger,
    log:
        "logs/probe/{experiment}.log",
    benchmark:
        "logs/benchmarks/probe/{experiment}.tsv"
    threads: threads_of("pretrain")
    resources:
        **{**resources_of("pretrain"), "runtime": 15},
    params:
        job=device_job(
            "pretrain.py",
            "pretrain",
            recipe=recipe_file,
            data=data_folder,
            epochs=all_epochs,
            rolling=rolling_checkpoints,
        ),
    message:
        "Train {wildcards.experiment} for three minutes, to measure its speed{params.job[sbatch]}"
    shell:
        "(rm -rf {params.job[folder]:q}; {params.job[start]} --recipe {params.job[recipe]:q} --data {params.job[data]:q}"
        " --run-folder {params.job[folder]:q} --until-epoch {params.job[epochs]} {params.job[machine]} --time-limit 3.3"
        " || [ $? -eq 75 ] || exit 1; rm -rf {params.job[folder]:q}/*.pt {params.job[rolling]:q})"
        " 2>&1 | {params.job[tee]} {log}"
