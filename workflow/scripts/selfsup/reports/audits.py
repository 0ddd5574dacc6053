"""What the audits of a run have found, as far as they are of the very files that an encoder comes from. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsup.cards import card_if_any
from selfsup.layout import AuditPaths, RunPaths
from selfsup.segments import recorded_cards

OF_A_RUN = ("seed", "revision", "fingerprint", "dataset_fingerprint")
SHOWN = 16  # digits of a checksum in a line


def audits_in_words(results: Path, experiment: str, seed: int, card: Mapping[str, Any]) -> list[str]:
    """Return a line for each audit of a run of which there is a verdict, in the order of the epochs.

    card: of the run's encoder. An audit is cited for it if it was of the same seed, revision, recipe and images, and of
    the checkpoint that the run has at that boundary.
    """
    run = RunPaths(results, experiment, seed)
    verdicts = AuditPaths.verdicts(results, experiment, run.folder.name)
    boundaries = recorded_cards(run.pretrain.folder) if verdicts else {}
    wanted = {"seed": card.get("seed"), **{key: card["training"].get(key) for key in OF_A_RUN[1:]}}
    return [_in_words(path, wanted, boundaries) for path in verdicts]


def _in_words(path: Path, wanted: Mapping[str, Any], boundaries: Mapping[str, Mapping[str, Any]]) -> str:
    found = card_if_any(path)
    try:
        number, (start, end) = found["segment"]["number"], found["segment"]["epochs"]
        verdict, run, checksum = found["verdict"], found["run"], str(found["checkpoint_sha256"])
        sums, differing = {part: str(pair["run"]) for part, pair in found["sha256"].items()}, found["differing"]
        others = [f"{key} {run[key]}, here {wanted[key]}" for key in OF_A_RUN if run[key] != wanted[key]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{path} is no verdict on a segment"
    which = f"segment {number}, epochs {start} to {end}"
    if not others and checksum != (recorded := boundaries.get(str(end), {}).get("sha256")):
        others = [f"checkpoint {checksum[:SHOWN]}, here {recorded[:SHOWN] if recorded else 'not recorded'}"]
    if others:
        return f"{which}: of another run, which says nothing about this one ({'; '.join(others)})"
    when = f", audited {found['audited']}" if "audited" in found else ""
    if differing or path != AuditPaths(path.parent).verdict:
        return f"{which}: failed, {verdict}{when}"
    told = ", ".join(f"{part} `{value[:SHOWN]}`" for part, value in sums.items())
    return f"{which}: {verdict}{when}; SHA-256 of {told}, of the checkpoint `{checksum}`"
