# The inputs of results: of evaluations, tables, figures and the report.

from selfsup.config import labels_problem
from selfsup.evaluation import record

TO_BE_FORGOTTEN = set()  # evaluations that the user named, whose folders go when this call begins to work


def trained(wildcards):
    return encoder_of(wildcards)


def untrained(wildcards):
    return run_of(wildcards).random_init


@ends_on_error
def evaluation_of(wildcards):
    """The evaluation of a job: the recipe's linear one unless a wildcard names another. For a job that makes features,
    it is the first evaluation that uses them."""
    experiment, name = experiment_of(wildcards), getattr(wildcards, "evaluation", LINEAR)
    if hasattr(wildcards, "features"):
        return evaluation_with_features(experiment, wildcards.features)
    return evaluation_asked_for(CONFIG, experiment, name)


@ends_on_error
def evaluation_finished(wildcards, encoder):
    """Whether an evaluation's record says that it was made from what is there now. An evaluation that was made from
    something else is forced, and one that the user named is made again."""
    experiment, run, evaluation = experiment_of(wildcards), run_of(wildcards), evaluation_of(wildcards)
    paths = encoder.evaluation(evaluation.name)
    state = finished.evaluation(CONFIG, experiment, run, encoder, evaluation, int(wildcards.seed), adopt=writing())
    kind = "_random_init" if encoder.untrained else "" if encoder.boundary is None else "_boundary"
    maker = ("linear_eval" if evaluation.name == LINEAR else "evaluate") + kind
    if not workflow.remote_exec and is_named(str(paths.metrics), maker):
        TO_BE_FORGOTTEN.add(paths.folder)
        return False
    if state.outdated:
        workflow.dag.forcefiles.add(str(paths.metrics))
    return state.finished


def dataset_evaluated_on(encoder):
    """Return a function of wildcards: the dataset of an evaluation. It stops if another job works on that one."""

    def dataset(wildcards):
        evaluation = evaluation_of(wildcards)
        if problem := labels_problem(CONFIG, evaluation.dataset):
            give_up(problem)
        refuse_if_busy(encoder(wildcards).evaluation(evaluation.name).folder)
        store = store_in(data_of(CONFIG.data_dir, evaluation.dataset))
        return settled(store, evaluation_finished(wildcards, encoder(wildcards)))

    return dataset


def encoder_evaluated(encoder):
    def weights(wildcards):
        return settled(encoder(wildcards).weights, evaluation_finished(wildcards, encoder(wildcards)))

    return weights


def metrics_over_training(name):
    """For the evaluations that an experiment wants at every boundary: their metrics of the earlier boundaries."""
    experiment, asked = CONFIG.experiments[name], parts.evaluations_over_training(CONFIG, name)
    return [
        run.encoder_at(epoch).evaluation(one).metrics
        for run in (parts.runs_of(CONFIG, name) if asked else [])
        for epoch in finished.boundaries_before_the_last(experiment, run)
        for one in asked
    ]


def features_evaluated(encoder):
    """Return a function of wildcards: the features that an evaluation uses, if it uses any. Once it is finished they
    may be deleted, and are not asked for any more."""

    def features(wildcards):
        name = evaluation_of(wildcards).features(experiment_of(wildcards).recipe)
        if name is None:
            return []
        return settled(encoder(wildcards).features(name), evaluation_finished(wildcards, encoder(wildcards)))

    return features


def dataset_extracted_from(encoder):
    """Return a function of wildcards: the dataset whose features are made. It stops if another job works on them."""

    def dataset(wildcards):
        refuse_if_busy(encoder(wildcards).extraction(wildcards.features).folder)
        return settled(store_in(data_of(CONFIG.data_dir, evaluation_of(wildcards).dataset)), False)

    return dataset


@ends_on_error
def metrics_of_table(wildcards):
    metrics = parts.metrics_of_table(CONFIG, wildcards.table)
    made_together(parts.files_of_table(wildcards.table), metrics)
    over_training = [one for name in CONFIG.tables[wildcards.table] for one in metrics_over_training(name)]
    return list(map(str, [*metrics, *over_training]))


@ends_on_error
def metrics_of_experiment(wildcards):
    metrics = parts.metrics_of_experiment(CONFIG, wildcards.experiment)
    return list(map(str, [*metrics, *metrics_over_training(wildcards.experiment)]))


def metrics_of_curves(wildcards):
    made_together(parts.curves_of(wildcards.experiment))
    return metrics_of_experiment(wildcards)


def metrics_to_come():
    """Metrics that this call will make. Whatever is made from all metrics waits for them."""
    return parts.metrics_asked_for(CONFIG, workflow.dag_settings.targets)


@ends_on_error
def existing_ledgers(wildcards):
    return list(map(str, [*parts.ledgers(CONFIG), *metrics_to_come()]))


@ends_on_error
def finished_metrics(wildcards):
    return list(map(str, dict.fromkeys([*parts.finished_metrics(CONFIG), *metrics_to_come()])))


@ends_on_error
def tables_to_come(wildcards):
    """The tables that have this experiment and that this call will make: its verdict is read from them."""
    tables = parts.tables_asked_for(CONFIG, workflow.dag_settings.targets)
    return [str(parts.files_of_table(one)[0]) for one in tables if wildcards.experiment in CONFIG.tables[one]]


@ends_on_error
def verdict_so_far(wildcards):
    """The verdict that a model card states. If the verdict changes, the card is made again."""
    return parts.verdict(CONFIG, run_of(wildcards).encoder.card)


@ends_on_error
def parts_of_landing_page(wildcards):
    return list(map(str, parts.parts_of_landing_page(CONFIG)))


@ends_on_error
def parts_of_report(wildcards):
    return list(map(str, parts.parts_of_report(CONFIG)))
