"""Arrays, read and written as files are."""

import numpy as np
import pytest

from flowreg_gpu.io import ArrayReader, ArrayWriter
from tests.io.tiff.layouts import TYX, C, H, T, W, pixels


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


class InvertedWhenIndexed(np.ndarray):
    """As sbxreader's map of a Scanbox file: every indexing turns the brightness round, also of what was indexed."""

    def __getitem__(self, index):
        return 65535 - super().__getitem__(index)


def test_frames_are_those_that_the_caller_sees():
    """Of a subclass that computes as it is indexed; the frames were indexed once, to choose plane and channel."""
    stored = np.random.default_rng(0).integers(0, 65535, (4, 2, 18, 21)).astype(np.uint16)
    seen = stored.view(InvertedWhenIndexed)[:, 0]
    assert isinstance(seen, InvertedWhenIndexed)
    np.testing.assert_array_equal(ArrayReader(seen).read(1, 3)[..., 0], 65535 - stored[1:3, 0])
