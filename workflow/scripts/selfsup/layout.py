"""Where the files of a run lie: each name is spelt here, once. Imports no torch, and nothing of the package.

A run is a seed of an experiment. Its names may be patterns: `RunPaths(RESULTS, "{experiment}", "{seed}")` are the files
that Snakemake makes of any run.

    results/<experiment>/seed<n>/                              RunPaths, or RunFolder where the folder alone is known
    results/<experiment>/seed<n>/pretrain/                     PretrainPaths
    results/audit/<experiment>/seed<n>/epoch_<n>/              AuditPaths
    results/<experiment>/seed<n>[/random_init]/                EncoderPaths: the trained encoder, and the untrained
    results/<experiment>/seed<n>[/random_init]/<evaluation>/   EvaluationPaths
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("results")  # as rules name it, from the folder that Snakemake runs in
LINEAR = "linear"  # the evaluation of that name
FEATURES = "features"  # the folder of an encoder's features, by what they are of
OF_A_JOB = "_job"  # ends the name of the folder of a job that makes features
AUDITS = "audit"  # the folder of audits, below the results
EMBEDDED = "embedded"  # the folder of pictures that an encoder was shown
BOUNDARIES = "boundaries"  # the folder of encoders of boundaries before the last
OWN_FOLDERS = (
    LINEAR,
    FEATURES,
    EMBEDDED,
    BOUNDARIES,
    "pretrain",
    "random_init",
)  # of a run: no evaluation may have their names
RECORDS_OF_RUNS = "*/seed*.json"  # below the results: see RunPaths.as_run
CONFIG_AS_RUN = RESULTS / "config.json"  # all of these in one, by `make report`

_BOUNDARY = re.compile(r"epoch_\d+\.pt")


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job that goes on where it was stopped; what each of these leaves there."""

    folder: Path

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.csv"

    @property
    def failed(self) -> Path:
        """What failed for good, and why."""
        return self.folder / "failed.json"

    @property
    def partial(self) -> Path:
        """The folder of rolling checkpoints."""
        return self.folder / "partial"


class PretrainPaths(JobFolder):
    """The files of a pretraining. epoch: a number, or text as it stands in a name, "0010" or "{epoch}"."""

    def checkpoint(self, epoch: int | str) -> Path:
        """Return the boundary after `epoch` epochs."""
        return self.folder / boundary_name(epoch)

    def card(self, epoch: int | str) -> Path:
        """Return the card of that boundary: what Snakemake knows of it."""
        return self.folder / card_name(epoch)

    def verdict(self, epoch: int | str) -> Path:
        """Return what the health gate has written on that boundary."""
        return self.folder / f"health_{_digits(epoch)}.json"

    @property
    def record(self) -> Path:
        """The run's recipe, its finished boundaries and their cards: `selfsup.segments`."""
        return self.folder / "segments.json"

    def cards(self) -> list[Path]:
        """Return the boundaries' cards that are there, in order."""
        return sorted(path for path in self.folder.glob("epoch_*.json") if is_boundary(path.with_suffix(".pt")))


class AuditPaths(PretrainPaths):
    """The files of an audit of a segment, a training in a folder of its own."""

    @classmethod
    def of(cls, experiment: str, run: str, epoch: int | str) -> "AuditPaths":
        """Return where the segment of a run that ends at `epoch` is audited. run: the name of its folder."""
        return cls(RESULTS / AUDITS / experiment / run / f"epoch_{_digits(epoch)}")

    @classmethod
    def verdicts(cls, results: Path, experiment: str, run: str) -> list[Path]:
        """Return the verdicts that are there on segments of a run, of either kind, in the order of the epochs."""
        audits = [cls(folder) for folder in sorted((results / AUDITS / experiment / run).glob("epoch_*"))]
        return [path for one in audits for path in (one.verdict, one.differing) if path.exists()]

    @property
    def verdict(self) -> Path:
        """What a card can cite: the same bits. What Snakemake knows of an audit."""
        return self.folder / "audit.json"

    @property
    def differing(self) -> Path:
        """Written instead of it: what differs, and from which step on."""
        return self.folder / "differs.json"

    @property
    def kept(self) -> Path:
        """The audit's own checkpoint at the segment's end, where it differs."""
        return self.folder / "differs.pt"

    @property
    def begun(self) -> Path:
        """Whose files an audit that has not ended is of."""
        return self.folder / "begun.json"

    @property
    def knn(self) -> Path:
        """The k-NN accuracy at milestones."""
        return self.folder / "knn.csv"


