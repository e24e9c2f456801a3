// Sum of a flow and an increment with a 5x5 median (median.cuh).
#include "median.cuh"

const int TILE_WIDTH = 32, TILE_HEIGHT = 14;  // 36 x 7 pairs of columns: just under one for each of 256 threads

// Launch: blocks of 256 threads, blockIdx = tile (x, y) and frame * 2 + component; shared memory for five floats a column.
// height, width >= 3.
template <bool SUM_FIRST>
__global__ void __launch_bounds__(LINE_THREADS)
    add_smoothed(const float* __restrict__ flow,       // (frames or 1, 2, height, width)
                 const float* __restrict__ increment,  // (frames, 2, height, width)
                 int height, int width, long long flow_stride,
                 float* __restrict__ out) {  // (frames, 2, height, width)
  const long long plane = (long long)height * width, first = blockIdx.z * plane;
  add_smoothed_tile(flow + blockIdx.z / 2 * flow_stride + blockIdx.z % 2 * plane, increment + first, height, width,
                    blockIdx.x * TILE_WIDTH, blockIdx.y * TILE_HEIGHT, TILE_HEIGHT, TILE_WIDTH, SUM_FIRST, out + first);
}
