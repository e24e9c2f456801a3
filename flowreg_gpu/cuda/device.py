"""The device: memory, copies, streams, events and kernels; the only file that imports cupy.

Everything above works with `Device` and kernels alone, no array arithmetic of CuPy's, so that it runs unchanged on
the emulated device of the tests.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.cuda.source import kernel_source

__all__ = [
    "COMPILER_OPTIONS",
    "DEFAULT_SHARED_MEMORY",
    "OLDEST_CAPABILITY",
    "Buffer",
    "CudaDevice",
    "Device",
    "DeviceError",
    "DeviceFacts",
    "DeviceMemoryError",
    "Event",
    "Index",
    "Kernel",
    "Stream",
    "device_facts",
]

#: Compute capability of the oldest GPUs that the kernels are compiled for in the tests (Turing, 2018).
OLDEST_CAPABILITY = (7, 5)

#: What the kernels are compiled with; CuPy adds the GPU's architecture and -ftz=true. Fused multiply-adds are those
#: that are written, fmaf, and no others, so that they round as the CPU's kernels do, to the last bit: an unconverged
#: relaxation amplifies every difference (the rule sor on real frames to 0.01 px, benchmarks/ATTEMPTS.md).
COMPILER_OPTIONS = ("-std=c++17", "--fmad=false")

#: Bytes of shared memory that a block may have on every GPU without opting in to more.
DEFAULT_SHARED_MEMORY = 48 * 1024

_OUT_OF_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUFFT_ALLOC_FAILED")  # so errors begin

Stream = Any  # what Device.stream returns; None names the compute stream
Event = Any  # what Device.event returns

_Result = TypeVar("_Result")
Index = int | slice | EllipsisType
Kernel = Callable[..., None]  # kernel(grid, block, args, shared_mem=0, stream=None)


class DeviceError(RuntimeError):
    """A fault of the device, its driver or its compiler."""


class DeviceMemoryError(DeviceError):
    """The device's memory does not suffice, or the host's for page-locked arrays."""


class Buffer(Protocol):
    """An array in device memory, C-contiguous, or a view of one: with basic slices, or one of another shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Any: ...

    def reshape(self, shape: tuple[int, ...]) -> Any: ...


class Device(Protocol):
    """What launchers and executors need of a device.

    Work is queued on streams and done in order on each; `None` stands for the compute stream. A buffer belongs to
    the compute stream: its memory may be given to another buffer as soon as the last reference is gone and the
    compute stream has done what is queued by then, so whoever uses it on another stream keeps a reference until that
    is done.

    Attributes
    ----------
    shared_memory : int
        Bytes of shared memory that a block can have.
    multiprocessors : int
        Blocks with that much shared memory that run at a time, one on each multiprocessor.
    """

    name: str
    shared_memory: int
    multiprocessors: int

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """Device memory of unspecified contents; DeviceMemoryError where there is too little."""

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory of unspecified contents, which copies to and from without stopping the host."""

    def copy(self, destination: Any, source: Any, stream: Stream = None) -> None:
        """Queue the copy of a contiguous array to another of equal shape and dtype, at least one of them a Buffer.

        A copy to or from host memory that is not `pinned` is over on return.
        """

    def stream(self) -> Stream:
        """A new stream beside the compute stream."""

    def event(self) -> Event:
        """A new event, which counts as over until it is first recorded."""

    def record(self, event: Event, stream: Stream = None) -> None:
        """Make the event stand for all that is queued on the stream by now."""

    def wait(self, event: Event, stream: Stream = None) -> None:
        """Let what is queued on the stream from now on wait for the event."""

    def synchronize(self, event: Event | None = None) -> None:
        """Wait on the host for an event, or for everything; DeviceError where something queued has failed."""

    def kernel(self, file: str, expression: str) -> Kernel:
        """The kernel that a name expression ('warp_linear', 'add_smoothed<true>') means in a file of `kernels`.

        It is called as ``kernel(grid, block, args, shared_mem=0, stream=None)``; grid and block have up to three
        numbers above 0, x first; args are Buffers and NumPy scalars of the parameters' types.
        """

    def fft2(self, images: Buffer, inverse: bool = False) -> Buffer:
        """Two-dimensional Fourier transform of every image: (..., h, w) complex128, scaled by 1 / (h w) backwards."""

    def capture_graph(self, work: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """Capture what `work` queues as a graph instead of doing it: its result, and the function that queues it.

        `work` launches kernels that have been launched before, copies from buffer to buffer, and nothing else. What it
        allocates is kept for the captured graph alone, which uses the same memory every time: its result is that of
        the latest replay.
        """

    def free_memory(self) -> int:
        """Bytes that `empty` could still give out."""

    def release_memory(self) -> None:
        """Give memory that no Buffer holds back to other programs."""


class DeviceFacts(NamedTuple):
    """What `doctor` says of a GPU: versions of CUDA that the driver supports, of the runtime in CuPy and of NVRTC."""

    name: str
    capability: tuple[int, int]
    driver: str
    runtime: str
    nvrtc: str
    cupy: str
    free_memory: int
    total_memory: int
    multiprocessors: int


def _import_cupy() -> Any:
    """Return cupy; DeviceError with the reason where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of CUDA paths, and of two installed CuPys
            import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise DeviceError(f"CuPy cannot be imported: {error}") from error
        raise DeviceError(
            'CuPy is not installed; install it with pip install "flowreg-gpu[cuda13]", or [cuda12] for a driver '
            "older than 580"
        ) from None
    except Exception as error:  # a broken installation raises whatever its libraries raise
        raise DeviceError(f"CuPy cannot be imported: {_one_line(error)}") from error
    return cupy


