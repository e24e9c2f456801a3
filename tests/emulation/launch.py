"""A compiled kernel: what its parameters are, whether arguments fit them, and the launch."""

from __future__ import annotations

import ctypes
import operator
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.emulation.compiler import EmulationError
from tests.emulation.memory import Allocation, Buffer, array_of

__all__ = ["MOST_SHARED_BYTES", "CompiledKernel"]

_MOST_THREADS = 1024
MOST_SHARED_BYTES = 227 << 10
_STACK_BYTES = 64 << 10
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_MOST_IN_BLOCK = (1024, 1024, 64)
_DONE, _BARRIER_MISSED, _BEFORE_SHARED, _BEHIND_SHARED = range(4)

# The libraries' state and the stacks serve one launch at a time.
_launching = threading.Lock()
_stacks = np.empty(_MOST_THREADS * _STACK_BYTES, np.uint8)  # address space, memory only once it is used


class _Parameter(ctypes.Structure):
    """emulation::Parameter of the header."""

    _fields_ = (
        ("kind", ctypes.c_char),
        ("bytes", ctypes.c_ushort),
        ("is_pointer", ctypes.c_bool),
        ("is_const", ctypes.c_bool),
    )


class _Launch(ctypes.Structure):
    """emulation::Launch of the header."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("reversed", ctypes.c_int),
        ("arguments", ctypes.c_void_p),
        ("stacks", ctypes.c_void_p),
        ("status", ctypes.c_int),
        ("at_block", ctypes.c_uint * 3),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("arrived", ctypes.c_uint),
    )


class _Expected(NamedTuple):
    """What an argument must be."""

    dtype: np.dtype[Any]
    is_pointer: bool
    is_const: bool

    def __str__(self) -> str:
        if self.is_pointer:
            return f"a Buffer of {self.dtype} ({'const ' * self.is_const}pointer)"
        if self.is_struct:
            return f"a struct of {self.dtype.itemsize} bytes"
        return f"a NumPy scalar {self.dtype}"

    @property
    def is_struct(self) -> bool:
        return self.dtype.kind == "V" and not self.is_pointer

    def fits(self, argument: Any) -> bool:
        """A struct is a NumPy array of no dimensions, as CuPy takes it."""
        if self.is_struct:
            is_record = isinstance(argument, np.ndarray) and argument.shape == () and argument.dtype.names is not None
            return is_record and argument.dtype.itemsize == self.dtype.itemsize
        return isinstance(argument, Buffer if self.is_pointer else np.generic) and argument.dtype == self.dtype


class CompiledKernel:
    """A kernel in a shared library.

    Parameters
    ----------
    library : Path
        What `compile_kernel` returns.
    name : str
        File and name expression, for messages.
    """

    def __init__(self, library: Path, name: str) -> None:
        loaded = ctypes.CDLL(str(library))
        self.name = name
        self._launch = loaded.emulation_launch
        self._launch.restype = None
        loaded.emulation_parameters.restype = ctypes.POINTER(_Parameter)
        parameters = loaded.emulation_parameters()
        self._expected = [
            _Expected(np.dtype(f"{one.kind.decode()}{one.bytes}"), one.is_pointer, one.is_const)
            for one in parameters[: loaded.emulation_parameter_count()]
        ]

    def check(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int) -> None:
        """Compare the launch with CUDA's limits and the arguments with the parameters; EmulationError."""
        for what, numbers, most in (("grid", grid, _MOST_BLOCKS), ("block", block, _MOST_IN_BLOCK)):
            if not 1 <= len(numbers) <= 3 or not all(
                1 <= operator.index(n) <= m for n, m in zip(numbers, most, strict=False)
            ):
                raise EmulationError(f"{self.name}: {what} is {tuple(numbers)}, expected 1 to 3 numbers up to {most}")
        if np.prod(block) > _MOST_THREADS:
            raise EmulationError(f"{self.name}: block {tuple(block)} has more than {_MOST_THREADS} threads")
        if not 0 <= operator.index(shared_mem) <= MOST_SHARED_BYTES:
            raise EmulationError(f"{self.name}: {shared_mem=}, expected 0 to {MOST_SHARED_BYTES}")
        if len(args) != len(self._expected):
            raise EmulationError(f"{self.name} was given {len(args)} arguments, expected {len(self._expected)}")
        for number, (argument, expected) in enumerate(zip(args, self._expected, strict=True)):
            if not expected.fits(argument):
                raise EmulationError(f"{self.name}: argument {number} is {_described(argument)}, expected {expected}")

    def written(self, args: Sequence[Any]) -> dict[int, Allocation]:
        """Number of the argument and memory, once for each memory that the kernel may write."""
        found: dict[int, Allocation] = {}
        for number, (argument, expected) in enumerate(zip(args, self._expected, strict=True)):
            if expected.is_pointer and not expected.is_const and argument.allocation not in found.values():
                found[number] = argument.allocation
        return found

    def run(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int, reverse: bool
    ) -> None:
        """Run all threads, in the order of their indices or in the reverse; EmulationError for what goes wrong."""
        passed = [np.uintp(_address(array_of(one))) if isinstance(one, Buffer) else one for one in args]
        most = max((one.nbytes for one in passed), default=1)
        values = np.zeros((max(len(args), 1), -(-most // 16) * 16), np.uint8)
        for value, one in zip(values, passed, strict=False):
            value[: one.nbytes] = np.frombuffer(one.tobytes(), np.uint8)
        addresses = _address(values) + values.strides[0] * np.arange(len(values), dtype=np.uintp)
        with _launching:
            launch = _Launch(_three(grid), _three(block), shared_mem, reverse, _address(addresses), _address(_stacks))
            self._launch(ctypes.byref(launch))
        self._check_guards(args)
        self._check_status(launch)

    def _check_guards(self, args: Sequence[Any]) -> None:
        damaged = []
        for number, argument in enumerate(args):
            if isinstance(argument, Buffer) and (where := argument.allocation.damage()):
                damaged.append(f"wrote {where} the memory of argument {number}, {_described(argument)}")
                argument.allocation.repair()
        if damaged:
            raise EmulationError(f"{self.name} " + "; ".join(damaged))

    def _check_status(self, launch: _Launch) -> None:
        if launch.status == _DONE:
            return
        place = f"{self.name}, block {tuple(launch.at_block)}"
        if launch.status == _BARRIER_MISSED:
            raise EmulationError(
                f"{place}: barrier not reached by all threads of the block: {launch.arrived} of "
                f"{np.prod(launch.block)} at {launch.file.decode()}:{launch.line}"
            )
        where = "before" if launch.status == _BEFORE_SHARED else "behind"
        raise EmulationError(f"{place}: wrote {where} the {launch.shared_bytes} bytes of shared memory")


def _address(array: NDArray[Any]) -> int:
    """Where an array begins; `array.ctypes.data` takes ten times as long."""
    return int(array.__array_interface__["data"][0])


def _three(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_uint]:
    return (ctypes.c_uint * 3)(*numbers, *[1] * (3 - len(numbers)))


def _described(argument: Any) -> str:
    """An argument's type, as messages name it."""
    if isinstance(argument, Buffer):
        return f"a Buffer of {argument.dtype} {argument.shape}"
    if isinstance(argument, np.generic):
        return f"a NumPy scalar {argument.dtype}"
    if isinstance(argument, np.ndarray):
        return f"a NumPy array of {argument.dtype} {argument.shape}"
    return f"{argument!r} ({type(argument).__name__})"
