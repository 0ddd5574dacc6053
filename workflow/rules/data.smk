# Datasets: download the images if the source has a download, then pack them into a few large files.

import shlex


localrules:
    download_cifar10,
    download_images,


rule download_cifar10:
    output:
        CIFAR10_ARCHIVE,
    log:
        "logs/download_cifar10.log",
    benchmark:
        "logs/benchmarks/download_cifar10.tsv"
    params:
        # Tracked, as they always were: without them, older downloads would be made again.
        python=shlex.quote(sys.executable),
        script=shlex.quote(str(SCRIPTS / "prepare_dataset.py")),
        job=local_job("prepare_dataset.py"),
    message:
        "Download CIFAR-10 (170 MB)"
    shell:
        "{params.python} {params.script} --source cifar10 --download-only --output {params.job[folder]:q} 2>&1"
        " | tee -i {log}"


rule download_images:
    output:
        DOWNLOADED,
    log:
        "logs/download_images/{source}.log",
    benchmark:
        "logs/benchmarks/download_images/{source}.tsv"
    params:
        job=local_job("prepare_dataset.py"),
    message:
        "Download the images of {wildcards.source}"
    shell:
        "{params.job[start]} --source {wildcards.source} --download-only --output {params.job[folder]:q} 2>&1"
        " | tee -i {log}"


rule prepare_dataset:
    input:
        image_source,
    output:
        store_in(data_of(CONFIG.data_dir, "{dataset}")),
    log:
        "logs/prepare_dataset/{dataset}.log",
    benchmark:
        "logs/benchmarks/prepare_dataset/{dataset}.tsv"
    threads: packing_threads
    resources:
        **jobs.single(CONFIG.cluster, minutes=600),
        cpus_per_task=packing_threads,  # as many as the threads, which Snakemake limits to its own cores in a plan
    params:
        source=source_of,
        resize=resize_of,
        job=queued_job("prepare_dataset.py", path=path_words, packing=packing_words),
    message:
        "Pack the dataset {wildcards.dataset}{params.job[sbatch]}"
    shell:
        "{params.job[start]} --source {params.source} {params.job[path]} --output {params.job[folder]:q}"
        " {params.job[packing]} --cpus {threads} 2>&1 | tee -i {log}"
