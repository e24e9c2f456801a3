"""What programs of microscopes write beside the pixels is kept in the registered file."""

import numpy as np
import tifffile

from tests.io.tiff.layouts import SCANIMAGE, TCYX, TYX, C, T, pixels, rewrite, scanimage


def test_imagej_metadata_is_kept(tmp_path):
    lut = np.zeros((3, 256), np.uint8)
    lut[1] = np.arange(256)
    metadata = {
        "axes": "TCYX",
        "unit": "um",
        "finterval": 0.033,
        "fps": 30.3,
        "spacing": 2.5,
        "mode": "composite",
        "loop": True,
        "min": 3.0,
        "Info": "objective 16x\nlaser 920 nm",
        "Labels": [f"plane {i}" for i in range(T * C)],
        "Ranges": (0.0, 100.0, 5.0, 200.0),
        "LUTs": [lut, lut[::-1].copy()],
    }
    path, output = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(path, pixels(TCYX), imagej=True, resolution=(1.25, 2 / 3), metadata=metadata, byteorder=">")
    rewrite(path, output)
    with tifffile.TiffFile(path) as before, tifffile.TiffFile(output) as after:
        expected, found = before.imagej_metadata, after.imagej_metadata
        assert expected.keys() == found.keys()
        for key in expected.keys() - {"LUTs"}:
            assert found[key] == expected[key]
        np.testing.assert_array_equal(found["LUTs"], expected["LUTs"])
        assert after.pages[0].resolution == before.pages[0].resolution
        assert after.pages[0].resolutionunit == before.pages[0].resolutionunit


def test_imagej_labels_are_dropped_where_they_do_not_fit(tmp_path):
    path = tmp_path / "in.tif"
    labels = [f"plane {i}" for i in range(T)]
    tifffile.imwrite(path, pixels(TYX), imagej=True, metadata={"axes": "TYX", "Labels": labels, "Info": "kept"})
    rewrite([path, path], tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert "Labels" not in tif.imagej_metadata
        assert tif.imagej_metadata["Info"] == "kept"
        assert tif.imagej_metadata["frames"] == 2 * T


def test_ome_metadata_is_kept(tmp_path):
    metadata = {
        "axes": "TCYX",
        "Name": "007",
        "Description": "cells & <things>",
        "PhysicalSizeX": 0.65,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.7,
        "PhysicalSizeYUnit": "µm",
        "TimeIncrement": 0.033,
        "TimeIncrementUnit": "s",
        "SignificantBits": 12,
        "Channel": {"Name": ["GCaMP", "tdTomato"]},
    }
    path, output = tmp_path / "in.ome.tif", tmp_path / "out.ome.tif"
    tifffile.imwrite(path, pixels(TCYX), ome=True, photometric="minisblack", resolution=(100, 90), metadata=metadata)
    rewrite(path, output)
    with tifffile.TiffFile(path) as before, tifffile.TiffFile(output) as after:
        images = [tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"] for tif in (before, after)]
        assert images[0] == images[1]
        assert images[1]["Pixels"]["Channel"][0]["Name"] == "GCaMP"
        assert after.pages[0].resolution == before.pages[0].resolution


def test_plain_description_colours_and_resolution_are_kept(tmp_path):
    colormap = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256)
    path, output = tmp_path / "in.tif", tmp_path / "out.tif"
    with tifffile.TiffWriter(path) as tif:
        for page in pixels(TYX, "uint8"):
            tif.write(page, colormap=colormap, description="camera 3", software="Cam", resolution=(3, 4), metadata=None)
    rewrite(path, output)
    with tifffile.TiffFile(output) as tif:
        page = tif.pages[0]
        assert (page.description, page.software, page.resolution) == ("camera 3", "Cam", (3, 4))
        np.testing.assert_array_equal(page.colormap, colormap)


def test_scanimage_header_is_kept(tmp_path):
    header = SCANIMAGE.format(channels="[1;2]")
    scanimage(tmp_path / "in.tif", pixels(TCYX), header)
    rewrite(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.pages[0].software.strip() == header.strip()
        assert tif.pages[0].description == "frame = 0"
        assert tif.series[0].axes == "TCYX"


def test_shaped_metadata_is_kept(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", pixels(TYX), metadata={"axes": "TYX", "rig": "B"}, photometric="miniswhite")
    rewrite(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.shaped_metadata[0]["rig"] == "B"
        assert tif.pages[0].photometric == 0
