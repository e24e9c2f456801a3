"""The emulated device shows what it is there to show, each fault on a kernel of a few lines."""

import gc

import numpy as np
import pytest

from flowreg_gpu.cuda.device import DeviceError, DeviceMemoryError
from tests.emulation import CompileError, EmulatedDevice, EmulationError, compiler

COORDINATES = """
__global__ void coordinates(int width, int height, int* __restrict__ out) {
  int x = blockIdx.x * blockDim.x + threadIdx.x;
  int y = blockIdx.y * blockDim.y + threadIdx.y;
  int z = blockIdx.z * blockDim.z + threadIdx.z;
  if (x >= width || y >= height) return;
  out[(z * height + y) * width + x] = x + 100 * y + 10000 * z;
}
"""

SCALE = """
template <typename T, int Factor>
__global__ void scale(const T* __restrict__ in, int count, float* __restrict__ out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = Factor * float(in[i]);
}
"""

SHARED = "extern __shared__ double shared_memory[];\n"

REVERSE = (
    SHARED
    + """
template <bool Barrier>
__global__ void reverse(const float* __restrict__ in, float* __restrict__ out) {
  float* line = reinterpret_cast<float*>(shared_memory);
  int first = blockIdx.x * blockDim.x;
  line[threadIdx.x] = in[first + threadIdx.x];
  if (Barrier) __syncthreads();
  out[first + threadIdx.x] = line[blockDim.x - 1 - threadIdx.x];
}
"""
)

TREE_SUM = (
    SHARED
    + """
__global__ void tree_sum(const double* __restrict__ in, double* __restrict__ out) {
  int x = threadIdx.x;
  shared_memory[x] = in[blockIdx.x * blockDim.x + x];
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (x < half) shared_memory[x] += shared_memory[x + half];
  }
  if (x == 0) out[blockIdx.x] = shared_memory[0];
}
"""
)

DIVERGENT = """
#line 1 "divergent.cu"
__global__ void divergent(int first, int last, int* out) {
  int x = threadIdx.x;
  if (x >= first && x < last)
    __syncthreads();
  out[x] = x;
}
__global__ void two_places(int* out) {
  if (threadIdx.x < 3)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
"""

WRITE_AT = """
__global__ void write_at(const float* in, long long index, float* out) { out[index] = in[0]; }
"""


@pytest.fixture
def device():
    return EmulatedDevice()


def scale_by(device, factor, dtype="float"):
    return device.kernel_from_text(SCALE, f"scale<{dtype}, {factor}>")


# ---- Threads and blocks ----


@pytest.mark.parametrize("order", ["forward", "reversed", "both"])
@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [
        ((1, 1, 70), (3,), (32,)),
        ((1, 5, 9), (3, 2), (4, 3)),
        ((6, 5, 9), (2, 3, 3), (8, 2, 2)),
    ],
)
def test_every_thread_of_a_grid_runs_once(order, shape, grid, block):
    device = EmulatedDevice(order=order)
    out = device.empty(shape, np.int32)
    device.kernel_from_text(COORDINATES, "coordinates")(grid, block, (np.int32(shape[2]), np.int32(shape[1]), out))
    z, y, x = np.indices(shape)
    np.testing.assert_array_equal(device.to_host(out), x + 100 * y + 10000 * z)


@pytest.mark.parametrize("order", ["forward", "reversed", "both"])
@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_threads_meet_at_barriers(order, threads):
    device = EmulatedDevice(order=order)
    values = np.random.default_rng(0).integers(0, 1000, (5, threads)).astype(np.float64)
    out = device.empty((5,), np.float64)
    tree_sum = device.kernel_from_text(TREE_SUM, "tree_sum")
    tree_sum((5,), (threads,), (device.to_device(values), out), shared_mem=8 * threads)
    np.testing.assert_array_equal(device.to_host(out), values.sum(axis=1))


