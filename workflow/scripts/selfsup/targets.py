"""What a person may ask Snakemake for, and what was meant by a target that no rule makes. Imports no torch."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from selfsup.config import Config, Experiment
from selfsup.errors import UserError
from selfsup.layout import LINEAR, RESULTS, RunPaths
from selfsup.protocols import Evaluation, linear_evaluation

WILDCARD = re.compile(r"\{(\w+)(?:,[^{}]*)?\}")  # {seed}, or {seed,\d+} as Snakemake keeps it with its constraint


def unknown_target(target: str, patterns: Iterable[str], config: Config) -> str:
    """Return a line for a target that no rule makes: the nearest one, or what there is.

    patterns: names of rules that are targets, and the files of all rules, with their wildcards.
    """
    meant = {known: known for known in _filled(patterns, config)}
    runs = [RunPaths(RESULTS, one.name, one.seeds[0]) for one in config.experiments.values()]
    meant |= {name: str(run.encoder.evaluation().metrics) for name, run in zip(config.experiments, runs, strict=True)}
    meant |= {name: f"results/{name}.csv" for name in config.tables}
    near = difflib.get_close_matches(target, meant, n=1)
    tables = ", ".join(f"results/{name}.csv" for name in config.tables)
    advice = f"did you mean {meant[near[0]]}?" if near else f"there are {tables}, preflight, plan and report"
    return f"no rule makes {target}; {advice}"


def experiment_asked_for(config: Config, name: str, seed: str | None) -> Experiment:
    """Return an experiment. Raises UserError for a seed that config.yaml does not list: nothing would ever show it.

    seed: as it stands in a file's name; None where the name has none.
    """
    experiment = config.experiments[name]
    if seed is None or seed in map(str, experiment.seeds):
        return experiment
    known = int(seed) in experiment.seeds
    raise UserError(
        f"experiment {name} has no seed {seed}: experiments.{name}.seeds in config.yaml is {experiment.seeds}; "
        f"{f'ask for seed{int(seed)}' if known else 'to run it too, add it there'}"
    )


def evaluation_asked_for(config: Config, experiment: Experiment, name: str) -> Evaluation:
    """Return an evaluation of an experiment. Raises UserError for one that the experiment does not list."""
    if name in experiment.evaluations:
        return experiment.evaluations[name]
    if name == LINEAR:
        return linear_evaluation(experiment.recipe, experiment.dataset)
    raise UserError(
        f"experiment {experiment.name} has no evaluation {name}: experiments.{experiment.name}.evaluations in "
        f"config.yaml is {list(experiment.evaluations)}; to have it too, add it there"
    )


def evaluation_with_features(experiment: Experiment, name: str) -> Evaluation:
    """Return an experiment's first evaluation that looks at the features of this name. Raises UserError for none."""
    known = _features(experiment)
    if name in known:
        return known[name]
    raise UserError(
        f"no evaluation of experiment {experiment.name} looks at features {name}; there are "
        f"{', '.join(known) or 'none'}"
    )


def _features(experiment: Experiment) -> Mapping[str, Evaluation]:
    """Return the evaluations that look at features, by the names of these; of several the first."""
    named = {one.features(experiment.recipe): one for one in reversed(experiment.evaluations.values())}
    return {name: one for name, one in named.items() if name is not None}


def _filled(patterns: Iterable[str], config: Config) -> Iterator[str]:
    """Yield the patterns, their wildcards replaced by each of the values that config.yaml has for them."""
    values = _values(config)
    for pattern in patterns:
        names = list(dict.fromkeys(WILDCARD.findall(pattern)))
        for chosen in product(*(values.get(name, []) for name in names)):
            one = dict(zip(names, chosen, strict=True))
            yield WILDCARD.sub(lambda found, one=one: one[found.group(1)], pattern)


def _values(config: Config) -> Mapping[str, list[str]]:
    experiments = config.experiments.values()
    return {
        "experiment": list(config.experiments),
        "dataset": list(config.datasets),
        "table": list(config.tables),
        "evaluation": sorted({name for one in experiments for name in one.evaluations}),
        "features": sorted({name for one in experiments for name in _features(one)}),
        "seed": sorted({str(seed) for one in experiments for seed in one.seeds}),
        "epoch": sorted({f"{one.recipe['epochs']:04d}" for one in experiments}),
    }
