"""For any size, dtype and order of axes: what is written is read back, in parts as in whole."""

import tempfile
from pathlib import Path

import h5py
import numpy as np
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from flowreg_gpu.io import (
    ArrayReader,
    ArrayWriter,
    FlowOrigin,
    TiffReader,
    TiffWriter,
    open_flow_reader,
    open_flow_writer,
)
from tests.io.tiff.layouts import frames_of, rewrite
from tests.strategies import ARRAY_DTYPES, FILE_DTYPES, bits, cuts, parts, pixels

SIZES = st.integers(1, 7)


def assert_bits(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(bits(found), bits(expected))


def assert_reads(data, reader, frames):
    """The reader gives these frames, all at once and in any part, as arrays of the caller's own."""
    assert reader.shape == frames.shape
    assert reader.dtype == frames.dtype
    assert_bits(reader.read(0, len(frames)), frames)
    for _ in range(3):
        start, stop = data.draw(parts(len(frames)))
        part = reader.read(start, stop)
        assert part.flags.c_contiguous
        assert part.flags.writeable
        assert part.dtype.isnative
        assert_bits(part, frames[start:stop])


def write_in_parts(data, writer, frames):
    with writer:
        for start, stop in data.draw(cuts(len(frames))):
            writer.write(frames[start:stop])


@st.composite
def movies(draw, dtypes):
    shape = draw(st.tuples(SIZES, SIZES, SIZES, st.integers(1, 4)))
    return draw(pixels(shape, draw(st.sampled_from(dtypes))))


@given(st.data(), movies(FILE_DTYPES))
def test_what_is_written_is_read_back(data, frames):
    n_frames, height, width, channels = frames.shape
    size = {"n_frames": n_frames, "height": height, "width": width, "n_channels": channels}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "movie.tif")
        write_in_parts(data, TiffWriter(path, **size, dtype=frames.dtype), frames)
        with TiffReader(path) as reader:
            assert_reads(data, reader, frames)
        stored = tifffile.imread(path)
        assert stored.size == frames.size
        assert_bits(stored.reshape(n_frames, channels, height, width), np.moveaxis(frames, -1, 1))


ORDERS = {
    "shaped": ["".join(order) for order in ("TCYX", "CTYX", "TYXC", "YXT", "YTCX", "XYTC", "CYX", "YX", "TYX", "ZYX")],
    "imagej": ["TCYX", "TYX", "CYX", "YX"],
    "ome": ["TCYX", "CTYX", "TYX", "CYX", "YX"],
    "plain": ["TYX"],
}


@st.composite
def files(draw):
    """A file of tifffile's: pixels, their axes, and the arguments of `tifffile.imwrite`."""
    kind = draw(st.sampled_from(sorted(ORDERS)))
    axes = draw(st.sampled_from(ORDERS[kind]))
    dtype = draw(st.sampled_from([name for name in FILE_DTYPES if kind != "imagej" or name != "int16"]))
    shape = [draw(st.integers(2, 7) if axis in "YX" else SIZES) for axis in axes]
    array = draw(pixels(tuple(shape), dtype))
    keywords = {"photometric": "minisblack", "byteorder": draw(st.sampled_from("<>")), "metadata": {"axes": axes}}
    if kind == "plain":
        keywords["metadata"] = None
    else:
        keywords |= {"imagej": kind == "imagej", "ome": kind == "ome"}
    if kind != "imagej":
        keywords |= {"bigtiff": draw(st.booleans()), "compression": draw(st.sampled_from([None, "zlib"]))}
        keywords["rowsperstrip"] = draw(st.none() | st.integers(1, 4))
    return array, axes, keywords


@given(st.data(), files())
def test_files_of_tifffile(data, file):
    """Frames are those of the axes; a copy with `like` is the same array to tifffile, with the same axes."""
    array, axes, keywords = file
    frames = frames_of(array, axes.replace("Z", "T"))
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder, "in.tif"), Path(folder, "out.tif")
        tifffile.imwrite(path, array, **{name: value for name, value in keywords.items() if value is not None})
        with TiffReader(path) as reader:
            assert_reads(data, reader, frames)
        rewrite(path, copy)
        with tifffile.TiffFile(path) as one, tifffile.TiffFile(copy) as other:
            assert other.series[0].axes == one.series[0].axes
            assert_bits(other.asarray(), one.asarray().astype(array.dtype))