def test_vote_holds_from_barrier_to_barrier(device):
    text = """
    __global__ void count_phases(int* out) {
      int phases = 0;
      while (__syncthreads_or(phases < int(threadIdx.y))) ++phases;
      out[threadIdx.y * blockDim.x + threadIdx.x] = phases;
    }
    """
    out = device.empty((7, 3), np.int32)
    device.kernel_from_text(text, "count_phases")((1,), (3, 7), (out,))
    np.testing.assert_array_equal(device.to_host(out), np.full((7, 3), 6))


def test_shuffle_within_a_warp(device):
    text = """
    __global__ void shift(int* out) {
      int thread = threadIdx.y * blockDim.x + threadIdx.x, other = __shfl_sync(0xffffffffu, thread, 5);
      out[thread] = 100 * other + __shfl_sync(0xffffffffu, thread, (thread + 1) % 32);
    }
    """
    out = device.empty((64,), np.int32)
    device.kernel_from_text(text, "shift")((1,), (16, 4), (out,))
    thread = np.arange(64)
    np.testing.assert_array_equal(device.to_host(out), thread // 32 * 32 * 101 + 500 + (thread + 1) % 32)


def test_missing_barrier_shows_in_the_reversed_order():
    device = EmulatedDevice(order="both")
    line = np.arange(64, dtype=np.float32)
    out = device.empty((64,), np.float32)
    args = (device.to_device(line), out)
    device.kernel_from_text(REVERSE, "reverse<true>")((2,), (32,), args, shared_mem=128)
    np.testing.assert_array_equal(device.to_host(out), line.reshape(2, 32)[:, ::-1].ravel())
    with pytest.raises(EmulationError, match=r"reverse<false>: 64 of 64 elements of argument 1 depend on the order"):
        device.kernel_from_text(REVERSE, "reverse<false>")((2,), (32,), args, shared_mem=128)


def test_order_is_judged_from_equal_contents_in_the_whole_memory():
    text = """
    __global__ void add(int* out) { out[0] += 1; }
    __global__ void last(int* out) { out[4] = blockIdx.x; }
    """
    device = EmulatedDevice(order="both")
    out = device.to_device(np.zeros(8, np.int32))
    device.kernel_from_text(text, "add")((3,), (2,), (out,))
    assert device.to_host(out)[0] == 6
    with pytest.raises(EmulationError, match=r"last: 1 of 8 elements of argument 0"):
        device.kernel_from_text(text, "last")((3,), (1,), (out[:2],))


@pytest.mark.parametrize(("first", "last", "arrived"), [(0, 5, 5), (3, 8, 5), (2, 3, 1), (0, 1, 1), (7, 8, 1)], ids=str)
def test_barrier_that_threads_pass_by_is_an_error(device, first, last, arrived):
    out = device.to_device(np.zeros(8, np.int32))
    divergent = device.kernel_from_text(DIVERGENT, "divergent")
    message = rf"block \(0, 0, 0\): barrier not reached by all threads of the block: {arrived} of 8 at divergent.cu:4"
    with pytest.raises(EmulationError, match=message):
        divergent((1,), (8,), (np.int32(first), np.int32(last), out))
    for first, last in ((0, 0), (0, 8)):  # nothing remains of the threads that were abandoned
        divergent((2,), (8,), (np.int32(first), np.int32(last), out))
        np.testing.assert_array_equal(device.to_host(out), np.arange(8))


def test_two_barriers_are_not_one(device):
    out = device.empty((8,), np.int32)
    with pytest.raises(EmulationError, match=r"3 of 8 at divergent.cu:9"):
        device.kernel_from_text(DIVERGENT, "two_places")((1,), (8,), (out,))


# ---- Out of bounds, unwritten ----


@pytest.mark.parametrize(
    ("index", "where"), [(-1, "before"), (-1000, "before"), (6, "behind"), (1000, "behind")], ids=str
)
@pytest.mark.parametrize("value", [1.0, np.nan])
def test_write_out_of_bounds_is_an_error(device, index, where, value):
    out = device.empty((2, 3), np.float32)
    args = (device.to_device(np.array([value], np.float32)), np.int64(index), out)
    write_at = device.kernel_from_text(WRITE_AT, "write_at")
    with pytest.raises(EmulationError, match=f"write_at wrote {where} the memory of argument 2, a Buffer of float32"):
        write_at((1,), (1,), args)
    write_at((1,), (1,), (args[0], np.int64(5), out))  # one fault is reported once


def test_copied_guard_is_no_guard(device):
    text = "__global__ void copy(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x]; }"
    with pytest.raises(EmulationError, match="wrote behind the memory of argument 1"):
        device.kernel_from_text(text, "copy")((1,), (9,), (device.empty((8,), "f4"), device.empty((8,), "f4")))


@pytest.mark.parametrize(
    ("index", "fault"), [(0, None), (24, None), (-1, "before"), (25, "behind"), (50_000, "behind")], ids=str
)
@pytest.mark.parametrize("value", [1.0, np.nan])
def test_write_out_of_shared_memory_is_an_error(device, index, fault, value):
    text = (
        SHARED
        + "__global__ void write_shared(float value, int i) { reinterpret_cast<float*>(shared_memory)[i] = value; }"
    )
    write_shared = device.kernel_from_text(text, "write_shared")
    if fault:
        with pytest.raises(EmulationError, match=f"wrote {fault} the 100 bytes of shared memory"):
            write_shared((2,), (1,), (np.float32(value), np.int32(index)), shared_mem=100)
    else:
        write_shared((2,), (1,), (np.float32(value), np.int32(index)), shared_mem=100)


def test_shared_memory_is_poisoned_for_every_block(device):
    text = (
        SHARED
        + """
    __global__ void peek(int* out) {
      int* line = reinterpret_cast<int*>(shared_memory);
      out[blockIdx.x] = line[0] + line[7];
      line[0] = line[7] = 5;
    }
    """
    )
    out = device.empty((3,), np.int32)
    device.kernel_from_text(text, "peek")((3,), (1,), (out,), shared_mem=32)
    np.testing.assert_array_equal(device.to_host(out), [-2, -2, -2])


@pytest.mark.parametrize(
    ("dtype", "poison"), [("f4", np.nan), ("f8", np.nan), ("c16", np.nan), ("u2", 0xA5A5), ("i4", -0x5A5A5A5B)]
)
def test_fresh_memory_is_poisoned(device, dtype, poison):
    for fresh in (device.to_host(device.empty((2, 3), dtype)), device.pinned((2, 3), dtype)):
        np.testing.assert_array_equal(fresh, np.full((2, 3), poison, dtype))


def test_unwritten_element_is_poison(device):
    out = device.empty((5,), np.float32)
    scale_by(device, 2)((1,), (4,), (device.to_device(np.ones(5, np.float32)), np.int32(5), out))
    np.testing.assert_array_equal(device.to_host(out), [2, 2, 2, 2, np.nan])


# ---- Arguments ----


def test_name_expressions_make_instances(device):
    values = np.array([1, 7, 65535], np.uint16)
    out = device.empty((3,), np.float32)
    scale_by(device, 4, "unsigned short")((1,), (32,), (device.to_device(values), np.int32(3), out))
    np.testing.assert_array_equal(device.to_host(out), 4.0 * values)


def test_complex_numbers_are_pairs(device):
    text = """
    __global__ void turn(const double2* in, double2 factor, double2* out) {
      double2 z = in[threadIdx.x];
      out[threadIdx.x] = make_double2(z.x * factor.x - z.y * factor.y, z.x * factor.y + z.y * factor.x);
    }
    """
    values = np.array([1, 2 + 3j, -1j])
    out = device.empty((3,), np.complex128)
    device.kernel_from_text(text, "turn")((1,), (3,), (device.to_device(values), np.complex128(1j), out))
    np.testing.assert_array_equal(device.to_host(out), 1j * values)


@pytest.mark.parametrize(
    ("number", "argument", "given"),
    [
        (0, np.ones(4, np.float32), r"a NumPy array of float32 \(4,\)"),
        (0, np.float32(1), "a NumPy scalar float32"),
        (1, 4, r"4 \(int\)"),
        (1, 4.0, r"4.0 \(float\)"),
        (1, np.int64(4), "a NumPy scalar int64"),
        (1, np.uint32(4), "a NumPy scalar uint32"),
        (2, None, r"None \(NoneType\)"),
    ],
)
def test_argument_of_another_type_is_an_error(device, number, argument, given):
    args = [device.empty((4,), np.float32), np.int32(4), device.empty((4,), np.float32)]
    expected = ["a Buffer of float32 (const pointer)", "a NumPy scalar int32", "a Buffer of float32 (pointer)"][number]
    args[number] = argument
    with pytest.raises(
        EmulationError, match=rf"<text> scale<float, 2>: argument {number} is {given}, expected"
    ) as error:
        scale_by(device, 2)((1,), (4,), args)
    assert str(error.value).endswith(expected)


STRUCT = """
struct Pair { int first; long long second; };
__global__ void add(const Pair pair, long long* out) { out[0] = pair.first + pair.second; }
"""
PAIR = np.dtype([("first", np.int32), ("second", np.int64)], align=True)


@pytest.mark.parametrize("lazy", [False, True])
def test_struct_is_passed_by_value(lazy):
    """As it is when the launch is asked for."""
    device = EmulatedDevice(lazy=lazy)
    pair, out = np.array((3, 2**40), PAIR), device.empty((1,), np.int64)
    device.kernel_from_text(STRUCT, "add")((1,), (1,), (pair, out))
    pair["first"] = 0
    assert device.to_host(out)[0] == 2**40 + 3


@pytest.mark.parametrize(
    "given",
    [np.zeros((1,), PAIR), np.zeros((), PAIR)[()], np.zeros((), [("one", np.int32)]), np.zeros((), "V16"), np.int64(1)],
    ids=["an array", "a scalar", "another size", "no fields", "a number"],
)
def test_what_is_no_struct_is_an_error(device, given):
    with pytest.raises(EmulationError, match=r"<text> add: argument 0 is a NumPy .*, expected a struct of 16 bytes"):
        device.kernel_from_text(STRUCT, "add")((1,), (1,), (given, device.empty((1,), np.int64)))


def test_buffer_of_another_dtype_is_an_error(device):
    args = (device.empty((4,), np.float64), np.int32(4), device.empty((4,), np.float32))
    with pytest.raises(EmulationError, match=r"argument 0 is a Buffer of float64 \(4,\), expected a Buffer of float32"):
        scale_by(device, 2)((1,), (4,), args)


def test_wrong_number_of_arguments_is_an_error(device):
    with pytest.raises(EmulationError, match="was given 1 arguments, expected 3"):
        scale_by(device, 2)((1,), (4,), (np.int32(4),))


@pytest.mark.parametrize(
    ("grid", "block", "shared_mem", "message"),
    [
        ((0,), (1,), 0, r"grid is \(0,\)"),
        ((1, 65536), (1,), 0, r"grid is \(1, 65536\)"),
        ((1,), (1, 1, 65), 0, r"block is \(1, 1, 65\)"),
        ((1,), (64, 32), 0, "more than 1024 threads"),
        ((1,), (1,), 300_000, "shared_mem=300000"),
    ],
)
def test_launch_beyond_the_limits_is_an_error(device, grid, block, shared_mem, message):
    args = (device.empty((4,), np.float32), np.int32(4), device.empty((4,), np.float32))
    with pytest.raises(EmulationError, match=message):
        scale_by(device, 2)(grid, block, args, shared_mem=shared_mem)


# ---- The text ----


def test_message_of_the_compiler_names_the_line_of_the_file(device):
    text = '#line 40 "median.cu"\n__global__ void median(float* out) {\n  out[0] = unknown;\n}\n'
    with pytest.raises(CompileError, match=r"median\.cu:41:.*unknown"):
        device.kernel_from_text(text, "median")


@pytest.mark.parametrize(
    "text",
    [
        "__global__ void f(float* out) { __shared__ float line[32]; out[0] = line[0]; }",
        "__shared__ float line[32]; __global__ void f(float* out) { out[0] = line[0]; }",
        "extern __shared__ float other[]; __global__ void f(float* out) { out[0] = other[0]; }",
        "__global__ void f(const float* in, float* out) { in[0] = out[0]; }",
        "__global__ void f(float* out) { threadIdx.x = 1; }",
        "__global__ void f(double* out) { out[0] = M_PI; }",
        "__global__ void f(float* out) { out[0] = std::max(out[1], out[2]); }",
        "__global__ void f(float* out, long long n) { out[0] = min(1, n); }",
    ],
    ids=["static_shared", "file_shared", "other_shared", "const", "threadIdx", "M_PI", "std", "ambiguous"],
)
def test_text_is_refused(device, text):
    with pytest.raises(CompileError, match="f does not compile"):
        device.kernel_from_text(text, "f")


def test_unknown_name_expression_is_refused(device):
    with pytest.raises(CompileError, match="tripel"):
        device.kernel_from_text(SCALE, "tripel<3>")


def test_mathematics_is_that_of_the_device(device):
    text = """
    #define PUT(value) *out++ = value;
    __global__ void calculate(float nan, double* out) {
      PUT(min(nan, 1.0f)) PUT(min(1.0f, nan)) PUT(fmaxf(nan, -1.0f)) PUT(max(2.0, 3.0f)) PUT(min(-1, 2)) PUT(max(1u, 3))
      PUT(abs(-3)) PUT(fabsf(-0.5f)) PUT(rintf(2.5f)) PUT(roundf(2.5f)) PUT(floorf(-0.5f)) PUT(copysignf(2.0f, -0.0f))
      PUT(rsqrtf(4.0f)) PUT(exp2f(3.0f)) PUT(__log2f(8.0f)) PUT(hypot(3.0, 4.0)) PUT(fmaf(2.0f, 3.0f, 1.0f))
      PUT(__float2int_rn(1.5f)) PUT(__float2int_rd(-1.5f)) PUT(__float2int_rn(nan)) PUT(__float2int_rn(1e20f))
      PUT(double(__double2ll_rn(-2.5))) PUT(__int_as_float(0x3f800000)) PUT(__float_as_int(1.0f))
      PUT(isnan(nan)) PUT(isfinite(nan)) PUT(isinf(1.0f / 0.0f)) PUT(__ldg(&nan) != nan)
      PUT(sinpi(1.0)) PUT(cospi(0.5)) PUT(sinpi(-0.5)) PUT(cospi(1e15)) PUT(sinpi(1.0 / 6))
    }
    """
    expected = [1, 1, -1, 3, -1, 3, 3, 0.5, 2, 3, -1, -2, 0.5, 8, 3, 5, 7, 2, -2, 0, 2**31 - 1, -2, 1, 0x3F800000]
    expected += [1, 0, 1, 1, 0, 0, -1, 1, 0.5]
    out = device.empty((len(expected),), np.float64)
    device.kernel_from_text(text, "calculate")((1,), (1,), (np.float32(np.nan), out))
    np.testing.assert_allclose(device.to_host(out), expected, rtol=4e-16)


@pytest.mark.parametrize("contraction", [False, True])
def test_contraction_is_an_option(contraction):
    text = """
    __global__ void multiply_add(float a, float b, float c, float* out) {
      out[0] = a * b + c;
      out[1] = __fadd_rn(__fmul_rn(a, b), c);
      out[2] = fmaf(a, b, c);
    }
    """
    device = EmulatedDevice(contraction=contraction)
    a = np.float32(1 + 2**-12)
    out = device.empty((3,), np.float32)
    device.kernel_from_text(text, "multiply_add")((1,), (1,), (a, a, -a * a, out))
    plain, rounded, fused = device.to_host(out)
    assert rounded == 0
    assert fused == np.float32(2**-24)
    assert plain == 0 or contraction  # where the processor has the instruction, plain is fused


def test_atomics_count(device):
    text = """
    __global__ void tally(int* total, unsigned* largest) {
      atomicAdd(total, 2);
      atomicMax(largest, threadIdx.x + 10 * blockIdx.x);
    }
    """
    total, largest = device.to_device(np.zeros(1, np.int32)), device.to_device(np.zeros(1, np.uint32))
    device.kernel_from_text(text, "tally")((3,), (5,), (total, largest))
    assert device.to_host(total)[0] == 30
    assert device.to_host(largest)[0] == 24


def test_kernels_share_the_cache_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWREG_EMULATION_CACHE", str(tmp_path / "cache"))
    compiler.cache_folder.cache_clear()
    try:
        library = compiler.compile_kernel(SCALE, "scale<float, 3>", contraction=False)
        made = library.stat().st_mtime_ns
        assert compiler.compile_kernel(SCALE, "scale<float, 3>", contraction=False) == library
        assert library.stat().st_mtime_ns == made
        assert compiler.compile_kernel(SCALE, "scale<float, 5>", contraction=False) != library
        assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".so", ".so"]
    finally:
        compiler.cache_folder.cache_clear()


