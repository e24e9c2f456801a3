"""The drop-in beside pyflowreg, array to array: the same call, the same options, all cores, in one run.

Usage: python benchmarks/speed_pyflowreg.py [--frames 200] [--size 512] [--executor multiprocessing]

Needs pyflowreg: pip install --pre "pyflowreg==0.1.0a9" "opencv-contrib-python<5". Two channels at quality, start flow
and statistics included; a first call on few frames compiles what has to be, in either program. Prints seconds, frames
per second, and the end-point error against the known motion.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import machine

machine.import_checkout()

import numpy as np  # noqa: E402

from flowreg_gpu.demo import end_point_error, make_movie  # noqa: E402

MARGIN = 10


def programs(executor: str, workers: int) -> dict[str, Any]:
    """Both functions, to be called with movie, reference and options."""
    from pyflowreg.motion_correction.compensate_arr import compensate_arr
    from pyflowreg.motion_correction.compensate_recording import RegistrationConfig

    import flowreg_gpu.pyflowreg

    config = RegistrationConfig(n_jobs=workers, parallelization="multiprocessing")
    return {
        "pyflowreg, multiprocessing": lambda *given: compensate_arr(*given, registration_config=config),
        f"flowreg_gpu.pyflowreg, {executor}": lambda *given: flowreg_gpu.pyflowreg.compensate_arr(
            *given, registration_config=config, executor=executor
        ),
    }


def main() -> None:
    """Print the table and write results/speed_pyflowreg.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--executor", default="multiprocessing")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    from pyflowreg.motion_correction import OFOptions

    motion = make_movie(chosen.frames, chosen.size, chosen.size, photons=60.0, seed=1)
    options = {"quality_setting": "quality", "alpha": 1.5, "save_w": True, "verbose": False}
    rows = []
    for name, compensate in programs(chosen.executor, chosen.workers).items():
        compensate(motion.movie[:4], motion.reference, OFOptions(**options))
        began = time.perf_counter()
        _, flow = compensate(motion.movie, motion.reference, OFOptions(**options))
        seconds = time.perf_counter() - began
        error = float(end_point_error(np.asarray(flow), motion.flow, MARGIN))
        rows.append({"program": name, "seconds": seconds, "error": error})
        print(f"{name:40} {seconds:8.1f} s {chosen.frames / seconds:8.2f} frames/s   error {error:.4f} px", flush=True)
    print(f"{rows[0]['seconds'] / rows[1]['seconds']:.1f} times as fast")
    machine.save("speed_pyflowreg", {"settings": vars(chosen), "rows": rows})


if __name__ == "__main__":
    main()
