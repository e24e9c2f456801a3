"""The GPU executor on the emulated device: the same bits as the CPU's, whatever the batch, and what becomes of faults.

The kernels are compiled without contraction to fused multiply-adds, as the CPU's are, so that nothing but equality is
asked for here.
"""

import contextlib
import dataclasses
import warnings
from collections import Counter

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.benchmark.schedule import LaunchLog
from flowreg_gpu.cuda.device import DeviceError, DeviceMemoryError
from flowreg_gpu.cuda.launch import OPT_IN_SHARED_MEMORY
from flowreg_gpu.cuda.paper import PaperDevice
from flowreg_gpu.engine import cuda_stream
from flowreg_gpu.engine.batch import Batch, FlowMean
from flowreg_gpu.engine.cuda_task import DeviceTask
from flowreg_gpu.engine.job import Job, WarpJob
from flowreg_gpu.engine.memory import (
    LARGEST_BATCH,
    MEMORY_FRACTION,
    blank_job,
    device_batch,
    frame_bytes,
    memory_key,
)
from flowreg_gpu.io import ArrayReader
from flowreg_gpu.options import Options
from flowreg_gpu.registration.loop import Registration
from tests import tolerances
from tests.emulation import EmulatedDevice
from tests.movies import LEVELS, recording

FAST = {"alpha": 4, "levels": 3, "min_level": 1}


def emulated(batch=3, fallback=False, **device):
    return fg.GPUExecutor(2, device=EmulatedDevice(**device), batch=batch, fallback=fallback)


class Kept(list):
    """A writer that keeps copies."""

    threaded = True

    def write(self, frames):
        self.append(frames.copy())


def register(movie, executor, progress=None, **options):
    """Registered frames, flow, and the summary."""
    registered, flow = Kept(), Kept()
    registration = Registration(ArrayReader(movie.frames), movie.truth, executor, Options(**options))
    summary = registration.run(registered, flow, progress)
    return np.concatenate(registered), np.concatenate(flow), summary


def assert_same(result, expected):
    for array, other in zip(result[:2], expected[:2], strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)
    for name, values in expected[2].statistics.items():
        np.testing.assert_allclose(
            result[2].statistics[name], values, rtol=0, atol=tolerances.DEVICE_STATISTICS, err_msg=name
        )


# Parity with the CPU

MAP = np.linspace(0.1, 1, 48 * 56).reshape(48, 56)
PARITY = {
    "defaults": {},
    "sor": {"solver": "sor"},
    "gray": {"const_assumption": "gray", "alpha": 0.1},
    "gray, sor": {"const_assumption": "gray", "alpha": 0.1, "solver": "sor"},
    "census": {"const_assumption": "cs"},
    "census, sor, 2 channels": {"const_assumption": "cs", "solver": "sor", "channels": 2},
    "balanced": {"quality": "balanced"},
    "fast": {"quality": "fast"},
    "stiff, anisotropic": {"alpha": (4, 40)},
    "multigrid, 2 channels": {"solver": "multigrid", "channels": 2, "height": 97, "width": 96, "alpha": (40, 4)},
    "auto, masked": {"alpha": 100, "height": 40, "width": 96, "weight": np.arange(96) > np.full((40, 1), 64)},
    "robust smoothness": {"a_smooth": 0.5},
    "robust smoothness, block": {"a_smooth": 0.5, "solver": "block"},
    "quadratic data": {"a_data": 1.0},
    "2 channels": {"channels": 2},
    "3 channels, sor": {"channels": 3, "solver": "sor"},
    "5 channels": {"channels": 5, "levels": 4},
    "2 channels, weights": {"channels": 2, "weight": (0.8, 0.2)},
    "2 channels, map": {"channels": 2, "weight": MAP},
    "2 channels, maps": {"channels": 2, "weight": np.stack([MAP, 1 - MAP], axis=-1)},
    "graduated": {"gnc_schedule": (0, 0.5, 1), "warping_steps": 2, "min_level": 2},
    "graduated, robust smoothness": {"gnc_schedule": (0, 1), "warping_steps": 2, "min_level": 4, "a_smooth": 0.5},
    "pre-alignment": {"cc_initialization": True},
    "pre-alignment, 2 channels, reduced, fractions": {
        "cc_initialization": True,
        "channels": 2,
        "cc_hw": (24, 32),
        "cc_up": 10,
    },
    "97 x 131": {"height": 97, "width": 131, "levels": 6},
    "24 x 200": {"height": 24, "width": 200},
    "filter in time": {"sigma": (1, 1, 0.7)},
    "filters per channel, normalised apart": {
        "sigma": ((1, 2, 0.5), (0, 0.5, 0)),
        "channels": 2,
        "channel_normalization": "separate",
    },
    "linear": {"interpolation_method": "linear"},
    "nearest": {"interpolation_method": "nearest"},
    **{dtype: {"dtype": dtype, "channels": 2} for dtype in LEVELS},
}
SHAPE = ("height", "width", "channels", "dtype")