# ---- Memory ----


def test_views_are_launched_from_where_they_begin(device):
    values = device.to_device(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    out = device.to_device(np.zeros((3, 4), np.float32))
    scale_by(device, 2)((1,), (32,), (values[1], np.int32(4), out[-1]))
    np.testing.assert_array_equal(device.to_host(out), [[0] * 4, [0] * 4, [24, 26, 28, 30]])
    assert values[1, ..., 2:].shape == (3, 2)
    assert values[0, 0, 3].shape == ()
    assert device.to_host(values[0, 0, 3]) == 3
    assert values[1].nbytes == 48


def test_views_of_another_shape(device):
    values = device.to_device(np.arange(24, dtype=np.float32).reshape(2, 12))
    view = values[1].reshape((3, 4))
    scale_by(device, 2)((1,), (32,), (view[1], np.int32(4), view[1]))
    np.testing.assert_array_equal(device.to_host(values)[1, 3:9], [15, 32, 34, 36, 38, 20])
    with pytest.raises(ValueError, match="not contiguous"):
        values[:, ::2].reshape((12,))


def test_buffer_is_no_array(device):
    buffer = device.empty((3,), np.float32)
    for misuse in (np.asarray, lambda b: b + b, lambda b: np.add(b, 1), iter, lambda b: b[None], lambda b: b[[0, 1]]):
        with pytest.raises(TypeError):
            misuse(buffer)


def test_memory_is_limited_and_counted():
    device = EmulatedDevice(memory=1000)
    first = device.empty((100,), np.float32)
    second = device.empty((10, 5), np.float64)
    assert (device.live_bytes, device.peak_bytes, device.free_memory()) == (800, 800, 200)
    with pytest.raises(DeviceMemoryError, match="204 bytes asked for, 200 of 1000 free"):
        device.empty((51,), np.float32)
    view = second[2:]
    del first, second
    gc.collect()
    assert (device.live_bytes, device.peak_bytes, device.free_memory()) == (400, 800, 600)
    device.reset_peak()
    del view
    gc.collect()
    assert (device.live_bytes, device.peak_bytes, device.free_memory()) == (0, 400, 1000)
    assert EmulatedDevice().free_memory() > 0


@pytest.mark.parametrize("lazy", [False, True])
def test_graph(lazy):
    """Nothing is done until it is replayed, with what the buffers hold then; its memory is held for it."""
    device = EmulatedDevice(lazy=lazy)
    given, host = device.empty((4,), np.float32), device.pinned((4,), np.float32)
    double = scale_by(device, 2)

    def work():
        once, twice = device.empty((4,), np.float32), device.empty((4,), np.float32)
        double((1,), (4,), (given, np.int32(4), once))
        double((1,), (4,), (once, np.int32(4), twice))
        device.copy(once, twice)
        return once

    result, replay = device.capture_graph(work)
    assert sum(device.launches.values()) == 0
    assert device.live_bytes == 16 + 2 * 16
    for value in (1, 5):
        host[:] = value
        device.copy(given, host)
        replay()
        np.testing.assert_array_equal(device.to_host(result), np.full(4, 4 * value))
    assert sum(device.launches.values()) == 4
    del replay
    gc.collect()
    assert device.live_bytes == 16 + 16


@pytest.mark.parametrize(
    "work",
    [
        lambda device: device.synchronize(),
        lambda device: device.record(device.event()),
        lambda device: device.to_host(device.empty((1,), np.float32)),
        lambda device: device.copy(device.empty((1,), np.float32), np.zeros(1, np.float32)),
        lambda device: device.fft2(device.empty((2, 2), np.complex128)),
        lambda device: device.capture_graph(lambda: None),
    ],
)
def test_what_cannot_be_captured(device, work):
    with pytest.raises(EmulationError, match="captur"):
        device.capture_graph(lambda: work(device))
    device.synchronize()


@pytest.mark.parametrize("lazy", [False, True])
def test_queue_does_not_own_memory(lazy):
    device = EmulatedDevice(lazy=lazy)
    out = device.empty((4,), np.float32)
    scale_by(device, 2)((1,), (4,), (device.to_device(np.ones(4, np.float32)), np.int32(4), out))
    gc.collect()
    assert device.live_bytes == 16
    np.testing.assert_array_equal(device.to_host(out), [2, 2, 2, 2])


def test_copies(device):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    first, second, host = device.empty((2, 3), "f4"), device.empty((2, 3), "f4"), device.pinned((2, 3), "f4")
    device.copy(first, values)
    device.copy(second, first)
    device.copy(host, second)
    np.testing.assert_array_equal(host, values)
    with pytest.raises(ValueError, match=r"cannot copy float32 \(2, 3\) to float32 \(3,\)"):
        device.copy(first[0], values)
    with pytest.raises(ValueError, match="cannot copy float64"):
        device.copy(first, values.astype(np.float64))
    with pytest.raises(ValueError, match="not contiguous"):
        device.copy(first[:, :2], np.zeros((2, 2), np.float32))
    with pytest.raises(EmulationError, match="no Buffer"):
        device.copy(host, values)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("inverse", [False, True])
def test_fourier_transform(device, dtype, inverse):
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 5)).astype(dtype)
    spectra = device.fft2(device.to_device(images), inverse)
    assert spectra.dtype == np.complex128
    expected = (np.fft.ifft2 if inverse else np.fft.fft2)(images)
    np.testing.assert_allclose(device.to_host(spectra), expected, rtol=0, atol=1e-13)


