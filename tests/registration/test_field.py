"""The flow of a recording per pixel, and the pixels that every frame covers: from the flows, however it was run."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.cuda.device import DeviceError
from flowreg_gpu.engine.batch import FlowField
from flowreg_gpu.io import ArrayReader, ArrayWriter
from flowreg_gpu.options import Options
from flowreg_gpu.registration import jumps
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.loop import Registration
from tests.emulation import EmulatedDevice
from tests.movies import recording
from tests.registration.test_jumps import FAR, jumping

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*their flow is zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*partial:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*going on with(out)?:RuntimeWarning"),
]
HOW = {"alpha": 4, "levels": 3, "min_level": 1, "buffer_size": 5, "cc_initialization": False}


def emulated(batch=3, fallback=False, **device):
    return fg.GPUExecutor(2, device=EmulatedDevice(**device), batch=batch, fallback=fallback)


def measured(movie, executor="sequential", batch=None, reference=None, keep_flow=True, **options):
    """Summary, and the flows (T, H, W, 2) where they are kept."""
    registration = Registration(
        ArrayReader(movie),
        reference,
        executor,
        Options(**{**HOW, **options}),
        batch=batch,
        keep_flow=keep_flow,
        measure_field=True,
    )
    flow = ArrayWriter((*movie.shape[:3], 2), np.float32) if keep_flow else None
    with contextlib.nullcontext() if isinstance(executor, str) else executor:  # one that was handed in ends here
        summary = registration.run(ArrayWriter(movie.shape, movie.dtype), flow)
    return summary, None if flow is None else flow.array


def assert_is_of(field, flow, used):
    """A field is that of the flows of the frames that are used."""
    _, height, width, _ = flow.shape
    flow, steps = flow[used], np.rint(flow[used] * np.float32(256)) / 256
    y, x = np.mgrid[:height, :width].astype(np.float32)
    there_x, there_y = x + flow[..., 0], y + flow[..., 1]
    inside = (there_x >= 0) & (there_x < width) & (there_y >= 0) & (there_y < height)
    assert field.count == len(flow)
    np.testing.assert_array_equal(field.outside, (~inside).sum(axis=0))
    np.testing.assert_allclose(field.mean, np.moveaxis(steps.mean(axis=0), -1, 0), rtol=1e-6, atol=1e-7)
    distance = ((steps - steps.mean(axis=0)) ** 2).sum(axis=-1)
    np.testing.assert_allclose(field.deviation, np.sqrt(distance.mean(axis=0)), atol=1e-5)


def assert_same(field, expected):
    assert field.count == expected.count
    for name in ("mean", "deviation", "outside"):
        np.testing.assert_array_equal(getattr(field, name), getattr(expected, name))


@pytest.fixture(scope="module")
def movie():
    """Twelve frames, one of which is constant."""
    frames = recording(12, 30, 34, channels=2, amplitude=3.0).frames.copy()
    frames[4] = 7
    return frames


@pytest.fixture(scope="module")
def expected(movie):
    return measured(movie)


def test_it_is_that_of_the_flows(expected):
    summary, flow = expected
    assert_is_of(summary.field, flow, ~summary.flagged)
    assert 0 < summary.from_reference < 0.5
    np.testing.assert_array_equal(summary.valid, summary.field.outside == 0)
    assert summary.valid.any()
    assert not summary.valid.all()
    np.testing.assert_allclose(summary.statistics["translation_x"], flow[..., 0].mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(summary.statistics["translation_y"], flow[..., 1].mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("keep_flow", [False, True])
@pytest.mark.parametrize(
    ("executor", "batch"),
    [("sequential", 1), ("threading", 5), ("multiprocessing", 4), (emulated, 4), (emulated, 12)],
)
def test_neither_executor_nor_batch_matter(movie, expected, executor, batch, keep_flow):
    executor = executor() if callable(executor) else executor
    summary, _ = measured(movie, executor, batch, keep_flow=keep_flow)
    assert_same(summary.field, expected[0].field)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_faults_of_the_device_do_not_matter(movie, expected, share):
    counting = emulated(2)
    measured(movie, counting)
    failing = emulated(2, fallback=True)
    failing._device.fail_at(int(share * counting._device.launches.total()), DeviceError("the card fell off the bus"))
    with pytest.warns(RuntimeWarning, match="fell off the bus"):
        summary, _ = measured(movie, failing)
    assert_same(summary.field, expected[0].field)


def test_a_device_of_little_memory_does_not_matter(movie, expected):
    generous = emulated(12)
    measured(movie, generous)
    tight = emulated(12, memory=int(0.5 * generous._device.peak_bytes))
    summary, _ = measured(movie, tight)
    assert_same(summary.field, expected[0].field)


def test_a_frame_that_was_registered_once_more(monkeypatch):
    """Its second flow counts, and the first one does not."""
    monkeypatch.setattr(jumps, "SAMPLES", 5)
    movie, reference, _ = jumping(9, {5: FAR})
    options = {"alpha": 4.0, "levels": 100, "min_level": 4, "cc_initialization": "auto", "buffer_size": 400}
    for keep_flow in (True, False):
        summary, flow = measured(movie, reference=reference, keep_flow=keep_flow, **options)
        assert summary.realigned_frames.tolist() == [5]
        if keep_flow:
            assert_is_of(summary.field, flow, ~summary.flagged)
            known = summary.field
    assert_same(summary.field, known)


def test_all_frames_flagged():
    movie = np.full((3, 20, 22), 5, np.uint16)
    summary, _ = measured(movie, reference=recording(1, 20, 22).frames[0])
    assert summary.field.count == 0
    assert summary.from_reference is None
    assert summary.valid.all()
    assert not summary.field.mean.any()
    assert not summary.field.deviation.any()


def test_nothing_is_measured_unasked(movie):
    summary = Registration(ArrayReader(movie), None, "sequential", Options(**HOW)).run()
    assert summary.field is summary.valid is summary.from_reference is None


def test_a_field_to_which_nothing_was_added():
    with pytest.raises(ValueError, match="empty"):
        _ = FlowField().mean


class Pulled(Exception):
    pass


def test_a_run_that_goes_on_has_the_same_field(movie, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", movie, photometric="minisblack", metadata={"axes": "TYXC"})

    def register(name, stop=None, measure_field=True):
        def progress(stage, finished, total):
            if stage == "frames" and finished == stop:
                raise Pulled

        with FileRegistration(
            tmp_path / "in.tif",
            tmp_path / f"{name}.tif",
            executor="sequential",
            batch=1,
            resume=True,
            options=Options(**HOW),
            measure_field=measure_field,
        ) as registration:
            return registration.run(progress)

    whole = register("whole")
    for stop in (2, 3, 7, 11, 12):
        with contextlib.suppress(Pulled):
            register("parts", stop)
    with pytest.raises(ValueError, match="measure_field was True then and is False now"):
        register("parts", measure_field=False)
    parts = register("parts")
    assert parts.resumed_at > 8
    assert_same(parts.field, whole.field)
    stored = [np.load(tmp_path / f"{name}_statistics.npz") for name in ("whole", "parts")]
    for name in stored[0].files:
        np.testing.assert_array_equal(stored[0][name], stored[1][name])
    np.testing.assert_array_equal(stored[0]["valid"], whole.valid)
    assert dataclasses.replace(parts, seconds=1.0).to_dict()["covered"] == pytest.approx(whole.valid.mean())
