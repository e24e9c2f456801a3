"""One row of the benchmark: the known recording through one executor, checked and timed; runs in its own process."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from flowreg_gpu.benchmark import rivals
from flowreg_gpu.cuda.device import DeviceError, device_facts
from flowreg_gpu.executors import GPUExecutor, create_executor, gpu_status
from flowreg_gpu.options import Options
from flowreg_gpu.registration.api import register_file
from flowreg_gpu.synthetic import KnownMotion, end_point_error

__all__ = ["Task", "checked_files", "known_motion_file", "measure"]

TARGET_SECONDS = 6.0  # a timing lasts about that long, half of it at least
LARGEST_RECORDING = 2 * 2**30  # bytes; where that takes less than half of the target, so be it


class Task(NamedTuple):
    """What a row measures.

    `frames` None has as many as it takes; `folder` holds the known motion and takes the recordings; `timed` False
    only registers the known motion, for the others to be compared with.
    """

    executor: str
    quality: str
    workers: int | None
    frames: int | None
    folder: str
    timed: bool = True


def known_motion_file(folder: Path) -> Path:
    """Where the known motion lies."""
    return folder / "known_motion.npz"


def checked_files(task: Task) -> tuple[Path, Path]:
    """Registered frames and flow of the known motion, as the executor leaves them."""
    stem = task.executor if task.timed else "expected"
    return Path(task.folder, f"{stem}.tif"), Path(task.folder, f"{stem}_flow.tif")


def measure(task: Task) -> dict[str, Any]:
    """Figures of a row, or `skipped` or `failed` with the reason in one line."""
    with np.load(known_motion_file(Path(task.folder))) as stored:
        known = KnownMotion(**stored)
    try:
        return _rival(task, known) if task.executor in rivals.BACKENDS else _own(task, known)
    except rivals.Unavailable as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # whatever it is, the other rows are to follow
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _own(task: Task, known: KnownMotion) -> dict[str, Any]:
    options = Options.without_choices(quality=task.quality)  # those that the others have
    gpu, channels = task.executor == "gpu", known.movie.shape[3]
    if gpu and not gpu_status().usable:
        return {"skipped": gpu_status().reason}
    free = _free_device_memory() if gpu else None
    executor = GPUExecutor(fallback=False) if gpu else create_executor(task.executor, task.workers)
    source = _write_recording(Path(task.folder, "recording.tif"), known.movie, len(known.movie))
    registered, flow = checked_files(task)
    with executor:
        register_file(source, registered, executor, known.reference, flow, options, channels=channels, overwrite=True)
        error = end_point_error(tifffile.imread(flow), known.flow)
        figures: dict[str, Any] = {"workers": executor.n_workers, "end_point_error": error}

        def register(source: Path, target: Path, count: int) -> int:
            """Register a recording; the number of frames that went through the executor, start flow included."""
            totals: dict[str, int] = {}
            register_file(
                source,
                target,
                executor,
                known.reference,
                options=options,
                channels=channels,
                overwrite=True,
                progress=lambda stage, finished, total: totals.update({stage: total}),
            )
            return totals["start"] + totals["frames"]

        if task.timed:
            figures |= _time(task, known, register)
            figures["device_bytes"] = _taken(free)
    return figures | ({"gpu": device_facts()._asdict()} if gpu else {})


def _rival(task: Task, known: KnownMotion) -> dict[str, Any]:
    """pyflowreg; the flow of the first frames comes from the timed run, a warm-up on two frames compiles."""
    free = _free_device_memory() if task.executor in rivals.ON_GPU else None
    folder, kept = Path(task.folder), len(known.movie)
    rival = rivals.Rival(task.executor, known.reference, task.quality, task.workers, folder / "rival", kept)
    rival.register(_write_recording(folder / "recording.tif", known.movie, 2), 2)
    figures = _time(task, known, lambda source, target, count: rival.register(source, count))
    figures["device_bytes"] = _taken(free)
    return {"workers": rival.workers, "end_point_error": end_point_error(rival.flow, known.flow), **figures}


def _free_device_memory() -> int | None:
    """Bytes free on the GPU, once its context is there."""
    try:
        device_facts()
        return device_facts().free_memory
    except DeviceError:
        return None


def _taken(before: int | None) -> int | None:
    """Device memory taken since then: at its largest, for the pools give nothing back between."""
    now = _free_device_memory()
    return None if before is None or now is None else before - now


def _time(task: Task, known: KnownMotion, register: Callable[[Path, Path, int], int]) -> dict[str, Any]:
    """Time a recording that takes a few seconds, file to file.

    Frames per second count the frames registered: those written, and those that the start flow takes beforehand.
    """
    folder, unique = Path(task.folder), len(known.movie)
    room = min(LARGEST_RECORDING, shutil.disk_usage(folder).free // 4)
    most = max(room // known.movie[0].nbytes // unique, 1) * unique
    count = task.frames or unique
    while True:
        source = _write_recording(folder / "recording.tif", known.movie, count)
        began = time.perf_counter()
        registered = register(source, folder / "registered.tif", count)
        seconds = time.perf_counter() - began
        if task.frames or seconds >= TARGET_SECONDS / 2 or count >= most:
            break
        growth = min(TARGET_SECONDS / seconds, 16.0)
        count = min(math.ceil(count * growth / unique) * unique, most)
    return {
        "frames": count,
        "frames_registered": registered,
        "seconds": seconds,
        "frames_per_second": registered / seconds,
        "ms_per_frame": 1e3 * seconds / registered,
    }


def _write_recording(path: Path, movie: NDArray[np.uint16], count: int) -> Path:
    """Write `count` frames, which repeat those of the movie (T, H, W, C), as TIFF; channels are pages in turn.

    pyflowreg reads no other layout of channels within one file than that.
    """
    _, height, width, channels = movie.shape
    tifffile.imwrite(
        path,
        (movie[t % len(movie), ..., c] for t in range(count) for c in range(channels)),
        shape=(count * channels, height, width),
        dtype=movie.dtype,
        metadata={"axes": "TYX"},
        photometric="minisblack",
    )
    return path


def main(task: str, result: str) -> None:
    """Measure a task, given as JSON, and write the figures to the file `result`."""
    figures = measure(Task(**json.loads(task)))
    pending = Path(f"{result}.part")
    pending.write_text(json.dumps(figures), encoding="utf-8")
    os.replace(pending, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
