# The inputs of results: of evaluations, tables, figures and the report.

from selfsup.config import labels_problem
from selfsup.evaluation import record

TO_BE_FORGOTTEN = set()  # folders of evaluations that were named, once this call begins to work


def trained(wildcards):
    return run_of(wildcards).encoder


def untrained(wildcards):
    return run_of(wildcards).random_init


@ends_on_error
def evaluation_finished(wildcards, encoder):
    """Whether an evaluation's record says that it was made from what is there now. One made from something else is
    forced; one that was named is made again."""
    experiment, run, paths = experiment_of(wildcards), run_of(wildcards), encoder.evaluation()
    state = finished.evaluation(CONFIG, experiment, run, encoder, int(wildcards.seed), adopt=writing())
    maker = "linear_eval_random_init" if encoder.untrained else "linear_eval"
    if not workflow.remote_exec and is_named(str(paths.metrics), maker):
        TO_BE_FORGOTTEN.add(paths.folder)
        return False
    if state.outdated:
        workflow.dag.forcefiles.add(str(paths.metrics))
    return state.finished


def dataset_evaluated_on(encoder):
    """Return a function of wildcards: the dataset of an evaluation, where no other job is at work on that."""

    def dataset(wildcards):
        if problem := labels_problem(CONFIG, experiment_of(wildcards).dataset):
            give_up(problem)
        refuse_if_busy(encoder(wildcards).evaluation().folder)
        return settled(dataset_of(wildcards), evaluation_finished(wildcards, encoder(wildcards)))

    return dataset


def encoder_evaluated(encoder):
    def weights(wildcards):
        return settled(encoder(wildcards).weights, evaluation_finished(wildcards, encoder(wildcards)))

    return weights


@ends_on_error
def metrics_of_table(wildcards):
    metrics = parts.metrics_of_table(CONFIG, wildcards.table)
    made_together(parts.files_of_table(wildcards.table), metrics)
    return list(map(str, metrics))


@ends_on_error
def metrics_of_experiment(wildcards):
    return list(map(str, parts.metrics_of_experiment(CONFIG, wildcards.experiment)))


def metrics_of_curves(wildcards):
    made_together(parts.curves_of(wildcards.experiment))
    return metrics_of_experiment(wildcards)


def existing_ledgers(wildcards):
    return list(map(str, parts.ledgers(CONFIG)))


@ends_on_error
def parts_of_report(wildcards):
    return list(map(str, parts.parts_of_report(CONFIG)))
