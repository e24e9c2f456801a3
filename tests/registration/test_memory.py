"""Memory of a run: what is computed before it, beside what the system has counted, and limits that are kept."""

import json
import os
import re

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.cli.main import main
from flowreg_gpu.io import ArrayReader
from flowreg_gpu.options import Options
from flowreg_gpu.registration import memory
from flowreg_gpu.registration.memory import RunMemory, parse_memory
from tests.movies import recording
from tests.programs import run_program

FAST = {"alpha": 4, "levels": 3, "min_level": 1}

# The size as text


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("500MB", 500_000_000),
        ("2GB", 2_000_000_000),
        ("1.5GiB", 3 * 2**29),
        (" 2 g ", 2_000_000_000),
        ("64kib", 2**16),
        (".5MB", 500_000),
        ("123456", 123456),
        (123456, 123456),
        (np.int64(7), 7),
    ],
)
def test_sizes(text, n_bytes):
    assert parse_memory(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "2GBit", "-1GB", "1,5GB", "0", "0.1B", 0, -5, "2 G B", "1e9", "GB"])
def test_texts_that_are_no_size(text):
    with pytest.raises(ValueError, match=rf"memory={re.escape(repr(text))}, expected a size such as 500MB, 2GB"):
        parse_memory(text)


@pytest.mark.parametrize("value", [True, 2.5, [1], b"2GB"])
def test_types_that_are_no_size(value):
    with pytest.raises(TypeError, match=r"memory=.*, expected a size such as 500MB"):
        parse_memory(value)


# The batch that is chosen


def run_memory(executor, shape=(400, 64, 64), dtype="uint16", **wanted):
    reader = ArrayReader(np.broadcast_to(np.zeros((), dtype), shape))
    return RunMemory(reader, Options(), executor, keep_flow=False, **wanted)


@pytest.mark.parametrize("n_workers", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["sequential", "threading", "multiprocessing"])
def test_a_worker_has_as_many_frames_of_a_batch_as_the_others(name, n_workers):
    executor = fg.executors.create_executor(name, n_workers)
    plan = run_memory(executor, (4000, 512, 512)).plan(None, window=400)
    assert plan.batch % executor.n_workers == 0
    assert 2 * executor.n_workers <= plan.batch <= 8 * executor.n_workers  # 8 MiB for each worker
    assert plan.reference_batch == max(plan.batch // 2, 2 * executor.n_workers)  # in float32


def test_large_frames_come_two_for_each_worker():
    plan = run_memory(fg.ThreadingExecutor(3), (400, 4096, 4096)).plan(None, window=400)
    assert (plan.batch, plan.reference_batch) == (6, 6)


def test_a_window_that_fits_is_one_batch():
    assert run_memory(fg.ThreadingExecutor(2)).plan(None, window=400).batch >= 400
    assert run_memory(fg.ThreadingExecutor(2), (4000, 256, 256)).plan(None, window=70).batch == 36  # not 64 and 6


def test_a_smaller_limit_makes_smaller_batches():
    sizes = run_memory(fg.ThreadingExecutor(2), (4000, 512, 512))
    free = sizes.plan(None, window=400)
    limits = range(free.n_bytes + 1000, sizes.n_bytes(1) - 1, -2_000_000)
    plans = [sizes.plan(None, window=400, limit=limit) for limit in limits]
    assert plans[0] == free
    assert all(plan.n_bytes <= limit for plan, limit in zip(plans, limits, strict=True))
    batches = [plan.batch for plan in plans]
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] == 1 or sizes.n_bytes(batches[-1]) > limits[-1] - 2_000_000
    assert all(batch % 2 == 0 for batch in batches if batch > 2)


