"""FramePool: results of a plain loop, and nothing left behind however it ends."""

import doctest
import errno
import importlib
import multiprocessing
import os
import pathlib
import signal
import threading
import time

import numpy as np
import pytest

from flowreg_gpu.workers.blocks import SharedMemoryError
from flowreg_gpu.workers.pool import THREAD_VARIABLES, FramePool, default_workers
from tests.programs import LIMIT, held_blocks, named_blocks, run_program

# What a worker sees while it imports this module, which is before it has imported anything of its task.
THREADS_AT_IMPORT = [int(os.environ.get(name, 0)) for name in THREAD_VARIABLES]

LISTED = pathlib.Path("/proc/self/fd").is_dir()  # whether the system says which blocks a process holds

needs_posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert multiprocessing.active_children() == []
    assert held_blocks() == set()


@pytest.fixture
def pool(_nothing_left):
    with FramePool(2) as two_workers:
        yield two_workers


class Task:
    def prepare(self, arrays):
        pass


class Scale(Task):
    """frames * factor, and who did it in which preparation."""

    def __init__(self, factor=3):
        self.factor = factor
        self.preparations = 0

    def prepare(self, arrays):
        self.preparations += 1
        self.top = arrays["frames"].max()

    def __call__(self, arrays, index):
        arrays["scaled"][index] = self.factor * arrays["frames"][index] + self.top
        arrays["pid"][index] = os.getpid()
        arrays["preparations"][index] = self.preparations


class Slow(Task):
    """Longer than the time between two reports, however long that is on a busy machine."""

    def __call__(self, arrays, index):
        time.sleep(0.11)


class Nothing(Task):
    def __call__(self, arrays, index):
        pass


class Hang(Task):
    def __call__(self, arrays, index):
        threading.Event().wait()


class ReportThreads(Task):
    def __call__(self, arrays, index):
        arrays["threads"][0] = THREADS_AT_IMPORT
        arrays["threads"][1] = [int(os.environ[name]) for name in THREAD_VARIABLES]


class OddError(Exception):
    """Pickles, but cannot be unpickled."""

    def __init__(self, frame, reason):
        super().__init__(f"frame {frame}: {reason}")


class FailAt(Task):
    def __init__(self, frame, error):
        self.frame, self.error = frame, error

    def __call__(self, arrays, index):
        if index == self.frame:
            if self.error is OddError:
                raise OddError(index, "odd")
            raise self.error(f"frame {index}")
        arrays["visited"][index] = 1


class FailToPrepare:
    def prepare(self, arrays):
        raise ZeroDivisionError("in prepare")

    def __call__(self, arrays, index):
        pass


class SignalItself(Task):
    def __init__(self, number, ignored=True):
        self.number, self.ignored = number, ignored

    def __call__(self, arrays, index):
        if index == 3:
            if not self.ignored:
                signal.signal(self.number, signal.SIG_DFL)
            os.kill(os.getpid(), self.number)


class ExitItself(Task):
    def __call__(self, arrays, index):
        os._exit(7)


def fill(pool, n_frames, seed=0):
    frames = pool.allocate("frames", (n_frames, 5, 7), "float32")
    frames[...] = np.random.default_rng(seed).random(frames.shape)
    scaled = pool.allocate("scaled", frames.shape, "float64")
    scaled[...] = -1
    pids = pool.allocate("pid", (n_frames,), np.int64)
    preparations = pool.allocate("preparations", (n_frames,), np.int64)
    return frames, scaled, pids, preparations


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_run_equals_plain_loop(n_workers):
    with FramePool(n_workers) as pool:
        frames, scaled, pids, preparations = fill(pool, 31)
        calls = []
        pool.run(Scale(), range(31), calls.append)
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())
    assert set(preparations) == {1}
    assert os.getpid() not in pids
    assert 1 <= len(set(pids)) <= n_workers
    assert sum(calls) == 31
    assert min(calls) >= 1
    assert len(calls) >= 4 * n_workers  # at least one for each chunk


