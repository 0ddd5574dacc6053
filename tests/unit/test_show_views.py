import subprocess
import sys

import numpy as np
from PIL import Image
from test_new_method import OVERRIDES, add_method

import show_views
from selfsup.recipe import canonical, load_recipe, merge
from show_views import HEAD


def tiles_of(grid, columns):
    """The pictures of eight rows, uint8 [8, columns, 96, 96, 3], without the white around them."""
    side = 96 + 2 * 4
    grid, heads = grid[HEAD:], grid[:HEAD].reshape(HEAD, columns, side, 3)
    assert (heads.min(axis=(0, 2, 3)) < 128).all()  # something is written above each column
    assert grid.shape == (8 * side, columns * side, 3)
    return grid.reshape(8, side, columns, side, 3).swapaxes(1, 2)[:, :, 4:-4, 4:-4]


def test_the_grid_shows_each_image_and_its_views(tiny_store, repository, tmp_path, starter):
    """A row an image: itself in the first column, unchanged where it is as large as a view; then other pictures."""
    script = repository / "workflow" / "scripts" / "show_views.py"
    output = tmp_path / "figures" / "views.png"
    command = [starter, script, "--recipe", "digits", "--data", tiny_store.folder, "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    grid = np.asarray(Image.open(output))
    tiles = tiles_of(grid, columns=5)
    assert (tiles[:, 1:].std(axis=(2, 3, 4)) > 0).all()
    for row in tiles:
        assert len({tile.tobytes() for tile in row}) == 5


def test_views_of_two_sizes_are_enlarged_to_one_side_beside_the_unaugmented_picture(tiny_store, tmp_path, monkeypatch):
    """Twelve times eight pixels is the side; of the views of 6 pixels each pixel is a block of 16."""
    add_method(monkeypatch)  # BYOL wants views of one size
    changes = {"plain": {"resize": None, "crop": 8, "interpolation": "bilinear"}, "views": {1: {"size": 6}}}
    recipe = merge(load_recipe("digits", OVERRIDES), {"augment": changes})
    output = tmp_path / "views.png"
    command = [
        "show_views.py",
        "--recipe",
        canonical(recipe),
        "--data",
        str(tiny_store.folder),
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", command)
    show_views.main()
    tiles = tiles_of(np.asarray(Image.open(output)), columns=6)
    images = [tiny_store.train.image(index) for index in np.linspace(0, 42, 8).astype(int)]
    for row, image in zip(tiles, images, strict=True):
        middle = image[:, 2:10, 1:9].permute(1, 2, 0).numpy()
        assert np.array_equal(row[1], middle.repeat(12, axis=0).repeat(12, axis=1))
        for column, size in zip(row[2:], (8, 6, 8, 6), strict=True):
            blocks = column.reshape(size, 96 // size, size, 96 // size, 3)
            assert (blocks == blocks[:, :1, :, :1]).all() and blocks[:, 0, :, 0].std() > 0
