"""The smoothness that a recording chooses, and the correlation of pixels that the flow has not seen."""

import dataclasses
import json

import numpy as np
import pytest
import tifffile
from scipy.ndimage import convolve1d, gaussian_filter

import flowreg_gpu as fg
from flowreg_gpu.cpu.preprocess import preprocess, preprocess_rows
from flowreg_gpu.cpu.tiles import tile_correlations, tile_grid
from flowreg_gpu.engine.job import Job
from flowreg_gpu.io import ArrayReader
from flowreg_gpu.options import Options
from flowreg_gpu.registration import loop
from flowreg_gpu.registration.choices import Choices
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.registration.reference import build_reference
from flowreg_gpu.registration.tuning import (
    ALPHAS,
    AlphaChoice,
    Trial,
    Tuner,
    Unseen,
    choose_alpha,
    sample_frames,
    sample_size,
    undecided,
)
from flowreg_gpu.synthetic import end_point_error, make_movie
from tests.emulation import EmulatedDevice
from tests.movies import recording

FAST = {"quality": "fast"}


def noisy(photons, n_frames=12, size=96, taps=(), axis=-1, seed=0):
    """One channel of a movie with known motion, its still image and flow; `taps` average its noise along an axis."""
    movie, truth, flow = make_movie(n_frames, size, size, photons=1e4, seed=seed)
    rng = np.random.default_rng(seed)
    gain = photons / 6e4  # digital units that make_movie gives a photon of so many
    clean = np.clip(movie[..., 0] - 100.0, 0, None)
    noise = rng.poisson(clean * gain) - clean * gain
    if len(taps):
        noise = convolve1d(noise, np.array(taps) / np.linalg.norm(taps), axis=axis)
    frames = np.clip(200 + 20 * (clean * gain + noise), 0, 65535).round().astype(np.uint16)
    return frames, (200 + 20 * (truth[..., 0] - 100) * gain).astype(np.float32), flow


def tuner(frames, reference, executor=None, batch=4, numbers=range(2, 12, 2), **options):
    """A tuner for some frames (H, W) or (H, W, C) of a movie."""
    reader, chosen = ArrayReader(frames), Options(**FAST | options)
    reference = np.ascontiguousarray(reference, np.float32).reshape(reader.shape[1:])
    job = Job.from_raw(options=chosen, reference=reference)
    assert job.halo == 0
    windows = [(number, reader.read(number, number + 1)) for number in numbers]
    return Tuner(windows, job, chosen, executor or fg.SequentialExecutor(), batch)


# Halves of the rows


@pytest.mark.parametrize("sigma", [(1.0, 1.0, 0.0), (2.0, 0.5, 0.0)])
def test_rows_by_normalised_convolution(sigma):
    frames, truth, _ = noisy(60, 2, 48)
    job = Job.from_raw(options=Options(sigma=sigma), reference=truth[..., None])
    rows = np.arange(48) % 6 < 3
    found = preprocess_rows(frames[:1, :, :, None], rows, job.preprocessing)
    low, high = truth.min(), truth.max()
    mask = np.broadcast_to(rows[:, None], (48, 48)).astype(float)
    scaled = (frames[0] - low) / (high - low)
    expected = gaussian_filter(scaled * mask, sigma[:2], truncate=4) / gaussian_filter(mask, sigma[:2], truncate=4)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    everything = preprocess_rows(frames[:1, :, :, None], np.ones(48, bool), job.preprocessing)
    np.testing.assert_allclose(everything, preprocess(frames[:1, :, :, None], job.preprocessing), rtol=1e-5, atol=1e-6)
    frames[0, ~rows] = 7
    np.testing.assert_array_equal(preprocess_rows(frames[:1, :, :, None], rows, job.preprocessing), found)


