"""Frames per second of whole registrations and of their parts, on any device; timed only where a clock does so."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.benchmark.schedule import computation
from flowreg_gpu.cuda.device import Device, device_facts
from flowreg_gpu.io import ArrayReader, ArrayWriter, TiffReader, TiffWriter
from flowreg_gpu.options import Options
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.synthetic import end_point_error, make_movie

UNIQUE = 12  # frames that are made; longer recordings repeat them
DEVICE_FRAMES = 128  # on the device at a time: the most that the executor takes
HOST_FRAMES = 256  # read and written at a time
#: Pixels. The CPU's flow of these frames is 0.19 to 0.30 px off, that of 64x64 and 96x96 frames 0.21 to 0.44.
LARGEST_ERROR = 0.45

Seconds = dict[str, float] | None  # median, low and high; None where nothing was timed


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and extremes of repeated timings."""
    return {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


class GpuClock:
    """Times calls on a GPU, each after a warm-up."""

    def __init__(self, device: Device) -> None:
        import cupy

        self._cuda, self._device = cupy.cuda, device

    def wall(self, call: Callable[[], Any], repeats: int = 3, warm_up: bool = True, limit: float = 20.0) -> Seconds:
        """Seconds of the host's clock; no further repeat once `limit` seconds are gone."""
        began = time.perf_counter()
        if warm_up:
            call()
        seconds: list[float] = []
        while not seconds or (len(seconds) < repeats and time.perf_counter() - began < limit):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return spread(seconds)

    def queued(self, call: Callable[[], Any], repeats: int = 7) -> Seconds:
        """Seconds between events around what a call queues on the compute stream; the host never waits between."""
        call()
        pairs = [(self._cuda.Event(), self._cuda.Event()) for _ in range(repeats)]
        for before, after in pairs:
            self._device.record(before)
            call()
            self._device.record(after)
        self._device.synchronize()
        return spread([1e-3 * float(self._cuda.get_elapsed_time(*pair)) for pair in pairs])


class NoClock:
    """Makes the calls, once, and times nothing."""

    def wall(self, call: Callable[[], Any], **_: Any) -> Seconds:
        call()
        return None

    def queued(self, call: Callable[[], Any], **_: Any) -> Seconds:
        call()
        return None


def per_frame(seconds: Seconds, frames: int) -> Seconds:
    """The same for one of so many frames."""
    return None if seconds is None else {name: value / frames for name, value in seconds.items()}


class Setting(NamedTuple):
    """What is registered, and the preset."""

    height: int
    width: int
    channels: int
    quality: str

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"


@dataclasses.dataclass
class Recording:
    """Frames (T, H, W, C) uint16, the image they show (H, W, C), and the true flow of the first `UNIQUE` frames."""

    movie: np.ndarray
    reference: np.ndarray
    truth: np.ndarray

    def with_channels(self, channels: int) -> Recording:
        """The first channels alone."""
        parts = (np.ascontiguousarray(item[..., :channels]) for item in (self.movie, self.reference))
        return Recording(*parts, self.truth)


def make_recording(height: int, width: int, frames: int) -> Recording:
    """Two channels of noisy tissue."""
    motion = make_movie(min(UNIQUE, frames), height, width, seed=2)
    return Recording(np.resize(motion.movie, (frames, height, width, 2)), motion.reference, motion.flow)


@dataclasses.dataclass
class Bench:
    """Where whole registrations are measured.

    Parameters
    ----------
    device : Device
    clock : GpuClock or NoClock
    folder : Path
        For the recordings, as large as they are.
    frames : int
        Of a recording of 512 x 512 pixels.
    """

    device: Device
    clock: GpuClock | NoClock
    folder: Path
    frames: int
    _recordings: dict[tuple[int, int], Recording] = dataclasses.field(default_factory=dict)

    def recording(self, setting: Setting) -> Recording:
        """The frames of a setting; those of 1024 x 1024 pixels are half as many."""
        size = setting.height, setting.width
        if size not in self._recordings:
            count = self.frames if max(size) <= 512 else self.frames // 2
            self._recordings[size] = make_recording(*size, count)
        return self._recordings[size].with_channels(setting.channels)

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Check the flow, then time; seconds are those of a frame. ValueError where the flow is wrong."""
        recording, options = self.recording(setting), Options.without_choices(quality=setting.quality)
        count = len(recording.movie)
        row: dict[str, Any] = {"size": setting.size, "quality": setting.quality, "frames": count}
        with fg.GPUExecutor(device=self.device, fallback=False) as executor:
            row |= self._check(recording, executor, options)
            executor.cleanup()  # of what that left on the device
            row["peak_bytes"] = self._peak(lambda: self._to_array(recording, executor, options))
            row["array"] = per_frame(
                self.clock.wall(lambda: self._to_array(recording, executor, options), warm_up=False), count
            )
            row |= self._files(recording, executor, options)
        row |= self._transfers(recording)
        frames = np.ascontiguousarray(recording.movie[:DEVICE_FRAMES])
        for name, graphs in (("compute", True), ("launched", False)):
            call = computation(self.device, frames, recording.reference, options, graphs)
            call()  # what comes again is captured as a graph
            row[name] = per_frame(self.clock.queued(call), len(frames))
            self.device.synchronize()
            del call  # and its memory
        return row

    def _check(self, recording: Recording, executor: fg.GPUExecutor, options: Options) -> dict[str, float]:
        known = len(recording.truth)
        _, flow = fg.register(recording.movie[:known], recording.reference, executor, options)
        errors = {
            "end_point_error": end_point_error(flow, recording.truth),
            "without": end_point_error(np.zeros_like(flow), recording.truth),
        }
        if not errors["end_point_error"] <= LARGEST_ERROR:
            raise ValueError(f"the flow is {errors['end_point_error']:.3f} px off, expected {LARGEST_ERROR} at most")
        return errors

    def _to_array(self, recording: Recording, executor: fg.GPUExecutor, options: Options) -> None:
        """From array to array, without the flow."""
        writer = ArrayWriter(recording.movie.shape, recording.movie.dtype)
        Registration(ArrayReader(recording.movie), recording.reference, executor, options).run(writer)

    def _peak(self, call: Callable[[], Any]) -> int:
        """Device memory that a call takes: what the pool holds after it, which gives nothing back on its own."""
        if hasattr(self.device, "peak_bytes"):  # emulated
            self.device.reset_peak()
            call()
            return self.device.peak_bytes
        self.device.release_memory()
        before = device_facts().free_memory
        call()
        return before - device_facts().free_memory

    def _files(self, recording: Recording, executor: fg.GPUExecutor, options: Options) -> dict[str, Seconds]:
        """From TIFF to TIFF, and reading and writing alone."""
        source, target = self.folder / "recording.tif", self.folder / "registered.tif"
        stored = recording.movie.transpose(0, 3, 1, 2)
        tifffile.imwrite(source, stored, metadata={"axes": "TCYX"}, photometric="minisblack")
        count = len(recording.movie)

        def registration() -> None:
            fg.register_file(source, target, executor, recording.reference, options=options)

        def read() -> None:
            with TiffReader(source) as reader:
                for first in range(0, count, HOST_FRAMES):
                    reader.read(first, min(first + HOST_FRAMES, count))

        def write() -> None:
            _, height, width, channels = recording.movie.shape
            size = {"n_frames": count, "height": height, "width": width, "n_channels": channels}
            with TiffReader(source) as reader, TiffWriter(target, **size, dtype=np.uint16, like=reader) as writer:
                for first in range(0, count, HOST_FRAMES):
                    writer.write(recording.movie[first : first + HOST_FRAMES])

        calls = {"file": registration, "read": read, "write": write}
        timings = {name: per_frame(self.clock.wall(call, warm_up=False), count) for name, call in calls.items()}
        for path in self.folder.iterdir():
            path.unlink()
        return timings

    def _transfers(self, recording: Recording) -> dict[str, Seconds]:
        """Copies of frames: to pinned memory, to the device, and back."""
        frames = recording.movie[:DEVICE_FRAMES]
        host = self.device.pinned(frames.shape, frames.dtype)
        buffer = self.device.empty(frames.shape, frames.dtype)
        timings = {
            "stage": self.clock.wall(lambda: np.copyto(host, frames)),
            "upload": self.clock.queued(lambda: self.device.copy(buffer, host)),
            "download": self.clock.queued(lambda: self.device.copy(host, buffer)),
        }
        self.device.synchronize()
        return {name: per_frame(seconds, len(frames)) for name, seconds in timings.items()}


def settings(sizes: Iterable[tuple[int, int, int]], qualities: Iterable[str]) -> list[Setting]:
    """Every size at the first preset, then at the next."""
    sizes = tuple(sizes)
    return [Setting(*size, quality) for quality in qualities for size in sizes]
