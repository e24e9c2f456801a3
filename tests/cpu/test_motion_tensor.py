"""Motion tensors against upstream's and against the formulas written with NumPy in float64."""

import numpy as np
import pytest

from flowreg_gpu.cpu.motion_tensor import motion_tensor
from tests import tolerances
from tests.movies import frame_pair, smooth_flow, to_planes

PLANES = ("J11", "J22", "J33", "J12", "J13", "J23")
TOLERANCE = {"gc": tolerances.TENSOR_GC, "gray": tolerances.TENSOR_GRAY, "cs": tolerances.TENSOR_CS}
ALL = list(TOLERANCE)


def along_x(padded, hx):
    return (padded[:, 2:] - padded[:, :-2]) / (2 * hx)


def along_y(padded, hy):
    return (padded[2:] - padded[:-2]) / (2 * hy)


def products(fx, fy, ft):
    return np.stack([fx * fx, fy * fy, ft * ft, fx * fy, fx * ft, fy * ft])


def gray(first, second, hx, hy):
    """Products of the derivatives; the planes are padded here."""
    mean, change = (np.pad(item, 1, "symmetric") for item in ((first + second) / 2, second - first))
    return products(along_x(mean, hx)[1:-1], along_y(mean, hy)[:, 1:-1], change[1:-1, 1:-1])


def gc(first, second, hx, hy):
    mean, change = (np.pad(item, 1, "symmetric") for item in ((first + second) / 2, second - first))
    fxx = (mean[1:-1, 2:] - 2 * mean[1:-1, 1:-1] + mean[1:-1, :-2]) / hx**2
    fyy = (mean[2:, 1:-1] - 2 * mean[1:-1, 1:-1] + mean[:-2, 1:-1]) / hy**2
    fxy = along_y(along_x(mean, hx), hy)
    fxt, fyt = along_x(change, hx)[1:-1], along_y(change, hy)[:, 1:-1]
    rx, ry = 1 / (fxx**2 + fxy**2 + 1e-6), 1 / (fxy**2 + fyy**2 + 1e-6)
    return rx * products(fxx, fxy, fxt) + ry * products(fxy, fyy, fyt)


def cs(first, second, hx, hy):
    height, width = first.shape
    total = 0
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        signatures = []
        for frame in (first, second):
            neighbour = np.pad(frame, 1, "symmetric")[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
            r = (neighbour - frame) / np.hypot(dx * hx, dy * hy)
            signatures.append(0.5 * (1 + r / np.sqrt(r**2 + (0.1 / 255) ** 2)))
        total = total + gray(*signatures, hx, hy) * 2 / 8
    return total


NAIVE = {"gc": gc, "gray": gray, "cs": cs}


def deviation(found, expected):
    """Largest difference in each plane (last two axes), relative to the plane's largest value."""
    scale = np.abs(expected).max(axis=(-2, -1))
    return np.abs(found - expected).max(axis=(-2, -1)) / np.where(scale > 0, scale, 1)


@pytest.mark.parametrize("term", ALL)
def test_against_upstream(term, shared_data):
    upstream = np.load(shared_data / "upstream_stages.npz")
    first, second = (to_planes(upstream[name]) for name in ("f1", "f2"))
    expected = upstream[f"J_{term}"]
    assert not expected[:, [0, -1]].any()
    assert not expected[:, :, [0, -1]].any()
    spacing = float(upstream["hx"]), float(upstream["hy"])
    found = motion_tensor(first, second, *spacing, term)[0]
    worst = dict(zip(PLANES, deviation(found, expected[:, 1:-1, 1:-1]), strict=True))
    assert max(worst.values()) <= TOLERANCE[term], worst
    # the formulas that the next test takes as its yardstick
    naive = NAIVE[term](upstream["f1"], upstream["f2"], *spacing)
    assert deviation(naive, expected[:, 1:-1, 1:-1]).max() <= tolerances.DOUBLE


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.5625, 1.25)])
@pytest.mark.parametrize("size", [(8, 8), (31, 17), (1, 9), (7, 1), (2, 3), (65, 47)])
@pytest.mark.parametrize("term", ALL)
def test_against_the_formulas(term, size, spacing):
    first, second = (to_planes(frame) for frame in frame_pair(smooth_flow(*size, 1.0), channels=2, seed=3))
    found = motion_tensor(first, second, *spacing, term)
    assert found.shape == (2, 6, *size)
    assert found.dtype == np.float32
    pairs = zip(first.astype(float), second.astype(float), strict=True)
    expected = np.stack([NAIVE[term](a, b, *spacing) for a, b in pairs])
    assert deviation(found, expected).max() <= TOLERANCE[term]


@pytest.mark.parametrize("term", ALL)
def test_ramp(term):
    """A ramp of slope 0.01 per pixel along x, displaced by 2 px: fx = 0.01, ft = -0.02, nothing else."""
    x = np.tile(np.arange(20.0), (12, 1))
    first, second = to_planes(0.01 * x), to_planes(0.01 * (x - 2))
    inner = motion_tensor(first, second, 1.0, 1.0, term)[0, :, 2:-2, 2:-2]
    expected = {"gray": [1e-4, 0, 4e-4, 0, -2e-4, 0], "gc": [0] * 6, "cs": [0] * 6}[term]
    np.testing.assert_allclose(inner, np.broadcast_to(np.reshape(expected, (6, 1, 1)), inner.shape), atol=1e-6)


@pytest.mark.parametrize("term", ALL)
def test_identical_frames_have_no_temporal_part(term):
    first, _ = frame_pair(smooth_flow(21, 25), seed=1)
    found = motion_tensor(to_planes(first), to_planes(first), 1.0, 1.0, term)[0]
    assert not found[[2, 4, 5]].any()
    assert found[0].max() > 0


@pytest.mark.parametrize("term", ALL)
def test_flat_frames(term):
    flat = np.full((1, 9, 11), 0.5, np.float32)
    assert not motion_tensor(flat, flat, 1.0, 1.0, term).any()
