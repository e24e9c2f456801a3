"""A file of each layout, which the tests of the reader, of the writer and of damaged files ask for by name."""

import pytest

from tests.io.tiff.layouts import LAYOUTS, H, W, frames_of


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """A file of one layout: its path, its frames, arguments of the reader and its kind."""
    writer, axes, arguments, kind = LAYOUTS[request.param]
    path = str(tmp_path / f"{request.param}.tif")
    array = writer(path)
    if axes == "TYX" and arguments.get("channels", 1) > 1:
        array, axes = array.reshape(-1, arguments["channels"], H, W), "TCYX"
    if "Z" in axes:
        array, axes = array[:, 0], axes.replace("Z", "")
    return path, frames_of(array, axes), arguments, kind
