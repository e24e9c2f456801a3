"""Leave-one-out correlation against `numpy.corrcoef`, and its memory."""

import tracemalloc

import numpy as np
import pytest

from flowreg_gpu.quality import pixels
from flowreg_gpu.quality.correlation import leave_one_out


@pytest.fixture
def small_parts(monkeypatch):
    """Many parts, not all of one size, also of frames that are small."""
    monkeypatch.setattr(pixels, "PART_VALUES", 150)


def oracle(frames, weights, valid):
    """One mean of the others after the other."""
    n, channels = len(frames), frames.shape[-1]
    found = np.zeros((n, channels))
    for t in range(n):
        others = np.delete(frames, t, axis=0).astype(np.float64).mean(axis=0)
        for c in range(channels):
            found[t, c] = np.corrcoef(frames[t, ..., c][valid].astype(np.float64), others[..., c][valid])[0, 1]
    return found @ weights


@pytest.mark.parametrize(("dtype", "offset"), [("uint8", 100), ("int16", -500), ("float32", 0), ("float64", 1e6)])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_is_that_of_numpy(small_parts, n, dtype, offset):
    rng = np.random.default_rng(n)
    scene = rng.normal(0, 20, (1, 13, 31, 2))
    frames = (offset + scene + rng.normal(0, 20, (n, 13, 31, 2))).astype(dtype)
    valid = rng.random((13, 31)) < 0.7
    found = leave_one_out(frames, np.array([3.0, 1.0]), valid)
    np.testing.assert_allclose(found, oracle(frames, np.array([0.75, 0.25]), valid), atol=1e-9)
    everything = np.ones((13, 31), bool)
    np.testing.assert_allclose(leave_one_out(frames), oracle(frames, np.array([0.5, 0.5]), everything), atol=1e-9)


def test_own_noise_does_not_count():
    """Of noise alone it is zero, where the correlation with the mean of all frames is above."""
    frames = np.random.default_rng(0).normal(size=(10, 80, 80, 1))
    assert abs(leave_one_out(frames).mean()) < 0.01
    with_all = [np.corrcoef(frame.ravel(), frames.mean(axis=0).ravel())[0, 1] for frame in frames]
    assert np.mean(with_all) > 0.3


@pytest.mark.parametrize("value", [0.1, 7, 1e8 / 3])
def test_constant_frames_and_channels_are_zero(value):
    frames = np.random.default_rng(0).normal(5, 1, (4, 31, 9, 2))
    frames[1] = value
    frames[..., 1] = value
    found = leave_one_out(frames)
    assert found[1] == 0
    np.testing.assert_allclose(found, leave_one_out(frames[..., :1]) / 2, atol=1e-12)
    assert (leave_one_out(np.full((3, 5, 4, 1), value)) == 0).all()
    assert leave_one_out(frames[:2]).tolist() == [0, 0]  # the other frame is constant


def test_frame_alone_and_no_valid_pixel_are_zero():
    frames = np.random.default_rng(0).random((3, 5, 4, 1))
    assert leave_one_out(frames[:1]).tolist() == [0]
    assert leave_one_out(frames, valid=np.zeros((5, 4), bool)).tolist() == [0, 0, 0]


def test_pixels_that_are_not_finite_in_a_frame_are_left_out(small_parts):
    frames = np.random.default_rng(0).random((5, 16, 20, 1)).astype(np.float32)
    valid = np.ones((16, 20), bool)
    valid[2, 3] = valid[0, 0] = valid[15, 7] = False
    right = leave_one_out(frames, valid=valid)
    frames[1, 2, 3], frames[4, 0, 0], frames[0, 15, 7] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(leave_one_out(frames), right)


def test_memory_stays_small():
    frames = np.random.default_rng(0).integers(0, 1000, (200, 256, 256, 2), np.uint16)  # 52 MB, 210 MB in float64
    tracemalloc.start()
    leave_one_out(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frames": np.zeros((3, 4, 5))}, ValueError, r"frames.shape=\(3, 4, 5\) is not \(n, H, W, C\)"),
        ({"frames": np.zeros((0, 4, 5, 1))}, ValueError, r"frames.shape=\(0, 4, 5, 1\) holds no pixel"),
        ({"frames": np.zeros((2, 4, 5, 1), complex)}, TypeError, "complex128'.* is not of real numbers"),
        ({"weights": np.array([1.0])}, ValueError, r"weights=\[1.0\] are not 2 weights"),
        ({"weights": np.array([1.0, -1.0])}, ValueError, r"weights=\[1.0, -1.0\] are not 2 weights"),
        ({"weights": np.array([0.0, 0.0])}, ValueError, "not all 0"),
        ({"valid": np.ones((5, 4), bool)}, ValueError, r"valid of shape \(5, 4\) .* is not \(4, 5\) bool"),
        ({"valid": np.ones((4, 5))}, ValueError, "dtype float64 is not"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        leave_one_out(**{"frames": np.zeros((3, 4, 5, 2)), **arguments})
