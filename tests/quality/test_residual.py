"""Figures of displacement, and the share of pixels from the reference."""

import numpy as np
import pytest

from flowreg_gpu.quality.residual import displacement_figures, share_from_reference


def test_figures_are_those_of_all_lengths():
    flows = np.random.default_rng(0).normal(0, 3, (4, 2, 25, 30)).astype(np.float32)
    valid = np.zeros((25, 30), bool)
    valid[3:20, 4:] = True
    kept = flows.copy()
    lengths = np.linalg.norm(flows[:, :, valid], axis=1)
    assert displacement_figures(flows, valid) == pytest.approx((np.median(lengths), np.percentile(lengths, 99)))
    flows[:, 0, ~valid] = np.nan
    flows[0, 1, 0, 0] = np.inf
    assert displacement_figures(flows) == pytest.approx((np.median(lengths), np.percentile(lengths, 99)))
    np.testing.assert_array_equal(flows[:, :, valid], kept[:, :, valid])


@pytest.mark.parametrize(
    ("flows", "valid"),
    [
        (np.zeros((0, 2, 3, 4), np.float32), None),
        (np.zeros((1, 2, 3, 4), np.float32), np.zeros((3, 4), bool)),
        (np.full((1, 2, 3, 4), np.nan, np.float32), None),
    ],
    ids=["no flow", "no valid pixel", "no number"],
)
def test_figures_of_nothing_are_nan(flows, valid):
    assert np.isnan(displacement_figures(flows, valid)).all()


def test_flow_in_another_order_is_named():
    with pytest.raises(ValueError, match=r"flows.shape=\(3, 4, 5, 2\) is not \(k, 2, H, W\)"):
        displacement_figures(np.zeros((3, 4, 5, 2), np.float32))


def test_share():
    outside = np.zeros((20, 30), np.uint8)
    outside[:2] = 200  # more than 255 altogether
    assert share_from_reference(outside, 200) == pytest.approx(0.1)
    assert share_from_reference(np.zeros((3, 4), int), 0) == 0


@pytest.mark.parametrize(
    ("outside", "error", "message"),
    [
        (np.array([[3, 0]]), ValueError, "holds 0 to 3, which is not 0 to count=2"),
        (np.array([[-1, 0]]), ValueError, "holds -1 to 0"),
        (np.array([[0.5, 0]]), TypeError, "float64'.* is not of integers"),
        (np.array([1]), ValueError, r"shape=\(1,\) is not \(H, W\)"),
    ],
)
def test_share_names_bad_input(outside, error, message):
    with pytest.raises(error, match=message):
        share_from_reference(outside, 2)
