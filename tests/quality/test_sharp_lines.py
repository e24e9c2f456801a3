"""The lines with most structure of images in which they are known."""

import numpy as np
import pytest

from flowreg_gpu.quality.sharp_lines import most_structured_lines


def image_with(*lines, height=120, width=90, noise=0.0):
    """Lines ('row' or 'column', index, contrast) on grey: spots of five pixels, in pairs of as bright and as dark."""
    image = np.random.default_rng(0).normal(50, noise, (height, width))
    for axis, index, contrast in lines:
        along = image if axis == "row" else image.T
        wave = np.sign(np.sin(np.arange(along.shape[1]) * np.pi / 5 + 0.1))
        along[index - 1 : index + 2] += contrast * wave
    return image


def test_finds_the_row_and_the_column():
    image = image_with(("row", 40, 30), ("column", 60, 20))
    assert most_structured_lines(image) == [("row", 40), ("column", 60)]
    assert most_structured_lines(image.T.astype(np.uint8)) == [("column", 40), ("row", 60)]
    assert most_structured_lines(image, 1) == [("row", 40)]


def test_a_row_and_a_column_come_first_and_then_the_others():
    image = image_with(("row", 40, 30), ("row", 80, 28), ("row", 60, 26), ("column", 45, 8))
    (*firsts, third, fourth) = most_structured_lines(image, 4)
    assert firsts[0] == ("row", 40)
    assert firsts[1][0] == "column"
    assert [third, fourth] == [("row", 80), ("row", 60)]


def test_lines_are_apart():
    image = image_with(("row", 40, 30), ("row", 48, 29), ("row", 70, 20))
    rows = [index for axis, index in most_structured_lines(image, 9) if axis == "row"]
    assert rows[:2] == [40, 70]
    assert np.diff(sorted(rows)).min() >= 16
    large = np.random.default_rng(0).random((640, 40))
    rows = [index for axis, index in most_structured_lines(large, 30) if axis == "row"]
    assert np.diff(sorted(rows)).min() >= 40


def test_smoothing_tells_structure_from_noise():
    """A row of steps against rows of noise whose pixels differ as much."""
    image = image_with(("row", 70, 20))
    image[35] += np.random.default_rng(2).normal(0, 20, 90)
    assert ("row", 70) in most_structured_lines(image, 2)
    assert np.square(np.diff(image[35])).mean() > np.square(np.diff(image[70])).mean()


def test_edges_are_left_out():
    lines = dict(most_structured_lines(image_with(("row", 3, 90), ("row", 60, 10))))
    assert lines["row"] == 60
    lines = dict(most_structured_lines(image_with(("column", 86, 90), ("column", 45, 10))))
    assert lines["column"] == 45


def test_flat_images_have_lines_in_the_middle():
    assert set(most_structured_lines(np.full((33, 21), 7, np.uint8))) == {("row", 16), ("column", 10)}
    assert set(most_structured_lines(np.full((4, 5), np.nan))) == {("row", 1), ("column", 2)}
    assert set(most_structured_lines(np.zeros((1, 1)), 5)) == {("row", 0), ("column", 0)}


def test_pixels_that_are_not_finite_make_no_structure():
    image = image_with(("row", 40, 30), ("column", 60, 20))
    image[80, ::5] = np.nan
    assert most_structured_lines(image) == [("row", 40), ("column", 60)]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="count=0 is not 1 or more"):
        most_structured_lines(np.zeros((4, 5)), 0)
    with pytest.raises(ValueError, match=r"shape=\(4, 5, 1\) is not \(H, W\)"):
        most_structured_lines(np.zeros((4, 5, 1)))