@pytest.mark.parametrize("case", PARITY)
def test_parity(case):
    options = {name: value for name, value in PARITY[case].items() if name not in SHAPE}
    movie = recording(4, **{name: PARITY[case][name] for name in SHAPE if name in PARITY[case]})
    expected = register(movie, fg.SequentialExecutor(), **options)
    assert expected[1].any()
    assert_same(register(movie, emulated(), **options), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 4, "solver": "sor"}, {"alpha": 15, "quality": "balanced"}],
    ids=["defaults", "sor", "stiff"],
)
def test_parity_on_a_real_movie(shared_data, options):
    frames = tifffile.imread(shared_data / "two_photon_20x128x256.tif")[:4]
    result = [fg.register(frames, frames[0], executor, **options) for executor in (emulated(), fg.SequentialExecutor())]
    np.testing.assert_array_equal(result[0][0], result[1][0])
    np.testing.assert_array_equal(result[0][1], result[1][1])


def test_contraction_stays_within_the_tolerance_of_two_backends():
    """Were the kernels compiled with contraction, a stiff system would still agree; others amplify rounding."""
    movie, options = recording(3), {"alpha": 40, "quality": "fast"}
    expected = register(movie, fg.SequentialExecutor(), **options)
    difference = np.hypot(*np.moveaxis(register(movie, emulated(contraction=True), **options)[1] - expected[1], -1, 0))
    assert 0 < np.median(difference) < tolerances.BACKENDS_MEDIAN
    assert np.percentile(difference, 99) < tolerances.BACKENDS_99TH


# Batches, streams


@pytest.mark.parametrize("device", [{}, {"lazy": True}, {"lazy": True, "order": "reversed"}], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_the_batch_on_the_device_does_not_matter(batch, device):
    """Nor when the device does its work: as late as the waits between streams and host allow."""
    movie = recording(11, 26, 31, 2)
    options = {**FAST, "buffer_size": 6, "sigma": (1, 1, 0.5)}
    expected = register(movie, fg.SequentialExecutor(), **options)
    assert_same(register(movie, emulated(batch, **device), **options), expected)


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_the_batch_on_the_host_does_not_matter(batch):
    movie = recording(30, 26, 31)
    options = {**FAST, "buffer_size": 25}
    expected = fg.register(movie.frames, movie.truth, "sequential", **options)
    result = fg.register(movie.frames, movie.truth, emulated(2), batch=batch, **options)
    for array, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_reference_from_frames():
    movie = recording(12, 26, 31)
    results = [
        fg.register(movie.frames, slice(0, 6), executor, **FAST) for executor in (emulated(), fg.SequentialExecutor())
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])


def test_same_file_as_the_cpu(tmp_path):
    movie = recording(7, 26, 31, 2)
    tifffile.imwrite(tmp_path / "movie.tif", movie.frames, photometric="minisblack", metadata={"axes": "TYXC"})
    files = []
    for name, executor in (("gpu", emulated(2, lazy=True)), ("cpu", fg.SequentialExecutor())):
        files.append(tmp_path / f"{name}.tif")
        fg.register_file(
            tmp_path / "movie.tif",
            files[-1],
            executor,
            slice(0, 2),
            axes="TYXC",
            flow_file=tmp_path / f"{name}_flow.tif",
            **FAST,
        )
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (tmp_path / "gpu_flow.tif").read_bytes() == (tmp_path / "cpu_flow.tif").read_bytes()


