"""Everything that only a real GPU can tell, in one call of less than nine minutes.

Usage: python benchmarks/gpu.py [--out FOLDER] [--frames N] [--minutes M] [--movie FILE] [--commit NAME] [--dry-run]

From the root of a checkout; nothing needs to be installed but CuPy, numba, SciPy, tifffile and pytest. Sections:
environment; launches and bytes counted without a GPU; `pytest -m gpu`; parity with the CPU (parity.py); bandwidths
(the measured peak); time of every kernel (launches.py); frames per second from frames on the device, from array to
array and from file to file, and their parts (throughput.py); pyflowreg on the same frames (backends.py);
compute-sanitizer. A section that fails or for which there is no time says so, and the next one follows.

Written: gpu.json after every section, and gpu.md. --dry-run goes the same way on the emulated device of the tests,
with tiny frames: nothing is timed, and the files are gpu_emulated.json and gpu_emulated.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measurement
import numpy as np

measurement.import_checkout()

import backends  # noqa: E402
import parity  # noqa: E402
from launches import LaunchTimer, summarise  # noqa: E402
from throughput import Bench, GpuClock, NoClock, Recording, Seconds, Setting, settings  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.benchmark.schedule import LaunchLog, computation, count_schedule  # noqa: E402
from flowreg_gpu.cuda.device import CudaDevice, Device, device_facts  # noqa: E402
from flowreg_gpu.options import PRESETS, Options  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((512, 512, 1), (512, 512, 2), (1024, 1024, 1))
TINY_SIZES = ((64, 64, 1), (64, 64, 2), (96, 96, 1))
KERNEL_FRAMES = 64
H200 = 4.8e12  # bytes/s of the NVIDIA H200's memory, by its data sheet
GIB = 2**30

#: What the registration of a batch is made of; the defaults first, then the kernels that they leave out.
KERNEL_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sor, cs, pre-alignment": {
        "solver": "sor",
        "const_assumption": "cs",
        "cc_initialization": True,
        "cc_up": 10,
    },
    "multigrid": {"solver": "multigrid"},
    "block, gray, a_smooth 0.5": {"solver": "block", "const_assumption": "gray", "a_smooth": 0.5},
}
SANITIZED: tuple[dict[str, Any], ...] = (
    *({}, {"solver": "multigrid"}),
    *(KERNEL_OPTIONS["sor, cs, pre-alignment"], {"solver": "block", "a_smooth": 0.5}),
)

Result = tuple[dict[str, Any], list[str]]  # figures, and lines of Markdown


@dataclasses.dataclass
class Run:
    """What the sections share; `until` and `end` are times of `time.monotonic`, of the section and of the script."""

    device: Device
    emulated: bool
    clock: GpuClock | NoClock
    bench: Bench
    movie: Path
    end: float
    until: float = math.inf
    peak: float | None = None  # bytes/s

    def left(self) -> float:
        """Seconds that the section still has."""
        return self.until - time.monotonic()

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        return TINY_SIZES if self.emulated else SIZES

    def recording(self) -> Recording:
        """Of the first size, one channel."""
        return self.bench.recording(Setting(*self.sizes[0], "quality"))


def call(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit status, None where the time was up, and output of a program that runs in the root of the checkout."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def nvidia_smi() -> str | None:
    """Clocks, temperature and power at this moment."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    status, output = call(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 20)
    return output.strip() if status == 0 else None


def environment(run: Run) -> Result:
    """Where the figures are made."""
    figures: dict[str, Any] = {"device": run.device.name, "nvidia_smi": nvidia_smi()}
    lines = [run.device.name]
    if not run.emulated:
        facts = device_facts()
        figures["facts"] = facts._asdict()
        lines = [
            f"{facts.name}, compute capability {facts.capability[0]}.{facts.capability[1]}, "
            f"{facts.total_memory / GIB:.0f} GiB, {facts.free_memory / GIB:.0f} free; driver for CUDA {facts.driver}, "
            f"runtime {facts.runtime}, NVRTC {facts.nvrtc}, CuPy {facts.cupy}"
        ]
    if figures["nvidia_smi"] is not None:
        lines.append(figures["nvidia_smi"])
    return figures, lines


