"""Frames that are chosen to be looked at."""

import numpy as np
import pytest

from flowreg_gpu.quality.play import RUN, frames_to_play, worst_frames

NONE = np.zeros(1000, bool)


def bursts(*places, n=1000, length=30):
    """Displacement of a recording that moves by 5 px in bursts, and by up to a tenth elsewhere."""
    moved = np.random.default_rng(0).uniform(0, 0.1, n)
    for place in places:
        moved[place : place + length] += 5
    return moved


def runs_of(numbers):
    return [run for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(run) > 1]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 48, 999])
@pytest.mark.parametrize("flagged", [NONE, np.arange(1000) % 3 == 0], ids=["none flagged", "a third flagged"])
def test_are_as_many_as_asked_for(count, flagged):
    chosen = frames_to_play(bursts(200, 700), flagged, count)
    assert len(chosen) == min(count, np.count_nonzero(~flagged))
    assert (np.diff(chosen) > 0).all()
    assert not flagged[chosen].any()


def test_half_are_runs_where_it_moves_and_the_others_are_spread():
    moved = bursts(100, 420, 800)
    chosen = frames_to_play(moved, NONE, 24)
    assert np.count_nonzero(moved[chosen] > 4) >= 12
    assert all(len(run) >= RUN for run in runs_of(chosen))
    assert {place for place in (100, 420, 800) if ((chosen >= place) & (chosen < place + 30)).any()} == {100, 420, 800}
    assert chosen[0] == 0
    assert chosen[-1] == 999
    assert np.diff(chosen).max() < 130


def test_runs_are_not_all_from_one_place():
    moved = bursts(300, length=300)
    starts = [run[0] for run in runs_of(frames_to_play(moved, NONE, 32))]
    assert len(starts) == 4
    assert min(np.diff(starts)) >= 1000 // 8


def test_a_single_frame_that_stands_out_makes_no_run():
    moved = bursts(600)
    moved[[50, 321, 990]] = 200
    assert [run[0] // 100 for run in runs_of(frames_to_play(moved, NONE, 8))] == [6]


def test_flagged_frames_are_shown_where_there_is_no_other():
    every = np.ones(1000, bool)
    moved = bursts(200)
    np.testing.assert_array_equal(frames_to_play(moved, every, 20), frames_to_play(moved, NONE, 20))
    few = every.copy()
    few[[3, 700]] = False
    assert frames_to_play(moved, few, 20).tolist() == [3, 700]


def test_short_recordings_are_shown_whole():
    flagged = np.array([False, True, False])
    assert frames_to_play(np.zeros(3), flagged, 3).tolist() == [0, 1, 2]
    assert frames_to_play(np.zeros(3), flagged, 48).tolist() == [0, 1, 2]
    assert frames_to_play(np.zeros(0), np.zeros(0, bool), 5).tolist() == []


def test_displacements_that_are_not_finite_count_as_none():
    moved = bursts(400)
    moved[:100], moved[900:] = np.nan, np.inf
    assert all(400 <= run[0] < 430 for run in runs_of(frames_to_play(moved, NONE, 8)))
    assert 400 <= worst_frames(moved, NONE, 1)[0] < 430


def test_worst_frames_are_those_that_moved_most():
    moved = np.zeros(1000)
    moved[[10, 11, 13, 14, 500, 900]] = 9, 8, 7, 6, 5, 10
    assert worst_frames(moved, NONE, 3).tolist() == [10, 14, 900]
    assert worst_frames(moved, np.arange(1000) == 900, 3).tolist() == [10, 14, 500]


def test_worst_frames_are_never_flagged_and_may_be_fewer():
    assert worst_frames(np.ones(9), np.zeros(9, bool), 5).tolist() == [0, 4, 8]
    assert worst_frames(np.ones(9), np.ones(9, bool), 5).tolist() == []


@pytest.mark.parametrize("choose", [frames_to_play, worst_frames])
def test_bad_input_is_named(choose):
    with pytest.raises(ValueError, match=r"shape=\(3,\) and flagged.shape=\(4,\) are not both \(T,\)"):
        choose(np.zeros(3), np.zeros(4, bool), 2)
    with pytest.raises(ValueError, match="count=0 is not 1 or more"):
        choose(np.zeros(3), np.zeros(3, bool), 0)
