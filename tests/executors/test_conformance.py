"""One conformance suite over all executors; the sequential one, itself held against known motion, is the yardstick."""

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import threading
import warnings

import numpy as np
import pytest

import flowreg_gpu as fg
from flowreg_gpu.engine.batch import Batch, FlowMean, unflagged
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import EXECUTORS, create_executor, gpu_status
from flowreg_gpu.options import Options
from flowreg_gpu.synthetic import end_point_error
from flowreg_gpu.workers.pool import default_workers
from tests import tolerances
from tests.emulation import EmulatedDevice
from tests.movies import EDGE, LEVELS, recording
from tests.programs import LIMIT, held_blocks

NAMES = ("sequential", "threading", "multiprocessing", "gpu")
REAL_DEVICE = [pytest.param("cuda", marks=pytest.mark.gpu)] if gpu_status().usable else []
NO_GPU = r"executor='gpu' cannot be used \(.+\); using 'multiprocessing'"
FAST = {"alpha": 4, "levels": 3, "min_level": 1}

needs_fallback = pytest.mark.skipif(gpu_status().usable, reason="a GPU is usable, there is nothing to fall back from")


def gpu_warning():
    """The warning that an executor 'gpu' gives here; none where there is a GPU."""
    return contextlib.nullcontext() if gpu_status().usable else pytest.warns(RuntimeWarning, match=NO_GPU)


def make(name, n_workers=2):
    if name == "emulated":  # in parts of two frames, so that every batch has several
        return fg.GPUExecutor(n_workers, device=EmulatedDevice(), batch=2, fallback=False)
    if name == "cuda":
        return fg.GPUExecutor(n_workers, batch=2, fallback=False)
    with gpu_warning() if name == "gpu" else contextlib.nullcontext():
        return create_executor(name, n_workers)


@pytest.fixture(scope="module", params=[*NAMES, "emulated", *REAL_DEVICE])
def executor(request):
    """Each executor, one instance for all tests of this module, as one serves many batches of a recording."""
    with make(request.param) as running:
        yield running


@pytest.fixture
def sequential():
    with fg.SequentialExecutor() as yardstick:
        yield yardstick


def processes_and_blocks():
    children = {child.pid for child in multiprocessing.active_children()}
    return children, held_blocks()


@pytest.fixture
def nothing_left():
    """No process and no shared-memory block more than before (other tests share running workers)."""
    before = processes_and_blocks()
    yield
    assert processes_and_blocks() == before


def arguments(n_frames=3, height=26, width=31, channels=None, dtype="float32", seed=1):
    """What pyflowreg hands to an executor: raw and preprocessed frames and reference, and a start flow."""
    movie = recording(n_frames, height, width, channels, dtype, seed=seed)
    low, high = LEVELS[dtype]
    start = np.stack([np.full((height, width), 0.25), np.full((height, width), -0.5)], axis=-1)
    proc, reference_proc = ((image - low) / (high - low) for image in (movie.frames.astype(float), movie.truth))
    return [movie.frames, proc, movie.truth, reference_proc, start]


def run(executor, given, interpolation="cubic", **flow_params):
    return executor.process_batch(*given, interpolation_method=interpolation, flow_params=flow_params)


