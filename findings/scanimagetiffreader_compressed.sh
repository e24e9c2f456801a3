#!/usr/bin/env bash
# scanimage-tiff-reader 1.4.1.4 (the reader that ScanImage's makers publish): compressed bytes come as pixels.
#
# ScanImage writes uncompressed BigTIFF; labs compress old recordings, and the files stay valid. The reader does not look at
# the tag that names the compression: it returns an array of the right shape and dtype that holds the bytes of the file
# from where each page begins, that is compressed bytes, and raises nothing.
#
# Seen with scanimage-tiff-reader 1.4.1.4, numpy 2.2.6, tifffile 2025.5.10:
#   stored as it is: equal to what was written; deflate: (6, 64, 80) uint16, no pixel data, the page's compressed bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  scanimage-tiff-reader==1.4.1.4 numpy==2.2.6 tifffile==2025.5.10
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tifffile
from ScanImageTiffReader import ScanImageTiffReader

frames = np.arange(6 * 64 * 80, dtype=np.uint16).reshape(6, 64, 80)
for compression in (None, "zlib"):
    tifffile.imwrite(
        "recording.tif", frames, bigtiff=True, photometric="minisblack", metadata=None, compression=compression
    )
    assert np.array_equal(tifffile.imread("recording.tif"), frames)
    with ScanImageTiffReader("recording.tif") as reader:
        data = reader.data()
    assert (data.shape, data.dtype) == (frames.shape, frames.dtype), (data.shape, data.dtype)
    equal = np.array_equal(data, frames)
    print(f"compression {compression}: {data.shape} {data.dtype}, equal to what was written: {equal}")
    assert equal == (compression is None), "this has changed"
with tifffile.TiffFile("recording.tif") as tif:
    offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
stored = np.fromfile("recording.tif", np.uint8)[offset : offset + count]
assert np.array_equal(data[0].view(np.uint8).ravel()[:count], stored), "the content has changed"
print(f"the first {count} of {data[0].nbytes} bytes of the first frame are the page's compressed bytes")
PYTHON