def test_what_the_flow_does_not_see_has_no_part_in_it():
    """Rows of the other half, and compared are those that lie two rows from the half that is seen."""
    frames, truth, _ = noisy(60)
    plain = tuner(frames, truth)
    flows = dict(plain.flows(plain.options))
    changed = frames.copy()
    changed[2, 3:6], changed[4, 0:3], changed[6, 9:12] = 0, 0, 0  # of every other frame the other half is seen
    again = tuner(changed, truth)
    for index, flow in again.flows(again.options):
        np.testing.assert_array_equal(flow, flows[index])
    rows = [np.flatnonzero(compared.any(axis=1)) for compared in plain._compared]
    np.testing.assert_array_equal(rows[0][:3], [4, 10, 16])
    np.testing.assert_array_equal(rows[1][:3], [1, 7, 13])
    assert not np.array_equal(again.trial(4.0).unexplained, plain.trial(4.0).unexplained)


# Correlations of tiles


def test_tiles_against_numpy():
    rng = np.random.default_rng(3)
    image, reference = rng.standard_normal((2, 2, 55, 70)).astype(np.float32)
    image += reference
    weight, flow = rng.random((55, 70)).astype(np.float32), np.zeros((2, 55, 70), np.float32)
    image[1, 12:28] = 5  # constant in the first row of tiles of a channel
    flow[0, 30, 20], flow[1, 30, 20] = -21, 3
    correlations, outside = tile_correlations(image, reference, weight, flow)
    rows, columns = tile_grid(55, 70)
    assert correlations.shape == (2, rows, columns) == (2, 2, 3)
    top, left = (55 - 32) // 2, (70 - 48) // 2
    for channel, row, column in np.ndindex(correlations.shape):
        y, x = top + 16 * row, left + 16 * column
        tile = (slice(y, y + 16), slice(x, x + 16))
        pair = [plane[channel][tile].ravel() for plane in (image, reference)]
        covariance = np.cov(*pair, aweights=weight[tile].ravel())
        expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert correlations[channel, row, column] == pytest.approx(expected, rel=1e-9)
    assert outside.tolist() == [[False, False, False], [True, False, False]]


def test_tiles_without_structure_or_weight():
    planes, weight, flow = np.ones((1, 40, 40), np.float32), np.ones((40, 40), np.float32), np.zeros((2, 40, 40), "f4")
    textured = np.random.default_rng(0).random((1, 40, 40)).astype(np.float32)
    for image, reference, weights in (
        (planes, textured, weight),
        (textured, planes, weight),
        (textured, textured, 0 * weight),
    ):
        correlations, _ = tile_correlations(image, reference, weights, flow)
        assert correlations.tolist() == [[[0.0]]]
    assert tile_grid(31, 200) == (0, 11)


# The choice


@pytest.mark.parametrize("photons", [5, 150])
def test_the_choice_is_near_the_best(photons):
    """End-point error at most 1.1 times that of the best of a grid, where 1.5 makes 1.15 times it and more."""
    frames, truth, flow = noisy(photons, 24, 128)
    inner = slice(3, None, 4)  # the flow of these is measured; others choose

    def error(alpha):
        found = fg.register(frames[inner], truth, "sequential", alpha=alpha, **FAST)[1]
        return end_point_error(found, flow[inner])

    best = min(error(alpha) for alpha in (1.5, 4, 10, 16, 25, 40, 80, 250))
    chosen = choose_alpha(tuner(frames, truth, numbers=range(0, 24, 2)))
    assert error(chosen.alpha) <= 1.1 * best
    assert error(1.5) > 1.15 * best


def test_the_darker_the_smoother():
    chosen = [choose_alpha(tuner(*noisy(photons, 24, 128)[:2], numbers=range(0, 24, 2))).alpha for photons in (400, 5)]
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize(("taps", "axis"), [((1, 1), -1), ((1, 1, 1), -1), ((1, 1), -2)])
def test_correlated_noise_is_not_taken_for_structure(taps, axis):
    """Noise that neighbours share, along a row or a column, does not make the choice small."""
    white = choose_alpha(tuner(*noisy(20, 24, 128)[:2], numbers=range(0, 24, 2))).alpha
    shared = choose_alpha(tuner(*noisy(20, 24, 128, taps, axis)[:2], numbers=range(0, 24, 2))).alpha
    assert shared > 0.5 * white


