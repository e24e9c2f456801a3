"""Per-frame statistics against NumPy."""

import numpy as np
import pytest

from flowreg_gpu.cpu.statistics import correlation, flow_statistics
from tests import tolerances
from tests.movies import smooth_flow, to_planes

SIZES = [(2, 2), (2, 3), (3, 2), (4, 4), (31, 47), (65, 20)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [(0.0, 0.0), (40.0, -25.0)])
def test_flow_statistics(size, offset):
    rng = np.random.default_rng(1)
    flow = to_planes(smooth_flow(*size, 3.0, offset) + rng.standard_normal((*size, 2)))
    u, v = flow.astype(float)
    length = np.hypot(u, v)
    divergence = (np.gradient(u, axis=1) + np.gradient(v, axis=0)).mean()
    found = flow_statistics(flow)
    expected = (length.mean(), length.max(), divergence, np.hypot(u.mean(), v.mean()), u.mean(), v.mean())
    # relative to the size of the flow: the divergence is a difference
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.STATISTICS * length.max())


def test_flow_statistics_by_hand():
    y, x = np.mgrid[:9, :12].astype(np.float32)
    mean, largest, divergence, translation, right, down = flow_statistics(np.stack([0.5 * x, -0.25 * y]))
    assert divergence == pytest.approx(0.25, abs=1e-6)
    assert largest == pytest.approx(np.hypot(5.5, 2))
    assert translation == pytest.approx(np.hypot(2.75, 1))
    assert (right, down) == pytest.approx((2.75, -1))
    even = np.tile(np.float32([3, -4]).reshape(2, 1, 1), (1, 9, 12))
    assert flow_statistics(even) == pytest.approx((5, 5, 0, 5, 3, -4))
    assert flow_statistics(np.zeros((2, 9, 12), np.float32)) == (0, 0, 0, 0, 0, 0)
    assert mean == pytest.approx(np.hypot(0.5 * x, 0.25 * y).mean(), rel=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_correlation(dtype, channels):
    rng = np.random.default_rng(2)
    base = rng.random((31, 21, channels))
    first, second = ((100 * (base + 0.3 * rng.random(base.shape))).astype(dtype) for _ in range(2))
    expected = np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1]
    assert 0.5 < expected < 0.99
    assert correlation(first, second) == pytest.approx(expected, abs=tolerances.STATISTICS)
    assert correlation(first, second.astype(np.float32)) == pytest.approx(expected, abs=tolerances.STATISTICS)


def test_correlation_on_a_high_background():
    rng = np.random.default_rng(3)
    first = rng.integers(65000, 65010, (64, 64, 1)).astype(np.uint16)
    second = (first + rng.integers(0, 5, first.shape)).astype(np.float32)
    expected = np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1]
    assert correlation(first, second) == pytest.approx(expected, abs=tolerances.STATISTICS)


def test_correlation_of_special_images():
    image = np.random.default_rng(4).random((16, 18, 2)).astype(np.float32)
    flat = np.full_like(image, 0.5)
    assert correlation(image, image) == pytest.approx(1)
    assert correlation(image, 2 - 3 * image) == pytest.approx(-1, abs=1e-6)
    assert correlation(image, flat) == correlation(flat, image) == correlation(flat, flat) == 0
