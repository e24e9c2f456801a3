"""Normalisation and the filter in time on the (emulated) device against the CPU."""

import dataclasses

import numpy as np
import pytest

from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.cuda.preprocess import C_TYPES, normalize, upload_settings
from flowreg_gpu.model.preprocessing import Preprocessing, normalization
from tests import tolerances
from tests.emulation import EmulatedDevice

SIGMA_TIME = {0: (0.0,), 2: (0.5,), 3: (0.0, 0.8, 0.3)}  # by halo; one per channel, in turn


@pytest.fixture(scope="module")
def device():
    return EmulatedDevice(order="both")


def random_frames(count, height, width, channels, dtype, seed=0):
    """Frames (T, H, W, C) over the whole range of an integer dtype, floats from -2 to 3."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    shape = (count, height, width, channels)
    if dtype.kind == "f":
        return rng.uniform(-2, 3, shape).astype(dtype)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def build(frames, halo, mode="separate"):
    """Preprocessing of a recording that begins with the reference; no filter in space."""
    _, height, width, channels = frames.shape
    minimum, scale = normalization(frames[0].min(axis=(0, 1)), frames[0].max(axis=(0, 1)), mode)
    times = np.resize(SIGMA_TIME[halo], channels)
    sigma = np.stack([np.zeros(channels), np.zeros(channels), times], axis=1)
    return Preprocessing.build(minimum, scale, sigma, height, width)


def on_cpu(frames, preprocessing):
    taps = 2 * preprocessing.halo + 1
    return np.stack([preprocess(frames[t : t + taps], preprocessing) for t in range(len(frames) - taps + 1)])


def on_device(device, frames, preprocessing):
    return device.to_host(normalize(device, device.to_device(frames), upload_settings(device, preprocessing)))


def assert_alike(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.FILTER * np.abs(expected).max())


@pytest.mark.parametrize("dtype", C_TYPES)
@pytest.mark.parametrize("halo", SIGMA_TIME)
def test_dtypes(device, dtype, halo):
    frames = random_frames(2 * halo + 3, 17, 31, 3, dtype)
    preprocessing = build(frames, halo)
    assert preprocessing.halo == halo
    assert_alike(on_device(device, frames, preprocessing), on_cpu(frames, preprocessing))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (97, 41)])
def test_sizes(device, size, channels):
    frames = random_frames(6, *size, channels, np.uint16)
    preprocessing = build(frames, 2, "joint")
    assert_alike(on_device(device, frames, preprocessing), on_cpu(frames, preprocessing))


def test_order_in_time(device):
    """A Gaussian would not tell."""
    frames = random_frames(7, 17, 31, 2, np.uint8)
    temporal = np.random.default_rng(1).random((2, 5)).astype(np.float32)
    preprocessing = dataclasses.replace(build(frames, 2), temporal=temporal)
    assert_alike(on_device(device, frames, preprocessing), on_cpu(frames, preprocessing))


def test_batches_do_not_matter(device):
    frames = random_frames(7, 17, 31, 2, np.int16)
    preprocessing = build(frames, 2)
    whole = on_device(device, frames, preprocessing)
    for t, planes in enumerate(whole):
        np.testing.assert_array_equal(on_device(device, frames[t : t + 5], preprocessing)[0], planes)


def test_high_pixel_values_keep_their_differences(device):
    small = np.random.default_rng(0).integers(0, 50, (1, 16, 16, 1)).astype(np.uint16)
    large = small + np.uint16(65000)
    low, high = (on_device(device, frames, build(frames, 0)) for frames in (small, large))
    np.testing.assert_array_equal(low, high)


def test_nan_stays_where_it_is(device):
    frames = random_frames(5, 9, 11, 2, np.float32)
    preprocessing = build(frames, 2)
    frames[2, 4, 5, 1] = np.nan
    found = on_device(device, frames, preprocessing)
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 1, 4, 5]]


@pytest.mark.parametrize("dtype", ["uint32", "int64", "float16", ">u2"])
def test_other_dtypes_are_refused(device, dtype):
    frames = np.ones((1, 4, 4, 1), dtype)
    settings = upload_settings(device, build(np.ones((1, 4, 4, 1), np.float32), 0))
    with pytest.raises(TypeError, match=r"expected one of uint8, int8"):
        normalize(device, device.to_device(frames), settings)


def test_shapes_that_do_not_fit(device):
    settings = upload_settings(device, build(np.ones((5, 4, 4, 2), np.float32), 2))
    for shape in ((5, 4, 4, 3), (4, 4, 4, 2)):
        with pytest.raises(ValueError, match="expected 2 channels and at least 5 frames"):
            normalize(device, device.to_device(np.ones(shape, np.float32)), settings)