# ---- Streams, events, faults ----


def upload_compute_download(device, wait_for_upload, wait_for_launch, wait_for_download):
    """A batch as the executor does it, on three streams; returns what the host reads."""
    upload, download = device.stream(), device.stream()
    uploaded, computed, downloaded = device.event(), device.event(), device.event()
    source, result = device.pinned((4,), np.float32), device.pinned((4,), np.float32)
    source[:] = 1
    buffer, out = device.empty((4,), np.float32), device.empty((4,), np.float32)
    device.copy(buffer, source, upload)
    device.record(uploaded, upload)
    if wait_for_upload:
        device.wait(uploaded)
    scale_by(device, 2)((1,), (4,), (buffer, np.int32(4), out))
    device.record(computed)
    if wait_for_launch:
        device.wait(computed, download)
    device.copy(result, out, download)
    device.record(downloaded, download)
    if wait_for_download:
        device.synchronize(downloaded)
    return result.copy()


@pytest.mark.parametrize("missing", [None, 0, 1, 2])
def test_missing_wait_shows_on_a_lazy_device(missing):
    waits = [number != missing for number in range(3)]
    np.testing.assert_array_equal(upload_compute_download(EmulatedDevice(), *waits), [2] * 4)
    expected = [2.0 if missing is None else np.nan] * 4
    np.testing.assert_array_equal(upload_compute_download(EmulatedDevice(lazy=True), *waits), expected)


