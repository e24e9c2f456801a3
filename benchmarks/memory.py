"""Peak memory of a registration of a recording larger than memory should hold: process, workers and shared memory.

Usage: python benchmarks/memory.py [--gigabytes 4] [--folder FOLDER] [--executors threading multiprocessing]

Makes a BigTIFF of noisy 512x512 frames and registers it from file to file with every executor in turn, each in a
process of its own. Until it ends, the proportional set size of that process and its children is sampled, in which what
several of them share (blocks of shared memory, libraries) is counted once. Beside the peak stand what was computed
before the start, and frames per second of the run itself.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measurement
import numpy as np
import tifffile

measurement.import_checkout()

from flowreg_gpu.benchmark.process import tree_bytes  # noqa: E402
from flowreg_gpu.synthetic import make_movie  # noqa: E402

#: Bytes, with two workers.
LIMITS = {"threading": 0.35e9, "multiprocessing": 0.5e9}


def make_recording(path: Path, gigabytes: float) -> int:
    """Write frames of the demo again and again, each time with other noise; return their number."""
    motion = make_movie(16, 512, 512, seed=3)
    rng = np.random.default_rng(4)
    count = int(gigabytes * 1e9) // (512 * 512 * 2)
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for index in range(count):
            frame = motion.movie[index % 16, :, :, 0] + rng.integers(0, 40, (512, 512), np.uint16)
            tif.write(frame, contiguous=True)
    return count


def register(source: Path, target: Path, executor: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Register the recording with an executor; its figures."""
    command = [sys.executable, "-m", "flowreg_gpu", "register", str(source), "-o", str(target), "--overwrite"]
    command += ["--quality", chosen.quality, "--reference", "0:60", "--no-progress", "--executor", executor]
    command += ["--workers", str(chosen.workers), *(["--memory", chosen.memory] if chosen.memory else [])]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(0.05)
    assert process.stdout is not None
    said = process.stdout.read()
    computed = re.search(r"memory: about ([\d.]+) GB for batches of (\d+) frames", said)
    rate = re.search(r"([\d.]+) frames/s", said)
    if process.returncode or computed is None or rate is None:
        sys.exit(f"{executor}: exit {process.returncode}\n{said}")
    return {
        "peak_bytes": peak,
        "computed_bytes": float(computed[1]) * 1e9,
        "batch": int(computed[2]),
        "frames_per_second": float(rate[1]),
    }


def main() -> None:
    """Print a table and write results/memory.json; exit 1 where a peak is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    parser.add_argument("--quality", default="fast", help="preset (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes (%(default)s)")
    parser.add_argument("--memory", help="limit that the runs are given, e.g. 450MB")
    parser.add_argument("--executors", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    chosen = parser.parse_args()
    stated = ", ".join(f"{LIMITS[name] / 1e9} GB with {name}" for name in chosen.executors)
    print(f"stated before the run, for two workers: the peak stays below {stated}")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        source, target = Path(folder) / "recording.tif", Path(folder) / "registered.tif"
        count = make_recording(source, chosen.gigabytes)
        print(f"{count} frames, {source.stat().st_size / 1e9:.2f} GB; preset {chosen.quality}")
        runs = {executor: register(source, target, executor, chosen) for executor in chosen.executors}
    rows = [
        (
            executor,
            f"{run['peak_bytes'] / 1e9:.2f}",
            f"{run['computed_bytes'] / 1e9:.2f}",
            str(run["batch"]),
            f"{run['frames_per_second']:.1f}",
        )
        for executor, run in runs.items()
    ]
    print("\n".join(measurement.table(("executor", "peak GB", "computed GB", "batch", "frames/s"), rows)))
    above = [executor for executor, run in runs.items() if run["peak_bytes"] >= LIMITS[executor]]
    print(f"above the limit: {', '.join(above)}" if above else "all below the limits")
    wanted = {name: value for name, value in vars(chosen).items() if name not in ("folder", "executors")}
    measurement.save("memory", {"frames": count, **wanted, "limits": LIMITS, "runs": runs})
    sys.exit(bool(above))


if __name__ == "__main__":
    main()
