# Datasets: download where the source has one, then pack into few large files.


localrules:
    download_cifar10,


rule download_cifar10:
    output:
        CIFAR10_ARCHIVE,
    log:
        "logs/download_cifar10.log",
    benchmark:
        "logs/benchmarks/download_cifar10.tsv"
    params:
        # Tracked, as ever: another text would download again.
        python=shlex.quote(sys.executable),
        script=shlex.quote(str(SCRIPTS / "prepare_dataset.py")),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "Download CIFAR-10 (170 MB)"
    shell:
        "{params.python} {params.script} --source cifar10 --download-only --output {params.folder:q} 2>&1 | tee -i {log}"


rule prepare_dataset:
    input:
        image_source,
    output:
        f"{CONFIG.data_dir}/{{dataset}}/store.json",
    log:
        "logs/prepare_dataset/{dataset}.log",
    benchmark:
        "logs/benchmarks/prepare_dataset/{dataset}.tsv"
    threads: packing_threads
    resources:
        **jobs.single(CONFIG.cluster, minutes=600),
        cpus_per_task=packing_threads,  # as many as the threads, which a plan caps by its own cores
    params:
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("prepare_dataset.py"),
        source=lambda wildcards: CONFIG.datasets[wildcards.dataset]["source"],
        resize=lambda wildcards: CONFIG.datasets[wildcards.dataset].get("resize"),
        path=source_path,
        packing=packing_arguments,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        sbatch=sbatch_text,
    message:
        "Pack the dataset {wildcards.dataset}{params.sbatch}"
    shell:
        "{params.python} {params.script} --source {params.source} {params.path} --output {params.folder:q}"
        " {params.packing} --cpus {threads} 2>&1 | tee -i {log}"
