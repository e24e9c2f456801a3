#!/usr/bin/env bash
# bioio-tifffile 1.3.1 (bioio's reader of TIFF): a stack of pages without a description is a volume, with a pixel size.
#
# Acquisition programs and command-line tools write movies as plain pages. bioio names their axis Z, so that there is one
# time point, and states a pixel size of 1.0 along x and y, though the file tells none; for a hyperstack of ImageJ without a
# calibration it states none. With axes in tifffile's or ImageJ's description the same pixels are six time points.
#
# Seen with bioio 3.6.0, bioio-tifffile 1.3.1, tifffile 2026.3.3 on Python 3.11:
#   plain pages            T 1, Z 6, pixel size y 1.0, x 1.0
#   described as TYX       T 6, Z 1, pixel size y 1.0, x 1.0
#   ImageJ's TCYX          T 6, Z 1, pixel size y None, x None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bioio==3.6.0 bioio-tifffile==1.3.1 tifffile==2026.3.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import bioio_tifffile
import numpy as np
import tifffile
from bioio import BioImage

frames = np.arange(6 * 16 * 20, dtype=np.uint16).reshape(6, 16, 20)
pairs = np.stack([frames, frames + 1], axis=1)
tifffile.imwrite("plain.tif", frames, photometric="minisblack", metadata=None)
tifffile.imwrite("described.tif", frames, photometric="minisblack", metadata={"axes": "TYX"})
tifffile.imwrite("imagej.tif", pairs, imagej=True, metadata={"axes": "TCYX"})
seen = {"plain": (1, 6, 1.0, 1.0), "described": (6, 1, 1.0, 1.0), "imagej": (6, 1, None, None)}
for name, expected in seen.items():
    image = BioImage(f"{name}.tif", reader=bioio_tifffile.Reader)
    size = image.physical_pixel_sizes
    found = (image.dims.T, image.dims.Z, size.Y, size.X)
    print(f"{name:10} T {found[0]}, Z {found[1]}, pixel size y {found[2]}, x {found[3]}")
    assert found == expected, f"this has changed, it was {expected}"
PYTHON
