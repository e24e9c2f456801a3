#pragma once
// Sum of a flow and an increment with an exact 5x5 median of either the increment or the sum; the boundary is whole-sample
// symmetric (2 1 | 0 1 2).
//
// After sorting the columns of the window and then every rank across the columns, 12 of the 25 values are surely above
// or below the median, six each way; the median of the other 13 is found by forgetful selection. A column of five pixels is
// sorted once, in shared memory, for the five windows beside each other that hold it.
#include "common.cuh"

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

// One tile of one component. Shared memory: five floats a pixel of the tile with two columns on either side. height, width
// >= 3.
__device__ __forceinline__ void add_smoothed_tile(const float* flow, const float* increment,  // (height, width)
                                                  int height, int width, int x0, int y0, int tile_height, int tile_width,
                                                  bool sum_first,
                                                  float* out) {  // (height, width)
  const int columns = tile_width + 4, size = tile_height * columns;
  float* sorted = reinterpret_cast<float*>(shared_memory);  // (5 ranks, tile_height, columns)
  const Divisor per_row(columns), per_line(tile_width);

  // 1. sort the columns
  for (int column = threadIdx.x; column < size; column += blockDim.x) {
    int x = x0 + per_row.remainder(column) - 2, y = y0 + per_row.quotient(column);
    if (x >= width + 2 || y >= height) continue;
    float v[5];
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      long long pixel = (long long)mirrored(y + k - 2, height) * width + mirrored(x, width);
      v[k] = sum_first ? flow[pixel] + increment[pixel] : increment[pixel];
    }
    sort5(v[0], v[1], v[2], v[3], v[4]);
#pragma unroll
    for (int k = 0; k < 5; ++k) sorted[k * size + column] = v[k];
  }
  __syncthreads();

  for (int pixel = threadIdx.x; pixel < tile_height * tile_width; pixel += blockDim.x) {
    int row = per_line.quotient(pixel), column = per_line.remainder(pixel), x = x0 + column, y = y0 + row;
    if (x >= width || y >= height) continue;

    // 2. sort each rank across the columns of the window, and keep what can be the median
    float v[5][5];
#pragma unroll
    for (int rank = 0; rank < 5; ++rank) {
      const float* line = sorted + rank * size + row * columns + column;
#pragma unroll
      for (int k = 0; k < 5; ++k) v[rank][k] = line[k];
      sort5(v[rank][0], v[rank][1], v[rank][2], v[rank][3], v[rank][4]);
    }
    float left[13] = {v[0][3], v[0][4], v[1][2], v[1][3], v[1][4], v[2][1], v[2][2], v[2][3],
                      v[3][0], v[3][1], v[3][2], v[4][0], v[4][1]};

    // 3. the median of those
    const long long here = (long long)y * width + x;
    out[here] = sum_first ? median13(left) : flow[here] + median13(left);
  }
}
