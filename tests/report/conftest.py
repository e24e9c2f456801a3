"""A movie that was registered, and what its report shows."""

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.synthetic import make_movie


@pytest.fixture(scope="session")
def registered(tmp_path_factory):
    """Folder with in.tif, out.tif and flow.h5 of two channels, and the summary."""
    folder = tmp_path_factory.mktemp("report")
    movie, reference, _ = make_movie(frames=24, height=64, width=80)
    tifffile.imwrite(folder / "in.tif", np.moveaxis(movie, -1, 1), imagej=True, metadata={"axes": "TCYX"})
    summary = fg.register_file(
        folder / "in.tif", folder / "out.tif", "sequential", reference, folder / "flow.h5", quality="fast", alpha=8
    )
    return folder, summary