def test_what_is_named_as_the_least_is_enough():
    sizes = run_memory(fg.ThreadingExecutor(2), (400, 512, 512))
    with pytest.raises(ValueError, match=r"memory=50MB is too little: \d+MB is the least for") as refused:
        sizes.plan(None, window=400, limit=50_000_000)
    assert "\n" not in str(refused.value)
    least = re.search(r"(\d+MB) is the least", str(refused.value))[1]
    assert sizes.plan(None, window=400, limit=parse_memory(least)).batch == 1
    with pytest.raises(ValueError, match="too little"):
        sizes.plan(None, window=400, limit=parse_memory(least) - 1_000_000)


def test_a_batch_that_was_asked_for_is_not_made_smaller():
    sizes = run_memory(fg.ThreadingExecutor(2), (400, 512, 512))
    assert sizes.plan(50, window=400).batch == 50
    with pytest.raises(ValueError, match=r"\d+MB is the least for batches of 50 frames with executor 'threading'"):
        sizes.plan(50, window=400, limit=sizes.n_bytes(50) - 1)
    assert sizes.plan(50, window=400, limit=sizes.n_bytes(50)).batch == 50


def test_more_of_anything_takes_more(monkeypatch):
    monkeypatch.setattr(memory, "_resident_bytes", lambda: 100_000_000)
    reader = ArrayReader(np.zeros((30, 64, 70, 2), np.uint16))

    def n_bytes(executor=None, options=None, reader=reader, batch=8, **wanted):
        executor, options = executor or fg.ThreadingExecutor(2), Options.without_choices(**(options or {}))
        return RunMemory(reader, options, executor, **{"keep_flow": False, **wanted}).n_bytes(batch)

    plain = n_bytes()
    assert n_bytes(batch=9) > plain
    assert n_bytes(keep_flow=True) > plain
    assert n_bytes(verify=3) > plain
    assert n_bytes(options={"cc_initialization": True}) > plain
    assert n_bytes(options={"cc_initialization": "auto"}) > plain
    assert n_bytes(chooses=True) > plain
    assert n_bytes(options={"quality": "fast"}) < plain
    assert n_bytes(options={"sigma": (1, 1, 2)}) > plain
    assert n_bytes(executor=fg.ThreadingExecutor(3)) > plain
    assert n_bytes(executor=fg.SequentialExecutor()) < plain
    assert n_bytes(executor=fg.MultiprocessingExecutor(2)) > plain
    assert n_bytes(reader=ArrayReader(np.zeros((30, 64, 71, 2), np.uint16))) > plain


# What the system has counted

# What a process has taken at most is counted by the system, so that nothing depends on when one looks. Workers share
# the libraries and blocks that the process itself has mapped; their own memory, which they keep, is looked up whenever
# frames are finished.
PROGRAM = """
import json, multiprocessing, sys
import flowreg_gpu as fg
from flowreg_gpu.registration.files import FileRegistration

def status(pid, name):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

if __name__ == "__main__":
    source, target, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    options = fg.Options(**arguments.pop("options", {}))
    own = [0]

    def look(*_):
        own.append(sum(status(child.pid, "RssAnon") for child in multiprocessing.active_children()))

    with FileRegistration(source, target, options=options, **arguments) as registration:
        plan = registration.registration.memory
        registration.run(look)
    print(plan.batch, plan.n_bytes, status("self", "VmHWM") + max(own))
"""

CASES = {
    "threads": ((60, 512, 512), "uint16", {"executor": "threading", "options": {"quality": "fast"}}),
    "processes": ((60, 512, 512), "uint16", {"executor": "multiprocessing", "options": {"quality": "fast"}}),
    "two channels": ((24, 2, 400, 300), "uint16", {"executor": "sequential"}),
    "large frames": ((12, 1100, 1200), "uint8", {"executor": "threading", "options": {"quality": "balanced"}}),
    "float32": ((30, 600, 500), "float32", {"executor": "threading", "options": {"quality": "fast"}}),
}


