"""An audit finds the same bits in an honest run, and names what was changed in another one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runs import StopAfter, attempt_at, on_cpu, train
from selfsup.errors import PermanentError, UserError
from selfsup.layout import AuditPaths, RunFolder
from selfsup.provenance import sha256
from selfsup.recipe import parse_recipe
from selfsup.segments import recorded_cards
from selfsup.training import audit as auditing
from selfsup.training.audited import Audited, check_output, choose_segment, data_folder, run_folder
from selfsup.training.pretraining import Run

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def finished(shallow, tiny_recipe, tiny_store, tmp_path_factory) -> Path:
    """A finished run of 4 epochs in two segments; 5 steps an epoch, a row each."""
    folder = tmp_path_factory.mktemp("finished") / "seed0"
    settings = {"recipe": tiny_recipe, "seed": 0, "revision": 1, "store": tiny_store, "compute": on_cpu()}
    assert train(Run(**settings, folder=folder / "pretrain", checkpoint_minutes=60), 2, 4)
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The folder of a test's own copy."""
    return shutil.copytree(finished, tmp_path / "tiny" / "seed0")


@pytest.fixture
def audit(tiny_store, tmp_path):
    def whole(segment: Audited, stop: StopAfter | None = None, **conditions) -> dict:
        claimed, own = auditing.read_ends(segment), AuditPaths(tmp_path / "audit")
        recipe = parse_recipe(json.dumps(claimed["recipe"]))
        again = auditing.audited_run(claimed, recipe, store=tiny_store, folder=own.folder, compute=on_cpu(**conditions))
        with attempt_at(again, segment.end, stop) as attempt:
            if not auditing.train_again(again, segment, attempt):
                return {}
        found = auditing.verdict(segment, claimed, again)
        auditing.leave(own, segment, found)
        return found

    return whole


def change(run: Path, epoch: int, edit, *, claim: bool = True) -> None:
    """Change what a checkpoint holds; claim: and what the run's record says of it, as a forger would."""
    pretrain = RunFolder(run).pretrain
    path = pretrain.checkpoint(epoch)
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)
    if claim:
        record = json.loads(pretrain.record.read_text())
        record["cards"][str(epoch)]["sha256"] = sha256(path)
        pretrain.record.write_text(json.dumps(record))


def differs(tmp_path) -> dict:
    return json.loads((tmp_path / "audit/differs.json").read_text())


@pytest.mark.parametrize("number", [1, 2])
def test_an_honest_run_has_the_same_bits(run, audit, tmp_path, number):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = audit(choose_segment(run, number))
    assert found["verdict"] == "the same bits" and found["conditions"] == [] and found["rows"] == 10
    assert set(found["sha256"]) == {"weights", "buffers", "momenta", "counters", "history"}
    assert json.loads((tmp_path / "audit/audit.json").read_text()) == found
    assert not list((tmp_path / "audit").glob("*.pt")) and not (tmp_path / "audit/differs.json").exists()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_the_run_of_nothing_would_be_is_not_compared_with_itself(run, audit):
    first, second = (audit(choose_segment(run, number))["sha256"] for number in (1, 2))
    assert all(first[part]["run"] != second[part]["run"] for part in first)


@pytest.mark.parametrize(
    "part, find",
    [
        ("weights", lambda state: state["method"]["online.backbone.conv1.weight"]),
        ("buffers", lambda state: state["method"]["online.backbone.bn1.running_mean"]),
        ("momenta", lambda state: state["optimizer"]["state"][3]["momentum_buffer"]),
    ],
)
def test_one_changed_number_is_named(run, audit, tmp_path, part, find):
    def edit(state):
        tensor = find(state)
        place = (0,) * tensor.ndim
        tensor[place] = torch.nextafter(tensor[place], torch.tensor(9.0))

    change(run, 4, edit)
    with pytest.raises(UserError, match=f"other bits in {part}; all rows of history up to step 20 are the same"):
        audit(choose_segment(run))
    found = differs(tmp_path)
    assert found["differing"] == [part] and len(found["tensors"]) == 1 and found["first_difference"] is None
    assert torch.load(tmp_path / "audit/differs.pt", weights_only=True)["step"] == 20


def test_a_changed_weight_at_the_begin_shows_from_the_first_step_on(run, audit, tmp_path):
    change(run, 2, lambda state: state["method"]["online.backbone.conv1.weight"][0].add_(0.1))
    with pytest.raises(UserError, match="from step 10 on: "):
        audit(choose_segment(run, 2))
    assert {"weights", "buffers", "momenta", "history"} == set(differs(tmp_path)["differing"])


