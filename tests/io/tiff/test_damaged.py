"""TIFF files that cannot be read, cut short, damaged or of unclear axes: the error names the file and the problem."""

import os
import re

import numpy as np
import pytest
import tifffile

from flowreg_gpu.io import TiffReader
from tests.io.tiff.layouts import (
    SCANIMAGE,
    TCYX,
    TYX,
    H,
    T,
    W,
    by_pages,
    frames_of,
    pixels,
    scanimage,
    scanimage_description,
)


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tif: there is no such file"):
        TiffReader(tmp_path / "missing.tif")
    with pytest.raises(ValueError, match="at least one"):
        TiffReader([])
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.tif: the file is empty"):
        TiffReader(tmp_path / "empty.tif")
    for content in (b"II", b"\x89PNG\r\n\x1a\n", b"MM\x00\x01" + bytes(30)):
        (tmp_path / "foreign.tif").write_bytes(content)
        with pytest.raises(ValueError, match=r"foreign\.tif: not a TIFF file"):
            TiffReader(tmp_path / "foreign.tif")
    for content in (b"II*\x00", b"II*\x00" + bytes(4)):
        (tmp_path / "hollow.tif").write_bytes(content)
        with pytest.raises(ValueError, match=r"hollow\.tif: "):
            TiffReader(tmp_path / "hollow.tif")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("part", [0.999, 0.9, 0.5, 0.2, 0.02])
def test_truncated_files(layout, part):
    """A file cut short is refused, unless what was cut off is only the padding behind its last tag."""
    path, expected, arguments, _ = layout
    os.truncate(path, int(os.path.getsize(path) * part))
    try:
        with TiffReader(path, **arguments) as reader:
            frames = reader.read(0, reader.n_frames)
    except ValueError as error:
        assert re.search("truncated|not a TIFF|damaged", str(error))  # noqa: PT017
    else:
        assert part > 0.99
        np.testing.assert_array_equal(frames, expected)


def test_file_that_shrinks_while_in_use(tmp_path):
    by_pages(tmp_path / "in.tif", pixels(TYX))
    with TiffReader(tmp_path / "in.tif") as reader:
        os.truncate(tmp_path / "in.tif", 2000)
        with pytest.raises(OSError, match="was it changed while in use"):
            reader.read(0, T)


@pytest.mark.parametrize("dtype", ["float64", "uint32", "int32", "complex64", "int8", "bool", "float16"])
def test_unsupported_dtype(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", np.zeros(TYX, dtype), photometric="minisblack")
    with pytest.raises(ValueError, match=rf"in\.tif: dtype {dtype} .* uint8, uint16, int16, float32"):
        TiffReader(tmp_path / "in.tif")


@pytest.mark.parametrize("n_pages", [3, 12])
@pytest.mark.parametrize("odd", [(H + 1, W), (H, W + 1), (W, H)])
@pytest.mark.parametrize("where", [1, -2, -1])
def test_pages_of_different_shapes(n_pages, odd, where, tmp_path):
    shapes = [(H, W)] * n_pages
    shapes[where] = odd
    by_pages(tmp_path / "in.tif", [pixels(shape) for shape in shapes])
    with pytest.raises(ValueError, match=r"in\.tif: the pages have different shapes"):
        TiffReader(tmp_path / "in.tif")


def test_pages_of_different_types(tmp_path):
    by_pages(tmp_path / "in.tif", [pixels((H, W), "int16" if i == 5 else "uint16") for i in range(12)])
    with pytest.raises(ValueError, match="different shapes or types"):
        TiffReader(tmp_path / "in.tif")


@pytest.mark.parametrize(
    ("shape", "kwargs", "arguments", "message"),
    [
        (TCYX, {}, {}, 'several ways; name the axes, e.g. axes="TCYX"'),
        ((2, 3, H, W), {"metadata": {"axes": "TZYX"}}, {}, "volume over time"),
        ((T, 2, H, W, 3), {"metadata": {"axes": "TCYXS"}, "photometric": "rgb"}, {}, "channels twice"),
        (TCYX, {}, {"axes": "TYX"}, "do not match the stored shape"),
        (TCYX, {}, {"axes": "TCQX"}, "do not hold Y and X once each"),
        (TYX, {}, {"channels": 2}, "5 pages cannot be split into frames of 2 channels"),
        (TYX, {}, {"channels": 0}, "channels=0 cannot split"),
        (TYX, {}, {"channels": 1, "axes": "TYX"}, "exclude each other"),
        ((T, H, W, 3), {"photometric": "rgb"}, {"channels": 3}, "cannot split axes"),
    ],
)
def test_undecided_axes(shape, kwargs, arguments, message, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", pixels(shape, "uint8"), **{"photometric": "minisblack"} | kwargs)
    with pytest.raises(ValueError, match=rf"in\.tif: .*{message}"):
        TiffReader(tmp_path / "in.tif", **arguments)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("SI.VERSION = 1", "does not tell which channels"),
        (SCANIMAGE.format(channels="[1;2;3]"), "10 pages are not frames of 3 channels"),
        (SCANIMAGE.format(channels="1") + "SI.hStackManager.enable = true\nSI.hStackManager.numSlices = 5", "5 planes"),
    ],
)
def test_undecided_scanimage(header, message, tmp_path):
    scanimage(tmp_path / "in.tif", pixels(TCYX), header)
    with pytest.raises(ValueError, match=message):
        TiffReader(tmp_path / "in.tif")


