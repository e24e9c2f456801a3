"""Reading ahead and writing behind: the same bits, faults and interrupts, and no more in memory than was said."""

import os
import signal
import sys
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.io import (
    ArrayReader,
    ArrayWriter,
    FrameReader,
    FrameWriter,
    ReservedFileWriter,
    TiffReader,
    TiffWriter,
)
from flowreg_gpu.options import Options
from flowreg_gpu.registration import overlap
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.registration.overlap import ReadAhead, WriteBehind
from tests.movies import recording
from tests.programs import LIMIT, run_program

FAST = {"alpha": 4, "levels": 3, "min_level": 1}
SMALL = {"height": 26, "width": 31}
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals between threads and processes")


@pytest.fixture(autouse=True)
def no_thread_left():
    """Every thread ends with what started it."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("flowreg-"):
            thread.join(LIMIT)
            assert not thread.is_alive()


class Sink(FrameWriter):
    """Keeps the arrays that it is given, and the threads that gave them; `before` is called with every batch."""

    def __init__(self, n_frames=9, threaded=True, before=lambda frames: None, shape=(1, 1, 1)):
        super().__init__((n_frames, *shape), np.uint8)
        self.threaded, self.before = threaded, before
        self.stored, self.threads = [], []

    def _store(self, frames, start):
        self.before(frames)
        self.stored.append(frames)
        self.threads.append(threading.current_thread())

    def _commit(self):
        pass

    def _discard(self):
        pass


def batch(value, n_frames=3):
    return np.full((n_frames, 1, 1, 1), value, np.uint8)


# Reading ahead


def test_one_batch_is_read_ahead_in_another_thread():
    begun, threads = [], set()
    after = {k: threading.Event() for k in range(5)}

    def read(first, stop):
        begun.append((first, stop))
        threads.add(threading.current_thread())
        after[first].set()
        return 10 * first

    with ReadAhead(read, [(k, k + 1) for k in range(5)], threaded=True) as reading:
        for k in range(5):
            assert reading.next() == 10 * k
            if k < 4:
                assert after[k + 1].wait(LIMIT)
            assert begun == [(i, i + 1) for i in range(min(k + 2, 5))]
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_reading_that_must_stay_in_its_thread():
    begun = []

    def read(first, stop):
        begun.append(threading.current_thread())
        return first

    with ReadAhead(read, [(0, 1), (1, 2)], threaded=False) as reading:
        assert begun == []
        assert [reading.next(), len(begun), reading.next()] == [0, 1, 1]
    assert set(begun) == {threading.current_thread()}


def test_a_read_that_fails_is_told_when_its_batch_is_due():
    def read(first, stop):
        if first == 1:
            raise OSError("no such sector")
        return first

    with ReadAhead(read, [(k, k + 1) for k in range(3)], threaded=True) as reading:
        assert reading.next() == 0
        with pytest.raises(OSError, match="no such sector"):
            reading.next()
    with ReadAhead(read, [(k, k + 1) for k in range(3)], threaded=True) as reading:
        assert reading.next() == 0  # nobody asks for the next one


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="the state is the thread's before NumPy 2")
def test_the_callers_error_state_holds_in_the_thread():
    def read(first, stop):
        return np.zeros(1) / 0

    with (
        np.errstate(all="raise"),
        ReadAhead(read, [(0, 1)], threaded=True) as reading,
        pytest.raises(FloatingPointError),
    ):
        reading.next()


# Writing behind


def test_batches_are_written_in_order_in_another_thread():
    first, second = Sink(), Sink()
    given = [(batch(k), batch(10 * k)) for k in range(3)]
    with WriteBehind((first, None, second)) as writing:
        for a, b in given:
            writing.write((a, None, b), lent=False)
    for k, sink in enumerate((first, second)):
        assert all(stored is pair[k] for stored, pair in zip(sink.stored, given, strict=True))
        assert sink.n_written == 9
    assert len(set(first.threads + second.threads)) == 1
    assert first.threads[0] is not threading.current_thread()


def test_lent_arrays_may_change_while_they_are_written():
    changed = threading.Event()
    sink = Sink(before=lambda frames: changed.wait(LIMIT))
    lent = batch(1)
    with WriteBehind((sink,)) as writing:
        writing.write((lent,), lent=True)
        lent[:] = 2
        changed.set()
    assert sink.stored[0].max() == 1


def test_writers_that_must_stay_in_their_thread():
    first, second = Sink(threaded=False), Sink()
    with WriteBehind((first, second)) as writing:
        writing.write((batch(1), batch(2)), lent=True)
        assert len(first.stored) == len(second.stored) == 1
    assert set(first.threads + second.threads) == {threading.current_thread()}


def failing(frames):
    raise OSError("disk on fire")


def write_batches(sink, count, after=lambda: None):
    """Write so many batches, do something, and leave."""
    with WriteBehind((sink,)) as writing:
        for k in range(count):
            writing.write((batch(k),), lent=False)
        after()


@pytest.mark.parametrize("count", [1, 2])
def test_a_write_that_fails_is_told_at_the_next_batch_or_the_end(count):
    sink = Sink(before=failing)
    with pytest.raises(OSError, match="disk on fire"):
        write_batches(sink, count)
    assert len(sink.stored) == sink.n_written == 0


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("later", "told"), [(ValueError("later"), OSError), (KeyboardInterrupt(), KeyboardInterrupt)], ids=["error", "stop"]
)
def test_what_failed_first_is_told(later, told):
    with pytest.raises(told):
        write_batches(Sink(before=failing), 1, raising(later))


def test_the_batch_under_way_is_written_before_an_error_goes_on():
    leaving = threading.Event()
    sink = Sink(before=lambda frames: leaving.wait(LIMIT))

    def fail():
        leaving.set()
        raise ValueError("elsewhere")

    with pytest.raises(ValueError, match="elsewhere"):
        write_batches(sink, 1, fail)
    assert sink.n_written == 3


@needs_posix
def test_interrupts_while_a_batch_is_written():
    """Ctrl-C twice: the file is not closed under the thread that writes it."""
    leaving = threading.Event()
    reading_end, writing_end = os.pipe()
    os.set_blocking(writing_end, False)

    def interrupt(frames):
        leaving.wait(LIMIT)
        for _ in range(2):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            os.read(reading_end, 1)  # Python has noted the signal

    sink = Sink(before=interrupt)
    before = signal.set_wakeup_fd(writing_end)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_batches(sink, 1, leaving.set)
        sink.abort()  # as the caller does next
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading_end)
        os.close(writing_end)
    assert sink.n_written == 3


class InterruptAtTheCall:
    """Traces this thread: Ctrl-C comes before the first instruction of the `__exit__` of this module's classes."""

    def __init__(self):
        self.sent = 0

    def __call__(self, frame, event, argument):
        if event == "call" and frame.f_code.co_name == "__exit__" and frame.f_code.co_filename == overlap.__file__:
            self.sent += 1
            signal.raise_signal(signal.SIGINT)
        return None


