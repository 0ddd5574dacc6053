"""Nothing finished is made again or deleted: for no file time, lost or damaged file, edited rule or older layout."""

import copy
import itertools
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from selfsup.evaluation.linear_settings import LinearSettings
from selfsup.job.ledger import read_ledger
from selfsup.recipe import canonical, load_recipe, pretraining_part
from workflows import QUICK, Workflow, jobs

RUN = "results/digits/seed0"
COSTLY = ("prepare_dataset", "pretrain_segment", "export_encoder", "linear_eval", "linear_eval_random_init")

pytestmark = pytest.mark.slow


def costly(printed: str) -> dict[str, int]:
    """The jobs of a plan that are more than a table."""
    return {rule: count for rule in COSTLY if (count := jobs(printed, rule))}


@pytest.fixture
def finished(finished_run, tmp_path, repository) -> Workflow:
    """A finished run as `cp -r` leaves it: the files have other times, in whatever order."""
    source = finished_run()
    shutil.copytree(source.folder, tmp_path / "copy", copy_function=shutil.copy)
    copied = Workflow(tmp_path / "copy", repository, source.python)
    copied.config = copy.deepcopy(source.config)
    return copied


def hashes(run: Workflow) -> list[bytes]:
    return [run.path(f"{RUN}/{name}").read_bytes() for name in ("encoder.safetensors", "linear/metrics.csv")]


def steps_done(run: Workflow, stage: str = "pretrain") -> int:
    return sum(int(row["steps_done"] or 0) for row in read_ledger(run.path(f"{RUN}/{stage}/ledger.csv")))


def losses(history: str) -> list[list[str]]:
    """Step, epoch and loss of each row; images per second differ from time to time."""
    return [line.split(",")[:3] for line in history.splitlines()]


def files_of(run: Workflow) -> list[Path]:
    return sorted(path for folder in ("results", "data") for path in run.path(folder).rglob("*") if path.is_file())


def tracked(run: Workflow) -> dict[str, list[str]]:
    """For each rule the values of which Snakemake keeps that another one would be a reason to run its jobs again."""
    kept = [json.loads(path.read_text()) for path in run.path(".snakemake/metadata").rglob("*") if path.is_file()]
    return {one["rule"]: sorted(one["params"]) for one in kept}


def test_only_what_decides_a_result_is_a_reason_to_run_a_job_again(finished_run):
    """Of a command's words Snakemake keeps nothing. What it does keep must not change for finished runs."""
    recipe = load_recipe("digits", QUICK)
    weights, kept = repr(canonical(pretraining_part(recipe))), tracked(finished_run())
    code = kept["table"].pop(0)
    assert re.fullmatch(r"'[0-9a-f]{16}'", code)
    assert kept == {
        "prepare_dataset": ["'digits'", "None"],
        "pretrain_segment": [weights, "1"],
        "health_gate": [],
        "export_encoder": [weights],
        "export_random_init": ["'--random-init'", repr(canonical(recipe["model"]))],
        "linear_eval": [],
        "linear_eval_random_init": [],
        "table": ["['digits 3 256 [0]']"],
    }


@pytest.mark.parametrize("seed", range(3))
def test_file_times_mean_nothing(finished, seed):
    times = random.Random(seed)
    for path in files_of(finished):
        os.utime(path, (time := 1.7e9 + times.randrange(10**6), time))
    if seed == 2:
        shutil.rmtree(finished.path(".snakemake"))
    assert costly(finished.run("results/demo.csv")) == {}
    assert "Nothing to be done" in finished.run("results/demo.csv")


@pytest.mark.parametrize(
    "name", ["pretrain/epoch_0001.json", "pretrain/epoch_0003.json", "pretrain/epoch_0003.pt", "encoder.safetensors"]
)
def test_a_touched_file_runs_nothing_again(finished, name):
    finished.path(f"{RUN}/{name}").touch()
    assert costly(finished.run("-n", "results/demo.csv")) == {}


def test_segments_cut_anew_and_data_that_has_moved_run_nothing_again(finished):
    for length in (2, 3, 1):
        finished.digits["segment_epochs"] = length
        assert costly(finished.run("-n", "results/demo.csv")) == {}
    finished.path("data").rename(finished.path("elsewhere"))
    finished.config["data_dir"] = "elsewhere"
    assert costly(finished.run("results/demo.csv")) == {}


