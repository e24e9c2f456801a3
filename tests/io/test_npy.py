"""Arrays of any shape in NumPy's files, against numpy.load."""

import numpy as np
import pytest

from flowreg_gpu.io.npy import NpyWriter

DTYPES = ["uint8", "int16", ">u2", "float64", "complex64", "bool", [("u", "f4"), ("v", "f4")]]


def as_frames(array):
    return array.reshape(len(array), 1, -1, 1)


def numbers(shape, dtype):
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    if isinstance(dtype, str):
        return values.astype(dtype)
    fields = np.zeros(shape, dtype)
    fields["u"], fields["v"] = values, -values
    return fields


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 4, 3), (5, 2, 1, 3, 2)])
def test_equals_numpy(tmp_path, shape, dtype):
    array = numbers(shape, dtype)
    with NpyWriter(tmp_path / "out.npy", shape, dtype) as writer:
        for part in (array[:2], array[2:3], array[3:]):
            writer.write(as_frames(part).astype(writer.dtype))
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(found, array)
    np.save(tmp_path / "expected.npy", array.astype(writer.dtype))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_the_file_appears_when_it_is_complete(tmp_path):
    array = numbers((5, 3), "int16")
    writer = NpyWriter(tmp_path / "out.npy", array.shape, array.dtype)
    writer.write(as_frames(array[:2]))
    with pytest.raises(RuntimeError, match="2 frames were written, 5 were announced"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_partial_file_is_gone_on_with(tmp_path):
    array = numbers((5, 3), "int16")
    writer = NpyWriter(tmp_path / "out.npy", array.shape, array.dtype)
    writer.write(as_frames(array[:2]))
    (kept,) = writer.keep_partial()
    np.testing.assert_array_equal(np.load(kept), [*array[:2], *np.zeros((3, 3))])
    with NpyWriter(tmp_path / "out.npy", array.shape, array.dtype, resume_at=2) as writer:
        whole = NpyWriter(tmp_path / "whole.npy", array.shape, array.dtype)
        whole.write(as_frames(array))
        assert [writer.checksum(i) for i in (0, 1)] == [whole.checksum(i) for i in (0, 1)]
        assert whole.checksum(0) != whole.checksum(1)
        whole.abort()
        writer.write(as_frames(array[2:]))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), array)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_nothing_is_replaced(tmp_path):
    (tmp_path / "out.npy").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        NpyWriter(tmp_path / "out.npy", (5, 3), "int16")
    assert (tmp_path / "out.npy").read_bytes() == b"precious"