@pytest.mark.parametrize("json", [False, True])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("saved", "numbers", "counted"),
    [
        ("1", [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], 2),
        ("[1;2]", list(range(41, 51)), 1),
        ("[1;2;3;4]", [7, 7, 8, 8, 9, 9, 10, 10, 11, 11], 2),
    ],
)
def test_scanimage_channels_that_the_pages_contradict(saved, numbers, counted, bigtiff, json, tmp_path):
    array = pixels(TCYX)
    descriptions = [scanimage_description(number, json) for number in numbers]
    scanimage(tmp_path / "in.tif", array, SCANIMAGE.format(channels=saved), bigtiff, descriptions)
    with pytest.raises(ValueError, match=rf"in\.tif: .* {counted} page.*channels={counted} \(--channels {counted}\)"):
        TiffReader(tmp_path / "in.tif")
    with TiffReader(tmp_path / "in.tif", channels=counted) as reader:
        expected = frames_of(array.reshape(-1, counted, H, W), "TCYX")
        np.testing.assert_array_equal(reader.read(0, reader.n_frames), expected)


@pytest.mark.parametrize(
    ("saved", "channels", "numbers"),
    [
        ("[1;2]", 2, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        ("[1;2]", 2, [10, 10, 20, 20, 30, 30, 40, 40, 50, 50]),  # averaged while they were saved
        ("3", 1, list(range(1, 11))),
        # what does not tell how many pages make a frame contradicts nothing
        ("1", 1, [1, 1, 2, 3, 3, 4, 5, 5, 6, 7]),
        ("1", 1, [1] * 10),
    ],
)
def test_scanimage_channels_that_the_pages_confirm(saved, channels, numbers, tmp_path):
    array = pixels(TCYX)
    descriptions = [scanimage_description(number) for number in numbers]
    scanimage(tmp_path / "in.tif", array, SCANIMAGE.format(channels=saved), descriptions=descriptions)
    with TiffReader(tmp_path / "in.tif") as reader:
        expected = frames_of(array.reshape(-1, channels, H, W), "TCYX")
        np.testing.assert_array_equal(reader.read(0, reader.n_frames), expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((T, H + 1, W), "uint16", "height is 19, expected 18"),
        ((T, H, W + 1), "uint16", "width is 22, expected 21"),
        (TCYX, "uint16", "channels is 2, expected 1"),
        (TYX, "uint8", "dtype is uint8, expected uint16"),
    ],
)
def test_files_that_disagree(shape, dtype, message, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(TYX), imagej=True, metadata={"axes": "TYX"})
    axes = "TYX" if len(shape) == 3 else "TCYX"
    tifffile.imwrite(tmp_path / "b.tif", pixels(shape, dtype), imagej=True, metadata={"axes": axes})
    with pytest.raises(ValueError, match=rf"b\.tif: {message}"):
        TiffReader([tmp_path / "a.tif", tmp_path / "b.tif"])


def test_missing_codec(tmp_path, monkeypatch):
    by_pages(tmp_path / "in.tif", pixels(TYX), compression="zlib")

    def refuse(page, **keywords):
        raise ValueError("<COMPRESSION.ZSTD: 50000> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    with pytest.raises(
        ValueError, match=r"requires the 'imagecodecs' package.*pip install \"flowreg-gpu\[compressed\]"
    ):
        TiffReader(tmp_path / "in.tif")


def test_damaged_page(tmp_path):
    by_pages(tmp_path / "in.tif", pixels((12, H, W)), compression="zlib")
    with tifffile.TiffFile(tmp_path / "in.tif") as tif:
        offset = tif.pages[7].dataoffsets[0]
    with open(tmp_path / "in.tif", "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 50)
    with TiffReader(tmp_path / "in.tif") as reader:
        reader.read(0, 7)
        with pytest.raises(ValueError, match=r"in\.tif: page 7 cannot be decoded"):
            reader.read(5, 9)


def test_descriptions_that_do_not_fit(tmp_path):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, pixels((H, W)), description="ImageJ=1.53t\nimages=7\n", metadata=None)
    with pytest.raises(ValueError, match="tells of 7 images"):
        TiffReader(path)
    xml = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="a" UUID="b"/></OME>'
    frames = pixels((4, H, W))
    tifffile.imwrite(path, frames, photometric="minisblack", description=xml, metadata=None)
    with pytest.raises(ValueError, match="OME description does not describe"):
        TiffReader(path)
    with TiffReader(path, channels=2) as reader:
        np.testing.assert_array_equal(reader.read(0, 2), frames.reshape(2, 2, H, W).transpose(0, 2, 3, 1))