def test_slow_frames_are_reported_one_by_one():
    calls = []
    with FramePool(1) as pool:
        pool.run(Slow(), range(8), calls.append)  # in chunks of two
    assert calls == [1] * 8


@pytest.mark.parametrize("indices", [range(0), range(4, 5), range(3, 30, 4), range(30, -1, -1)])
def test_only_the_frames_of_the_range_are_handled(pool, indices):
    frames, scaled, _, _ = fill(pool, 31)
    calls = []
    pool.run(Scale(2), indices, calls.append)
    expected = np.full(frames.shape, -1.0)
    expected[list(indices)] = (2 * frames + frames.max())[list(indices)]
    np.testing.assert_array_equal(scaled, expected)
    assert sum(calls) == len(indices)


def test_workers_and_preparation_last_over_runs(pool):
    task = Scale()
    frames, scaled, pids, preparations = fill(pool, 40)
    pool.run(task, range(40))
    workers = {worker.pid for worker in multiprocessing.active_children()}
    assert len(workers) == 2
    top = frames.max()
    frames += 1
    pool.run(task, range(40))
    assert {worker.pid for worker in multiprocessing.active_children()} == workers
    assert set(pids) <= workers
    assert set(preparations) == {1}
    np.testing.assert_array_equal(scaled, 3 * frames + top)  # prepared once, as the same task and blocks stay

    pool.run(Scale(5), range(40))
    assert set(pids) <= workers
    np.testing.assert_array_equal(scaled, 5 * frames + frames.max())


def test_blocks_are_reused_or_replaced(pool):
    task = Scale()
    first, _, _, _ = fill(pool, 8)
    before = held_blocks()
    pool.run(task, range(8))
    assert pool.allocate("frames", first.shape, first.dtype) is first

    shorter, scaled, _, preparations = fill(pool, 5, seed=1)
    assert np.shares_memory(first, shorter)
    pool.run(task, range(5))
    np.testing.assert_array_equal(scaled, 3 * shorter + shorter.max())
    assert set(preparations) == {1}  # the workers got the task anew
    assert held_blocks() == before

    kept = first.copy()
    longer, scaled, _, _ = fill(pool, 300, seed=2)
    assert not np.shares_memory(first, longer)
    np.testing.assert_array_equal(first, kept)
    del first, shorter, preparations
    assert not before & held_blocks()
    assert len(held_blocks()) == len(before)
    pool.run(task, range(300))
    np.testing.assert_array_equal(scaled, 3 * longer + longer.max())


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="reads the workers' mappings in /proc")
def test_workers_let_go_of_a_replaced_block(pool):
    fill(pool, 8)
    old = held_blocks()
    pool.run(Scale(), range(8))
    maps = [pathlib.Path(f"/proc/{worker.pid}/maps") for worker in multiprocessing.active_children()]
    assert all(name in text.read_text() for name in old for text in maps)
    pool.allocate("frames", (300, 50, 70), "float32")  # its old memory must be free for this
    assert not any(name in text.read_text() for name in old for text in maps)


@pytest.mark.skipif(not LISTED, reason="the system does not say which blocks a process holds")
def test_release(pool):
    task = Scale()
    frames, scaled, _, _ = fill(pool, 8)
    pool.run(task, range(8))
    kept = frames.copy()
    before = held_blocks()
    pool.release("frames")
    np.testing.assert_array_equal(frames, kept)
    del frames
    assert len(before - held_blocks()) == 1
    with pytest.raises(KeyError, match="frames"):
        pool.release("frames")
    frames = pool.allocate("frames", kept.shape, kept.dtype)
    frames[...] = kept + 1
    pool.run(task, range(8))
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())


def test_arrays_stay_readable_after_close():
    pool = FramePool(1)
    array = pool.allocate("frames", (3, 1000, 1000), "int32")
    array[...] = 7
    pool.close()
    pool.close()
    assert (array == 7).all()
    with pytest.raises(RuntimeError, match="closed"):
        pool.allocate("frames", (3,), "int32")
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(Scale(), range(3))


