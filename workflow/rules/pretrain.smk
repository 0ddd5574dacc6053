# Pretraining in segments. Each is a bounded job that continues from the previous boundary or from a rolling checkpoint.


localrules:
    set_aside,
    health_gate,


rule set_aside:
    output:
        RUN.begun("{revision}"),
    log:
        "logs/set_aside/{experiment}_seed{seed}_revision{revision}.log",
    benchmark:
        "logs/benchmarks/set_aside/{experiment}_seed{seed}_revision{revision}.tsv"
    params:
        job=local_job("set_aside.py"),
    message:
        "Set the older run of {wildcards.experiment}, seed {wildcards.seed}, aside for revision {wildcards.revision}"
    shell:
        "{params.job[start]} --run-folder {params.job[folder]:q} --revision {wildcards.revision}"
        " --output {output:q} 2>&1 | tee -i {log}"


rule pretrain_segment:
    input:
        data=dataset_trained_on,
        begun=revision_begun,
        previous=previous_boundary,
        gate=gate,
    output:
        RUN.pretrain.card("{epoch}"),
    log:
        "logs/pretrain/{experiment}_seed{seed}_epoch{epoch}.log",
    benchmark:
        "logs/benchmarks/pretrain/{experiment}_seed{seed}_epoch{epoch}.tsv"
    threads: threads_of("pretrain")
    resources:
        **resources_of("pretrain"),
    params:
        # What decides the weights. If it changes, a finished segment's job starts and compares it with its record.
        weights=weights_of,
        revision=revision_of,
        job=device_job("pretrain.py", "pretrain", recipe=recipe_file, data=data_folder, segment=segment_words),
    message:
        "Pretrain {wildcards.experiment}, seed {wildcards.seed}, to epoch {wildcards.epoch}{params.job[sbatch]}"
    shell:
        "{params.job[start]} --recipe {params.job[recipe]:q} --seed {wildcards.seed} --revision {params.revision}"
        " --data {params.job[data]:q} --run-folder {params.job[folder]:q} {params.job[segment]}"
        " {params.job[machine]} 2>&1 | {params.job[tee]} {log}"


# After each segment: a run that has collapsed or left its band stops here, and loses nothing.
rule health_gate:
    input:
        card=judged,
    output:
        RUN.pretrain.verdict("{epoch}"),
    log:
        "logs/health_gate/{experiment}_seed{seed}_epoch{epoch}.log",
    benchmark:
        "logs/benchmarks/health_gate/{experiment}_seed{seed}_epoch{epoch}.tsv"
    retries: 0  # the same figures have the same verdict
    params:
        # Nothing here is tracked: changed bands do not judge a boundary again after which the run went on.
        job=local_job("health_gate.py", recipe=recipe_file, name=recipe_name, bands=gate_words),
    message:
        "Health of {wildcards.experiment}, seed {wildcards.seed}, at epoch {wildcards.epoch}"
    shell:
        "{params.job[start]} --recipe {params.job[recipe]:q} --name {params.job[name]} --card {input.card:q}"
        " --experiment {wildcards.experiment} {params.job[bands]} --output {output:q} 2>&1 | tee -i {log}"


# Trains a finished segment again, in a folder of its own, and compares the bits: docs/audit.md. It has no inputs,
# because it judges the run as it is: nothing that is missing is trained for it.
rule audit_segment:
    input:
        nothing,
    output:
        AUDIT.verdict,
    log:
        "logs/audit/{experiment}_seed{seed}_epoch{epoch}.log",
    benchmark:
        "logs/benchmarks/audit/{experiment}_seed{seed}_epoch{epoch}.tsv"
    threads: threads_of("pretrain")
    resources:
        **resources_of("pretrain"),
    params:
        job=device_job("audit.py", "pretrain", data=data_folder, run=run_words),
    message:
        "Audit {wildcards.experiment}, seed {wildcards.seed}, to epoch {wildcards.epoch}{params.job[sbatch]}"
    shell:
        "{params.job[start]} {params.job[run]} --data {params.job[data]:q} --output {params.job[folder]:q}"
        " {params.job[machine]} 2>&1 | {params.job[tee]} {log}"
