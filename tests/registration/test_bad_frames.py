"""Bad frames: which are found, which must not be, and that nothing but themselves comes from them."""

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import flowreg_gpu as fg
from flowreg_gpu.cli.main import main
from flowreg_gpu.io import ArrayReader, ArrayWriter
from flowreg_gpu.options import Options
from flowreg_gpu.quality.verdict import list_frames
from flowreg_gpu.registration.bad_frames import BadFrames, measure_brightness
from flowreg_gpu.registration.journal import JournalError
from flowreg_gpu.registration.loop import Registration
from tests.emulation import EmulatedDevice
from tests.movies import recording, texture

FAST = {"alpha": 4, "levels": 3, "min_level": 1}
DARK, NOISE = 100, 5  # of the cameras here, with the shutter closed


def tissue(n_frames=150, size=96, *, density=40, background=0.15, motion=2.0, seed=0):
    """Brightness (T, H, W) of cells of some pixels on a background, 0 to about 1, that wander over the frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size + 40, : size + 40].astype(float)
    image = background * (1 + 0.3 * texture(y, x, seed))
    for _ in range(int(density * (size / 128) ** 2 + 0.5)):
        (cell_y, cell_x), radius = rng.uniform(0, size + 40, 2), rng.uniform(2, 4)
        image += rng.uniform(0.2, 0.8) * np.exp(-((y - cell_y) ** 2 + (x - cell_x) ** 2) / (2 * radius**2))
    path, frames = np.zeros(2), []
    for _ in range(n_frames):
        path = 0.9 * path + rng.normal(0, motion / 3, 2)
        top, left = np.clip(np.rint(20 + path), 0, 40).astype(int)
        frames.append(image[top : top + size, left : left + size])
    return np.array(frames)


def camera(brightness, photons=500.0, dark=DARK, noise=NOISE, gain=1.0, dtype="uint16", seed=0):
    """Frames of a camera or photomultiplier: Poisson noise, an offset and noise of reading."""
    rng = np.random.default_rng(seed)
    counts = dark + gain * rng.poisson(photons * brightness) + noise * rng.standard_normal(brightness.shape)
    return np.clip(np.rint(counts), 0, np.iinfo(dtype).max).astype(dtype)


def cell(size=96, y=40, x=60, radius=3.0):
    """One cell (H, W)."""
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2))


def few_photons(size=96, gain=1, dark=0, noise=0.0, dtype="uint16"):
    """A tenth of a photon per pixel."""
    brightness = tissue(size=size)
    return camera(brightness / brightness.mean(), 0.1, dark, noise, gain, dtype)


def fading(last, n_frames=150):
    """Factors (T, 1, 1) that fall from 1 exponentially."""
    return (last ** np.linspace(0, 1, n_frames))[:, None, None]


def step(brightness, first=75, stop=150, n_frames=150):
    """Factors (T, 1, 1): `brightness` from frame `first` to `stop`, otherwise 1."""
    frames = np.arange(n_frames)
    return np.where((frames >= first) & (frames < stop), brightness, 1.0)[:, None, None]


def flicker(n_frames=150):
    return np.clip(1 + 0.3 * np.random.default_rng(3).standard_normal(n_frames), 0.2, None)[:, None, None]


def vignette(size=96):
    return np.exp(-((np.mgrid[:size, :size] - size / 2) ** 2).sum(0) / (2 * 50**2))


def active(part, brightness):
    """Cells much brighter than all the rest, in a part of the frames (T, 1, 1)."""
    return brightness * (np.random.default_rng(4).random(150) < part)[:, None, None] * (cell() + cell(y=70, x=20))


def jump_out_of_the_plane():
    frames = tissue()
    frames[50:60] = 0.5 * tissue(seed=8)[50:60]
    frames[70:75] = gaussian_filter(frames[70:75], (0, 8, 8))
    return frames


def small_on_dark():
    """Tissue on a quarter of the frame, which wanders by many pixels."""
    frames = np.zeros((150, 96, 96))
    for t, inside in enumerate(tissue()[:, 20:60, 20:70]):
        top = 25 + int(20 * np.sin(t / 9))
        frames[t, top : top + 40, 20:70] = inside
    return frames


def nan_border():
    frames = camera(tissue()).astype(np.float32)
    frames[:, :12], frames[:, :, -7:] = np.nan, np.nan
    return frames


def beside(*channels):
    return np.stack(channels, axis=-1)


GOOD = {
    "tissue": lambda: camera(tissue()),
    "16 pixels": lambda: camera(tissue(size=16)),
    "31 pixels": lambda: camera(tissue(size=31)),
    "few photons": few_photons,
    "few photons, 16 pixels": lambda: few_photons(16),
    "few photons, 31 pixels": lambda: few_photons(31),
    "few photons, 8 bits": lambda: few_photons(gain=30, dark=10, noise=2.0, dtype="uint8"),
    "bleaching to a fifth": lambda: camera(tissue() * fading(0.2)),
    "bleaching, few photons": lambda: camera(tissue() * fading(0.2), 0.4, 0, 0.0),
    "dimming to 5 %": lambda: camera(tissue() * np.linspace(1, 0.05, 150)[:, None, None]),
    "lamp up": lambda: camera(tissue() * step(3.0)),
    "lamp down to a twentieth": lambda: camera(tissue() * step(0.05, 105)),
    "lamp down after 5 frames": lambda: camera(tissue() * step(0.3, 5)),
    "lamp down for 3 frames": lambda: camera(tissue() * step(0.15, 70, 73)),
    "flicker": lambda: camera(tissue() * flicker()),
    "few bright cells, seldom": lambda: camera(tissue() + active(0.2, 30)),
    "few bright cells, mostly": lambda: camera(0.1 * tissue() + active(0.8, 10), 300),
    "nothing but a few cells": lambda: camera(0.02 + active(0.6, 10), 300),
    "all cells now and then": lambda: camera(
        tissue(background=0.02) * np.where(np.random.default_rng(5).random(150) < 0.6, 1, 0.15)[:, None, None], 300
    ),
    "one photon": lambda: camera(vignette() * (1 + 0.1 * tissue()), 3000, 400, 10),
    "noise": lambda: np.random.default_rng(6).poisson(5, (100, 64, 64)).astype(np.uint16),
    "binary": lambda: (np.random.default_rng(7).random((150, 96, 96)) < tissue()).astype(np.uint8),
    "sparse, large motion": lambda: camera(tissue(density=15, background=0.005, motion=6.0), 300),
    "small on dark": lambda: camera(small_on_dark()),
    "out of plane, out of focus": lambda: camera(jump_out_of_the_plane()),
    "saturated in part": lambda: np.minimum(camera(np.minimum(3 * tissue(), 1.0), 60000), 50000),
    "NaN at the edges": nan_border,
    "two channels, one dark": lambda: beside(camera(tissue()), camera(0 * tissue())),
    "two channels, one dim": lambda: beside(camera(tissue()), camera(0.02 * tissue())),
    "two channels, one goes dark": lambda: beside(
        camera(tissue() * step(0.0, 70, 90)), camera(tissue(seed=9) + 0.1, seed=1)
    ),
    "known motion": lambda: recording(12).frames,
    "known motion, two channels": lambda: recording(9, 26, 31, 2, "float32").frames,
}


def found(movie):
    """Numbers of the bad frames."""
    reader = ArrayReader(movie)
    bad = BadFrames("auto", reader)
    return np.flatnonzero(bad.among(np.arange(reader.n_frames), reader.read(0, reader.n_frames))).tolist()


@pytest.mark.parametrize("case", GOOD)
def test_no_false_alarm(case):
    assert found(GOOD[case]()) == []


@pytest.mark.parametrize(
    ("file", "pick"),
    [
        ("two_photon_20x128x256.tif", lambda stack: stack),
        ("mouse_200x64x64.tif", lambda stack: stack),
        ("zebrafish_lightsheet_20x2x76x87.tif", lambda stack: stack[:, 0]),
        ("zebrafish_lightsheet_20x2x76x87.tif", lambda stack: stack[:, 1]),
        ("kidney_thorlabs_5x2x256x256.tif", lambda stack: np.moveaxis(stack, 1, -1)),
        ("kidney_thorlabs_5x2x256x256.tif", lambda stack: stack[:, 0]),
    ],
)
def test_no_false_alarm_in_real_movies(file, pick, shared_data):
    movie = pick(tifffile.imread(shared_data / file))
    assert found(movie) == []
    for frame in (1, 3):  # and black frames among them
        movie[frame] = 0
    assert found(movie) == [1, 3]


# What is bad


def closed(frame, dark=DARK, noise=NOISE, seed=0):
    """What the camera gives with the shutter closed, in the place of a frame."""
    values = dark + noise * np.random.default_rng(seed).standard_normal(frame.shape)
    return values if frame.dtype.kind == "f" else np.clip(np.rint(values), 0, None)


def half_lit(part, axis=0, first=False, zeros=False):
    def spoil(frame, *camera):
        dark = frame * 0 if zeros else closed(frame, *camera)
        n = round(part * frame.shape[axis])
        where = [slice(None)] * frame.ndim
        where[axis] = slice(None, n) if first else slice(frame.shape[axis] - n, None)
        frame[tuple(where)] = dark[tuple(where)]

    return spoil


def saturated(part):
    def spoil(frame, *_):
        limit = np.iinfo(frame.dtype).max if frame.dtype.kind != "f" else 1e5
        frame[np.random.default_rng(1).random(frame.shape) < part] = limit

    return spoil


def replaced(make):
    def spoil(frame, *camera):
        frame[:] = make(frame, *camera)

    return spoil


BAD = {
    "black": replaced(lambda frame, *_: 0),
    "constant": replaced(lambda frame, *_: 77),
    "saturated": saturated(1.0),
    "saturated for the most part": saturated(0.7),
    "dark noise": replaced(closed),
    "lower half": half_lit(0.5),
    "upper half": half_lit(0.5, first=True),
    "lower half zero": half_lit(0.5, zeros=True),
    "most of the rows": half_lit(0.9),
    "two thirds of the rows": half_lit(0.67, first=True),
    "left half": half_lit(0.5, axis=1, first=True),
}
SPOILED = {  # the movie, and what its camera gives in the dark
    "tissue": (DARK, NOISE),
    "bleaching to a fifth": (DARK, NOISE),
    "few photons": (0, 0.02),
    "few bright cells, seldom": (DARK, NOISE),
    "lamp up": (DARK, NOISE),
    "one photon": (400, 10),
    "NaN at the edges": (DARK, NOISE),
    "two channels, one dark": (DARK, NOISE),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("case", SPOILED)
def test_bad_frames_are_found(case, kind):
    """All of them and no other, whether they come singly or in a row, up to a third of the recording."""
    singly = np.flatnonzero(np.random.default_rng(2).random(150) < 0.15).tolist()
    for numbers in (singly, list(range(30, 80))):
        movie = GOOD[case]()
        for number in numbers:
            BAD[kind](movie[number], *SPOILED[case], number)
        assert found(movie) == numbers


@pytest.mark.parametrize("kind", ["black", "dark noise", "lower half", "saturated"])
@pytest.mark.parametrize("file", ["two_photon_20x128x256.tif", "mouse_200x64x64.tif"])
def test_bad_frames_are_found_in_real_movies(file, kind, shared_data):
    movie = tifffile.imread(shared_data / file)
    numbers = [2, 5, 6, 7, 13]
    for number in numbers:
        BAD[kind](movie[number], int(np.quantile(movie[0], 0.01)) // 2, 1.0, number)
    assert found(movie) == numbers


def test_brightness_of_blocks_against_loops():
    frame = np.random.default_rng(0).random((21, 35, 2)).astype(np.float32)
    frame[:5, :8] = np.nan
    frame[10, 20, 1] = np.inf
    brightness = measure_brightness(frame)
    rows, columns = np.arange(6) * 21 // 5, np.arange(9) * 35 // 8
    assert brightness.halves.shape == (2, 5, 8, 2)
    finite = np.where(np.isfinite(frame), frame, np.nan)
    for j in range(5):
        for i in range(8):
            for parity in range(2):
                inside = [x for x in range(columns[i], columns[i + 1]) if x % 2 == parity]
                block = finite[rows[j] : rows[j + 1]][:, inside].reshape(-1, 2)
                if np.isfinite(block).any():
                    np.testing.assert_allclose(brightness.halves[parity, j, i], np.nanmean(block, axis=0), rtol=1e-6)
    assert (brightness.lowest, brightness.highest) == (np.nanmin(finite), np.nanmax(finite))
    assert not brightness.blank
    assert measure_brightness(np.full((16, 16, 1), 3, np.uint8)).blank
    assert measure_brightness(np.full((16, 16, 1), np.nan)).blank


@pytest.mark.parametrize("value", [1e25, 1e300, np.inf])
def test_pixels_beyond_arithmetic(value):
    movie = camera(tissue(40)).astype(np.float64)
    movie[3, 20, 30], movie[7, 20:60] = value, -value
    movie[11] = closed(movie[11])
    assert found(movie) == [11]


def test_movies_of_which_nothing_can_be_learnt():
    """A channel or most frames of nothing but NaN, fewer than five frames: constant frames are bad, no other is."""
    movie = beside(camera(tissue(30)), camera(tissue(30))).astype(np.float32)
    movie[3] = closed(movie[3])
    movie[5] = 7
    without_channel = movie.copy()
    without_channel[..., 1] = np.nan
    assert found(without_channel) == [5]
    assert found(movie[2:6]) == [3]
    movie[6:] = np.nan
    assert found(movie) == [3, *range(5, 30)]


def test_a_frame_that_cannot_be_read_is_no_reason_to_fail_before_the_run():
    class Broken(ArrayReader):
        def _load(self, start, stop):
            if start <= 2 < stop:
                raise OSError("bad page")
            return super()._load(start, stop)

    movie = camera(tissue())
    movie[5] = closed(movie[5])
    bad = BadFrames("auto", Broken(movie))
    assert bad.contains(5, movie[5][..., None])
    assert not bad.contains(6, movie[6][..., None])


# What becomes of them


def movie_with_bad_frames(dtype="uint16", n_frames=24):
    """A movie, its still image, the numbers of bad frames in it, and of those with their image."""
    movie = recording(n_frames, 48, 56, dtype=dtype)
    numbers = [3, 4, 11, 17, 23]
    low = np.quantile(movie.frames, 0.01)
    for number in numbers:
        movie.frames[number] = closed(movie.frames[number], 0.6 * low if low > 0 else low - 20, 2.0, number)
    movie.frames[11] = movie.frames[11].flat[0]
    return movie.frames, movie.truth, numbers, sorted({*range(n_frames)} - {*numbers})


def run(movie, reference, executor="sequential", batch=None, bad_frames="auto", **options):
    """Summary, registered frames and flow."""
    reader = ArrayReader(movie)
    writers = ArrayWriter(movie.shape, reader.dtype), ArrayWriter((*reader.shape[:3], 2), np.float32)
    options = Options(**{**FAST, **options})
    summary = Registration(reader, reference, executor, options, batch=batch, bad_frames=bad_frames).run(*writers)
    return summary, writers[0].array, writers[1].array


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.filterwarnings("ignore:.*bad frames")
def test_bad_frames_are_left_as_they_are(dtype):
    movie, truth, numbers, others = movie_with_bad_frames(dtype)
    if dtype == "float32":
        movie[4, 5:9, 6] = np.nan
    summary, registered, flow = run(movie, truth)
    np.testing.assert_array_equal(registered[numbers], movie[numbers])
    assert not flow[numbers].any()
    assert flow[others].any(axis=(1, 2, 3)).all()
    assert summary.bad_frames.tolist() == numbers == np.flatnonzero(summary.flagged).tolist()
    assert summary.bad_frames.dtype.kind == "i"
    assert summary.statistics["bad"].dtype == bool
    assert np.flatnonzero(summary.statistics["constant"]).tolist() == [11]
    assert summary.nonfinite_pixels == 0
    after = summary.statistics["correlation_after"]
    assert np.isfinite(after).all()
    assert np.abs(after[numbers]).max() < 0.2
    assert after[others].min() > 0.8
    assert "bad frames, left as they were: 5 (3-4, 11, 17, 23)" in str(summary)


def test_one_warning_names_the_bad_frames():
    movie, truth, _, _ = movie_with_bad_frames()
    with pytest.warns(RuntimeWarning, match=r"5 bad frames \(3-4, 11, 17, 23\) are left as they are") as caught:
        run(movie, truth)
    assert len(caught) == 1


@pytest.mark.parametrize("reference", ["image", "frames"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.filterwarnings("ignore:.*bad")
def test_no_other_frame_depends_on_what_a_bad_frame_shows(reference, dtype):
    movie, truth, numbers, others = movie_with_bad_frames(dtype)
    given = truth if reference == "image" else range(24)
    options = {"sigma": (1, 1, 0.6), "buffer_size": 9}  # a filter in time that reaches over two frames
    summary, registered, flow = run(movie, given, **options)
    changed = movie.copy()
    changed[numbers] = np.random.default_rng(1).integers(0, 100, changed[numbers].shape)
    again, other_registered, other_flow = run(changed, given, bad_frames=numbers, **options)
    np.testing.assert_array_equal(registered[others], other_registered[others])
    np.testing.assert_array_equal(flow, other_flow)
    np.testing.assert_array_equal(summary.reference, again.reference)


@pytest.mark.parametrize("executor", ["threading", "emulated"])
@pytest.mark.parametrize("batch", [1, 5, 50])
@pytest.mark.filterwarnings("ignore:.*bad")
def test_the_same_bits_for_any_executor_and_batch(executor, batch):
    movie, _, _, _ = movie_with_bad_frames("float32")
    movie[4, 5:9, 6], movie[17] = np.nan, np.nan
    options = {"sigma": (1, 1, 0.3), "buffer_size": 9}
    summary, registered, flow = run(movie, range(2, 14), **options)
    if executor == "emulated":
        executor = fg.GPUExecutor(2, device=EmulatedDevice(), batch=2, fallback=False)
    other, other_registered, other_flow = run(movie, range(2, 14), executor, batch, **options)
    np.testing.assert_array_equal(registered, other_registered)
    np.testing.assert_array_equal(flow, other_flow)
    np.testing.assert_array_equal(summary.reference, other.reference)
    np.testing.assert_array_equal(summary.flagged, other.flagged)


@pytest.mark.filterwarnings("ignore:.*bad frames")
def test_verified_frames_may_be_bad():
    movie, truth, _, _ = movie_with_bad_frames()
    registration = Registration(ArrayReader(movie), truth, "sequential", Options(**FAST), verify=24)
    verification = registration.run().verification
    assert verification.equal == 1
    assert verification.percentile_99 == 0


# The reference


@pytest.mark.parametrize("kind", ["black", "dark noise"])
@pytest.mark.filterwarnings("ignore:.*bad frames")
def test_default_reference_without_bad_frames(kind):
    """As many as a fourth of its frames."""
    movie = camera(tissue(130, 48))
    good = [*range(50, 70), *range(90, 130)]
    expected = run(movie, good)[0].reference
    for number in range(70, 90):
        BAD[kind](movie[number], DARK, NOISE, number)
    np.testing.assert_array_equal(run(movie, None)[0].reference, expected)
    if kind == "dark noise":  # black ones are constant, and averaged in no case
        assert run(movie, None, bad_frames=None)[0].reference.mean() < 0.95 * expected.mean()


def test_bad_frames_that_were_named_for_the_reference():
    movie, _, _, _ = movie_with_bad_frames()
    with pytest.warns(RuntimeWarning, match="2 of the 6 frames of the reference are bad and left out"):
        registration = Registration(ArrayReader(movie), slice(0, 6), "sequential", Options(**FAST))
    assert registration._reference == [0, 1, 2, 5]
    with pytest.raises(ValueError, match="all 2 frames of the reference are bad: name others, or an image"):
        Registration(ArrayReader(movie), [3, 11], "sequential")
    assert Registration(ArrayReader(movie), [3, 11], "sequential", bad_frames=None)._reference == [3, 11]


# Frames that the caller names


@pytest.mark.parametrize("form", ["list", "tuple", "array", "bool", "bools", "slice", "text", "npy", "npy of bool"])
def test_forms_of_bad_frames(form, tmp_path):
    movie = recording(9, 26, 31).frames
    flags = np.zeros(9, bool)
    flags[2:5] = True
    (tmp_path / "bad.txt").write_text("# shutter\n2\n 3 # slow\n\n4\n")
    np.save(tmp_path / "bad.npy", np.array([4, 2, 3]))
    np.save(tmp_path / "flags.npy", flags)
    given = {
        "list": [2, 4, 3],
        "tuple": (2, 3, 4),
        "array": np.array([2, 3, 4, 4]),
        "bool": flags,
        "bools": flags.tolist(),
        "slice": slice(2, 5),
        "text": tmp_path / "bad.txt",
        "npy": str(tmp_path / "bad.npy"),
        "npy of bool": tmp_path / "flags.npy",
    }[form]
    with pytest.warns(RuntimeWarning, match=r"3 bad frames \(2-4\)"):
        registered, flow = fg.register(movie, movie[0], "sequential", bad_frames=given, **FAST)
    np.testing.assert_array_equal(registered[2:5], movie[2:5])
    assert not flow[2:5].any()
    assert flow[5:].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([9], ValueError, r"bad_frames: frames \[9\] are not among 0 to 8"),
        ([-1, 3], ValueError, r"frames \[-1\] are not among 0 to 8"),
        (slice(None), ValueError, "bad_frames names all 9 frames"),
        (np.ones(8, bool), ValueError, r"bad_frames has shape \(8,\), expected \(9,\)"),
        ([1.5], TypeError, r"bad_frames=\[1.5\] is not 'auto', None, numbers"),
        (7, TypeError, "bad_frames=7 is not 'auto'"),
        ("no/such/file.txt", FileNotFoundError, "no/such/file.txt"),
        ("words.txt", ValueError, "line 2, 'three', is not a frame's number"),
    ],
)
def test_refused_bad_frames(given, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("2\nthree\n")
    with pytest.raises(error, match=message):
        fg.register(recording(9, 26, 31).frames, None, "sequential", bad_frames=given)


def test_numbers_in_messages():
    assert list_frames(np.array([], int)) == ""
    assert list_frames(np.array([3, 5, 6, 7, 9])) == "3, 5-7, 9"
    assert list_frames(np.arange(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and more"


# Files and the command line


@pytest.fixture
def movie_file(tmp_path):
    movie, truth, numbers, _ = movie_with_bad_frames()
    tifffile.imwrite(tmp_path / "in.tif", movie)
    return tmp_path / "in.tif", movie, truth, numbers


@pytest.mark.filterwarnings("ignore:.*bad frames")
def test_statistics_file(movie_file, tmp_path):
    path, movie, truth, numbers = movie_file
    summary = fg.register_file(path, tmp_path / "out.tif", "sequential", truth, **FAST)
    assert summary.bad_frames.tolist() == numbers
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif")[numbers], movie[numbers])
    with np.load(tmp_path / "out_statistics.npz") as statistics:
        assert statistics["bad"].dtype == bool
        assert np.flatnonzero(statistics["bad"]).tolist() == numbers


@pytest.mark.parametrize("reference", ["image", "frames"])
@pytest.mark.filterwarnings("ignore:.*")
def test_applied_flow_leaves_bad_frames(reference, movie_file, tmp_path):
    path, _, truth, _ = movie_file
    given = truth if reference == "image" else None
    fg.register_file(path, tmp_path / "out.tif", "sequential", given, tmp_path / "flow.h5", **FAST)
    fg.apply_file(tmp_path / "flow.h5", path, tmp_path / "applied.tif", "sequential")
    assert (tmp_path / "applied.tif").read_bytes() == (tmp_path / "out.tif").read_bytes()


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ([], [3, 4, 11, 17, 23]),
        (["auto"], [3, 4, 11, 17, 23]),
        (["none"], []),
        (["7,9:12"], [7, 9, 10, 11]),
        (["bad.txt"], [5]),
    ],
)
def test_bad_frames_on_the_command_line(flag, expected, movie_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("5\n")
    flags = ["--bad-frames", *flag] if flag else []
    common = ["--executor", "sequential", "--reference", "0:3", "--quality", "fast"]
    assert main(["register", "in.tif", "out.tif", *flags, *common]) == 0
    with np.load("out_statistics.npz") as statistics:
        assert np.flatnonzero(statistics["bad"]).tolist() == expected
    out, err = capsys.readouterr()
    assert ("bad frames, left as they were" in out) == bool(expected)
    assert (f"warning: {len(expected)} bad frames" in err) == bool(expected)


@pytest.mark.parametrize("flag", ["99", "1,x", "5:2:1", "nowhere.txt"])
def test_wrong_bad_frames_on_the_command_line(flag, movie_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["register", "in.tif", "out.tif", "--bad-frames", flag, "--executor", "sequential"]) == 2
    err = capsys.readouterr().err
    assert flag in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif"]


@pytest.mark.filterwarnings("ignore:.*")
def test_a_run_with_other_bad_frames_does_not_go_on(movie_file, tmp_path):
    path, _, truth, numbers = movie_file
    expected = fg.register_file(path, tmp_path / "whole.tif", "sequential", truth, batch=4, **FAST)

    def stop(stage, finished, total):
        if stage == "frames" and finished >= 16:
            raise InterruptedError("stop")

    target = tmp_path / "out.tif"
    with pytest.raises(InterruptedError):
        fg.register_file(path, target, "sequential", truth, batch=4, progress=stop, **FAST)
    with pytest.raises(JournalError, match="bad_frames"):
        fg.register_file(path, target, "sequential", truth, batch=4, resume=True, bad_frames=None, **FAST)
    summary = fg.register_file(path, target, "sequential", truth, batch=4, resume=True, **FAST)
    assert summary.resumed_at > 0
    assert summary.bad_frames.tolist() == numbers
    np.testing.assert_array_equal(tifffile.imread(target), tifffile.imread(tmp_path / "whole.tif"))
    for name, values in expected.statistics.items():
        np.testing.assert_array_equal(summary.statistics[name], values)
