// CUDA C++ for the CPU: the names that NVRTC knows without headers, as far as the kernels use them, and the launch.
//
// No standard header is included, so that no name of theirs (M_PI, INFINITY, int32_t, std::) hides an error of NVRTC's,
// and so that a kernel compiles in a fraction of a second. What is no name of CUDA's lies in the namespace `emulation`.
#pragma once

#if !defined(__x86_64__) && !defined(__aarch64__)
#define EMULATION_UCONTEXT
#endif
#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#endif

// ---- Specifiers ----

// inline: a kernel that the name expression does not mean costs nothing. noinline: `__restrict__` holds within one
// thread, so the compiler must not see two threads at once.
#define __global__ inline __attribute__((noinline))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ const
// Makes `extern __shared__` the linkage of C. Static shared memory would escape the watch, and is a syntax error.
#define __shared__ "C"  // dynamic shared memory only: extern __shared__ double shared_memory[]

// ---- Types ----

typedef decltype(sizeof(0)) size_t;

#define EMULATION_VECTORS(T, name, align2, align4)                                                  \
  struct name##2 { T x, y; } __attribute__((aligned(align2)));                                      \
  struct name##3 { T x, y, z; };                                                                    \
  struct name##4 { T x, y, z, w; } __attribute__((aligned(align4)));                                \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                        \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTORS(signed char, char, 2, 4)
EMULATION_VECTORS(unsigned char, uchar, 2, 4)
EMULATION_VECTORS(short, short, 4, 8)
EMULATION_VECTORS(unsigned short, ushort, 4, 8)
EMULATION_VECTORS(int, int, 8, 16)
EMULATION_VECTORS(unsigned, uint, 8, 16)
EMULATION_VECTORS(float, float, 8, 16)
EMULATION_VECTORS(double, double, 16, 16)
#undef EMULATION_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- Mathematics ----

extern "C" {
#define EMULATION_LIBM(name)            \
  double name(double) noexcept;         \
  float name##f(float) noexcept;
#define EMULATION_LIBM2(name)           \
  double name(double, double) noexcept; \
  float name##f(float, float) noexcept;
EMULATION_LIBM(acos)
EMULATION_LIBM(asin)
EMULATION_LIBM(atan)
EMULATION_LIBM(cbrt)
EMULATION_LIBM(ceil)
EMULATION_LIBM(cos)
EMULATION_LIBM(exp)
EMULATION_LIBM(exp2)
EMULATION_LIBM(expm1)
EMULATION_LIBM(fabs)
EMULATION_LIBM(floor)
EMULATION_LIBM(log)
EMULATION_LIBM(log10)
EMULATION_LIBM(log1p)
EMULATION_LIBM(log2)
EMULATION_LIBM(rint)
EMULATION_LIBM(round)
EMULATION_LIBM(sin)
EMULATION_LIBM(sqrt)
EMULATION_LIBM(tan)
EMULATION_LIBM(tanh)
EMULATION_LIBM(trunc)
EMULATION_LIBM2(atan2)
EMULATION_LIBM2(copysign)
EMULATION_LIBM2(fmax)
EMULATION_LIBM2(fmin)
EMULATION_LIBM2(fmod)
EMULATION_LIBM2(hypot)
EMULATION_LIBM2(pow)
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
int abs(int) noexcept;
}
#undef EMULATION_LIBM
#undef EMULATION_LIBM2

