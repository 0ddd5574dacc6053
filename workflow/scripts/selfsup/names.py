"""Names of config.yaml: no two may stand for one file. Imports no torch."""

from collections.abc import Mapping

from selfsup.errors import UserError

# Names of folders and targets of the workflow's own.
RESERVED_NAMES = ("compute", "figures", "preflight", "plan", "report")
# What is written for each table, experiment and dataset, and without any: a folder stands for all within.
FILES = {
    "tables": (
        "results/{}.csv",
        "results/{}.md",
        "results/{}.tex",
        "results/report/{}.html",
        "results/figures/compare_{}.svg",
        "results/figures/compare_{}.png",
    ),
    "experiments": (
        "results/{}",
        "results/figures/{}.svg",
        "results/figures/{}.png",
        "results/figures/views_{}.png",
        "results/report/{}_recipe.html",
    ),
    "datasets": ("<data_dir>/{}",),
}
OWN_FILES = (
    "results/audit",
    "results/published",
    "results/compute.csv",
    "results/evaluations.csv",
    "results/preflight.txt",
    "results/report.html",
    "results/report/workflow.html",
    "<data_dir>/downloads",
)


def check_names(config: Mapping) -> None:
    """Raise UserError for a name that is the workflow's own, and for two whose files would be the same.

    Names that differ in case alone are two on one file system and one on the next, as on a Mac: refused on all.
    """
    taken = {file.casefold(): (file, "the workflow itself") for file in OWN_FILES}
    for kind, patterns in FILES.items():
        for name in config[kind]:
            owner = f"{kind}.{name}"
            if kind != "datasets" and str(name).casefold() in RESERVED_NAMES:
                raise UserError(f"config.yaml: {owner} has a reserved name; not free: {', '.join(RESERVED_NAMES)}")
            for file in (pattern.format(name) for pattern in patterns):
                other, first = taken.setdefault(file.casefold(), (file, owner))
                if first != owner:
                    case = "" if other == file else f" ({other}), where upper and lower case are one, as on a Mac"
                    raise UserError(
                        f"config.yaml: {owner} would write {file}, as {first} does{case}: rename one, and its "
                        "folder with it"
                    )
