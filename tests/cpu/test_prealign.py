"""Rigid pre-alignment: the displacement that a backward warp needs."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu.cpu.prealign import phase_shift, prepare_alignment
from flowreg_gpu.model.resampling import resampling_tables
from tests import tolerances
from tests.movies import grain_pair, to_planes


def align(reference, moving, upsampling=1, side=None, weight=(1.0,)):
    """Displacement (dx, dy), the images reduced to at most `side` each way."""
    size = reference.shape[:2]
    reduced = [min(n, side or n) for n in size]
    aligner = prepare_alignment(
        to_planes(reference), np.array(weight, np.float32), resampling_tables(*size, *reduced), upsampling
    )
    found = phase_shift(aligner, to_planes(moving))
    assert (found.shape, found.dtype) == ((2, 1, 1), np.float32)
    return found.ravel()


@pytest.mark.parametrize("upsampling", [1, 10])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -1), (3, -2), (-7, 5), (12, -9), (-15, -11), (-20, 15)])
@pytest.mark.parametrize("size", [(64, 80), (65, 71), (96, 64)])
def test_whole_pixels(size, shift, upsampling):
    found = align(*grain_pair(*size, *shift), upsampling)
    if upsampling == 1:
        np.testing.assert_array_equal(found, shift)
    else:
        np.testing.assert_allclose(found, shift, rtol=0, atol=tolerances.SHIFT_SUBPIXEL)


@pytest.mark.parametrize("shift", [(44, 0), (-44, 0), (0, 38), (0, -38), (33, 27), (-33, 27)])
def test_near_half_the_size(shift):
    """Of a circular shift and its wrapped alternative the right one is taken."""
    np.testing.assert_array_equal(align(*grain_pair(96, 112, *shift)), shift)


@pytest.mark.parametrize("shift", [(0.3, -0.7), (2.46, 1.13), (-5.55, 3.81), (7.2, -6.4)])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_fractions(shift, sigma):
    reference, moving = grain_pair(96, 112, *shift, sigma=sigma)
    found = align(reference, moving, upsampling=10)
    np.testing.assert_allclose(found, shift, rtol=0, atol=tolerances.SHIFT_SUBPIXEL)
    np.testing.assert_allclose(found * 10, np.rint(found * 10), atol=1e-4)
    np.testing.assert_allclose(align(reference, moving), shift, rtol=0, atol=1)


@pytest.mark.parametrize("side", [48, 64, 96])
@pytest.mark.parametrize("shift", [(4, -6), (8.4, -5.2), (-10, 3)])
def test_downsampled(shift, side):
    """The result is in full-resolution pixels whatever the size of the images compared."""
    pixel = np.array([112, 96]) / side
    pair = grain_pair(96, 112, *shift, sigma=1.5)
    fine, coarse = align(*pair, upsampling=10, side=side), align(*pair, side=side)
    assert np.all(np.abs(fine - shift) <= tolerances.SHIFT_DOWNSAMPLED * pixel)
    assert np.all(np.abs(coarse - shift) <= pixel)
    np.testing.assert_allclose(coarse / pixel, np.rint(coarse / pixel), atol=1e-4)


def test_channel_weights():
    """Channels that move differently: the heavier one decides. Two that move alike agree."""
    one, two = grain_pair(64, 80, 5, -3, seed=1), grain_pair(64, 80, -4, 6, seed=2)
    reference, moving = (np.stack(frames, axis=-1) for frames in zip(one, two, strict=True))
    np.testing.assert_array_equal(align(reference, moving, weight=(0.9, 0.1)), (5, -3))
    np.testing.assert_array_equal(align(reference, moving, weight=(0.1, 0.9)), (-4, 6))
    np.testing.assert_array_equal(align(reference, moving, weight=(1.0, 0.0)), align(*one))
    alike = grain_pair(64, 80, 5, -3, seed=3)
    reference, moving = (np.stack(frames, axis=-1) for frames in zip(one, alike, strict=True))
    np.testing.assert_array_equal(align(reference, moving, weight=(0.7, 0.3)), (5, -3))


def test_brightness_does_not_matter():
    reference, moving = grain_pair(64, 80, 5, -3)
    np.testing.assert_array_equal(align(reference, 0.5 * moving + 0.3), (5, -3))
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, 64, 80))
    np.testing.assert_array_equal(align(reference + noise[0], moving + noise[1]), (5, -3))


@pytest.mark.parametrize("upsampling", [1, 10])
def test_flat_images(upsampling):
    reference, _ = grain_pair(32, 40, 0, 0)
    flat = np.full((32, 40), 0.5, np.float32)
    for pair in ((reference, flat), (flat, reference), (flat, flat)):
        assert np.all(np.isfinite(align(*pair, upsampling)))
    np.testing.assert_array_equal(align(flat, flat), 0)


def test_against_upstream(shared_data):
    tifffile = pytest.importorskip("tifffile")
    upstream = np.load(shared_data / "upstream_stages.npz")
    movie = tifffile.imread(shared_data / "two_photon_20x128x256.tif").astype(float)
    raw = movie[8:16].mean(axis=0)
    reference, moving = (gaussian_filter((f - raw.min()) / (raw.max() - raw.min() + 1e-8), 1) for f in (raw, movie[0]))
    for name, arguments in {"shift_up1": (1,), "shift_up10": (10,), "shift_hw64_up10": (10, 64)}.items():
        found = align(reference, moving, *arguments)
        assert np.abs(found - upstream[name]).max() <= tolerances.SHIFT_UPSTREAM[name], name
