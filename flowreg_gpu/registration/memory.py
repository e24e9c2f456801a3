"""Memory of a run on the host, computed before it starts, and the batch that a limit allows.

What is counted is the process, its workers, and the memory that they share, at the moment when most of it is in use.
The reference's frames go through as float32, the recording's in their own type; the larger of both stages counts.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path

import numpy as np

from flowreg_gpu.cpu.jit import kernels_loaded
from flowreg_gpu.executors import BaseExecutor
from flowreg_gpu.executors.cpu import LocalExecutor
from flowreg_gpu.io import FrameReader
from flowreg_gpu.model.plan import plan_levels
from flowreg_gpu.model.preprocessing import Preprocessing
from flowreg_gpu.options import Options
from flowreg_gpu.registration.jumps import SAMPLES
from flowreg_gpu.registration.measuring import sample_count
from flowreg_gpu.registration.reference import EXTRA_SIGMA
from flowreg_gpu.registration.start_flow import FIRST_FLOWS
from flowreg_gpu.registration.tuning import sample_size

__all__ = ["MemoryPlan", "RunMemory", "parse_memory"]

_FACTORS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)

# Measured with numba 0.68 and LLVM 20 on Linux (benchmarks/memory.py): what loading numba's type rules and the kernels
# adds to a process that has imported this package, and such a process where its size cannot be told.
_KERNEL_BYTES, _PROCESS_BYTES = 85_000_000, 120_000_000
# Parts of the frames in float64 while they are measured.
_MEASURE_BYTES = 24_000_000
# Filtered frames that wait for their sum, and what filtering takes, in frames for each thread (registration.reference).
_FILTERED_FRAMES = 7


def parse_memory(memory: int | str) -> int:
    """Bytes that a size such as 2000000000, '500MB', '2GB' or '1.5GiB' means.

    Raises
    ------
    TypeError, ValueError
        Something else, or no byte at all.
    """
    expected = "expected a size such as 500MB, 2GB or 1.5GiB"
    if isinstance(memory, bool) or not isinstance(memory, int | np.integer | str):
        raise TypeError(f"memory={memory!r}, {expected}")
    if not isinstance(memory, str):
        n_bytes = int(memory)
    else:
        found = _SIZE.fullmatch(memory)
        if found is None:
            raise ValueError(f"memory={memory!r}, {expected}")
        n_bytes = int(float(found[1]) * _FACTORS[(found[2] or "").upper()])
    if n_bytes < 1:
        raise ValueError(f"memory={memory!r}, {expected}")
    return n_bytes


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The frames of a batch, and the memory of the run with them.

    Attributes
    ----------
    batch, reference_batch : int
        Frames at a time of the recording, and of the reference.
    n_bytes : int
        Of process, workers and shared memory, at most.
    """

    batch: int
    reference_batch: int
    n_bytes: int

    def __str__(self) -> str:
        return f"memory: about {self.n_bytes / 1e9:.2f} GB for batches of {self.batch} frames"


