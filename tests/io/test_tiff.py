"""TIFF files of every layout, each compared pixel by pixel with the array that was written and with tifffile."""

import errno
import os
import re
import shutil
import struct
import types

import numpy as np
import pytest
import tifffile

from flowreg_gpu.io import ArrayReader, ArrayWriter, TiffReader, TiffWriter, check_output, read_image
from flowreg_gpu.io.tiff import source as tiff_source
from flowreg_gpu.io.tiff import writer as tiff_writer

T, C, H, W = 5, 2, 18, 21
SCANIMAGE = "SI.VERSION_MAJOR = 2020\nSI.hChannels.channelSave = {channels}\nSI.hStackManager.framesPerSlice = 1000\n"


def pixels(shape, dtype="uint16"):
    """Random pixels over the whole range of the type, so that a byte or a sign out of place shows."""
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def by_pages(path, array, **kwargs):
    """One page a plane and no description, as cameras and LabVIEW write."""
    with tifffile.TiffWriter(path, **{k: kwargs.pop(k) for k in ("bigtiff", "byteorder") if k in kwargs}) as tif:
        for page in array:
            tif.write(page, photometric="minisblack", metadata=None, **kwargs)


def imagej_order(path, array, order, counts):
    """An ImageJ hyperstack whose planes are in another order than channels, slices, frames."""
    description = f"ImageJ=1.53t\nimages={array.shape[0] * array.shape[1]}\n{counts}hyperstack=true\norder={order}\n"
    planes = array.reshape(-1, *array.shape[-2:])
    tifffile.imwrite(path, planes, photometric="minisblack", description=description, metadata=None)


def imagej_one_page(path, array):
    """An ImageJ stack as ImageJ writes it above 4 GB: one page description, the pixels of all pages behind it."""
    description = f"ImageJ=1.53t\nimages={T * C}\nchannels={C}\nframes={T}\nhyperstack=true\n"
    tifffile.imwrite(path, array[0, 0], description=description, metadata=None, byteorder=">")
    with open(path, "ab") as file:
        file.write(array.reshape(-1, H, W)[1:].astype(">u2").tobytes())


def scanimage(path, array, header, bigtiff=True):
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        for i, page in enumerate(array.reshape(-1, H, W)):
            tif.write(page, photometric="minisblack", metadata=None, software=header, description=f"frame = {i}")


def imwrite(shape, dtype="uint16", **kwargs):
    def write(path):
        array = pixels(shape, dtype)
        tifffile.imwrite(path, array, **{"photometric": "minisblack"} | kwargs)
        return array

    return write


def special(writer, shape, dtype="uint16", **kwargs):
    def write(path):
        array = pixels(shape, dtype)
        writer(path, array, **kwargs)
        return array

    return write


def frames_of(array, axes):
    """Independent statement of what (T, H, W, C) is, axis by axis."""
    for missing in set("TC") - set(axes):
        array, axes = array[np.newaxis], missing + axes
    return np.einsum(array, [ord(a) - 65 for a in axes], [ord(a) - 65 for a in "TYXC"])