def test_a_changed_row_of_history_is_named_with_its_step_and_column(run, audit, tmp_path):
    history = RunFolder(run).pretrain.history
    lines = history.read_text().splitlines()
    row = lines[14].split(",")
    assert row[0] == "13"
    lines[14] = ",".join([*row[:2], "0.5", *row[3:]])
    history.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"the same bits, but another history; from step 13 on: loss is 0.5 in the run"):
        audit(choose_segment(run, 2))
    assert differs(tmp_path)["first_difference"] == {"step": 13, "column": "loss", "run": "0.5", "audit": row[2]}


def test_a_row_that_was_left_out_is_named(run, audit):
    history = RunFolder(run).pretrain.history
    history.write_text("".join(line for line in history.read_text().splitlines(True) if not line.startswith("15,")))
    with pytest.raises(UserError, match="from step 15 on: history is none in the run, a row here"):
        audit(choose_segment(run, 2))


def rewrite_history(run: Path, kept) -> None:
    """Leave the columns of history.csv for whose name `kept` is true."""
    path = RunFolder(run).pretrain.history
    rows = [line.split(",") for line in path.read_text().splitlines()]
    places = [place for place, name in enumerate(rows[0]) if kept(name)]
    path.write_text("".join(",".join(row[place] for place in places) + "\n" for row in rows))


def test_a_column_that_was_left_out_is_named(run, audit, tmp_path):
    rewrite_history(run, lambda name: name != "loss")
    with pytest.raises(
        UserError, match="the same bits, but another history; from step 10 on: loss is missing in the run"
    ):
        audit(choose_segment(run, 2))
    assert differs(tmp_path)["first_difference"]["run"] is None
    rewrite_history(run, lambda name: name == "step")
    with pytest.raises(UserError, match=r"but another history; from step 10 on: .* is missing in the run"):
        audit(choose_segment(run, 2))


def test_a_history_without_the_columns_that_older_runs_do_not_have_is_the_same(run, audit):
    rewrite_history(run, lambda name: name not in ("steps_done", "epochs_done"))
    assert audit(choose_segment(run, 2))["verdict"] == "the same bits"


def test_conditions_of_an_audit_that_was_stopped_are_those_of_all_its_attempts(run, audit, tmp_path):
    assert audit(choose_segment(run, 2), stop=StopAfter(3), threads=2) == {}
    try:
        found = audit(choose_segment(run, 2), threads=1)
    except UserError:  # as it is with larger networks
        found = differs(tmp_path)
    assert found["conditions"] == ["threads: run 1, audit 2"]


def test_another_thread_count_is_named(run, audit):
    try:
        assert (
            audit(choose_segment(run), threads=2)["verdict"]
            == "the same bits, under other conditions: threads: run 1, audit 2"
        )
    except UserError as error:  # as it is with larger networks
        assert "under other conditions: threads: run 1, audit 2" in str(error)


@pytest.mark.parametrize("name, value", [("ranks", 4), ("instructions", "NEON"), ("torch", "1.0"), ("compile", True)])
def test_any_other_condition_is_named(run, audit, name, value):
    change(run, 4, lambda state: [one.update({name: value}) for one in state["attempts"]])
    found = audit(choose_segment(run))
    assert [line.partition(",")[0] for line in found["conditions"]] == [f"{name}: run {value}"]
    assert found["verdict"].startswith("the same bits, under other conditions: ")


def test_conditions_of_earlier_segments_are_not_this_ones(run, audit):
    change(run, 4, lambda state: state["attempts"][0].update(ranks=4))  # of steps 0 to 10
    assert audit(choose_segment(run, 2))["conditions"] == []


def test_another_seed_is_named(run, audit, tmp_path):
    whole = choose_segment(run)
    change(run, 4, lambda state: state.update(seed=1))
    with pytest.raises(UserError, match=r"seed is 0 in epoch_0002.pt and 1 in epoch_0004.pt"):
        audit(whole)
    change(run, 2, lambda state: state.update(seed=1))
    with pytest.raises(UserError, match=r"epoch_0004.pt is of seed 1, and its folder is named seed0"):
        audit(whole)
    with pytest.raises(UserError, match=r"other bits in .*; from step 10 on"):
        audit(choose_segment(run.rename(run.with_name("seed1"))))


def test_a_file_that_is_not_the_recorded_one_is_named(run, audit):
    change(run, 4, lambda state: None, claim=False)
    change(run, 2, lambda state: state.update(skipped=1), claim=False)
    with pytest.raises(UserError, match=r"epoch_0002.pt: its checksum is not the recorded one"):
        audit(choose_segment(run, 2))


def test_a_changed_recipe_is_named(run, audit):
    for epoch in (2, 4):
        change(run, epoch, lambda state: state["recipe"]["optimizer"].update(peak_lr=9.0))
    with pytest.raises(UserError, match="does not have the fingerprint that it names"):
        audit(choose_segment(run))


