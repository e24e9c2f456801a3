#!/usr/bin/env bash
# sbxreader 0.2.3 (Scanbox recordings, .sbx with .mat): brightness comes inverted or not by the way of indexing.
#
# Scanbox stores 65535 minus the brightness. The memory map of sbxreader turns that round whenever it is indexed, and what
# comes out is a memory map of the same class, which turns it round again when it is indexed once more; what reads the
# array without indexing (np.asarray, mean, max) gets the stored values.
#
# Seen with sbxreader 0.2.3, numpy 2.2.6, scipy 1.15.3:
#   d[0, 0, 0]      brightness          d[0][0, 0]      65535 - brightness
#   d[:]            brightness          d[:3][1]        65535 - brightness
#   get_stack()     brightness          np.asarray(d)   65535 - brightness
#   d.mean() is that of the stored values
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

frames, planes, height, width = 6, 2, 32, 48
brightness = np.random.default_rng(0).integers(1000, 5000, (frames, planes, 1, height, width)).astype(np.uint16)
(65535 - brightness).tofile("recording.sbx")
config = {"magnification": 1, "lines": height, "frames": frames * planes, "coord_rel": np.zeros(4)}
info = {
    "chan": {"nchan": 1}, "volscan": 1, "otwave": np.array([0.0, 10.0]), "sz": np.array([height, width]),
    "config": {**config, "magnification_list": np.array([1.0, 2.0])}, "dxcal": 1.5, "dycal": 1.1, "scanmode": 1,
    "resfreq": 8000, "scanbox_version": 3, "recordsPerBuffer": height,
}
scipy.io.savemat("recording.mat", {"info": info})

data = sbx_memmap("recording.sbx")
assert data.shape == brightness.shape, data.shape
rows = {
    "d[0, 0, 0]": (data[0, 0, 0], brightness[0, 0, 0], "brightness"),
    "d[:]": (data[:], brightness, "brightness"),
    "get_stack(3, 0)": (data.get_stack(3, 0), brightness[:3], "brightness"),
    "d[0][0, 0]": (data[0][0, 0], brightness[0, 0, 0], "inverted"),
    "d[:3][1]": (data[:3][1], brightness[1], "inverted"),
    "np.asarray(d)": (data, brightness, "inverted"),
}
for way, (found, expected, seen) in rows.items():
    found = np.asarray(found)
    kind = "brightness" if np.array_equal(found, expected) else "inverted"
    assert kind == "brightness" or np.array_equal(found, 65535 - expected), f"{way}: neither"
    print(f"{way:16} {kind}")
    assert kind == seen, f"{way}: this has changed, it was {seen}"
assert np.isclose(data.mean(), 65535 - brightness.mean()), "the mean has changed"
print(f"d.mean()         {data.mean():.1f}, brightness has {brightness.mean():.1f}")
PYTHON