def test_an_interrupt_that_ends_the_leaving_closes_no_file_under_the_thread():
    """No statement of `__exit__` has run, so nothing was waited for; giving the writer up waits for the batch."""
    begun, asked, events = threading.Event(), threading.Event(), []

    def work(frames):
        begun.set()
        asked.wait(LIMIT)
        events.append("written")

    sink = Sink(before=work)
    sink._discard = lambda: events.append("closed")
    sink._lock = NotedLock(sink._lock, asked)
    interrupt, tracing = InterruptAtTheCall(), sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt), WriteBehind((sink,)) as writing:  # noqa: PT012
            writing.write((batch(1),), lent=False)
            assert begun.wait(LIMIT)
            sys.settrace(interrupt)
    finally:
        sys.settrace(tracing)
    assert interrupt.sent == 1
    assert events == []
    sink.abort()
    assert events == ["written", "closed"]
    assert sink.n_written == 3


def test_an_interrupt_while_reading_begins_leaves_no_thread():
    """The first read has begun when Ctrl-C comes, and nobody has entered anything that could be left."""
    begun, leaving, finished = threading.Event(), threading.Event(), []

    def work(*_):
        begun.set()
        leaving.wait(LIMIT)
        finished.append(True)

    made = ReadAhead(work, [(0, 1)], threaded=True)
    made._busy = NotedLock(made._busy, leaving)
    real = made._thread.submit

    def submit(*arguments):
        future = real(*arguments)
        begun.wait(LIMIT)
        signal.raise_signal(signal.SIGINT)
        return future

    made._thread.submit = submit
    with pytest.raises(KeyboardInterrupt), made:
        pytest.fail("entered")
    assert finished == [True]