def test_a_scene_at_rest_is_left_at_rest():
    rng = np.random.default_rng(5)
    truth = noisy(60, 2, 128)[1]
    frames = 200 + 20 * rng.poisson((truth - 200) / 20, (16, 128, 128)) + rng.normal(0, 30, (16, 128, 1))
    frames = np.clip(frames, 0, 65535).astype(np.uint16)
    _, flow = fg.register(frames, slice(0, 16), "threading")
    length = np.linalg.norm(flow, axis=-1)
    assert length.mean() < 0.1
    assert length.max() < 1
    _, by_default = fg.register(frames, slice(0, 16), "threading", alpha=1.5)
    assert np.linalg.norm(by_default, axis=-1).mean() > 0.3


def test_values_are_tried_outwards():
    """From the middle ones to where a worse one lies on either side, or to the last one."""
    tried = []

    class Known(Tuner):
        def __init__(self, lowest, options=None):
            self.options, self.frames, self.most_tiles, self.lowest = options or Options(), (0, 1), 100, lowest

        def trial(self, alpha):
            tried.append(alpha)
            curve = (np.log(alpha) - np.log(self.lowest)) ** 2
            return Trial(np.full((2, 9), curve), np.zeros((2, 9), bool))

    for lowest, values, chosen in (
        (10.0, ALPHAS[1:4], 10.0), (7.0, ALPHAS[1:4], 7.0), (3.0, ALPHAS[:4], 3.0), (60.0, ALPHAS[1:], 60.0),
        (0.1, ALPHAS[:4], 1.5), (5000.0, ALPHAS[1:], 250.0),
    ):  # fmt: skip
        tried.clear()
        choice = choose_alpha(Known(lowest))
        assert sorted(tried) == sorted(values)
        assert (choice.alpha, choice.low, choice.high) == (chosen, chosen, chosen)
        assert choice.alphas == tuple(values)
        assert (choice.frames, choice.tiles) == ((0, 1), 18)
    tried.clear()
    assert choose_alpha(Known(0.02, Options(const_assumption="gray"))).alpha == 0.02
    assert max(tried) < 0.06


def test_tiles_that_leave_the_frame_do_not_count():
    class Known(Tuner):
        def __init__(self, outside):
            self.options, self.frames, self.most_tiles, self.outside = Options(), (0, 1), 40, outside

        def trial(self, alpha):
            # tile 0 would choose 4, all others 25
            curve = np.full((2, 20), abs(np.log(alpha / 25.0)))
            curve[:, 0] = 1000 * abs(np.log(alpha / 4.0))
            return Trial(curve, self.outside & (alpha < 5))

    nowhere = np.zeros((2, 20), bool)
    first = nowhere.copy()
    first[:, 0] = True
    assert choose_alpha(Known(nowhere)).alpha < 6
    assert choose_alpha(Known(first)).alpha > 20
    everywhere = ~nowhere
    everywhere[0, :7] = False
    choice = choose_alpha(Known(everywhere))
    assert (choice.alpha, choice.alphas, choice.tiles) == (8.0, (), 7)
    assert "too little of the recording" in str(choice)


def test_small_frames_are_not_judged():
    movie = recording(6, 40, 30)
    choice = choose_alpha(tuner(movie.frames, movie.truth, numbers=range(3)))
    assert (choice.alpha, choice.alphas) == (8.0, ())
    assert choose_alpha(tuner(movie.frames, movie.truth, numbers=range(3), const_assumption="cs")).alpha == 8 / 15


# A run


