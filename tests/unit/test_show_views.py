import subprocess
import sys

import numpy as np
from PIL import Image


def test_the_grid_shows_each_image_and_its_views(tiny_store, repository, tmp_path):
    """A row an image: itself in the first column, unchanged where it is as large as a view; then other pictures."""
    script = repository / "workflow" / "scripts" / "show_views.py"
    output = tmp_path / "figures" / "views.png"
    command = [sys.executable, script, "--recipe", "digits", "--data", tiny_store.folder, "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    grid = np.asarray(Image.open(output))
    side = 96 + 2 * 4
    assert grid.shape == (8 * side, 5 * side, 3)
    tiles = grid.reshape(8, side, 5, side, 3).swapaxes(1, 2)[:, :, 4:-4, 4:-4]
    assert (tiles[:, 1:].std(axis=(2, 3, 4)) > 0).all()
    for row in tiles:
        assert len({tile.tobytes() for tile in row}) == 5