class EvaluationPaths(JobFolder):
    """The files of an evaluation of an encoder."""

    @property
    def metrics(self) -> Path:
        """The figures, a line: what Snakemake knows of an evaluation."""
        return self.folder / "metrics.csv"

    @property
    def further(self) -> Path:
        """Figures of further measurements, where there are any."""
        return self.folder / "further.csv"

    @property
    def record(self) -> Path:
        """What the figures were made from: `selfsup.evaluation.record`."""
        return self.folder / "record.json"

    @property
    def results(self) -> list[Path]:
        """All files of results that there may be; the metrics last, since Snakemake waits for them."""
        return [self.history, self.further, self.metrics]


@dataclass(frozen=True)
class EmbeddedPaths:
    """Pictures as an encoder sees them: `embed.py`."""

    folder: Path

    @property
    def features(self) -> Path:
        return self.folder / "features.npz"

    @property
    def neighbours(self) -> Path:
        return self.folder / "neighbours.png"

    @property
    def map_picture(self) -> Path:
        return self.folder / "map.png"

    @property
    def map_page(self) -> Path:
        """The same to zoom into. Written last."""
        return self.folder / "map.html"

    @property
    def record(self) -> Path:
        """Whose features of which pictures they are."""
        return self.folder / "record.json"


@dataclass(frozen=True)
class EncoderPaths:
    """An encoder and what it is judged by.

    untrained: whether it is the one at random initialisation. boundary: the epoch of the boundary that it is of, as in
    a name; None for the last.
    """

    folder: Path
    untrained: bool = False
    boundary: int | str | None = None

    @property
    def weights(self) -> Path:
        return self.folder / "encoder.safetensors"

    @property
    def card(self) -> Path:
        return self.folder / "encoder.json"

    def evaluation(self, name: str = LINEAR) -> EvaluationPaths:
        """Return the files of an evaluation, a folder of its name."""
        return EvaluationPaths(self.folder / name)

    def evaluations(self) -> list[EvaluationPaths]:
        """Return the evaluations whose metrics are there, in the order of their names."""
        return [one for one in self.begun_evaluations() if one.metrics.exists()]

    def begun_evaluations(self) -> list[EvaluationPaths]:
        """Return the evaluations that have left something, in the order of their names."""
        any_one = EvaluationPaths(Path("*"))
        files = (any_one.metrics, any_one.record, any_one.ledger)
        folders = {path.parent for file in files for path in self.folder.glob(str(file))}
        return [EvaluationPaths(folder) for folder in sorted(folders - {RunFolder(self.folder).pretrain.folder})]

    def embedded(self, dataset: str) -> "EmbeddedPaths":
        """Return the files of a dataset's pictures, as the encoder sees them."""
        return EmbeddedPaths(self.folder / EMBEDDED / dataset)

    def features(self, name: str) -> Path:
        """Return the folder of its features of a dataset's images, which may be deleted."""
        return self.folder / FEATURES / name

    def extraction(self, name: str) -> JobFolder:
        """Return the folder of the job that makes these features, beside them: Snakemake deletes what a job is to make
        before the job starts."""
        return JobFolder(self.folder / FEATURES / f"{name}{OF_A_JOB}")

    def extractions(self) -> dict[str, JobFolder]:
        """Return the folders of jobs that make features, or have made some, by the features' names, in their order."""
        folders = sorted((self.folder / FEATURES).glob(f"*{OF_A_JOB}"))
        return {folder.name.removesuffix(OF_A_JOB): JobFolder(folder) for folder in folders}

    def job_folders(self) -> list[JobFolder]:
        """Return the folders that its jobs work in, or have worked in."""
        return [*self.extractions().values(), *self.begun_evaluations()]


