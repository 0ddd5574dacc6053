# Encoders: exported from a run's last boundary, at random initialisation, or published by others.


rule export_encoder:
    input:
        boundary_exported,
    output:
        weights=RUN.encoder.weights,
        card=RUN.encoder.card,
    log:
        "logs/export_encoder/{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/export_encoder/{experiment}_seed{seed}.tsv"
    threads: 1
    resources:
        **jobs.single(CONFIG.cluster, minutes=20),
    params:
        weights=weights_of,
        source=exported_checkpoint,
        job=queued_job("export_encoder.py", recipe=recipe_file),
    message:
        "Export the encoder of {wildcards.experiment}, seed {wildcards.seed}{params.job[sbatch]}"
    shell:
        "{params.job[start]} --recipe {params.job[recipe]:q} --seed {wildcards.seed} {params.source}"
        " --output {output.weights:q} 2>&1 | tee -i {log}"


use rule export_encoder as export_random_init with:
    input:
        nothing,
    output:
        weights=RUN.random_init.weights,
        card=RUN.random_init.card,
    log:
        "logs/export_encoder/{experiment}_seed{seed}_random_init.log",
    benchmark:
        "logs/benchmarks/export_encoder/{experiment}_seed{seed}_random_init.tsv"
    params:
        weights=model_of,
        source="--random-init",
        job=queued_job("export_encoder.py", recipe=recipe_file),
    message:
        "Export the untrained encoder of {wildcards.experiment}, seed {wildcards.seed}{params.job[sbatch]}"


# The encoder of an earlier boundary, for evaluations at every boundary.
use rule export_encoder as export_boundary with:
    output:
        weights=RUN.encoder_at("{epoch}").weights,
        card=RUN.encoder_at("{epoch}").card,
    log:
        "logs/export_encoder/{experiment}_seed{seed}_epoch_{epoch}.log",
    benchmark:
        "logs/benchmarks/export_encoder/{experiment}_seed{seed}_epoch_{epoch}.tsv"
    message:
        "Export the encoder of {wildcards.experiment}, seed {wildcards.seed}, epoch {wildcards.epoch}{params.job[sbatch]}"


# Weights that others have published and that config.yaml names. Nothing is pretrained.
ruleorder: import_encoder > export_encoder


rule import_encoder:
    input:
        published_file,
    output:
        weights=RUN.encoder.weights,
        card=RUN.encoder.card,
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
        model=model_of,
        publisher=publisher_of,
        path=published_path,
        job=queued_job("import_encoder.py", recipe=recipe_file),
    message:
        "Import the published encoder of {wildcards.experiment}{params.job[sbatch]}"
    shell:
        "{params.job[start]} --publisher {params.publisher} --weights {input:q} --recipe {params.job[recipe]:q}"
        " --output {output.weights:q} 2>&1 | tee -i {log}"


# What an encoder finds alike: features, nearest neighbours and a map of a dataset's pictures.
rule embed:
    input:
        data=dataset_embedded,
        encoder=encoder_embedding,
    output:
        page=RUN.encoder.embedded("{dataset}").map_page,
        features=RUN.encoder.embedded("{dataset}").features,
        neighbours=RUN.encoder.embedded("{dataset}").neighbours,
        picture=RUN.encoder.embedded("{dataset}").map_picture,
    log:
        "logs/embed/{dataset}_{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/embed/{dataset}_{experiment}_seed{seed}.tsv"
    threads: threads_of("evaluate")
    resources:
        **jobs.single(CONFIG.cluster, minutes=60),
    params:
        job=queued_job("embed.py", data=embedded_folder, extensions=extension_words),
    message:
        "Embed the pictures of {wildcards.dataset} with the encoder of {wildcards.experiment}, seed {wildcards.seed}"
        "{params.job[sbatch]}"
    shell:
        "{params.job[start]} --encoder {input.encoder:q} --data {params.job[data]:q} {params.job[extensions]}"
        " --output {params.job[folder]:q} 2>&1 | tee -i {log}"
