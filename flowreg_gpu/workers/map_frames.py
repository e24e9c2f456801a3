"""Any function of a frame over a stack, in worker processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowreg_gpu.workers.pool import FramePool, default_workers

FrameFunction = Callable[[NDArray[Any]], ArrayLike]


def map_frames(
    func: FrameFunction,
    stack: ArrayLike,
    out: NDArray[Any] | None = None,
    n_workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[Any]:
    """Apply a function to every frame of a stack, in worker processes.

    Parameters
    ----------
    func : callable
        ``func(frame) -> array``. It gets a read-only view of a frame and must be importable, so no lambda.
        Its results must have the same shape for all frames.
    stack : array_like, shape (frames, ...)
        The frames, along axis 0. Never modified.
    out : ndarray, shape (frames, ...), optional
        Where the results go, cast as ``same_kind`` allows. By default, a new array with the shape and the dtype that
        `func` returns for the first frame, which is then called once more, in this process.
    n_workers : int, optional
        Number of processes; by default the CPUs that this process may use. Results do not depend on it.
    progress : callable, optional
        Called with the number of newly finished frames.

    Returns
    -------
    ndarray, shape (frames, ...)
        The results: `out` if given.

    Raises
    ------
    ValueError
        If the stack has no frames, `n_workers` is less than 1, `out` has another number of frames than the stack,
        or a result has another shape than a frame of `out`.
    TypeError
        If `func` is not importable, a result cannot be cast to the dtype of `out`, or `n_workers` is not an integer.
    RuntimeError
        If a worker dies, or there is too little shared memory for a copy of `stack` and `out`.
    Exception
        What `func` raises. `out` is unchanged after any exception.

    Examples
    --------
    In a script, call it under ``if __name__ == "__main__":``, because the workers import the script.

    >>> import numpy as np
    >>> from flowreg_gpu.workers.map_frames import map_frames
    >>> movie = np.arange(12.0).reshape(3, 2, 2)
    >>> map_frames(np.mean, movie, n_workers=2)
    array([1.5, 5.5, 9.5])
    """
    stack = np.asarray(stack)
    if stack.ndim == 0 or len(stack) == 0:
        raise ValueError(f"{stack.shape=}: expected one frame or more along axis 0")
    if out is not None and len(out) != len(stack):
        raise ValueError(f"{out.shape=} and {stack.shape=} differ in the number of frames")
    if n_workers is None:
        n_workers = min(default_workers(), len(stack))
    with FramePool(n_workers) as pool:
        frames = pool.allocate("stack", stack.shape, stack.dtype)
        frames[...] = stack
        if out is None:
            first = np.asarray(func(_read_only(frames, 0)))
            out = np.empty((len(stack), *first.shape), first.dtype)
        results = pool.allocate("out", out.shape, out.dtype)
        pool.run(_Map(func), range(len(stack)), progress)
        out[...] = results
    return out


@dataclass
class _Map:
    """The task: results of `func` on frames of "stack" into "out"."""

    func: FrameFunction

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Nothing to set up."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]], index: int) -> None:
        """Handle one frame."""
        result = np.asarray(self.func(_read_only(arrays["stack"], index)))
        expected = arrays["out"].shape[1:]
        if result.shape != expected:  # copyto would broadcast
            raise ValueError(f"frame {index}: func returned shape {result.shape}, out has frames of shape {expected}")
        np.copyto(arrays["out"][index, ...], result, casting="same_kind")


def _read_only(stack: NDArray[Any], index: int) -> NDArray[Any]:
    frame = stack[index, ...]
    frame.flags.writeable = False
    return frame
