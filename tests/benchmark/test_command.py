"""`flowreg-gpu benchmark`: what it measures, what it says of the rest, and that wrong results have no figures."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import flowreg_gpu as fg
from flowreg_gpu.benchmark import rivals, row, run
from flowreg_gpu.benchmark.process import run_apart, tree_bytes
from flowreg_gpu.benchmark.row import Task, measure
from flowreg_gpu.benchmark.schedule import LaunchLog, computation, count_schedule
from flowreg_gpu.cli.main import main
from flowreg_gpu.cuda.device import DeviceFacts
from flowreg_gpu.executors import EXECUTORS
from flowreg_gpu.executors.gpu import GPUStatus
from flowreg_gpu.model.plan import plan_levels
from flowreg_gpu.options import Options
from tests.emulation import EmulatedDevice

TINY = ("benchmark", "--size", "64x72", "--quality", "fast", "--frames", "8")
FACTS = DeviceFacts("NVIDIA H200", (9, 0), "13.0", "13.2", "13.5", "14.2.0", 3 * 2**30, 140 * 2**30, 132)


@pytest.fixture
def in_process(monkeypatch):
    """Rows in this process, where a test can change what they use."""
    monkeypatch.setattr(run, "run_apart", lambda task: {**measure(task), "host_bytes": None})


@pytest.fixture
def task(tmp_path):
    """A row on known motion that was made."""
    run._make_known_motion(tmp_path, run.Settings(64, 72))
    return Task("pyflowreg", "fast", None, 8, str(tmp_path))


def test_table_and_json(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main([*TINY, "--executor", "threading", "gpu", "--workers", "2", "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    results = json.loads(file.read_text())
    assert results["settings"]["frames"] == 8
    assert results["settings"]["seed"] == run.SEED
    assert results["machine"]["versions"]["numpy"] == np.__version__
    threading, gpu = results["rows"]
    assert (threading["executor"], threading["quality"], threading["workers"]) == ("threading", "fast", 2)
    assert threading["frames_registered"] == 16  # the start flow takes all eight too
    assert threading["frames_per_second"] * threading["seconds"] == pytest.approx(16)
    assert threading["ms_per_frame"] * threading["frames_per_second"] == pytest.approx(1000)
    assert threading["verification"]["equal"] == 1
    assert threading["end_point_error"] < 0.6 * results["end_point_error_without"]
    line = next(line for line in out.splitlines() if line.startswith("fast") and "threading" in line)
    for figure in (f"{threading['frames_per_second']:.2f}", f"{threading['end_point_error']:.3f} px", "0 px"):
        assert figure in line
    if sys.platform == "linux":
        assert 30e6 < threading["host_bytes"] < 2e9
        assert f"{threading['host_bytes'] / 1e6:.0f} MB" in line
    status = fg.gpu_status()
    if status.usable:
        assert gpu["verification"]["equal"] == 1
    else:
        assert gpu == {"quality": "fast", "executor": "gpu", "skipped": status.reason}
        assert f"not measured: {status.reason}" in out


def test_ratio_and_all_presets(in_process, capsys, tmp_path):
    file = tmp_path / "figures.json"
    command = ["benchmark", "--size", "64x64", "--channels", "2", "--frames", "8", "--json", str(file)]
    assert main([*command, "--quality", "all", "--executor", "threading", "--executor", "sequential"]) == 0
    results = json.loads(file.read_text())
    assert [(row["quality"], row["executor"]) for row in results["rows"]] == [
        (quality, executor) for quality in ("quality", "balanced", "fast") for executor in ("threading", "sequential")
    ]
    assert results["baseline"] == "sequential"
    threading, sequential = results["rows"][-2:]
    assert sequential["ratio"] == 1
    assert threading["ratio"] == pytest.approx(threading["frames_per_second"] / sequential["frames_per_second"])
    assert "ratio: times as fast as sequential" in capsys.readouterr().out


class WrongFlow(fg.SequentialExecutor):
    """A quarter of a pixel off where the flow is kept."""

    name = "wrong"

    def register_batch(self, batch):
        result = super().register_batch(batch)
        if batch.keep_flow:
            result.flow[..., 0] += 0.25
        return result


class WrongFrames(fg.SequentialExecutor):
    """The right flow, with frames that were not moved."""

    name = "wrong"

    def register_batch(self, batch):
        result = super().register_batch(batch)
        result.registered[...] = batch.frames[batch.halo : batch.halo + batch.count]
        return result


class Broken(fg.SequentialExecutor):
    """Cannot do anything."""

    name = "wrong"

    def register_batch(self, *given, **wanted):
        raise MemoryError("no room\nfor 3 frames")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            WrongFlow,
            "the result is not that of 'sequential': verified on the CPU: 8 frames, flow difference median 0.25",
        ),
        (WrongFrames, "the result is not that of 'sequential'"),
        (Broken, "MemoryError: no room for 3 frames"),
    ],
)
def test_wrong_results_have_no_figures(in_process, monkeypatch, capsys, tmp_path, kind, told):
    monkeypatch.setitem(EXECUTORS, "wrong", kind)
    file = tmp_path / "figures.json"
    assert main([*TINY, "--executor", "wrong", "threading", "--json", str(file)]) == 1
    out, err = capsys.readouterr()
    assert f"flowreg-gpu: error: wrong, fast: {told}" in err
    assert err.count("\n") == 1
    wrong, threading = json.loads(file.read_text())["rows"]
    assert set(wrong) - {"host_bytes"} == {"quality", "executor", "failed"}
    assert f"FAILED: {wrong['failed']}" in out
    assert threading["seconds"] > 0


def test_flow_worse_than_none(in_process, monkeypatch, capsys):
    monkeypatch.setattr(row, "end_point_error", lambda flow, truth: float("nan"))
    assert main([*TINY, "--executor", "threading"]) == 1
    assert "threading, fast: the flow is wrong: end-point error nan px, " in capsys.readouterr().err


def test_gpu(in_process, monkeypatch, capsys, tmp_path):
    """On the emulated device: its result is the CPU's, and its memory and the counted schedule stand in the table."""
    usable = GPUStatus(True, "NVIDIA H200, compute capability 9.0")
    free = iter([3 * 2**30] * 2 + [2 * 2**30] * 3)
    monkeypatch.setattr(row, "gpu_status", lambda: usable)
    monkeypatch.setattr(row, "device_facts", lambda: FACTS._replace(free_memory=next(free)))
    monkeypatch.setattr(row, "GPUExecutor", lambda **given: fg.GPUExecutor(device=EmulatedDevice(), **given))
    file = tmp_path / "figures.json"
    assert main([*TINY, "--executor", "gpu", "--json", str(file)]) == 0
    results, out = json.loads(file.read_text()), capsys.readouterr().out
    (gpu,), (schedule,) = results["rows"], results["schedule"]
    assert gpu["verification"]["percentile_99"] == 0
    assert gpu["device_bytes"] == 2**30
    assert "1074 MB" in out
    assert "NVIDIA H200, compute capability 9.0, 140 GiB; CUDA 13.0 of the driver" in out
    assert f"{gpu['ms_per_frame']:.3f} ms" in out
    assert f"{schedule['launches']}" in out


