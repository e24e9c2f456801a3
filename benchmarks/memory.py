"""Peak memory of a registration of a recording larger than memory should hold: process, workers and shared memory.

Usage: python benchmarks/memory.py [--gigabytes 4] [--folder FOLDER]

Makes a BigTIFF of noisy 512x512 frames, registers it from file to file in a process of its own, and samples the
proportional set size of that process and its children (shared memory is counted once) until it ends.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measurement
import numpy as np
import tifffile

measurement.import_checkout()

from flowreg_gpu.benchmark.process import tree_bytes  # noqa: E402
from flowreg_gpu.synthetic import make_movie  # noqa: E402

LIMIT = 1.5e9


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


def main() -> None:
    """Print the peak and write results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    parser.add_argument("--quality", default="fast", help="preset; memory hardly depends on it (%(default)s)")
    chosen = parser.parse_args()
    print(f"stated before the run: the peak of process, workers and shared memory stays below {LIMIT / 1e9} GB")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        source, target = Path(folder) / "recording.tif", Path(folder) / "registered.tif"
        count = make_recording(source, chosen.gigabytes)
        print(f"{count} frames, {source.stat().st_size / 1e9:.2f} GB")
        command = [sys.executable, "-m", "flowreg_gpu", "register", str(source), str(target)]
        command += ["--quality", chosen.quality, "--reference", "0:60", "--no-progress"]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        output_bytes = target.stat().st_size if target.exists() else 0
    print(
        f"exit {process.returncode}, {seconds:.0f} s, {count / seconds:.1f} frames/s, {output_bytes / 1e9:.2f} GB out"
    )
    print(f"peak {peak / 1e9:.2f} GB: {'below' if peak < LIMIT else 'ABOVE'} the limit")
    figures = {
        "frames": count,
        "seconds": seconds,
        "peak_bytes": peak,
        "limit_bytes": LIMIT,
        "exit": process.returncode,
    }
    measurement.save("memory", figures)
    sys.exit(process.returncode or int(peak >= LIMIT))


if __name__ == "__main__":
    main()
