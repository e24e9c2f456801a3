"""5x5 median against SciPy's; the two select the same value, so they agree exactly."""

import numpy as np
import pytest
from scipy.ndimage import median_filter

from flowreg_gpu.cpu.median import median5x5

SIZES = [(3, 3), (3, 4), (4, 3), (5, 5), (3, 31), (31, 3), (6, 7), (9, 11), (16, 16), (31, 17), (65, 47)]


def expected(planes):
    return np.stack([median_filter(plane, size=5, mode="mirror") for plane in planes])


@pytest.mark.parametrize("size", SIZES)
def test_random(size):
    planes = np.random.default_rng(sum(size)).standard_normal((2, *size)).astype(np.float32)
    before = planes.copy()
    found = median5x5(planes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(planes))
    np.testing.assert_array_equal(planes, before)


@pytest.mark.parametrize("values", [2, 3, 5, 13])
@pytest.mark.parametrize("size", SIZES)
def test_ties(size, values):
    planes = np.random.default_rng(values).integers(0, values, (2, *size)).astype(np.float32)
    np.testing.assert_array_equal(median5x5(planes), expected(planes))


def test_zeros_and_ones():
    """A selection network that errs does so for some zeros and ones (0-1 principle): 200 000 windows of them."""
    rng = np.random.default_rng(0)
    planes = (rng.random((1, 400, 500)) < np.linspace(0.3, 0.7, 500)).astype(np.float32)
    np.testing.assert_array_equal(median5x5(planes), expected(planes))


def test_sorted_planes():
    ramp = np.arange(17 * 19, dtype=np.float32).reshape(1, 17, 19)
    for planes in (ramp, ramp[:, ::-1], ramp[:, :, ::-1], -ramp):
        planes = np.ascontiguousarray(planes)
        np.testing.assert_array_equal(median5x5(planes), expected(planes))


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, 1e30])
def test_constant(value):
    planes = np.full((1, 7, 9), value, np.float32)
    np.testing.assert_array_equal(median5x5(planes), planes)


def test_outliers_go_and_infinities_are_ordered():
    planes = np.zeros((1, 15, 15), np.float32)
    planes[0, 7, 7] = 1e9
    assert not median5x5(planes).any()
    planes = np.random.default_rng(1).standard_normal((1, 15, 15)).astype(np.float32)
    planes[0, ::2, ::3], planes[0, 1::4, ::2] = np.inf, -np.inf
    np.testing.assert_array_equal(median5x5(planes), expected(planes))
