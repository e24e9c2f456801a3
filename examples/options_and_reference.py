"""Options in a file, a reference of chosen frames, and a channel that follows another one's flow."""

from pathlib import Path

import numpy as np
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.synthetic import make_movie

OPTIONS = """\
alpha = 4
quality = "balanced"
sigma = [1, 1, 0.5]
"""


def main() -> None:
    known = make_movie(frames=16, height=128, width=128)
    cells, fibres = known.movie[..., 0], known.movie[..., 1]
    for name, channel in (("fibres.tif", fibres), ("cells.tif", cells)):
        tifffile.imwrite(name, channel, imagej=True, metadata={"axes": "TYX"})
    Path("run.toml").write_text(OPTIONS)

    # 1. The still channel leads. Its reference: the four frames that differ least from the mean.
    distance = np.abs(fibres - fibres.mean(axis=0)).mean(axis=(1, 2))
    calm = sorted(np.argsort(distance)[:4].tolist())
    options = fg.Options.from_file("run.toml")
    fg.register_file("fibres.tif", "fibres_registered.tif", "threading", calm, flow_file="flow.tif", options=options)
    print("reference of frames", calm)

    # 2. The other one, in a file of its own, follows the same flow.
    target = "cells_registered.tif"
    fg.apply_file("flow.tif", "cells.tif", target, "threading", reference=calm, overwrite=True)
    followed = tifffile.imread(target)
    for name, movie in (("before", cells), ("after", followed)):
        print(f"{name}: the cells' standard deviation in time is {movie.std(axis=0).mean():.1f} on average")


if __name__ == "__main__":
    main()
