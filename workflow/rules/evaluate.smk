# Linear evaluation of an encoder, trained or not.


rule linear_eval:
    input:
        data=dataset_evaluated(""),
        encoder=encoder_evaluated(""),
    output:
        metrics="results/{experiment}/seed{seed}/linear/metrics.csv",
    log:
        "logs/linear_eval/{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/linear_eval/{experiment}_seed{seed}.tsv"
    threads: local_threads("evaluate")
    resources:
        **resources_of("evaluate"),
    params:
        # Nothing is tracked: the evaluation's own record says what it was made from.
        recipe=recipe_file,
        launcher=lambda wildcards, input: launcher(wildcards, "evaluate"),
        tee=lambda wildcards, input: TEE,
        script=lambda wildcards, input: script("linear_eval.py"),
        data=lambda wildcards, input: dataset_folder(experiment_of(wildcards).dataset),
        folder=lambda wildcards, output: os.path.dirname(output.metrics),
        compute=lambda wildcards, input: compute_arguments(wildcards, "evaluate"),
        sbatch=sbatch_text,
    message:
        "Linear evaluation of {wildcards.experiment}, seed {wildcards.seed}{params.sbatch}"
    shell:
        "{params.launcher} {params.script} --recipe {params.recipe:q} --seed {wildcards.seed} --data {params.data:q}"
        " --encoder {input.encoder:q} --output {params.folder:q} {params.compute} 2>&1 | {params.tee} {log}"


use rule linear_eval as linear_eval_random_init with:
    input:
        data=dataset_evaluated("random_init/"),
        encoder=encoder_evaluated("random_init/"),
    output:
        metrics="results/{experiment}/seed{seed}/random_init/linear/metrics.csv",
    log:
        "logs/linear_eval/{experiment}_seed{seed}_random_init.log",
    benchmark:
        "logs/benchmarks/linear_eval/{experiment}_seed{seed}_random_init.tsv"
    message:
        "Linear evaluation of {wildcards.experiment} untrained, seed {wildcards.seed}{params.sbatch}"
