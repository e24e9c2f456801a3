"""cc_initialization='auto': frames that jump further than the pyramid reaches."""

import dataclasses

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import flowreg_gpu as fg
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.engine.batch import STATISTICS, Batch
from flowreg_gpu.engine.job import Job
from flowreg_gpu.io import ArrayReader, ArrayWriter
from flowreg_gpu.options import Options
from flowreg_gpu.registration import jumps as jumps_module
from flowreg_gpu.registration.choices import Choices
from flowreg_gpu.registration.jumps import AlignmentChoice, JumpTest, SecondAttempt, choose_alignment
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.registration.verification import spread_frames
from tests.emulation import EmulatedDevice

HEIGHT, WIDTH, BORDER = 112, 128, 60
FAR = (28, -29)  # px; 40 px long
FAST = {"alpha": 4.0, "min_level": 4}
INNER = (slice(44, -44), slice(44, -44))


def jumping(n_frames, jumps, dtype="uint16", noise=0.05, height=HEIGHT, width=WIDTH, seed=0):
    """Movie (T, H, W), its reference, and the displacements (T, 2) of its frames: (u, v) in pixels.

    Frames wander by some pixels, and those that `jumps` names by (u, v) lie elsewhere.
    """
    rng = np.random.default_rng(seed)
    scene = gaussian_filter(rng.standard_normal((height + 2 * BORDER, width + 2 * BORDER)), 1.5)
    scene = 0.5 + scene / (8 * scene.std())
    moves = rng.integers(-2, 3, (n_frames, 2))
    for number, jump in jumps.items():
        moves[number] = jump

    def crop(u, v):
        return scene[BORDER - v : BORDER - v + height, BORDER - u : BORDER - u + width]

    movie = np.stack([crop(u, v) for u, v in moves])
    movie = movie + noise * rng.standard_normal(movie.shape)
    scale = 1.0 if np.dtype(dtype).kind == "f" else 0.5 * np.iinfo(dtype).max
    return np.clip(scale * movie, 0, 2 * scale).astype(dtype), (scale * crop(0, 0)).astype(np.float32), moves


def run(movie, reference, executor="sequential", *, keep_flow=True, verify=0, batch=None, bad_frames="auto", **options):
    """Summary, registered frames, and flow or None."""
    reader = ArrayReader(movie)
    writer = ArrayWriter(movie.shape, movie.dtype)
    flow_writer = ArrayWriter((*movie.shape[:3], 2), np.float32) if keep_flow else None
    registration = Registration(
        reader,
        reference,
        executor,
        Options(**{**FAST, **options}),
        batch=batch,
        verify=verify,
        bad_frames=bad_frames,
        keep_flow=keep_flow,
    )
    summary = registration.run(writer, flow_writer)
    return summary, writer.array, None if flow_writer is None else flow_writer.array


def errors(flow, moves):
    """Mean length (T,) of the error in the middle of the frame, of flow (T, H, W, 2)."""
    return np.linalg.norm(flow[(slice(None), *INNER)] - moves[:, None, None], axis=-1).mean(axis=(1, 2))


# The choice


def choice(frames, reference, executor=None, n_frames=None, batch=4, **options):
    frames = frames[..., None] if frames.ndim == 3 else frames
    reference = reference[..., None] if reference.ndim == 2 else reference
    job = Job.from_raw(options=Options(**{**FAST, **options}), reference=reference)
    return choose_alignment(
        job,
        lambda number: frames[number : number + 1],
        n_frames or len(frames),
        executor or fg.SequentialExecutor(),
        batch,
    )


def test_frames_that_jump():
    """Every fourth frame, each time elsewhere, in a recording whose reference is made of its frames."""
    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, 12)
    far = {4 * k + 1: np.rint([40 * np.cos(a), 40 * np.sin(a)]).astype(int) for k, a in enumerate(angles)}
    movie, _, moves = jumping(48, far)
    summary, registered, flow = run(movie, range(48))
    missed, _, rough = run(movie, range(48), cc_initialization=False)
    jumped = np.isin(np.arange(48), list(far))

    assert summary.choices.alignment.aligned
    assert set(summary.choices.alignment.frames) <= set(far)
    assert summary.choices.alignment.longest == pytest.approx(40, abs=3)
    assert "frames jump by up to 4" in str(summary)
    assert str(summary).count(": aligned rigidly first") == 1
    assert len(summary.realigned_frames) == 0
    assert errors(flow, moves)[jumped].max() < 1
    assert errors(rough, moves)[jumped].mean() > 20
    after, before = (result.statistics["correlation_after"][jumped].mean() for result in (summary, missed))
    assert after > 0.9
    assert before < 0.6

    # as if it had been asked for, the reference included
    asked, expected, expected_flow = run(movie, range(48), cc_initialization=True)
    np.testing.assert_array_equal(summary.reference, asked.reference)
    np.testing.assert_array_equal(registered, expected)
    np.testing.assert_array_equal(flow, expected_flow)
    assert asked.choices.alignment is None


