"""pyflowreg beside us, from TIFF to TIFF through its own pipeline: on processes, and on a GPU where it can use one."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.executors import gpu_status
from flowreg_gpu.options import ALPHA, Options
from flowreg_gpu.pyflowreg.library import part
from flowreg_gpu.registration.start_flow import FIRST_FLOWS
from flowreg_gpu.workers.pool import default_workers

__all__ = ["BACKENDS", "ON_GPU", "Rival", "Unavailable", "check_backend"]

#: Rows, with pyflowreg's flow backend, its parameters, and its executor.
BACKENDS: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "pyflowreg": (None, {}, "multiprocessing"),
    "flowreg_cuda": ("flowreg_cuda", {}, "sequential"),
    "flowreg_torch": ("flowreg_torch", {"device": "cuda"}, "sequential"),
}
ON_GPU = tuple(name for name, (backend, *_) in BACKENDS.items() if backend is not None)


class Unavailable(Exception):
    """A rival that cannot run here; the message says why."""


def check_backend(name: str, parameters: dict[str, Any]) -> None:
    """Raise Unavailable where pyflowreg cannot compute a flow on a GPU by this backend."""
    usable, reason = gpu_status()
    if not usable:
        raise Unavailable(reason)
    if not part("core", "is_backend_available")(name):
        raise Unavailable("pyflowreg does not offer it here: CuPy or PyTorch cannot be imported")
    if "device" in parameters and not importlib.import_module("torch").cuda.is_available():
        raise Unavailable("PyTorch sees no GPU")


class Rival:
    """pyflowreg's registration of files to a reference.

    Parameters
    ----------
    name : str
        One of `BACKENDS`.
    reference : (H, W, C) float32
    quality : str
    workers : int or None
    folder : Path
        Takes the registered recording.
    kept : int
        Frames of a recording whose flow is kept; that of all would count as pyflowreg's memory.

    Attributes
    ----------
    flow : (kept, H, W, 2) float32
        Of the first frames of the last recording.

    Raises
    ------
    Unavailable
    """

    def __init__(
        self, name: str, reference: NDArray[np.float32], quality: str, workers: int | None, folder: Path, kept: int
    ) -> None:
        self._backend, self._parameters, executor = BACKENDS[name]
        try:
            self._options = part("motion_correction", "OFOptions")
            self._corrector = part("motion_correction.compensate_recording", "BatchMotionCorrector")
            self._open = part("util.io.factory", "get_video_file_reader")
            config = part("motion_correction.compensate_recording", "RegistrationConfig")
            if self._backend is not None:
                check_backend(self._backend, self._parameters)
        except ImportError as error:
            raise Unavailable(" ".join(str(error).split())) from error
        self.workers = (workers or default_workers()) if executor == "multiprocessing" else 1
        self._config = config(n_jobs=self.workers, parallelization=executor)
        self._reference, self._quality, self._folder = reference, quality, folder
        self.flow = np.zeros((kept, *reference.shape[:2], 2), np.float32)

    def register(self, source: Path, count: int) -> int:
        """Register a recording of `count` frames; the number of frames that were registered, start flow included."""
        chosen = {} if self._backend is None else {"flow_backend": self._backend, "backend_params": self._parameters}
        reader = self._open(os.fspath(source), Options().buffer_size, deinterleave=self._reference.shape[2])
        options = self._options(
            input_file=reader,
            output_path=os.fspath(self._folder),
            output_format="TIFF",
            quality_setting=self._quality,
            alpha=ALPHA,
            save_w=False,
            save_meta_info=False,
            **chosen,
        )
        corrector = self._corrector(options, self._config)
        finished = 0

        def take(flow: NDArray[np.floating[Any]], first: int, stop: int) -> None:
            nonlocal finished
            finished = stop
            kept = self.flow[first:stop]
            kept[...] = flow[: len(kept)]

        corrector.register_w_callback(take)
        with contextlib.closing(reader):
            corrector.run(self._reference)
        if finished != count:
            raise RuntimeError(f"it registered {finished} of {count} frames")
        return count + min(FIRST_FLOWS, count)  # it has the same rule for the start flow