@pytest.mark.skipif(fg.gpu_status().usable, reason="a GPU is usable, there is nothing to fall back from")
def test_same_file_and_one_warning_without_a_gpu(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", recording(7, 26, 31).frames)
    written = {}
    for name in ("multiprocessing", "gpu"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fg.register_file(tmp_path / "movie.tif", tmp_path / f"{name}.tif", name, slice(0, 2), n_workers=2, **FAST)
        written[name] = (tmp_path / f"{name}.tif").read_bytes()
        assert len(caught) == (name == "gpu")
    assert "using 'multiprocessing'" in str(caught[0].message)
    assert written["gpu"] == written["multiprocessing"]


def test_flow_stays_on_the_device_unless_it_is_kept():
    executor = emulated()
    Registration(
        ArrayReader(recording(5, 26, 31).frames), slice(0, 2), executor, Options(**FAST), keep_flow=False
    ).run()
    assert ("flow.cu", "interleave") not in executor._device.launches


# Memory


def recording_job(height, width, channels, options):
    reference = np.random.default_rng(0).random((height, width, channels), np.float32)
    return Job.from_raw(options=options, reference=reference)


@pytest.mark.parametrize(
    ("height", "width", "channels", "dtype", "options"),
    [
        (91, 93, 1, "uint16", {"eta": 0.9}),
        (30, 37, 1, "uint16", {}),
        (60, 62, 1, "uint8", {"gnc_schedule": (0, 1), "warping_steps": 1, "levels": 2, "eta": 0.95}),
        (60, 62, 2, "uint8", {"cc_initialization": True, "cc_hw": 32, "levels": 1}),
        (96, 112, 1, "uint16", {}),
        (96, 112, 1, "uint16", {"solver": "sor", "iterations": 1}),
        (96, 112, 2, "uint16", {"quality": "fast"}),
        (96, 112, 3, "float32", {"quality": "balanced"}),
        (96, 112, 1, "uint8", {"a_smooth": 0.5, "iterations": 1}),
        (96, 112, 2, "uint8", {"cc_initialization": True, "cc_hw": 32}),
        (96, 112, 1, "uint16", {"gnc_schedule": (0, 1), "warping_steps": 1, "min_level": 1}),
        (96, 112, 2, "uint8", {"solver": "multigrid", "levels": 1, "alpha": (100, 1)}),
    ],
    ids=str,
)
def test_memory_per_frame(height, width, channels, dtype, options):
    """The figure by which the batch is chosen, and that doctor prints, is what a frame takes."""
    options = Options(**options)
    job = recording_job(height, width, channels, options)
    peaks = []
    for count in (4, 8):
        executor = emulated(count)
        executor._device.shared_memory = OPT_IN_SHARED_MEMORY  # so that coefficients lie in device memory
        with executor:
            executor.start_recording(job)
            frames = np.random.default_rng(1).random((4 * count, height, width, channels)) * 255
            executor.register_batch(Batch(frames.astype(dtype), np.zeros((2, height, width), np.float32)))
            peaks.append(executor._device.peak_bytes)
    measured = (peaks[1] - peaks[0]) / 4
    paper = PaperDevice(OPT_IN_SHARED_MEMORY, executor._device.multiprocessors)
    assert frame_bytes(job, dtype, paper) == measured
    blank = blank_job(height, width, channels, options.replace(solver=job.options.solver))
    assert frame_bytes(blank, dtype, PaperDevice(OPT_IN_SHARED_MEMORY)) == measured


@pytest.mark.parametrize("options", [{}, {"sigma": (1, 1, 1)}, {"cc_initialization": True}], ids=str)
def test_memory_of_frames_that_come_preprocessed(options):
    """With planes of their own, uploaded beside the raw frames."""
    reference = np.random.default_rng(0).random((60, 62, 2), np.float32)
    planes = np.ascontiguousarray(np.moveaxis(reference, -1, 0))
    job = Job.from_preprocessed(options=Options(**options), reference=reference, reference_planes=planes)
    peaks = []
    for count in (4, 8):
        with emulated(count) as executor:
            executor.start_recording(job)
            frames = np.random.default_rng(1).random((4 * count, 60, 62, 2), np.float32)
            start = np.zeros((2, 60, 62), np.float32)
            executor.register_batch(Batch(frames, start, planes=np.ascontiguousarray(np.moveaxis(frames, -1, 1))))
            peaks.append(executor._device.peak_bytes)
    assert frame_bytes(job, np.float32) == (peaks[1] - peaks[0]) / 4


def test_memory_of_frames_that_are_warped_only():
    """With their flows, uploaded beside the raw frames, and not downloaded."""
    reference = np.random.default_rng(0).random((60, 62, 2), np.float32)
    job = WarpJob(options=Options(), reference=reference)
    peaks = []
    for count in (4, 8):
        with emulated(count) as executor:
            executor.start_recording(job)
            frames = np.random.default_rng(1).random((4 * count, 60, 62, 2)) * 255
            executor.register_batch(Batch(frames.astype(np.uint8), None, flow=np.zeros((4 * count, 2, 60, 62), "f4")))
            assert ("flow.cu", "interleave") not in executor._device.launches
            peaks.append(executor._device.peak_bytes)
    assert frame_bytes(job, np.uint8) == (peaks[1] - peaks[0]) / 4
    assert memory_key(job, "u1") != memory_key(WarpJob(options=Options(), reference=reference[1:]), "u1")
    assert memory_key(job, "u1") != memory_key(Job.from_raw(options=Options(), reference=reference), "u1")


def test_memory_is_counted_once_for_recordings_of_a_kind(monkeypatch):
    """pyflowreg begins a recording with every batch: the same size and options need no other count."""
    counted = []

    def counting(job, dtype, device):
        counted.append((job.reference.shape, np.dtype(dtype), job.options.alpha))
        return frame_bytes(job, dtype, device)

    monkeypatch.setattr(cuda_stream, "frame_bytes", counting)
    frames, planes, start = np.zeros((2, 26, 31, 1)), np.zeros((2, 26, 31, 1)), np.zeros((26, 31, 2))
    with emulated(None) as executor:
        for dtype, alpha, weight in (("u2", 4, [1]), ("u2", 4, [2]), ("u1", 4, [1]), ("u2", 2, [1]), ("u2", 4, [1])):
            images = np.random.default_rng(alpha).random((26, 31, 1))
            params = {**FAST, "alpha": alpha, "weight": weight}
            executor.process_batch(frames.astype(dtype), planes, images, images, start, flow_params=params)
    shape = 26, 31, 1
    assert counted == [(shape, np.dtype("u2"), 4.0), (shape, np.dtype("u1"), 4.0), (shape, np.dtype("u2"), 2.0)]


def test_the_key_of_the_memory_holds_all_that_changes_it():
    """Every option but the weights, the filter that a reference gets beside the options, and planes of the caller's."""
    job = recording_job(26, 31, 1, Options(**FAST))
    changes = {"const_assumption": "cs", "cc_initialization": True, "min_level": 0, "sigma": (1, 1, 0.5), "cc_hw": 16}
    others = [recording_job(26, 31, 1, Options(**{**FAST, name: value})) for name, value in changes.items()]
    wider = dataclasses.replace(job, preprocessing=others[3].preprocessing)
    own = Job.from_preprocessed(options=job.options, reference=job.reference, reference_planes=job.reference_planes)
    keys = [memory_key(one, "u2") for one in (job, *others, wider, own, recording_job(26, 32, 1, job.options))]
    assert len(set(keys)) == len(keys)
    assert memory_key(job, "u2") != memory_key(job, "u1")
    assert memory_key(recording_job(26, 31, 1, Options(**FAST, weight=(3,))), "u2") == keys[0]


def test_memory_per_frame_of_a_common_recording():
    assert frame_bytes(blank_job(512, 512, 1, Options()), np.uint16) <= 24e6


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("fault", ["none", "graph", "memory", "replay"])
def test_batches_of_one_size_are_captured(monkeypatch, lazy, fault):
    """From the second on, launches are replayed; what cannot be captured is launched; a fault loses nothing."""
    movie = recording(9, 26, 31)
    expected = register(movie, fg.SequentialExecutor(), **FAST)
    executor = emulated(2, lazy=lazy, fallback=True)
    device, graphs = executor._device, []
    capture_graph = device.capture_graph

    def watched(work):
        if fault == "graph":
            raise DeviceError("no graphs here")
        if fault == "memory" and not graphs:
            graphs.append("none")
            raise DeviceMemoryError("no memory here")
        result, replay = capture_graph(work)

        def counted():
            if fault == "replay" and len(graphs) == 2:
                device.fail_at(1, DeviceError("a fault"))
            graphs.append("replayed")
            replay()

        return result, counted

    monkeypatch.setattr(device, "capture_graph", watched)
    said = {
        "none": contextlib.nullcontext(),
        "graph": pytest.warns(RuntimeWarning, match="no graphs here; going on without a CUDA graph"),
        "memory": pytest.warns(RuntimeWarning, match="no memory here; going on without a CUDA graph"),
        "replay": pytest.warns(RuntimeWarning, match=r"a fault\); after \d+ frames, going on with 'multiprocessing'"),
    }
    with executor, said[fault]:
        assert_same(register(movie, executor, **FAST), expected)
    assert len(graphs) == {"none": 7, "graph": 0, "memory": 1, "replay": 3}[fault]


def test_the_larger_of_two_sizes_by_turns_is_captured(monkeypatch):
    """Batches of five frames are parts of three and of two."""
    movie, executor = recording(20, 26, 31), emulated(3)
    capture_graph, sizes = executor._device.capture_graph, []

    def watched(work):
        flow, replay = capture_graph(work)
        return flow, lambda: (sizes.append(flow.shape[0]), replay())

    monkeypatch.setattr(executor._device, "capture_graph", watched)
    result = fg.register(movie.frames, movie.truth, executor, buffer_size=5, **FAST)
    assert sizes.count(3) >= 3
    expected = fg.register(movie.frames, movie.truth, "sequential", buffer_size=5, **FAST)
    for array, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_launches_of_a_batch():
    """512 x 512, quality: eleven levels in one launch, eight with two launches beside the solver's, and eleven more."""
    device = LaunchLog(PaperDevice())
    task = DeviceTask(device, recording_job(512, 512, 1, Options()), graphs=False)
    device.launches.clear()
    task.run(device.empty((4, 512, 512, 1), np.uint16), device.empty((1, 2, 512, 512), np.float32))
    launches = Counter(launch.kernel for launch in device.launches)
    assert launches["resample"] == 3  # Gaussian, pyramid, start flow
    assert launches["descend<GradientConstancy, 1>"] == 1
    assert launches["upsample_and_linearize<GradientConstancy>"] == 8
    assert launches["add_smoothed<false>"] == 8
    assert launches.total() <= 52


@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "sor"}, {"quality": "fast"}, {"solver": "multigrid"}, {"gnc_schedule": (0, 1), "warping_steps": 2}],
    ids=str,
)
def test_nothing_is_uploaded_with_a_batch(options):
    """But the frames: what is allocated among them would stay between the blocks that they free."""
    device = PaperDevice()
    task = DeviceTask(device, recording_job(300, 200, 1, Options(**options)), graphs=False)
    copies = []
    device.copy = lambda *what: copies.append(what)
    task.run(device.empty((4, 300, 200, 1), np.uint16), device.empty((1, 2, 300, 200), np.float32))
    assert copies == []


