"""Beside pyflowreg, the same options, all cores, in one run: the drop-in array to array, or both TIFF to TIFF.

Usage: python benchmarks/speed_pyflowreg.py [--files] [--frames 200] [--size 512] [--executor multiprocessing]

Needs pyflowreg: pip install --pre "pyflowreg==0.1.0a9" "opencv-contrib-python<5". Array to array
(`compensate_arr`): two channels at quality; prints seconds, frames per second, and the end-point error against the
known motion. TIFF to TIFF (pyflowreg's `compensate_recording`, our `register_file`): one channel at quality, the same
reference image; prints the mean difference of the registered frames to the reference, in gray values. Start flow
and statistics included; a first call on few frames compiles what has to be, in either program.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import measurement

measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.io import TiffReader  # noqa: E402
from flowreg_gpu.synthetic import KnownMotion, end_point_error, make_movie  # noqa: E402

MARGIN, FEW = 10, 4
OPTIONS = {"quality_setting": "quality", "alpha": 1.5, "verbose": False}


class Program(NamedTuple):
    """What registers so many frames, and what tells how far the result is off."""

    name: str
    register: Callable[[int], Any]
    error: Callable[[Any], float]


def in_memory(motion: KnownMotion, executor: str, workers: int) -> list[Program]:
    """Array to array; the error is that of the flow."""
    from pyflowreg.motion_correction import OFOptions
    from pyflowreg.motion_correction.compensate_arr import compensate_arr
    from pyflowreg.motion_correction.compensate_recording import RegistrationConfig

    import flowreg_gpu.pyflowreg

    config = RegistrationConfig(n_jobs=workers, parallelization="multiprocessing")

    def run(compensate: Callable[..., Any], count: int, **own: Any) -> np.ndarray:
        options = OFOptions(**OPTIONS, save_w=True)
        _, flow = compensate(motion.movie[:count], motion.reference, options, registration_config=config, **own)
        return np.asarray(flow)

    def theirs(count: int) -> np.ndarray:
        return run(compensate_arr, count)

    def ours(count: int) -> np.ndarray:
        return run(flowreg_gpu.pyflowreg.compensate_arr, count, executor=executor)

    def error(flow: np.ndarray) -> float:
        return float(end_point_error(flow, motion.flow[: len(flow)], MARGIN))

    return [
        Program("pyflowreg, multiprocessing", theirs, error),
        Program(f"flowreg_gpu.pyflowreg, {executor}", ours, error),
    ]


def in_files(motion: KnownMotion, executor: str, workers: int, folder: Path) -> list[Program]:
    """TIFF to TIFF, the first channel; the error is the difference to the reference."""
    from pyflowreg.motion_correction import OFOptions
    from pyflowreg.motion_correction.compensate_recording import RegistrationConfig, compensate_recording

    frames, reference = motion.movie[..., 0], motion.reference[..., 0]
    sources = {count: folder / f"recording_{count}.tif" for count in (FEW, len(frames))}
    for count, path in sources.items():
        tifffile.imwrite(path, frames[:count], photometric="minisblack", metadata={"axes": "TYX"})

    def theirs(count: int) -> Path:
        names = {"input_file": str(sources[count]), "output_path": str(folder), "output_format": "TIFF"}
        config = RegistrationConfig(n_jobs=workers, parallelization="multiprocessing")
        compensate_recording(OFOptions(**OPTIONS, **names), reference[..., None], config)
        return folder / "compensated.TIFF"

    def ours(count: int) -> Path:
        path = folder / "registered.tif"
        fg.register_file(sources[count], path, executor, reference, n_workers=workers, alpha=OPTIONS["alpha"])
        return path

    def error(path: Path) -> float:
        inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
        with TiffReader(path) as reader:
            registered = [reader.read(index, index + 1)[0, ..., 0] for index in range(reader.n_frames)]
        return float(np.mean([np.abs(frame[inner] - reference[inner]).mean() for frame in registered]))

    return [
        Program("pyflowreg, multiprocessing", theirs, error),
        Program(f"flowreg_gpu, {executor}", ours, error),
    ]


def main() -> None:
    """Print the table and write results/speed_pyflowreg.json, or speed_pyflowreg_files.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="TIFF to TIFF instead of array to array")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--executor", default="multiprocessing")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    motion = make_movie(chosen.frames, chosen.size, chosen.size, photons=60.0, seed=1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        given = motion, chosen.executor, chosen.workers
        programs = in_files(*given, Path(folder)) if chosen.files else in_memory(*given)
        unit = "gray values" if chosen.files else "px"
        for program in programs:
            program.register(FEW)
            began = time.perf_counter()
            result = program.register(chosen.frames)
            seconds = time.perf_counter() - began
            error = program.error(result)
            rows.append({"program": program.name, "seconds": seconds, "error": error})
            rate = chosen.frames / seconds
            print(f"{program.name:40} {seconds:8.1f} s {rate:8.2f} frames/s   error {error:.4f} {unit}", flush=True)
    print(f"{rows[0]['seconds'] / rows[1]['seconds']:.1f} times as fast")
    name = "speed_pyflowreg_files" if chosen.files else "speed_pyflowreg"
    measurement.save(name, {"settings": vars(chosen), "rows": rows})


if __name__ == "__main__":
    main()