def schedule(run: Run) -> Result:
    """Launches and bytes of a batch at every setting, and the rate that the memory of an H200 would bound them to."""
    rows, cells = [], []
    for setting in settings(SIZES, PRESETS):
        *size, quality = setting
        counted = count_schedule(*size, Options(quality=quality), KERNEL_FRAMES)
        nbytes = counted.bytes_per_frame
        row = {"size": setting.size, "quality": quality, "launches": counted.launches, "bytes_per_frame": nbytes}
        rows.append({**row, "bound": H200 / nbytes})
        cells.append([setting.size, quality, str(counted.launches), f"{nbytes / 1e6:.0f}", f"{H200 / nbytes:.0f}"])
    columns = ("size", "preset", "launches per batch", "MB per frame", "frames/s at 4.8 TB/s")
    lines = [
        f"Counted, not measured: every launch moves each of its buffers once, batches of {KERNEL_FRAMES} frames. The "
        "last column is arithmetic with the data sheet of the H200.",
        "",
        *measurement.table(columns, cells),
    ]
    return {"rows": rows, "frames": KERNEL_FRAMES, "bytes_per_second": H200}, lines


def tests(run: Run) -> Result:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    status, output = call(command, run.left())
    ends = [line.strip("= ") for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    said = ends or output.strip().splitlines() or ["no output"]
    summary = "stopped: no time left" if status is None else f"{said[-1]} (exit status {status})"
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"summary": summary, "status": status, "failed": failed, "output": output[-20000:]}, [summary, *failed]


def compare_with_cpu(run: Run) -> Result:
    """The table of parity.py; in a dry run every sixth case."""
    movie = parity.load_movie(run.movie, 4 if run.emulated else 20) if run.movie.exists() else None
    chosen = list(parity.pairs(movie))[:: 6 if run.emulated else 1]
    rows = list(parity.run(run.device, chosen, run.until))
    last = parity.conclusion(rows, len(chosen))
    if movie is None:
        last += "; the movie is not there, synthetic frames only"
    lines = [*measurement.table(parity.COLUMNS, map(parity.cells, rows)), "", last]
    return {"rows": rows, "conclusion": last}, lines


def bandwidths(run: Run) -> Result:
    """Copies of random bytes on the device (bytes read and written) and over the bus (pinned memory)."""
    size = GIB // 4
    source, target = (run.device.empty((4, size), np.uint8) for _ in range(2))
    host = run.device.pinned((size,), np.uint8)
    host[:] = np.frombuffer(np.random.default_rng(0).bytes(size), np.uint8)
    for part in range(4):
        run.device.copy(source[part], host)
    timings = {
        "device": (2 * 4 * size, run.clock.queued(lambda: run.device.copy(target, source))),
        "upload": (size, run.clock.queued(lambda: run.device.copy(target[0], host))),
        "download": (size, run.clock.queued(lambda: run.device.copy(host, source[0]))),
    }
    rates = {name: nbytes / seconds["median"] for name, (nbytes, seconds) in timings.items() if seconds is not None}
    run.peak = rates["device"]
    text = ", ".join(f"{name} {rate / 1e9:.0f} GB/s" for name, rate in rates.items())
    return {name: {"bytes_per_second": rate} for name, rate in rates.items()}, [text]


def kernels(run: Run) -> Result:
    """Time and rate of every kernel of a batch; in a dry run launches and bytes."""
    count = 2 if run.emulated else KERNEL_FRAMES
    recording = run.recording()
    frames = np.resize(recording.movie, (count, *recording.movie.shape[1:]))
    height, width, _ = recording.reference.shape
    figures: dict[str, Any] = {"frames": count, "size": f"{height}x{width}x1"}
    lines = [
        f"{count} frames of {figures['size']}, quality. GB/s: bytes of the buffers of a launch, each once, over its "
        "time; the second for the launches at full resolution alone."
    ]
    for name, options in KERNEL_OPTIONS.items():
        timer = None if run.emulated else LaunchTimer(run.device)
        log = LaunchLog(run.device, timer)
        run_batch = computation(log, frames, recording.reference, Options.without_choices(**options), graphs=False)
        for _ in range(1 if run.emulated else 3):  # the first ones compile, and fill the pool of memory
            log.launches.clear()
            if timer is not None:
                timer.restart()
            run_batch()
            run.device.synchronize()
        rows = figures[name] = summarise(log.launches, count, timer)
        held = f", {timer.late} of {timer.groups} groups queued too late" if timer is not None else ""
        lines += ["", f"{name}: {len(log.launches)} launches{held}", "", *kernel_table(rows, run.peak)]
    figures["nvidia_smi"] = nvidia_smi()
    return figures, lines


