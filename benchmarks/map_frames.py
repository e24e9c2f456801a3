"""A 5x5 Gaussian over a stack that is larger than memory, from TIFF to TIFF: peak memory and time of `map_frames`.

Usage: python benchmarks/map_frames.py [--frames 4000] [--size 2048] [--workers 2] [--folder FOLDER]

Each run is a process of its own, and the proportional set sizes of it and its children are sampled until it ends
(shared memory is counted once). Files are in the system's cache as far as it has room for them. Beside `map_frames`
with all workers stand `map_frames` with one worker on one core, the bare function on frames in memory, in one process
and in as many as workers, and `multiprocessing.Pool.imap`, which pickles every frame. The frames of the stack are 16
different ones again and again; sampled frames of every result are compared with SciPy's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measurement

measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.benchmark.process import tree_bytes  # noqa: E402

DIFFERENT = 16  # frames
GOALS = {"peak_bytes": 2**30, "of_one_core": 1.8, "of_bare": 1.3}


def smooth(frame: np.ndarray) -> np.ndarray:
    """Gaussian filter of 5x5 pixels."""
    return gaussian_filter(frame, 1.0, truncate=2.0)


def example(index: int, size: int) -> np.ndarray:
    """One of the different frames: noise on a gradient."""
    rng = np.random.default_rng(index % DIFFERENT)
    gradient = np.linspace(0, 200, size)[:, None]
    return (gradient + rng.integers(0, 55, (size, size))).astype(np.uint8)


def make_recording(path: Path, frames: int, size: int) -> None:
    """The different frames again and again, one page each."""
    examples = [example(index, size) for index in range(DIFFERENT)]
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for index in range(frames):
            tif.write(examples[index % DIFFERENT], contiguous=True)


def bare(frames: int, size: int) -> None:
    """The function on frames in memory; prints the seconds that it takes."""
    examples = [example(index, size) for index in range(DIFFERENT)]
    smooth(examples[0])
    began = time.perf_counter()
    for index in range(frames):
        smooth(examples[index % DIFFERENT])
    print(time.perf_counter() - began)


def imap(source: Path, target: Path, workers: int) -> None:
    """`multiprocessing.Pool.imap`, frame by frame, from TIFF to TIFF."""
    with tifffile.TiffFile(source) as tif, tifffile.TiffWriter(target, bigtiff=True) as out:
        frames = (page.asarray() for page in tif.pages)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for frame in pool.imap(smooth, frames):
                out.write(frame, contiguous=True)


def step(chosen: argparse.Namespace) -> None:
    """One run, in its own process, whose children have the cores that it has."""
    if chosen.step == "map_frames" and chosen.workers == 1:
        measurement.use_one_core()
    if chosen.step == "bare":
        bare(chosen.frames, chosen.size)
    elif chosen.step == "map_frames":
        fg.map_frames(smooth, chosen.source, chosen.target, n_workers=chosen.workers, overwrite=True)
    else:
        imap(chosen.source, chosen.target, chosen.workers)


def run(chosen: argparse.Namespace, what: str, workers: int, files: tuple[Path, Path]) -> dict[str, float]:
    """Seconds and peak bytes of a run; of `bare`, as many processes as workers, which share the frames."""
    source, target = files
    share = chosen.frames // workers if what == "bare" else chosen.frames
    command = [sys.executable, __file__, "--step", what, "--frames", str(share), "--size", str(chosen.size)]
    command += ["--workers", str(workers), "--source", str(source), "--target", str(target)]
    number = workers if what == "bare" else 1
    began = time.perf_counter()
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    peak = 0
    while any(process.poll() is None for process in processes):
        peak = max(peak, sum(tree_bytes(process.pid) for process in processes))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    told = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{what} with {workers} workers failed")
    if what == "bare":
        seconds = max(map(float, told))  # without what Python takes to start
    else:
        check(chosen, target)
        target.unlink()
    return {"seconds": seconds, "peak_bytes": peak}


def check(chosen: argparse.Namespace, target: Path) -> None:
    """Compare frames spread over a result with SciPy's."""
    with tifffile.TiffFile(target) as tif:
        series = tif.series[0]
        if series.shape[0] != chosen.frames:
            raise RuntimeError(f"{target}: {series.shape[0]} frames, expected {chosen.frames}")
        offset, size = series.dataoffset, chosen.size
    for index in np.linspace(0, chosen.frames - 1, 24).astype(int):
        found = np.fromfile(target, np.uint8, size * size, offset=offset + int(index) * size * size)
        np.testing.assert_array_equal(found.reshape(size, size), smooth(example(index, size)))


def main() -> None:
    """Print the table and write results/map_frames.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--size", type=int, default=2048, help="pixels of a side (%(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], metavar="RUN", help="runs to leave out: imap, one, bare")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    for hidden in ("--step", "--source", "--target"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        step(chosen)
        return
    runs = {"bare, one": ("bare", 1), "bare, all": ("bare", chosen.workers)}
    runs |= {"map_frames, one core": ("map_frames", 1), "map_frames, all": ("map_frames", chosen.workers)}
    runs |= {"imap, all": ("imap", chosen.workers)}
    rows = {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        files = Path(folder) / "stack.tif", Path(folder) / "smooth.tif"
        make_recording(files[0], chosen.frames, chosen.size)
        print(f"{chosen.frames} frames, {files[0].stat().st_size / 2**30:.2f} GiB")
        for name, (what, workers) in runs.items():
            if any(word in name for word in chosen.without):
                continue
            rows[name] = run(chosen, what, workers, files)
            seconds, peak = rows[name].values()
            rate = chosen.frames / seconds
            print(f"{name:20} {seconds:8.1f} s {rate:7.1f} frames/s, peak {peak / 2**20:6.0f} MiB", flush=True)
    mapped = rows["map_frames, all"]
    print(f"peak {mapped['peak_bytes'] / 2**20:.0f} MiB; goal: below {GOALS['peak_bytes'] / 2**20:.0f} MiB")
    for name, goal in (("map_frames, one core", "of_one_core"), ("bare, all", "of_bare")):
        if name in rows:
            ratio = rows[name]["seconds"] / mapped["seconds"]
            ratio = 1 / ratio if goal == "of_bare" else ratio
            words = "times as fast as" if goal == "of_one_core" else "times the time of"
            print(f"{ratio:.2f} {words} {name}; goal: {GOALS[goal]}")
    settings = {"frames": chosen.frames, "size": chosen.size, "workers": chosen.workers}
    measurement.save("map_frames", {"settings": settings, "goals": GOALS, "rows": rows})


if __name__ == "__main__":
    main()
