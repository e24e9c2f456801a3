"""Rigid pre-alignment on the (emulated) device against the CPU."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from flowreg_gpu.cpu import prealign as cpu
from flowreg_gpu.cpu.pyramid import resize
from flowreg_gpu.cuda import prealign
from flowreg_gpu.model.resampling import resampling_tables
from tests import tolerances
from tests.emulation import EmulatedDevice

SHIFTS = [(0, 0), (3, -2), (-4, 5)]
BORDER = 40


@pytest.fixture(scope="module")
def device():
    return EmulatedDevice(order="both")


def series(size, shifts, channels=1):
    """Reference planes (C, H, W) and moving planes (n, C, H, W), moved by (u, v) = shifts[n]; float32, about 0 to 1."""
    height, width = size
    inside = slice(BORDER, BORDER + height), slice(BORDER, BORDER + width)
    noise = np.random.default_rng(0).standard_normal((channels, height + 2 * BORDER, width + 2 * BORDER))
    scenes = [0.5 + gaussian_filter(scene, 1.5, mode="wrap") for scene in noise]
    moving = [[shift(scene, (v, u), order=3, mode="grid-wrap")[inside] for scene in scenes] for u, v in shifts]
    reference = [scene[inside] for scene in scenes]
    return np.array(reference, np.float32), np.array(moving, np.float32)


def align_both(device, reference, moving, upsampling=1, side=None, weight=None):
    """Displacements (n, 2) by the device and by the CPU; images reduced to at most `side` each way, by one program."""
    channels, *size = reference.shape
    tables = resampling_tables(*size, *(min(n, side or n) for n in size))
    weight = np.full(channels, 1 / channels) if weight is None else weight
    weight = np.asarray(weight, np.float32)

    def reduce(planes):
        return device.to_device(np.stack([resize(image, tables) for image in device.to_host(planes)]))

    aligner = prealign.prepare_alignment(device, device.to_device(reference[None]), weight, reduce, upsampling)
    found = device.to_host(prealign.phase_shift(device, aligner, device.to_device(moving)))
    assert (found.shape, found.dtype) == ((len(moving), 2, 1, 1), np.float32)
    twin = cpu.prepare_alignment(reference, weight, tables, upsampling)
    with np.errstate(invalid="ignore"):  # NaN
        expected = np.stack([cpu.phase_shift(twin, planes).ravel() for planes in moving])
    return found[..., 0, 0], expected


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(17, 31), (16, 16), (97, 41)])
def test_whole_pixels(device, size, channels):
    found, expected = align_both(device, *series(size, SHIFTS, channels))
    np.testing.assert_array_equal(found, expected)
    if min(size) > 16:  # the windowed remainder of less is no longer the shift's
        np.testing.assert_allclose(found, SHIFTS, rtol=0, atol=1)


@pytest.mark.parametrize("upsampling", [2, 3, 10])
@pytest.mark.parametrize("size", [(17, 31), (32, 33), (97, 41)])
def test_fractions(device, size, upsampling):
    found, expected = align_both(device, *series(size, [(0, 0), (2.46, 1.13), (-3.55, -1.81)], 2), upsampling)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.SHIFT_DEVICE)
    assert np.any(found % 1 != 0)


@pytest.mark.parametrize("upsampling", [1, 4])
@pytest.mark.parametrize("side", [16, 23])
def test_downsampled(device, side, upsampling):
    """The result is in full-resolution pixels."""
    found, expected = align_both(device, *series((48, 71), [(6, -3), (-8.4, 5.2)]), upsampling, side)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.SHIFT_DEVICE)
    assert np.all(np.abs(found - [(6, -3), (-8.4, 5.2)]) < np.array([71, 48]) / side)


def test_near_half_the_size(device):
    """Of a circular shift and its wrapped alternative the right one is taken."""
    shifts = [(27, 0), (-27, 0), (0, 20), (0, -20), (22, 17), (-22, 17), (22, -17), (-22, -17)]
    found, expected = align_both(device, *series((48, 64), shifts))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, shifts, rtol=0, atol=1)


def test_channel_weights(device):
    reference, moving = series((32, 40), [(5, -3), (-4, 6)], 2)
    mixed = moving[0].copy()
    mixed[1] = moving[1, 1]  # channels that move differently: the heavier one decides
    for weight, shift_ in (((0.9, 0.1), (5, -3)), ((0.1, 0.9), (-4, 6)), ((1, 0), (5, -3))):
        found, expected = align_both(device, reference, mixed[None], weight=weight)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found[0], shift_)


@pytest.mark.parametrize("upsampling", [1, 4])
def test_special_images(device, upsampling):
    """Faint, flat, partly and wholly NaN; next to a plain one, which they leave alone."""
    reference, moving = series((17, 31), [(2, -1)])
    plain = moving[0]
    spoilt = plain.copy()
    spoilt[0, 3, 4] = np.nan
    frames = np.stack([plain, 0.5 + 1e-3 * plain, np.full_like(plain, 0.5), spoilt, np.full_like(plain, np.nan), plain])
    found, expected = align_both(device, reference, frames, upsampling)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.SHIFT_DEVICE)
    np.testing.assert_array_equal(found[0], found[-1])
    flat = np.full_like(reference, 0.5)
    found, expected = align_both(device, flat, np.stack([flat, flat, plain]), upsampling)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.SHIFT_DEVICE)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("length", "columns"), [(1, 1), (2, 15), (31, 65), (64, 64), (97, 130)])
def test_fourier_sums(device, length, columns, axis):
    """Against the matrix product; blocks are 64 columns and frequencies wide."""
    size, upsampling = 6, 4
    rng = np.random.default_rng(6)
    spectra = rng.standard_normal((2, length, columns)) + 1j * rng.standard_normal((2, length, columns))
    whole = np.array([[3, -7], [-40, 11]], np.int32)
    position = whole[:, axis, None] + (np.arange(size) - 3) / upsampling
    expected = np.exp(2j * np.pi * position[..., None] * np.fft.fftfreq(length)) @ spectra
    arguments = device.to_device(spectra), device.to_device(whole), axis, upsampling, size
    found = device.to_host(prealign._fourier_sums(device, *arguments))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected.transpose(0, 2, 1), rtol=0, atol=tolerances.DOUBLE * scale)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (33, 17)])
def test_ties_go_to_the_first(device, size):
    """Peaks and overlap scores of equal height, as in NumPy; a peak in the first row or column does not wrap."""
    rng = np.random.default_rng(5)
    frames = 12
    correlation = rng.integers(0, 3, (frames, *size)) + 1j * rng.integers(0, 9, (frames, *size))
    correlation[-1] = np.nan
    reference = rng.integers(-1, 2, size).astype(np.float32)
    images = rng.integers(-1, 2, (frames, *size)).astype(np.float32)
    images[-2] = 0
    peaks = [np.unravel_index(int(np.argmax(item.real)), size) for item in correlation]
    expected = [cpu._likeliest_shift(reference, *item) for item in zip(images, *np.transpose(peaks), strict=True)]

    whole, shifts = device.empty((frames, 2), np.int32), device.empty((frames, 2), np.float32)
    device.kernel(prealign.FILE, "whole_shift")(
        (1, 1, frames),
        prealign.BLOCK,
        (
            *map(device.to_device, (correlation, reference, images)),
            *map(np.int32, size),
            np.float64(2.5),
            np.float64(1.25),
            whole,
            shifts,
        ),
        shared_mem=prealign.BLOCK[0] * prealign.OVERLAPS.itemsize,
    )
    np.testing.assert_array_equal(device.to_host(whole), expected)
    np.testing.assert_array_equal(device.to_host(shifts), np.array(expected)[:, ::-1] * [2.5, 1.25])


def test_batches_do_not_matter(device):
    """To the last bit."""
    reference, moving = series((17, 31), [(0, 0), (2.46, 1.13), (-3.55, -1.81)], 2)
    together, _ = align_both(device, reference, moving, 10)
    alone = [align_both(device, reference, planes[None], 10)[0][0] for planes in moving]
    np.testing.assert_array_equal(together, alone)


def test_weights_that_do_not_fit(device):
    reference, moving = series((16, 16), [(0, 0)], 2)
    with pytest.raises(ValueError, match=r"weight is \(3,\), expected one weight a channel"):
        align_both(device, reference, moving, weight=(0.2, 0.3, 0.5))