def device_facts(index: int = 0) -> DeviceFacts:
    """Describe a GPU; DeviceError with the reason in one sentence where there is none that can be used."""
    cupy = _import_cupy()
    runtime = cupy.cuda.runtime
    if runtime.driverGetVersion() == 0:
        raise DeviceError("no NVIDIA driver is installed")
    driver, built_for = _version(runtime.driverGetVersion()), _version(runtime.runtimeGetVersion())
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"CUDA finds no usable GPU: {error} (driver for CUDA {driver}, CuPy for CUDA {built_for})"
        ) from error
    if not 0 <= index < count:
        raise DeviceError(f"device {index} was asked for, expected one from 0 to {count - 1}")
    properties = runtime.getDeviceProperties(index)
    name, capability = properties["name"].decode(), (int(properties["major"]), int(properties["minor"]))
    if capability < OLDEST_CAPABILITY:
        oldest = "{}.{}".format(*OLDEST_CAPABILITY)
        raise DeviceError(f"{name} has compute capability {capability[0]}.{capability[1]}, expected {oldest} or newer")
    try:
        with cupy.cuda.Device(index):
            free, total = runtime.memGetInfo()
            # proves that compiler, CUDA's headers and the cache on disk are there, and that the driver takes the result
            cupy.RawModule(code='extern "C" __global__ void nothing() {}').get_function("nothing")
        nvrtc = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
    except Exception as error:  # the driver's, the compiler's, the loader's or the file system's
        raise DeviceError(
            f"{name} cannot be used: {_one_line(error)} (driver for CUDA {driver}, CuPy for CUDA {built_for})"
        ) from error
    multiprocessors = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, index)
    return DeviceFacts(
        name, capability, driver, built_for, nvrtc, cupy.__version__, int(free), int(total), int(multiprocessors)
    )


def _version(number: int) -> str:
    """CUDA's 13000 as '13.0'."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _device_error(error: Exception, where: str) -> DeviceError:
    """What an error of CuPy's means."""
    short = isinstance(error, MemoryError) or str(error).startswith(_OUT_OF_MEMORY)
    return DeviceMemoryError(f"{where}: {error}") if short else DeviceError(f"{where}: {error}")


