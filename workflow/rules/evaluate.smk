# Evaluations of a trained or untrained encoder: the recipe's linear one, and those that config.yaml names.


rule linear_eval:
    input:
        data=dataset_evaluated_on(trained),
        encoder=encoder_evaluated(trained),
    output:
        metrics=RUN.encoder.evaluation().metrics,
    log:
        "logs/linear_eval/{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/linear_eval/{experiment}_seed{seed}.tsv"
    threads: threads_of("evaluate")
    resources:
        **resources_of("evaluate"),
    params:
        # Nothing is tracked: the evaluation's own record says what it was made from.
        job=device_job("linear_eval.py", "evaluate", recipe=recipe_file, data=evaluation_data, protocol=nothing_told),
    message:
        "Linear evaluation of {wildcards.experiment}, seed {wildcards.seed}{params.job[sbatch]}"
    shell:
        "{params.job[start]} --recipe {params.job[recipe]:q} --seed {wildcards.seed} --data {params.job[data]:q}"
        " --encoder {input.encoder:q}{params.job[protocol]} --experiment {wildcards.experiment}"
        " --output {params.job[folder]:q} {params.job[machine]}"
        " 2>&1 | {params.job[tee]} {log}"


use rule linear_eval as linear_eval_random_init with:
    input:
        data=dataset_evaluated_on(untrained),
        encoder=encoder_evaluated(untrained),
    output:
        metrics=RUN.random_init.evaluation().metrics,
    log:
        "logs/linear_eval/{experiment}_seed{seed}_random_init.log",
    benchmark:
        "logs/benchmarks/linear_eval/{experiment}_seed{seed}_random_init.tsv"
    message:
        "Linear evaluation of {wildcards.experiment} untrained, seed {wildcards.seed}{params.job[sbatch]}"


# Features that several evaluations share, so that each picture is encoded once; deleted after a call's last evaluation.
rule extract_features:
    input:
        data=dataset_extracted_from(trained),
        encoder=RUN.encoder.weights,
    output:
        temp(directory(RUN.encoder.features("{features}"))),
    log:
        "logs/extract_features/{features}_{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/extract_features/{features}_{experiment}_seed{seed}.tsv"
    threads: threads_of("evaluate")
    resources:
        **resources_of("evaluate"),
    params:
        job=device_job(
            "extract_features.py",
            "evaluate",
            recipe=recipe_file,
            data=evaluation_data,
            protocol=protocol_words,
            partial=extraction_folder(trained),
        ),
    message:
        "Features {wildcards.features} of {wildcards.experiment}, seed {wildcards.seed}{params.job[sbatch]}"
    shell:
        "{params.job[start]} --recipe {params.job[recipe]:q} --seed {wildcards.seed} --data {params.job[data]:q}"
        " --encoder {input.encoder:q}{params.job[protocol]} --output {output:q} --job {params.job[partial]:q}"
        " {params.job[machine]} 2>&1 | {params.job[tee]} {log}"


use rule extract_features as extract_features_random_init with:
    input:
        data=dataset_extracted_from(untrained),
        encoder=RUN.random_init.weights,
    output:
        temp(directory(RUN.random_init.features("{features}"))),
    log:
        "logs/extract_features/{features}_{experiment}_seed{seed}_random_init.log",
    benchmark:
        "logs/benchmarks/extract_features/{features}_{experiment}_seed{seed}_random_init.tsv"
    params:
        job=device_job(
            "extract_features.py",
            "evaluate",
            recipe=recipe_file,
            data=evaluation_data,
            protocol=protocol_words,
            partial=extraction_folder(untrained),
        ),
    message:
        "Features {wildcards.features} of {wildcards.experiment} untrained, seed {wildcards.seed}{params.job[sbatch]}"


use rule extract_features as extract_features_boundary with:
    input:
        data=dataset_extracted_from(trained),
        encoder=RUN.encoder_at("{epoch}").weights,
    output:
        temp(directory(RUN.encoder_at("{epoch}").features("{features}"))),
    log:
        "logs/extract_features/{features}_{experiment}_seed{seed}_epoch_{epoch}.log",
    benchmark:
        "logs/benchmarks/extract_features/{features}_{experiment}_seed{seed}_epoch_{epoch}.tsv"
    message:
        "Features {wildcards.features} of {wildcards.experiment}, seed {wildcards.seed}, epoch {wildcards.epoch}"
        "{params.job[sbatch]}"


use rule linear_eval as evaluate with:
    input:
        data=dataset_evaluated_on(trained),
        encoder=encoder_evaluated(trained),
        features=features_evaluated(trained),
    output:
        metrics=RUN.encoder.evaluation("{evaluation}").metrics,
    log:
        "logs/evaluate/{evaluation}_{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/evaluate/{evaluation}_{experiment}_seed{seed}.tsv"
    params:
        job=device_job("evaluate.py", "evaluate", recipe=recipe_file, data=evaluation_data, protocol=protocol_words),
    message:
        "Evaluation {wildcards.evaluation} of {wildcards.experiment}, seed {wildcards.seed}{params.job[sbatch]}"


use rule linear_eval_random_init as evaluate_random_init with:
    input:
        data=dataset_evaluated_on(untrained),
        encoder=encoder_evaluated(untrained),
        features=features_evaluated(untrained),
    output:
        metrics=RUN.random_init.evaluation("{evaluation}").metrics,
    log:
        "logs/evaluate/{evaluation}_{experiment}_seed{seed}_random_init.log",
    benchmark:
        "logs/benchmarks/evaluate/{evaluation}_{experiment}_seed{seed}_random_init.tsv"
    params:
        job=device_job("evaluate.py", "evaluate", recipe=recipe_file, data=evaluation_data, protocol=protocol_words),
    message:
        "Evaluation {wildcards.evaluation} of {wildcards.experiment} untrained, seed {wildcards.seed}{params.job[sbatch]}"


# Accuracy over the training: evaluations of an earlier boundary's encoder.
use rule evaluate as evaluate_boundary with:
    output:
        metrics=RUN.encoder_at("{epoch}").evaluation("{evaluation}").metrics,
    log:
        "logs/evaluate/{evaluation}_{experiment}_seed{seed}_epoch_{epoch}.log",
    benchmark:
        "logs/benchmarks/evaluate/{evaluation}_{experiment}_seed{seed}_epoch_{epoch}.tsv"
    message:
        "Evaluation {wildcards.evaluation} of {wildcards.experiment}, seed {wildcards.seed}, epoch {wildcards.epoch}"
        "{params.job[sbatch]}"
