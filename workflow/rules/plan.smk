# Before the large jobs: what they will cost, how fast the devices are, and whether all that they need is there.


localrules:
    plan,
    preflight,


rule preflight:
    input:
        "results/preflight.txt",
    log:
        "logs/preflight.log",
    benchmark:
        "logs/benchmarks/preflight.tsv"
    message:
        "The verdicts"
    shell:
        "(cat {input} && ! grep -q ^FAILED {input}) 2>&1 | tee -i {log}"


rule preflight_checks:
    output:
        temp("results/preflight.txt"),
    log:
        "logs/preflight_checks.log",
    benchmark:
        "logs/benchmarks/preflight_checks.tsv"
    threads: local_threads("pretrain")(Largest)
    resources:
        **{**jobs.resources(block_of(Largest, "pretrain"), CONFIG.cluster), "runtime": 15},
    params:
        launcher=lambda wildcards, input: launcher(Largest, "pretrain"),
        script=lambda wildcards, input: script("preflight.py"),
        data=lambda wildcards, input: " ".join(f"--data {shlex.quote(folder)}" for folder in packed_datasets()),
        ranks=lambda wildcards, input: jobs.tasks(block_of(Largest, "pretrain")),
        compute=lambda wildcards, input: compute_arguments(Largest, "pretrain"),
        sbatch=sbatch_text,
    message:
        f"Check ranks, devices, network, files and clocks as {Largest.experiment} will use them{{params.sbatch}}"
    shell:
        "{params.launcher} {params.script} {params.data} --results results --ranks {params.ranks} --output {output:q}"
        " {params.compute} 2>&1 | tee -i {log}"


rule plan:
    log:
        "logs/plan.log",
    benchmark:
        "logs/benchmarks/plan.tsv"
    params:
        config=whole_config,
        python=PYTHON,
        script=script("plan.py"),
    message:
        "What the experiments will cost"
    shell:
        "{params.python} {params.script} --config {params.config:q} 2>&1 | tee -i {log}"


# Three minutes of the experiment's training with its own resources, for the images/s; its weights are thrown away.
rule probe:
    input:
        data=dataset_of,
    output:
        "results/{experiment}/probe/ledger.csv",
    log:
        "logs/probe/{experiment}.log",
    benchmark:
        "logs/benchmarks/probe/{experiment}.tsv"
    threads: local_threads("pretrain")
    resources:
        **{**resources_of("pretrain"), "runtime": 15},
    params:
        recipe=recipe_file,
        epochs=lambda wildcards, input: experiment_of(wildcards).recipe["epochs"],
        launcher=lambda wildcards, input: launcher(wildcards, "pretrain"),
        tee=lambda wildcards, input: TEE,
        script=lambda wildcards, input: script("pretrain.py"),
        data=lambda wildcards, input: os.path.dirname(input.data),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        compute=lambda wildcards, input: compute_arguments(wildcards, "pretrain"),
        sbatch=sbatch_text,
    message:
        "Three minutes of {wildcards.experiment}, to measure its speed{params.sbatch}"
    shell:
        "(rm -rf {params.folder:q}; {params.launcher} {params.script} --recipe {params.recipe:q} --data {params.data:q}"
        " --run-folder {params.folder:q} --until-epoch {params.epochs} {params.compute} --time-limit 3.3"
        " || [ $? -eq 75 ] || exit 1; rm -rf {params.folder:q}/*.pt {params.folder:q}/partial) 2>&1 | {params.tee} {log}"