#define EMULATION_FLOAT(name) \
  inline float name(float x) { return name##f(x); }
#define EMULATION_FLOAT2(name) \
  inline float name(float x, float y) { return name##f(x, y); }
EMULATION_FLOAT(acos)
EMULATION_FLOAT(asin)
EMULATION_FLOAT(atan)
EMULATION_FLOAT(cbrt)
EMULATION_FLOAT(ceil)
EMULATION_FLOAT(cos)
EMULATION_FLOAT(exp)
EMULATION_FLOAT(exp2)
EMULATION_FLOAT(expm1)
EMULATION_FLOAT(fabs)
EMULATION_FLOAT(floor)
EMULATION_FLOAT(log)
EMULATION_FLOAT(log10)
EMULATION_FLOAT(log1p)
EMULATION_FLOAT(log2)
EMULATION_FLOAT(rint)
EMULATION_FLOAT(round)
EMULATION_FLOAT(sin)
EMULATION_FLOAT(sqrt)
EMULATION_FLOAT(tan)
EMULATION_FLOAT(tanh)
EMULATION_FLOAT(trunc)
EMULATION_FLOAT2(atan2)
EMULATION_FLOAT2(copysign)
EMULATION_FLOAT2(fmax)
EMULATION_FLOAT2(fmin)
EMULATION_FLOAT2(fmod)
EMULATION_FLOAT2(hypot)
EMULATION_FLOAT2(pow)
#undef EMULATION_FLOAT
#undef EMULATION_FLOAT2
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }

inline long abs(long x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }

namespace emulation {

// Where one of two floating-point numbers is NaN, the other is the result.
template <class T>
inline T smaller(T a, T b) {
  return a != a || b < a ? b : a;
}
template <class T>
inline T larger(T a, T b) {
  return a != a || a < b ? b : a;
}

}  // namespace emulation

// CUDA's overloads and no more, so that what is ambiguous to NVRTC is so here.
#define EMULATION_EXTREMA(Result, A, B)                                       \
  inline Result min(A a, B b) { return emulation::smaller<Result>(a, b); }    \
  inline Result max(A a, B b) { return emulation::larger<Result>(a, b); }
#define EMULATION_INTEGER_EXTREMA(T)                                          \
  EMULATION_EXTREMA(T, T, T)                                                  \
  EMULATION_EXTREMA(unsigned T, unsigned T, unsigned T)                       \
  EMULATION_EXTREMA(unsigned T, T, unsigned T)                                \
  EMULATION_EXTREMA(unsigned T, unsigned T, T)
EMULATION_INTEGER_EXTREMA(int)
EMULATION_INTEGER_EXTREMA(long)
EMULATION_INTEGER_EXTREMA(long long)
EMULATION_EXTREMA(float, float, float)
EMULATION_EXTREMA(double, double, double)
EMULATION_EXTREMA(double, float, double)
EMULATION_EXTREMA(double, double, float)
#undef EMULATION_EXTREMA
#undef EMULATION_INTEGER_EXTREMA

inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isnan(double x) { return __builtin_isnan(x); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }

inline void sincos(double x, double *sine, double *cosine) {
  *sine = sin(x);
  *cosine = cos(x);
}
inline void sincosf(float x, float *sine, float *cosine) {
  *sine = sinf(x);
  *cosine = cosf(x);
}
// Sine and cosine of pi x, exact at multiples of 1/2: x = quarters / 2 + rest, |rest| <= 1/4.
inline void sincospi(double x, double *sine, double *cosine) {
  if (!isfinite(x)) {
    *sine = *cosine = x - x;
    return;
  }
  double quarters = rint(2.0 * x);
  double angle = 3.14159265358979323846 * (x - 0.5 * quarters);
  double s = sin(angle), c = cos(angle);
  switch (int(quarters - 4.0 * floor(0.25 * quarters))) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s;
  }
}
inline double sinpi(double x) {
  double sine, cosine;
  sincospi(x, &sine, &cosine);
  return sine;
}
inline double cospi(double x) {
  double sine, cosine;
  sincospi(x, &sine, &cosine);
  return cosine;
}
inline void sincospif(float x, float *sine, float *cosine) {
  double s, c;
  sincospi(double(x), &s, &c);
  *sine = float(s);
  *cosine = float(c);
}
inline float sinpif(float x) { return float(sinpi(double(x))); }
inline float cospif(float x) { return float(cospi(double(x))); }

