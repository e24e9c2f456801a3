// Sum of a flow and an increment with an exact 5x5 median of either the increment or the sum; the boundary is whole-sample
// symmetric (2 1 | 0 1 2).
//
// After sorting the columns of the window and then every rank across the columns, 12 of the 25 values are surely above
// or below the median, six each way; the median of the other 13 is found by forgetful selection. A column of five pixels is
// sorted once, in shared memory, for the five windows beside each other that hold it.
#include "common.cuh"

const int TILE_WIDTH = 32, TILE_HEIGHT = 8, COLUMNS = TILE_WIDTH + 4;  // of a tile with two columns on either side

__device__ __forceinline__ void order(float& a, float& b) {
  float low = fminf(a, b);
  b = fmaxf(a, b);
  a = low;
}

__device__ __forceinline__ void sort5(float& a, float& b, float& c, float& d, float& e) {
  order(a, b);
  order(d, e);
  order(c, e);
  order(c, d);
  order(b, e);
  order(a, d);
  order(a, c);
  order(b, d);
  order(b, c);
}

// Of 8 values among 13, neither the smallest nor the largest can be the median: drop both, take one more, and so on.
template <int COUNT>
__device__ __forceinline__ void ends_apart(float* v) {  // smallest to v[0], largest to v[COUNT - 1]
#pragma unroll
  for (int k = 0; k < COUNT / 2; ++k) order(v[k], v[COUNT - 1 - k]);
#pragma unroll
  for (int k = 1; k < (COUNT + 1) / 2; ++k) order(v[0], v[k]);
#pragma unroll
  for (int k = COUNT / 2; k < COUNT - 1; ++k) order(v[k], v[COUNT - 1]);
}

__device__ __forceinline__ float median13(float* v) {
  ends_apart<8>(v);
  v[7] = v[8];
  ends_apart<7>(v + 1);
  v[7] = v[9];
  ends_apart<6>(v + 2);
  v[7] = v[10];
  ends_apart<5>(v + 3);
  v[7] = v[11];
  ends_apart<4>(v + 4);
  v[7] = v[12];
  ends_apart<3>(v + 5);
  return v[6];
}

// Launch: blocks of 256 threads, blockIdx = tile (x, y) of 32 x 8 pixels and frame * 2 + component; shared memory for five
// floats a column. height, width >= 3.
template <bool SUM_FIRST>
__global__ void __launch_bounds__(256)
    add_smoothed(const float* __restrict__ flow,       // (frames or 1, 2, height, width)
                 const float* __restrict__ increment,  // (frames, 2, height, width)
                 int height, int width, long long flow_stride,
                 float* __restrict__ out) {  // (frames, 2, height, width)
  const int x0 = blockIdx.x * TILE_WIDTH, y0 = blockIdx.y * TILE_HEIGHT;
  const long long plane = (long long)height * width, first = blockIdx.z * plane;
  flow += blockIdx.z / 2 * flow_stride + blockIdx.z % 2 * plane;
  increment += first;
  float* sorted = reinterpret_cast<float*>(shared_memory);  // (5 ranks, TILE_HEIGHT, COLUMNS)
  const int size = TILE_HEIGHT * COLUMNS;

  // 1. sort the columns
  for (int column = threadIdx.x; column < size; column += blockDim.x) {
    int x = x0 + column % COLUMNS - 2, y = y0 + column / COLUMNS;
    if (x >= width + 2 || y >= height) continue;
    float v[5];
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      long long pixel = (long long)mirrored(y + k - 2, height) * width + mirrored(x, width);
      v[k] = SUM_FIRST ? flow[pixel] + increment[pixel] : increment[pixel];
    }
    sort5(v[0], v[1], v[2], v[3], v[4]);
#pragma unroll
    for (int k = 0; k < 5; ++k) sorted[k * size + column] = v[k];
  }
  __syncthreads();
  int x = x0 + threadIdx.x % TILE_WIDTH, y = y0 + threadIdx.x / TILE_WIDTH;
  if (x >= width || y >= height) return;

  // 2. sort each rank across the columns of the window, and keep what can be the median
  float v[5][5];
#pragma unroll
  for (int rank = 0; rank < 5; ++rank) {
    const float* row = sorted + rank * size + (y - y0) * COLUMNS + x - x0;
#pragma unroll
    for (int k = 0; k < 5; ++k) v[rank][k] = row[k];
    sort5(v[rank][0], v[rank][1], v[rank][2], v[rank][3], v[rank][4]);
  }
  float left[13] = {v[0][3], v[0][4], v[1][2], v[1][3], v[1][4], v[2][1], v[2][2], v[2][3],
                    v[3][0], v[3][1], v[3][2], v[4][0], v[4][1]};

  // 3. the median of those
  const long long pixel = (long long)y * width + x;
  out[first + pixel] = SUM_FIRST ? median13(left) : flow[pixel] + median13(left);
}
