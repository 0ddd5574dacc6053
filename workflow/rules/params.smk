# The parameters of jobs. Snakemake tracks those that depend on wildcards only: a changed value runs the job again.

import shlex
from functools import cache


@cache
def recipe_of_experiment(name):
    return told_file("recipe", commands.told_recipe(CONFIG, name))


def recipe_file(wildcards, input):
    return recipe_of_experiment(wildcards.experiment)


def data_folder(wildcards, input):
    return str(data_of(CONFIG.data_dir, experiment_of(wildcards).dataset))


def evaluation_data(wildcards, input):
    return str(data_of(CONFIG.data_dir, evaluation_of(wildcards).dataset))


def embedded_folder(wildcards, input):
    return str(data_of(CONFIG.data_dir, wildcards.dataset))


def extension_words(wildcards, input):
    return commands.words({"--extension": [str(Path(one).resolve()) for one in CONFIG.extensions]})


def nothing_told(wildcards, input):
    return ""


def protocol_words(wildcards, input):
    """The options that an evaluation has in addition to those of the linear one."""
    told = told_file("evaluation", evaluation_of(wildcards).told())
    return f" {commands.words({'--protocol': told, '--features': list(input.get('features', []))})}"


def extraction_folder(encoder):
    """Return a function of wildcards and input: the folder of the job that makes features."""
    return lambda wildcards, input: str(encoder(wildcards).extraction(wildcards.features).folder)


def whole_config(wildcards, input):
    return told_file("config", config)


def config_of_experiment(wildcards, input):
    return told_file("config", parts.config_of_experiment(config, wildcards.experiment))


def config_of_table(wildcards, input):
    return told_file("config", parts.config_of_table(config, wildcards.table))


def dataset_block(wildcards):
    return CONFIG.datasets[wildcards.dataset]


def source_of(wildcards):
    return commands.source_words(dataset_block(wildcards))


def resize_of(wildcards):
    return dataset_block(wildcards).get("resize")


def path_words(wildcards, input):
    path = dataset_block(wildcards).get("path")
    if not path and input:
        path = os.path.dirname(input[0]) if os.path.basename(input[0]) == "downloaded.txt" else input[0]
    return commands.words({"--path": path})


def packing_words(wildcards, input):
    block = dataset_block(wildcards)
    extensions = commands.words({"--extension": CONFIG.extensions if block["source"] in SOURCES.added else None})
    return f"{extensions} {commands.packing_words(block)}".strip()


def packing_threads(wildcards):
    return commands.packing_threads(CONFIG, wildcards.dataset)


def weights_of(wildcards):
    return canonical(pretraining_part(experiment_of(wildcards).recipe))


def revision_of(wildcards):
    return experiment_of(wildcards).revision


def segment_words(wildcards, input):
    known = {"--until-epoch": int(wildcards.epoch), "--previous": boundary_before(wildcards)}
    trackers = experiment_of(wildcards).compute.all_trackers
    return commands.words({**known, "--knn": run_of(wildcards).knn, "--tracker": trackers})


def run_words(wildcards, input):
    return commands.words({"--run": run_of(wildcards).folder, "--until-epoch": int(wildcards.epoch)})


def recipe_name(wildcards, input):
    return experiment_of(wildcards).recipe_name


def gate_words(wildcards, input):
    return commands.gate_words(experiment_of(wildcards))


def exported_checkpoint(wildcards, input):
    path = run_of(wildcards).pretrain.checkpoint(epoch_exported(wildcards))
    return commands.words({"--checkpoint": path})


def model_of(wildcards):
    return canonical(experiment_of(wildcards).recipe["model"])


def published_path(wildcards):
    return CONFIG.published[wildcards.experiment]["path"]


def publisher_of(wildcards):
    return commands.publisher_words(CONFIG.published[wildcards.experiment])


def packed_datasets(wildcards, input):
    folders = [data_of(CONFIG.data_dir, name) for name in CONFIG.datasets]
    return " ".join(commands.words({"--data": folder}) for folder in folders if store_in(folder).exists())


def number_of_ranks(wildcards, input):
    return jobs.tasks(experiment_of(wildcards).compute["pretrain"])


def all_epochs(wildcards, input):
    return experiment_of(wildcards).recipe["epochs"]


def rolling_checkpoints(wildcards, input):
    return str(probe_of(RESULTS, wildcards.experiment).partial)


def experiments_of_table(wildcards, input):
    return " ".join(map(shlex.quote, CONFIG.tables[wildcards.table]))


def shown_in_report(wildcards, input):
    tables, experiments = parts.shown_in_report(CONFIG)
    return commands.words({"--table": tables}) + " " + commands.words({"--experiment": experiments})


def rows_of_table(wildcards):
    return parts.rows_of_table(CONFIG, wildcards.table)


def number_of_inputs(wildcards, input):
    return len(input)
