"""Pictures through an encoder: what is nearest, which are shown, and the files of embed.py."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from selfsup.evaluation.encoder import encoder_card, save_encoder
from selfsup.layout import EmbeddedPaths
from selfsup.models import initial_backbone
from selfsup.recipe import load_recipe
from selfsup.reports.neighbours import map_page, nearest, positions, spread_out
from tiny import TINY


def test_the_nearest_are_those_of_the_largest_cosine_and_never_the_picture_itself():
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 5)).astype(np.float32)
    places, cosines = nearest(features, np.array([3, 17]), 39)  # all others, those of negative cosines too
    for query, found, told in zip((3, 17), places, cosines, strict=True):
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(features[query])
        wanted = features.astype(np.float64) @ features[query] / lengths
        order = [place for place in np.argsort(-wanted) if place != query]
        assert found.tolist() == order and told == pytest.approx(wanted[order], abs=1e-6)
    assert nearest(features[:3], np.array([0]), 9)[0].shape == (1, 2)


def test_pictures_that_are_shown_are_unlike_each_other():
    """Of three tight groups, one of each."""
    random = np.random.default_rng(1)
    centres = np.eye(3)[np.repeat(range(3), 20)]
    chosen = spread_out((centres + 0.01 * random.normal(size=centres.shape)).astype(np.float32), 3)
    assert sorted(chosen // 20) == [0, 1, 2] and len(spread_out(centres.astype(np.float32)[:2], 8)) == 2


@pytest.mark.parametrize("count", [2, 30, 150])
def test_places_on_the_map_are_the_same_each_time_and_within_it(count):
    features = np.random.default_rng(2).normal(size=(count, 8)).astype(np.float32)
    places = positions(features)
    assert places.shape == (count, 2) and places.min() >= 0 and places.max() <= 1
    assert np.array_equal(places, positions(features))


def test_a_name_of_a_picture_is_escaped_on_the_map():
    page = map_page(np.zeros((1, 2)), np.zeros((1, 64, 64, 3), np.uint8), ["<b>.png"], "mine")
    assert "&lt;b&gt;.png" in page and "<b>" not in page


def test_a_folder_of_pictures_goes_through_an_encoder(tmp_path, repository, starter):
    """Pictures of any size and mode; what cannot be read is left out and told."""
    recipe = load_recipe("digits", TINY)
    weights, folder = tmp_path / "encoder.safetensors", tmp_path / "mine"
    save_encoder(weights, initial_backbone(recipe, 0), encoder_card("untrained", recipe, 0))
    (folder / "deep").mkdir(parents=True)
    for number, size in enumerate([(20, 30), (40, 17), (16, 16)]):
        Image.new("L" if number else "RGB", size, number * 80).save(folder / "deep" / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    script = repository / "workflow/scripts/embed.py"
    command = [starter, str(script), "--encoder", str(weights), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--pictures", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and "broken.jpg is left out" in done.stderr + done.stdout, done.stderr
    paths = EmbeddedPaths(tmp_path / "out")
    with np.load(paths.features) as found:
        assert found["names"].tolist() == [f"deep/{number}.png" for number in range(3)]
        assert found["features"].shape[0] == 3 and found["features"].dtype == np.float32
    assert all(path.stat().st_size for path in (paths.neighbours, paths.map_picture, paths.map_page))
    assert json.loads(paths.record.read_text())["data"] == str(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([*command, "--pictures", str(empty)], capture_output=True, text=True)
    assert done.returncode == 1 and "has 0 pictures that can be read, wanted two" in done.stderr