def assert_same(result, expected):
    for array, other in zip(result, expected, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


# The yardstick


def test_sequential_finds_known_motion(sequential):
    movie = recording(6, dtype="float32")
    low, high = LEVELS["float32"]
    proc, reference_proc = ((image - low) / (high - low) for image in (movie.frames, movie.truth))
    start = np.zeros((48, 56, 2))
    registered, flow = run(sequential, [movie.frames, proc, movie.truth, reference_proc, start])
    assert end_point_error(flow, movie.flow, EDGE) < 0.2  # 0.14 measured, motion 1.3 px; nothing is filtered here
    inner = (slice(None), slice(6, -6), slice(6, -6))
    before = np.abs(movie.frames - movie.truth)[inner].mean()
    assert np.abs(registered[..., 0] - movie.truth)[inner].mean() < 0.2 * before
    np.testing.assert_array_equal(  # the flow means what fg.warp takes
        registered, fg.warp(movie.frames[..., None], flow, movie.truth)
    )


def test_identity_for_equal_images(executor):
    given = arguments(channels=2)
    given[0][:], given[1][:], given[4][:] = given[2], given[3], 0
    registered, flow = run(executor, given)
    np.testing.assert_array_equal(registered, given[0])
    np.testing.assert_array_equal(flow, 0)


# Shapes and types


@pytest.mark.parametrize("channels", [None, 1, 2, 3])
def test_shapes(executor, sequential, channels):
    given = arguments(channels=channels)
    registered, flow = run(executor, given, **FAST)
    assert registered.shape == (3, 26, 31, channels or 1)
    assert flow.shape == (3, 26, 31, 2)
    assert flow.dtype == np.float32
    assert flow.any()
    assert_same((registered, flow), run(sequential, given, **FAST))


def test_one_channel_may_be_left_out_anywhere(executor):
    flat, full = arguments(), arguments(channels=1)
    expected = run(executor, full, **FAST)
    for choice in ([0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]):
        mixed = [(flat, full)[side][place] for place, side in enumerate(choice)]
        assert_same(run(executor, [*mixed, full[4]], **FAST), expected)


@pytest.mark.parametrize("dtype", list(LEVELS))
def test_dtype_is_kept(executor, sequential, dtype):
    given = arguments(dtype=dtype)
    registered, flow = run(executor, given, **FAST)
    assert registered.dtype == np.dtype(dtype)
    assert flow.dtype == np.float32
    assert_same((registered, flow), run(sequential, given, **FAST))
    closer = np.abs(registered[..., 0].astype(float) - given[2]).mean()
    assert closer < 0.6 * np.abs(given[0].astype(float) - given[2]).mean()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_type_of_the_preprocessed_arrays(executor, dtype):
    given = arguments()
    expected = run(executor, given, **FAST)
    assert_same(run(executor, [given[0], *(item.astype(dtype) for item in given[1:])], **FAST), expected)


def test_one_frame(executor, sequential):
    given = arguments(n_frames=5)
    every = run(sequential, given, **FAST)
    one = [given[0][3:4], given[1][3:4], *given[2:]]
    assert_same(run(executor, one, **FAST), [item[3:4] for item in every])


def test_memory_order_does_not_matter(executor):
    given = arguments(channels=2)
    expected = run(executor, given, **FAST)
    assert_same(run(executor, [np.asfortranarray(item) for item in given], **FAST), expected)
    assert_same(run(executor, [np.flip(np.flip(item, 0).copy(), 0) for item in given], **FAST), expected)


def test_batches_of_other_sizes_and_types_follow_each_other(executor, sequential):
    for n_frames, channels, dtype, width in ((4, 2, "uint16", 31), (2, None, "float32", 31), (5, 3, "uint8", 40)):
        given = arguments(n_frames, 26, width, channels, dtype)
        assert_same(run(executor, given, **FAST), run(sequential, given, **FAST))


def test_results_are_not_overwritten_by_the_next_batch(executor):
    first = run(executor, arguments(), **FAST)
    kept = [item.copy() for item in first]
    run(executor, arguments(seed=7), **FAST)
    assert_same(first, kept)


def test_inputs_are_not_modified(executor):
    given = arguments(channels=2, dtype="float32")
    given[0][1, 3:5, 4] = np.nan
    before = [item.copy() for item in given]
    for item in given:
        item.flags.writeable = False
    run(executor, given, **FAST)
    assert_same(given, before)


# Parameters


def weight_map(channels=2):
    y, x = np.mgrid[:26, :31]
    return np.stack([0.2 + 0.8 * (x > 12), 0.2 + 0.8 * (y < 9), 0.5 + 0 * x], axis=-1)[..., :channels]


@pytest.mark.parametrize(
    ("channels", "flow_params"),
    [
        (2, {"alpha": (2, 9)}),
        (2, {"weight": [0.8, 0.2]}),
        (2, {"weight": np.array([3, 1])}),
        (2, {"weight": weight_map()}),
        (1, {"weight": weight_map(1)}),
        (1, {"weight": weight_map(1)[..., 0]}),
        (2, {"min_level": 2}),
        (2, {"levels": 2}),
        (2, {"eta": 0.6}),
        (2, {"const_assumption": "gray"}),
        (2, {"const_assumption": "cs"}),
        (2, {"a_smooth": 0.5}),
        (2, {"a_data": 0.9}),
        (2, {"gnc_schedule": (0, 0.5, 1), "warping_steps": 2, "min_level": 2}),
        (1, {"cc_initialization": True}),
        (2, {"cc_initialization": True, "cc_hw": (20, 24), "cc_up": 5}),
        (2, {"solver": "sor", "iterations": 20, "update_lag": 3}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_flow_parameters_are_honoured(executor, sequential, channels, flow_params):
    given = arguments(channels=channels)
    registered, flow = run(executor, given, **flow_params)
    assert_same((registered, flow), run(sequential, given, **flow_params))
    _, plain = run(sequential, given, **({"solver": "sor"} if "solver" in flow_params else {}))
    assert np.abs(flow - plain).mean() > 1e-3
    assert end_point_error(flow, recording(3, 26, 31).flow, EDGE) < 0.6  # 1.2 px of motion; 0.45 where alpha is (2, 9)


def test_parameters_that_are_none_are_left_at_their_defaults(executor):
    given = arguments(channels=2)
    expected = run(executor, given)
    assert_same(run(executor, given, weight=None, gnc_schedule=None, warping_steps=None, min_level=-1), expected)
    assert_same(executor.process_batch(*given), expected)
    assert_same(executor.process_batch(*given, None, None, "cubic", None, n_jobs=3, anything=object()), expected)


def test_the_start_flow_is_used(executor, sequential):
    movie = recording(2, 26, 31, dtype="float32", amplitude=2.5)  # 3.5 px: too far for a pyramid of two levels
    given = arguments(n_frames=2)
    low, high = LEVELS["float32"]
    given[0], given[1] = movie.frames, (movie.frames - low) / (high - low)
    errors = []
    for start in (movie.flow[1], np.zeros((26, 31, 2))):
        given[4] = start
        _, flow = run(executor, given, levels=1)
        np.testing.assert_array_equal(flow, run(sequential, given, levels=1)[1])
        errors.append(end_point_error(flow[1], movie.flow[1], EDGE))
    assert errors[0] < 0.15  # 0.07 and 0.49 measured
    assert errors[1] > 0.3


@pytest.mark.parametrize("interpolation", ["cubic", "linear", "nearest"])
def test_interpolation(executor, interpolation):
    given = arguments(channels=2, dtype="uint16")
    registered, flow = run(executor, given, interpolation, **FAST)
    np.testing.assert_array_equal(registered, fg.warp(given[0], flow, given[2], interpolation))
    if interpolation == "nearest":
        assert set(np.unique(registered)) <= set(np.unique(given[0])) | set(np.unique(given[2]))


def test_nan_pixels_come_from_the_reference(executor, sequential):
    given = arguments(channels=2)
    holes = np.zeros(given[0].shape, bool)
    holes[0, 5:8, 6:9], holes[2, 20, 3, 1] = True, True
    patched = [given[0].copy(), given[1].copy(), *given[2:]]
    for place in (0, 1):
        patched[place][holes] = np.broadcast_to(given[place + 2], holes.shape)[holes]
        given[place][holes] = np.nan
    given[0][2, 20, 3, 1], given[1][2, 20, 3, 1] = np.inf, -np.inf
    result = run(executor, given, **FAST)
    assert np.isfinite(result[0]).all()
    assert np.isfinite(result[1]).all()
    assert_same(result, run(sequential, patched, **FAST))


def test_constant_frame_stays_as_it_is(executor):
    given = arguments(dtype="uint8")
    given[0][1], given[1][1] = 77, 0.3
    registered, flow = run(executor, given, **FAST)
    assert (registered[1] == 77).all()
    assert not flow[1].any()
    assert flow[2].any()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_flagged_frames_have_no_flow_and_do_not_count_in_the_mean(executor, sequential):
    movie = recording(7, 26, 31, dtype="float32")
    movie.frames[[1, 4]] = 7
    movie.frames[[2, 5], 12, 12] = 1e25  # finite, but its square is not: the flow leaves the frame
    options = Options(**FAST, const_assumption="gray")
    job = Job.from_raw(options=options, reference=movie.truth[..., None].astype(np.float32))
    results, means = [], []
    for one in (executor, sequential):
        mean = FlowMean()
        one.start_recording(job)
        batch = Batch(movie.frames[..., None], np.ones((2, 26, 31), np.float32), mean=mean, averaged=4)
        results.append([array.copy() for array in one.register_batch(batch)])
        means.append(mean)
    (registered, flow, statistics), expected = results
    assert_same([registered, flow], expected[:2])
    np.testing.assert_allclose(statistics, expected[2], rtol=0, atol=tolerances.DEVICE_STATISTICS)
    assert (
        unflagged(statistics).tolist() == [True, False, False, True, False, False, True] == flow.any((1, 2, 3)).tolist()
    )
    assert means[0].count == means[1].count == 2
    np.testing.assert_array_equal(means[0].planes(batch.start), means[1].planes(batch.start))
    np.testing.assert_allclose(means[0].planes(batch.start), np.moveaxis(flow[[3, 6]].mean(0), -1, 0), atol=1e-6)


def test_integers_saturate(executor):
    given = arguments(dtype="uint8")
    given[0][:] = np.where(given[0] > 60, 255, 0)  # edges at which the cubic kernel overshoots on either side
    registered, flow = run(executor, given, **FAST)
    exact = fg.warp(given[0].astype(np.float32), flow, given[2].astype(np.float32))
    assert exact.max() > 256
    assert exact.min() < -1
    np.testing.assert_array_equal(registered[..., 0], np.clip(np.rint(exact), 0, 255))


# The interface


def test_progress(executor):
    calls = []
    given = arguments(n_frames=9)
    executor.process_batch(*given, progress_callback=calls.append, flow_params=FAST)
    assert sum(calls) == 9
    assert all(call > 0 for call in calls)


def test_info(executor):
    info = executor.get_info()
    assert set(info) == {"name", "type", "n_workers", "parallel", "description", "features"}
    assert info["name"] == executor.name
    assert info["type"] == type(executor).__name__
    assert info["n_workers"] == executor.n_workers == (1 if executor.name == "sequential" else 2)
    assert info["parallel"] is (executor.name != "sequential")
    assert f"{executor.n_workers} worker" in info["description"]
    assert all(isinstance(feature, str) for feature in info["features"])
    assert info["features"] is not executor.get_info()["features"]


@pytest.mark.parametrize("name", NAMES)
def test_context_manager_cleanup_and_reuse(name, nothing_left):
    given = arguments()
    before = processes_and_blocks()
    executor = make(name, 1)
    assert processes_and_blocks() == before  # nothing starts before it is needed
    with executor as entered:
        assert entered is executor
        expected = run(executor, given, **FAST)
    executor.cleanup()  # a second time
    assert_same(run(executor, given, **FAST), expected)  # sets itself up
    executor.setup()  # already done
    executor.cleanup()
    executor.cleanup()


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    kind = EXECUTORS[name]
    assert kind.name == name
    assert issubclass(kind, fg.BaseExecutor)
    assert isinstance(make(name), kind)


def test_default_number_of_workers():
    assert fg.ThreadingExecutor().n_workers == default_workers()
    assert fg.MultiprocessingExecutor().n_workers == default_workers()
    assert fg.SequentialExecutor(5).n_workers == 1


@pytest.mark.parametrize("name", NAMES)
def test_number_of_workers_is_checked(name):
    for number in (0, -2):
        with pytest.raises(ValueError, match=f"n_workers={number} is below 1"):
            create_executor(name, number)


def test_register_makes_an_executor_known(monkeypatch):
    class Twice(fg.SequentialExecutor):
        name = "twice"

    monkeypatch.delitem(EXECUTORS, "twice", raising=False)
    with pytest.raises(ValueError, match=r"executor='twice' is not one of auto, .*sequential"):
        create_executor("twice")
    Twice.register()
    try:
        assert isinstance(create_executor("twice"), Twice)
    finally:
        del EXECUTORS["twice"]


def test_create_executor():
    instance = fg.ThreadingExecutor(2)
    assert create_executor(instance) is instance
    with pytest.raises(ValueError, match="n_workers=3 was given beside an executor that has 2"):
        create_executor(instance, 3)
    with pytest.raises(ValueError, match=r"executor='cuda' is not one of auto, .*gpu"):
        create_executor("cuda")
    expected = fg.GPUExecutor if gpu_status().usable else fg.MultiprocessingExecutor
    assert isinstance(create_executor("auto", 1), expected)  # and without a warning


def test_the_interface_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        fg.BaseExecutor()


# Refusals


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (26, 31), r"batch has shape \(26, 31\), expected \(T, H, W, C\) or \(T, H, W\)"),
        (0, (0, 26, 31), r"batch has shape \(0, 26, 31, 1\), expected .* with frames in it"),
        (0, (2, 3, 26, 31, 1), r"batch has shape \(2, 3, 26, 31, 1\)"),
        (1, (2, 26, 31), r"batch_proc has shape \(2, 26, 31, 1\), expected \(3, 26, 31, 1\)"),
        (1, (3, 26, 31, 2), r"batch_proc has shape \(3, 26, 31, 2\), expected \(3, 26, 31, 1\)"),
        (2, (31, 26), r"reference_raw has shape \(31, 26, 1\), expected \(26, 31, 1\)"),
        (3, (26, 31, 2), r"reference_proc has shape \(26, 31, 2\), expected \(26, 31, 1\)"),
        (4, (2, 26, 31), r"w_init has shape \(2, 26, 31\), expected \(26, 31, 2\)"),
        (4, (3, 26, 31, 2), r"w_init has shape \(3, 26, 31, 2\), expected \(26, 31, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(executor, place, shape, message):
    given = arguments()
    given[place] = np.zeros(shape)
    with pytest.raises(ValueError, match=message):
        run(executor, given, **FAST)


@pytest.mark.parametrize(("place", "name"), [(2, "reference_raw"), (3, "reference_proc"), (4, "w_init")])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_must_be_finite(executor, place, name, value):
    given = arguments(dtype="float64")
    given[place][3, 4] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite values"):
        run(executor, given, **FAST)


@pytest.mark.parametrize(
    ("flow_params", "error", "message"),
    [
        ({"alfa": 3, "beta": 1}, TypeError, "unknown option 'alfa', 'beta'; the options are .*alpha"),
        ({"alpha": -1}, ValueError, "alpha=-1 is not"),
        ({"weight": [1, 2, 3]}, ValueError, r"weight has shape \(3,\), expected \(2,\) or \(26, 31\) or"),
        ({"weight": np.ones((31, 26, 2))}, ValueError, r"weight has shape \(31, 26, 2\), expected"),
        ({"const_assumption": "grey"}, ValueError, "const_assumption='grey' is not one of gc, gray, cs"),
    ],
)
def test_wrong_parameters(executor, flow_params, error, message):
    with pytest.raises(error, match=message):
        run(executor, arguments(channels=2), **flow_params)


def test_wrong_interpolation(executor):
    with pytest.raises(ValueError, match="interpolation_method='lanczos' is not one of cubic, linear, nearest"):
        run(executor, arguments(), "lanczos")


def own_function(*_, **__):
    raise AssertionError("never called")


def test_functions_of_the_caller(executor):
    given = arguments()
    for name in ("get_displacement_func", "imregister_func"):
        with pytest.raises(ValueError, match=f"{name}=.*own_function.* cannot be honoured"):
            executor.process_batch(*given, **{name: own_function}, flow_params=FAST)

    def get_displacement(*_):
        raise AssertionError("this package's runs in its place")

    get_displacement.__module__ = "pyflowreg.core.optical_flow"
    result = executor.process_batch(*given, get_displacement_func=get_displacement, flow_params=FAST)
    assert_same(result, run(executor, given, **FAST))


def test_a_batch_needs_a_recording():
    with pytest.raises(RuntimeError, match="before start_recording"):
        fg.SequentialExecutor().register_batch(
            Batch(np.zeros((1, 20, 20, 1), "uint8"), np.zeros((2, 20, 20), "float32"))
        )


def recording_job(movie, options):
    """What all batches of a movie with a given reference share."""
    return Job.from_raw(options=options, reference=np.float32(movie.truth)[..., None])


@pytest.mark.parametrize("averaged", [0, 2, 5])
def test_flows_for_the_mean_alone(executor, sequential, averaged):
    movie, start = recording(5, 26, 31), np.zeros((2, 26, 31), np.float32)
    batch = Batch(movie.frames[..., None], start)
    sequential.start_recording(recording_job(movie, Options(**FAST)))
    kept = sequential.register_batch(batch)
    expected, mean = FlowMean(), FlowMean()
    expected.add(kept.flow[5 - averaged :], kept.statistics[5 - averaged :])
    executor.start_recording(recording_job(movie, Options(**FAST)))
    result = executor.register_batch(dataclasses.replace(batch, keep_flow=False, mean=mean, averaged=averaged))
    assert result.flow is None
    assert mean.count == averaged
    np.testing.assert_array_equal(result.registered, kept.registered)
    if averaged:
        np.testing.assert_array_equal(mean.planes(start), expected.planes(start))


class Measured(fg.SequentialExecutor):
    """Notes how many frames have room for their flow."""

    def _allocate(self, name, shape, dtype):
        if name == "flow":
            self.rows = shape[0]
        return super()._allocate(name, shape, dtype)


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [({}, 5), ({"keep_flow": False}, 0), ({"keep_flow": False, "mean": FlowMean(), "averaged": 2}, 2)],
)
def test_memory_of_flows_that_nobody_wants(wanted, rows):
    movie, executor = recording(5, 26, 31), Measured()
    executor.start_recording(recording_job(movie, Options(**FAST)))
    executor.register_batch(Batch(movie.frames[..., None], np.zeros((2, 26, 31), np.float32), **wanted))
    assert executor.rows == rows


# The same bits from everyone


def test_identical_bits_for_every_number_of_workers(sequential, nothing_left):
    given = arguments(n_frames=7, channels=2, dtype="uint16")
    expected = run(sequential, given)
    for name, n_workers in (("threading", 1), ("threading", 3), ("multiprocessing", 1), ("multiprocessing", 3)):
        with make(name, n_workers) as executor:
            assert_same(run(executor, given), expected)


# Faults


def broken_job(given):
    """A recording whose frames come preprocessed; its batch then comes with too few of them."""
    reference, planes = np.float32(given[2])[..., None], np.float32(given[3])[None]
    return Job.from_preprocessed(options=Options(**FAST), reference=reference, reference_planes=planes)


@pytest.mark.parametrize("name", NAMES)
def test_exception_in_a_worker(name, nothing_left):
    given = arguments(n_frames=5)
    executor = make(name)

    def faulty_batch():
        with executor:
            executor.start_recording(broken_job(given))
            start, planes = np.zeros((2, 26, 31), np.float32), np.zeros((2, 1, 26, 31), np.float32)
            executor.register_batch(Batch(given[0][..., None], start, planes=planes))

    with pytest.raises(IndexError, match="out of bounds"):
        faulty_batch()


def test_batch_without_its_planes():
    given = arguments(n_frames=5)
    with make("sequential") as executor:
        executor.start_recording(broken_job(given))
        with pytest.raises(ValueError, match="planes"):
            executor.register_batch(Batch(given[0][..., None], np.zeros((2, 26, 31), np.float32)))


def test_exception_in_progress(executor, sequential):
    given = arguments(n_frames=6)

    def stop(finished):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        executor.process_batch(*given, progress_callback=stop, flow_params=FAST)
    assert_same(run(executor, given, **FAST), run(sequential, given, **FAST))  # and it goes on


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("name", ["multiprocessing", pytest.param("gpu", marks=needs_fallback)])
def test_killed_worker(name, sequential, nothing_left):
    given = arguments(n_frames=40)
    before = processes_and_blocks()[0]
    executor = make(name)

    def kill_one(finished):
        victims = [child for child in multiprocessing.active_children() if child.pid not in before]
        for victim in victims[:1]:  # none where all are dead and only their reports are still read
            victim.kill()
            victim.join()

    with executor:
        with pytest.raises(RuntimeError, match=r"worker process \d+ was killed by SIGKILL"):
            executor.process_batch(*given, progress_callback=kill_one, flow_params=FAST)
        assert processes_and_blocks()[0] == before  # the others were stopped
        assert_same(run(executor, given, **FAST), run(sequential, given, **FAST))  # by new workers


def test_register_leaves_nothing_when_a_worker_fails(nothing_left):
    movie = recording(30, 26, 31)
    before = processes_and_blocks()[0]

    def kill_all(stage, finished, total):
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.kill()

    with pytest.raises(RuntimeError, match=r"worker process \d+"):
        fg.register(movie.frames, movie.truth, "multiprocessing", n_workers=2, progress=kill_all, **FAST)


# One run at a time


IN_USE = r"this \w+ is in use by another run, .* each thread needs an executor of its own"


@pytest.mark.parametrize("running", ["process_batch", "register"])
def test_a_second_thread_is_refused(executor, sequential, running):
    given, movie = arguments(n_frames=6), recording(6, 26, 31)
    began, finish, results = threading.Event(), threading.Event(), []

    def hold(*_):
        began.set()
        assert finish.wait(LIMIT)

    def first():
        if running == "register":
            results.append(fg.register(movie.frames, movie.truth, executor, progress=hold, **FAST))
        else:
            results.append(executor.process_batch(*given, progress_callback=hold, flow_params=FAST))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert began.wait(LIMIT)
        with pytest.raises(RuntimeError, match=IN_USE):
            run(executor, given, **FAST)
        with pytest.raises(RuntimeError, match=IN_USE):
            fg.register(movie.frames, movie.truth, executor, **FAST)
        with pytest.raises(RuntimeError, match=IN_USE), executor:
            pass
        with pytest.raises(RuntimeError, match=IN_USE):
            executor.__exit__(None, None, None)
    finally:
        finish.set()
        thread.join(LIMIT)
    if running == "register":
        assert_same(results[0], fg.register(movie.frames, movie.truth, sequential, **FAST))
    else:
        assert_same(results[0], run(sequential, given, **FAST))
    assert_same(run(executor, given, **FAST), run(sequential, given, **FAST))  # it is free again


def test_a_callback_is_refused_the_executor_that_calls_it(executor, sequential):
    given, refused = arguments(n_frames=4), []

    def another(finished):
        with pytest.raises(RuntimeError, match=IN_USE):
            run(executor, given, **FAST)
        refused.append(finished)

    result = executor.process_batch(*given, progress_callback=another, flow_params=FAST)
    assert sum(refused) == 4
    assert_same(result, run(sequential, given, **FAST))


# The GPU and its absence


@needs_fallback
def test_gpu_warns_once_and_falls_back(sequential, nothing_left):
    movie = recording(5, 26, 31)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fg.register(movie.frames, movie.truth, "gpu", n_workers=2, batch=2, **FAST)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert gpu_status().reason in str(caught[0].message)
    assert "multiprocessing" in str(caught[0].message)
    assert_same(result, fg.register(movie.frames, movie.truth, sequential, **FAST))


@needs_fallback
def test_gpu_without_fallback():
    with pytest.raises(RuntimeError, match=r"executor='gpu' cannot be used: \w+"):
        fg.GPUExecutor(fallback=False)


def test_gpu_status():
    status = fg.gpu_status()
    assert isinstance(status.usable, bool)
    assert status.reason
    assert "\n" not in status.reason


def test_options_travel_to_workers():
    options = Options(alpha=(2, 3), weight=weight_map(), gnc_schedule=(0, 1), sigma=((1, 1, 0), (2, 2, 0.5)))
    copy = pickle.loads(pickle.dumps(options))
    assert copy.to_dict() == options.to_dict()
    assert isinstance(copy, Options)
