"""Print a recipe with the source of each value, or the differences of two.

    python workflow/scripts/explain.py                           # the names of all recipes
    python workflow/scripts/explain.py cifar10
    python workflow/scripts/explain.py cifar10 --meanings        # and what each key means
    python workflow/scripts/explain.py cifar10 cifar10_authors
    python workflow/scripts/explain.py cifar10 --overrides '{epochs: 100}'
    python workflow/scripts/explain.py --experiment digits       # an experiment of config.yaml: its own keys, then the
                                                                 # recipe with its overrides

Reads workflow/recipes; with --experiment, --config. Numbers among the sources are sections of the report. Warns if
overrides change a value but not those that belong to it, such as epochs without the learning rate.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from selfsup.config import Block, with_network
from selfsup.errors import UserError, run_script
from selfsup.grids import read_config_file
from selfsup.recipe import load_recipe, recipe_names
from selfsup.reports.explain import difference_table, differing, explained, explained_block, table, warnings
from selfsup.settings.extensions import load_extensions
from selfsup.settings.typed import read, suggest
from selfsup.settings.yaml_reader import parse_yaml


def main() -> None:
    arguments = parse_arguments()
    names, overrides, overrides_from = arguments.recipes, mapping(arguments.overrides), "--overrides"
    if arguments.experiment:
        block = experiment(arguments.config, arguments.experiment)
        if len(names) == 0:
            own = explained_block(block, arguments.experiment)
            print(table(own, meanings=arguments.meanings))
        names, overrides = [block["recipe"], *names], overrides_of(block, arguments.experiment)
        overrides_from = f"{arguments.config}: {arguments.experiment}.overrides"
    if not names:
        print("\n".join(recipe_names()))
        return
    here = explained(names[0], overrides, overrides_from=overrides_from)
    if len(names) == 1:
        print(table(here, meanings=arguments.meanings), end="")
    else:
        lines = differing(here, explained(names[1]))
        print(difference_table(names[0], names[1], lines) if lines else "no difference\n", end="")
    for warning in warnings(load_recipe(names[0]), load_recipe(names[0], overrides)):
        print(f"warning: {warning}")


def mapping(text: str) -> Mapping:
    value = parse_yaml(text, "--overrides")
    if not isinstance(value, Mapping):
        raise UserError(f"--overrides is {text!r}, wanted recipe keys, for example '{{epochs: 100}}'")
    return value


def experiment(config: Path, name: str) -> Mapping:
    content = read_config_file(config)
    load_extensions(content.get("extensions") or [] if isinstance(content, Mapping) else [])
    experiments = content.get("experiments") if isinstance(content, Mapping) else None
    experiments = experiments if isinstance(experiments, Mapping) else {}
    if name not in experiments:
        raise UserError(f"{config} has no experiment {name!r}{suggest(name, list(map(str, experiments)))}")
    block = experiments[name]
    if not isinstance(block, Mapping) or not isinstance(block.get("recipe"), str):
        raise UserError(f"{config}: experiments.{name} names no recipe, wanted for example recipe: cifar10")
    return block


def overrides_of(block: Mapping, name: str) -> Mapping:
    """Return an experiment's overrides, with the network of weights that others have published."""
    known = read(Block, block, f"experiments.{name}")
    return with_network(known.published, known.overrides) if known.published else known.overrides


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="recipe", help="one, or two to compare")
    parser.add_argument("--overrides", default="{}", help="recipe keys to change in the first recipe, as YAML")
    parser.add_argument("--meanings", action="store_true", help="below each value, print what its key means")
    parser.add_argument(
        "--experiment", help="take the first recipe and its overrides from this experiment of config.yaml"
    )
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default config.yaml")
    arguments = parser.parse_args()
    if len(arguments.recipes) > (1 if arguments.experiment else 2):
        parser.error("wanted at most two recipes, an experiment's included")
    return arguments


if __name__ == "__main__":
    run_script(main)