def test_batch_from_free_memory():
    assert device_batch(10**9, 10**7, 132) == int(MEMORY_FRACTION * 100)
    assert device_batch(10**6, 10**7, 132) == 1
    assert device_batch(10**12, 10**7, 132) == 132
    assert device_batch(10**12, 10**7, 40) == LARGEST_BATCH // 40 * 40
    assert device_batch(10**9, 10**7, 40) == 40
    assert device_batch(10**9, 10**7, 1) == 60


def test_nothing_stays_on_the_device():
    executor = emulated()
    fg.register(recording(4, 26, 31).frames, slice(0, 2), executor, **FAST)
    executor.cleanup()
    assert executor._device.live_bytes == 0


def test_out_of_memory_halves_the_batch():
    movie = recording(16, 26, 31)
    expected = fg.register(movie.frames, movie.truth, "sequential", **FAST)
    generous = emulated(16)
    register(movie, generous, **FAST)
    tight = emulated(16, memory=int(0.4 * generous._device.peak_bytes))
    calls = []
    with pytest.warns(RuntimeWarning) as caught:
        result = fg.register(movie.frames, movie.truth, tight, progress=lambda *call: calls.append(call), **FAST)
    messages = {str(warning.message) for warning in caught}
    assert messages <= {
        f"{n} frames do not fit into the memory of emulated device; going on with {n // 2} at a time"
        for n in (16, 8, 4)
    }
    for array, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(array, other)
    assert calls[-1] == ("frames", 16, 16)