def test_allocate_odd_shapes(pool):
    assert pool.allocate("empty", (0, 5), "uint8").shape == (0, 5)
    assert pool.allocate("scalar", (), "float64").shape == ()
    assert pool.allocate("flow", (2,), [("u", "f4"), ("v", "f4")])["u"].dtype == np.float32
    with pytest.raises(ValueError, match="negative"):
        pool.allocate("negative", (3, -1), "uint8")
    with pytest.raises(TypeError, match="Python objects"):
        pool.allocate("objects", (3,), object)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no file system that can be full")
def test_full_shared_memory(pool, monkeypatch):
    def full(fd, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryError, match=r"3\.0 MB needed, [\d.]+ MB free .*; try smaller arrays"):
        pool.allocate("frames", (3, 1024, 1024), "uint8")
    assert held_blocks() == set()
    monkeypatch.undo()
    assert pool.allocate("frames", (3, 1024, 1024), "uint8").size == 3 * 2**20


def test_the_caller_says_what_helps_where_memory_runs_out(monkeypatch):
    with FramePool(1, memory_hint="a magnet") as pool:
        with pytest.raises(SharedMemoryError, match="; try a magnet"):
            pool.allocate("frames", (2**60,), "uint8")  # more than any machine has
        with pytest.raises(RuntimeError, match=r"try fewer workers \(n_workers=1\) or a magnet"):
            pool.run(SignalItself(signal.SIGTERM, ignored=False), range(4))


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [(FileNotFoundError, FileNotFoundError, "frame 11"), (OddError, RuntimeError, "OddError: frame 11: odd")],
)
def test_exception_of_a_task(pool, raised, expected, text):
    visited = pool.allocate("visited", (4000,), "uint8")
    visited[...] = 0
    calls = []
    with pytest.raises(expected, match=text) as caught:
        pool.run(FailAt(11, raised), range(4000), calls.append)
    assert "in __call__" in str(caught.value.__cause__)
    assert sum(calls) == visited.sum()
    workers = {worker.pid for worker in multiprocessing.active_children()}

    frames, scaled, pids, _ = fill(pool, 20)
    pool.run(Scale(), range(20))
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())
    assert set(pids) <= workers


def test_no_frames_are_begun_after_an_exception():
    with FramePool(1) as pool:
        visited = pool.allocate("visited", (4000,), "uint8")
        with pytest.raises(FileNotFoundError):
            pool.run(FailAt(27, FileNotFoundError), range(4000))
    assert visited.nonzero()[0].tolist() == list(range(27))


def test_exception_in_prepare(pool):
    for _ in range(2):  # a task that failed is prepared again
        with pytest.raises(ZeroDivisionError, match="in prepare"):
            pool.run(FailToPrepare(), range(4))
    frames, scaled, _, _ = fill(pool, 4)
    pool.run(Scale(), range(4))
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())


@needs_posix
def test_killed_worker_is_reported_and_replaced(pool):
    frames, scaled, pids, _ = fill(pool, 50)
    pool.run(Scale(), range(50))
    first = {worker.pid for worker in multiprocessing.active_children()}
    with pytest.raises(RuntimeError, match=r"worker process \d+ was killed by SIGKILL.*n_workers=2") as caught:
        pool.run(SignalItself(signal.SIGKILL), range(1000))
    assert any(str(pid) in str(caught.value) for pid in first)
    assert multiprocessing.active_children() == []

    pool.run(Scale(), range(50))
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())
    assert not set(pids) & first


@needs_posix
def test_worker_killed_between_runs_is_reported(pool):
    fill(pool, 10)
    pool.run(Scale(), range(10))
    victim = multiprocessing.active_children()[0]
    victim.kill()
    victim.join()
    with pytest.raises(RuntimeError, match=f"worker process {victim.pid} was killed by SIGKILL"):
        pool.run(Scale(), range(10))


def test_exit_code_is_reported():
    with FramePool(1) as pool, pytest.raises(RuntimeError, match=r"ended with exit code=7"):
        pool.run(ExitItself(), range(2))