class NotedLock:
    """A lock that tells when the main thread asks for it."""

    def __init__(self, lock, asked):
        self.lock, self.asked = lock, asked

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.asked.set()
        return self.lock.__enter__()

    def __exit__(self, *error):
        return self.lock.__exit__(*error)


@pytest.mark.parametrize("beside", [ReadAhead, WriteBehind])
def test_interrupt_while_a_call_is_handed_over(beside):
    """The thread has begun and does its work, but nobody has noted the call, nor the thread."""
    begun, leaving, finished = threading.Event(), threading.Event(), []

    def work(*_):
        begun.set()
        leaving.wait(LIMIT)
        finished.append(True)

    def submit(call, *arguments):
        real(call, *arguments)
        begun.wait(LIMIT)
        made._thread._threads.clear()
        raise KeyboardInterrupt

    made = ReadAhead(work, [], threaded=True) if beside is ReadAhead else WriteBehind((Sink(before=work),))
    made._busy = NotedLock(made._busy, leaving)
    real, made._thread.submit = made._thread.submit, submit
    with pytest.raises(KeyboardInterrupt), made:
        made._start(work)
    assert finished == [True]


# The recording loop


def registered(movie, executor, overlap, **options):
    """Registered frames, flow and statistics."""
    reader = ArrayReader(movie.frames)
    writers = ArrayWriter(reader.shape, reader.dtype), ArrayWriter((*reader.shape[:3], 2), np.float32)
    for item in (reader, *writers):
        item.threaded = overlap
    batch = options.pop("batch")
    summary = Registration(reader, movie.truth, executor, Options(**FAST, **options), batch=batch).run(*writers)
    return writers[0].array, writers[1].array, np.stack(list(summary.statistics.values()))


