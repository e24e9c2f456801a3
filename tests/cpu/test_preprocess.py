"""Normalisation, filtering in space and time, and the channel weights."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.model.preprocessing import Preprocessing, channel_weights, normalization
from flowreg_gpu.options import Options
from tests import tolerances
from tests.movies import small_movie


def build(reference, sigma, mode="joint"):
    height, width, channels = reference.shape
    minimum, scale = normalization(reference.min(axis=(0, 1)), reference.max(axis=(0, 1)), mode)
    return Preprocessing.build(minimum, scale, Options(sigma=sigma).sigma_per_channel(channels), height, width)


def expected(frames, reference, sigma, mode):
    """Section 1 with SciPy, float64: (T, H, W, C)."""
    frames, reference = frames.astype(float), reference.astype(float)
    low, high = reference.min(axis=(0, 1)), reference.max(axis=(0, 1))
    if mode == "joint":
        low, high = low.min(), high.max()
    normal = (frames - low) / (high - low + 1e-8)
    rows = np.broadcast_to(sigma, (frames.shape[-1], 3))
    filtered = [
        gaussian_filter(normal[..., c], (time, y, x), mode="reflect", truncate=4) for c, (y, x, time) in enumerate(rows)
    ]
    return np.stack(filtered, axis=-1)


SIGMAS = {
    "default": ((1.0, 1.0, 0.1), 0),
    "none": ((0.0, 0.0, 0.0), 0),
    "space": ((1.5, 0.7, 0.0), 0),
    "just a time radius": ((0.0, 0.0, 0.125), 1),
    "time": ((0.0, 0.0, 0.7), 3),
    "both": ((1.0, 2.0, 1.0), 4),
    "per channel": (((1.0, 2.0, 0.3), (0.0, 0.5, 0.8)), 3),
    "time in one channel": (((1.0, 1.0, 0.0), (1.0, 1.0, 0.5)), 2),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("mode", ["joint", "separate"])
@pytest.mark.parametrize("name", SIGMAS)
def test_preprocess(name, mode, dtype):
    """Away from the ends, where the frames around each one exist, the filter is SciPy's over time, rows, columns."""
    sigma, halo = SIGMAS[name]
    movie, reference, _ = small_movie(11, 18, 23, 2, dtype)
    reference[..., 1] = 0.4 * reference[..., 1] + 3
    preprocessing = build(reference, sigma, mode)
    assert preprocessing.halo == halo
    truth = expected(movie, reference, sigma, mode)
    for t in (halo, 5, 10 - halo):
        window = movie[t - halo : t + halo + 1]
        found = preprocess(window, preprocessing)
        assert (found.shape, found.dtype) == ((2, 18, 23), np.float32)
        scale = np.abs(truth).max()
        np.testing.assert_allclose(found, np.moveaxis(truth[t], -1, 0), rtol=0, atol=tolerances.FILTER * scale)


def test_reference_is_filtered_in_space_only():
    _, reference, _ = small_movie(2, 18, 23, 2)
    sigma = (1.0, 2.0, 1.0)
    found = preprocess(reference[None], build(reference, sigma).without_time())
    truth = expected(reference[None], reference, (1.0, 2.0, 0.0), "joint")[0]
    np.testing.assert_allclose(found, np.moveaxis(truth, -1, 0), rtol=0, atol=tolerances.FILTER)


def test_high_pixel_values_keep_their_differences():
    """The minimum is subtracted first: 50 grey values on top of 65 000 are as good as 50 on top of 0."""
    small = np.random.default_rng(0).integers(0, 50, (1, 16, 16, 1)).astype(np.uint16)
    low = preprocess(small, build(small[0].astype(np.float32), (0, 0, 0)))
    large = small + np.uint16(65000)
    np.testing.assert_array_equal(preprocess(large, build(large[0].astype(np.float32), (0, 0, 0))), low)


def test_normalization():
    low, high = np.array([2.0, -1.0]), np.array([6.0, 0.0])
    for mode, minimum, span in (("joint", [-1, -1], [7, 7]), ("separate", [2, -1], [4, 1])):
        found = normalization(low, high, mode)
        assert all(item.dtype == np.float32 for item in found)
        np.testing.assert_array_equal(found[0], minimum)
        np.testing.assert_allclose(found[1], 1 / (np.array(span) + 1e-8), rtol=1e-7)


def test_constant_images_show_no_structure():
    _, scale = normalization(np.array([5.0, 1.0]), np.array([5.0, 2.0]), "separate")
    assert scale[0] == 0
    assert scale[1] == pytest.approx(1)
    flat = np.full((1, 16, 16, 1), 7, np.uint16)
    assert not preprocess(flat + np.uint16(3), build(flat[0].astype(np.float32), (1, 1, 0))).any()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_equal_weights(channels):
    maps, mean = channel_weights(Options(), 5, 7, channels)
    assert (maps.dtype, mean.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(maps, np.full((channels, 5, 7), 1 / channels, np.float32))
    np.testing.assert_array_equal(mean, np.full(channels, 1 / channels, np.float32))


def test_one_weight_per_channel_is_normalised():
    maps, mean = channel_weights(Options(weight=(1, 3)), 5, 7, 2)
    np.testing.assert_array_equal(mean, [0.25, 0.75])
    np.testing.assert_array_equal(maps, np.broadcast_to(np.reshape([0.25, 0.75], (2, 1, 1)), (2, 5, 7)))


def test_weight_maps_are_taken_as_they_are():
    weight = np.random.default_rng(0).random((5, 7, 2)).astype(np.float32)
    maps, mean = channel_weights(Options(weight=weight), 5, 7, 2)
    assert maps.flags.c_contiguous
    np.testing.assert_array_equal(maps, weight.transpose(2, 0, 1))
    sums = weight.astype(float).sum(axis=(0, 1))
    np.testing.assert_allclose(mean, sums / sums.sum(), rtol=1e-6)
    maps, mean = channel_weights(Options(weight=weight[..., 0]), 5, 7, 2)
    np.testing.assert_array_equal(maps, np.stack([weight[..., 0]] * 2))
    np.testing.assert_array_equal(mean, [0.5, 0.5])
