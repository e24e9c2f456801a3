"""The device: why there is none, in one sentence, and (marker gpu) what a real one does."""

import functools
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from flowreg_gpu.cuda import device as device_module
from flowreg_gpu.cuda import source
from flowreg_gpu.cuda.device import CudaDevice, DeviceError, DeviceMemoryError, device_facts
from flowreg_gpu.cuda.source import kernel_source
from flowreg_gpu.cuda.structs import filled, struct

REPOSITORY = Path(__file__).parents[2]

# Why there is no device


@pytest.fixture
def runtime():
    """CuPy's CUDA runtime, whose answers a test replaces; no driver is needed for that."""
    return pytest.importorskip("cupy", exc_type=ImportError).cuda.runtime


@pytest.fixture
def fake_cupy(monkeypatch, tmp_path):
    """Write a module that is imported as cupy."""
    monkeypatch.syspath_prepend(tmp_path)
    known = sys.modules.pop("cupy", None)
    yield (tmp_path / "cupy.py").write_text
    sys.modules.pop("cupy", None)
    if known is not None:
        sys.modules["cupy"] = known


def reason(index=0):
    """Why the device cannot be used: one line, the same from the facts and from the device."""
    with pytest.raises(DeviceError) as from_facts:
        device_facts(index)
    with pytest.raises(DeviceError) as from_device:
        CudaDevice(index)
    assert str(from_facts.value) == str(from_device.value)
    assert "\n" not in str(from_facts.value)
    return str(from_facts.value)


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert 'CuPy is not installed; install it with pip install "flowreg-gpu[cuda13]"' in reason()


def test_broken_cupy(fake_cupy):
    fake_cupy("raise ImportError('====\\nlibcuda went away\\n====')")
    assert reason() == "CuPy cannot be imported: ==== libcuda went away ===="


def test_cupy_misses_a_module(fake_cupy):
    fake_cupy("import no_such_module")
    assert reason() == "CuPy cannot be imported: No module named 'no_such_module'"


def test_warnings_of_cupy_are_silent(fake_cupy):
    fake_cupy("import warnings; warnings.warn('no CUDA path', UserWarning)")
    device_module._import_cupy()


def test_without_driver(runtime):
    if runtime.driverGetVersion():
        pytest.skip("an NVIDIA driver is installed")
    assert reason() == "no NVIDIA driver is installed"


def test_driver_too_old(runtime, monkeypatch):
    if runtime.driverGetVersion():
        pytest.skip("an NVIDIA driver is installed, which CuPy asks")
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 11040)
    told = reason()
    assert "cudaErrorInsufficientDriver" in told
    assert "driver for CUDA 11.4, CuPy for CUDA 1" in told


def test_index_out_of_range(runtime, monkeypatch):
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 13000)
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 2)
    assert reason(2) == "device 2 was asked for, expected one from 0 to 1"
    assert reason(-1) == "device -1 was asked for, expected one from 0 to 1"


def test_gpu_too_old(runtime, monkeypatch):
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 13000)
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 1)
    properties = {"name": b"Tesla V100", "major": 7, "minor": 0}
    monkeypatch.setattr(runtime, "getDeviceProperties", lambda index: properties)
    assert reason() == "Tesla V100 has compute capability 7.0, expected 7.5 or newer"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("Out of memory allocating 512 bytes"), DeviceMemoryError),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), DeviceMemoryError),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), DeviceMemoryError),
        (RuntimeError("CUFFT_ALLOC_FAILED"), DeviceMemoryError),
        (RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"), DeviceError),
    ],
)
def test_errors_are_told_apart(error, expected):
    found = device_module._device_error(error, "Tesla V100")
    assert type(found) is expected
    assert str(found) == f"Tesla V100: {error}"


def test_names_of_cupys_memory_errors(runtime):
    """CuPy's own errors begin as `_device_error` expects."""
    cuda = sys.modules["cupy"].cuda
    errors = [cuda.memory.OutOfMemoryError(512, 0), runtime.CUDARuntimeError(2)]
    if runtime.driverGetVersion():  # the driver knows the names of its errors
        errors.append(cuda.driver.CUDADriverError(2))
    for error in errors:
        assert type(device_module._device_error(error, "")) is DeviceMemoryError
    assert issubclass(cuda.driver.CUDADriverError, RuntimeError)
    assert issubclass(cuda.nvrtc.NVRTCError, RuntimeError)


# A real GPU

KERNELS = """
extern __shared__ double shared_memory[];

template <typename T>
__global__ void scale(const T* __restrict__ in, int count, float factor, T* __restrict__ out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = in[i] * factor;
}

// The last element of a large piece of shared memory, by way of the first thread.
__global__ void through_shared_memory(int count, float* __restrict__ out) {
  float* values = reinterpret_cast<float*>(shared_memory);
  for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = values[count - 1];
}

struct Pair {
  int first;
  long long second;
};
__global__ void add(const Pair pair, long long* __restrict__ out) { out[0] = pair.first + pair.second; }

__global__ void spin(long long cycles, int* __restrict__ out) {
  long long start = clock64();
  while (clock64() - start < cycles) {}
  out[0] = 1;
}

__global__ void astray(int* out) { out[1LL << 45] = 1; }
"""