TCYX, TYX, CTYX = (T, C, H, W), (T, H, W), (C, T, H, W)
# name: (writer, axes of the array that was written, arguments of the reader, kind)
LAYOUTS = {
    "pages": (special(by_pages, TYX), "TYX", {}, "plain"),
    "many-pages": (special(by_pages, (11, H, W)), "TYX", {}, "plain"),
    "pages-strips": (special(by_pages, TYX, rowsperstrip=4), "TYX", {}, "plain"),
    "pages-big-endian": (special(by_pages, (11, H, W), byteorder=">"), "TYX", {}, "plain"),
    "pages-bigtiff": (special(by_pages, TYX, bigtiff=True), "TYX", {}, "plain"),
    "pages-int16": (special(by_pages, TYX, "int16", byteorder=">"), "TYX", {}, "plain"),
    "pages-zlib": (special(by_pages, (11, H, W), compression="zlib"), "TYX", {}, "plain"),
    "pages-tiled": (special(by_pages, TYX, tile=(16, 16)), "TYX", {}, "plain"),
    "pages-rgb": (special(by_pages, (T, H, W, 2), planarconfig="contig"), "TYXC", {}, "plain"),
    "pages-interleaved": (special(by_pages, (T * C, H, W)), "TYX", {"channels": 2}, "plain"),
    "one-page": (special(by_pages, (1, H, W)), "TYX", {}, "plain"),
    "shaped-u8": (imwrite(TYX, "uint8"), "TYX", {}, "shaped"),
    "shaped-u16": (imwrite(TYX), "TYX", {}, "shaped"),
    "shaped-i16": (imwrite(TYX, "int16"), "TYX", {}, "shaped"),
    "shaped-f32": (imwrite(TYX, "float32", byteorder=">"), "TYX", {}, "shaped"),
    "shaped-tcyx": (imwrite(TCYX, metadata={"axes": "TCYX"}), "TCYX", {}, "shaped"),
    "shaped-ctyx": (imwrite(CTYX, metadata={"axes": "CTYX"}), "CTYX", {}, "shaped"),
    "shaped-zyx": (imwrite(TYX, metadata={"axes": "ZYX"}), "TYX", {}, "shaped"),
    "shaped-yxt": (imwrite((H, W, T), metadata={"axes": "YXT"}), "YXT", {}, "shaped"),
    "shaped-tyxc": (imwrite((T, H, W, C), metadata={"axes": "TYXC"}), "TYXC", {}, "shaped"),
    "shaped-ytcx-zlib": (imwrite((H, T, C, W), metadata={"axes": "YTCX"}, compression="zlib"), "YTCX", {}, "shaped"),
    "shaped-4d": (imwrite(TCYX), "TCYX", {"axes": "TCYX"}, "shaped"),
    "shaped-singleton": (imwrite((T, 1, H, W), metadata={"axes": "TCYX"}), "TCYX", {}, "shaped"),
    "shaped-one-page": (imwrite(TYX, metadata={"axes": "TYX"}, truncate=True), "TYX", {}, "shaped"),
    "shaped-zlib": (imwrite(TYX, compression="zlib"), "TYX", {}, "shaped"),
    "shaped-lzw": (imwrite(TYX, compression="lzw", predictor=True, byteorder=">"), "TYX", {}, "shaped"),
    "shaped-zstd": (imwrite(TYX, compression="zstd"), "TYX", {}, "shaped"),
    "shaped-tiled-zlib": (imwrite(TYX, tile=(16, 16), compression="zlib"), "TYX", {}, "shaped"),
    "rgb-contig": (imwrite((T, H, W, 3), "uint8", photometric="rgb"), "TYXC", {}, "shaped"),
    "rgb-planar": (imwrite((T, 3, H, W), "uint8", photometric="rgb", planarconfig="separate"), "TCYX", {}, "shaped"),
    "rgb-planar-zlib": (
        imwrite((T, 3, H, W), photometric="rgb", planarconfig="separate", compression="zlib"),
        "TCYX",
        {},
        "shaped",
    ),
    "imagej-t": (imwrite(TYX, imagej=True, metadata={"axes": "TYX"}), "TYX", {}, "imagej"),
    "imagej-z": (imwrite(TYX, "float32", imagej=True, metadata={"axes": "ZYX"}), "TYX", {}, "imagej"),
    "imagej-tc": (imwrite(TCYX, imagej=True, byteorder=">", metadata={"axes": "TCYX"}), "TCYX", {}, "imagej"),
    "imagej-rgb": (
        imwrite((T, H, W, 3), "uint8", imagej=True, photometric="rgb", metadata={"axes": "TYXS"}),
        "TYXC",
        {},
        "imagej",
    ),
    "imagej-ct": (
        special(imagej_order, CTYX, order="ztc", counts="channels=2\nframes=5\n"),
        "CTYX",
        {},
        "imagej",
    ),
    "imagej-one-page": (special(imagej_one_page, TCYX), "TCYX", {}, "imagej"),
    "imagej-unnamed": (special(imagej_order, (1, T, H, W), order="czt", counts=""), "CTYX", {}, "imagej"),
    "imagej-c-is-time": (imwrite(TYX, imagej=True, metadata={"axes": "CYX"}), "TYX", {"axes": "TYX"}, "imagej"),
    "imagej-relabelled": (imwrite(TYX, imagej=True, metadata={"axes": "CYX"}), "TYX", {"channels": 1}, "imagej"),
    "ome-tyx": (imwrite(TYX, ome=True, metadata={"axes": "TYX"}), "TYX", {}, "ome"),
    "ome-tcyx": (imwrite(TCYX, ome=True, metadata={"axes": "TCYX"}), "TCYX", {}, "ome"),
    "ome-ctyx": (imwrite(CTYX, "int16", ome=True, metadata={"axes": "CTYX"}), "CTYX", {}, "ome"),
    "ome-z1": (imwrite((T, 1, C, H, W), "float32", ome=True, metadata={"axes": "TZCYX"}), "TZCYX", {}, "ome"),
    "ome-zlib-big": (
        imwrite(TCYX, ome=True, compression="zlib", byteorder=">", bigtiff=True, metadata={"axes": "TCYX"}),
        "TCYX",
        {},
        "ome",
    ),
    "ome-rgb": (
        imwrite((T, H, W, 3), "uint8", ome=True, photometric="rgb", metadata={"axes": "TYXS"}),
        "TYXC",
        {},
        "ome",
    ),
    "ome-planar": (
        imwrite((T, 3, H, W), ome=True, photometric="rgb", planarconfig="separate", metadata={"axes": "TSYX"}),
        "TCYX",
        {},
        "ome",
    ),
    "scanimage": (special(scanimage, TCYX, header=SCANIMAGE.format(channels="[1;3]")), "TCYX", {}, "scanimage"),
    "scanimage-classic": (
        special(scanimage, TCYX, header=SCANIMAGE.format(channels="[1 2]"), bigtiff=False),
        "TCYX",
        {},
        "scanimage",
    ),
    "scanimage-1": (special(scanimage, TYX, "int16", header=SCANIMAGE.format(channels="2")), "TYX", {}, "scanimage"),
    "scanimage-user": (special(scanimage, TCYX, header="SI.VERSION = 1"), "TCYX", {"channels": 2}, "scanimage"),
}


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