class RunFolder:
    """The files of a run, given its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def pretrain(self) -> PretrainPaths:
        return PretrainPaths(self.folder / "pretrain")

    @property
    def knn(self) -> Path:
        """The k-NN accuracy at milestones."""
        return self.folder / "knn.csv"

    @property
    def encoder(self) -> EncoderPaths:
        """The trained encoder."""
        return EncoderPaths(self.folder)

    @property
    def random_init(self) -> EncoderPaths:
        """The same encoder at random initialisation."""
        return EncoderPaths(self.folder / "random_init", untrained=True)

    def encoder_at(self, epoch: int | str) -> EncoderPaths:
        """Return the encoder of a boundary before the last."""
        return EncoderPaths(self.folder / BOUNDARIES / f"epoch_{_digits(epoch)}", boundary=epoch)

    def encoders_at_boundaries(self) -> list[EncoderPaths]:
        """Return the encoders of boundaries before the last that are there, in order."""
        return [self.encoder_at(epoch_of(path.name)) for path in sorted((self.folder / BOUNDARIES).glob("epoch_*"))]

    def job_folders(self) -> list[JobFolder]:
        """Return the folders that jobs of the trained encoder work in, or have worked in, in their order."""
        return [self.pretrain, *self.encoder.job_folders()]

    def begun(self, revision: int | str) -> Path:
        """Return what says that an older run was set aside for this revision."""
        return self.folder / f"revision_{revision}.json"

    def aside(self, revision: int) -> "RunFolder":
        """Return where a run of this revision is set aside."""
        return RunFolder(self.folder.with_name(f"{self.folder.name}_revision{revision}"))

    def of_a_revision(self) -> list[Path]:
        """Return what is there and depends on the training; the folder with the run's record last."""
        evaluations = [one.folder.name for one in self.encoder.begun_evaluations()]
        folders, encoders = (
            dict.fromkeys([LINEAR, *evaluations, FEATURES, EMBEDDED, BOUNDARIES]),
            f"{self.encoder.card.stem}.*",
        )
        patterns = (self.begun("*").name, self.knn.name, *folders, encoders, self.pretrain.folder.name)
        return [path for pattern in patterns for path in sorted(self.folder.glob(pattern))]


class RunPaths(RunFolder):
    """The files of a seed of an experiment. seed: a number, or text as it stands in a name."""

    def __init__(self, results: Path, experiment: str, seed: int | str):
        super().__init__(results / experiment / f"seed{seed}")

    @property
    def as_run(self) -> Path:
        """What the run was asked for: `selfsup.as_run`."""
        return self.folder.with_name(f"{self.folder.name}.json")


def seed_of(as_run: Path) -> int:
    """Return the seed of a run, from the file that says what it was asked for."""
    return int(as_run.stem.removeprefix("seed"))


def untrained_twins(evaluation: EvaluationPaths) -> Iterator[EvaluationPaths]:
    """Yield the evaluations of other runs' untrained encoders, given one of such an encoder; nothing for others."""
    run = RunFolder(evaluation.folder.parents[1])
    if evaluation.folder.parent == run.random_init.folder:
        for folder in sorted(run.folder.parents[1].glob("*/seed*")):
            others = RunFolder(folder).random_init.begun_evaluations()
            yield from (one for one in others if one.folder != evaluation.folder)


def probe_of(results: Path, experiment: str) -> PretrainPaths:
    """Return the folder of an experiment's probe, a pretraining of minutes."""
    return PretrainPaths(results / experiment / "probe")


def data_of(data_dir: str, dataset: str) -> Path:
    """Return the folder of a packed dataset."""
    return Path(data_dir) / dataset


def store_in(data: Path) -> Path:
    """Return the description of the packed dataset in a folder: what Snakemake knows of it."""
    return data / "store.json"


def boundary_name(epoch: int | str) -> str:
    """Return the file name of the checkpoint after `epoch` epochs."""
    return f"epoch_{_digits(epoch)}.pt"


def card_name(epoch: int | str) -> str:
    """Return the file name of that checkpoint's card."""
    return f"epoch_{_digits(epoch)}.json"


def rolling_name(step: int) -> str:
    """Return the file name of the rolling checkpoint after `step` steps."""
    return f"step_{step:09d}.pt"


def rolling_files(partial: Path) -> list[Path]:
    """Return the rolling checkpoints that are there, in order."""
    return sorted(partial.glob("step_*.pt"))


def is_boundary(path: Path) -> bool:
    """Return whether a file has a boundary's name; a copy of somebody's beside it has another."""
    return _BOUNDARY.fullmatch(path.name) is not None


def boundary_files(folder: Path) -> list[Path]:
    """Return the checkpoints of the boundaries that are there, in order."""
    return sorted(filter(is_boundary, folder.glob("epoch_*.pt")))


def epoch_of(name: str) -> int:
    """Return the epoch in a boundary's or a card's name or path, or in a number as text. Raises ValueError else."""
    return int(Path(name).stem.removeprefix("epoch_"))


def _digits(epoch: int | str) -> str:
    return epoch if isinstance(epoch, str) else f"{epoch:04d}"
