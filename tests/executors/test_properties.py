"""Any small movie with any options is registered to the same bits by every executor, in batches of any size."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import flowreg_gpu as fg
from flowreg_gpu.io import ArrayReader, ArrayWriter
from flowreg_gpu.registration.loop import Registration
from tests.emulation import EmulatedDevice
from tests.movies import recording
from tests.strategies import ARRAY_DTYPES

# The work of one example: two to nine small frames, on an emulated device that runs one thread after the other. An
# example that fails is shown as it was found: making it smaller would take minutes.
FEW = settings(max_examples=settings.default.max_examples // 3, phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module")
def threads():
    with fg.ThreadingExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def emulated():
    return EmulatedDevice()


@st.composite
def options(draw, channels):
    """Options that change what is computed, at a cost that an emulated device can bear."""
    number = st.floats(0.1, 3).map(lambda value: round(value, 2))
    chosen = {
        "alpha": draw(st.floats(0.5, 50) | st.tuples(st.floats(0.5, 50), st.floats(0.5, 50))),
        "levels": draw(st.integers(1, 3)),
        "min_level": draw(st.integers(0, 2)),
        "eta": draw(st.floats(0.5, 0.9)),
        "iterations": draw(st.integers(1, 12)),
        "update_lag": draw(st.integers(1, 5)),
        "a_data": draw(st.floats(0.3, 1)),
        "const_assumption": draw(st.sampled_from(["gc", "gray", "cs"])),
        "solver": draw(st.sampled_from(["auto", "block", "multigrid", "sor"])),
        "interpolation_method": draw(st.sampled_from(["cubic", "linear", "nearest"])),
        "channel_normalization": draw(st.sampled_from(["joint", "separate"])),
        "update_initialization_w": draw(st.booleans()),
        "cc_initialization": draw(st.booleans()),
        "cc_up": draw(st.integers(1, 4)),
        "buffer_size": draw(st.integers(1, 10)),
        "weight": draw(st.none() | st.tuples(*[number] * channels)),
        "sigma": draw(st.tuples(number, number, st.sampled_from([0.0, 0.1, 0.4]))),
    }
    if chosen["solver"] != "multigrid":
        chosen["a_smooth"] = draw(st.sampled_from([1.0, 0.5]))
    return fg.Options(**chosen)


@st.composite
def movies(draw):
    """Frames of known motion (T, H, W, C), some of them constant or with NaN."""
    size = draw(st.tuples(st.integers(2, 9), st.integers(16, 33), st.integers(16, 37)))
    dtype = draw(st.sampled_from(ARRAY_DTYPES))
    frames = recording(*size, draw(st.integers(1, 3)), dtype, seed=draw(st.integers(1, 99))).frames
    for index in draw(st.sets(st.integers(1, size[0] - 1), max_size=2)):
        if frames.dtype.kind == "f" and draw(st.booleans()):
            frames[index, :3, 4] = np.nan
        else:
            frames[index] = draw(st.integers(0, 200))
    return frames


def registered(frames, executor, chosen, batch):
    """Registered frames, flow and statistics."""
    reader = ArrayReader(frames)
    writers = ArrayWriter(frames.shape, frames.dtype), ArrayWriter((*frames.shape[:3], 2), np.float32)
    summary = Registration(reader, frames[0], executor, chosen, batch=batch).run(*writers)
    return writers[0].array, writers[1].array, summary.statistics


def assert_same(found, expected, exact):
    for array, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(array, other)
    for name, values in expected[2].items():
        compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
        compare(found[2][name], values, **({} if exact else {"rtol": 1e-9, "atol": 1e-12}))


@FEW
@given(st.data(), movies())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # constant frames, and flows that leave so small a frame
def test_executors_and_batches_agree(threads, emulated, data, frames):
    chosen = data.draw(options(frames.shape[-1]))
    batches = st.integers(1, len(frames) + 1)
    expected = registered(frames, "sequential", chosen, len(frames))
    assert_same(registered(frames, "sequential", chosen, data.draw(batches)), expected, exact=True)
    assert_same(registered(frames, threads, chosen, data.draw(batches)), expected, exact=True)
    device = fg.GPUExecutor(device=emulated, batch=data.draw(batches), fallback=False)
    assert_same(registered(frames, device, chosen, data.draw(batches)), expected, exact=False)
