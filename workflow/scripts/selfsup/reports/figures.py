"""Curves of an experiment's runs: a panel per quantity, a line per seed, segments marked. Needs no torch."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfsup.layout import RunFolder

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
NOT_CURVES = ("step", "epoch", "steps_done", "epochs_done", "bank", "queries", "skipped")
LINEAR = "linear accuracy, test images (%)"
COLUMNS = 3
SIZE_INCHES = (4.2, 2.6)  # of a panel: three abreast on a page of a browser


@dataclass(frozen=True)
class RunCurves:
    """What one seed has left. history, knn, linear: frames, empty where there is none; boundaries: epochs.

    over_training: of each evaluation that was asked for at every boundary, a frame of epoch and figure. experiment:
    named where several are compared. steps: of an epoch, where the dataset tells.
    """

    seed: int
    history: pd.DataFrame
    knn: pd.DataFrame
    linear: pd.DataFrame
    boundaries: list[int]
    over_training: dict[str, pd.DataFrame] = field(default_factory=dict)
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
    return RunCurves(seed=seed, boundaries=boundaries, over_training=_over_training(paths, boundaries), **frames)


def _over_training(run: RunFolder, boundaries: list[int]) -> dict[str, pd.DataFrame]:
    """Return the accuracies of a run's boundaries by evaluation, the end's included."""
    encoders = [(encoder.boundary, encoder) for encoder in run.encoders_at_boundaries()]
    names = {one.folder.name for _, encoder in encoders for one in encoder.evaluations()}
    encoders += [(boundaries[-1], run.encoder)] if boundaries else []
    found = {}
    for name in sorted(names):
        metrics = [(epoch, _read(encoder.evaluation(name).metrics)) for epoch, encoder in encoders]
        figure = (
            "figure" if all("figure" in frame for _, frame in metrics if len(frame)) else "top1"
        )  # older: that alone
        rows = [{"epoch": epoch, "figure": frame[figure].iloc[0]} for epoch, frame in metrics if len(frame)]
        found[name] = pd.DataFrame(rows).sort_values("epoch")
    return found


def draw_curves(title: str, runs: list[RunCurves], steps_per_epoch: float | None) -> Figure:
    """Return the figure; a panel for each quantity that some run has. The horizontal axis is epochs.

    steps_per_epoch: None where the dataset does not tell; then the runs do, and in their first epoch the axis is steps.
    """
    told = [steps for run in runs if (steps := run.steps_per_epoch()) is not None]
    steps_per_epoch = steps_per_epoch or min([*told, *(run.steps for run in runs if run.steps)], default=None)
    runs_by_epoch, along = (runs, "epoch of pretraining") if steps_per_epoch else ([], "step of pretraining")
    panels = _panels(runs)
    linear = any(len(run.linear) for run in runs)
    grown = sorted({name for run in runs for name in run.over_training})
    rows = -(-(len(panels) + linear + len(grown)) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * SIZE_INCHES[0], rows * SIZE_INCHES[1] + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis, name in zip(axes, panels, strict=False):
        for run in runs:
            _draw(axis, run, name, run.steps or steps_per_epoch or 1)
        _finish(axis, PANELS.get(name, name.replace("_", " ")), runs_by_epoch, along)
        axis.set_xlim(left=0)
        if name in FROM_ZERO:
            highest = axis.dataLim.y1  # matplotlib's own margin is a share of the values' range, which may be narrow
            axis.set_ylim(0, 1.05 * highest if highest > 0 else None)
    if linear:
        axis = axes[len(panels)]
        for run in filter(lambda run: len(run.linear), runs):
            axis.plot(run.linear["epoch"], run.linear["top1"], label=run.label, linewidth=1)
        _finish(axis, LINEAR, [], "epoch of the linear evaluation")
    for axis, name in zip(axes[len(panels) + linear :], grown, strict=False):
        for run in filter(lambda run: name in run.over_training, runs):
            frame = run.over_training[name]
            axis.plot(frame["epoch"], frame["figure"], label=run.label, linewidth=1, marker=".")
        _finish(axis, f"{name}, test images (%)", runs, "epoch of pretraining")
        axis.set_xlim(left=0)
    for axis in axes[len(panels) + linear + len(grown) :]:
        axis.remove()
    axes[0].legend(fontsize=7)
    return figure


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


def _draw(axis: Axes, run: RunCurves, name: str, steps_per_epoch: float) -> None:
    if not run.has(name):
        return
    frame = run.knn if name in run.knn else run.history
    told = frame.dropna(subset=[name])
    done = told["step"] + (0 if name in run.knn else 1)
    few = len(told) < 60  # measured now and then: points show where
    axis.plot(done / steps_per_epoch, told[name], label=run.label, linewidth=1, marker="." if few else None)


def _finish(axis: Axes, title: str, runs: list[RunCurves], along: str) -> None:
    for boundary in sorted({boundary for run in runs for boundary in run.boundaries}):
        axis.axvline(boundary, color="0.8", linewidth=0.8, linestyle="--", zorder=0)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(along, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.grid(visible=True, axis="y", color="0.92")


def _read(path: Path) -> pd.DataFrame:
    """Return a CSV's whole rows: a job may be writing the last one."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return pd.read_csv(io.StringIO(whole)) if whole.strip() else pd.DataFrame()  # knn.csv before its first milestone


def write_figure(figure: Figure, stem: Path, metadata: Mapping[str, str]) -> list[Path]:
    """Write <stem>.svg and <stem>.png; returns both."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png")]  # a name may have a dot
    for path in paths:
        figure.savefig(path, dpi=130, metadata=dict(metadata))
    return paths