def test_an_edited_rule_is_no_reason_to_run_anything_again(finished, tmp_path, repository):
    """One space more in every shell command, as a `git pull` may bring it, without the profile."""
    other = tmp_path / "other version"
    shutil.copytree(repository / "workflow", other / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "Snakefile", other)
    edited = 0
    for path in (other / "workflow/rules").glob("*.smk"):
        text, count = re.subn(r'(    shell:\n        "[^"]*)"', r'\1 "', path.read_text())
        path.write_text(text)
        edited += count
    assert edited > 10
    finished.repository = other
    assert costly(finished.run("results/demo.csv")) == {}


@pytest.mark.parametrize(("epoch", "suffix"), [*itertools.product((1, 2, 3), (".pt", ".json"))])
def test_a_deleted_boundary_or_card_is_not_made_again(finished, epoch, suffix):
    before, steps = hashes(finished), steps_done(finished)
    finished.path(f"{RUN}/pretrain/epoch_000{epoch}{suffix}").unlink()
    assert costly(finished.run("results/demo.csv")) == {}
    assert (hashes(finished), steps_done(finished)) == (before, steps)


def test_the_last_boundary_can_be_made_again_when_it_is_needed(finished):
    before, history = hashes(finished), finished.read(f"{RUN}/pretrain/history.csv")
    for name in ("pretrain/epoch_0003.pt", "encoder.safetensors"):
        finished.path(f"{RUN}/{name}").unlink()
    printed = finished.run(f"{RUN}/encoder.safetensors", ok=False)
    command = re.search(r"error: .*epoch_0003.pt is not there.* snakemake --cores all (--force \S+)", printed)[1]
    assert costly(finished.run(*command.split())) == {"pretrain_segment": 1}
    finished.run("results/demo.csv")
    assert hashes(finished) == before
    columns = [
        [line.split(",")[:3] for line in text.splitlines()]
        for text in (history, finished.read(f"{RUN}/pretrain/history.csv"))
    ]
    assert columns[0] == columns[1]


def test_a_forced_segment_that_is_finished_is_found_finished(finished):
    """Its checkpoint there; deleted or damaged with a later one there; and the histories are whole."""
    pretrain, steps = finished.path(f"{RUN}/pretrain"), steps_done(finished)
    kept = [(pretrain / "history.csv").read_bytes(), finished.path(f"{RUN}/knn.csv").read_bytes(), *hashes(finished)]
    (pretrain / "epoch_0001.pt").unlink()
    damaged = pretrain / "epoch_0002.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    cards = [f"{RUN}/pretrain/epoch_000{epoch}.json" for epoch in (1, 2, 3)]
    texts = [json.loads(finished.read(card)) for card in cards]
    printed = "".join(finished.run("--force", card) for card in cards)
    assert printed.count("was finished before: its card is written again") == 3
    assert [json.loads(finished.read(card)) for card in cards] == texts and steps_done(finished) == steps
    assert not damaged.exists() and (pretrain / "epoch_0002.damaged").exists()
    assert "Nothing to be done" in finished.run("results/demo.csv")
    after = [(pretrain / "history.csv").read_bytes(), finished.path(f"{RUN}/knn.csv").read_bytes(), *hashes(finished)]
    assert kept == after


def test_forceall_trains_and_evaluates_nothing_again_and_loses_no_figure(finished):
    before, card = hashes(finished), json.loads(finished.read(f"{RUN}/encoder.json"))
    assert card["evaluations"]["linear"]["n_test"] == 360
    steps = [steps_done(finished, stage) for stage in ("pretrain", "linear", "random_init/linear")]
    finished.run("--forceall", "results/demo.csv")
    assert hashes(finished) == before
    assert json.loads(finished.read(f"{RUN}/encoder.json"))["evaluations"] == card["evaluations"]
    assert [steps_done(finished, stage) for stage in ("pretrain", "linear", "random_init/linear")] == steps