class CudaDevice:
    """An NVIDIA GPU through CuPy 13 or 14.

    Parameters
    ----------
    index : int
        Number of the GPU as CUDA counts them.

    Raises
    ------
    DeviceError
        No such GPU, or none that can be used.
    """

    def __init__(self, index: int = 0) -> None:
        facts = device_facts(index)
        self.name, self.multiprocessors = facts.name, facts.multiprocessors
        self._cupy = _import_cupy()
        self._device = self._cupy.cuda.Device(index)
        self._pool = self._cupy.cuda.MemoryPool()
        # a pool that goes keeps its memory (CuPy 14.2) unless that is freed before
        self._retired: list[Any] = []
        weakref.finalize(self, self._pool.free_all_blocks).atexit = False
        self._kernels: dict[tuple[str, str], Kernel] = {}
        # all that CuPy raises: CUDA's, NVRTC's and cuFFT's errors are RuntimeErrors, a library that is missing is an
        # ImportError, a cache of kernels that cannot be written an OSError
        self._errors = (MemoryError, RuntimeError, ImportError, OSError, self._cupy.cuda.compiler.CompileException)
        with self._working():
            self._compute = self._cupy.cuda.Stream(non_blocking=True)
            runtime = self._cupy.cuda.runtime
            self.shared_memory = int(runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, index))

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Make the device current and translate CuPy's errors."""
        try:
            with self._device:
                yield
        except self._errors as error:
            raise _device_error(error, self.name) from error

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """Device memory of unspecified contents; see `Device`."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        with self._working(), self._compute:  # the pool gives each stream memory of its own
            memory = self._pool.malloc(nbytes)
            buffer: Buffer = self._cupy.ndarray(tuple(shape), dtype, memptr=memory)
        return buffer

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory of unspecified contents; given back with the last reference, not pooled."""
        dtype = np.dtype(dtype)
        count = math.prod(shape)
        cuda = self._cupy.cuda
        with self._working():
            memory = cuda.PinnedMemoryPointer(cuda.PinnedMemory(count * dtype.itemsize), 0)
        return np.frombuffer(memory, dtype, count).reshape(tuple(shape))

    def copy(self, destination: Any, source: Any, stream: Stream = None) -> None:
        """Queue a copy; see `Device`."""
        if destination.shape != source.shape or destination.dtype != source.dtype:
            raise ValueError(f"cannot copy {source.dtype} {source.shape} to {destination.dtype} {destination.shape}")
        if not (destination.flags.c_contiguous and source.flags.c_contiguous):
            raise ValueError("cannot copy arrays that are not contiguous")
        if source.nbytes == 0:
            return
        runtime = self._cupy.cuda.runtime
        stream = self._compute if stream is None else stream
        addresses = _address(destination), _address(source)
        with self._working():
            runtime.memcpyAsync(*addresses, source.nbytes, runtime.memcpyDefault, stream.ptr)
            # CUDA stages pageable memory, or reads it later, when its owner may be gone: that depends on the system
            if runtime.memoryTypeUnregistered in (runtime.pointerGetAttributes(address).type for address in addresses):
                stream.synchronize()

    def stream(self) -> Stream:
        """A new stream beside the compute stream."""
        with self._working():
            return self._cupy.cuda.Stream(non_blocking=True)

    def event(self) -> Event:
        """A new event; the host sleeps while it waits for it, for others need the core."""
        with self._working():
            return self._cupy.cuda.Event(block=True, disable_timing=True)

    def record(self, event: Event, stream: Stream = None) -> None:
        """Make the event stand for all that is queued on the stream by now."""
        with self._working():
            event.record(self._compute if stream is None else stream)

    def wait(self, event: Event, stream: Stream = None) -> None:
        """Let what is queued on the stream from now on wait for the event."""
        with self._working():
            (self._compute if stream is None else stream).wait_event(event)

    def synchronize(self, event: Event | None = None) -> None:
        """Wait on the host for an event, or for everything."""
        with self._working():
            if event is None:
                self._device.synchronize()
            else:
                event.synchronize()

    def kernel(self, file: str, expression: str) -> Kernel:
        """Compile a kernel, or take it from the cache that CuPy has on disk since 14.2; see `Device`."""
        key = (file, expression)
        if key not in self._kernels:
            source = kernel_source(file)
            with self._working():
                module = self._cupy.RawModule(code=source, options=COMPILER_OPTIONS, name_expressions=(expression,))
                self._kernels[key] = self._launcher(expression, module.get_function(expression))
        return self._kernels[key]

    def _launcher(self, expression: str, raw: Any) -> Kernel:
        """The function that launches a RawKernel; it refers to no `self`, which would keep the memory alive."""
        function, device, compute, errors = raw.kernel, self._device, self._compute, self._errors
        where = f"{self.name}, kernel {expression}"
        granted = DEFAULT_SHARED_MEMORY

        def launch(
            grid: Sequence[int],
            block: Sequence[int],
            args: Sequence[Any],
            shared_mem: int = 0,
            stream: Stream = None,
        ) -> None:
            nonlocal granted
            if 0 in grid or 0 in block:  # CuPy would launch one
                raise ValueError(f"{grid=}, {block=} of kernel {expression} hold a 0")
            try:
                with device:
                    if shared_mem > granted:
                        raw.max_dynamic_shared_size_bytes = shared_mem
                        granted = shared_mem
                    function(tuple(grid), tuple(block), args, shared_mem, compute if stream is None else stream)
            except errors as error:
                raise _device_error(error, where) from error

        return launch

    def fft2(self, images: Buffer, inverse: bool = False) -> Buffer:
        """Two-dimensional Fourier transform of every image by cuFFT; see `Device`."""
        transform = self._cupy.fft.ifft2 if inverse else self._cupy.fft.fft2
        with self._working(), self._compute, self._cupy.cuda.using_allocator(self._pool.malloc):
            transformed: Buffer = transform(images, axes=(-2, -1))
        return transformed

    def capture_graph(self, work: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """Capture launches as a CUDA graph; see `Device`."""
        usual, own = self._pool, self._cupy.cuda.MemoryPool(self._allocate_or_fail)
        own.set_limit(size=0)
        with self._working():
            self._compute.begin_capture()
        self._pool = own
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(*self._errors), self._device:  # of the capture that is broken off
                self._compute.end_capture()
            self._retired.append(own)
            raise
        finally:
            self._pool = usual
        with self._working():
            graph = self._compute.end_capture()
        replay = functools.partial(self._replay, graph, own)
        weakref.finalize(replay, self._retired.append, own).atexit = False
        return result, replay

    def _allocate_or_fail(self, nbytes: int) -> Any:
        """Memory for the pool of a captured graph, which upon CuPy's error would free what the graph uses."""
        cuda = self._cupy.cuda
        try:
            return cuda.MemoryPointer(cuda.Memory(nbytes), 0)
        except cuda.runtime.CUDARuntimeError as error:
            raise MemoryError(str(error)) from error

    def _replay(self, graph: Any, memory: Any) -> None:
        """Queue a graph; `memory` is the pool that it uses."""
        with self._working():
            graph.launch(self._compute)

    def free_memory(self) -> int:
        """Bytes that `empty` could still give out."""
        with self._working():
            free, _ = self._cupy.cuda.runtime.memGetInfo()
            available = int(free) + int(self._pool.free_bytes())
            limit = int(self._pool.get_limit())  # CUPY_GPU_MEMORY_LIMIT; 0 where it is not set
            return min(available, limit - int(self._pool.used_bytes())) if limit else available

    def release_memory(self) -> None:
        """Give memory that no Buffer holds back to other programs."""
        with self._working():
            self._cupy.fft.config.get_plan_cache().clear()  # this thread's FFT plans, which hold memory of the pool
            for pool in (self._pool, *self._retired):
                pool.free_all_blocks()
            self._retired[:] = [pool for pool in self._retired if pool.total_bytes() > 0]


def _address(array: Any) -> int:
    """Where a NumPy or CuPy array begins."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
