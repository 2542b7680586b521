import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    """Write images of one colour each, which says which image it is: {path: (red, green, blue)}."""

    def write(*paths, size=(20, 10)):
        colours = {}
        for number, path in enumerate(paths):
            colours[path] = (10 * number, 255 - 10 * number, 7 * number)
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((size[1], size[0], 3), colours[path], np.uint8)).save(file)
        return colours

    return write