def test_write_alike(layout, tmp_path):
    path, frames, arguments, kind = layout
    output = tmp_path / "output.tif"
    with TiffReader(path, **arguments) as reader:
        n_frames, height, width, n_channels = reader.shape
        size = {"n_frames": n_frames, "height": height, "width": width, "n_channels": n_channels}
        with TiffWriter(output, **size, dtype=reader.dtype, like=reader) as writer:
            for start in range(0, n_frames, 2):
                writer.write(reader.read(start, min(start + 2, n_frames)))
        written = tifffile.imread(output)
        assert written.shape == reader.stored_shape
        if kind != "scanimage":  # tifffile does not see the channels of every ScanImage file
            np.testing.assert_array_equal(written, tifffile.imread(path))
        assert written.dtype == reader.dtype
        with tifffile.TiffFile(output) as tif:
            assert len(tif.series) == 1
            assert tif.series[0].axes == reader.axes
            assert (tif.is_imagej, tif.is_ome) == (kind == "imagej", kind == "ome")
    # ScanImage files become tifffile's own, in which the channels have their name.
    with TiffReader(output, **arguments) as again:
        assert again.kind == {"scanimage": "shaped"}.get(kind, kind)
        np.testing.assert_array_equal(again.read(0, n_frames), frames)
    assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(path), "output.tif"])


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
                tmp_path / "output.tif", n_frames=3, height=H, width=W, n_channels=1, dtype="u2", like=reader
            ) as writer:
                writer.write(frames[..., np.newaxis])
            np.testing.assert_array_equal(tifffile.imread(tmp_path / "output.tif"), frames)
            with tifffile.TiffFile(tmp_path / "output.tif") as tif:
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


# --- metadata -----------------------------------------------------------------------------------------------------


def rewrite(path, output, **arguments):
    with TiffReader(path, **arguments) as reader:
        size = dict(zip(("n_frames", "height", "width", "n_channels"), reader.shape, strict=True))
        with TiffWriter(output, **size, dtype=reader.dtype, like=reader) as writer:
            writer.write(reader.read(0, reader.n_frames))


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


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("n_channels", [1, 2, 3])
def test_write_without_model(dtype, n_channels, tmp_path):
    frames = pixels((T, H, W, n_channels), dtype)
    path = tmp_path / "out.tif"
    with TiffWriter(path, n_frames=T, height=H, width=W, n_channels=n_channels, dtype=dtype) as writer:
        writer.write(frames[:4])
        writer.write(frames[4:])
    expected = frames[..., 0] if n_channels == 1 else frames.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(tifffile.imread(path), expected)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_imagej == (dtype != "int16")
        assert tif.series[0].axes == ("TYX" if n_channels == 1 else "TCYX")