def test_host_memory_is_read_when_the_copy_runs():
    device = EmulatedDevice(lazy=True)
    source, event = np.ones(3, np.float32), device.event()
    first, second = device.empty((3,), np.float32), device.empty((3,), np.float32)
    device.copy(first, source)
    device.record(event)
    device.copy(second, source)
    device.synchronize(event)
    source[:] = 5
    np.testing.assert_array_equal(device.to_host(first), [1, 1, 1])
    np.testing.assert_array_equal(device.to_host(second), [5, 5, 5])


def test_event_is_its_latest_record_when_waited_for():
    device = EmulatedDevice(lazy=True)
    other, event, never = device.stream(), device.event(), device.event()
    first, second = np.zeros(1, np.int32), np.zeros(1, np.int32)
    one = device.to_device(np.ones(1, np.int32))
    device.synchronize(never)
    device.wait(never, other)
    device.copy(first, one)
    device.record(event)
    device.wait(event, other)
    device.copy(second, one)
    device.record(event)
    seen = device.event()
    device.record(seen, other)
    device.synchronize(seen)
    assert (first[0], second[0]) == (1, 0)
    device.synchronize(event)
    assert (first[0], second[0]) == (1, 1)


@pytest.mark.parametrize("keep", ["reference", "wait", "nothing"])
def test_memory_that_may_be_reused_shows(keep):
    device = EmulatedDevice(lazy=True)
    download, event = device.stream(), device.event()
    out, host = device.to_device(np.ones(3, np.float32)), device.pinned((3,), np.float32)
    device.copy(host, out, download)
    device.record(event, download)
    if keep == "wait":
        device.wait(event)
    if keep != "reference":
        del out
        gc.collect()
    if keep == "nothing":
        with pytest.raises(EmulationError, match="keep a reference"):
            device.synchronize(event)
    else:
        device.synchronize(event)
        np.testing.assert_array_equal(host, [1, 1, 1])
    device.synchronize()