def kernel_table(rows: list[dict[str, Any]], peak: float | None) -> list[str]:
    """Rows of `summarise`."""
    if "rate" not in rows[0]:
        cells = [[row["kernel"], str(row["launches"]), f"{row['bytes_per_frame'] / 1e6:.2f}"] for row in rows]
        return measurement.table(("kernel", "launches", "MB per frame"), cells)
    total = sum(row["seconds_per_frame"] for row in rows)
    cells = [
        [
            row["kernel"],
            str(row["launches"]),
            f"{1e3 * row['seconds_per_frame']:.4f}",
            f"{100 * row['seconds_per_frame'] / total:.1f} %",
            f"{row['rate'] / 1e9:.0f}",
            f"{row['largest_rate'] / 1e9:.0f}",
            f"{100 * row['largest_rate'] / peak:.0f} %" if peak else "",
        ]
        for row in rows
    ]
    columns = ("kernel", "launches", "ms/frame", "share", "GB/s", "GB/s, full size", "of the peak")
    return measurement.table(columns, [*cells, ["all", "", f"{1e3 * total:.4f}", "", "", "", ""]])


def end_to_end(run: Run) -> Result:
    """Whole registrations, and their parts alone."""
    rows: list[dict[str, Any]] = []
    longest = 0.0
    for setting in settings(run.sizes, PRESETS):
        row: dict[str, Any] = {"size": setting.size, "quality": setting.quality}
        if run.left() < longest:
            rows.append({**row, "skipped": "no time left"})
            continue
        run.bench.recording(setting)  # made when it is first asked for
        began = time.monotonic()
        try:
            rows.append(run.bench.measure(setting))
        except (ValueError, RuntimeError, OSError) as error:  # wrong flow, a fault of the device, a full disk
            rows.append({**row, "skipped": str(error)})
        longest = max(longest, time.monotonic() - began)
        print(f"  {setting.size} {setting.quality}: {time.monotonic() - began:.0f} s")
    lines = [
        "compute: frames that lie on the device; launched: the same without CUDA graphs; array, file: whole runs, "
        "start flow included, without flow output. Files are read from the system's cache. Parts are measured alone; "
        "stage is the copy to pinned memory.",
        "",
    ]
    return {"rows": rows}, lines + end_to_end_table(rows)


def end_to_end_table(rows: list[dict[str, Any]]) -> list[str]:
    """Frames per second of three ways, and milliseconds per frame of their parts."""
    ways, parts = ("compute", "launched", "array", "file"), ("read", "stage", "upload", "compute", "download", "write")
    columns = (
        "size",
        "preset",
        *(f"{way}, frames/s" for way in ways),
        *(f"{part}, ms" for part in parts),
        "error, px",
        "peak, GiB",
    )
    cells = []
    for row in rows:
        if "skipped" in row:
            cells.append([row["size"], row["quality"], row["skipped"], *[""] * (len(columns) - 3)])
            continue
        cells.append(
            [
                row["size"],
                row["quality"],
                *(frames_per_second(row[way]) for way in ways),
                *(milliseconds(row[part]) for part in parts),
                f"{row['end_point_error']:.3f}",
                f"{row['peak_bytes'] / GIB:.2f}",
            ]
        )
    return measurement.table(columns, cells)


def frames_per_second(seconds: Seconds) -> str:
    """Median, and half of the range in per cent."""
    if seconds is None:
        return "not timed"
    half = 50 * (seconds["high"] - seconds["low"]) / seconds["median"]
    return f"{1 / seconds['median']:.0f} ± {half:.0f} %"


def milliseconds(seconds: Seconds) -> str:
    """Median."""
    return "–" if seconds is None else f"{1e3 * seconds['median']:.3f}"


def beside_rivals(run: Run) -> Result:
    """pyflowreg on the frames that ours registers."""
    each = 1.0 if run.emulated else 5.0
    rows = list(backends.compare(run.device, run.clock, run.recording(), each, run.left))
    cells = []
    for row in rows:
        if "skipped" in row:
            cells.append([row["program"], row["quality"], row["skipped"], "", "", ""])
            continue
        rate = "not timed" if row["seconds"] is None else f"{1 / row['seconds']['median']:.2f}"
        ratio = f"{row['ratio']:.3g}" if "ratio" in row else ""
        cells.append([row["program"], row["quality"], rate, ratio, f"{row['end_point_error']:.3f}", str(row["frames"])])
    columns = ("program", "preset", "frames/s", "ours is faster by", "error, px", "frames")
    height, width, _ = run.sizes[0]
    lines = [f"{height}x{width}x1, preprocessed frames in memory, through `process_batch`", ""]
    return {"rows": rows}, lines + measurement.table(columns, cells)


