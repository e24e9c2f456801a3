"""Threads in this process; the kernels release the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from flowreg_gpu.engine.batch import Progress
from flowreg_gpu.executors.cpu import LocalExecutor

__all__ = ["ThreadingExecutor"]

_HEAP_BYTES = 16_000_000  # measured with glibc


class ThreadingExecutor(LocalExecutor):
    """Registers frames in threads; needs no copies, no second process and no guarded main module."""

    name = "threading"
    parallel = True
    description = "Threads that share the frames"
    features = ("zero-copy",)

    def working_memory(self, frame: int) -> int:
        """A frame in work for each thread, and what the thread's own heap keeps of freed memory."""
        return self.n_workers * (frame + _HEAP_BYTES)

    def _run_frames(self, run_frame: Callable[[int], None], indices: range, progress: Progress) -> None:
        with ThreadPoolExecutor(self.n_workers) as threads:
            futures = [threads.submit(run_frame, index) for index in indices]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress(1)
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise


ThreadingExecutor.register()
