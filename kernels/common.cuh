#pragma once
// What all kernels share: shared memory, index arithmetic and boundary rules.
//
// Conventions of this folder
// - Images lie in planes, [frame][channel][y][x], x fastest, float32. A flow has the channels u (along x) and v (along
//   y), in full-resolution pixels. Raw frames are as in the file, [frame][y][x][channel].
// - One launch does a batch: the frame is blockIdx.z. Each argument that has frames comes with its stride, the number of
//   elements from one frame to the next; it is 0 where all frames share one (the reference, a start flow).
// - A pixel belongs to the thread (x, y) = (blockIdx.x * blockDim.x + threadIdx.x, likewise y) unless a kernel says otherwise.
// - Strides and offsets are long long: a batch may have more than 2^31 elements.
// - Shared memory is dynamic throughout and has one name, so that its size is the launcher's and an emulator can watch it.

// Threads of a block where each owns an element or a pixel, and of one that works on a level, or a strip of it, with many
// barriers. As flowreg_gpu/cuda/launch.py has them.
constexpr int LINE_THREADS = 256, GROUP_THREADS = 512;

// Columns of an image, from `first` on.
struct Span {
  int first, count;
};

extern __shared__ __align__(16) double shared_memory[];

// Column and row of this thread's pixel.
__device__ __forceinline__ int pixel_x() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int pixel_y() { return blockIdx.y * blockDim.y + threadIdx.y; }

// Number of this thread's warp in a block of one dimension, as something of which the compiler knows that the warp agrees.
__device__ __forceinline__ int warp_number() { return __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0); }

// Replicated border, which is also the half-sample symmetric one for a distance of one pixel: 0 0 | 0 1 2.
__device__ __forceinline__ int clamped(int index, int size) { return min(max(index, 0), size - 1); }

// Whole-sample symmetric border, for distances below the size: 2 1 | 0 1 2.
__device__ __forceinline__ int mirrored(int index, int size) {
  index = abs(index);
  return index < size ? index : 2 * size - 2 - index;
}

// Division without a divide instruction; exact while dividend times divisor stays below 2^31.
struct Divisor {
  int divisor;
  unsigned inverse;
  __device__ __forceinline__ explicit Divisor(int divisor)
      : divisor(divisor), inverse((1u << 31) / (unsigned)divisor + 1) {}
  __device__ __forceinline__ int quotient(int dividend) const {
    return (int)((unsigned long long)(2u * dividend) * inverse >> 32);
  }
  __device__ __forceinline__ int remainder(int dividend) const { return dividend - quotient(dividend) * divisor; }
};

// What the threads of a block hold, merged in an order that depends on the block's size alone, and known to all of them.
template <typename Partial>
__device__ __forceinline__ Partial merge_block(const Partial& mine) {
  Partial* partial = reinterpret_cast<Partial*>(shared_memory);  // (blockDim.x)
  int thread = threadIdx.x;
  __syncthreads();  // an earlier result has been read
  partial[thread] = mine;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) partial[thread].merge(partial[thread + half]);
  }
  __syncthreads();
  return partial[0];
}