@needs_posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_workers_leave_signals_of_the_group_to_the_parent(pool, name):
    calls = []
    pool.run(SignalItself(getattr(signal, name)), range(10), calls.append)
    assert sum(calls) == 10


def test_interrupted_parent():
    def interrupt(finished):
        raise KeyboardInterrupt

    pool = FramePool(2)
    fill(pool, 400)
    assert len(held_blocks()) == (4 if LISTED else 0)
    with pytest.raises(KeyboardInterrupt), pool:
        pool.run(Scale(), range(400), interrupt)
    assert multiprocessing.active_children() == []
    assert held_blocks() == set()


@pytest.mark.parametrize("threads", [1, 3])
def test_thread_limits(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with FramePool(1, threads_per_worker=threads) as pool:
        found = pool.allocate("threads", (2, len(THREAD_VARIABLES)), int)
        pool.run(ReportThreads(), range(1))
    assert (found == threads).all()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_unpicklable_tasks_are_refused_without_workers():
    class Local(Scale):
        pass

    task = Scale(lambda frame: frame)
    with FramePool(1) as pool:
        for unpicklable in (task, Local()):
            with pytest.raises(TypeError, match="importable"):
                pool.run(unpicklable, range(3))
        assert multiprocessing.active_children() == []


def test_numbers_of_workers():
    assert default_workers() >= 1
    with FramePool() as pool:
        assert pool.n_workers == default_workers()
    with pytest.raises(ValueError, match="n_workers=0"):
        FramePool(0)
    with pytest.raises(ValueError, match="threads_per_worker=-1"):
        FramePool(1, -1)


def test_one_call_at_a_time(pool):
    """A second thread, and a callback of the first, are refused; what the first one computes is right."""
    frames, scaled, _, _ = fill(pool, 40)
    refused = []

    def use(*calls):
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))

    def interfere(finished):
        calls = (lambda: pool.run(Scale(9), range(40)), lambda: pool.allocate("frames", (3,), "uint8"), pool.start)
        other = threading.Thread(target=use, args=(*calls, pool.close))
        other.start()
        other.join()
        use(*calls)

    pool.run(Scale(), range(40), interfere)
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())
    assert len(refused) >= 7
    assert len(refused) % 7 == 0
    assert sum("another thread uses it" in text for text in refused) == len(refused) // 7
    pool.run(Scale(5), range(40))
    np.testing.assert_array_equal(scaled, 5 * frames + frames.max())


def test_a_frame_that_takes_too_long_is_named(pool):
    fill(pool, 9)
    with pytest.raises(TimeoutError, match=r"frame 7: not finished after 0\.2 s"):
        pool.run(Hang(), range(7, 8), timeout=0.2)
    assert multiprocessing.active_children() == []
    frames, scaled, _, _ = fill(pool, 9)
    pool.run(Scale(), range(9), timeout=LIMIT)
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())


def test_a_timeout_counts_frames_not_chunks():
    calls = []
    with FramePool(1) as pool:
        pool.run(Nothing(), range(8), calls.append, timeout=LIMIT)
    assert calls == [1] * 8  # each is reported, so that each has its own time


def test_a_dead_worker_says_in_which_frames():
    with FramePool(1) as pool, pytest.raises(RuntimeError, match="exit code=7 while it handled frame 5"):
        pool.run(ExitItself(), range(5, 7))


def test_dropped_pool_cleans_up():
    pool = FramePool(1)
    frames, scaled, _, _ = fill(pool, 3)
    pool.run(Scale(), range(3))
    del pool
    assert multiprocessing.active_children() == []
    np.testing.assert_array_equal(scaled, 3 * frames + frames.max())


# Scripts. Workers inherit stdout and stderr, so that run_program returns only when all processes have ended.

