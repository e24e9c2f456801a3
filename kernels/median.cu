// Exact 5x5 median of planes; the boundary is whole-sample symmetric (2 1 | 0 1 2).
//
// After sorting the columns of the window and then every rank across the columns, 12 of the 25 values are surely above
// or below the median, six each way; the median of the other 13 is found by forgetful selection.
//
// Launch: blockIdx.z = plane; thread (x, y): one pixel. height, width >= 3.
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

__global__ void median5x5(const float* __restrict__ planes,  // (planes, height, width)
                          int height, int width,
                          float* __restrict__ out) {  // (planes, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long first = (long long)blockIdx.z * height * width;
  const float* plane = planes + first;

  // 1. sort the columns of the window: v[rank][column]
  float v[5][5];
#pragma unroll
  for (int k = 0; k < 5; ++k) {
    int column = mirrored(x + k - 2, width);
#pragma unroll
    for (int row = 0; row < 5; ++row) v[row][k] = plane[(long long)mirrored(y + row - 2, height) * width + column];
    sort5(v[0][k], v[1][k], v[2][k], v[3][k], v[4][k]);
  }

  // 2. sort each rank across the columns, and keep what can be the median
#pragma unroll
  for (int rank = 0; rank < 5; ++rank) sort5(v[rank][0], v[rank][1], v[rank][2], v[rank][3], v[rank][4]);
  float left[13] = {v[0][3], v[0][4], v[1][2], v[1][3], v[1][4], v[2][1], v[2][2], v[2][3],
                    v[3][0], v[3][1], v[3][2], v[4][0], v[4][1]};

  // 3. the median of those
  out[first + (long long)y * width + x] = median13(left);
}
