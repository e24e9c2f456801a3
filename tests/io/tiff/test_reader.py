"""TIFF files of every layout, each compared pixel by pixel with the array that was written."""

import os
import struct

import numpy as np
import pytest
import tifffile

from flowreg_gpu.io import TiffReader, TiffWriter, read_image
from flowreg_gpu.io.tiff import source as tiff_source
from tests.io.tiff.layouts import LAYOUTS, TYX, C, H, T, W, by_pages, frames_of, pixels


def test_read_whole(layout):
    path, expected, arguments, kind = layout
    with TiffReader(path, **arguments) as reader:
        assert reader.shape == expected.shape
        assert reader.kind == kind
        frames = reader.read(0, reader.n_frames)
    assert reader.dtype == expected.dtype
    assert frames.dtype == expected.dtype
    assert frames.dtype.isnative
    assert frames.flags.c_contiguous
    assert frames.flags.writeable
    np.testing.assert_array_equal(frames, expected)


def test_read_ranges(layout):
    path, expected, arguments, _ = layout
    with TiffReader(path, **arguments) as reader:
        for start in range(len(expected)):
            for stop in range(start + 1, len(expected) + 1):
                np.testing.assert_array_equal(reader.read(start, stop), expected[start:stop])


@pytest.mark.parametrize("positioned", [True, False])
def test_read_in_parts(layout, monkeypatch, positioned):
    """As recordings of many megabytes are read: in threads, where the system reads at a position."""
    path, expected, arguments, _ = layout
    monkeypatch.setattr(tiff_source, "PART_BYTES", 2000)
    if not positioned:
        monkeypatch.delattr(os, "preadv", raising=False)
    with TiffReader(path, **arguments) as reader:
        np.testing.assert_array_equal(reader.read(0, len(expected)), expected)
        np.testing.assert_array_equal(reader.read(len(expected) // 2, len(expected)), expected[len(expected) // 2 :])


@pytest.mark.parametrize(
    "name", ["pages", "shaped-ctyx", "imagej-tc", "imagej-ct", "ome-ctyx", "scanimage", "rgb-planar"]
)
def test_several_files(name, tmp_path):
    write, axes, arguments, _ = LAYOUTS[name]
    paths = [str(tmp_path / f"part{i}.tif") for i in range(3)]
    parts = [frames_of(write(path), axes) for path in paths]
    # Parts of one recording that can be told apart.
    with open(paths[1], "r+b") as file, TiffReader(paths[1], **arguments) as reader:
        file.seek(int(reader._sources[0].page_map.offsets[0]))
        file.write(bytes(range(200)))
        file.flush()
        parts[1] = reader.read(0, len(parts[1]))
    assert not np.array_equal(parts[1], parts[0])
    expected = np.concatenate(parts)
    output = tmp_path / "output.tif"
    with TiffReader(paths, **arguments) as reader:
        assert reader.shape == expected.shape
        for start, stop in [(0, 15), (0, 5), (4, 6), (3, 12), (5, 10), (14, 15)]:
            np.testing.assert_array_equal(reader.read(start, stop), expected[start:stop])
        size = dict(zip(("n_frames", "height", "width", "n_channels"), reader.shape, strict=True))
        with TiffWriter(output, **size, dtype=reader.dtype, like=reader) as writer:
            writer.write(expected)
        assert tifffile.imread(output).shape == reader.stored_shape
    with TiffReader(output, **arguments) as again:
        assert again.axes == reader.axes
        np.testing.assert_array_equal(again.read(0, 15), expected)


def test_single_images_become_a_stack(tmp_path):
    frames = pixels((3, H, W))
    for kind, kwargs in {"imagej": {"imagej": True}, "ome": {"ome": True}, "plain": {"metadata": None}}.items():
        paths = [tmp_path / f"{kind}{i}.tif" for i in range(3)]
        for path, frame in zip(paths, frames, strict=True):
            tifffile.imwrite(path, frame, photometric="minisblack", **kwargs)
        with TiffReader(paths) as reader:
            np.testing.assert_array_equal(reader.read(0, 3)[..., 0], frames)
            with TiffWriter(
                tmp_path / f"{kind}_output.tif", n_frames=3, height=H, width=W, n_channels=1, dtype="u2", like=reader
            ) as writer:
                writer.write(frames[..., np.newaxis])
            np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{kind}_output.tif"), frames)
            with tifffile.TiffFile(tmp_path / f"{kind}_output.tif") as tif:
                assert tif.series[0].axes == reader.axes


@pytest.mark.parametrize("shape", [(H, W), (1, H, W)], ids=["image", "stack-of-one"])
def test_series_of_single_pages(shape, tmp_path):
    """TiffWriter.write in a loop without contiguous=True: tifffile sees as many series as there are pages."""
    frames = pixels(TYX)
    with tifffile.TiffWriter(tmp_path / "loop.tif") as tif:
        for frame in frames:
            tif.write(frame.reshape(shape), photometric="minisblack")
    with TiffReader(tmp_path / "loop.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, T)[..., 0], frames)


def test_thumbnails_and_pyramids_are_passed_over(tmp_path):
    frames = pixels(TYX)
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as tif:
        tif.write(frames, photometric="minisblack", metadata={"axes": "TYX"})
        tif.write(frames[0, ::3, ::3], photometric="minisblack", subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif", ome=True) as tif:
        tif.write(frames, photometric="minisblack", metadata={"axes": "TYX"}, subifds=1)
        tif.write(frames[:, ::2, ::2], photometric="minisblack", subfiletype=1)
    for name in ("thumbnail.tif", "pyramid.ome.tif"):
        with TiffReader(tmp_path / name) as reader:
            np.testing.assert_array_equal(reader.read(0, T)[..., 0], frames)


def test_strips_out_of_order(tmp_path):
    """tifffile takes the strips of all pages to lie as those of the first."""
    path = tmp_path / "strips.tif"
    frames = pixels((11, H, W))
    by_pages(path, frames, rowsperstrip=9)
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[4].tags["StripOffsets"]
        offsets = tag.value
        position = tag.valueoffset
    half = H // 2 * W * 2
    with open(path, "r+b") as file:
        file.seek(offsets[0])
        rows = file.read(2 * half)
        file.seek(offsets[0])
        file.write(rows[half:] + rows[:half])
        file.seek(position)
        file.write(struct.pack("<2I", offsets[1], offsets[0]))
    with TiffReader(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 11)[..., 0], frames)


def test_multifile_ome(tmp_path):
    frames = pixels((2, H, W))
    names = [f"plane{i}.ome.tif" for i in range(2)]
    files = "".join(
        f'<TiffData FirstT="{i}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{i}</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    for i, name in enumerate(names):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{i}"><Image ID="Image:0">'
            f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{W}" SizeY="{H}" SizeC="1" SizeZ="1" '
            f'SizeT="2"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{files}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / name, frames[i], photometric="minisblack", description=xml, metadata=None)
    paths = [tmp_path / name for name in names]
    with TiffReader(paths[0]) as reader:
        np.testing.assert_array_equal(reader.read(0, 2)[..., 0], frames)
        np.testing.assert_array_equal(reader.read(1, 2)[..., 0], frames[1:])
    with pytest.raises(ValueError, match="already includes the other files"):
        TiffReader(paths)
    paths[1].unlink()
    with pytest.raises(ValueError, match="1 of the 2 pages described are missing"):
        TiffReader(paths[0])


def test_pages_of_different_compression_are_read(tmp_path):
    frames = pixels((12, H, W))
    with tifffile.TiffWriter(tmp_path / "in.tif") as tif:
        for i, frame in enumerate(frames):
            tif.write(frame, metadata=None, photometric="minisblack", compression="zlib" if i == 5 else None)
    with TiffReader(tmp_path / "in.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 12)[..., 0], frames)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 3), (4, 2)])
def test_frames_that_are_not_there(start, stop, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", pixels(TYX))
    with TiffReader(tmp_path / "in.tif") as reader, pytest.raises(ValueError, match=f"frames {start} to {stop}"):
        reader.read(start, stop)


def test_channel_axis(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels((T, 1, H, W)), metadata={"axes": "TCYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", pixels(TYX), metadata={"axes": "TYX"})
    assert TiffReader(tmp_path / "a.tif").has_channel_axis
    assert not TiffReader(tmp_path / "b.tif").has_channel_axis


def test_read_image(tmp_path):
    image = pixels((C, H, W))
    tifffile.imwrite(tmp_path / "grey.tif", image[0])
    tifffile.imwrite(tmp_path / "cyx.tif", image, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "yxs.tif", image.transpose(1, 2, 0), planarconfig="contig", photometric="minisblack")
    tifffile.imwrite(tmp_path / "stack.tif", image)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.tif"), image[0, :, :, np.newaxis])
    np.testing.assert_array_equal(read_image(tmp_path / "cyx.tif"), image.transpose(1, 2, 0))
    np.testing.assert_array_equal(read_image(tmp_path / "yxs.tif"), image.transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r"stack\.tif: the file holds 2 frames, expected a single image"):
        read_image(tmp_path / "stack.tif")


def test_memory_does_not_hold_the_file(tmp_path):
    """Reading two frames of a sparse 512 MB file takes the memory of two frames."""
    import tracemalloc

    path = tmp_path / "in.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(None, shape=(512, 512, 1024), dtype="uint16", metadata={"axes": "TYX"}, photometric="minisblack")
    with TiffReader(path) as reader:
        tracemalloc.start()
        reader.read(100, 102)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * 2**20 + 2**19
