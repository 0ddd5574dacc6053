# Pretraining in segments: a bounded job each, which continues from the boundary before it, or from a rolling checkpoint.


localrules:
    set_aside,
    health_gate,


rule set_aside:
    output:
        "results/{experiment}/seed{seed}/revision_{revision}.json",
    log:
        "logs/set_aside/{experiment}_seed{seed}_revision{revision}.log",
    benchmark:
        "logs/benchmarks/set_aside/{experiment}_seed{seed}_revision{revision}.tsv"
    params:
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("set_aside.py"),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "Set the older run of {wildcards.experiment}, seed {wildcards.seed}, aside for revision {wildcards.revision}"
    shell:
        "{params.python} {params.script} --run-folder {params.folder:q} --revision {wildcards.revision}"
        " --output {output:q} 2>&1 | tee -i {log}"


rule pretrain_segment:
    input:
        data=dataset_trained_on,
        begun=revision_begun,
        previous=previous_boundary,
        gate=gate,
    output:
        f"{PRETRAIN}/epoch_{{epoch}}.json",
    log:
        "logs/pretrain/{experiment}_seed{seed}_epoch{epoch}.log",
    benchmark:
        "logs/benchmarks/pretrain/{experiment}_seed{seed}_epoch{epoch}.tsv"
    threads: local_threads("pretrain")
    resources:
        **resources_of("pretrain"),
    params:
        # What decides the weights. A finished segment knows its own by the run's record: a change of these only wakes it.
        # What has `input` as an argument is not tracked.
        weights=lambda wildcards: canonical(pretraining_part(experiment_of(wildcards).recipe)),
        revision=lambda wildcards: experiment_of(wildcards).revision,
        recipe=recipe_file,
        launcher=lambda wildcards, input: launcher(wildcards, "pretrain"),
        tee=lambda wildcards, input: TEE,
        script=lambda wildcards, input: script("pretrain.py"),
        data=lambda wildcards, input: dataset_folder(experiment_of(wildcards).dataset),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        trackers=lambda wildcards, input: " ".join(
            f"--tracker {shlex.quote(name)}" for name in experiment_of(wildcards).compute.all_trackers
        ),
        knn=lambda wildcards, output: f"results/{wildcards.experiment}/seed{wildcards.seed}/knn.csv",
        previous=previous_epoch,
        epoch=lambda wildcards, input: int(wildcards.epoch),
        compute=lambda wildcards, input: compute_arguments(wildcards, "pretrain"),
        sbatch=sbatch_text,
    message:
        "Pretrain {wildcards.experiment}, seed {wildcards.seed}, to epoch {wildcards.epoch}{params.sbatch}"
    shell:
        "{params.launcher} {params.script} --recipe {params.recipe:q} --seed {wildcards.seed} --revision {params.revision}"
        " --data {params.data:q} --run-folder {params.folder:q} --until-epoch {params.epoch} {params.previous}"
        " --knn {params.knn:q} {params.trackers}"
        " {params.compute} 2>&1 | {params.tee} {log}"


# After each segment: a run that has collapsed, or left its band, stops here and loses nothing.
rule health_gate:
    input:
        card=judged,
    output:
        f"{PRETRAIN}/health_{{epoch}}.json",
    log:
        "logs/health_gate/{experiment}_seed{seed}_epoch{epoch}.log",
    benchmark:
        "logs/benchmarks/health_gate/{experiment}_seed{seed}_epoch{epoch}.tsv"
    retries: 0  # the same figures have the same verdict
    params:
        # Nothing here is tracked: other bands do not judge anew what has gone on already.
        recipe=recipe_file,
        name=lambda wildcards, input: experiment_of(wildcards).recipe_name,
        bands=lambda wildcards, input: bands_arguments(wildcards),
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("health_gate.py"),
    message:
        "Health of {wildcards.experiment}, seed {wildcards.seed}, at epoch {wildcards.epoch}"
    shell:
        "{params.python} {params.script} --recipe {params.recipe:q} --name {params.name} --card {input.card:q}"
        " --experiment {wildcards.experiment} {params.bands} --output {output:q} 2>&1 | tee -i {log}"


rule export_encoder:
    input:
        last_boundary,
    output:
        weights="results/{experiment}/seed{seed}/encoder.safetensors",
        card="results/{experiment}/seed{seed}/encoder.json",
    log:
        "logs/export_encoder/{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/export_encoder/{experiment}_seed{seed}.tsv"
    threads: 1
    resources:
        **jobs.single(CONFIG.cluster, minutes=20),
    params:
        weights=lambda wildcards: canonical(pretraining_part(experiment_of(wildcards).recipe)),
        recipe=recipe_file,
        source=last_checkpoint,
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("export_encoder.py"),
        sbatch=sbatch_text,
    message:
        "Export the encoder of {wildcards.experiment}, seed {wildcards.seed}{params.sbatch}"
    shell:
        "{params.python} {params.script} --recipe {params.recipe:q} --seed {wildcards.seed} {params.source}"
        " --output {output.weights:q} 2>&1 | tee -i {log}"


# Weights that others have published, where config.yaml names them: nothing is pretrained.
ruleorder: import_encoder > export_encoder


rule import_encoder:
    input:
        published_file,
    output:
        weights="results/{experiment}/seed{seed}/encoder.safetensors",
        card="results/{experiment}/seed{seed}/encoder.json",
    log:
        "logs/import_encoder/{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/import_encoder/{experiment}_seed{seed}.tsv"
    wildcard_constraints:
        experiment=IMPORTED,
    threads: 1
    resources:
        **jobs.single(CONFIG.cluster, minutes=20),
    params:
        model=lambda wildcards: canonical(experiment_of(wildcards).recipe["model"]),
        publisher=lambda wildcards: CONFIG.published[wildcards.experiment]["publisher"],
        path=lambda wildcards: CONFIG.published[wildcards.experiment]["path"],
        recipe=recipe_file,
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("import_encoder.py"),
        sbatch=sbatch_text,
    message:
        "Import the published encoder of {wildcards.experiment}{params.sbatch}"
    shell:
        "{params.python} {params.script} --publisher {params.publisher} --weights {input:q} --recipe {params.recipe:q}"
        " --output {output.weights:q} 2>&1 | tee -i {log}"


use rule export_encoder as export_random_init with:
    input:
        nothing,
    output:
        weights="results/{experiment}/seed{seed}/random_init/encoder.safetensors",
        card="results/{experiment}/seed{seed}/random_init/encoder.json",
    log:
        "logs/export_encoder/{experiment}_seed{seed}_random_init.log",
    benchmark:
        "logs/benchmarks/export_encoder/{experiment}_seed{seed}_random_init.tsv"
    params:
        weights=lambda wildcards: canonical(experiment_of(wildcards).recipe["model"]),
        recipe=recipe_file,
        source="--random-init",
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("export_encoder.py"),
        sbatch=sbatch_text,
    message:
        "Export the untrained encoder of {wildcards.experiment}, seed {wildcards.seed}{params.sbatch}"