def test_a_run_of_the_older_layout_stays_finished(finished):
    """Without cards in the record, without records of evaluations, the newest boundary linked into partial/, and no
    verdict on the last boundary: as version 0.1.0 left it."""
    before, steps = hashes(finished), steps_done(finished)
    pretrain = finished.path(f"{RUN}/pretrain")
    record = json.loads((pretrain / "segments.json").read_text())
    record.pop("cards")
    (pretrain / "segments.json").write_text(json.dumps(record, indent=1))
    (pretrain / "partial").mkdir(exist_ok=True)
    for suffix in (".pt", ".json"):
        os.link(pretrain / f"epoch_0003{suffix}", pretrain / f"partial/epoch_0003{suffix}")
    (pretrain / "health_0003.json").unlink(missing_ok=True)
    for part in ("", "random_init/"):
        finished.path(f"{RUN}/{part}linear/record.json").unlink()
    assert costly(finished.run("-n", "results/demo.csv")) == {}
    assert costly(finished.run("results/demo.csv")) == {}
    (pretrain / "epoch_0002.json").unlink()  # its content is in the record now
    assert costly(finished.run("results/demo.csv")) == {}
    assert (hashes(finished), steps_done(finished)) == (before, steps)


def test_a_run_of_the_older_layout_goes_on(workflow, finished_run):
    """Its newest boundary is in partial/ alone: Snakemake had deleted the declared output."""
    run = workflow
    run.config = copy.deepcopy(finished_run().config)
    run.run(f"{RUN}/pretrain/epoch_0002.json")
    pretrain = run.path(f"{RUN}/pretrain")
    record = json.loads((pretrain / "segments.json").read_text())
    record.pop("cards")
    record["boundaries"] = [1]
    (pretrain / "segments.json").write_text(json.dumps(record))
    (pretrain / "partial").mkdir(exist_ok=True)
    for suffix in (".pt", ".json"):
        (pretrain / f"epoch_0002{suffix}").rename(pretrain / f"partial/epoch_0002{suffix}")
    run.run(f"{RUN}/encoder.safetensors")
    encoders = [one.path(f"{RUN}/encoder.safetensors").read_bytes() for one in (run, finished_run())]
    assert encoders[0] == encoders[1]
    assert steps_done(run) == 15


@pytest.mark.parametrize(
    ("change", "again"),
    [
        # Whatever says that the figures are of something else.
        pytest.param({"seed": "7"}, True, marks=pytest.mark.long),
        pytest.param({"dataset_fingerprint": "0"}, True, marks=pytest.mark.long),
        ({"encoder_sha256": "0"}, True),
        ({}, False),
    ],
)
def test_an_evaluation_of_something_else_runs_again(finished, change, again):
    """Though its files are the newest of all, and Snakemake remembers nothing."""
    before = hashes(finished)
    shutil.rmtree(finished.path(".snakemake"))
    record, metrics = (finished.path(f"{RUN}/linear/{name}") for name in ("record.json", "metrics.csv"))
    content = json.loads(record.read_text())
    keys = {"seed": "seed", "dataset_fingerprint": "data", "encoder_sha256": "encoder"}
    content["identity"] |= {keys[key]: value for key, value in change.items()}
    record.write_text(json.dumps(content))
    metrics.touch()
    assert costly(finished.run("results/demo.csv")) == ({"linear_eval": 1} if again else {})
    assert hashes(finished) == before


def test_a_raised_version_evaluates_again_and_trains_nothing(finished, tmp_path, repository):
    other = tmp_path / "newer"
    shutil.copytree(repository / "workflow", other / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "Snakefile", other)
    path = other / "workflow/scripts/selfsup/evaluation/linear_settings.py"
    newer = f"class LinearSettings(TaskSettings):\n    version = {LinearSettings.version + 1}\n"
    text, count = re.subn(r"^class LinearSettings\(TaskSettings\):\n", newer, path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)
    finished.repository = other
    assert costly(finished.run("results/demo.csv")) == {"linear_eval": 1, "linear_eval_random_init": 1}
    assert "Nothing to be done" in finished.run("results/demo.csv")


def test_a_killed_snakemake_leaves_nothing_missing(workflow, finished_run):
    """The older inputs exist, and the target does not: what is not finished is made, whatever is finished before it."""
    run = workflow
    run.config = copy.deepcopy(finished_run().config)
    run.run(f"{RUN}/pretrain/epoch_0001.json")
    run.path(f"{RUN}/pretrain/epoch_0001.json").touch()
    assert costly(run.run(f"{RUN}/pretrain/epoch_0003.json")) == {"pretrain_segment": 2}
    run.path("data/digits/store.json").touch()
    printed = run.run("results/demo.csv")
    assert costly(printed) == {"export_encoder": 1, "linear_eval": 1, "linear_eval_random_init": 1}
    assert hashes(run) == hashes(finished_run())


