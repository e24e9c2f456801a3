"""pyflowreg's flow on a GPU (`flowreg_cuda`, `flowreg_torch`) and on the CPU, on frames that ours registers too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from throughput import GpuClock, NoClock, Recording, per_frame, spread

import flowreg_gpu as fg
from flowreg_gpu.cuda.device import Device
from flowreg_gpu.options import PRESETS
from flowreg_gpu.synthetic import end_point_error

#: Name of pyflowreg's backend, arguments of its factory, and whether it needs a GPU.
BACKENDS = (("flowreg_cuda", {}, True), ("flowreg_torch", {"device": "cuda"}, True), ("flowreg", {}, False))
OURS_FRAMES = 96
PARAMETERS = {"alpha": (1.5, 1.5), "levels": 100, "eta": 0.8, "iterations": 50, "update_lag": 5, "a_data": 0.45}
PARAMETERS |= {"a_smooth": 1.0, "const_assumption": "gc"}


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
    low, high = reference.min(), reference.max()
    planes, reference_planes = (
        gaussian_filter((image - low) / (high - low + 1e-8), sigma).astype(np.float32)
        for image, sigma in ((raw.astype(np.float32), (0, 1, 1, 0)), (reference, (1, 1, 0)))
    )
    return Frames(raw, planes, reference, reference_planes, recording.truth)


def backend(name: str, arguments: dict[str, Any], needs_gpu: bool, has_gpu: bool) -> Callable[..., np.ndarray]:
    """pyflowreg's flow function; RuntimeError with the reason where it cannot be used."""
    try:
        from pyflowreg.core import get_backend, is_backend_available
    except ImportError as error:
        raise RuntimeError(f"pyflowreg cannot be imported: {error}") from error
    if needs_gpu and not has_gpu:
        raise RuntimeError("needs a GPU")
    if not is_backend_available(name):
        raise RuntimeError("pyflowreg does not offer it: CuPy or PyTorch cannot be imported")
    if "device" in arguments:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
    function: Callable[..., np.ndarray] = get_backend(name)(**arguments)
    return function


def register(flow_of: Callable[..., np.ndarray], frames: Frames, index: int, min_level: int) -> np.ndarray:
    """Flow of a frame, which is also warped, as pyflowreg's sequential executor does."""
    from pyflowreg.core.warping import imregister_wrapper

    start = np.zeros((*frames.reference.shape[:2], 2))
    parameters = {**PARAMETERS, "min_level": min_level, "weight": np.ones(1)}
    flow = flow_of(frames.reference_planes, frames.planes[index], uv=start, **parameters).astype(np.float32)
    imregister_wrapper(frames.raw[index], flow[..., 0], flow[..., 1], frames.reference, interpolation_method="cubic")
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
        for name, arguments, needs_gpu in BACKENDS:
            row: dict[str, Any] = {"quality": quality, "program": f"pyflowreg {name}"}
            if left() < 2 * seconds:
                yield {**row, "skipped": "no time left"}
                continue
            try:
                rival = run_rival(backend(name, arguments, needs_gpu, timed), frames, min_level, seconds)
            except Exception as error:  # a rival's fault, whatever it is, is a line of the table
                yield {**row, "skipped": " ".join(str(error).split())}
                continue
            if timed:
                rival["ratio"] = rival["seconds"]["median"] / ours["seconds"]["median"]
            else:
                rival["seconds"] = None  # of a CPU beside an emulation: no result
            yield {**row, **rival}
