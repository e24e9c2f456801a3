"""A file of each layout, which the tests of the reader, of the writer and of damaged files ask for by name."""

import pytest

from tests.io.tiff.layouts import LAYOUTS, write_layout


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """A file of one layout: its path, its frames, arguments of the reader and its kind."""
    path = str(tmp_path / f"{request.param}.tif")
    return path, *write_layout(request.param, path)
