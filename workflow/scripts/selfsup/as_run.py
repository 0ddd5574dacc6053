"""What was run: config.yaml, and beside it what --configfile and --config have changed of it. Imports no torch.

Of each run that the workflow works at it leaves `results/<experiment>/seed<n>.json`: what was asked for, merged and
checked, and what config.yaml alone said then. A file for each run, so that calls with different files of settings hide
nothing of each other's.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfsup.atomic_files import write_atomically
from selfsup.config import Config, ConfigFile, Experiment, check_config, config_of
from selfsup.errors import UserError
from selfsup.grids import read_config_file
from selfsup.layout import LINEAR, RECORDS_OF_RUNS, RunPaths, seed_of
from selfsup.settings.typed import plain, with_numbers

# Keys of config.yaml that are compared as one; of the others, each name for itself.
WHOLE = ("data_dir", "cluster")
# Sections whose names refer to those of others; each stands behind the ones that it refers to.
SECTIONS = {
    "datasets": (),
    "evaluations": ("datasets",),
    "experiments": ("datasets", "evaluations"),
    "tables": ("experiments",),
}


@dataclass(frozen=True)
class Run:
    """One seed of an experiment, with the configuration that it was, or will be, run with."""

    config: Config
    experiment: Experiment
    seed: int


def record_what_runs(results: Path, config: Config, raw: Mapping, runs: set[tuple[str, int]]) -> None:
    """Write the records of `runs`, pairs of experiment and seed. config, raw: what is run, checked and as given."""
    alone = _of_config_yaml()
    for name, seed in sorted(runs):
        block = with_numbers(ConfigFile, raw)["experiments"][name]
        checked = {"data_dir": config.data_dir, "cluster": config.cluster, "datasets": config.datasets}
        merged = {**raw, **plain(checked)}
        content = {
            "written": datetime.now(UTC).isoformat(),
            "config": _part({**merged, "experiments": {name: block}}, name, block),
            "config_yaml": _part(alone, name, block),
        }
        path = RunPaths(results, name, seed).as_run
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def runs_known(config: Config, results: Path) -> Iterator[Run]:
    """Yield the runs of `config` and all others that were run, each with the configuration that it was run with."""
    ran = {}
    for path, record in _records(results):
        name, seed = path.parent.name, seed_of(path)
        own = check_config({**record["config"], "tables": {}})  # whose other experiments stand elsewhere
        ran[name, seed] = Run(own, own.experiments[name], seed)
    wanted = {(one.name, seed): Run(config, one, seed) for one in config.experiments.values() for seed in one.seeds}
    order = list(config.experiments)
    for key in sorted({**wanted, **ran}, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key)):
        yield ran.get(key) or wanted[key]


def config_as_run(given: str, results: Path) -> Config:
    """Return the configuration of a script's --config: content as JSON is taken as it is, a file as it was run."""
    if given.lstrip().startswith("{") or given.endswith(".json"):
        return config_of(given)
    now = read_config_file(Path(given))
    check_config(now)
    return check_config(as_run(now, results))


def as_run(now: Mapping, results: Path) -> dict[str, Any]:
    """Return the content of config.yaml, `now`, with what --configfile or --config changed of it.

    What was changed in config.yaml since then counts as it stands there. What was run and refers to a dataset
    or an experiment that is no longer known is left out.
    """
    here, records = _places(now), _records(results)
    merged = dict(here)
    for _, record in records:
        then = _places(record["config_yaml"])
        merged |= {key: value for key, value in _places(record["config"]).items() if here.get(key) == then.get(key)}
    for path, record in records:
        _add_seed(merged, record, path.parent.name, seed_of(path))
    content: dict[str, Any] = {key: {} for key in SECTIONS}
    for (section, *name), value in merged.items():
        if name:
            content[section][name[0]] = value
        else:
            content[section] = value
    for section, referred in SECTIONS.items():
        content[section] = {
            name: value
            for name, value in content[section].items()
            if (section, name) in here or all(_named(value, kind) <= content[kind].keys() for kind in referred)
        }
    if not content["evaluations"]:
        del content["evaluations"]
    extensions = [one for part in (now, *(record["config"] for _, record in records)) for one in _extensions(part)]
    return content | ({"extensions": list(dict.fromkeys(extensions))} if extensions else {})


def _extensions(content: Mapping) -> list[str]:
    """Return the files of Python that experiments may need; those that were run need theirs still."""
    return list(content.get("extensions") or [])


def _named(value: Any, kind: str) -> set[str]:
    """Return the names of a section that a table, an experiment or an evaluation has."""
    if isinstance(value, list):
        return set(value)
    if kind == "evaluations":
        return set(value.get("evaluations") or ()) - {LINEAR}
    return {value["dataset"]} if value.get("dataset") else set()


def _add_seed(merged: dict, record: Mapping, name: str, seed: int) -> None:
    """Note a seed that was run by the same settings as the experiment's others, but in another call."""
    block, ran = merged.get(("experiments", name)), record["config"]["experiments"][name]
    seeds = (block or {}).get("seeds", [0])
    if block and {**ran, "seeds": []} == {**block, "seeds": []} and seed not in seeds:
        merged[("experiments", name)] = {**block, "seeds": sorted([*seeds, seed])}


def _places(content: Mapping) -> dict[tuple[str, ...], Any]:
    """Return a configuration by place: ("data_dir",), or a section with a name in it, ("experiments", "digits")."""
    content = json.loads(json.dumps(content))  # as a record has it: keys are text
    named = {key: block for key, block in content.items() if key not in WHOLE and isinstance(block, dict)}
    places: dict[tuple[str, ...], Any] = {(key,): block for key, block in content.items() if key not in named}
    return places | {(section, name): block for section, names in named.items() for name, block in names.items()}


def _part(content: Mapping, name: str, block: Mapping) -> dict[str, Any]:
    """Return what concerns an experiment: itself, its datasets and evaluations, and the tables that it is in.

    block: its own, as it is run.
    """
    tables = {key: names for key, names in (content.get("tables") or {}).items() if name in names}
    parts = {key: content.get(key) or {} for key in ("datasets", "experiments", "evaluations")}
    evaluations = {key: one for key, one in parts["evaluations"].items() if key in _named(block, "evaluations")}
    datasets = {block["dataset"], *(one["dataset"] for one in evaluations.values() if one.get("dataset"))}
    return {
        **{key: content[key] for key in (*WHOLE, "extensions") if key in content},
        "datasets": {key: block for key, block in parts["datasets"].items() if key in datasets},
        "tables": tables,
        **({"evaluations": evaluations} if evaluations else {}),
        "experiments": {key: block for key, block in parts["experiments"].items() if key == name},
    }


def _of_config_yaml() -> Mapping:
    path = Path("config.yaml")
    content = read_config_file(path) if path.exists() else {}
    return content if isinstance(content, Mapping) else {}


def _records(results: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the readable records, the oldest first; one that cannot be used is told."""
    found = []
    for path in results.glob(RECORDS_OF_RUNS):
        try:
            record = json.loads(path.read_text())
            check_config({**record["config"], "tables": {}})
            found.append((path, {**record, "config_yaml": dict(record["config_yaml"])}))
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            print(f"warning: {path} is ignored, because it does not say what was run: {error}", file=sys.stderr)
    return sorted(found, key=lambda one: (one[1]["written"], one[0]))