class RunMemory:
    """Memory of a registration with an executor.

    Parameters
    ----------
    reader : FrameReader
    options : Options
    executor : BaseExecutor
    keep_flow : bool
        Whether flows are written.
    measure_field : bool
        Whether the flow per pixel is measured.
    verify : int
        Frames that are registered on the CPU too.
    builds_reference : bool
        Whether the reference is made of frames.
    chooses : bool
        Whether some frames are looked at before the run.
    measures : bool
        Whether some frames are measured after it.
    """

    def __init__(
        self,
        reader: FrameReader,
        options: Options,
        executor: BaseExecutor,
        *,
        keep_flow: bool,
        measure_field: bool = False,
        verify: int = 0,
        builds_reference: bool = True,
        chooses: bool = False,
        measures: bool = False,
    ) -> None:
        self._n_frames, self._height, self._width, self._channels = reader.shape
        self._pixels = self._height * self._width
        self._dtype, self._options, self._executor = reader.dtype, options, executor
        self._writes_flow, self._verify, self._measures_field = keep_flow, verify, measure_field
        self._keeps_flow = keep_flow or verify > 0 or measure_field
        self._builds_reference, self._chooses, self._measures = builds_reference, chooses, measures
        sigma = options.sigma_per_channel(self._channels)
        self._halo, self._reference_halo = _halo(sigma), _halo(sigma + np.array(EXTRA_SIGMA))
        self._process = _process_bytes()
        # bytes of a frame as it is stored, in float32, and of its flow
        self._stored = self._pixels * self._channels * self._dtype.itemsize
        self._single, self._flow = self._pixels * self._channels * 4, self._pixels * 8

    def plan(self, batch: int | None, window: int, limit: int | None = None) -> MemoryPlan:
        """The batch that was asked for, or the executor's own, as far as the limit allows.

        Raises
        ------
        ValueError
            The limit is too small for the batch that was asked for, or for a batch of one frame.
        """
        chosen = batch or self._default_batch(window)
        if limit is not None and self.n_bytes(chosen) > limit:
            if batch is not None:
                raise self._too_little(limit, batch)
            chosen = next((size for size in range(chosen - 1, 0, -1) if self.n_bytes(size) <= limit), 0)
            if not chosen:
                raise self._too_little(limit, 1)
            if chosen > self._executor.n_workers:
                chosen -= chosen % self._executor.n_workers
        return MemoryPlan(chosen, self._reference_batch(chosen), self.n_bytes(chosen))

    def _too_little(self, limit: int, batch: int) -> ValueError:
        least = -(-self.n_bytes(batch) // 1_000_000)  # rounded up, so that what is named is enough
        frames = "one frame" if batch == 1 else f"{batch} frames"
        workers = f"executor {self._executor.backend!r} and n_workers={self._executor.n_workers}"
        return ValueError(
            f"memory={limit / 1e6:.0f}MB is too little: {least}MB is the least for batches of {frames} with {workers}"
        )

    def _default_batch(self, window: int) -> int:
        """Frames whose input, output and flow take the executor's bytes, but enough of them to keep every worker busy.

        Where a window takes several batches, they are even, but for the last: each is read and written beside the
        computation of another, and every worker gets as many frames as the others.
        """
        workers = self._executor.n_workers
        frame = 2 * self._stored + (self._flow if self._keeps_flow else 0)
        most = int(np.clip(self._executor.batch_bytes // frame // workers * workers, 2 * workers, 1024))
        window = min(window, self._n_frames)
        if window <= most:
            return most
        even = -(-window // -(-window // most))
        return min(-(-even // workers) * workers, most)

    def _reference_batch(self, batch: int) -> int:
        """Frames in float32 that take what a batch does as it is stored, or two for each worker."""
        return max(batch * self._stored // self._single, min(batch, 2 * self._executor.n_workers))

    def n_bytes(self, batch: int) -> int:
        """Memory with batches of so many frames, at most."""
        recording, executor = self._recording(batch)
        reference, executor_then = self._reference(self._reference_batch(batch)) if self._builds_reference else (0, 0)
        choosing, executor_before = self._choosing(self._reference_batch(batch)) if self._chooses else (0, 0)
        measuring = self._measuring() if self._measures else 0
        choosing_solver = self._pixels * (8 + 41 * self._channels)
        return (
            self._process
            + 3 * self._single  # reference, its planes, weights
            + self._executor.working_memory(max(self._scratch(), _FILTERED_FRAMES * self._single))
            + max(recording, reference, choosing, choosing_solver, measuring)
            + max(executor, executor_then, executor_before)  # blocks of shared memory do not shrink
            + (self._verification() if self._verify else 0)
            + (self._second_attempt() if self._options.is_auto("cc_initialization") else 0)
        )

    def _recording(self, batch: int) -> tuple[int, int]:
        """Bytes of batches that are read, computed and written at a time, and those of the executor for it."""
        frames, registered = (batch + 2 * self._halo) * self._stored, batch * self._stored
        # turned into order, mirrored at the ends, or looked through for NaN
        copied = self._halo > 0 or self._channels > 1 or self._dtype.kind == "f"
        reading = 2 * frames if copied else frames
        writing = registered if self._channels > 1 else 0
        if not self._executor.keeps_results:
            writing += registered + (batch * self._flow if self._writes_flow else 0)
        flows = batch if self._keeps_flow else min(batch, FIRST_FLOWS)
        means = 8 * self._flow  # two start flows, and the sum in float64, while one is added, and noted
        means += 12 * self._flow if self._measures_field else 0  # sums of 64 bits, and one that is noted, and one new
        return reading + frames + writing + means, self._executor.batch_memory(frames, registered + flows * self._flow)

    def _reference(self, batch: int) -> tuple[int, int]:
        """The same for the frames of the reference, which are read one batch after the other."""
        frames = (batch + 2 * self._reference_halo) * self._single
        sums = 6 * self._single  # two in float64, and two means
        return 2 * frames + sums, self._executor.batch_memory(frames, batch * self._single)

    def _choosing(self, batch: int) -> tuple[int, int]:
        """The same for the halves of some frames that the recording is judged by."""
        count = min(sample_size(self._height, self._width), max(self._n_frames // 2, 1))
        batch = min(batch, count)
        window = (1 + 2 * self._halo) * self._stored
        frames, flows = batch * self._single, batch * self._flow
        compared = 6 * self._single + 2 * self._flow  # of one frame, in turn
        return window + 2 * count * self._single + 2 * frames + compared, self._executor.batch_memory(
            2 * frames, frames + flows
        )

    def _measuring(self) -> int:
        """Bytes of the frames that are measured before and after, twice while they are put together, and of sums."""
        frames = sample_count(self._n_frames, self._pixels * self._channels)
        return 4 * frames * self._stored + 8 * self._single + _MEASURE_BYTES

    def _scratch(self) -> int:
        """Bytes that a worker needs to register a frame, the pyramid of the reference included.

        Measured, in bytes for each pixel of the frame and of the finest level that is solved, and rounded up to what
        the solver and data term that need most take.
        """
        finest = plan_levels(self._height, self._width, self._options).levels[-1]
        whole, solved = 8 + 8 * self._channels, 58 + 82 * self._channels
        if self._options.cc_initialization:  # also 'auto', which may
            whole += 20 + 4 * self._channels
        return self._pixels * whole + finest.height * finest.width * solved

    def _verification(self) -> int:
        """Bytes of an executor of its own, and of differences, which are joined at the end."""
        frames = (1 + 2 * self._halo) * self._stored + self._stored + self._flow
        return self._scratch() + frames + self._verify * self._pixels * 4 * 3

    def _second_attempt(self) -> int:
        """Bytes for a frame that jumps between those that were looked at, where workers do not share this process.

        Where they do, they wait meanwhile, and have let go of what they use for a frame.
        """
        if isinstance(self._executor, LocalExecutor) or self._n_frames <= SAMPLES:
            return 0
        return self._scratch() + self._stored + self._flow


def _halo(sigma: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> int:
    """Frames that the filter needs before and after a frame, whatever its size."""
    zeros = np.zeros(len(sigma), np.float32)
    return Preprocessing.build(zeros, zeros, sigma, 16, 16).halo


def _process_bytes() -> int:
    """What this process takes by now, with the kernels."""
    present = _resident_bytes() or _PROCESS_BYTES
    return present if kernels_loaded() else present + _KERNEL_BYTES


def _resident_bytes() -> int | None:
    """Memory of this process, or the most that it has been; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        if sys.platform == "darwin":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return None
