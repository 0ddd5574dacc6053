"""compute.csv: what the experiments have cost, from their ledgers, beside what the paper's did. Imports no torch."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsup.config import Config
from selfsup.job.ledger import NUMBERS, begun, read_ledger
from selfsup.job.slurm import queue_seconds
from selfsup.layout import JobFolder, RunPaths
from selfsup.reports.plan import paper_gpu_hours

COLUMNS = (
    "experiment",
    "seed",
    "stage",
    "attempts",  # without those that were refused before they began
    "devices",  # of the newest attempt
    "device",
    "gpu_hours",  # 0 on a processor
    "device_hours",
    "wasted_gpu_hours",  # on steps that were lost and done again: their share of all steps done
    "wasted_device_hours",
    "images_per_s",  # of the newest attempt that took a step
    "checkpoints",
    "stall_s",  # the training waited so long for its checkpoints
    "queue_s",  # of all its jobs, from sacct; blank where accounting is not kept
    "paper_gpu_hours",  # for one pretraining of this method on this dataset
)


def costs_paid(config: Config, results: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each run's pretraining, begun or not, and for each of its encoders' jobs that has a ledger."""
    for experiment in config.experiments.values():
        paper = paper_gpu_hours(config.datasets[experiment.dataset]["source"], experiment.recipe)
        for seed in experiment.seeds:
            for work, folder in job_folders(RunPaths(results, experiment.name, seed)).items():
                rows = read_ledger(folder.ledger, NUMBERS)
                if rows or work == "pretraining":
                    row = {"experiment": experiment.name, "seed": seed, "stage": work, **_paid(rows)}
                    yield row | ({"paper_gpu_hours": paper} if work == "pretraining" else {})


def job_folders(run: RunPaths) -> dict[str, JobFolder]:
    """Return the folders of a run that have ledgers, by what compute.csv calls the work there."""
    boundaries = {f"epoch {one.boundary}, ": one for one in run.encoders_at_boundaries()}
    folders: dict[str, JobFolder] = {"pretraining": run.pretrain}
    for before, encoder in {**boundaries, "": run.encoder, "untrained, ": run.random_init}.items():
        folders |= {f"{before}features {name}": folder for name, folder in encoder.extractions().items()}
        folders |= {f"{before}{one.folder.name} evaluation": one for one in encoder.begun_evaluations()}
    return folders


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _paid(attempts: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    jobs = sorted({row["job_id"] for row in attempts if row["job_id"]})
    queue = queue_seconds(jobs) if jobs else {}
    rows = begun(attempts)
    if not rows:
        return {"attempts": 0, "gpu_hours": 0.0, "device_hours": 0.0, "queue_s": sum(queue.values()) if queue else ""}

    def total(column: str) -> float:
        return sum(float(row[column] or 0) for row in rows)

    worked = [row for row in rows if float(row["images_per_s"] or 0) > 0]
    return {
        "attempts": len(rows),
        "devices": rows[-1]["devices"],
        "device": rows[-1]["device"],
        "gpu_hours": round(total("gpu_hours"), 4),
        "device_hours": round(total("device_hours"), 4),
        "wasted_gpu_hours": round(sum(_wasted(row, "gpu_hours") for row in rows), 4),
        "wasted_device_hours": round(sum(_wasted(row, "device_hours") for row in rows), 4),
        "images_per_s": worked[-1]["images_per_s"] if worked else "",
        "checkpoints": round(total("checkpoints")),
        "stall_s": round(total("stall_s"), 2),
        "queue_s": sum(queue.values()) if queue else "",
    }


def _wasted(row: Mapping[str, str], column: str) -> float:
    """Return the hours of an attempt that went into steps that were lost; all of them where it took no step."""
    done, lost = float(row["steps_done"] or 0), float(row["steps_lost"] or 0)
    hours = float(row[column] or 0)
    return hours * (lost / done if done else not row["how_it_ended"].startswith("reached"))