def sanitizer(run: Run) -> Result:
    """Small registrations under compute-sanitizer, every buffer an allocation of its own."""
    folders = [os.environ.get("CUDA_PATH", ""), os.environ.get("CUDA_HOME", "")]
    compiler = shutil.which("nvcc")
    path = os.pathsep.join(
        [os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in folders if folder)]
        + ([str(Path(compiler).resolve().parent)] if compiler else [])
    )
    program = shutil.which("compute-sanitizer", path=path)
    if program is None:
        return {"summary": "compute-sanitizer is not installed"}, ["compute-sanitizer is not installed"]
    figures: dict[str, Any] = {}
    tools = ["memcheck", "--report-api-errors", "no"], ["racecheck"], ["synccheck"]
    for index, tool in enumerate(tools):
        status, output = call(
            [program, "--tool", *tool, sys.executable, __file__, "--sanitized-run"], run.left() / (len(tools) - index)
        )
        found = [line.strip("= ") for line in output.splitlines() if "SUMMARY:" in line]
        registered = "registered" if "registered all" in output else "did not finish"
        figures[tool[0]] = {"summary": "; ".join([*found, registered]), "status": status, "output": output[-4000:]}
    lines = [f"{tool}: {result['summary']}" for tool, result in figures.items()]
    return {**figures, "summary": "; ".join(lines)}, lines