@pytest.mark.parametrize("executor", ["sequential", "threading", "multiprocessing"])
def test_overlap_does_not_change_a_bit(executor):
    movie = recording(13, **SMALL, channels=2, dtype="float32")
    movie.frames[4, 5, 6], movie.frames[11, 3] = np.nan, np.inf
    options = {"buffer_size": 5, "sigma": (1, 1, 0.5), "batch": 2}
    expected = registered(movie, "sequential", False, **options)
    for array, other in zip(registered(movie, executor, True, **options), expected, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_files_with_overlap(tmp_path, compression):
    movie = recording(9, **SMALL)
    tifffile.imwrite(tmp_path / "in.tif", movie.frames, compression=compression, metadata={"axes": "TYX"})
    expected, flow = fg.register(movie.frames, movie.truth, "sequential", **FAST)
    files = tmp_path / "out.tif", tmp_path / "flow.tif"
    fg.register_file(tmp_path / "in.tif", files[0], "sequential", movie.truth, files[1], batch=2, **FAST)
    np.testing.assert_array_equal(tifffile.imread(files[0]), expected)
    np.testing.assert_array_equal(tifffile.imread(files[1]), flow)


class Alive:
    """Counts the arrays that it was shown and that are still referred to."""

    def __init__(self):
        self.references, self.most, self.changed = [], 0, threading.Condition()

    def see(self, array):
        with self.changed:
            if not any(reference() is array for reference in self.references):
                self.references.append(weakref.ref(array))
            self.most = max(self.most, sum(reference() is not None for reference in self.references))
            self.changed.notify_all()

    def wait_for(self, count):
        """Wait until it was shown so many arrays."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.references) >= count, LIMIT)


class LateExecutor(fg.SequentialExecutor):
    """Begins with a batch of the 5 for the start flow, or of all 9, when the batch after it was read."""

    def __init__(self, frames):
        super().__init__()
        self.frames, self.calls = frames, 0

    def register_batch(self, batch):
        self.calls += 1
        self.frames.wait_for(min(self.calls + 1, 5 if self.calls <= 5 else 5 + 9))
        return super().register_batch(batch)


@pytest.mark.parametrize("verify", [0, 9])
@pytest.mark.parametrize("threaded", [False, True])
def test_two_batches_are_held_at_most(threaded, verify):
    """Also if the reading thread is as fast, and the writing thread as slow, as they can be."""
    movie = recording(9, **SMALL)
    frames, results = Alive(), Alive()

    class Source(ArrayReader):
        def _load(self, start, stop):
            array = super()._load(start, stop)
            frames.see(array)
            return array

    source = Source(movie.frames)
    source.threaded = threaded  # of the instance: ArrayReader decides by the array
    sink = ArrayWriter((9, 26, 31, 1), np.uint16)
    sink.threaded, store = threaded, sink._store

    def store_late(array, start):
        results.see(array)
        if threaded:
            frames.wait_for(min(5 + start + 3, 5 + 9))  # two batches more
        store(array, start)

    sink._store = store_late
    executor = LateExecutor(frames) if threaded else "sequential"
    options = Options.without_choices(**FAST, buffer_size=5)
    Registration(source, movie.truth, executor, options, batch=1, verify=verify, bad_frames=None).run(sink)
    assert len(frames.references) == 5 + 9
    assert frames.most == (2 if threaded else 1)
    assert results.most == 1  # beside it the executor's own
    expected, _ = fg.register(movie.frames, movie.truth, "sequential", buffer_size=5, **FAST)
    np.testing.assert_array_equal(sink.array[..., 0], expected)


def test_gpu_results_of_two_batches_do_not_share_memory():
    from tests.emulation import EmulatedDevice

    movie = recording(6, **SMALL)
    executor = fg.GPUExecutor(2, device=EmulatedDevice(), batch=2, fallback=False)
    assert executor.keeps_results
    addresses = []
    sink = Sink(6, before=lambda frames: addresses.append(frames.ctypes.data), shape=(26, 31, 1))
    sink.dtype = np.dtype(np.uint16)
    Registration(ArrayReader(movie.frames), movie.truth, executor, Options(**FAST), batch=2).run(sink)
    assert addresses[0] == addresses[2] != addresses[1]  # two sets by turns, and no copy


def test_a_fallback_lends_its_results():
    with pytest.warns(RuntimeWarning, match="executor='gpu' cannot be used"):
        executor = fg.GPUExecutor(1, device=99)
    assert not executor.keeps_results


# Faults


@pytest.fixture
def movie_file(tmp_path):
    movie = recording(9, **SMALL)
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, movie.frames, imagej=True, metadata={"axes": "TYX"})
    return path, movie


def assert_kept(folder, movie, count):
    """The first frames in the partial file, its journal, and nothing else."""
    assert sorted(os.listdir(folder)) == ["in.tif", "out.partial.tif", "out.partial.tif.journal"]
    expected, _ = fg.register(movie.frames, movie.truth, "sequential", **FAST)
    partial = tifffile.imread(folder / "out.partial.tif")
    np.testing.assert_array_equal(partial[:count], expected[:count])
    assert not partial[count:].any()


def test_fault_of_the_reader(movie_file, tmp_path, monkeypatch):
    path, movie = movie_file
    load, calls, progress = TiffReader._load, [], []

    def fail(reader, start, stop):
        calls.append((start, stop))
        if calls.count((6, 9)) == 2:  # the first time for the start flow
            raise OSError("the disk was pulled out")
        return load(reader, start, stop)

    monkeypatch.setattr(TiffReader, "_load", fail)
    with (
        pytest.warns(RuntimeWarning, match="6 of 9 frames were finished") as caught,
        pytest.raises(OSError, match="the disk was pulled out"),
    ):
        fg.register_file(
            path, tmp_path / "out.tif", "sequential", movie.truth, batch=3, progress=lambda *c: progress.append(c),
            bad_frames=None, **FAST,
        )  # fmt: skip
    assert len(caught) == 1
    assert progress[-1] == ("frames", 6, 9)
    assert_kept(tmp_path, movie, 6)


@pytest.mark.parametrize(("failing_write", "kept"), [(2, 3), (3, 6)])
def test_fault_of_the_writer(movie_file, tmp_path, monkeypatch, failing_write, kept):
    """Also of the last batch, after which nothing is computed."""
    path, movie = movie_file
    write_bytes, calls = ReservedFileWriter._write_bytes, []

    def full(writer, offset, slab):
        calls.append(threading.current_thread())
        if len(calls) == failing_write:
            raise OSError("no room")
        write_bytes(writer, offset, slab)

    monkeypatch.setattr(ReservedFileWriter, "_write_bytes", full)
    with pytest.warns(RuntimeWarning, match=f"{kept} of 9 frames") as caught, pytest.raises(OSError, match="no room"):
        fg.register_file(path, tmp_path / "out.tif", "sequential", movie.truth, batch=3, **FAST)
    assert len(caught) == 1
    assert len(calls) == failing_write
    assert threading.main_thread() not in calls
    assert_kept(tmp_path, movie, kept)


class WarningReader(ArrayReader):
    """Warns at every read."""

    def _load(self, start, stop):
        warnings.warn("a page is odd", RuntimeWarning, stacklevel=1)
        return super()._load(start, stop)


@pytest.mark.parametrize("overlap", [False, True])
def test_warnings_of_a_thread_reach_the_user(overlap):
    movie = recording(4, **SMALL)
    reader = WarningReader(movie.frames)
    reader.threaded = overlap
    registration = Registration(reader, movie.truth, "sequential", Options(**FAST), batch=2, bad_frames=None)
    with pytest.warns(RuntimeWarning, match="a page is odd") as caught:
        registration.run()
    assert len(caught) == 2 + 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="a page is odd"):
            registration.run()


SCRIPT = """
import os, signal, sys, time
from flowreg_gpu.cli import register
from flowreg_gpu.cli.main import main

class Bar(register.ProgressBar):
    def __call__(self, stage, finished, total):
        if (stage, finished) == ("frames", 6):
            os.killpg(0, signal.SIGINT)  # as Ctrl-C does, to all processes
            while True:  # another thread may get the signal; Python raises KeyboardInterrupt here soon after
                time.sleep(0.001)

register.ProgressBar = Bar

if __name__ == "__main__":
    status = main(["register", "in.tif", "out.tif", "--batch", "3", "--executor", "multiprocessing", "--workers",
                   "1", "--reference", "ref.tif", "--alpha", "4", "--levels", "3", "--min-level", "1"])
    import threading
    print(os.getpid(), threading.active_count())
    sys.exit(status)
"""


@needs_posix
def test_interrupted_program(compiled, movie_file, tmp_path):
    _, movie = movie_file
    tifffile.imwrite(tmp_path / "ref.tif", movie.truth)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_program("script.py", folder=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "error: interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert "leaked" not in done.stderr
    pid, n_threads = done.stdout.split()[-2:]
    assert n_threads == "1"
    assert not list(Path("/dev/shm").glob(f"flowreg_{pid}_*"))
    for name in ("ref.tif", "script.py"):
        (tmp_path / name).unlink()
    assert_kept(tmp_path, movie, 3)


# The user's own


class OwnReader(FrameReader):
    """As the user of another library would write it."""

    def __init__(self, frames):
        self.n_frames, self.height, self.width, self.n_channels = frames.shape
        self.dtype, self.has_channel_axis, self.frames = frames.dtype, True, frames
        self.threads = set()

    def _load(self, start, stop):
        self.threads.add(threading.current_thread())
        return self.frames[start:stop].copy()


def test_other_readers_and_writers_stay_in_the_callers_thread():
    movie = recording(5, **SMALL, channels=1)
    reader = OwnReader(movie.frames)
    sink = Sink(5, FrameWriter.threaded, shape=(26, 31, 1))
    sink.dtype = reader.dtype
    Registration(reader, movie.truth, "sequential", Options(**FAST), batch=2).run(sink)
    assert reader.threads == set(sink.threads) == {threading.current_thread()}
    assert TiffReader.threaded
    assert TiffWriter.threaded
