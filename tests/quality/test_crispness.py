"""Crispness against `numpy.gradient` of the whole image, and what it says of blurred images."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

from flowreg_gpu.quality import crispness as module
from flowreg_gpu.quality.crispness import crispness

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


@pytest.mark.parametrize("part", [1, 90, 10**6])
@pytest.mark.parametrize("shape", [(2, 2, 1), (17, 30, 1), (31, 5, 3)])
def test_is_the_norm_of_the_gradient(monkeypatch, shape, part):
    monkeypatch.setattr(module, "PART_VALUES", part)
    image = np.random.default_rng(0).normal(100, 9, shape)
    down, right = np.gradient(image, axis=(0, 1))
    assert crispness(image) == pytest.approx(np.linalg.norm(np.hypot(down, right)), rel=1e-12)
    channels = [crispness(image[..., c : c + 1]) for c in range(shape[-1])]
    assert crispness(image) == pytest.approx(np.linalg.norm(channels), rel=1e-12)


@pytest.mark.parametrize("part", [1, 90, 10**6])
def test_only_pixels_whose_neighbours_are_valid_count(monkeypatch, part):
    monkeypatch.setattr(module, "PART_VALUES", part)
    rng = np.random.default_rng(0)
    image, valid = rng.normal(size=(20, 31, 2)), rng.random((20, 31)) < 0.9
    inner = binary_erosion(valid, CROSS, border_value=1)
    down, right = np.gradient(image, axis=(0, 1))
    right_value = np.sqrt((down**2 + right**2)[inner].sum())
    assert 0 < crispness(image, valid) < crispness(image)
    assert crispness(image, valid) == pytest.approx(right_value, rel=1e-12)
    image[~valid] = rng.choice([np.nan, np.inf, 1e9], np.count_nonzero(~valid))[:, None]
    assert crispness(image, valid) == pytest.approx(right_value, rel=1e-12)
    image[~valid] = np.nan
    assert crispness(image) == pytest.approx(right_value, rel=1e-12)


def test_blur_lowers_it_and_brightness_raises_it():
    image = np.random.default_rng(0).random((60, 40, 1))
    assert crispness(gaussian_filter(image, (1, 1, 0))) < crispness(image) / 2
    assert crispness(3 * image + 50) == pytest.approx(3 * crispness(image))


def test_single_lines_and_single_pixels():
    assert crispness(np.array([[[1], [3], [5]]], np.uint8)) == pytest.approx(np.sqrt(12))
    assert crispness(np.array([[[5]], [[3]]], np.uint8)) == pytest.approx(np.sqrt(8))  # no wrap of unsigned numbers
    assert crispness(np.ones((1, 1, 1))) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"image.shape=\(3, 4\) is not \(H, W, C\)|shape=\(3, 4\) is not \(H, W, C\)"):
        crispness(np.zeros((3, 4)))
