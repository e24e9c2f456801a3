"""Frames per second from file to file without registration: reader, writer, and the loop around them.

Usage: python benchmarks/files.py [--frames 4000] [--rate 4000] [--repeats 4] [--folder FOLDER]

The recording loop runs with an executor that copies the frames, and with one that sleeps as long as a device of
`--rate` frames/s computes, each with reading and writing beside it and without. Files are read from the disk ("cold":
what the system holds of them is dropped before) and written down to it (fsync included), and both from and to the
system's cache; beside that stands what the disk itself does in the same run, one large block after the other. Takes
turns, and keeps the best of the repeats.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import measurement

measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402

from flowreg_gpu.engine.batch import Batch, BatchResult  # noqa: E402
from flowreg_gpu.engine.job import Job  # noqa: E402
from flowreg_gpu.executors.base import BaseExecutor  # noqa: E402
from flowreg_gpu.io import TiffReader, TiffWriter  # noqa: E402
from flowreg_gpu.options import Options  # noqa: E402
from flowreg_gpu.registration.loop import Registration  # noqa: E402
from flowreg_gpu.synthetic import make_movie  # noqa: E402

SIZE = 512
BLOCK = 2**24  # bytes of a call, for the disk's own rate
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {"metadata": None, "contiguous": True},
    "pages": {"metadata": None},
    "deflate": {"metadata": None, "compression": "zlib"},
    "zstd": {"metadata": None, "compression": "zstd"},
}


class CopyExecutor(BaseExecutor):
    """Copies the frames, or only waits as long as `rate` frames per second take; two sets of results, as a GPU's."""

    name: ClassVar[str] = "copy"
    batch_bytes = 2**30
    keeps_results = True

    def __init__(self, rate: float | None) -> None:
        super().__init__(1)
        self._rate = rate
        self._sets: list[np.ndarray] = []

    def start_recording(self, job: Job) -> None:
        """Nothing to prepare."""

    def register_batch(self, batch: Batch) -> BatchResult:
        """The frames as they are."""
        frames = batch.frames
        if batch.mean is not None and batch.averaged:
            batch.mean.add(np.zeros((1, *frames.shape[1:3], 2), np.float32))
        if not self._sets:
            self._sets = [frames.copy(), frames.copy()]
        self._sets.reverse()
        if len(self._sets[0]) < len(frames):
            self._sets[0] = np.empty_like(frames)
        registered = self._sets[0][: len(frames)]
        if self._rate is None:
            np.copyto(registered, frames)
        else:
            time.sleep(len(frames) / self._rate)
        return BatchResult(registered, None, np.zeros((len(frames), 8)))


def make_recording(path: Path, frames: int, keywords: dict[str, Any]) -> None:
    """Noisy frames of the demo, one page each."""
    movie = make_movie(16, SIZE, SIZE, seed=3).movie[..., 0]
    with tifffile.TiffWriter(path) as tif:
        for index in range(frames):
            tif.write(movie[index % 16], photometric="minisblack", **keywords)


def drop(path: Path) -> None:
    """Have the system forget what it holds of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def raw_read(source: Path) -> None:
    """The file from its first byte to its last, block by block."""
    block = bytearray(BLOCK)
    with open(source, "rb", buffering=0) as file:
        while file.readinto(block):
            pass


def raw_write(target: Path, n_bytes: int) -> None:
    """As many bytes into a new file."""
    block = np.ones(BLOCK, np.uint8).data
    with open(target, "wb", buffering=0) as file:
        for first in range(0, n_bytes, BLOCK):
            file.write(block[: n_bytes - first])


def read(source: Path, batch: int) -> None:
    """The reader alone."""
    with TiffReader(source) as reader:
        for first in range(0, reader.n_frames, batch):
            reader.read(first, min(first + batch, reader.n_frames))


def write(source: Path, target: Path, frames: np.ndarray) -> None:
    """The writer alone."""
    with TiffReader(source) as reader, open_writer(target, reader) as writer:
        for first in range(0, reader.n_frames, len(frames)):
            writer.write(frames[: reader.n_frames - first])


def open_writer(target: Path, reader: TiffReader) -> TiffWriter:
    """A writer for what the reader reads."""
    n_frames, height, width, channels = reader.shape
    size = {"n_frames": n_frames, "height": height, "width": width, "n_channels": channels}
    return TiffWriter(target, **size, dtype=reader.dtype, like=reader)


def loop(source: Path, target: Path, rate: float | None, overlap: bool) -> None:
    """The recording loop from file to file."""
    with TiffReader(source) as reader, open_writer(target, reader) as writer:
        reader.threaded = writer.threaded = overlap
        reference = reader.read(0, 1)[0]
        Registration(reader, reference, CopyExecutor(rate), Options.without_choices()).run(writer)


def best(
    calls: dict[str, Callable[[], None]], source: Path, target: Path, repeats: int, cold: bool
) -> dict[str, float]:
    """Least seconds of each call, which take turns; `cold` from the disk and down to it."""
    seconds = dict.fromkeys(calls, float("inf"))
    for repeat in range(repeats):
        # to and fro: some systems make the first of several large writes pay for the memory of their cache
        for name, call in list(calls.items())[:: 1 if repeat % 2 else -1]:
            target.unlink(missing_ok=True)
            os.sync()
            if cold:
                drop(source)
            began = time.perf_counter()
            call()
            if cold and target.exists():
                sync(target)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def main() -> None:
    """Print the table and write results/files.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4000, help="a quarter where compressed (%(default)s)")
    parser.add_argument("--rate", type=float, default=4000.0, help="frames/s of the device that is slept for")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    chosen = parser.parse_args()
    frame_bytes = SIZE * SIZE * 2
    frames = np.ones((256, SIZE, SIZE, 1), np.uint16)
    rows = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        source, target = Path(folder) / "recording.tif", Path(folder) / "registered.tif"
        for layout, keywords in LAYOUTS.items():
            count = chosen.frames // 4 if "compression" in keywords else chosen.frames
            make_recording(source, count, keywords)
            calls: dict[str, Callable[[], None]] = {
                "reader": functools.partial(read, source, len(frames)),
                "writer": functools.partial(write, source, target, frames),
            }
            if layout == "contiguous":
                calls["raw read"] = functools.partial(raw_read, source)
                calls["raw write"] = functools.partial(raw_write, target, count * frame_bytes)
            for name, rate in {"copying": None, f"device of {chosen.rate:g}/s": chosen.rate}.items():
                for overlap in (True, False):
                    what = f"loop, {name}{'' if overlap else ', no overlap'}"
                    calls[what] = functools.partial(loop, source, target, rate, overlap)
            for cold in (False, True) if hasattr(os, "posix_fadvise") else (False,):
                for name, seconds in best(calls, source, target, chosen.repeats, cold).items():
                    where = "disk" if cold else "cache"
                    rows.append({"layout": layout, "files": where, "what": name, "frames": count, "seconds": seconds})
                    rate = count / seconds
                    print(f"{layout:11} {where:6} {name:34} {rate:7.0f} frames/s {rate * frame_bytes / 1e9:6.2f} GB/s")
    measurement.save("files", {"settings": {**vars(chosen), "folder": None}, "frame_bytes": frame_bytes, "rows": rows})


if __name__ == "__main__":
    main()