def test_out_of_memory_for_one_frame():
    """The device cannot do it at all: the CPU does, or an error says so."""
    movie = recording(4, 26, 31)
    used = emulated(1)
    register(movie, used, **FAST)
    memory = int(0.7 * used._device.peak_bytes)
    with pytest.raises(RuntimeError, match=r"executor='gpu' cannot be used: .*memory"):
        register(movie, emulated(1, memory=memory), **FAST)
    executor = emulated(1, fallback=True, memory=memory)
    with executor, pytest.warns(RuntimeWarning, match=r"memory.*; using 'multiprocessing'"):
        result = register(movie, executor, **FAST)
    assert_same(result, register(movie, fg.SequentialExecutor(), **FAST))
    assert executor.backend == "multiprocessing"


# Faults


def launches_of(movie, **options):
    executor = emulated(2)
    register(movie, executor, **options)
    return executor._device.launches.total()


@pytest.mark.parametrize("lazy", [False, True], ids=["at once", "lazy"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_fault_of_the_device(share, lazy):
    """Finished frames stay, the CPU does the rest, and nobody can tell from the result."""
    movie = recording(9, 26, 31)
    options = {**FAST, "buffer_size": 5}
    expected = register(movie, fg.SequentialExecutor(), **options)
    executor = emulated(2, fallback=True, lazy=lazy)
    executor._device.fail_at(1 + int(share * launches_of(movie, **options)), DeviceError("the card fell off the bus"))
    calls = []
    with warnings.catch_warnings(record=True) as caught, executor:
        warnings.simplefilter("always")
        result = register(movie, executor, lambda *call: calls.append(call), **options)
    assert_same(result, expected)
    assert [str(warning.message) for warning in caught if "cannot be used" in str(warning.message)] == [
        str(caught[0].message)
    ]
    assert "the card fell off the bus" in str(caught[0].message)
    assert calls[-1] == ("frames", 9, 9)
    finished = [count for stage, count, _ in calls if stage == "frames"]
    assert finished == sorted(finished)
    assert result[2].executor == ("multiprocessing" if share == 0 else "gpu, then multiprocessing")


def warped(executor, before=None):
    """Registered frames and statistics of a batch that comes with its flows; `before` is called ahead of it."""
    movie = recording(9, 26, 31)
    flow = 3 * np.random.default_rng(2).standard_normal((9, 2, 26, 31)).astype(np.float32)
    with executor:
        executor.start_recording(WarpJob(options=Options(), reference=movie.truth[..., None]))
        if before is not None:
            before()
        result = executor.register_batch(Batch(movie.frames[..., None], None, flow=flow))
        assert result.flow is None
        return result.registered.copy(), result.statistics.copy()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_fault_of_the_device_while_it_warps(share):
    registered, statistics = warped(fg.SequentialExecutor())
    launches, device = [], emulated(2)
    result = warped(device, lambda: launches.append(device._device.launches.total()))
    np.testing.assert_array_equal(result[0], registered)
    count = device._device.launches.total() - launches[0]
    failing, error = emulated(2, fallback=True), DeviceError("the card fell off the bus")
    with pytest.warns(RuntimeWarning, match="the card fell off the bus"):
        found, found_statistics = warped(failing, lambda: failing._device.fail_at(1 + int(share * count), error))
    np.testing.assert_array_equal(found, registered)
    np.testing.assert_allclose(found_statistics, statistics, rtol=1e-9, atol=1e-12)
    assert failing.backend == ("multiprocessing" if share == 0 else "gpu, then multiprocessing")


def test_fault_without_fallback():
    executor, movie = emulated(2), recording(6, 26, 31)
    executor._device.fail_at(launches_of(movie, **FAST) // 2, DeviceError("the card fell off the bus"))
    with pytest.raises(RuntimeError, match="executor='gpu' cannot be used: the card fell off the bus") as raised:
        register(movie, executor, **FAST)
    assert isinstance(raised.value.__cause__, DeviceError)


def test_fault_in_the_middle_of_a_mean():
    """Flows that the device had averaged, and did not hand in, are computed again."""
    movie = recording(8, 26, 31)
    options = Options(**FAST)
    job = recording_job(26, 31, 1, options)
    start = np.zeros((2, 26, 31), np.float32)
    means = []
    for executor in (fg.SequentialExecutor(), emulated(2, fallback=True)):
        mean = FlowMean()
        with executor, contextlib.suppress(RuntimeWarning):
            executor.start_recording(job)
            if executor.name == "gpu":
                before = executor._device.launches.total()
                executor.register_batch(Batch(movie.frames[..., None], start))
                executor._device.fail_at((executor._device.launches.total() - before) - 5, DeviceError("lost"))
                with pytest.warns(RuntimeWarning, match="after 14 frames"):
                    executor.register_batch(Batch(movie.frames[..., None], start, mean=mean, averaged=7))
            else:
                executor.register_batch(Batch(movie.frames[..., None], start, mean=mean, averaged=7))
        assert mean.count == 7
        means.append(mean.planes(start))
    np.testing.assert_array_equal(*means)


def test_interruption_leaves_nothing_queued():
    executor = emulated(2, lazy=True)

    def stop(stage, finished, total):
        raise KeyboardInterrupt

    movie = recording(9, 26, 31)
    with pytest.raises(KeyboardInterrupt):
        fg.register(movie.frames, movie.truth, executor, progress=stop, **FAST)
    expected = register(movie, fg.SequentialExecutor(), **FAST)
    assert_same(register(movie, executor, **FAST), expected)  # and it can go on


# Arguments


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="batch=0 is below 1"):
        emulated(0)
    with pytest.raises(TypeError, match=r"batch=2\.5 is not an integer"):
        emulated(2.5)
    executor = emulated()
    job = recording_job(26, 31, 1, Options(**FAST))
    start = np.zeros((2, 26, 31), np.float32)
    with pytest.raises(RuntimeError, match="before start_recording"):
        executor.register_batch(Batch(np.zeros((3, 26, 31, 1), "u1"), start))
    executor.start_recording(job)
    with pytest.raises(ValueError, match="preprocessing or planes"):
        executor.register_batch(Batch(np.zeros((3, 26, 31, 1), "u1"), start, planes=np.zeros((3, 1, 26, 31), "f4")))
    executor.start_recording(
        Job.from_preprocessed(
            options=job.options, reference=job.reference, reference_planes=np.zeros((1, 26, 31), "f4")
        )
    )
    with pytest.raises(ValueError, match="planes hold 2 frames, expected 3"):
        executor.register_batch(Batch(np.zeros((3, 26, 31, 1), "u1"), start, planes=np.zeros((2, 1, 26, 31), "f4")))


def test_info_names_the_device():
    assert emulated().get_info()["description"] == (
        "Batches in the memory of an NVIDIA GPU, 2 workers in reserve for emulated device"
    )
