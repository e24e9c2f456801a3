"""Batches: which frames they hold, and the mean of flows that arrive in any pieces."""

import dataclasses

import numpy as np
import pytest

from flowreg_gpu.engine.batch import FLAGS, STATISTICS, Batch, FlowMean, check_warpable, find_nonfinite, unflagged


def batch_of(count=5, halo=2, planes=False):
    frames = np.arange(count + 2 * halo, dtype=np.uint16)[:, None, None, None] * np.ones((1, 4, 3, 1), np.uint16)
    own = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 4, 3), np.float32)
    return Batch(frames, np.zeros((2, 4, 3), np.float32), halo, planes=own if planes else None)


def test_count_leaves_the_halo_out():
    assert batch_of(5, 2).count == 5
    assert batch_of(1, 0).count == 1


def test_inputs_of_a_part_have_their_halo():
    (raw,) = batch_of(5, 2).inputs(1, 3)
    assert raw[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    raw, planes = batch_of(5, 0, planes=True).inputs(1, 3)
    assert raw[:, 0, 0, 0].tolist() == planes[:, 0, 0, 0].tolist() == [1, 2]


def test_the_rest_of_a_batch():
    def progress(finished):
        raise AssertionError("never called")

    batch = dataclasses.replace(batch_of(5, 2), averaged=3, keep_flow=False)
    rest = batch.part(2, 5, progress)
    assert rest.count == 3
    assert rest.frames[:, 0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert (rest.progress, rest.averaged, rest.keep_flow, rest.planes) == (progress, 3, False, None)
    assert batch_of(5, 0, planes=True).part(2, 5, None).planes[:, 0, 0, 0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("averaged", range(6))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_hold_every_frame_and_average_what_the_batch_does(averaged, size):
    batch = dataclasses.replace(batch_of(5, 0), averaged=averaged)
    parts = [batch.part(first, min(first + size, 5), None) for first in range(0, 5, size)]
    assert np.concatenate([part.frames for part in parts])[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    means = [frame for part in parts for frame in part.frames[part.count - part.averaged :, 0, 0, 0].tolist()]
    assert means == list(range(5 - averaged, 5))


def test_a_batch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch_of().halo = 1


def test_mean_of_flows_does_not_depend_on_the_pieces():
    flows = np.random.default_rng(0).standard_normal((7, 4, 3, 2)).astype(np.float32)
    statistics, otherwise = np.zeros((7, len(STATISTICS))), np.ones((2, 4, 3), np.float32)
    whole, pieces = FlowMean(), FlowMean()
    whole.add(flows, statistics)
    for first, stop in ((0, 0), (0, 1), (1, 5), (5, 7)):
        pieces.add(flows[first:stop], statistics[first:stop])
    assert pieces.count == 7
    mean = whole.planes(otherwise)
    np.testing.assert_array_equal(mean, pieces.planes(otherwise))
    np.testing.assert_allclose(mean, np.moveaxis(flows.astype(float).mean(axis=0), -1, 0), atol=1e-7)


def test_flagged_frames_do_not_count_in_the_mean():
    flows = np.random.default_rng(0).standard_normal((5, 4, 3, 2)).astype(np.float32)
    statistics, otherwise = np.ones((5, len(STATISTICS))), np.ones((2, 4, 3), np.float32)
    statistics[:, FLAGS] = 0
    for frame, name in ((1, "constant"), (4, "diverged")):
        statistics[frame, STATISTICS.index(name)] = 1
        flows[frame] = 0  # as the executors leave it
    assert unflagged(statistics).tolist() == [True, False, True, True, False]
    mean, nothing = FlowMean(), FlowMean()
    mean.add(flows, statistics)
    expected = np.moveaxis(flows[[0, 2, 3]].astype(float).mean(axis=0), -1, 0)
    np.testing.assert_allclose(mean.planes(otherwise), expected, atol=1e-7)
    nothing.add(flows[[1, 4]], statistics[[1, 4]])
    for empty in (nothing, FlowMean()):
        np.testing.assert_array_equal(empty.planes(otherwise), otherwise)


def test_dtypes_that_can_be_warped():
    check_warpable(np.dtype(">u2"), "frames")
    with pytest.raises(ValueError, match="frames has dtype uint32, which is not supported, expected one of uint8"):
        check_warpable(np.dtype("uint32"), "frames")


def test_pixels_that_are_not_finite():
    frames = np.zeros((2, 3, 4, 1), np.float32)
    assert find_nonfinite(frames) is None
    assert find_nonfinite(np.zeros((2, 3, 4, 1), np.uint8)) is None
    frames[1, 2, 3, 0] = np.inf
    assert np.argwhere(find_nonfinite(frames)).tolist() == [[1, 2, 3, 0]]
