"""The public names as a type checker sees them. mypy checks this file, nothing runs it.

A public name that is missing for type checkers, or has another type than here, is an error of `mypy`, and so is an
error that is expected here and does not come (an unused ignore).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import flowreg_gpu as fg
from flowreg_gpu.executors.gpu import GPUStatus
from flowreg_gpu.registration.verification import Verification

movie: NDArray[np.uint16] = np.zeros((4, 32, 40), np.uint16)
image: NDArray[np.float32] = np.zeros((32, 40), np.float32)

# Functions
registered, flow = fg.register(movie, reference=slice(0, 4), executor="threading", alpha=4)
assert_type(registered, NDArray[Any])
assert_type(flow, NDArray[np.float32])
assert_type(fg.register_file(Path("in.tif"), "out.tif", flow_file="flow.h5", verify=2), fg.Summary)
assert_type(fg.register_file(["part1.tif", "part2.tif"], "out.tif", reference=[0, 1, 2]), fg.Summary)
assert_type(fg.apply_file("flow.h5", "red.tif", Path("out.tif"), "threading", overwrite=True), fg.Summary)
assert_type(fg.estimate_flow(image, image, fg.Options(alpha=4), quality="fast"), NDArray[np.float32])
assert_type(fg.warp(movie, flow, image, interpolation="linear"), NDArray[Any])
assert_type(fg.map_frames(np.median, movie, n_workers=2), NDArray[Any])
assert_type(fg.map_frames(np.median, "in.tif", "out.tif", chunk=4, dtype="uint8", shape=(9, 9), timeout=60), str)
assert_type(fg.map_frames(np.median, Path("in.npy"), image, overwrite=True), NDArray[np.float32])
fg.smooth_file(Path("in.tif"), "out.tif", sigma=(1, 1, 0), executor="threading", overwrite=True)
assert_type(fg.gpu_status(), GPUStatus)
assert_type(fg.__version__, str)

# Classes
options = fg.Options.from_file("run.toml").replace(alpha=(2.0, 4.0), weight=(0.7, 0.3))
assert_type(options, fg.Options)
assert_type(options.to_dict(), dict[str, Any])


def executors() -> list[fg.BaseExecutor]:
    """Every executor is a `BaseExecutor`."""
    return [
        fg.SequentialExecutor(),
        fg.ThreadingExecutor(2),
        fg.MultiprocessingExecutor(n_workers=2),
        fg.GPUExecutor(device=1, batch=64, fallback=False),
    ]


def read(summary: fg.Summary) -> None:
    """What a summary holds."""
    assert_type(summary.statistics, dict[str, NDArray[Any]])
    assert_type(summary.frames_per_second, float)
    assert_type(summary.reference, NDArray[np.float32])
    assert_type(summary.verification, Verification | None)


# What must be an error
fg.registre(movie)  # type: ignore[attr-defined]
fg.register_file("in.tif")  # type: ignore[call-arg]
fg.Options(levels="many")  # type: ignore[arg-type]
fg.warp(movie, flow)  # type: ignore[call-arg]
fg.BaseExecutor()  # type: ignore[abstract]
