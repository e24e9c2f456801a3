"""pyflowreg's flow on a GPU (`flowreg_cuda`, `flowreg_torch`) and on the CPU, on frames that ours registers too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from pyflowreg_flow import PARAMETERS, preprocessed
from throughput import GpuClock, NoClock, Recording, per_frame, spread

import flowreg_gpu as fg
from flowreg_gpu.benchmark.rivals import BACKENDS, ON_GPU, Unavailable, check_backend
from flowreg_gpu.cuda.device import Device
from flowreg_gpu.options import PRESETS
from flowreg_gpu.pyflowreg.library import part
from flowreg_gpu.synthetic import end_point_error

OURS_FRAMES = 96


class Frames(NamedTuple):
    """Frames (T, H, W, 1), raw and normalised and filtered, the reference likewise, and the true flow."""

    raw: np.ndarray
    planes: np.ndarray
    reference: np.ndarray
    reference_planes: np.ndarray
    truth: np.ndarray


def prepare(recording: Recording) -> Frames:
    """Preprocess the frames whose flow is known; one channel."""
    count = len(recording.truth)
    raw, reference = recording.movie[:count, ..., :1], recording.reference[..., :1]
    planes, reference_planes = preprocessed(raw, reference)
    return Frames(raw, planes, reference, reference_planes, recording.truth)


def flow_function(backend: str | None, arguments: dict[str, Any], has_gpu: bool) -> Callable[..., np.ndarray]:
    """pyflowreg's flow function, None being the one on the CPU; Unavailable where it cannot be used."""
    if backend is not None and not has_gpu:
        raise Unavailable("needs a GPU")
    if backend is not None:
        check_backend(backend, arguments)
    function: Callable[..., np.ndarray] = part("core", "get_backend")(backend or "flowreg")(**arguments)
    return function


def register(flow_of: Callable[..., np.ndarray], frames: Frames, index: int, min_level: int) -> np.ndarray:
    """Flow of a frame, which is also warped, without the executor around them."""
    start = np.zeros((*frames.reference.shape[:2], 2))
    parameters = {**PARAMETERS, "min_level": min_level, "weight": np.ones(1)}
    flow = flow_of(frames.reference_planes, frames.planes[index], uv=start, **parameters).astype(np.float32)
    warp = part("core.warping", "imregister_wrapper")
    warp(frames.raw[index], flow[..., 0], flow[..., 1], frames.reference, interpolation_method="cubic")
    return flow


def run_rival(flow_of: Callable[..., np.ndarray], frames: Frames, min_level: int, limit: float) -> dict[str, Any]:
    """Frame by frame for at most `limit` seconds, after a warm-up; one frame at least."""
    register(flow_of, frames, 0, min_level)
    seconds: list[float] = []
    flows = []
    while len(flows) < len(frames.raw) and sum(seconds) < limit:
        began = time.perf_counter()
        flows.append(register(flow_of, frames, len(flows), min_level))
        seconds.append(time.perf_counter() - began)
    error = end_point_error(np.array(flows), frames.truth[: len(flows)])
    return {"frames": len(flows), "seconds": spread(seconds), "end_point_error": error}


def run_ours(device: Device, clock: GpuClock | NoClock, frames: Frames, min_level: int) -> dict[str, Any]:
    """The same through `process_batch`, which uploads the preprocessed frames too and downloads the flows."""
    count = OURS_FRAMES if isinstance(clock, GpuClock) else len(frames.raw)
    raw, planes = (np.resize(item, (count, *item.shape[1:])) for item in (frames.raw, frames.planes))
    start = np.zeros((*frames.reference.shape[:2], 2))
    flows: list[np.ndarray] = []
    with fg.GPUExecutor(device=device, fallback=False) as executor:

        def call() -> None:
            flows[:] = executor.process_batch(
                raw,
                planes,
                frames.reference,
                frames.reference_planes,
                start,
                flow_params={**PARAMETERS, "min_level": min_level},
            )[1:]

        seconds = per_frame(clock.wall(call), count)
    known = len(frames.truth)
    return {"frames": count, "seconds": seconds, "end_point_error": end_point_error(flows[0][:known], frames.truth)}


def compare(
    device: Device, clock: GpuClock | NoClock, recording: Recording, seconds: float, left: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Rows of program and preset, ours first; a rival takes about `seconds` a preset, and none starts without time."""
    frames, timed = prepare(recording), isinstance(clock, GpuClock)
    for quality, min_level in PRESETS.items():
        ours = run_ours(device, clock, frames, min_level)
        yield {"quality": quality, "program": "ours", **ours}
        for name in (*ON_GPU, "pyflowreg"):  # those first that only a GPU can run
            backend, arguments, _ = BACKENDS[name]
            row: dict[str, Any] = {"quality": quality, "program": f"pyflowreg {backend or 'flowreg'}"}
            if left() < 2 * seconds:
                yield {**row, "skipped": "no time left"}
                continue
            try:
                rival = run_rival(flow_function(backend, arguments, timed), frames, min_level, seconds)
            except Exception as error:  # a rival's fault, whatever it is, is a line of the table
                yield {**row, "skipped": " ".join(str(error).split())}
                continue
            if timed:
                rival["ratio"] = rival["seconds"]["median"] / ours["seconds"]["median"]
            else:
                rival["seconds"] = None  # of a CPU beside an emulation: no result
            yield {**row, **rival}