@pytest.mark.parametrize(
    "name", ["pages", "shaped-ctyx", "imagej-tc", "imagej-z", "imagej-unnamed", "ome-ctyx", "rgb-contig"]
)
def test_above_4_gb(name, tmp_path, monkeypatch):
    """The forms that large files take, at a small size."""
    monkeypatch.setattr(tiff_writer, "CLASSIC_LIMIT", 1000)
    path, output = tmp_path / "in.tif", tmp_path / "out.tif"
    LAYOUTS[name][0](path)
    rewrite(path, output)
    np.testing.assert_array_equal(tifffile.imread(output), tifffile.imread(path))
    with tifffile.TiffFile(output) as tif:
        is_imagej = name.startswith("imagej")
        assert tif.is_bigtiff != is_imagej
        assert tif.is_imagej == is_imagej
        if is_imagej:
            assert len(tif.pages) == 1


def new_writer(path, **changes):
    return TiffWriter(path, **{"n_frames": T, "height": H, "width": W, "n_channels": 1, "dtype": "u2"} | changes)


def test_nothing_appears_before_the_end(tmp_path):
    frames = pixels((T, H, W, 1))
    path = tmp_path / "out.tif"
    path.write_bytes(b"older")
    writer = new_writer(path)
    writer.write(frames)
    assert path.read_bytes() == b"older"
    assert all(name == "out.tif" or name.startswith(".") for name in os.listdir(tmp_path))
    writer.close()
    writer.close()
    np.testing.assert_array_equal(tifffile.imread(path), frames[..., 0])
    assert os.listdir(tmp_path) == ["out.tif"]


def test_incomplete_recording(tmp_path):
    writer = new_writer(tmp_path / "out.tif")
    writer.write(pixels((3, H, W, 1)))
    with pytest.raises(RuntimeError, match="3 frames were written, 5 were announced"):
        writer.close()
    assert os.listdir(tmp_path) == []
    with pytest.raises(RuntimeError, match="after close"):
        writer.write(pixels((1, H, W, 1)))


def test_abort(tmp_path):
    writer = new_writer(tmp_path / "out.tif")
    writer.write(pixels((T, H, W, 1)))
    writer.abort()
    writer.abort()
    writer.close()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), new_writer(tmp_path / "out.tif") as writer:
        writer.write(pixels((T, H, W, 1))[: 1 // 0])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_full_disk_while_writing(code, tmp_path, monkeypatch):
    path = tmp_path / "out.tif"
    path.write_bytes(b"older")
    writer = new_writer(path)
    writer.write(pixels((2, H, W, 1)))

    def fail(offset, slab):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writer, "_write_bytes", fail)
    with pytest.raises(OSError, match=os.strerror(code)), writer:
        writer.write(pixels((2, H, W, 1)))
    assert os.listdir(tmp_path) == ["out.tif"]
    assert path.read_bytes() == b"older"


def test_failing_commit(tmp_path, monkeypatch):
    def fail(source, target):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError), new_writer(tmp_path / "out.tif") as writer:
        writer.write(pixels((T, H, W, 1)))
    assert os.listdir(tmp_path) == []


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"needs \d+ bytes, the disk has 1000 bytes free") as caught:
        new_writer(tmp_path / "out.tif")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_short_writes_and_reads_are_continued(tmp_path, monkeypatch):
    """The system may take or return fewer bytes than it was asked for."""

    class Stingy:
        def __init__(self, file):
            self.file = file

        def write(self, buffer):
            return self.file.write(buffer[:100])

        def __getattr__(self, name):
            return getattr(self.file, name)

    frames = pixels((T, H, W, 1))
    with new_writer(tmp_path / "out.tif") as writer:
        writer._file = Stingy(writer._file)
        writer.write(frames)
    read_some = tiff_source.TiffSource._read_some
    monkeypatch.setattr(
        tiff_source.TiffSource, "_read_some", lambda self, offset, target: read_some(self, offset, target[:100])
    )
    with TiffReader(tmp_path / "out.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, T), frames)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, H, W), "u2"), "shape"),
        (np.zeros((1, W, H, 1), "u2"), "shape"),
        (np.zeros((1, H, W, 1), "f4"), "dtype float32, expected uint16"),
        (np.zeros((6, H, W, 1), "u2"), "0 \\+ 6 frames are more than the 5"),
    ],
)
def test_frames_that_were_not_announced(frames, message, tmp_path):
    writer = new_writer(tmp_path / "out.tif")
    with pytest.raises(ValueError, match=message):
        writer.write(frames)
    writer.abort()


