"""Curves of an experiment's runs: a panel per quantity, a line per seed, segments marked. Needs no torch."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfsup.csv_cells import text_of
from selfsup.errors import UserError
from selfsup.layout import EvaluationPaths, RunFolder
from selfsup.tables.frames import frame_of_numbers, read_metrics
from selfsup.training import sinks

PANELS = {  # column of history.csv or knn.csv: title with unit
    "loss": "loss",
    "lr": "learning rate",
    "tau": "momentum of the average, tau",
    "images_per_s": "images / s",
    "data_wait": "share of time waiting for data",
    "feature_spread": "feature spread (0: collapsed, 1: even)",
    "projection_spread": "projection spread (0: collapsed, 1: even)",
    "alignment": "alignment of views (0: identical)",
    "cosine": "cosine of online and target",
    "effective_rank": "effective rank of features (RankMe)",
    "uniformity": "uniformity (0: collapsed)",
    "knn_top1": "k-NN accuracy, training images (%)",
}
FROM_ZERO = (
    "loss",
    "images_per_s",
    "data_wait",
    "feature_spread",
    "projection_spread",
    "alignment",
)  # their distance from 0 counts
NOT_CURVES = (*sinks.NOT_CURVES, "skipped")
LINEAR = "linear accuracy, test images (%)"
UNTRAINED = "untrained"
REFERENCE_LINES = (":", "--", "-.")
COLUMNS, LEGEND_COLUMNS = 4, 5
SIZE_INCHES = (3.2, 2.2)  # of a panel: 4 x 3 of them have the shape of a screen
MARGIN_INCHES = 0.6  # for the title and the legend
WAITING_IS_NEWS = 0.1  # the share of time waiting for data, from which on it gets a panel


@dataclass(frozen=True)
class RunCurves:
    """What one seed has left. history, knn, linear: frames, empty where there is none; boundaries: epochs.

    over_training: of each evaluation that was asked for at every boundary, a frame of epoch and figure. references:
    linear accuracies to compare with, by their names. experiment: named where several are compared. steps: of an epoch,
    where the dataset tells.
    """

    seed: int
    history: pd.DataFrame
    knn: pd.DataFrame
    linear: pd.DataFrame
    boundaries: list[int]
    over_training: dict[str, pd.DataFrame] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)
    experiment: str = ""
    steps: float | None = None

    @property
    def label(self) -> str:
        """What the run is called in a legend."""
        return ", ".join(filter(None, [self.experiment, f"seed {self.seed}"]))

    @property
    def begun(self) -> bool:
        """Whether there is anything to draw."""
        return any(map(len, (self.history, self.knn, self.linear)))

    def has(self, name: str) -> bool:
        """Whether a column has been measured at all: figures of health are empty until the first milestone."""
        if name == "data_wait" and name in self.history and self.history[name].max() < WAITING_IS_NEWS:
            return False
        return any(name in frame and frame[name].notna().any() for frame in (self.history, self.knn))

    def steps_per_epoch(self) -> int | None:
        """Return what the run's own rows tell, or None in its first epoch; a step of a later one bounds it closely."""
        rows = self.history[self.history["epoch"] >= 1] if len(self.history) else self.history
        return int((rows["step"] // rows["epoch"]).min()) if len(rows) else None


def read_run(run: Path, seed: int, boundaries: list[int]) -> RunCurves:
    """Read the CSVs in a run's folder; runs that are still going on included."""
    paths = RunFolder(run)
    files = {"history": paths.pretrain.history, "knn": paths.knn, "linear": paths.encoder.evaluation().history}
    frames = {name: _read(path) for name, path in files.items()}
    untrained = _metrics(paths.random_init.evaluation())
    references = {UNTRAINED: float(untrained["top1"].iloc[0])} if len(untrained) else {}
    over_training = _over_training(paths, boundaries)
    return RunCurves(seed=seed, boundaries=boundaries, over_training=over_training, references=references, **frames)


def _over_training(run: RunFolder, boundaries: list[int]) -> dict[str, pd.DataFrame]:
    """Return the accuracies of a run's boundaries by evaluation, the end's included."""
    encoders = [(encoder.boundary, encoder) for encoder in run.encoders_at_boundaries()]
    names = {one.folder.name for _, encoder in encoders for one in encoder.evaluations()}
    encoders += [(boundaries[-1], run.encoder)] if boundaries else []
    found = {}
    for name in sorted(names):
        metrics = [(epoch, _metrics(encoder.evaluation(name))) for epoch, encoder in encoders]
        figure = (
            "figure" if all("figure" in frame for _, frame in metrics if len(frame)) else "top1"
        )  # older: that alone
        rows = [{"epoch": epoch, "figure": frame[figure].iloc[0]} for epoch, frame in metrics if len(frame)]
        found[name] = pd.DataFrame(rows).sort_values("epoch")
    return found


def draw_curves(title: str, runs: list[RunCurves], steps_per_epoch: float | None) -> Figure:
    """Return the figure, as wide as a screen; a panel for each quantity that some run has, accuracies first.

    The horizontal axis is epochs. steps_per_epoch: None where the dataset does not tell; then the runs do, and in their
    first epoch the axis is steps. Raises UserError where there is no panel.
    """
    told = [steps for run in runs if (steps := run.steps_per_epoch()) is not None]
    steps_per_epoch = steps_per_epoch or min([*told, *(run.steps for run in runs if run.steps)], default=None)
    drawings = [*_accuracies(runs), *_quantities(runs, steps_per_epoch)]
    if not drawings:
        raise UserError(_nothing_to_draw(title, [run.experiment for run in runs]))
    columns = min(COLUMNS, len(drawings))
    rows = -(-len(drawings) // columns)
    size = (max(columns, 2) * SIZE_INCHES[0], rows * SIZE_INCHES[1] + MARGIN_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, draw in zip(axes, drawings, strict=False):
        draw(axis)
    for axis in axes[len(drawings) :]:
        axis.remove()
    _add_legend(figure)
    return figure


def _nothing_to_draw(title: str, experiments: list[str]) -> str:
    names, without = list(dict.fromkeys(experiments)), "none has a linear evaluation or one at its boundaries"
    if len(names) == 1:
        return f"{title}: nothing to draw: no quantity is measured yet, and {without}: draw it later"
    return (
        f"{', '.join(names)}: nothing in common to draw: no quantity is measured by two of them, and {without}: draw "
        "each alone, or evaluate one"
    )


def _accuracies(runs: list[RunCurves]) -> Iterator[Callable[[Axes], None]]:
    """Yield what draws a panel: of the linear evaluation, and of evaluations at every boundary."""

    def draw_linear(axis: Axes) -> None:
        for run in filter(lambda run: len(run.linear), runs):
            axis.plot(run.linear["epoch"], run.linear["top1"], label=run.label, linewidth=1, color=_color(runs, run))
        for number, (name, figure) in enumerate(_references(runs).items()):
            axis.axhline(figure, color="0.45", linewidth=1, linestyle=REFERENCE_LINES[number % 3], label=name)
        _finish(axis, LINEAR, [], "epoch of the linear evaluation")

    def draw_grown(axis: Axes, name: str) -> None:
        for run in filter(lambda run: name in run.over_training, runs):
            line = {"label": run.label, "linewidth": 1, "marker": ".", "color": _color(runs, run)}
            axis.plot(run.over_training[name]["epoch"], run.over_training[name]["figure"], **line)
        _finish(axis, f"{name}, test images (%)", runs, "epoch of pretraining")
        axis.set_xlim(left=0)

    if any(len(run.linear) for run in runs):
        yield draw_linear
    for name in sorted({name for run in runs for name in run.over_training}):
        yield partial(draw_grown, name=name)


def _references(runs: list[RunCurves]) -> dict[str, float]:
    """Return what the linear accuracies are held against; of several runs' untrained encoders, the mean."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, figure in run.references.items():
            found.setdefault(name, []).append(figure)
    return {name + (", mean" if len({*all_of}) > 1 else ""): mean(all_of) for name, all_of in found.items()}


def _quantities(runs: list[RunCurves], steps_per_epoch: float | None) -> Iterator[Callable[[Axes], None]]:
    """Yield what draws a panel: of each column that some run has measured."""
    along = "epoch of pretraining" if steps_per_epoch else "step of pretraining"

    def draw(axis: Axes, name: str) -> None:
        for run in runs:
            _draw(axis, run, name, run.steps or steps_per_epoch or 1, _color(runs, run))
        _finish(axis, PANELS.get(name, name.replace("_", " ")), runs if steps_per_epoch else [], along)
        axis.set_xlim(left=0)
        if name in FROM_ZERO:
            # matplotlib's own margin is a share of the values' range, which may be narrow. Some losses are negative.
            lowest, highest = min(0, axis.dataLim.y0), max(0, axis.dataLim.y1)
            axis.set_ylim(1.05 * lowest, 1.05 * highest if highest > lowest else None)

    for name in _panels(runs):
        yield partial(draw, name=name)


def _color(runs: list[RunCurves], run: RunCurves) -> str:
    """Return the colour of a run, the same in each panel."""
    return f"C{[(one.experiment, one.seed) for one in runs].index((run.experiment, run.seed)) % 10}"


def _add_legend(figure: Figure) -> None:
    """Name all lines once, below the panels: in one of them a legend would lie on its curves."""
    named = {}
    for axis in figure.axes:
        for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(name, line)
    columns = min(len(named), LEGEND_COLUMNS)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def draw_comparison(title: str, runs: list[RunCurves]) -> Figure:
    """Return the figure of runs of several experiments: a panel for each quantity that at least two of these have."""
    measured = [{name for name in _panels([run]) if run.has(name)} for run in runs]
    experiments = {run.experiment for run in runs}

    def shared(name: str) -> bool:
        having = {run.experiment for run, names in zip(runs, measured, strict=True) if name in names}
        return len(having) > 1 or len(experiments) == 1

    kept = [replace(run, history=_only(run.history, shared), knn=_only(run.knn, shared), boundaries=[]) for run in runs]
    return draw_curves(title, kept, None)


def _only(frame: pd.DataFrame, wanted: Callable[[str], bool]) -> pd.DataFrame:
    return frame[[name for name in frame if name in NOT_CURVES or wanted(name)]]


def _panels(runs: list[RunCurves]) -> list[str]:
    """Return the columns that some run has measured: the known ones, then a method's own scalars and schedules."""
    own = [name for run in runs for frame in (run.history, run.knn) for name in frame if name not in NOT_CURVES]
    return [name for name in dict.fromkeys([*PANELS, *own]) if any(run.has(name) for run in runs)]


def _draw(axis: Axes, run: RunCurves, name: str, steps_per_epoch: float, color: str) -> None:
    if not run.has(name):
        return
    frame = run.knn if name in run.knn else run.history
    told = frame.dropna(subset=[name])
    done = told["step"] + (0 if name in run.knn else 1)
    few = len(told) < 60  # measured now and then: points show where
    line = {"label": run.label, "linewidth": 1, "color": color, "marker": "." if few else None}
    axis.plot(done / steps_per_epoch, told[name], **line)


def _finish(axis: Axes, title: str, runs: list[RunCurves], along: str) -> None:
    for boundary in sorted({boundary for run in runs for boundary in run.boundaries}):
        axis.axvline(boundary, color="0.8", linewidth=0.8, linestyle="--", zorder=0, label="end of a segment")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(along, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.grid(visible=True, axis="y", color="0.92")


def _metrics(evaluation: EvaluationPaths) -> pd.DataFrame:
    return read_metrics(evaluation.metrics) if evaluation.metrics.exists() else pd.DataFrame()


def _read(path: Path) -> pd.DataFrame:
    """Return a CSV's whole rows, all cells numbers or blank: a job may be writing the last one."""
    text = text_of(path) if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if not whole.strip():  # knn.csv before its first milestone
        return pd.DataFrame()
    try:
        frame = pd.read_csv(io.StringIO(whole))
    except ValueError as error:
        raise UserError(f"{path}: no CSV ({error}): restore it") from error
    return frame_of_numbers(path, frame, list(frame))


def write_figure(figure: Figure, stem: Path, metadata: Mapping[str, str]) -> list[Path]:
    """Write <stem>.svg and <stem>.png; returns both."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png")]  # a name may have a dot
    figure.dpi = 130
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out once, for both: with an engine, each savefig draws it once more
    for path in paths:
        figure.savefig(path, dpi=figure.dpi, metadata=dict(metadata))
    return paths
