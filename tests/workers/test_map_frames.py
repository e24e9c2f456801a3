"""The stream of chunks through worker processes: bounded, in order, and without barriers."""

import multiprocessing
import os
import threading

import numpy as np
import pytest

from flowreg_gpu.workers import map_frames as engine
from flowreg_gpu.workers.map_frames import FrameKind, describe_result, name_frame, stream_frames
from flowreg_gpu.workers.pool import FramePool
from tests.programs import held_blocks

needs_posix = pytest.mark.skipif(os.name != "posix", reason="named pipes")


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert multiprocessing.active_children() == []
    assert held_blocks() == set()


class Movie:
    """Frames from an array into a list, and how many of them are read, at most, that are not written."""

    def __init__(self, array, threaded=True):
        self.array, self.n_frames, self.threaded = array, len(array), threaded
        self.kind = FrameKind(array.shape[1:], array.dtype)
        self.results, self.read_frames, self.ahead, self.threads = [], 0, 0, set()

    def read(self, first, out):
        assert first == self.read_frames
        self.threads.add(threading.get_ident())
        out[...] = self.array[first : first + len(out)]
        self.read_frames += len(out)
        self.ahead = max(self.ahead, self.read_frames - len(self.results))

    def write(self, results):
        self.threads.add(threading.get_ident())
        self.results.extend(results.copy())


def movie(n_frames=41, shape=(5, 3), threaded=True, seed=0):
    return Movie(np.random.default_rng(seed).integers(0, 255, (n_frames, *shape)).astype(np.uint8), threaded)


def double(frame):
    return frame * np.uint16(2)


def stream(frames, func=double, n_workers=2, dtype="uint16", **keywords):
    with FramePool(n_workers) as pool:
        stream_frames(pool, func, frames, frames, FrameKind(frames.kind.shape, np.dtype(dtype)), **keywords)


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 3, 41, 1000])
def test_every_frame_once_and_in_order(chunk, threaded):
    frames, calls = movie(threaded=threaded), []
    stream(frames, chunk=chunk, progress=calls.append)
    np.testing.assert_array_equal(frames.results, frames.array * np.uint16(2))
    assert sum(calls) == 41
    assert (threading.get_ident() in frames.threads) is not threaded


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("chunk", [1, 4])
def test_frames_read_ahead_are_bounded(chunk, n_workers):
    frames = movie(300)
    stream(frames, n_workers=n_workers, chunk=chunk)
    assert len(frames.results) == 300
    assert frames.ahead <= (2 * n_workers + 2) * chunk


class WaitForAnother:
    """Frame 0 is not finished before frame 5 is, which another worker has to handle."""

    def __init__(self, fifo):
        self.fifo = str(fifo)

    def __call__(self, frame):
        if frame[0] in (0, 5):
            with open(self.fifo, "r" if frame[0] == 0 else "w"):  # waits for the other end
                pass
        return frame