@pytest.fixture
def cuda_device():
    try:
        return CudaDevice()
    except DeviceError as error:
        pytest.skip(f"no usable GPU: {error}")


@pytest.fixture
def kernels(cuda_device, tmp_path, monkeypatch):
    """Gives the kernels of this file, on the device."""
    (tmp_path / "test.cu").write_text(KERNELS)
    monkeypatch.setattr(source, "kernels_folder", lambda: tmp_path)
    kernel_source.cache_clear()
    yield functools.partial(cuda_device.kernel, "test.cu")
    kernel_source.cache_clear()


def fetch(device, buffer):
    array = np.empty(buffer.shape, buffer.dtype)
    device.copy(array, buffer)  # not pinned: over on return
    return array


def store(device, array):
    buffer = device.empty(array.shape, array.dtype)
    device.copy(buffer, array)
    return buffer


@pytest.mark.gpu
def test_facts(cuda_device):
    facts = device_facts()
    assert facts.name == cuda_device.name
    assert facts.capability >= device_module.OLDEST_CAPABILITY
    assert 0 < facts.free_memory <= facts.total_memory
    for version in (facts.driver, facts.runtime, facts.nvrtc):
        assert float(version) >= 12


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.complex128])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (), (0, 4)])
def test_copies(cuda_device, shape, dtype):
    array = np.asarray(np.random.default_rng(0).integers(0, 100, shape), dtype)
    pinned = cuda_device.pinned(shape, dtype)
    np.copyto(pinned, array)
    for host in (array, pinned):
        buffer = cuda_device.empty(shape, dtype)
        assert (buffer.shape, buffer.dtype, buffer.nbytes) == (array.shape, array.dtype, array.nbytes)
        cuda_device.copy(buffer, host)
        second = cuda_device.empty(shape, dtype)
        cuda_device.copy(second, buffer)
        back = cuda_device.pinned(shape, dtype)
        cuda_device.copy(back, second)
        cuda_device.synchronize()
        np.testing.assert_array_equal(back, array)


@pytest.mark.gpu
def test_views_are_copied(cuda_device):
    array = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    buffer = store(cuda_device, array)
    np.testing.assert_array_equal(fetch(cuda_device, buffer[1:4]), array[1:4])
    np.testing.assert_array_equal(fetch(cuda_device, buffer[2, 1]), array[2, 1])
    cuda_device.copy(buffer[3:], array[:2])
    np.testing.assert_array_equal(fetch(cuda_device, buffer), np.concatenate([array[:3], array[:2]]))


@pytest.mark.gpu
def test_copies_that_cannot_be(cuda_device):
    buffer = cuda_device.empty((4, 6), np.float32)
    with pytest.raises(ValueError, match=r"cannot copy float32 \(4, 5\) to float32 \(4, 6\)"):
        cuda_device.copy(buffer, np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match="float64"):
        cuda_device.copy(buffer, np.zeros((4, 6)))
    with pytest.raises(ValueError, match="not contiguous"):
        cuda_device.copy(buffer[:, :3], np.zeros((4, 3), np.float32))


@pytest.mark.gpu
def test_launch(cuda_device, kernels):
    values = np.random.default_rng(1).random(1000, dtype=np.float32)
    buffer, out = store(cuda_device, values), cuda_device.empty((1000,), np.float32)
    scale = kernels("scale<float>")
    assert kernels("scale<float>") is scale
    scale((4,), (256,), (buffer, np.int32(1000), np.float32(0.5), out))
    np.testing.assert_array_equal(fetch(cuda_device, out), values / 2)
    scale((1, 1, 1), (64, 1, 1), (buffer[500:], np.int32(10), np.float32(2), out[10:]), stream=cuda_device.stream())
    cuda_device.synchronize()
    np.testing.assert_array_equal(fetch(cuda_device, out)[10:20], 2 * values[500:510])


@pytest.mark.gpu
def test_struct_by_value(cuda_device, kernels):
    out = cuda_device.empty((1,), np.int64)
    kernels("add")((1,), (1,), (filled(struct(first=np.int32, second=np.int64), first=3, second=2**40), out))
    assert fetch(cuda_device, out)[0] == 2**40 + 3


@pytest.mark.gpu
@pytest.mark.parametrize(("grid", "block"), [((0,), (32,)), ((1, 1, 0), (32,)), ((1,), (32, 0))])
def test_empty_launch(kernels, grid, block):
    with pytest.raises(ValueError, match=r"grid=.* hold a 0"):
        kernels("scale<float>")(grid, block, ())


@pytest.mark.gpu
def test_shared_memory(cuda_device, kernels):
    out = cuda_device.empty((1,), np.float32)
    for kib in (16, 64, 48):  # 64 KiB: what the oldest supported GPUs give a block that asks for it
        kernels("through_shared_memory")((1,), (128,), (np.int32(kib * 256), out), shared_mem=kib * 1024)
        assert fetch(cuda_device, out)[0] == kib * 256 - 1
    with pytest.raises(DeviceError, match="through_shared_memory"):
        kernels("through_shared_memory")((1,), (128,), (np.int32(1), out), shared_mem=2**30)