SCRIPT = """
import os, signal, sys, time
from flowreg_gpu.workers.pool import FramePool

class ScriptError(Exception):
    pass

class Double:
    def prepare(self, arrays):
        pass
    def __call__(self, arrays, index):
        arrays["frames"][index] *= 2
        if index == 99:
            raise ScriptError(index)

def interrupt(finished):
    os.killpg(0, signal.SIGINT)  # as Ctrl-C does, to the parent and the workers
    while True:  # a thread of a library may get the signal; Python raises KeyboardInterrupt here soon after
        time.sleep(0.001)

def main(ending):
    pool = FramePool(2)
    frames = pool.allocate("frames", (100, 4), "int64")
    frames[:] = 1
    pool.run(Double(), range(99))
    print(frames.sum(), os.getpid(), flush=True)
    if ending == "exit":
        return
    if ending == "raise":
        try:
            pool.run(Double(), range(100))
        except ScriptError as error:
            raise SystemExit(5) from error
    if ending == "interrupt":
        pool.run(Double(), range(99), interrupt)
    if ending == "kill all":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""
GUARDED = SCRIPT + "\nif __name__ == '__main__':\n    main(sys.argv[1])\n"
# Before SCRIPT; the workers import it too, without an effect.
WITHOUT_MEMFD = """
import os
if hasattr(os, "memfd_create"):
    del os.memfd_create
"""
SIGNAL_AT_THE_START = """
import os, signal, sys
from flowreg_gpu.workers import group

def start_and_signal(start=group.start_worker):
    worker = start()
    os.killpg(0, getattr(signal, sys.argv[2]))  # the worker has hardly begun
    return worker

if __name__ == "__main__":
    group.start_worker = start_and_signal
    signal.signal(getattr(signal, sys.argv[2]), lambda number, frame: None)
"""
UNGUARDED = SCRIPT + "\nmain('exit')\n"


def run_script(folder, text, *arguments):
    path = folder / "script.py"
    path.write_text(text)
    return run_program(path, *arguments, folder=folder)


@pytest.mark.parametrize(("ending", "code"), [("exit", 0), ("raise", 5)])
def test_interpreter_exit_without_close(tmp_path, ending, code):
    done = run_script(tmp_path, GUARDED, ending)
    assert done.stderr == ""  # among others, nothing about leaked shared_memory
    assert done.returncode == code
    doubled, pid = done.stdout.split()
    assert doubled == str(4 * (99 * 2 + 1))
    assert named_blocks(pid) == []


@needs_posix
def test_killed_parent(tmp_path):
    done = run_script(tmp_path, GUARDED, "kill")  # comes back: the workers ended by themselves
    assert done.returncode == -signal.SIGKILL
    assert named_blocks(done.stdout.split()[1]) == []


@needs_posix
@pytest.mark.parametrize("memfd", [True, False])
def test_killed_group(tmp_path, memfd):
    text = GUARDED if memfd else WITHOUT_MEMFD + GUARDED
    done = run_script(tmp_path, text, "kill all")  # also the resource tracker, which could have removed names
    assert done.returncode == -signal.SIGKILL
    doubled, pid = done.stdout.split()
    assert doubled == str(4 * (99 * 2 + 1))
    assert named_blocks(pid) == []


@needs_posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_the_group_while_the_first_workers_start(tmp_path, name):
    """The first child brings multiprocessing's resource tracker, which lets signals through that were blocked."""
    done = run_script(tmp_path, SIGNAL_AT_THE_START + GUARDED, "exit", name)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split()[0] == str(4 * (99 * 2 + 1))


@needs_posix
def test_interrupted_script(tmp_path):
    done = run_script(tmp_path, GUARDED, "interrupt")
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert named_blocks(done.stdout.split()[1]) == []


def test_unguarded_script(tmp_path):
    done = run_script(tmp_path, UNGUARDED)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "a worker process is about to start workers" in done.stderr  # the workers
    assert "before it was ready" in done.stderr  # the script
    assert 'under `if __name__ == "__main__":`' in done.stderr


def test_a_daemon_has_no_workers(pool, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(RuntimeError, match="cannot be started: this process is a daemonic worker"):
        pool.start()


def test_examples_run():
    failed, attempted = doctest.testmod(importlib.import_module("flowreg_gpu.workers.pool"))
    assert failed == 0
    assert attempted > 0