@pytest.mark.parametrize("left", ["everything", "no table", "neither table nor checkpoints"])
def test_deleted_data_runs_nothing_finished_again(finished, left):
    """A purge of scratch takes the packed dataset, and perhaps the checkpoints; what is finished stays so."""
    before = hashes(finished)
    shutil.rmtree(finished.path("data"))
    if left != "everything":
        finished.path("results/demo.csv").unlink()
    if "checkpoints" in left:
        for path in finished.path(f"{RUN}/pretrain").glob("epoch_*"):
            path.unlink()
    assert costly(finished.run("results/demo.csv")) == {}
    assert finished.path("results/demo.csv").exists() and hashes(finished) == before


def test_a_segment_whose_checkpoints_are_all_gone_is_never_begun_anew_unasked(finished):
    for path in finished.path(RUN).rglob("e*.*"):
        path.unlink() if path.parent == finished.path(RUN) or path.name.startswith("epoch_") else None
    printed = finished.run(f"{RUN}/encoder.safetensors", ok=False)
    assert (
        "epoch_0002.pt is missing, and there is no later checkpoint: restore it" in printed
        and steps_done(finished) == 15
    )


def test_an_older_layout_without_verdict_and_table_gets_its_table(finished):
    """The gate on the last boundary came later: it is not asked for what is exported, whatever the file times."""
    finished.path(f"{RUN}/pretrain/health_0003.json").unlink()
    finished.path("results/demo.csv").unlink()
    finished.path(f"{RUN}/pretrain/epoch_0003.json").touch()
    printed = finished.run("results/demo.csv")
    assert costly(printed) == {} and jobs(printed, "health_gate") == 0 and jobs(printed, "table") == 1
    finished.run(f"{RUN}/encoder.safetensors", "results/compute.csv")  # whose verdict is still not there


def test_a_copied_seed_is_no_second_seed(finished):
    shutil.copytree(finished.path(RUN), finished.path("results/digits/seed1"))
    finished.digits["seeds"] = [0, 1]
    printed = finished.run("results/demo.csv", ok=False)
    assert re.search(r"^error: results/digits/seed1/\S*encoder.json is of seed 0, wanted 1", printed, re.MULTILINE)


def test_an_encoder_is_not_evaluated_as_one_of_other_images(finished):
    store = finished.path("data/digits/store.json")
    store.write_text(store.read_text().replace(json.loads(store.read_text())["fingerprint"], "0" * 64))
    printed = finished.run("results/demo.csv", ok=False)
    assert "was trained on other images" in printed and "or raise experiments.digits.revision" in printed
    assert costly(printed) == {} and "Traceback" not in printed


def test_a_persons_copy_of_a_checkpoint_is_left_alone(finished):
    pretrain = finished.path(f"{RUN}/pretrain")
    for suffix in (".pt", ".json"):
        shutil.copy(pretrain / f"epoch_0003{suffix}", pretrain / f"epoch_0003_backup{suffix}")
    (pretrain / "epoch_0003_backup.json").write_text("of another run")
    (pretrain / "epoch_0003.json").unlink()
    assert costly(finished.run("results/demo.csv")) == {}
    finished.run("--force", f"{RUN}/pretrain/epoch_0003.json")
    assert (pretrain / "epoch_0003_backup.pt").exists() and (pretrain / "epoch_0003.json").exists()


@pytest.mark.parametrize(
    ("content", "words"), [("{", "damaged, no JSON mapping"), ('{"boundaries": []}', "it lacks the key 'revision'")]
)
def test_a_damaged_record_is_told_in_one_line(finished, content, words):
    finished.path(f"{RUN}/pretrain/segments.json").write_text(content)
    printed = finished.run("-n", f"{RUN}/pretrain/epoch_0003.json", ok=False)
    assert words in printed and "Traceback" not in printed


def test_looking_at_the_plan_forgets_no_evaluation(finished):
    record = finished.path(f"{RUN}/linear/record.json")
    for look in (["-n"], ["--dag"]):
        finished.run(*look, "--force", f"{RUN}/linear/metrics.csv")
        assert record.exists()
    before = record.stat().st_mtime_ns
    assert costly(finished.run("--force", f"{RUN}/linear/metrics.csv")) == {"linear_eval": 1}
    assert record.stat().st_mtime_ns > before and steps_done(finished, "linear") > 0