def test_frames_that_do_not_jump():
    movie, reference, _ = jumping(40, {})
    summary, registered, flow = run(movie, reference)
    assert summary.choices.alignment == AlignmentChoice(False, suspicious=summary.choices.alignment.suspicious)
    assert 0.5 < summary.choices.alignment.suspicious < summary.statistics["correlation_after"].min()
    assert len(summary.realigned_frames) == 0
    assert "jump" not in str(summary)
    plain, expected, expected_flow = run(movie, reference, cc_initialization=False)
    np.testing.assert_array_equal(registered, expected)
    np.testing.assert_array_equal(flow, expected_flow)
    for name, values in plain.statistics.items():
        np.testing.assert_array_equal(summary.statistics[name], values)


def drift():
    movie, reference, _ = jumping(12, {k: (k + 4, -k) for k in range(12)})
    return movie, reference


def periodic():
    """Shifted by a period, a frame is the same: phase correlation cannot tell, and nothing is gained."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rng = np.random.default_rng(3)
    movie = [2000 + 500 * (np.sin(2 * np.pi * (x + k % 3) / 16) + np.sin(2 * np.pi * y / 16)) for k in range(12)]
    return np.array(movie) + 100 * rng.standard_normal((12, HEIGHT, WIDTH)), np.float32(movie[0])


def noise_alone():
    movie, reference, _ = jumping(12, {})
    movie[::3] = np.random.default_rng(4).poisson(3, movie[::3].shape)
    return movie, reference


def nothing_but_noise():
    movie = np.random.default_rng(5).poisson(2, (32, HEIGHT, WIDTH)).astype(np.uint16)
    return movie, movie.mean(axis=0, dtype=np.float32)


def half_lit():
    movie, reference, _ = jumping(12, {})
    movie[::3, HEIGHT // 2 :] = np.random.default_rng(6).poisson(100, movie[::3, HEIGHT // 2 :].shape)
    return movie, reference


def active():
    """Blobs of activity, brighter than the tissue, that come and go at other places."""
    movie, reference, _ = jumping(12, {})
    rng = np.random.default_rng(7)
    glow = np.array([gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)), 6) for _ in movie])
    return movie * (1 + 2 * (glow > 1.5 * glow.std())), reference


def another_scene():
    movie, reference, _ = jumping(12, {})
    movie[::3] = jumping(12, {}, seed=99)[0][::3]
    return movie, reference


CALM = [drift, periodic, noise_alone, nothing_but_noise, half_lit, active, another_scene]


@pytest.mark.parametrize("make", CALM, ids=lambda make: make.__name__)
def test_no_false_alarm(make):
    movie, reference = make()
    assert not choice(movie.astype(np.float32), reference).aligned


def test_drift_is_tried_and_found_without():
    """Its frames lie far enough to be registered in both ways."""
    movie, reference = drift()
    job, batch = job_and_batch(movie, reference)
    planes = [preprocess(frame[None], job.preprocessing) for frame in batch.frames]
    assert [JumpTest(job).jump(plane, batch.start) > 10 for plane in planes[8:]] == [True] * 4


def test_long_jumps_are_tried_first(monkeypatch):
    """One jump among many frames that have drifted far."""
    movie, reference, _ = jumping(12, {**{k: (13, -k) for k in range(11)}, 11: FAR})
    found = choice(movie, reference)
    assert (found.aligned, found.frames) == (True, (11,))
    monkeypatch.setattr(jumps_module, "TRIALS", 1)
    assert choice(movie, reference) == found


@pytest.mark.parametrize("jumps", [{}, {4: FAR}], ids=["calm", "jump"])
def test_the_choice_depends_on_neither_executor_nor_batch(jumps, monkeypatch):
    monkeypatch.setattr(jumps_module, "SAMPLES", 6)
    movie, reference, _ = jumping(9, {spread_frames(9, 6)[k - 1]: jump for k, jump in jumps.items()})
    expected = choice(movie, reference, batch=1)
    assert expected.aligned == bool(jumps)
    assert (expected.suspicious is None) == bool(jumps)
    assert choice(movie, reference, fg.ThreadingExecutor(2), batch=5) == expected
    device = fg.GPUExecutor(1, device=EmulatedDevice(), batch=2, fallback=False)
    assert choice(movie, reference, device, batch=3) == expected


def test_bad_frames_and_frames_that_cannot_be_read_are_left_out():
    movie, reference, _ = jumping(8, {3: FAR, 5: FAR})
    frames = movie[..., None]
    job = Job.from_raw(options=Options(**FAST), reference=reference[..., None])

    def read(number):
        return None if number in (3, 5) else frames[number : number + 1]

    looked_at = []
    found = choose_alignment(job, read, 8, fg.SequentialExecutor(), 4, looked_at.append)
    assert found == AlignmentChoice(False)
    assert looked_at == [1] * 8
    with pytest.warns(RuntimeWarning, match=r"2 bad frames \(3, 5\)"):
        summary, *_ = run(frames[..., 0], reference, bad_frames=[3, 5])
    assert not summary.choices.alignment.aligned
    with pytest.warns(RuntimeWarning, match=r"1 bad frames \(3\)"):
        summary, *_ = run(frames[..., 0], reference, bad_frames=[3])
    assert summary.choices.alignment.frames == (5,)


def test_bad_frames_do_not_say_what_is_usual():
    movie, reference, _ = jumping(40, {})
    with pytest.warns(RuntimeWarning, match="16 bad frames"):
        summary, *_ = run(movie, reference, bad_frames=spread_frames(40, 32)[:16])
    assert summary.choices.alignment.suspicious > 0.5


def test_an_unreadable_frame_is_the_business_of_the_run():
    movie, reference, _ = jumping(6, {})

    class Torn(ArrayReader):
        def _load(self, start, stop):
            if start <= 4 < stop:
                raise OSError("frame 4 is torn")
            return super()._load(start, stop)

    registration = Registration(Torn(movie), reference, "sequential", Options(**FAST), batch=1, bad_frames=None)
    with pytest.raises(OSError, match="frame 4 is torn"):
        registration.run()


def test_small_frames_say_nothing():
    movie, reference, _ = jumping(4, {2: (9, 9)}, height=30, width=40)
    executor = fg.SequentialExecutor()
    executor.register_batch = None  # not called
    assert choice(movie, reference, executor, n_frames=40) == AlignmentChoice(False)


def test_the_cost_without_jumps(monkeypatch):
    """Five frames are registered, whatever the length of the recording."""
    movie, reference, _ = jumping(33, {})
    executor, batches, jobs = fg.SequentialExecutor(), [], []
    register_batch, start_recording = executor.register_batch, executor.start_recording

    def counted(batch):
        batches.append(batch.count)
        return register_batch(batch)

    monkeypatch.setattr(executor, "register_batch", counted)
    monkeypatch.setattr(executor, "start_recording", lambda job: (jobs.append(job), start_recording(job)))
    assert choice(movie, reference, executor, batch=2).suspicious is not None
    assert len(jobs) == 1
    assert batches == [2, 2, 1]
    batches.clear()
    assert choice(movie[:32], reference, executor).suspicious is None  # all have been looked at
    assert batches == []


@pytest.mark.parametrize("const_assumption", ["gc", "gray", "cs"])
def test_with_alpha_left_to_the_recording(const_assumption):
    movie, reference, _ = jumping(8, {5: FAR})
    how = {"alpha": "auto", "const_assumption": const_assumption}
    assert choice(movie, reference, **how).frames == (5,)
    assert not choice(movie[:5], reference, **how).aligned


def test_two_channels():
    """The second one shows noise alone and has no weight."""
    movie, reference, _ = jumping(8, {5: FAR})
    rng = np.random.default_rng(8)
    two = np.stack([movie, rng.poisson(9, movie.shape)], axis=-1).astype(np.uint16)
    reference = np.stack([reference, np.full_like(reference, 9)], axis=-1)
    assert choice(two, reference, weight=(1.0, 0.0), channel_normalization="separate").frames == (5,)


# The second attempt


@pytest.fixture
def rare(monkeypatch):
    """Nine frames, of which every other one is looked at; frame 5 jumps."""
    monkeypatch.setattr(jumps_module, "SAMPLES", 5)
    assert 5 not in spread_frames(9, 5)
    return jumping(9, {5: FAR})


def test_a_rare_jump(rare):
    movie, reference, moves = rare
    summary, registered, flow = run(movie, reference)
    plain, expected, expected_flow = run(movie, reference, cc_initialization=False)
    assert not summary.choices.alignment.aligned
    assert summary.realigned_frames.tolist() == [5]
    assert summary.statistics["realigned"].dtype == bool
    assert "frames that jump, aligned rigidly: 1 (5)" in str(summary)
    assert not summary.flagged.any()
    assert errors(flow, moves)[5] < 1
    assert errors(expected_flow, moves)[5] > 20
    others = np.arange(9) != 5
    np.testing.assert_array_equal(registered[others], expected[others])
    np.testing.assert_array_equal(flow[others], expected_flow[others])
    for name in plain.statistics:
        np.testing.assert_array_equal(summary.statistics[name][others], plain.statistics[name][others])
    assert summary.statistics["correlation_after"][5] > 0.9 > plain.statistics["correlation_after"][5]
    assert summary.statistics["max_disp"][5] > 38


@pytest.mark.parametrize(
    ("executor", "batch"),
    [
        (lambda: fg.SequentialExecutor(), 1),
        (lambda: fg.ThreadingExecutor(2), 4),
        (lambda: fg.MultiprocessingExecutor(2), 3),
        (lambda: fg.GPUExecutor(1, device=EmulatedDevice(), batch=2, fallback=False), 4),
    ],
    ids=["sequential", "threading", "multiprocessing", "gpu"],
)
def test_a_rare_jump_for_every_executor_and_batch(rare, executor, batch):
    """With windows, and a filter over time: its frames come with those around them."""
    movie, reference, _ = rare
    how = {"buffer_size": 4, "sigma": (1, 1, 0.3)}
    expected_summary, expected, expected_flow = run(movie, reference, batch=9, **how)
    assert expected_summary.realigned_frames.tolist() == [5]
    with executor() as workers:
        summary, registered, flow = run(movie, reference, workers, batch=batch, verify=9, **how)
    np.testing.assert_array_equal(registered, expected)
    np.testing.assert_array_equal(flow, expected_flow)
    assert summary.choices == expected_summary.choices
    assert summary.realigned_frames.tolist() == [5]
    # what the executor had computed is compared, before the second attempt
    assert (summary.verification.median, summary.verification.percentile_99, summary.verification.equal) == (0, 0, 1)


def test_without_flows(rare, monkeypatch):
    """Where no flow is written, the second attempt hands none out."""
    movie, reference, _ = rare
    flows = []

    class Noted(fg.SequentialExecutor):
        def register_batch(self, batch):
            flows.append(batch.flows)
            return super().register_batch(batch)

    monkeypatch.setattr(jumps_module, "SequentialExecutor", Noted)
    _, expected, _ = run(movie, reference, batch=4)
    summary, registered, _ = run(movie, reference, keep_flow=False, batch=4)
    np.testing.assert_array_equal(registered, expected)
    assert summary.realigned_frames.tolist() == [5]
    assert flows == [1, 0]


def test_a_run_that_goes_on(rare, tmp_path):
    """Ended before the frame that jumps, at it, and after it: the files of an uninterrupted run."""
    pytest.importorskip("h5py")
    movie, reference, _ = rare
    tifffile.imwrite(tmp_path / "in.tif", movie)

    class Pulled(Exception):
        pass

    def register(name, stop=None):
        def progress(stage, finished, total):
            if stage == "frames" and finished == stop:
                raise Pulled

        return fg.register_file(
            tmp_path / "in.tif",
            tmp_path / f"{name}.tif",
            "sequential",
            reference,
            tmp_path / f"{name}_flow.h5",
            batch=1,
            resume=True,
            progress=progress,
            **FAST,
        )

    whole = register("whole")
    assert whole.realigned_frames.tolist() == [5]
    for stop in (5, 6, 7, 8):
        with pytest.warns(RuntimeWarning, match="partial"), pytest.raises(Pulled):
            register("parts", stop)
    summary = register("parts")
    assert summary.resumed_at == 7
    assert summary.realigned_frames.tolist() == [5]
    assert summary.choices == whole.choices
    for end in (".tif", "_flow.h5", "_statistics.npz"):
        assert (tmp_path / f"parts{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()


def test_attempts_in_vain(rare):
    """Frames that do not correlate, and have not jumped: no image, another scene, a drift that the start flow holds."""
    movie, reference, _ = rare
    movie[5] = jumping(9, {}, seed=99)[0][5]
    movie[7] = np.random.default_rng(4).poisson(2000, movie[7].shape)
    summary, registered, flow = run(movie, reference, bad_frames=None)
    _, expected, expected_flow = run(movie, reference, bad_frames=None, cc_initialization=False)
    assert summary.statistics["correlation_after"][5] < summary.choices.alignment.suspicious
    assert summary.statistics["correlation_after"][7] < summary.choices.alignment.suspicious
    assert len(summary.realigned_frames) == 0
    np.testing.assert_array_equal(registered, expected)
    np.testing.assert_array_equal(flow, expected_flow)


def job_and_batch(movie, reference, start=(0.0, 0.0)):
    job = Job.from_raw(options=Options.without_choices(**FAST), reference=reference[..., None])
    flow = np.empty((2, *reference.shape), np.float32)
    flow[0], flow[1] = start
    return job, Batch(movie[..., None], flow)


def test_jumps_are_measured_from_the_start_flow():
    """Which has brought the frames of the window here: one of them lies as far from it as another one from zero."""
    there, further = (12, -20), (-14, 10)
    movie, reference, _ = jumping(4, {0: there, 1: (13, -21), 2: further, 3: (0, 0)}, height=160, width=170)
    job, batch = job_and_batch(movie, reference, there)
    test, zero = JumpTest(job), np.zeros_like(batch.start)
    planes = [preprocess(frame[None], job.preprocessing) for frame in batch.frames]
    near = pytest.approx(40, abs=3), pytest.approx(23, abs=3)
    assert [test.jump(plane, batch.start) for plane in planes] == [0, 0, *near]
    lengths = [test.jump(plane, zero) for plane in planes]
    assert lengths == [pytest.approx(23, abs=3), pytest.approx(25, abs=3), pytest.approx(17, abs=3), 0]


def test_what_the_start_flow_has_found_is_no_jump():
    """Whatever the correlation of the registered frame."""
    there = (12, -20)
    movie, reference, _ = jumping(1, {0: there})
    for start, replaced in ((there, False), ((0, 0), True)):
        job, batch = job_and_batch(movie, reference, start)
        executor = fg.SequentialExecutor()
        executor.start_recording(job)
        result = executor.register_batch(batch)
        result.registered[...] = np.random.default_rng(9).poisson(2000, result.registered.shape)
        assert SecondAttempt(job, 1.0).improve(batch, result).tolist() == [replaced]


@pytest.mark.parametrize("flag", ["constant", "diverged"])
def test_flagged_frames_are_left_as_they_are(flag):
    movie, reference, _ = jumping(1, {0: FAR})
    job, batch = job_and_batch(movie, reference)
    executor = fg.SequentialExecutor()
    executor.start_recording(job)
    result = executor.register_batch(batch)
    flagged = result.statistics.copy()
    flagged[0, STATISTICS.index(flag)] = 1
    attempt = SecondAttempt(job, 0.9)
    assert attempt.improve(batch, result._replace(statistics=flagged)).tolist() == [False]
    assert attempt.improve(batch, result).tolist() == [True]


def test_the_better_one_is_kept():
    """What correlates less than before is no improvement."""
    movie, reference, _ = jumping(1, {0: FAR})
    job, batch = job_and_batch(movie, reference)
    executor = fg.SequentialExecutor()
    executor.start_recording(job)
    result = executor.register_batch(batch)
    result.registered[...] = reference[..., None]  # nothing is better
    assert SecondAttempt(job, 2.0).improve(batch, result).tolist() == [False]
    np.testing.assert_array_equal(result.registered[0, ..., 0], reference.astype(np.uint16))


# Options that ask for it or not


@pytest.mark.parametrize("asked", [True, False])
def test_nothing_is_chosen_where_it_is_given(asked, monkeypatch):
    movie, reference, _ = jumping(6, {3: FAR})
    monkeypatch.setattr("flowreg_gpu.registration.loop.choose_alignment", None)
    summary, *_ = run(movie, reference, cc_initialization=asked)
    assert summary.choices.alignment is None
    assert len(summary.realigned_frames) == 0


@pytest.mark.parametrize(("jumps", "graphs"), [({}, True), ({3: FAR}, False)])
def test_the_job_of_the_run(jumps, graphs):
    """Graphs are captured of jobs that do not align."""

    class Noted(fg.SequentialExecutor):
        def start_recording(self, job):
            super().start_recording(job)
            self.last = job

    movie, reference, _ = jumping(6, jumps)
    executor = Noted()
    run(movie, reference, executor)
    assert executor.last.options.cc_initialization is (not graphs)
    assert executor.last.options.prealigns is (not graphs)


def test_choices_survive_the_journal():
    found = AlignmentChoice(True, 39.6, (3, 17))
    assert "jump by up to 40 px" in str(found)
    values = Choices(alignment=found).to_dict()
    assert values["alignment"] == dataclasses.asdict(found)
    assert Choices.from_dict(values).alignment == found
