"""The Gaussian filter against SciPy, and the (emulated) device against the CPU, bit for bit."""

import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu.cuda.device import DeviceError, DeviceMemoryError
from flowreg_gpu.engine.smoothing import CpuSmoother, DeviceSmoother, smoothing
from flowreg_gpu.options import FRAME_DTYPES
from tests.emulation import EmulatedDevice

SIGMAS = [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (2.5, 0.7, 0.6), (0.0, 0.0, 1.2)]


def window(count, height, width, channels, dtype, halo, seed=0):
    """Frames with their halo, over the whole range of an integer dtype, floats from -2 to 3."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    shape = (count + 2 * halo, height, width, channels)
    if dtype.kind == "f":
        return rng.uniform(-2, 3, shape).astype(dtype)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def with_scipy(frames, sigma, halo):
    """Frames (n, H, W, C) in float64, neither rounded nor saturated."""
    rows, columns, time = np.transpose(sigma)
    filtered = [
        gaussian_filter(frames[..., c].astype(float), (time[c], rows[c], columns[c]), mode="reflect", truncate=4)
        for c in range(frames.shape[-1])
    ]
    return np.stack(filtered, -1)[halo : len(frames) - halo]


def on_cpu(frames, filtering, n_workers=2):
    smoother = CpuSmoother(filtering, n_workers)
    try:
        return smoother.smooth(frames)
    finally:
        smoother.close()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dtype", FRAME_DTYPES)
def test_equals_scipy(dtype, sigma):
    sigma = np.array([sigma, np.array(sigma) * 0.8, sigma])
    filtering = smoothing(sigma, 17, 31)
    halo = filtering.halo
    frames = window(4, 17, 31, 3, dtype, halo)
    found, expected = on_cpu(frames, filtering), with_scipy(frames, sigma, halo)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    if dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)
        return
    limits = np.iinfo(dtype)
    # half a unit from rounding, and what float32 leaves of values up to 65535 before it
    np.testing.assert_allclose(found, np.clip(expected, limits.min, limits.max), rtol=0, atol=0.5 + 0.05)
    if not sigma.any():
        np.testing.assert_array_equal(found, frames)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 31), (16, 1)])
def test_odd_sizes(height, width):
    filtering = smoothing(np.array([(1.5, 1.5, 0.5)]), height, width)
    frames = window(3, height, width, 1, "uint16", filtering.halo)
    expected = with_scipy(frames, [(1.5, 1.5, 0.5)], filtering.halo)
    np.testing.assert_allclose(on_cpu(frames, filtering), expected, rtol=0, atol=0.55)


def test_saturation():
    """A filter of positive weights overshoots by rounding alone: what is white stays white."""
    frames = np.full((3, 20, 20, 1), 255, np.uint8)
    np.testing.assert_array_equal(on_cpu(frames, smoothing(np.array([(3.0, 3.0, 0.0)]), 20, 20)), frames)


def test_results_do_not_depend_on_threads_or_frames_beside():
    filtering = smoothing(np.array([(1.0, 2.0, 0.5)] * 2), 19, 23)
    frames = window(9, 19, 23, 2, "uint16", filtering.halo)
    whole = on_cpu(frames, filtering, 1)
    np.testing.assert_array_equal(on_cpu(frames, filtering, 5), whole)
    taps = 2 * filtering.halo + 1
    single = [on_cpu(frames[i : i + taps], filtering)[0] for i in range(9)]
    np.testing.assert_array_equal(single, whole)


def test_frames_that_are_not_contiguous_or_read_only():
    filtering = smoothing(np.array([(1.0, 1.0, 0.0)]), 20, 20)
    frames = window(4, 20, 40, 1, "uint16", 0)[:, :, ::2]
    frames.flags.writeable = False
    np.testing.assert_array_equal(on_cpu(frames, filtering), on_cpu(frames.copy(), filtering))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dtype", FRAME_DTYPES)
def test_device_equals_cpu(dtype, sigma):
    sigma = np.array([sigma, np.array(sigma) * 0.8])
    filtering = smoothing(sigma, 18, 37)
    frames = window(5, 18, 37, 2, dtype, filtering.halo)
    for batch in (None, 1, 2):
        smoother = DeviceSmoother(EmulatedDevice(lazy=True), filtering, batch)
        np.testing.assert_array_equal(smoother.smooth(frames), on_cpu(frames, filtering))


def test_the_last_result_stays_while_the_next_is_computed():
    filtering = smoothing(np.array([(1.0, 1.0, 0.0)]), 20, 20)
    first, second = window(4, 20, 20, 1, "uint8", 0), window(4, 20, 20, 1, "uint8", 0, seed=1)
    smoother = DeviceSmoother(EmulatedDevice(), filtering)
    results = [smoother.smooth(first), smoother.smooth(second)]
    np.testing.assert_array_equal(results, [on_cpu(first, filtering), on_cpu(second, filtering)])


def test_memory_that_is_too_small_for_a_batch():
    filtering = smoothing(np.array([(1.0, 1.0, 0.5)]), 20, 20)
    frames = window(24, 20, 20, 1, "uint16", filtering.halo)
    generous = EmulatedDevice()
    DeviceSmoother(generous, filtering, 24).smooth(frames)
    device = EmulatedDevice(memory=generous.peak_bytes * 3 // 4)
    smoother = DeviceSmoother(device, filtering, 24)
    with pytest.warns(RuntimeWarning, match="24 frames do not fit .* going on with 12 at a time"):
        found = smoother.smooth(frames)
    np.testing.assert_array_equal(found, on_cpu(frames, filtering))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(smoother.smooth(frames), found)  # from now on


def test_memory_that_is_too_small_for_a_frame():
    filtering = smoothing(np.array([(1.0, 1.0, 0.0)]), 64, 64)
    frames, generous = window(2, 64, 64, 1, "uint16", 0), EmulatedDevice()
    DeviceSmoother(generous, filtering, 1).smooth(frames)
    smoother = DeviceSmoother(EmulatedDevice(memory=generous.peak_bytes - 1), filtering, 1)
    with pytest.raises(DeviceMemoryError):
        smoother.smooth(frames)


def test_memory_of_a_frame_is_not_underestimated():
    """The formula that chooses the batch covers what is used, in the largest case."""
    filtering = smoothing(np.array([(1.0, 1.0, 0.0)]), 64, 64)
    frames = window(40, 64, 64, 1, "float64", 0)
    peaks = []
    for batch in (4, 8):
        device = EmulatedDevice()
        DeviceSmoother(device, filtering, batch).smooth(frames)
        peaks.append(device.peak_bytes)
    assert (peaks[1] - peaks[0]) / 4 <= 64 * 64 * (4 * 8 + 3 * 4)


class Broken(EmulatedDevice):
    def kernel(self, file, expression):
        raise DeviceError("the device has fallen off the bus")


def test_a_fault_of_the_device():
    smoother = DeviceSmoother(Broken(), smoothing(np.array([(1.0, 1.0, 0.0)]), 20, 20))
    with pytest.raises(DeviceError, match="bus"):
        smoother.smooth(window(2, 20, 20, 1, "uint16", 0))
