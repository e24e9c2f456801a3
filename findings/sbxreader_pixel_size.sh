#!/usr/bin/env bash
# sbxreader 0.2.3 (Scanbox recordings, .sbx with .mat): um_per_pixel_y is the pixel size along x.
#
# The .mat file of a Scanbox recording holds a calibration for either axis (dxcal, dycal); resonant scans rarely have
# square pixels. The metadata of sbxreader has both names, and both have the value of x. Anything computed from it along y
# (distances, isotropic filters, NWB's grid spacing) is wrong by the ratio of the two.
#
# Seen with sbxreader 0.2.3, numpy 2.2.6, scipy 1.15.3: dxcal 1.5 and dycal 1.1 are read as
#   um_per_pixel_x 1.5, um_per_pixel_y 1.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sbxreader==0.2.3 numpy==2.2.6 scipy==1.15.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import scipy.io
from sbxreader import sbx_memmap

height, width, frames = 32, 48, 5
np.full((frames, height, width), 60000, np.uint16).tofile("recording.sbx")
config = {"magnification": 1, "lines": height, "frames": frames, "coord_rel": np.zeros(4)}
info = {
    "chan": {"nchan": 1}, "volscan": 0, "sz": np.array([height, width]), "dxcal": 1.5, "dycal": 1.1, "scanmode": 1,
    "config": {**config, "magnification_list": np.array([1.0, 2.0])}, "resfreq": 8000, "scanbox_version": 3,
    "recordsPerBuffer": height,
}
scipy.io.savemat("recording.mat", {"info": info})
metadata = sbx_memmap("recording.sbx").metadata
found = metadata["um_per_pixel_x"], metadata["um_per_pixel_y"]
print(f"dxcal 1.5, dycal 1.1: um_per_pixel_x {found[0]}, um_per_pixel_y {found[1]}")
assert found == (1.5, 1.5), "this has changed"
PYTHON
