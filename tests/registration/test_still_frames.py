"""The frames that `reference="auto"` chooses: alike, at rest, bright, and from all over the recording."""

import json
import os
import re

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import flowreg_gpu as fg
from flowreg_gpu.cli.main import main
from flowreg_gpu.io import ArrayReader
from flowreg_gpu.registration import loop, still_frames
from flowreg_gpu.registration.bad_frames import BadFrames
from flowreg_gpu.registration.choices import Choices, ReferenceChoice
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.registration.still_frames import MOST_FRAMES, choose_still_frames, select
from tests.emulation import EmulatedDevice

FAST = {"alpha": 4, "quality": "fast", "levels": 3}


def image(seed=0, size=96):
    """A random scene with structure of a few pixels, positive, mean 1."""
    scene = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 1.5, mode="wrap")
    return np.clip(1 + 0.5 * scene / scene.std(), 0.05, None)


def movie(n_frames, places=None, light=None, photons=40.0, extra=None, seed=0, side=48):
    """Frames (T, side, side) uint16 of a scene at places (T, 2), rows and columns, with so much light and photon noise.

    Places are whole pixels; `extra` (T, side, side) is added to the scene.
    """
    rng, scene, border = np.random.default_rng(seed), image(seed), (96 - side) // 2
    places = np.zeros((n_frames, 2), int) if places is None else np.asarray(places)
    light = np.ones(n_frames) if light is None else light
    frames = np.stack([scene[border - y : border - y + side, border - x : border - x + side] for y, x in places])
    frames = frames if extra is None else frames + extra
    return (100 + 10 * rng.poisson(photons * light[:, None, None] * frames)).astype(np.uint16)


def chosen(frames, bad_frames="auto"):
    reader = ArrayReader(np.asarray(frames))
    return np.array(choose_still_frames(reader, BadFrames(bad_frames, reader)))