@pytest.mark.gpu
def test_events_order_streams(cuda_device, kernels):
    pinned, out = cuda_device.pinned((1,), np.int32), store(cuda_device, np.zeros(1, np.int32))
    copies, spun, copied = cuda_device.stream(), cuda_device.event(), cuda_device.event()
    cuda_device.synchronize(copied)  # over, for it was never recorded
    kernels("spin")((1,), (1,), (np.int64(50_000_000), out))
    cuda_device.record(spun)
    cuda_device.wait(spun, copies)
    cuda_device.copy(pinned, out, copies)
    cuda_device.record(copied, copies)
    cuda_device.synchronize(copied)
    assert pinned[0] == 1


@pytest.mark.gpu
def test_host_does_not_wait_for_pinned_copies(cuda_device, kernels):
    pinned, out = cuda_device.pinned((1,), np.int32), store(cuda_device, np.zeros(1, np.int32))
    pinned[0] = -1
    kernels("spin")((1,), (1,), (np.int64(500_000_000), out))
    cuda_device.copy(pinned, out)
    assert pinned[0] == -1
    cuda_device.synchronize()
    assert pinned[0] == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 31, 64), (1, 1, 7), (2, 128, 1), (17, 19)])
def test_fft2(cuda_device, shape):
    rng = np.random.default_rng(2)
    images = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    buffer = store(cuda_device, images)
    for inverse, transform in ((False, np.fft.fft2), (True, np.fft.ifft2)):
        found = cuda_device.fft2(buffer, inverse)
        assert found.dtype == np.complex128
        expected = transform(images)
        # double precision: both round differently, by a few ulp of the largest coefficient
        np.testing.assert_allclose(fetch(cuda_device, found), expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    np.testing.assert_array_equal(fetch(cuda_device, buffer), images)


@pytest.mark.gpu
def test_graph(cuda_device, kernels):
    """Replays read what the buffers hold then, in order with what else is queued, in memory of their own."""
    scale, given = kernels("scale<float>"), store(cuda_device, np.ones(4, np.float32))

    def work():
        once, twice = cuda_device.empty((4,), np.float32), cuda_device.empty((4,), np.float32)
        for source_of, out in ((given, once), (once, twice)):
            scale((1,), (4,), (source_of, np.int32(4), np.float32(2), out))
        return twice

    work()
    result, replay = cuda_device.capture_graph(work)
    for value in (1, 5):
        cuda_device.copy(given, np.full(4, value, np.float32))
        replay()
        cuda_device.release_memory()
        others = [store(cuda_device, np.zeros(4, np.float32)) for _ in range(4)]
        np.testing.assert_array_equal(fetch(cuda_device, result), np.full(4, 4 * value))
        assert all(fetch(cuda_device, other).max() == 0 for other in others)


@pytest.mark.gpu
def test_graph_that_fails(cuda_device):
    """Out of memory while a graph is captured: that error, and a device that goes on."""
    with pytest.raises(DeviceMemoryError, match=cuda_device.name):
        cuda_device.capture_graph(lambda: cuda_device.empty((2**50,), np.uint8))
    assert fetch(cuda_device, store(cuda_device, np.arange(3)))[2] == 2


@pytest.mark.gpu
def test_out_of_memory(cuda_device):
    with pytest.raises(DeviceMemoryError, match=cuda_device.name):
        cuda_device.empty((2**50,), np.uint8)
    assert fetch(cuda_device, store(cuda_device, np.arange(3)))[2] == 2


@pytest.mark.gpu
def test_free_memory(cuda_device):
    before = cuda_device.free_memory()
    buffer = cuda_device.empty((2**28,), np.uint8)
    held = cuda_device.free_memory()
    del buffer
    # other programs may use the GPU: half of the 256 MiB is enough to see
    assert before - held > 2**27
    assert cuda_device.free_memory() - held > 2**27
    cuda_device.release_memory()
    assert device_facts().free_memory - held > 2**27


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
def test_device_goes_with_its_last_reference():
    """And with it its memory: no cycle keeps it until the garbage is collected."""
    device = CudaDevice()
    device.kernel("test.cu", "scale<float>")
    gone = weakref.ref(device)
    gc.disable()
    try:
        del device
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_device")
def test_fault_of_a_kernel(tmp_path):
    """In a process of its own, since no call can use its context afterwards."""
    (tmp_path / "test.cu").write_text(KERNELS)
    script = f"""
from pathlib import Path
import numpy as np
from flowreg_gpu.cuda import source
from flowreg_gpu.cuda.device import CudaDevice, DeviceError
source.kernels_folder = lambda: Path({str(tmp_path)!r})
device = CudaDevice()
device.kernel("test.cu", "astray")((1,), (1,), (device.empty((1,), np.int32),))
try:
    device.synchronize()
except DeviceError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=120)
    assert "cudaErrorIllegalAddress" in done.stdout, done.stderr
