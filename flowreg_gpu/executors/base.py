"""The interface of all executors, and what the CPU executors share."""

from __future__ import annotations

import abc
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.engine.batch import STATISTICS, BatchResult, FlowMean, Progress, check_warpable, find_nonfinite
from flowreg_gpu.engine.cpu_task import RegistrationTask
from flowreg_gpu.engine.job import Job
from flowreg_gpu.model.preprocessing import channel_weights
from flowreg_gpu.options import Options, check_size, positive_integer
from flowreg_gpu.workers.pool import default_workers

__all__ = [
    "EXECUTORS",
    "BaseExecutor",
    "CPUExecutor",
    "LocalExecutor",
]

_Executor = TypeVar("_Executor", bound="BaseExecutor")

#: Executors by name, as `BaseExecutor.register` enters them.
EXECUTORS: dict[str, type[BaseExecutor]] = {}


class BaseExecutor(abc.ABC):
    """Registers batches of frames; the interface is the one of pyflowreg's executors.

    Parameters
    ----------
    n_workers : int or None
        Number of workers; None takes one per CPU that this process may use.

    Raises
    ------
    ValueError
        `n_workers` below 1.
    """

    name: ClassVar[str]
    parallel: ClassVar[bool] = False
    description: ClassVar[str] = ""
    features: ClassVar[tuple[str, ...]] = ()
    #: Bytes of frames, registered frames and flows that a batch of a recording holds unless the caller says otherwise.
    batch_bytes: int = 2**28

    @property
    def keeps_results(self) -> bool:
        """Whether the arrays of a result stay as they are while the next batch is computed."""
        return False

    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = default_workers() if n_workers is None else positive_integer("n_workers", n_workers)

    @property
    def backend(self) -> str:
        """Name of the executor that does the work: another one where this one has fallen back."""
        return self.name

    def setup(self) -> None:  # noqa: B027
        """Acquire workers or devices; called by the context manager, and by the first batch where it was not."""

    def cleanup(self) -> None:  # noqa: B027
        """Release everything; may be called twice, and the executor may be used again afterwards."""

    def __enter__(self: _Executor) -> _Executor:
        self.setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cleanup()

    @classmethod
    def register(cls) -> None:
        """Make this executor known by its name."""
        EXECUTORS[cls.name] = cls

    def get_info(self) -> dict[str, Any]:
        """Name, type, number of workers, whether they run in parallel, a description, and features."""
        return {
            "name": self.name,
            "type": type(self).__name__,
            "n_workers": self.n_workers,
            "parallel": self.parallel,
            "description": f"{self.description}, {self.n_workers} worker{'s' if self.n_workers > 1 else ''}",
            "features": list(self.features),
        }

    @abc.abstractmethod
    def start_recording(self, job: Job) -> None:
        """Take what all following batches share; its arrays must not change until the next job."""

    @abc.abstractmethod
    def register_batch(
        self,
        frames: NDArray[Any],
        start: NDArray[np.float32],
        planes: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        *,
        keep_flow: bool = True,
        mean: FlowMean | None = None,
        averaged: int = 0,
    ) -> BatchResult:
        """Register one batch of the recording begun with `start_recording`.

        Parameters
        ----------
        frames : (n + 2 halo, H, W, C)
            Raw frames, with the frames before and after that the job's temporal filter needs.
        start : (2, H, W) float32
            Start flow, pixels.
        planes : (n, C, H, W) float32 or None
            Preprocessed frames, where the job has no preprocessing.
        progress : callable or None
            Called with the number of newly finished frames, also while the batch runs.
        keep_flow : bool
            False lets the executor leave out the flow of its result.
        mean, averaged : FlowMean or None, int
            Where to add the flows of the last `averaged` frames.
        """

    def process_batch(
        self,
        batch: NDArray[Any],
        batch_proc: NDArray[Any],
        reference_raw: NDArray[Any],
        reference_proc: NDArray[Any],
        w_init: NDArray[Any],
        get_displacement_func: Callable[..., Any] | None = None,
        imregister_func: Callable[..., Any] | None = None,
        interpolation_method: str = "cubic",
        progress_callback: Progress | None = None,
        **kwargs: Any,
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Register frames that were preprocessed by the caller, as pyflowreg calls its executors.

        Parameters
        ----------
        batch : (T, H, W, C) or (T, H, W)
            Raw frames.
        batch_proc : float, shape of `batch`
            The same, normalised and filtered.
        reference_raw, reference_proc : (H, W, C) or (H, W)
            Reference, raw and normalised and filtered.
        w_init : (H, W, 2) float
            Start flow, pixels.
        get_displacement_func, imregister_func : callable or None
            pyflowreg's own functions, in whose place this package's run; any other is refused, also one of another
            flow backend of pyflowreg.
        interpolation_method : {'cubic', 'linear', 'nearest'}
        progress_callback : callable or None
            Called with the number of newly finished frames.
        **kwargs
            `flow_params`: dictionary of flow parameters, see `Options.from_flow_params`. Other keywords of pyflowreg's
            pipeline are accepted and have no effect on the result.

        Returns
        -------
        registered : dtype of `batch`, (T, H, W, C)
        flow : (T, H, W, 2) float32, pixels

        Raises
        ------
        ValueError, TypeError
            Arrays that do not fit each other, or parameters out of range.
        """
        _refuse_custom(get_displacement_func, "get_displacement_func", "get_displacement")
        _refuse_custom(imregister_func, "imregister_func", "imregister_wrapper")
        batch, batch_proc, reference_raw, reference_proc, w_init = map(
            np.asarray, (batch, batch_proc, reference_raw, reference_proc, w_init)
        )
        options = Options.from_flow_params(
            {**(kwargs.get("flow_params") or {}), "interpolation_method": interpolation_method}
        )
        batch, batch_proc = (item[..., None] if item.ndim == 3 else item for item in (batch, batch_proc))
        reference_raw, reference_proc = (
            item[..., None] if item.ndim == 2 else item for item in (reference_raw, reference_proc)
        )
        _check_batch(batch, batch_proc, reference_raw, reference_proc, w_init)
        options.check_recording(*batch.shape[1:])
        batch = batch.astype(batch.dtype.newbyteorder("="), copy=False)
        batch, batch_proc = _without_nonfinite(batch, batch_proc, reference_raw, reference_proc)
        weight, mean_weight = channel_weights(options, *batch.shape[1:])
        self.start_recording(
            Job(options, np.float32(reference_raw), _planes(reference_proc), None, weight, mean_weight)
        )
        result = self.register_batch(batch, _planes(w_init), _planes(batch_proc), progress_callback)
        assert result.flow is not None  # it is kept
        return self._keep("registered", result.registered), self._keep("flow", result.flow)

    def _keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An array of a result, such that the next batch leaves it alone."""
        kept: NDArray[Any] = array.copy()
        return kept


class CPUExecutor(BaseExecutor):
    """An executor that runs `RegistrationTask` on every frame, wherever its arrays lie."""

    def __init__(self, n_workers: int | None = None) -> None:
        super().__init__(n_workers)
        self._job: Job | None = None
        self._task: RegistrationTask | None = None

    @abc.abstractmethod
    def _allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of unspecified contents that the workers know by this name."""

    def _share(self, name: str, array: NDArray[Any], dtype: DTypeLike) -> None:
        """Make an array known to the workers by this name."""
        self._allocate(name, array.shape, dtype)[...] = array

    @abc.abstractmethod
    def _run(self, task: RegistrationTask, indices: range, progress: Progress | None) -> None:
        """Run the task on every index."""

    def start_recording(self, job: Job) -> None:
        """Take what all following batches share."""
        shared = {
            "reference": job.reference,
            "reference_planes": job.planes_on_host,
            "weight": job.weight,
            "mean_weight": job.mean_weight,
        }
        for name, array in shared.items():
            self._share(name, array, np.float32)
        self._job, self._task = job, RegistrationTask(job.options, job.preprocessing)

    def register_batch(
        self,
        frames: NDArray[Any],
        start: NDArray[np.float32],
        planes: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        *,
        keep_flow: bool = True,
        mean: FlowMean | None = None,
        averaged: int = 0,
    ) -> BatchResult:
        """Register one batch; see `BaseExecutor.register_batch`."""
        if self._task is None or self._job is None:
            raise RuntimeError("register_batch was called before start_recording")
        self._job.check_planes(planes)
        count = len(frames) - 2 * self._job.halo
        self._share("frames", frames, frames.dtype)
        self._share("start", start, np.float32)
        if planes is not None:
            self._share("planes", planes, np.float32)
        result = BatchResult(
            self._allocate("registered", (count, *frames.shape[1:]), frames.dtype),
            self._allocate("flow", (count, *frames.shape[1:3], 2), np.float32),
            self._allocate("statistics", (count, len(STATISTICS)), np.float64),
        )
        self._run(self._task, range(count), progress)
        if mean is not None:
            assert result.flow is not None
            mean.add(result.flow[count - averaged :])
        return result


class LocalExecutor(CPUExecutor):
    """A CPU executor whose workers share this process's memory."""

    def __init__(self, n_workers: int | None = None) -> None:
        super().__init__(n_workers)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._prepared: RegistrationTask | None = None

    def cleanup(self) -> None:
        """Release the arrays."""
        self._arrays.clear()
        self._job = self._task = self._prepared = None

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self._arrays[name] = np.empty(shape, dtype)
        return array

    def _share(self, name: str, array: NDArray[Any], dtype: DTypeLike) -> None:
        # kernels are compiled for contiguous arrays that may be written, though they do not write these
        self._arrays[name] = np.require(array, dtype, ["C", "A", "W"])

    def _keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return self._arrays.pop(name)

    def _run(self, task: RegistrationTask, indices: range, progress: Progress | None) -> None:
        if task is not self._prepared:
            task.prepare(self._arrays)
            self._prepared = task
        self._run_frames(lambda index: task(self._arrays, index), indices, progress or (lambda finished: None))

    @abc.abstractmethod
    def _run_frames(self, run_frame: Callable[[int], None], indices: range, progress: Progress) -> None:
        """Call `run_frame` for every index, and `progress` in this thread."""


def _planes(image: NDArray[Any]) -> NDArray[np.float32]:
    """(..., H, W, C) as contiguous float32 planes (..., C, H, W)."""
    if image.shape[-1] == 1:
        return np.ascontiguousarray(np.moveaxis(image, -1, -3), np.float32)
    # channel by channel, several times as fast as copying a view with the axes turned
    planes: NDArray[np.float32] = np.stack(
        tuple(np.moveaxis(image, -1, 0)), axis=-3, dtype=np.float32, casting="unsafe"
    )
    return planes


def _refuse_custom(function: Callable[..., Any] | None, name: str, default: str) -> None:
    """Refuse any function but pyflowreg's default one; those of its other flow backends have other names or none."""
    module, own = getattr(function, "__module__", "") or "", getattr(function, "__name__", "")
    if function is not None and not (module.startswith("pyflowreg.") and own == default):
        raise ValueError(
            f"{name}={function!r} cannot be honoured: flowreg_gpu runs its own flow and warp; "
            f"pass None or pyflowreg's {default} (flow_backend='flowreg')"
        )


def _check_batch(
    batch: NDArray[Any],
    batch_proc: NDArray[Any],
    reference_raw: NDArray[Any],
    reference_proc: NDArray[Any],
    w_init: NDArray[Any],
) -> None:
    if batch.ndim != 4 or 0 in batch.shape:
        raise ValueError(f"batch has shape {batch.shape}, expected (T, H, W, C) or (T, H, W) with frames in it")
    check_warpable(batch.dtype, "batch")
    check_size(*batch.shape[1:3])
    expected = {
        "batch_proc": (batch_proc, batch.shape),
        "reference_raw": (reference_raw, batch.shape[1:]),
        "reference_proc": (reference_proc, batch.shape[1:]),
        "w_init": (w_init, (*batch.shape[1:3], 2)),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    for name in ("reference_raw", "reference_proc", "w_init"):
        if not np.all(np.isfinite(expected[name][0])):
            raise ValueError(f"{name} holds NaN or infinite values")


def _without_nonfinite(
    batch: NDArray[Any], batch_proc: NDArray[Any], reference_raw: NDArray[Any], reference_proc: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Copies in which NaN and infinite pixels are the reference's; the arrays themselves where there are none."""
    cleaned = []
    for frames, reference in ((batch, reference_raw), (batch_proc, reference_proc)):
        bad = find_nonfinite(frames)
        cleaned.append(frames if bad is None else np.where(bad, reference, frames).astype(frames.dtype))
    return cleaned[0], cleaned[1]
