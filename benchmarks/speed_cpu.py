"""Frames per second on the CPU: one core beside pyflowreg's one core, and processes and threads beside one core.

Usage: python benchmarks/speed_cpu.py [--frames N]

512x512x1 noisy frames. Both programs get the same preprocessed frames through `process_batch` of their sequential
executors (flow and cubic warp; ours adds the per-frame statistics). pyflowreg:
pip install --pre "pyflowreg==0.1.0a9" "opencv-contrib-python<5".
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import measurement

ALL_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
if __name__ == "__main__":  # not in the workers, which import this script again
    measurement.use_one_core()
measurement.import_checkout()

import numpy as np  # noqa: E402
from pyflowreg_flow import PARAMETERS, preprocessed, sequential_executor  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.io import ArrayReader, ArrayWriter  # noqa: E402
from flowreg_gpu.options import PRESETS  # noqa: E402
from flowreg_gpu.registration.loop import Registration  # noqa: E402
from flowreg_gpu.synthetic import end_point_error, make_movie  # noqa: E402


def inputs(frames: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Arguments of process_batch, and the true flow."""
    motion = make_movie(frames, 512, 512, seed=2)
    reference, batch = motion.reference[..., :1], motion.movie[..., :1]
    processed, processed_reference = preprocessed(batch, reference)
    return (batch, processed, reference, processed_reference, np.zeros((512, 512, 2), np.float32)), motion.flow


def timed(executor: Any, arguments: tuple[np.ndarray, ...], truth: np.ndarray, **keywords: Any) -> dict[str, float]:
    """Seconds per frame after a warm-up on the first two frames, and the end-point error."""
    warm = tuple(array[:2] if array.ndim == 4 else array for array in arguments)
    with executor:
        executor.process_batch(*warm, **keywords)
        began = time.perf_counter()
        _, flow = executor.process_batch(*arguments, **keywords)
        seconds = (time.perf_counter() - began) / len(truth)
    return {"ms": 1e3 * seconds, "fps": 1 / seconds, "epe": end_point_error(np.asarray(flow, np.float32), truth)}


def upstream(arguments: tuple[np.ndarray, ...], truth: np.ndarray, flow_params: dict[str, Any]) -> dict[str, float]:
    """pyflowreg's sequential executor on the same frames."""
    executor, functions = sequential_executor()
    import cv2  # pyflowreg's, loaded by now

    cv2.setNumThreads(1)
    return timed(executor, arguments, truth, flow_params=flow_params, **functions)


def recording_loop(cores: int) -> list[dict[str, Any]]:
    """Frames per second of whole runs in memory (preprocessing, start flow, flow, warp, statistics)."""
    motion = make_movie(25, 512, 512, seed=2)
    movie, reference = np.concatenate([motion.movie[..., :1]] * 4), motion.reference[..., :1]
    executors = {
        "sequential": fg.SequentialExecutor(),
        "threading": fg.ThreadingExecutor(cores),
        "multiprocessing, 1 worker": fg.MultiprocessingExecutor(1),
        f"multiprocessing, {cores} workers": fg.MultiprocessingExecutor(cores),
    }
    print(f"\n512x512x1, recording of {len(movie)} frames, quality, auto, {cores} cores")
    rows: list[dict[str, Any]] = []
    for name, executor in executors.items():
        with executor:
            Registration(ArrayReader(movie[:4]), reference, executor).run()  # workers started, kernels loaded
            writer = ArrayWriter(movie.shape, movie.dtype)
            summary = Registration(ArrayReader(movie), reference, executor).run(writer)
        fps = summary.frames_per_second
        speedup = fps / (rows[0]["fps"] if rows else fps)
        rows.append({"preset": "quality", "program": name, "fps": fps, "speedup": speedup})
        print(f"{name:28}{fps:8.2f} frames/s{speedup:8.2f} x sequential")
    return rows


def main() -> None:
    """Print the tables and write results/speed_cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10, help="frames per timing on one core (%(default)s)")
    frames = parser.parse_args().frames
    arguments, truth = inputs(frames)
    rows = []
    print(f"512x512x1, {frames} noisy frames, one core")
    print(f"{'preset':10}{'program':18}{'ms/frame':>10}{'frames/s':>10}{'ratio':>8}{'end-point error':>17}")
    for preset, min_level in PRESETS.items():
        shared = {**PARAMETERS, "min_level": min_level}
        base = upstream(arguments, truth, {**shared, "weight": np.ones(1)})
        results = {
            "pyflowreg": base,
            **{
                f"ours, {solver}": timed(
                    fg.SequentialExecutor(), arguments, truth, flow_params={**shared, "solver": solver}
                )
                for solver in ("sor", "auto")
            },
        }
        for name, result in results.items():
            ratio = base["ms"] / result["ms"]
            rows.append({"preset": preset, "program": name, "ratio": ratio, **result})
            print(f"{preset:10}{name:18}{result['ms']:10.1f}{result['fps']:10.2f}{ratio:8.1f}{result['epe']:17.4f}")

    if ALL_CORES:
        os.sched_setaffinity(0, ALL_CORES)
    rows += recording_loop(len(ALL_CORES) or os.cpu_count() or 1)
    measurement.save("speed_cpu", {"rows": rows})


if __name__ == "__main__":
    main()