def measured(tmp_path, shape, dtype, arguments):
    """Batch, computed and counted bytes of a run in a fresh process, after one that compiled the kernels."""
    source, program = tmp_path / "movie.tif", tmp_path / "program.py"
    rng = np.random.default_rng(1)
    frames = np.repeat(rng.integers(0, 200, (1, *shape[1:])), shape[0], axis=0).astype(dtype)
    axes = "TCYX" if frames.ndim == 4 else "TYX"
    tifffile.imwrite(source, frames, photometric="minisblack", metadata={"axes": axes})
    program.write_text(PROGRAM)
    given = json.dumps({"n_workers": 2, "overwrite": True, **arguments})
    done = None
    for name in ("first.tif", "second.tif"):  # compiling takes memory of its own
        done = run_program(program, source, tmp_path / name, given)
        assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


needs_counts = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells")


def test_frames_that_jump_are_registered_once_more_here():
    """In the main process, where there are frames that are not looked at before, and workers are others."""

    def n_bytes(executor, n_frames, aligned):
        options = Options.without_choices(cc_initialization=aligned)
        reader = ArrayReader(np.broadcast_to(np.zeros((), np.uint16), (n_frames, 64, 70)))
        return RunMemory(reader, options, executor, keep_flow=False, builds_reference=False).n_bytes(8)

    threads, processes = fg.ThreadingExecutor(2), fg.MultiprocessingExecutor(2)
    for executor, n_frames in ((threads, 32), (threads, 33), (processes, 32)):
        assert n_bytes(executor, n_frames, "auto") == n_bytes(executor, n_frames, True)
    assert n_bytes(processes, 33, "auto") > n_bytes(processes, 33, True) + 64 * 70 * 100


@needs_counts
@pytest.mark.parametrize("case", CASES)
def test_computed_and_counted(tmp_path, case):
    """At most 1.3 times what is taken: what a C library keeps of freed memory differs from run to run by some MB."""
    _, computed, counted = measured(tmp_path, *CASES[case])
    assert counted <= computed <= 1.3 * counted


@needs_counts
@pytest.mark.parametrize("executor", ["threading", "multiprocessing"])
def test_a_limit_is_kept(tmp_path, executor):
    shape, dtype, arguments = (60, 700, 800), "uint16", {"executor": executor, "options": {"quality": "fast"}}
    unlimited, _, counted = measured(tmp_path, shape, dtype, {**arguments, "batch": 60})
    limit = 410_000_000 if executor == "threading" else 610_000_000
    assert counted > limit
    batch, computed, counted = measured(tmp_path, shape, dtype, {**arguments, "memory": limit})
    assert 1 <= batch < unlimited
    assert counted <= computed <= limit


# The command line


@pytest.fixture
def movie(tmp_path, monkeypatch):
    # The tests' own process holds what thousands of tests before have loaded.
    monkeypatch.setattr(memory, "_process_bytes", lambda: 200_000_000)
    tifffile.imwrite(tmp_path / "movie.tif", recording(8, 26, 31).frames)
    return str(tmp_path / "movie.tif")


def test_the_command_says_it_before_the_work(movie, tmp_path, capsys):
    command = ["register", movie, "-o", str(tmp_path / "out.tif"), "--executor", "sequential", "--memory", "2GB"]
    assert main([*command, "--levels", "3", "--min-level", "1"]) == 0
    assert re.match(r"memory: about 0\.\d\d GB for batches of \d+ frames\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("1MB", r"memory=1MB is too little: \d+MB is the least for batches of one frame with executor 'sequential' .*"),
        ("some", "memory='some', expected a size such as 500MB, 2GB or 1.5GiB"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_wrong_usage(movie, tmp_path, capsys, size, told):
    out = tmp_path / "out.tif"
    assert main(["register", movie, "-o", str(out), "--executor", "sequential", "--memory", size]) == 2
    assert re.fullmatch(f"flowreg-gpu: error: {told}\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["movie.tif"]


def test_a_limit_does_not_change_the_result(movie, tmp_path):
    for name, limit in (("free.tif", None), ("limited.tif", "1.5GiB")):
        fg.register_file(movie, tmp_path / name, "sequential", slice(0, 3), memory=limit, **FAST)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "free.tif"), tifffile.imread(tmp_path / "limited.tif"))
