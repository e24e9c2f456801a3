"""How the CPU kernels are compiled."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from multiprocessing import parent_process
from typing import Any

from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = ["compiled", "fma", "inlined", "kernels_loaded"]

# No fast-math flag, not even contraction to fused multiply-adds: numba keeps several copies of a kernel, optimised
# in different callers, and which of them runs depends on what was compiled here and what came from the cache. Only
# where every operation is IEEE's, and fused where `fma` is written and nowhere else, do all copies agree to the last
# bit, and with the CUDA kernels. The numpy error model leaves out the test for zero before every division, which would
# keep loops from vectorising.
#
# numba's cache looks at the file of the kernel alone. After a change in this file, in a kernel that other files call
# (lanes.py, relaxation.py), or of a constant that kernels import, delete flowreg_gpu/cpu/__pycache__/*.nb*.


class _Separate(Compiler):  # type: ignore[misc]  # numba has no types
    """Compiles a kernel whose array arguments never overlap where one of them is written."""

    def __init__(self, typing: Any, target: Any, library: Any, args: Any, result: Any, flags: Any, local: Any) -> None:
        flags.noalias = True
        super().__init__(typing, target, library, args, result, flags, local)


_kernels: list[Any] = []


def compiled(function: Callable[..., Any]) -> Any:
    """Compile for this machine on first use, release the GIL, and keep the code in numba's cache if it has one."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "pipeline_class": _Separate}
    try:
        kernel = njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _tell_of_missing_cache()
        kernel = njit(**options)(function)
    _kernels.append(kernel)
    return kernel


def kernels_loaded() -> bool:
    """Whether this process has run a kernel, and holds what numba loads for the first one."""
    return any(kernel.signatures for kernel in _kernels)


@functools.cache  # once, and not for every kernel
def _tell_of_missing_cache() -> None:
    if parent_process() is None:  # workers would say the same again
        warnings.warn(
            "compiled kernels cannot be kept, neither beside the package nor in a home directory: every process "
            "compiles them anew, for up to a minute; NUMBA_CACHE_DIR may name a folder for them",
            RuntimeWarning,
            stacklevel=2,
        )


def inlined(function: Callable[..., Any]) -> Any:
    """Compile as a part of every kernel that calls it."""
    return njit(inline="always", error_model="numpy")(function)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, rounded once, in kernels.

    An instruction of x86-64-v3 (processors with AVX2) and of 64-bit ARM, also on vectors; elsewhere the C library's
    fmaf gives the same, slowly.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    if (a, b, c) != (types.float32,) * 3:
        raise TypeError(f"fma of {a}, {b} and {c}, expected float32")
    return types.float32(a, b, c), build
