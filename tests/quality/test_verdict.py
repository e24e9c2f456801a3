"""Verdicts: the word follows the gains, and what was noticed is said."""

import dataclasses

import numpy as np
import pytest

from flowreg_gpu.quality.measures import BeforeAfter, Quality
from flowreg_gpu.quality.verdict import judge, list_frames

RNG = np.random.default_rng(0)


def statistics(n=100, before=0.6, after=0.9, moved=2.0, **changed):
    noise = RNG.normal(0, 0.005, n)
    columns = {
        "mean_disp": np.full(n, moved),
        "correlation_before": before + noise,
        "correlation_after": after + noise,
        **{name: np.zeros(n, bool) for name in ("constant", "diverged", "bad", "realigned")},
    }
    for name, (numbers, value) in changed.items():
        columns[name][numbers] = value
    return columns


def quality(own=(0.6, 0.9), displaced=(), from_reference=None, tested=32):
    image, n = np.zeros((16, 16, 1), np.float32), 20
    return Quality(
        np.arange(n),
        image,
        image,
        np.full(n, own[0]),
        np.full(n, own[1]),
        BeforeAfter(1.0, 2.0),
        tested=tested,
        displaced=np.array(displaced, np.intp),
        from_reference=from_reference,
    )


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ([0.1] * 10 + [0.11], "better"),
        ([0.001, 0.002, 0.5, 0.01, 0.003, 0.2, 0.004, 0.001, 0.02, 0.03, 0.001], "better"),  # of different size
        ([-0.01, -0.02, -0.015, -0.01, -0.03, -0.01], "worse"),
        ([0.1, -0.1, 0.1, -0.1, 0.1, -0.1], "unchanged"),
        ([0.9, -0.01, -0.02, -0.01, -0.01, -0.02], "unchanged"),  # one frame does not carry it
        ([0.01] * 5 + [0.012] + [-0.05] * 4, "unchanged"),
        ([0.0] * 11, "unchanged"),
        ([0.1], "unchanged"),
        ([], "unchanged"),
        ([0.1, 0.1001], "better"),
        ([0.1, 0.2], "unchanged"),  # two frames that differ say little
    ],
)
def test_the_word_follows_the_gains(gains, word):
    verdict = judge(gains, statistics())
    assert verdict.word == word
    assert str(verdict).startswith(f"verdict: {word}\n  ")


def test_a_harm_that_nobody_would_see():
    assert judge([-0.001] * 11, statistics(moved=0.05)).word == "unchanged"
    assert judge([-0.001] * 11, statistics(moved=0.2)).word == "worse"
    assert "0.05 px" in str(judge([-0.001] * 11, statistics(moved=0.05)))


def test_noise_that_was_followed_is_named():
    verdict = judge([-0.01] * 11, statistics(), alpha_given=True)
    assert verdict.word == "worse"
    assert "Whole frames correlate better with the reference" in str(verdict)
    assert 'alpha="auto"' in str(verdict)
    assert 'alpha="auto"' not in str(judge([-0.01] * 11, statistics()))


def test_lost_frames_are_named_and_cap_the_word():
    few, many = np.arange(10, 13), np.arange(10, 20)
    verdict = judge([0.1] * 11, statistics(correlation_after=(few, 0.2)))
    assert verdict.word == "better"
    assert "Frames 10-12 (3 frames): far less correlation" in str(verdict)
    assert "--cc-initialization true" in str(verdict)
    assert judge([0.1] * 11, statistics(correlation_after=(many, 0.2))).word == "unchanged"
    assert "left the plane" in str(judge([0.1] * 11, statistics(correlation_after=(few, 0.2)), aligned=True))


def test_noisy_frames_are_not_lost():
    rng, columns = np.random.default_rng(1), statistics()
    columns["correlation_after"] = rng.normal(0.5, 0.1, 100)
    assert "far less correlation" not in str(judge([0.1] * 11, columns))


def test_displaced_frames():
    verdict = judge([0.1] * 11, statistics(), quality=quality(displaced=[3, 40]))
    assert verdict.word == "unchanged"
    assert "2 of 32 frames that were tested have jumped, and are not registered (3, 40)" in str(verdict)
    assert judge([0.1] * 11, statistics(), quality=quality(displaced=[3])).word == "better"


def test_the_reference_of_another_scene():
    foreign = statistics(before=0.0, after=0.6)
    verdict = judge([0.2] * 11, foreign, quality=quality(own=(0.95, 0.97)))
    assert verdict.word == "worse"
    assert "--reference auto" in str(verdict)
    # far from the reference, but registered to it
    assert judge([0.2] * 11, statistics(before=0.05, after=0.9), quality=quality(own=(0.9, 0.92))).word == "better"
    # a reference of few photons
    assert judge([0.2] * 11, statistics(before=0.5, after=0.6), quality=quality(own=(0.8, 0.95))).word == "better"


def test_flagged_frames_are_named():
    text = str(judge([0.1] * 11, statistics(bad=([4, 5], True), diverged=(7, True))))
    assert "Frames 4-5 (2 frames): no image" in text
    assert "Frame 7: the flow left the frame" in text


def test_pixels_of_the_reference():
    assert "--crop valid" in str(judge([0.1] * 11, statistics(), quality=quality(from_reference=0.08)))
    assert "--crop valid" not in str(judge([0.1] * 11, statistics(), quality=quality(from_reference=0.01)))


def test_frames_alone():
    verdict = judge([0.1] * 11, {}, seen=True, quality=quality())
    assert verdict.word == "better"
    assert "can flatter" in str(verdict)
    as_blurred = dataclasses.replace(quality(), crispness=BeforeAfter(1.0, 1.01))
    assert judge([0.1] * 11, {}, seen=True, quality=as_blurred).word == "unchanged"
    assert judge([0.1] * 11, {}, seen=True).word == "unchanged"


def test_all_frames_flagged():
    assert judge([], statistics(bad=(slice(None), True))).word == "unchanged"


def test_lists_of_frames():
    assert list_frames(np.array([3, 5, 6, 7, 9])) == "3, 5-7, 9"