class SeparateBuffers(CudaDevice):
    """A GPU without a pool of memory, so that memcheck sees what is read or written beyond a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self._captured: list[Any] | None = None  # memory of a graph that is being captured, which stays with its replay

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        import cupy

        dtype = np.dtype(dtype)
        memory = cupy.cuda.Memory(max(math.prod(shape) * dtype.itemsize, 1))
        if self._captured is not None:
            self._captured.append(memory)
        return cupy.ndarray(tuple(shape), dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))

    def capture_graph(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self._captured = memory = []
        try:
            result, replay = super().capture_graph(work)
        finally:
            self._captured = None
        return result, functools.partial(lambda replay, memory: replay(), replay, memory)


def sanitized_run(device: Device) -> None:
    """What compute-sanitizer watches: small frames, a few ways; the second batch is captured as a graph and replayed.

    The finest of three levels is too large for the launch that does the others.
    """
    case = parity.Case("", shape=(100, 112, 2))
    frames, reference = parity.synthetic_frames(case)
    for options in SANITIZED:
        with fg.GPUExecutor(device=device, batch=2, fallback=False) as executor:
            fg.register(frames[:5], reference.astype(np.float32), executor, levels=3, **options)
    print("registered all")


#: Name, function, and the seconds that a section may take at most (what is left of the script's time, if less).
SECTIONS: tuple[tuple[str, Callable[[Run], Result], float], ...] = (
    ("environment", environment, 30),
    ("schedule", schedule, 30),
    ("tests", tests, 150),
    ("parity", compare_with_cpu, 120),
    ("bandwidth", bandwidths, 20),
    ("kernels", kernels, 60),
    ("end to end", end_to_end, 170),
    ("rivals", beside_rivals, 100),
    ("sanitizer", sanitizer, 90),
)
ONLY_ON_A_GPU = ("bandwidth", "sanitizer")


def run_section(run: Run, name: str, section: Callable[[Run], Result], seconds: float) -> Result:
    """Figures and lines of a section, whatever becomes of it."""
    print(f"\n## {name}\n")
    if run.emulated and name in ONLY_ON_A_GPU:
        return {"skipped": "needs a GPU"}, ["needs a GPU"]
    if run.end - time.monotonic() < 5:
        return {"skipped": "no time left"}, ["no time left"]
    run.until = min(time.monotonic() + seconds, run.end)
    began = time.monotonic()
    try:
        figures, lines = section(run)
    except Exception as error:  # the other sections are to follow
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        figures, lines = {"failed": text, "traceback": traceback.format_exc()}, [f"failed: {text}"]
    return {**figures, "section_seconds": time.monotonic() - began}, lines


def short_table(results: dict[str, Any], emulated: bool) -> list[str]:
    """The end of the report: one line per section, and the frames per second."""

    def said(name: str, key: str) -> str:
        section = results.get(name, {})
        return str(section.get(key) or section.get("failed") or section.get("skipped") or "not run")

    lines = ["emulated: no figure here is a GPU's", ""] if emulated else [said("environment", "device"), ""]
    lines += [f"- tests: {said('tests', 'summary')}", f"- parity: {said('parity', 'conclusion')}"]
    lines.append(f"- sanitizer: {said('sanitizer', 'summary')}")
    copies = results.get("bandwidth", {}).get("device")
    if copies:
        lines.append(f"- copies on the device: {copies['bytes_per_second'] / 1e9:.0f} GB/s read and written")
    for name in ("end to end", "rivals"):
        if "rows" not in results.get(name, {}):
            lines.append(f"- {name}: {said(name, 'rows')}")
    best = {
        (row["quality"], row["program"]): row["ratio"]
        for row in results.get("rivals", {}).get("rows", [])
        if "ratio" in row
    }
    lines += [f"- {quality}: {ratio:.3g} times as fast as {program}" for (quality, program), ratio in best.items()]
    return [*lines, "", *end_to_end_table(results.get("end to end", {}).get("rows", []))]


def save(
    path: Path, facts: dict[str, Any], results: dict[str, Any], texts: dict[str, list[str]], seconds: float
) -> None:
    """Write what there is by now, as JSON and as Markdown."""
    figures = {"machine": facts, "seconds": seconds, **results}
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1, default=float) + "\n")
    lines = [f"# {results['environment'].get('device', 'GPU')}", "", measurement.one_line(facts), ""]
    for name, text in texts.items():
        lines += [f"## {name}", "", *text, ""]
    path.with_suffix(".md").write_text("\n".join(lines))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--frames", type=int, default=800, help="of recordings of 512x512 pixels (%(default)s)")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything (%(default)s)")
    parser.add_argument("--movie", type=Path, default=parity.MOVIE, help="two-photon movie for the parity")
    parser.add_argument("--folder", type=Path, help="where recordings are written and read (a temporary folder)")
    parser.add_argument("--commit", help="name of the commit, where git cannot tell")
    parser.add_argument("--dry-run", action="store_true", help="the emulated device, tiny frames, no timings")
    parser.add_argument("--sanitized-run", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the sections and write the results; exit status 1 where tests or parity failed."""
    began = time.monotonic()
    chosen = parse()
    sys.stdout.reconfigure(line_buffering=True)
    if chosen.sanitized_run:
        sanitized_run(SeparateBuffers())
        return
    usable, reason = fg.gpu_status()
    emulated = chosen.dry_run or not usable
    if emulated and not chosen.dry_run:
        print(f"no usable GPU ({reason}): as with --dry-run")
    # a GPU that hangs, hangs the host in a call of CUDA's, which no exception ends
    faulthandler.dump_traceback_later(60 * chosen.minutes + 20, exit=True)
    facts = measurement.describe()
    facts["commit"] = chosen.commit or facts["commit"]
    path = chosen.out / ("gpu_emulated" if emulated else "gpu")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        device = parity.make_device("emulated" if emulated else "cuda")
        clock = NoClock() if emulated else GpuClock(device)
        bench = Bench(device, clock, Path(folder), 12 if emulated else chosen.frames)
        run = Run(device, emulated, clock, bench, chosen.movie, began + 60 * chosen.minutes)
        results: dict[str, Any] = {}
        texts: dict[str, list[str]] = {}
        for name, section, seconds in SECTIONS:
            results[name], texts[name] = run_section(run, name, section, seconds)
            print("\n".join(texts[name]))
            save(path, facts, results, texts, time.monotonic() - began)
    texts["in short"] = short_table(results, emulated)
    save(path, facts, results, texts, time.monotonic() - began)
    print("\n".join(["\n## in short\n", *texts["in short"]]))
    print(f"\n{time.monotonic() - began:.0f} s; {path}.json, {path}.md; commit {facts['commit']}")
    failed = [row for row in results["parity"].get("rows", [{}]) if row.get("verdict") != "ok"]
    sys.exit(bool(failed) or results["tests"].get("status") != 0)


if __name__ == "__main__":
    main()
