"""Processes with little shared memory, and where there can be none: parts of a batch, or threads, and the same bits."""

import os
import re
import shutil
import sys

import numpy as np
import pytest

import flowreg_gpu as fg
from flowreg_gpu.engine.batch import Batch, FlowMean
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import gpu_status, processes
from flowreg_gpu.options import Options
from flowreg_gpu.workers import blocks
from tests.movies import recording
from tests.programs import held_blocks, run_program

FAST = {"alpha": 4, "levels": 3, "min_level": 1}
HEIGHT, WIDTH = 26, 31
#: Of a frame in float32, one channel, its registered frame and its flow.
FRAME_BYTES = HEIGHT * WIDTH * 4 * (1 + 1 + 2)
START_BYTES = HEIGHT * WIDTH * 4 * 2
NO_PROCESSES = r"worker processes cannot be used \(.+\); using 'threading'"

without_gpu = pytest.mark.skipif(gpu_status().usable, reason="a GPU is usable, and takes the place of processes")


def assert_same(result, expected):
    for array, other in zip(result, expected, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


def free_for(frames, monkeypatch):
    """Pretend that half of the free shared memory holds so many frames."""
    free = 2 * (START_BYTES + frames * FRAME_BYTES)
    monkeypatch.setattr(processes, "free_shared_memory", lambda: free)


class Parts(fg.MultiprocessingExecutor):
    """Notes how many frames its processes register at a time."""

    def __init__(self, fallback=False):
        super().__init__(2, fallback=fallback)
        self.parts = []

    def _run(self, task, indices, progress):
        self.parts.append(len(indices))
        super()._run(task, indices, progress)


@pytest.fixture(scope="module")
def movie():
    return recording(9, HEIGHT, WIDTH, dtype="float32")


@pytest.fixture(scope="module")
def expected(movie):
    return fg.register(movie.frames, movie.truth, "sequential", **FAST)


# Little shared memory


@pytest.mark.parametrize("fallback", [False, True])
def test_a_batch_in_parts(movie, expected, monkeypatch, fallback):
    free_for(4, monkeypatch)
    counts = []
    with Parts(fallback) as executor:
        result = fg.register(
            movie.frames, movie.truth, executor, batch=9, progress=lambda *counted: counts.append(counted), **FAST
        )
    assert executor.parts[:3] == [4, 4, 1]  # of the first start flow; the movie's may use what these have left
    assert counts[-1] == ("frames", 9, 9)
    assert executor.backend == "multiprocessing"
    assert_same(result, expected)


@pytest.mark.parametrize("averaged", [0, 1, 5, 9])
@pytest.mark.parametrize("keep_flow", [False, True])
def test_the_mean_flow_of_parts(movie, monkeypatch, averaged, keep_flow):
    free_for(4, monkeypatch)
    job = Job.from_raw(options=Options(**FAST), reference=movie.truth.astype(np.float32)[..., None])
    start, results, means = np.zeros((2, HEIGHT, WIDTH), np.float32), [], []
    for executor in (Parts(), fg.SequentialExecutor()):
        with executor:
            executor.start_recording(job)
            means.append(FlowMean())
            batch = Batch(movie.frames[..., None], start, keep_flow=keep_flow, mean=means[-1], averaged=averaged)
            results.append(executor.register_batch(batch))
    assert_same(results[0][::2], results[1][::2])
    assert (results[0].flow is None) == (results[1].flow is None) == (not keep_flow)
    assert means[0].count == means[1].count == averaged
    if averaged:
        np.testing.assert_array_equal(means[0].planes(start), means[1].planes(start))
    if keep_flow:
        np.testing.assert_array_equal(results[0].flow, results[1].flow)


def test_processes_that_were_asked_for_take_single_frames(movie, expected, monkeypatch):
    free_for(0, monkeypatch)
    with Parts() as executor:
        assert_same(fg.register(movie.frames, movie.truth, executor, **FAST), expected)
    assert set(executor.parts) == {1}


def test_threads_take_over_below_two_frames_for_each_process(movie, expected, monkeypatch):
    free_for(3, monkeypatch)
    with Parts(fallback=True) as executor:
        with pytest.warns(RuntimeWarning, match=NO_PROCESSES) as told:
            assert_same(fg.register(movie.frames, movie.truth, executor, **FAST), expected)
        assert len(told) == 1
        assert executor.backend == "threading"
        assert not executor.parts
        assert not held_blocks()
        assert_same(fg.register(movie.frames, movie.truth, executor, **FAST), expected)  # without another word


def test_no_shared_memory_for_the_reference(movie, expected, monkeypatch):
    monkeypatch.setattr(blocks, "_free_bytes", lambda fd: 1000)
    with pytest.raises(RuntimeError, match=r'0.0 MB needed, 0.0 MB free .*; try a smaller batch,? or executor="thr'):
        fg.register(movie.frames, movie.truth, "multiprocessing", n_workers=2, **FAST)
    with fg.MultiprocessingExecutor(2, fallback=True) as executor, pytest.warns(RuntimeWarning, match=NO_PROCESSES):
        assert_same(fg.register(movie.frames, movie.truth, executor, **FAST), expected)


@without_gpu
def test_the_default_executors_may_take_threads(movie, expected, monkeypatch):
    free_for(0, monkeypatch)
    with pytest.warns(RuntimeWarning) as told:
        assert_same(fg.register(movie.frames, movie.truth, "gpu", n_workers=2, **FAST), expected)
    assert [str(warning.message).rsplit(maxsplit=1)[1] for warning in told] == ["'multiprocessing'", "'threading'"]
    with pytest.warns(RuntimeWarning, match=NO_PROCESSES):
        assert_same(fg.register(movie.frames, movie.truth, "auto", n_workers=2, **FAST), expected)


SMALL_SHM = """
import os, sys
import numpy as np
import flowreg_gpu as fg
if __name__ == "__main__":
    del os.memfd_create  # as where the system has none: blocks lie in /dev/shm
    movie = np.load(sys.argv[1])
    with fg.MultiprocessingExecutor(2, fallback=sys.argv[3] == "True") as executor:
        registered, flow = fg.register(
            movie["frames"], movie["truth"], executor, batch=9, alpha=4, levels=3, min_level=1
        )
    print(executor.backend)
    np.savez(sys.argv[2], registered=registered, flow=flow)
"""
MOUNT = "mount -t tmpfs -o size=SIZEk tmpfs /dev/shm"


def unshared(script, *arguments):
    """Run a shell script as root of a namespace in which it may mount."""
    command = ["unshare", "-rm", "sh", "-ec", script, "sh", *map(str, arguments)]
    return run_program("-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)", *command)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux's namespaces")
@pytest.mark.parametrize(
    ("kilobytes", "fallback", "backend"), [(160, False, "multiprocessing"), (64, True, "threading")]
)
def test_a_small_folder_of_shared_memory(movie, expected, tmp_path, kilobytes, fallback, backend):
    """Really small; frames, registered frames and flows of the movie take 113 kB, of which half may be taken."""
    mount = MOUNT.replace("SIZE", str(kilobytes))
    if shutil.which("unshare") is None or unshared(mount).returncode != 0:
        pytest.skip("no namespace to mount in")
    (tmp_path / "program.py").write_text(SMALL_SHM)
    np.savez(tmp_path / "movie.npz", frames=movie.frames, truth=movie.truth)
    arguments = (sys.executable, tmp_path / "program.py", tmp_path / "movie.npz", tmp_path / "result.npz", fallback)
    done = unshared(f'{mount}; exec "$@"', *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{backend}\n"
    assert done.stderr.count("using 'threading'") == int(fallback)
    result = np.load(tmp_path / "result.npz")
    assert_same((result["registered"], result["flow"]), expected)


# No processes at all

DAEMONIC = """
import sys
from multiprocessing import get_context
import numpy as np

def work(executor, given):
    import warnings
    import flowreg_gpu as fg
    movie = np.load(given)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = fg.register(movie["frames"], movie["truth"], executor, n_workers=2, alpha=4, levels=3, min_level=1)
    return result, [str(warning.message) for warning in told]

if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        for executor in ("auto", "gpu"):
            (registered, flow), told = pool.apply(work, (executor, sys.argv[1]))
            np.savez(sys.argv[2] + executor, registered=registered, flow=flow)
            print(executor, len(told), *told)
        try:
            pool.apply(work, ("multiprocessing", sys.argv[1]))
        except RuntimeError as error:
            print("refused", error)
"""


@without_gpu
def test_in_a_daemonic_worker(movie, expected, tmp_path):
    (tmp_path / "program.py").write_text(DAEMONIC)
    np.savez(tmp_path / "movie.npz", frames=movie.frames, truth=movie.truth)
    done = run_program(tmp_path / "program.py", tmp_path / "movie.npz", tmp_path / "result_")
    assert done.returncode == 0, done.stderr
    auto, gpu, refused = done.stdout.splitlines()
    assert re.fullmatch(r"auto 1 worker processes cannot be used \(.*daemonic.*\); using 'threading'", auto)
    assert re.fullmatch(r"gpu 1 executor='gpu' cannot be used .*; using 'threading' \(.*daemonic.*\)", gpu)
    assert re.fullmatch(r"refused executor='multiprocessing' cannot be used: .*daemonic.*", refused)
    for executor in ("auto", "gpu"):
        result = np.load(tmp_path / f"result_{executor}.npz")
        assert_same((result["registered"], result["flow"]), expected)


STANDARD_INPUT = """
import sys
import numpy as np
import flowreg_gpu as fg
if __name__ == "__main__":
    movie = np.load(sys.argv[1])
    registered, flow = fg.register(
        movie["frames"], movie["truth"], sys.argv[3], n_workers=2, alpha=4, levels=3, min_level=1
    )
    np.savez(sys.argv[2], registered=registered, flow=flow)
"""
READ_FROM = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:], stdin=open(sys.argv[1])).returncode)"


@without_gpu
@pytest.mark.parametrize("executor", ["auto", "multiprocessing"])
def test_a_script_from_standard_input(movie, expected, tmp_path, executor):
    (tmp_path / "program.py").write_text(STANDARD_INPUT)
    np.savez(tmp_path / "movie.npz", frames=movie.frames, truth=movie.truth)
    arguments = (sys.executable, "-", tmp_path / "movie.npz", tmp_path / "result.npz", executor)
    done = run_program("-c", READ_FROM, tmp_path / "program.py", *arguments)
    told = done.stderr.strip().splitlines()
    if executor == "auto":
        assert done.returncode == 0, done.stderr
        assert sum("using 'threading'" in line for line in told) == 1
        result = np.load(tmp_path / "result.npz")
        assert_same((result["registered"], result["flow"]), expected)
    else:
        assert done.returncode == 1
        assert re.match(r"RuntimeError: executor='multiprocessing' cannot be used: .*standard input", told[-1])