def test_writer_arguments(tmp_path):
    with pytest.raises(ValueError, match="dtype float64 is not supported"):
        new_writer(tmp_path / "out.tif", dtype="f8")
    with pytest.raises(ValueError, match="at least 1"):
        new_writer(tmp_path / "out.tif", n_frames=0)
    tifffile.imwrite(tmp_path / "in.tif", pixels(TYX))
    with TiffReader(tmp_path / "in.tif") as reader, pytest.raises(ValueError, match="cannot be written like"):
        new_writer(tmp_path / "out.tif", width=W + 1, like=reader)
    assert os.listdir(tmp_path) == ["in.tif"]


def test_output_is_an_input(tmp_path):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, pixels(TYX))
    before = path.read_bytes()
    (tmp_path / "symbolic.tif").symlink_to(path)
    os.link(path, tmp_path / "hard.tif")
    with TiffReader(path) as reader:
        for name in ("in.tif", "symbolic.tif", "hard.tif"):
            with pytest.raises(ValueError, match="is the input"):
                check_output(tmp_path / name, [path])
            with pytest.raises(ValueError, match="is the input"):
                new_writer(tmp_path / name, like=reader)
    check_output(tmp_path / "other.tif", [path])
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["hard.tif", "in.tif", "symbolic.tif"]


def test_folder_of_the_output(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="folder of the output does not exist"):
        check_output(tmp_path / "missing" / "out.tif")
    with pytest.raises(IsADirectoryError):
        check_output(tmp_path)

    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="takes no new file"):
        check_output(tmp_path / "out.tif")


# --- files that cannot be read ------------------------------------------------------------------------------------


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


def test_pages_of_different_compression_are_read(tmp_path):
    frames = pixels((12, H, W))
    with tifffile.TiffWriter(tmp_path / "in.tif") as tif:
        for i, frame in enumerate(frames):
            tif.write(frame, metadata=None, photometric="minisblack", compression="zlib" if i == 5 else None)
    with TiffReader(tmp_path / "in.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 12)[..., 0], frames)


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


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 3), (4, 2)])
def test_frames_that_are_not_there(start, stop, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", pixels(TYX))
    with TiffReader(tmp_path / "in.tif") as reader, pytest.raises(ValueError, match=f"frames {start} to {stop}"):
        reader.read(start, stop)


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


# --- the rest -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("shape", [TYX, (T, H, W, C)])
def test_arrays(shape):
    array = pixels(shape).astype(">u2")
    reader = ArrayReader(array)
    expected = array.reshape(T, H, W, -1)
    assert reader.shape == expected.shape
    assert reader.has_channel_axis == (len(shape) == 4)
    frames = reader.read(1, 4)
    np.testing.assert_array_equal(frames, expected[1:4])
    assert frames.dtype.isnative
    assert not np.shares_memory(frames, array)
    out = np.zeros(shape, "u2")
    with ArrayWriter(shape, "u2", out) as writer:
        writer.write(reader.read(0, 2))
        writer.write(reader.read(2, T))
    assert writer.array is out
    np.testing.assert_array_equal(out, array)


def test_array_errors():
    with pytest.raises(ValueError, match=r"expected \(T, H, W\)"):
        ArrayReader(np.zeros((H, W), "u2"))
    with pytest.raises(ValueError, match="dtype int64 is not supported"):
        ArrayReader(np.zeros(TYX, int))
    with pytest.raises(ValueError, match="out has shape"):
        ArrayWriter(TYX, "u2", np.zeros(TYX, "u1"))
    with pytest.raises(ValueError, match="frames 0 to 9"):
        ArrayReader(np.zeros(TYX, "u2")).read(0, 9)
    with pytest.raises(RuntimeError, match="0 frames were written, 5 were announced"):
        ArrayWriter(TYX, "u2").close()