def parts_of(numbers, n_frames, count=10):
    return set((numbers * count // n_frames).tolist())


# What is chosen


def test_a_still_recording_gives_frames_from_all_of_it():
    numbers = chosen(movie(600))
    assert len(numbers) == MOST_FRAMES
    assert np.all(np.diff(numbers) > 0)
    assert parts_of(numbers, 600, 20) == set(range(20))


@pytest.mark.parametrize("jump", [slice(50, 250), slice(0, 200), slice(400, 600)])
@pytest.mark.parametrize("place", [(9, -7), (6, 0)])
def test_frames_elsewhere_are_not_chosen(jump, place):
    places = np.zeros((600, 2), int)
    places[jump] = place
    numbers = chosen(movie(600, places))
    assert not places[numbers].any()
    assert len(numbers) > 100
    assert len(parts_of(numbers, 600)) >= 6  # all there are without the jump


def test_a_vignette_that_does_not_move_does_not_hide_a_jump():
    """One-photon movies: most of the light is a smooth background, fixed to the camera."""
    places = np.zeros((300, 2), int)
    places[60:150] = (8, -6)
    rows, columns = np.mgrid[-1:1:48j, -1:1:48j]
    background = 10 * np.exp(-(rows**2 + columns**2))
    numbers = chosen(movie(300, places, photons=100, extra=np.broadcast_to(background, (300, 48, 48))))
    assert not places[numbers].any()


def test_dark_frames_are_not_chosen():
    light = np.ones(600)
    light[40:280] = 0.2
    numbers = chosen(movie(600, light=light), bad_frames=None)
    assert np.all(light[numbers] == 1)
    assert len(parts_of(numbers, 600)) >= 6


def test_bleaching_leaves_frames_from_all_of_it():
    numbers = chosen(movie(600, light=np.exp(-np.arange(600) / 1200)))
    assert parts_of(numbers, 600) == set(range(10))


def test_a_moment_of_activity_is_not_taken_for_the_usual_image():
    """Its frames are more like each other than any others are, since they are brighter."""
    extra = np.zeros((600, 48, 48))
    extra[180:330] = (
        2 * image(7)[:48, :48] * (np.random.default_rng(1).random((12, 12)) < 0.2).repeat(4, 0).repeat(4, 1)
    )
    numbers = chosen(movie(600, extra=extra))
    assert not np.any((numbers >= 180) & (numbers < 330))
    assert len(parts_of(numbers, 600)) >= 7


def test_slow_drift_gives_the_middle_of_the_way():
    places = np.stack([np.linspace(-12, 12, 600).round().astype(int), np.zeros(600, int)], axis=1)
    numbers = chosen(movie(600, places))
    assert abs(places[numbers, 0].mean()) < 4
    assert np.ptp(places[numbers, 0]) <= 12
    assert len(numbers) >= 60


def test_frames_with_fast_motion_are_not_chosen():
    """Rows that are displaced against each other."""
    frames = movie(300)
    moving = np.random.default_rng(2).random(300) < 0.3
    for frame in map(frames.__getitem__, np.flatnonzero(moving)):
        for first in range(0, 48, 8):
            frame[first : first + 8] = np.roll(frame[first : first + 8], (first // 8 % 3 - 1) * 4, axis=1)
    numbers = chosen(frames)
    assert not moving[numbers].any()
    assert len(numbers) > 60


def test_a_channel_without_structure_has_no_say():
    places = np.zeros((300, 2), int)
    places[60:150] = (8, 6)
    frames = movie(300, places)
    noise = np.random.default_rng(3).poisson(500, frames.shape).astype(np.uint16)
    for channels in ([frames, noise], [noise, frames], [frames, np.full_like(frames, 9)]):
        assert not places[chosen(np.stack(channels, axis=-1))].any()


def test_the_noise_of_a_frame_is_told_by_the_channel_that_has_structure():
    light = np.ones(300)
    light[60:150] = 0.3
    frames = movie(300, light=light, photons=8)
    noise = np.random.default_rng(3).poisson(500, frames.shape).astype(np.uint16)
    assert np.all(light[chosen(np.stack([noise, frames], axis=-1), None)] == 1)


def test_a_real_movie_with_a_burst_of_activity(shared_data):
    """Frames 80 to 128 are alike, much more than the others are, and unlike these."""
    numbers = chosen(tifffile.imread(shared_data / "mouse_200x64x64.tif"))
    assert len(numbers) > 100
    assert not set(numbers) & set(range(85, 125))
    assert parts_of(numbers, 200, 4) == {0, 1, 2, 3}


def test_bad_frames_and_frames_with_nan_are_left_out():
    frames = movie(100).astype(np.float32)
    frames[10:20, 3, 4] = np.nan
    frames[30:40] = 0
    numbers = chosen(frames)
    assert not set(numbers) & {*range(10, 20), *range(30, 40)}
    named = chosen(frames, bad_frames=range(30, 60))
    assert not set(named) & {*range(10, 20), *range(30, 60)}


@pytest.mark.parametrize("n_frames", [2, 3, 5, 12, 60])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_short_recordings(n_frames, dtype):
    frames = (movie(n_frames) // 8).astype(dtype)
    numbers = chosen(frames, bad_frames=None)
    assert len(numbers) >= min(n_frames, 10) // 2
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("shape", [(9, 16, 16), (9, 16, 700), (9, 300, 17), (9, 131, 257, 2)])
def test_frames_of_any_size(shape):
    frames = np.random.default_rng(0).integers(0, 999, shape).astype(np.uint16)
    assert len(chosen(frames, bad_frames=None))
    assert len(chosen(np.full(shape, 7, np.uint16), bad_frames=None)) == 9


def test_no_frame_to_choose():
    frames = movie(30).astype(np.float32)
    frames[:, 2, 2] = np.inf
    with pytest.raises(ValueError, match=r"reference=.auto. finds no frame: of 30 .* 0 are bad, 30 hold NaN"):
        chosen(frames, bad_frames=None)
    with pytest.raises(ValueError, match="29 are bad, 1 hold NaN or infinite"):
        fg.register(frames, "auto", "sequential", bad_frames=range(1, 30))


def test_frames_that_cannot_be_read_are_left_to_the_run():
    class Broken(ArrayReader):
        def _load(self, start, stop):
            if start <= 7 < stop:
                raise OSError("frame 7")
            return super()._load(start, stop)

    reader = Broken(movie(40))
    numbers = choose_still_frames(reader, BadFrames(None, reader))
    assert len(numbers) > 20
    assert 7 not in numbers


# How they are compared


def test_no_frame_is_compared_with_itself():
    """Frames of noise are like no mean, be they in it or not."""
    noise = np.random.default_rng(0).standard_normal((40, 1, 32, 32))
    images = np.stack([still_frames._band_passed(planes) for planes in noise])
    correlation, _ = still_frames._compare(images, np.ones(1), np.arange(8))
    assert abs(correlation[:8].mean() - correlation[8:].mean()) < 0.03
    own, _ = still_frames._compare(np.concatenate([images, images[:8]]), np.ones(1), np.arange(8))
    assert own[40:].mean() > correlation[8:].mean() + 0.1  # what frames in their own reference would have


def test_the_second_reference_is_made_of_what_the_first_pass_chose(monkeypatch):
    references, choices = [], []
    compare, choose = still_frames._compare, still_frames.select

    def note_reference(images, weight, members):
        references.append(members.tolist())
        return compare(images, weight, members)

    def note_choice(*given):
        choices.append(choose(*given))
        return choices[-1]

    monkeypatch.setattr(still_frames, "_compare", note_reference)
    monkeypatch.setattr(still_frames, "select", note_choice)
    reader = ArrayReader(movie(40))
    assert choose_still_frames(reader, BadFrames(None, reader)) == choices[1].tolist()
    assert references == [references[0], choices[0].tolist()]


@pytest.mark.parametrize("place", [(0, 0), (3, -5), (-8, 2), (0, 11)])
def test_place_and_correlation_of_a_displaced_frame(place):
    frames = movie(4, [(0, 0), (0, 0), (0, 0), place], photons=2e3)
    planes = [still_frames._band_passed(frame[None].astype(float)) for frame in frames]
    correlation, found = still_frames._compare(np.stack(planes), np.ones(1), np.arange(3))
    np.testing.assert_allclose(found[3], place, atol=0.3)
    np.testing.assert_allclose(found[:3], 0, atol=0.05)
    assert correlation[3] > 0.8  # though a part of the tissue is out of sight
    assert np.all(correlation[:3] > 0.99)


def test_select_takes_turns():
    """Parts with few good frames give them all; the others give their best."""
    parts = np.repeat(np.arange(4), 100)
    correlation = np.full(400, 0.9)
    correlation[110:200] = 0.4  # of the second part, ten are left
    correlation[5:200:10] += 0.02 * (correlation[5:200:10] > 0.5)
    found = select(correlation, np.zeros((400, 2)), parts)
    assert len(found) == MOST_FRAMES
    counts = np.bincount(parts[found], minlength=4)
    assert counts.tolist() == [47, 10, 47, 46]
    assert set(range(5, 100, 10)) <= set(found.tolist())


# The whole


def test_a_jump_in_the_first_frames_does_not_blur_the_reference():
    places = np.zeros((160, 2), int)
    places[50:100] = (10, -8)
    frames, truth = movie(160, places), image()[24:72, 24:72]

    def likeness(reference):
        with Registration(ArrayReader(frames), reference, "sequential", fg.Options(**FAST)).executor as executor:
            registration = Registration(ArrayReader(frames), reference, executor, fg.Options(**FAST))
            found = registration.run().reference[..., 0]
        return np.corrcoef(found[6:-6, 6:-6].ravel(), truth[6:-6, 6:-6].ravel())[0, 1]

    assert likeness("auto") > 0.99 > 0.9 > likeness(None)


def test_the_same_for_every_executor_and_batch():
    places = np.zeros((24, 2), int)
    places[3:9] = (5, -4)
    frames = movie(24, places)
    numbers = chosen(frames).tolist()
    expected = fg.register(frames, numbers, "sequential", **FAST)
    for executor, batch in (("sequential", 5), ("threading", 1), ("multiprocessing", 7), ("gpu", 3)):
        made = fg.GPUExecutor(device=EmulatedDevice(), fallback=False) if executor == "gpu" else executor
        found = fg.register(frames, "auto", made, batch=batch, **FAST)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_choices_survive_json():
    choices = Choices(reference=ReferenceChoice((3, 4, 9)))
    assert Choices.from_dict(json.loads(json.dumps(choices.to_dict()))) == choices


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a recording."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("in.tif", movie(20), photometric="minisblack", metadata={"axes": "TYX"})
    return tmp_path


def test_the_summary_says_what_was_chosen(folder):
    summary = fg.register_file("in.tif", "out.tif", "sequential", "auto", **FAST)
    numbers = tuple(chosen(tifffile.imread("in.tif")).tolist())
    assert summary.reference_frames == numbers
    line = f"reference: {len(numbers)} frames chosen from {numbers[0]} to {numbers[-1]}"
    assert str(summary).splitlines()[1] == line
    for number, reference in enumerate((None, range(4), tifffile.imread("in.tif")[0])):
        other = fg.register_file("in.tif", f"{number}.tif", "sequential", reference, **FAST)
        assert other.reference_frames is None
        assert not any(line.startswith("reference:") for line in str(other).splitlines())


def test_a_file_called_auto(folder):
    tifffile.imwrite("auto", tifffile.imread("in.tif")[2])
    ruled = fg.register_file("in.tif", "ruled.tif", "sequential", "auto", **FAST)
    assert ruled.reference_frames
    given = fg.register_file("in.tif", "given.tif", "sequential", os.path.join(".", "auto"), **FAST)
    np.testing.assert_array_equal(given.reference[..., 0], tifffile.imread("auto"))
    with FileRegistration("in.tif", "out.tif", reference="auto", executor="sequential") as registration:
        assert registration._journal.header["given"]["reference"] == "auto"
        assert not any(name.endswith("auto") for name in registration._inputs)


def test_a_run_that_is_resumed(folder, monkeypatch):
    whole = fg.register_file("in.tif", "whole.tif", "sequential", "auto", **FAST)

    def pull(stage, finished, total):
        if stage == "frames" and finished >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.warns(RuntimeWarning, match="partial"):
        fg.register_file("in.tif", "out.tif", "sequential", "auto", batch=4, progress=pull, **FAST)
    monkeypatch.setattr(loop, "build_reference", None)  # the reference is in the journal
    summary = fg.register_file("in.tif", "out.tif", "sequential", "auto", resume=True, **FAST)
    assert summary.resumed_at > 0
    assert summary.reference_frames == whole.reference_frames
    np.testing.assert_array_equal(tifffile.imread("out.tif"), tifffile.imread("whole.tif"))


def test_a_flow_applied_with_the_rule(folder):
    pytest.importorskip("h5py")
    frames = tifffile.imread("in.tif")
    frames[4] = 0
    tifffile.imwrite("in.tif", frames, photometric="minisblack", metadata={"axes": "TYX"})
    with pytest.warns(RuntimeWarning, match="bad"):
        fg.register_file("in.tif", "out.tif", "sequential", flow_file="flow.h5", **FAST)
    numbers = [number for number in chosen(frames, None) if number != 4]
    with pytest.warns(RuntimeWarning, match="bad"):
        by_rule = fg.apply_file("flow.h5", "in.tif", "a.tif", "sequential", reference="auto")
    with pytest.warns(RuntimeWarning, match="bad"):
        named = fg.apply_file("flow.h5", "in.tif", "b.tif", "sequential", reference=numbers)
    np.testing.assert_array_equal(by_rule.reference, named.reference)


def test_the_command_line(folder, capsys):
    how = ["--executor", "sequential", "--alpha", "4", "--quality", "fast", "--levels", "3", "--no-progress"]
    assert main(["register", "in.tif", "-o", "out.tif", "--reference", "auto", *how]) == 0
    said = capsys.readouterr()
    assert re.search(r"^reference: \d+ frames chosen from \d+ to \d+$", said.out + said.err, re.MULTILINE)
