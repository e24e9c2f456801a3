#pragma once
// Sum of a flow and an increment with an exact 5x5 median of either the increment or the sum; the boundary is whole-sample
// symmetric (2 1 | 0 1 2).
//
// Sort the columns of the window, then every rank across the columns. The ranks r and places k then rise along rows and
// columns, so that 12 of the 25 values are surely above or below the median, six each way, and the others lie on three
// diagonals: r + k = 3 (four values), 4 (five) and 5 (four). In order, the i-th of a diagonal is not above the i-th, nor
// the (i + 1)-th, of the next. So five of the 13 are surely below the middle one of diagonal 4, five above it, and the
// median is the middle one of that, the largest of diagonal 3 and the smallest of diagonal 5.
//
// A column of five pixels is sorted once, in shared memory, for the five windows beside each other that hold it. What two
// neighbours have in common is sorted once: four pixels of two columns above each other, and the ranks of four columns of
// two windows beside each other; the fifth is put in its place.
#include "common.cuh"

__device__ __forceinline__ void order(float& a, float& b) {
  float low = fminf(a, b);
  b = fmaxf(a, b);
  a = low;
}

__device__ __forceinline__ void sort4(float* v) {
  order(v[0], v[1]);
  order(v[2], v[3]);
  order(v[0], v[2]);
  order(v[1], v[3]);
  order(v[1], v[2]);
}

// Place k of four sorted values and one more.
template <int K>
__device__ __forceinline__ float placed(const float* sorted, float more) {
  if (K < 4) more = fminf(more, sorted[K % 4]);
  return K > 0 ? fmaxf(more, sorted[(K + 3) % 4]) : more;
}

__device__ __forceinline__ float median3(float a, float b, float c) {
  return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
}

__device__ __forceinline__ float median5(float a, float b, float c, float d, float e) {
  order(a, b);
  order(c, d);
  return median3(fmaxf(a, c), fminf(b, d), e);
}

// Median of a window: ranks 0 to 4 of four of its sorted columns, each sorted, and of the fifth.
__device__ __forceinline__ float median25(const float (*ranks)[4], const float* more) {
  const float low = fmaxf(fmaxf(placed<3>(ranks[0], more[0]), placed<2>(ranks[1], more[1])),
                          fmaxf(placed<1>(ranks[2], more[2]), placed<0>(ranks[3], more[3])));
  const float high = fminf(fminf(placed<4>(ranks[1], more[1]), placed<3>(ranks[2], more[2])),
                           fminf(placed<2>(ranks[3], more[3]), placed<1>(ranks[4], more[4])));
  const float middle = median5(placed<4>(ranks[0], more[0]), placed<3>(ranks[1], more[1]), placed<2>(ranks[2], more[2]),
                               placed<1>(ranks[3], more[3]), placed<0>(ranks[4], more[4]));
  return median3(low, middle, high);
}

// Four sorted values and one more, in order, `step` apart.
__device__ __forceinline__ void put_sorted(const float* sorted, float more, float* out, int step) {
  out[0] = placed<0>(sorted, more);
  out[step] = placed<1>(sorted, more);
  out[2 * step] = placed<2>(sorted, more);
  out[3 * step] = placed<3>(sorted, more);
  out[4 * step] = placed<4>(sorted, more);
}

struct __align__(8) TwoColumns {
  float first, second;
};

// One tile of one component; tile_width is even. Shared memory: five floats a pixel of the tile with two columns on either
// side. height, width >= 3.
__device__ __forceinline__ void add_smoothed_tile(const float* flow, const float* increment,  // (height, width)
                                                  int height, int width, int x0, int y0, int tile_height, int tile_width,
                                                  bool sum_first,
                                                  float* out) {  // (height, width)
  const int columns = tile_width + 4, size = tile_height * columns, pairs = tile_width / 2;
  float* sorted = reinterpret_cast<float*>(shared_memory);  // (5 ranks, tile_height, columns)
  const Divisor per_row(columns), per_line(pairs);

  // 1. sort two columns above each other
  for (int item = threadIdx.x; item < (tile_height + 1) / 2 * columns; item += blockDim.x) {
    const int row = 2 * per_row.quotient(item), column = per_row.remainder(item), x = x0 + column - 2, y = y0 + row;
    if (x >= width + 2 || y >= height) continue;
    const int from = mirrored(x, width);
    float v[6];
#pragma unroll
    for (int k = 0; k < 6; ++k) {
      const int pixel = mirrored(min(y + k - 2, height + 1), height) * width + from;
      v[k] = sum_first ? flow[pixel] + increment[pixel] : increment[pixel];
    }
    sort4(v + 1);
    put_sorted(v + 1, v[0], sorted + row * columns + column, size);
    if (row + 1 < tile_height) put_sorted(v + 1, v[5], sorted + (row + 1) * columns + column, size);
  }
  __syncthreads();

  // 2. two windows beside each other
  for (int pair = threadIdx.x; pair < tile_height * pairs; pair += blockDim.x) {
    const int row = per_line.quotient(pair), column = 2 * per_line.remainder(pair), x = x0 + column, y = y0 + row;
    if (x >= width || y >= height) continue;
    float ranks[5][4], before[5], after[5];
#pragma unroll
    for (int rank = 0; rank < 5; ++rank) {
      const TwoColumns* line = (const TwoColumns*)(sorted + rank * size + row * columns + column);
      before[rank] = line[0].first;
      ranks[rank][0] = line[0].second;
      ranks[rank][1] = line[1].first;
      ranks[rank][2] = line[1].second;
      ranks[rank][3] = line[2].first;
      after[rank] = line[2].second;
      sort4(ranks[rank]);
    }
    const int here = y * width + x;
    const float first = median25(ranks, before), second = median25(ranks, after);
    out[here] = sum_first ? first : flow[here] + first;
    if (x + 1 < width) out[here + 1] = sum_first ? second : flow[here + 1] + second;
  }
}