@needs_posix
def test_a_slow_frame_does_not_hold_the_others(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    frames = Movie(np.arange(30, dtype=np.uint8)[:, None])
    stream(frames, WaitForAnother(tmp_path / "fifo"), dtype="uint8", chunk=1)
    np.testing.assert_array_equal(frames.results, frames.array)


def test_the_pool_may_be_used_again():
    with FramePool(2) as pool:
        for seed, shape in enumerate([(4, 4), (40, 40), (2,), ()]):
            frames = movie(20, shape, seed=seed)
            kind = describe_result(pool, double, frames, None)
            assert kind == (shape, np.uint16)
            frames.read_frames = 0
            stream_frames(pool, double, frames, frames, kind)
            np.testing.assert_array_equal(frames.results, frames.array * np.uint16(2))


# Shared memory


@pytest.mark.parametrize(
    ("free_frames", "expected"), [(10**6, 6 * 16), (192, 6 * 16), (100, 6 * 8), (12, 6), (9, 4), (2, 2)]
)
def test_rings_fit_into_shared_memory(monkeypatch, free_frames, expected):
    """Two workers have six slots of 16 frames, in half of what is free; fewer frames, then fewer slots, where not."""
    frames, lengths = movie(200), []

    class Pool(FramePool):
        def allocate(self, name, shape, dtype):
            lengths.append(shape[0])
            return super().allocate(name, shape, dtype)

    monkeypatch.setattr(engine, "free_shared_memory", lambda: free_frames * 15 * 3)
    with Pool(2) as pool:
        stream_frames(pool, double, frames, frames, FrameKind((5, 3), np.dtype("uint16")), chunk=16)
    np.testing.assert_array_equal(frames.results, frames.array * np.uint16(2))
    assert lengths == [expected, expected]


def test_less_shared_memory_than_a_frame_for_each_worker(monkeypatch):
    monkeypatch.setattr(engine, "free_shared_memory", lambda: 2 * 15 * 3 - 1)
    with pytest.raises(
        RuntimeError, match=r"need 0\.0 MB of shared memory, 0\.0 MB are free: try fewer \(n_workers=2\)"
    ):
        stream(movie())


# Failures


def fail_at_20(frame):
    if frame.flat[0] == 20:
        raise ValueError("twenty")
    return frame


@pytest.mark.parametrize("chunk", [1, 7])
def test_frames_before_a_failure_are_written(chunk):
    frames = Movie(np.arange(60, dtype=np.uint8)[:, None])
    with pytest.raises(ValueError, match="frame 20: twenty"):
        stream(frames, fail_at_20, dtype="uint8", chunk=chunk)
    np.testing.assert_array_equal(frames.results, frames.array[: 20 // chunk * chunk])


class FailInReverse(WaitForAnother):
    """Frames 3 and 5 fail, and the later one does first."""

    def __call__(self, frame):
        if frame[0] == 3:
            with open(self.fifo):  # waits for frame 5
                pass
        if frame[0] == 5:
            with open(self.fifo, "w"):
                pass
        if frame[0] in (3, 5):
            raise ValueError("wrong")
        return frame


@needs_posix
def test_the_first_frame_that_fails_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    frames = Movie(np.arange(30, dtype=np.uint8)[:, None])
    with pytest.raises(ValueError, match="frame 3: wrong"):
        stream(frames, FailInReverse(tmp_path / "fifo"), dtype="uint8", chunk=1)
    np.testing.assert_array_equal(frames.results, frames.array[:3])


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("method", ["read", "write"])
def test_failures_of_source_and_sink(method, threaded):
    frames = movie(threaded=threaded)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "no space")
        return type(frames).__dict__[method](frames, *arguments)

    setattr(frames, method, fail)
    with pytest.raises(OSError, match="no space"):
        stream(frames, chunk=2)
    assert len(calls) == 3  # nothing is read or written after an error
    written = len(frames.results)
    assert written <= 4
    np.testing.assert_array_equal(frames.results, (frames.array * np.uint16(2))[:written] if written else [])


def test_a_failing_callback_keeps_what_is_finished():
    def fail(finished):
        raise InterruptedError("enough")

    frames = movie()
    with pytest.raises(InterruptedError, match="enough"):
        stream(frames, n_workers=1, chunk=1, progress=fail)
    np.testing.assert_array_equal(frames.results, (frames.array * np.uint16(2))[:1])


class OddValue(ValueError):
    def __init__(self, first, second):
        super().__init__(first, second)


class Odd(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)


class Plain(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("bad"), ValueError, "frame 7: bad"),
        (KeyError("name"), KeyError, "frame 7: 'name'"),
        (MemoryError(), MemoryError, "frame 7: "),
        (ZeroDivisionError("division by zero"), ZeroDivisionError, "frame 7: division by zero"),
        (FileNotFoundError(2, "No such file", "x.tif"), FileNotFoundError, "[Errno 2] frame 7: No such file: 'x.tif'"),
        (OSError("plain"), OSError, "frame 7: plain"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), UnicodeError, "frame 7: UnicodeDecodeError: "),
        (OddValue(1, 2), ValueError, "frame 7: OddValue: (1, 2)"),
        (Odd(1, 2), RuntimeError, "frame 7: Odd: (1, 2)"),
        (Plain("own"), Plain, "frame 7: own"),
        (Exception("bare"), RuntimeError, "frame 7: Exception: bare"),
    ],
)
def test_the_frame_is_named(error, kind, text):
    named = name_frame(7, error)
    assert type(named) is kind
    assert text in str(named)
