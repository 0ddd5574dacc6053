"""A card that is no mapping, wherever one is read: one line that names it, or as good as none."""

import json
import subprocess

import pytest

from selfsup.cards import CardError, card_if_any, read_card
from selfsup.config import load_config
from selfsup.data.store import PackedStore
from selfsup.engine.checkpoint import newest_by_card
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation.encoder import encoder_card, load_encoder, save_encoder
from selfsup.job.attempt import Attempt
from selfsup.models import initial_backbone
from selfsup.reports.plan import steps_per_epoch
from selfsup.segments import work_done

pytestmark = pytest.mark.parametrize("content", ["[1, 2]", '"words"', "null", "{cut"])


def test_a_card_is_a_mapping(tmp_path, content):
    path = tmp_path / "card.json"
    path.write_text('{"a": [1]}')
    assert read_card(path) == {"a": [1]}
    path.write_text(content)
    with pytest.raises(CardError, match=r"card\.json: .*delete it and have it written again") as error:
        read_card(path)
    assert "\n" not in str(error.value)


def test_a_card_that_may_be_missing_is_empty_where_none_can_be_read(tmp_path, content):
    path = tmp_path / "card.json"
    assert card_if_any(path) == {} == card_if_any(tmp_path)  # none, and a folder
    path.write_text(content)
    assert card_if_any(path) == {}
    path.write_bytes(b"\xff")
    assert card_if_any(path) == {}
    path.write_text('{"a": [1]}')
    assert card_if_any(path) == {"a": [1]}


def test_an_encoders_card(tmp_path, tiny_recipe, content):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, initial_backbone(tiny_recipe, 0), encoder_card("a test", tiny_recipe, 0))
    path.with_suffix(".json").write_text(content)
    with pytest.raises(UserError, match=r"no readable encoder with its card .*export the encoder again"):
        load_encoder(path, tiny_recipe)


def test_a_boundarys_card(repository, tmp_path, content, starter):
    card = tmp_path / "epoch_0010.json"
    card.write_text(content)
    script = repository / "workflow" / "scripts" / "health_gate.py"
    command = [starter, str(script), "--recipe", "digits", "--card", str(card), "--output", str(tmp_path / "v")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {card}: ")


def test_the_cards_of_a_report_and_of_bands(repository, tmp_path, content, starter):
    folder = tmp_path / "digits" / "seed0"
    (folder / "pretrain").mkdir(parents=True)
    for path in ("encoder.json", "pretrain/epoch_0010.json"):
        (folder / path).write_text(content)
    for script, card in {"report_page": "encoder.json", "record_bands": "pretrain/epoch_0010.json"}.items():
        path = repository / "workflow" / "scripts" / f"{script}.py"
        more = ["--experiment", "digits", "--results", str(tmp_path), "--output", str(tmp_path / "page")]
        done = subprocess.run([starter, str(path), *more], cwd=repository, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ") and str(folder / card) in done.stderr


def test_a_checkpoints_card_by_which_only_its_step_is_looked_up(tmp_path, content):
    paths = [tmp_path / "step_000000001.pt", tmp_path / "step_000000002.pt"]
    for path, card in zip(paths, [json.dumps({"step": 1}), content], strict=True):
        path.touch()
        path.with_suffix(".json").write_text(card)
    assert newest_by_card(paths) == paths[0]


def test_a_stores_and_a_runs_description(tmp_path, tiny_recipe, content):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(UserError, match=r"store\.json: damaged .*prepare the dataset again"):
        PackedStore(tmp_path)
    (tmp_path / "segments.json").write_text(content)
    with pytest.raises(UserError, match=r"segments\.json: damaged.*delete it"):
        work_done(tmp_path, tiny_recipe, 1)


def test_a_store_whose_images_nobody_can_count_is_not_packed_yet(repository, tmp_path, content):
    config = load_config(repository / "config.yaml")
    object.__setattr__(config, "data_dir", str(tmp_path))
    (tmp_path / "digits").mkdir()
    for text in (content, json.dumps({"splits": content})):
        (tmp_path / "digits" / "store.json").write_text(text)
        assert steps_per_epoch(config, config.experiments["digits"]) == 1437 // 64


def test_a_failure_that_nobody_can_read_stops_no_attempt(tmp_path, content):
    (tmp_path / "failed.json").write_text(content)
    with Attempt(tmp_path, stage="pretraining", goal="epoch 4", fingerprint="a test"):
        pass
    (tmp_path / "failed.json").write_text(json.dumps({"fingerprint": "a test", "message": "not finite"}))
    with (
        pytest.raises((UserError, PermanentError), match="failed for good"),
        Attempt(tmp_path, stage="pretraining", goal="epoch 4", fingerprint="a test"),
    ):
        pass