@given(st.data(), movies(FILE_DTYPES))
def test_several_files_are_one_recording(data, frames):
    """Whatever part a file has, and whatever part is read."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, (start, stop) in enumerate(data.draw(cuts(len(frames)))):
            paths.append(Path(folder, f"part{number}.tif"))
            stored = np.moveaxis(frames[start:stop], -1, 1)
            tifffile.imwrite(paths[-1], stored, photometric="minisblack", metadata={"axes": "TCYX"})
        with TiffReader(paths, axes=None if min(frames.shape[1:3]) > 1 else "TCYX") as reader:
            assert_reads(data, reader, frames)


@given(st.data(), movies(FILE_DTYPES))
def test_interleaved_pages(data, frames):
    """Channels that alternate from page to page, of which the caller says how many there are."""
    _, height, width, channels = frames.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.tif")
        with tifffile.TiffWriter(path) as tif:
            for page in np.moveaxis(frames, -1, 1).reshape(-1, height, width):
                tif.write(page, photometric="minisblack", metadata=None)
        with TiffReader(path, channels=channels) as reader:
            assert_reads(data, reader, frames)


@given(st.data(), st.sampled_from([".h5", ".tif"]), st.integers(1, 3))
def test_flows_and_what_they_were_made_with(data, extension, channels):
    n_frames, height, width = data.draw(st.tuples(SIZES, *[st.integers(2, 7)] * 2))
    flow = data.draw(pixels((n_frames, height, width, 2), "float32"))
    reference = data.draw(pixels((height, width, channels), "float32"))
    offset = st.floats(-100, 100)
    origin = data.draw(st.none() | st.builds(FlowOrigin, _ascii(), _ascii(), st.just(channels), offset))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"flow{extension}")
        with open_flow_writer(path, n_frames, height, width, origin) as writer:
            for start, stop in data.draw(cuts(n_frames)):
                writer.write(flow[start:stop])
            writer.write_reference(reference)
        with open_flow_reader(path) as reader:
            assert_reads(data, reader, flow)
            assert reader.origin == origin
            if origin is not None and np.isfinite(reference).all():
                assert_bits(reader.read_reference(), reference)
            else:
                assert reader.read_reference() is None
        if extension == ".tif":
            stored = tifffile.imread(path)
        else:
            with h5py.File(path) as file:
                stored = file["flow"][:]
        assert_bits(stored.reshape(flow.shape), flow)


def _ascii():
    return st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=20)


@given(st.data())
def test_arrays_of_any_memory_order(data):
    """Views with steps, transposed, of foreign byte order; with and without an axis of channels."""
    shape = data.draw(st.lists(SIZES, min_size=3, max_size=4))
    dtype = np.dtype(data.draw(st.sampled_from(ARRAY_DTYPES)))
    array = data.draw(pixels(tuple(2 * size for size in shape), dtype))
    order = data.draw(st.permutations(range(len(shape))))
    steps = data.draw(st.tuples(*[st.sampled_from([1, 2, -1, -2])] * len(shape)))
    view = array[tuple(slice(None, None, step) for step in steps)].transpose(order)
    view = view.astype(dtype.newbyteorder(data.draw(st.sampled_from("<>"))), order="K")
    frames = view.astype(dtype).reshape(*view.shape, 1) if view.ndim == 3 else view.astype(dtype)
    frames = np.ascontiguousarray(frames)
    before = view.tobytes()
    assert_reads(data, ArrayReader(view), frames)
    assert view.tobytes() == before
    writer = ArrayWriter(view.shape, dtype)
    write_in_parts(data, writer, frames)
    assert_bits(writer.array, frames.reshape(view.shape))