// The fast ones are as exact here as the others: what depends on their errors must not be tested with them.
inline float __cosf(float x) { return cosf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __log2f(float x) { return log2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __sinf(float x) { return sinf(x); }

// These are never contracted: the empty instruction hides where the value comes from.
#if defined(__x86_64__)
#define EMULATION_OPAQUE(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define EMULATION_OPAQUE(x) __asm__("" : "+w"(x))
#else
#define EMULATION_OPAQUE(x) __asm__("" : "+m"(x))
#endif
#define EMULATION_ROUNDED(T, name, expression) \
  inline T name(T x, T y) {                    \
    T result = expression;                     \
    EMULATION_OPAQUE(result);                  \
    return result;                             \
  }
EMULATION_ROUNDED(float, __fadd_rn, x + y)
EMULATION_ROUNDED(float, __fsub_rn, x - y)
EMULATION_ROUNDED(float, __fmul_rn, x *y)
EMULATION_ROUNDED(float, __fdiv_rn, x / y)
EMULATION_ROUNDED(double, __dadd_rn, x + y)
EMULATION_ROUNDED(double, __dsub_rn, x - y)
EMULATION_ROUNDED(double, __dmul_rn, x *y)
EMULATION_ROUNDED(double, __ddiv_rn, x / y)
#undef EMULATION_ROUNDED
#undef EMULATION_OPAQUE
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }

namespace emulation {

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// As the GPU converts: NaN gives 0 in int, the smallest number in long long; what is out of range the nearest number.
inline int to_int(float x) {
  if (x != x) return 0;
  return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : int(x);
}
inline long long to_long_long(double x) {
  constexpr long long largest = 9223372036854775807LL;
  if (x >= 9223372036854775808.0) return largest;
  return x >= -9223372036854775808.0 ? (long long)(x) : -largest - 1;
}

}  // namespace emulation

inline float __int_as_float(int x) { return emulation::bits<float>(x); }
inline int __float_as_int(float x) { return emulation::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulation::bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return emulation::bits<double>(x); }
inline long long __double_as_longlong(double x) { return emulation::bits<long long>(x); }
inline int __float2int_rn(float x) { return emulation::to_int(rintf(x)); }
inline int __float2int_rd(float x) { return emulation::to_int(floorf(x)); }
inline int __float2int_ru(float x) { return emulation::to_int(ceilf(x)); }
inline int __float2int_rz(float x) { return emulation::to_int(truncf(x)); }
inline long long __double2ll_rn(double x) { return emulation::to_long_long(rint(x)); }
inline long long __double2ll_rd(double x) { return emulation::to_long_long(floor(x)); }
inline float __int2float_rn(int x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }

template <class T>
inline T __ldg(const T *address) {
  return *address;
}

// One thread runs at a time.
#define EMULATION_ATOMICS(T)                  \
  inline T atomicAdd(T *address, T value) {   \
    T old = *address;                         \
    *address = old + value;                   \
    return old;                               \
  }                                           \
  inline T atomicMax(T *address, T value) {   \
    T old = *address;                         \
    *address = old < value ? value : old;     \
    return old;                               \
  }                                           \
  inline T atomicMin(T *address, T value) {   \
    T old = *address;                         \
    *address = value < old ? value : old;     \
    return old;                               \
  }
EMULATION_ATOMICS(int)
EMULATION_ATOMICS(unsigned)
EMULATION_ATOMICS(unsigned long long)
#undef EMULATION_ATOMICS

// ---- Fibers: one stack per thread that waits at a barrier ----

namespace emulation {

constexpr unsigned most_threads = 1024;    // of a block
constexpr unsigned stack_bytes = 64 << 10;

void fiber_main();

#ifdef EMULATION_UCONTEXT

struct Fiber {
  ucontext_t context;
};

inline void switch_fiber(Fiber &from, Fiber &to) { swapcontext(&from.context, &to.context); }

inline void prepare_fiber(Fiber &fiber, char *stack, unsigned bytes) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
}

#else

struct Fiber {
  void **stack_pointer;
};

// Saves the registers that a called function must keep on the stack, then continues where `load` was left.
extern "C" void emulation_switch(void ***save, void **load) __asm__("emulation_switch");

inline void switch_fiber(Fiber &from, Fiber &to) { emulation_switch(&from.stack_pointer, to.stack_pointer); }

#if defined(__x86_64__)

__asm__(
    ".text\n"
    "emulation_switch:\n"
    "pushq %rbp\n"
    "pushq %rbx\n"
    "pushq %r12\n"
    "pushq %r13\n"
    "pushq %r14\n"
    "pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\n"
    "popq %r14\n"
    "popq %r13\n"
    "popq %r12\n"
    "popq %rbx\n"
    "popq %rbp\n"
    "ret\n");

// A function begins with its return address (none here) at an odd multiple of 8 bytes.
inline void prepare_fiber(Fiber &fiber, char *stack, unsigned bytes) {
  void **top = reinterpret_cast<void **>(stack + bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void *>(fiber_main);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
}

#else  // aarch64

__asm__(
    ".text\n"
    ".p2align 2\n"
    "emulation_switch:\n"
    "stp x19, x20, [sp, #-160]!\n"
    "stp x21, x22, [sp, #16]\n"
    "stp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\n"
    "stp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\n"
    "stp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\n"
    "mov x9, sp\n"
    "str x9, [x0]\n"
    "mov sp, x1\n"
    "ldp x21, x22, [sp, #16]\n"
    "ldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\n"
    "ldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\n"
    "ldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\n"
    "ldp x19, x20, [sp], #160\n"
    "ret\n");

inline void prepare_fiber(Fiber &fiber, char *stack, unsigned bytes) {
  fiber.stack_pointer = reinterpret_cast<void **>(stack + bytes) - 20;
  for (int saved = 0; saved < 20; ++saved) fiber.stack_pointer[saved] = nullptr;
  fiber.stack_pointer[11] = reinterpret_cast<void *>(fiber_main);  // x30, where `ret` goes
}

#endif
#endif

// ---- Shared memory: one array, which a guard precedes and another follows ----

constexpr unsigned most_shared_bytes = 227 << 10;
constexpr unsigned guard_bytes = 4 << 10;
constexpr unsigned shared_poison = 0xFF;          // NaN as float and as double
constexpr unsigned shared_guard = 0xFFC5A5A5u;    // NaN as well, and unlike poison that was copied

}  // namespace emulation

extern "C" {
__attribute__((visibility("hidden"), aligned(128))) char
    emulation_shared[emulation::guard_bytes + emulation::most_shared_bytes + emulation::guard_bytes];

// The kernels' name for what lies behind the first guard.
extern __attribute__((visibility("hidden"))) double shared_memory[] __asm__("emulation_shared_memory");
}
#if defined(__APPLE__)
__asm__(".set emulation_shared_memory, _emulation_shared + 4096");
#else
__asm__(".set emulation_shared_memory, emulation_shared + 4096");
#endif
static_assert(emulation::guard_bytes == 4096, "as in the directive above");

namespace emulation {

inline bool is_guard(unsigned from, unsigned to) {
  unsigned word = shared_guard;
  unsigned wrong = 0;
  for (; from < to && from % 4; ++from) {
    wrong |= (unsigned char)(emulation_shared[from]) ^ (word >> 8 * (from % 4) & 0xFF);
  }
  for (; from < to; from += 4) {
    unsigned found;
    __builtin_memcpy(&found, emulation_shared + from, 4);
    wrong |= found ^ word;
  }
  return wrong == 0;
}

inline void lay_guards(unsigned shared_bytes) {
  unsigned word = shared_guard;
  for (unsigned at = 0; at < sizeof(emulation_shared); at += 4) __builtin_memcpy(emulation_shared + at, &word, 4);
  __builtin_memset(emulation_shared + guard_bytes, shared_poison, shared_bytes);
}

// ---- The launch ----

enum Status { done, barrier_missed, wrote_before_shared, wrote_behind_shared };

// As in device.py.
struct Launch {
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  int reversed;      // threads and blocks from the last to the first
  void **arguments;  // addresses of the arguments, as cuLaunchKernel takes them
  char *stacks;      // most_threads * stack_bytes
  // Results
  Status status;
  unsigned at_block[3];
  const char *file;  // of the barrier
  int line;
  unsigned arrived;
};

struct Thread {
  Fiber fiber;
  const char *file;  // of the barrier where it waits
  int line;          // 0: it waits at none
};

uint3 thread_index, block_index;
dim3 block_dim, grid_dim;

Thread threads[most_threads];  // in the order in which they run
uint3 indices[most_threads];   // their threadIdx
Fiber scheduler;
unsigned current;              // the thread that runs
unsigned thread_count;
bool barrier_reached;          // by any thread of the block
int vote, verdict;             // of __syncthreads_or: being taken, the last one's
void (*thread_body)(const void *);
const void *thread_context;

__attribute__((noinline)) int barrier(int predicate, const char *file, int line) {
  Thread &self = threads[current];
  self.file = file;
  self.line = line;
  vote |= predicate;
  barrier_reached = true;
  switch_fiber(self.fiber, scheduler);
  return verdict;
}

// Runs the thread `current`, and those behind it as plain calls while none has reached a barrier.
void fiber_main() {
  for (;;) {
    thread_body(thread_context);
    threads[current].line = 0;
    if (barrier_reached || current + 1 == thread_count) break;
    thread_index = indices[++current];
  }
  switch_fiber(threads[current].fiber, scheduler);
}

inline bool same_place(const Thread &a, const Thread &b) {
  return a.line == b.line && (a.file == b.file || __builtin_strcmp(a.file, b.file) == 0);
}

// Number of threads at the barrier where the first that waits is, and that thread.
inline unsigned count_arrived(unsigned &first) {
  for (first = 0; first < thread_count && !threads[first].line; ++first) {}
  unsigned arrived = 0;
  for (unsigned n = first; n < thread_count; ++n) arrived += threads[n].line && same_place(threads[n], threads[first]);
  return arrived;
}

inline Status run_block(Launch &launch) {
  barrier_reached = false;
  vote = 0;
  for (unsigned n = 0; n < thread_count; n = current + 1) {
    current = n;
    thread_index = indices[n];
    // Equal distances of the stacks would let all threads compete for the same lines of the cache.
    prepare_fiber(threads[n].fiber, launch.stacks + size_t(n) * stack_bytes, stack_bytes - n % 61 * 192);
    switch_fiber(scheduler, threads[n].fiber);
  }
  while (barrier_reached) {
    unsigned first;
    unsigned arrived = count_arrived(first);
    if (arrived == 0) break;
    if (arrived < thread_count) {
      launch.file = threads[first].file;
      launch.line = threads[first].line;
      launch.arrived = arrived;
      return barrier_missed;
    }
    verdict = vote;
    vote = 0;
    for (unsigned n = 0; n < thread_count; ++n) {
      current = n;
      thread_index = indices[n];
      switch_fiber(scheduler, threads[n].fiber);
    }
  }
  return done;
}

inline Status check_shared(unsigned shared_bytes, unsigned behind) {
  unsigned end = guard_bytes + shared_bytes;
  if (!is_guard(0, guard_bytes)) return wrote_before_shared;
  return is_guard(end, end + behind) ? done : wrote_behind_shared;
}

inline void run_grid(Launch &launch, void (*body)(const void *), const void *context) {
  thread_body = body;
  thread_context = context;
  grid_dim = dim3(launch.grid[0], launch.grid[1], launch.grid[2]);
  block_dim = dim3(launch.block[0], launch.block[1], launch.block[2]);
  thread_count = block_dim.x * block_dim.y * block_dim.z;
  for (unsigned n = 0; n < thread_count; ++n) {
    unsigned linear = launch.reversed ? thread_count - 1 - n : n;
    indices[n] = {linear % block_dim.x, linear / block_dim.x % block_dim.y, linear / block_dim.x / block_dim.y};
    threads[n].line = 0;
  }
  lay_guards(launch.shared_bytes);
  launch.status = done;
  size_t blocks = size_t(grid_dim.x) * grid_dim.y * grid_dim.z;
  for (size_t n = 0; n < blocks && launch.status == done; ++n) {
    size_t linear = launch.reversed ? blocks - 1 - n : n;
    block_index = {unsigned(linear % grid_dim.x), unsigned(linear / grid_dim.x % grid_dim.y),
                   unsigned(linear / grid_dim.x / grid_dim.y)};
    if (launch.shared_bytes) __builtin_memset(emulation_shared + guard_bytes, shared_poison, launch.shared_bytes);
    launch.status = run_block(launch);
    // The near guard after every block, the whole rest after the last.
    unsigned rest = sizeof(emulation_shared) - guard_bytes - launch.shared_bytes;
    if (launch.status == done) launch.status = check_shared(launch.shared_bytes, n + 1 < blocks ? guard_bytes : rest);
  }
  launch.at_block[0] = block_index.x;
  launch.at_block[1] = block_index.y;
  launch.at_block[2] = block_index.z;
}

// ---- The kernel's parameters ----

// As in device.py. `kind` as in NumPy's type codes.
struct Parameter {
  char kind;
  unsigned short bytes;
  bool is_pointer, is_const;
};

// Of a parameter or of what it points to: a struct unless it is listed below.
template <class T>
struct Kind {
  static_assert(__is_class(T) && __is_trivially_copyable(T), "no type that a launcher can pass");
  static constexpr char value = 'V';
  static constexpr unsigned bytes = sizeof(T);
};
#define EMULATION_KIND(T, letter)              \
  template <>                                  \
  struct Kind<T> {                             \
    static constexpr char value = letter;      \
    static constexpr unsigned bytes = sizeof(T); \
  };
EMULATION_KIND(bool, 'b')
EMULATION_KIND(char, 'i')
EMULATION_KIND(signed char, 'i')
EMULATION_KIND(short, 'i')
EMULATION_KIND(int, 'i')
EMULATION_KIND(long, 'i')
EMULATION_KIND(long long, 'i')
EMULATION_KIND(unsigned char, 'u')
EMULATION_KIND(unsigned short, 'u')
EMULATION_KIND(unsigned, 'u')
EMULATION_KIND(unsigned long, 'u')
EMULATION_KIND(unsigned long long, 'u')
EMULATION_KIND(float, 'f')
EMULATION_KIND(double, 'f')
EMULATION_KIND(float2, 'c')
EMULATION_KIND(double2, 'c')
#undef EMULATION_KIND

template <class T>
struct Describe {
  static constexpr Parameter value = {Kind<T>::value, Kind<T>::bytes, false, false};
};
template <class T>
struct Describe<T *> {
  static constexpr Parameter value = {Kind<T>::value, Kind<T>::bytes, true, false};
};
template <class T>
struct Describe<const T *> {
  static constexpr Parameter value = {Kind<T>::value, Kind<T>::bytes, true, true};
};

template <unsigned... I>
struct Indices {};
template <unsigned N, unsigned... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <unsigned... I>
struct Count<0, I...> {
  using type = Indices<I...>;
};

template <class Function>
struct Signature;
template <class... P>
struct Signature<void (*)(P...)> {
  static constexpr unsigned count = sizeof...(P);
  static constexpr Parameter parameters[count + 1] = {Describe<P>::value..., {}};

  template <void (*kernel)(P...)>
  static void launch(Launch &launch) {
    unpack<kernel>(launch, typename Count<count>::type());
  }

 private:
  template <void (*kernel)(P...), unsigned... I>
  static void unpack(Launch &launch, Indices<I...>) {
    run<kernel>(launch, *static_cast<P *>(launch.arguments[I])...);
  }

  template <void (*kernel)(P...)>
  static void run(Launch &launch, P... arguments) {
    auto thread = [&] { kernel(arguments...); };
    run_grid(launch, [](const void *context) { (*static_cast<const decltype(thread) *>(context))(); }, &thread);
  }
};

}  // namespace emulation

// ---- What a kernel sees of all this ----

// References, as a kernel must not assign to them.
static const uint3 &threadIdx = emulation::thread_index;
static const uint3 &blockIdx = emulation::block_index;
static const dim3 &blockDim = emulation::block_dim;
static const dim3 &gridDim = emulation::grid_dim;

// The place in the text tells barriers apart, which an address of the code does not where the compiler copies a call.
inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulation::barrier(0, file, line);
}
inline int __syncthreads_or(int predicate, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emulation::barrier(predicate, file, line) != 0;
}

// What thread `lane` of this one's warp holds. All threads of the block must take part, not those of the mask alone.
template <class T>
inline T __shfl_sync(unsigned, T value, int lane, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  static T values[emulation::most_threads];
  unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  values[thread] = value;
  emulation::barrier(0, file, line);
  T result = values[thread / 32 * 32 + lane];
  emulation::barrier(0, file, line);
  return result;
}
