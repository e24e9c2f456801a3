"""The call that pyflowreg makes to its executors, for ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import Batch, BatchResult, Progress, check_warpable, find_nonfinite
from flowreg_gpu.engine.job import Job, WarpJob
from flowreg_gpu.options import Options, check_plain, check_size

__all__ = ["ProcessBatch"]


class _Registers(Protocol):
    """What `ProcessBatch` needs of the executor that it is mixed into."""

    def in_use(self) -> AbstractContextManager[None]: ...

    def start_recording(self, job: WarpJob) -> None: ...

    def register_batch(self, batch: Batch) -> BatchResult: ...

    def _keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]: ...


class ProcessBatch:
    """Gives an executor pyflowreg's `process_batch`, in which every batch is a recording of its own."""

    def process_batch(
        self: _Registers,
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
        RuntimeError
            Another thread uses this executor.
        """
        _refuse_custom(get_displacement_func, "get_displacement_func", "get_displacement")
        _refuse_custom(imregister_func, "imregister_func", "imregister_wrapper")
        names = "batch", "batch_proc", "reference_raw", "reference_proc", "w_init"
        arrays = batch, batch_proc, reference_raw, reference_proc, w_init
        for name, array in zip(names, arrays, strict=True):
            check_plain(array, name)
        batch, batch_proc, reference_raw, reference_proc, w_init = map(np.asarray, arrays)
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
        job = Job.from_preprocessed(
            options=options, reference=np.float32(reference_raw), reference_planes=_planes(reference_proc)
        )
        with self.in_use():
            self.start_recording(job)
            result = self.register_batch(
                Batch(batch, _planes(w_init), planes=_planes(batch_proc), progress=progress_callback)
            )
            assert result.flow is not None  # it is kept
            return self._keep("registered", result.registered), self._keep("flow", result.flow)

    def _keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An array of a result, such that the next batch leaves it alone."""
        kept: NDArray[Any] = array.copy()
        return kept


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