def test_schedule_is_what_a_device_is_given():
    options = Options(quality="fast")
    counted = count_schedule(32, 40, 2, options, 3)
    device = LaunchLog(EmulatedDevice())
    frames = np.random.default_rng(0).integers(0, 999, (3, 32, 40, 2)).astype(np.uint16)
    run_batch = computation(device, frames, frames[0].astype(np.float32), options)
    device.launches.clear()
    run_batch()
    assert (counted.batch, counted.launches) == (3, len(device.launches))
    assert 3 * counted.bytes_per_frame == sum(launch.nbytes for launch in device.launches)
    pixels = sum(level.height * level.width for level in plan_levels(32, 40, options).levels)
    assert counted.updates_per_frame == 50 * pixels  # coarse levels all of them


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import a_library_that_is_not_there", "pyflowreg {} cannot be used (No module named 'a_library"),
        ("x = 1", "pyflowreg {} cannot be used (No module named 'pyflowreg.motion_correction')"),
        ("print('noise')\nraise RuntimeError('broken\\nbadly')", "RuntimeError: broken badly"),
        ("import os\nprint('last words', flush=True)\nos._exit(3)", "its process ended with status 3: last words"),
    ],
)
def test_broken_pyflowreg(task, tmp_path, monkeypatch, source, told):
    """A reason in one line, whatever becomes of its import."""
    (tmp_path / "pyflowreg").mkdir()
    (tmp_path / "pyflowreg" / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    figures = run_apart(task)
    (reason,) = figures.values()
    assert told.split("{}")[0] in reason
    assert told.split("{}")[-1] in reason
    assert "\n" not in reason
    assert ("failed" in figures) == ("status" in told or "Runtime" in told)


def test_no_pyflowreg(in_process, monkeypatch, capsys):
    """The command that helps; the row is no failure, and neither is what breaks within pyflowreg."""
    monkeypatch.setitem(sys.modules, "pyflowreg", None)
    monkeypatch.setitem(sys.modules, "pyflowreg.motion_correction", None)
    assert main([*TINY, "--executor", "pyflowreg"]) == 0
    assert "pip install" in capsys.readouterr().out
    monkeypatch.setattr(rivals, "Rival", lambda *given: 1 // 0)
    assert main([*TINY, "--executor", "pyflowreg"]) == 0
    assert "FAILED: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize("channels", [1, 2])
def test_pyflowreg(in_process, monkeypatch, capsys, tmp_path, channels):
    """Its files, its flow and its count of frames; threads of pyflowreg's, without the start of processes."""
    pytest.importorskip("pyflowreg")
    monkeypatch.setitem(rivals.BACKENDS, "pyflowreg", (None, {}, "threading"))
    file = tmp_path / "figures.json"
    command = [*TINY, "--channels", str(channels), "--executor", "pyflowreg", "sequential", "--json", str(file)]
    assert main(command) == 0
    results = json.loads(file.read_text())
    pyflowreg, sequential = results["rows"]
    assert results["baseline"] == "pyflowreg"
    assert pyflowreg["frames_registered"] == 16
    assert pyflowreg["end_point_error"] == pytest.approx(sequential["end_point_error"], rel=0.2)
    assert sequential["ratio"] == pytest.approx(pyflowreg["seconds"] / sequential["seconds"])


def test_frames_last_some_seconds(task, monkeypatch):
    """Without a number of frames, recordings grow until one takes half of the target."""
    clock = iter([0.0, 0.1, 1.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr(row.time, "perf_counter", lambda: next(clock))
    written = []
    monkeypatch.setattr(row, "_write_recording", lambda path, movie, count: written.append(count))
    with np.load(row.known_motion_file(row.Path(task.folder))) as stored:
        known = row.KnownMotion(**stored)
    figures = row._time(task._replace(frames=None), known, lambda source, target, count: count + 22)
    assert written == [8, 8 * 16, 8 * 16 * 6]
    assert (figures["frames"], figures["seconds"], figures["frames_registered"]) == (768, 4.0, 790)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "16x64"], "frames of 16 x 64 pixels are too small, expected at least 64"),
        (["--channels", "3"], "channels=3 is not 1 or 2"),
        (["--quality", "best"], "quality='best' is not one of all, quality, balanced, fast"),
        (["--executor", "warp"], "executor='warp' is not one of "),
        (["--frames", "7"], "frames=7 is below 8"),
        (["--workers", "0"], "workers=0 is below 1"),
        (["--json", "nowhere/figures.json"], "the folder of the output does not exist"),
        (["--json", "."], "the output is a folder"),
    ],
)
def test_wrong_usage(arguments, told, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *arguments]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert (out, err.count("\n")) == ("", 1)
    assert not list(tmp_path.iterdir())


def test_size_that_is_none(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "--size", "512"])
    assert stopped.value.code == 2
    assert "'512' is not rows x columns, e.g. 512x512" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="memory is sampled on Linux only")
def test_memory_counts_children():
    before = tree_bytes(os.getpid())
    script = "a = bytearray(64_000_000); a[::4096] = b'1' * len(a[::4096]); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert 64e6 < tree_bytes(os.getpid()) - before < 200e6
        child.communicate(b"\n")
    assert tree_bytes(2**30) == 0