@pytest.mark.parametrize("lazy", [False, True])
def test_fault_at_a_launch(lazy):
    device = EmulatedDevice(lazy=lazy)
    values, out = device.to_device(np.ones(4, np.float32)), device.empty((3, 4), np.float32)
    launch = scale_by(device, 2)
    launch((1,), (4,), (values, np.int32(4), out[0]))
    device.fail_at(2, DeviceError("unspecified launch failure"))
    launch((1,), (4,), (values, np.int32(4), out[0]))
    if lazy:
        launch((1,), (4,), (values, np.int32(4), out[1]))
    with pytest.raises(DeviceError, match="unspecified"):
        device.synchronize() if lazy else launch((1,), (4,), (values, np.int32(4), out[1]))
    launch((1,), (4,), (values, np.int32(4), out[2]))
    np.testing.assert_array_equal(device.to_host(out), [[2] * 4, [np.nan] * 4, [2] * 4])


def test_launches_are_counted(device):
    args = (device.empty((4,), np.float32), np.int32(4), device.empty((4,), np.float32))
    for _ in range(3):
        scale_by(device, 2)((1,), (4,), args)
    scale_by(device, 3)((1,), (4,), args)
    assert device.launches == {("<text>", "scale<float, 2>"): 3, ("<text>", "scale<float, 3>"): 1}