@pytest.mark.parametrize(
    "options", [FAST, {"quality": "balanced", "sigma": (1, 1, 0.5)}, {**FAST, "const_assumption": "cs"}]
)
def test_equal_for_every_executor_and_batch(options):
    frames, _, _ = noisy(60, 16, 72)
    frames = np.stack([frames, frames[..., ::-1]], axis=-1)
    expected = None
    for executor, batch in (
        (fg.SequentialExecutor(), None), (fg.ThreadingExecutor(2), 3), (fg.MultiprocessingExecutor(2), 5),
        (fg.GPUExecutor(device=EmulatedDevice(), batch=4, fallback=False), 4),
    ):  # fmt: skip
        reader = ArrayReader(frames)
        with executor:
            found = Registration(
                reader, slice(0, 8), executor, Options(**options), batch=batch, measure_unseen=True
            ).run()
        expected = expected or found
        assert found.choices == expected.choices
        for name, values in found.statistics.items():
            np.testing.assert_allclose(values, expected.statistics[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert len(expected.choices.alpha.alphas) >= 3


def test_what_is_chosen_is_what_is_used():
    frames, truth, _ = noisy(60, 14, 72)
    summary = Registration(ArrayReader(frames), truth, "sequential", Options(**FAST)).run()
    alpha = summary.choices.alpha.alpha
    assert summary.choices.unseen is None
    given = Registration(ArrayReader(frames), truth, "sequential", Options(**FAST, alpha=alpha)).run()
    assert given.choices == Choices(alignment=summary.choices.alignment)
    for name, values in given.statistics.items():
        np.testing.assert_array_equal(values, summary.statistics[name])


def test_measuring_changes_nothing():
    frames, truth, _ = noisy(60, 14, 72)
    runs = [
        Registration(ArrayReader(frames), truth, "sequential", Options(**FAST, alpha=4), measure_unseen=measure).run()
        for measure in (False, True)
    ]
    assert runs[0].choices.unseen is None
    assert runs[1].choices.unseen is not None
    for name, values in runs[0].statistics.items():
        np.testing.assert_array_equal(values, runs[1].statistics[name])


def test_unseen_pixels_are_not_flattered():
    """Where a flow follows noise, the frame that it has seen fits better, and rows that it has not seen fit worse."""
    frames, _, _ = noisy(20, 14, 96)
    wild, good = (
        Registration(
            ArrayReader(frames), slice(0, 7), "sequential", Options(**FAST, alpha=alpha), measure_unseen=True
        ).run()
        for alpha in (0.2, 40)
    )
    seen = [summary.statistics["correlation_after"].mean() for summary in (wild, good)]
    assert seen[0] > seen[1]
    assert wild.choices.unseen.after < good.choices.unseen.after
    assert good.choices.unseen.before < good.choices.unseen.after


def test_the_reference_has_no_part_of_what_is_measured(monkeypatch):
    frames, _, _ = noisy(60, 40, 48)
    given = []

    class Noted(Tuner):
        def __init__(self, windows, job, *arguments):
            super().__init__(windows, job, *arguments)
            given.append((self.frames, job.reference))

    monkeypatch.setattr(loop, "Tuner", Noted)

    def samples(reference):
        registration = Registration(
            ArrayReader(frames), reference, "sequential", Options(**FAST, alpha=4), measure_unseen=True
        )
        return registration.run().reference, *given.pop()

    image, numbers, disjoint = samples(slice(0, 20))  # as many others are left
    assert len(numbers) == 11
    assert min(numbers) >= 20
    np.testing.assert_array_equal(disjoint, image)
    image, numbers, disjoint = samples(slice(0, 36))  # four others are not enough
    assert len(numbers) == 11
    assert min(numbers) < 20
    executor = fg.SequentialExecutor()
    left = set(range(36)) - set(numbers)
    built = build_reference(
        ArrayReader(frames), range(36), Options(**FAST, alpha=4), executor, 5, left_out=set(numbers)
    )
    np.testing.assert_array_equal(built.image, image)
    np.testing.assert_array_equal(built.disjoint, disjoint)
    assert np.abs(disjoint - image).max() > 1
    alone = np.mean([frames[k] for k in sorted(left)], axis=0)
    assert np.corrcoef(disjoint.ravel(), alone.ravel())[0, 1] > 0.9


def test_bad_frames_are_not_looked_at():
    frames, truth, _ = noisy(60, 30, 72)
    frames[::3] = 200  # black
    with pytest.warns(RuntimeWarning, match="bad frames"):
        summary = Registration(ArrayReader(frames), truth, "sequential", Options(**FAST), measure_unseen=True).run()
    assert len(summary.choices.alpha.frames) == 11
    assert not {number % 3 for number in summary.choices.alpha.frames} & {0}


def test_pixels_that_are_not_finite(tmp_path):
    frames, truth, _ = noisy(60, 14, 72)
    broken = frames.astype(np.float32)
    broken[5, 30:33, 30:33] = np.nan
    summary = Registration(ArrayReader(broken), truth, "sequential", Options(**FAST), measure_unseen=True).run()
    assert np.isfinite(summary.choices.unseen.after)
    assert len(summary.choices.alpha.alphas) >= 3


def test_a_run_that_goes_on_uses_what_was_chosen(tmp_path, monkeypatch):
    frames, truth, _ = noisy(60, 14, 72)
    tifffile.imwrite(tmp_path / "in.tif", frames, photometric="minisblack")
    how = {"executor": "sequential", "reference": truth, "batch": 3, **FAST}
    whole = fg.register_file(tmp_path / "in.tif", tmp_path / "whole.tif", **how)

    def stop(stage, finished, total):
        if (stage, finished) == ("frames", 7):
            raise InterruptedError

    with pytest.warns(RuntimeWarning, match="6 of 14"), pytest.raises(InterruptedError):
        fg.register_file(tmp_path / "in.tif", tmp_path / "out.tif", progress=stop, **how)
    monkeypatch.setattr(loop, "Tuner", None)  # nothing is chosen anew
    again = fg.register_file(tmp_path / "in.tif", tmp_path / "out.tif", resume=True, **how)
    assert again.choices == whole.choices
    assert again.resumed_at == 6
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_what_the_summary_says(tmp_path):
    frames, truth, _ = noisy(60, 14, 72)
    tifffile.imwrite(tmp_path / "in.tif", frames, photometric="minisblack")
    summary = fg.register_file(tmp_path / "in.tif", tmp_path / "out.tif", "sequential", truth, **FAST)
    choice, unseen = summary.choices.alpha, summary.choices.unseen
    assert f"alpha: {choice.alpha:g}, chosen by 7 frames (between {choice.low:g} and {choice.high:g}" in str(summary)
    assert (
        "correlation with the reference, of pixels that the flow did not see: "
        f"{unseen.before:.4f} before, {unseen.after:.4f} after (7 frames)" in str(summary)
    )
    assert choice.low <= choice.alpha <= choice.high
    assert Choices.from_dict(json.loads(json.dumps(summary.choices.to_dict()))) == summary.choices
    assert set(dataclasses.replace(summary, choices=Choices()).choices.to_dict().values()) == {None}


def test_pyflowreg_and_pairs_choose_nothing():
    assert Options.from_flow_params({"quality": "fast"}).alpha == 1.5
    frames, truth, _ = noisy(60, 2, 48)
    pair = truth / truth.max(), frames[1] / truth.max()
    np.testing.assert_array_equal(fg.estimate_flow(*pair, **FAST), fg.estimate_flow(*pair, **FAST, alpha=1.5))


# Which frames


def test_sampled_frames():
    assert sample_frames(range(100), 4) == [12, 37, 62, 87]
    assert sample_frames([3, 8], 4) == [3, 8]
    assert sample_frames([], 4) == []
    assert sample_size(512, 512) == 11
    assert sample_size(1024, 1024) == sample_size(4096, 4096) == 4
    assert sample_size(700, 800) == 7
    assert undecided(Options()) == AlphaChoice(8.0, 8.0, 8.0)
    assert str(Unseen(0.5, 0.75, (1, 2))).endswith("0.5000 before, 0.7500 after (2 frames)")