def test_other_images_are_refused(run, tiny_store, tmp_path):
    state = {**auditing.read_ends(choose_segment(run)), "dataset_fingerprint": "f" * 64}
    again = auditing.audited_run(state, state["recipe"], store=tiny_store, folder=tmp_path, compute=on_cpu())
    with pytest.raises(PermanentError, match="was trained on ffffffffffffffff: give --data"):
        auditing.check_dataset(again, state, tmp_path)


def test_an_audit_that_was_stopped_goes_on_and_one_that_ended_begins_anew(run, audit, tmp_path):
    assert audit(choose_segment(run, 2), stop=StopAfter(3)) == {}
    assert [path.name for path in (tmp_path / "audit/partial").glob("*.pt")] == ["step_000000014.pt"]
    assert audit(choose_segment(run, 2))["verdict"] == "the same bits"
    change(run, 4, lambda state: state["method"]["online.backbone.conv1.weight"].zero_())
    with pytest.raises(UserError, match="other bits in weights"):
        audit(choose_segment(run, 2))
    assert not (tmp_path / "audit/audit.json").exists() and (tmp_path / "audit/differs.pt").exists()
    assert audit(choose_segment(run, 1))["verdict"] == "the same bits"
    assert not list((tmp_path / "audit").glob("differs.*"))


def test_a_stopped_audit_of_files_that_have_changed_begins_anew(run, audit):
    assert audit(choose_segment(run, 2), stop=StopAfter(3)) == {}
    change(run, 2, lambda state: state["method"]["online.backbone.conv1.weight"].add_(1))
    with pytest.raises(UserError, match="from step 10 on"):
        audit(choose_segment(run, 2))


def test_missing_checkpoints_are_one_line_that_says_what_can_be_audited(run):
    pretrain = RunFolder(run).pretrain
    assert (choose_segment(run).number, choose_segment(run, end=2).number) == (2, 1)
    pretrain.checkpoint(2).unlink()
    for number, word in {1: "segment 1", 2: "segment 2"}.items():
        with pytest.raises(UserError) as told:
            choose_segment(run, number)
        assert str(told.value).startswith(word) and "epoch_0002.pt is missing" in str(told.value)
        assert str(told.value).endswith("can be audited: none")
    with pytest.raises(UserError, match="no segment can be audited: none"):
        choose_segment(run)
    with pytest.raises(UserError, match="has segments 1 to 2, wanted 3"):
        choose_segment(run, 3)
    assert recorded_cards(pretrain.folder).keys() == {"2", "4"}


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no finished segment: wanted the folder of a run"):
        choose_segment(tmp_path)


def test_a_run_is_found_by_either_folder_and_its_dataset_by_what_it_was_asked_for(tmp_path):
    run = tmp_path / "digits" / "seed0"
    assert run_folder(str(run / "pretrain")) == run_folder(str(run)) == run
    with pytest.raises(UserError, match="give --data FOLDER"):
        data_folder(run)
    run.mkdir(parents=True)
    config = {"data_dir": "elsewhere", "experiments": {"digits": {"dataset": "mine"}}}
    (tmp_path / "digits/seed0.json").write_text(json.dumps({"config": config}))
    assert data_folder(run) == Path("elsewhere/mine")


def test_an_audit_has_a_folder_of_its_own(run):
    assert replace(choose_segment(run), run=Path("results/digits/seed3")).own_folder == Path(
        "results/audit/digits/seed3/epoch_0004"
    )


@pytest.mark.parametrize("place", ["tiny/seed0", "tiny/seed0/pretrain", "tiny/seed0/new", "link"])
def test_an_output_in_the_folder_of_the_run_is_refused(run, tmp_path, place):
    (tmp_path / "link").symlink_to(run / "pretrain")
    with pytest.raises(UserError, match=r"is in the folder of the audited run, .*: give --output a folder of its own"):
        check_output(choose_segment(run), tmp_path / place)


@pytest.mark.parametrize("name", ["epoch_0002.pt", "epoch_0002.json", "segments.json", "partial"])
def test_an_output_with_what_is_not_of_an_audit_is_refused(run, tmp_path, name):
    other, segment = tmp_path / "other", choose_segment(run)
    check_output(segment, other)
    other.mkdir()
    check_output(segment, other)
    (other / name).mkdir() if name == "partial" else (other / name).touch()
    with pytest.raises(UserError, match=rf"holds {name}, which is not of an audit: give --output"):
        check_output(segment, other)
    for mark in ("begun.json", "audit.json", "differs.json"):
        (other / mark).touch()
        check_output(segment, other)
        (other / mark).unlink()


def test_an_audit_that_was_killed_while_it_copied_goes_on_in_its_folder(run, audit, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(auditing.checkpoint, "take_over", killed)
        with pytest.raises(KeyboardInterrupt):
            audit(choose_segment(run, 2))
    assert (tmp_path / "audit/epoch_0002.json").exists()
    check_output(choose_segment(run, 2), tmp_path / "audit")
    assert audit(choose_segment(run, 2))["verdict"] == "the same bits"
