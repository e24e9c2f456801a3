// The data term at one pyramid level in one launch: upsampling of the flow, warp and motion tensor (motion_tensor.cuh).
#include "motion_tensor.cuh"

// Launch: blocks of 256 threads, blockIdx = tile (x, y) and frame; shared memory for 3 floats a pixel of the tile with its
// halo. `scale` turns full-resolution pixels into those of the level.
template <typename Term>
__global__ void __launch_bounds__(LINE_THREADS, Term::BLOCKS)
    linearize(const float* __restrict__ moving,     // (frames, channels, height, width)
              const float* __restrict__ reference,  // (frames or 1, channels, height, width)
              const float* __restrict__ flow,       // (frames or 1, 2, height, width)
              int channels, int height, int width, int tile, long long reference_stride,
              long long flow_stride, float scale_x, float scale_y, float cx, float cy, float c1, float c2, float c3,
              float* __restrict__ tensor) {  // (frames, channels, 6, height, width)
  const long long plane = (long long)height * width;
  const Tile own(blockIdx.x * tile, blockIdx.y * tile, tile, tile, Term::HALO, height, width);
  const Targets target(own);
  find_targets(own, target, flow + blockIdx.z * flow_stride, height, width, {scale_x, scale_y});
  warp_and_differentiate<Term>(own, target, moving + blockIdx.z * channels * plane,
                               reference + blockIdx.z * reference_stride, channels, height, width,
                               {cx, cy, c1, c2, c3}, tensor + blockIdx.z * channels * 6 * plane);
}

// The same with a flow of the coarser level, of which the taps of a tile span the columns `strips` (first, count). Shared
// memory: 2 floats a pixel of the tile with its halo, and behind them one more, or 2 a pixel of its rows in those columns,
// whichever is more.
template <typename Term>
__global__ void __launch_bounds__(LINE_THREADS, Term::BLOCKS)
    upsample_and_linearize(const float* __restrict__ moving,         // (frames, channels, height, width)
                           const float* __restrict__ reference,      // (frames or 1, channels, height, width)
                           const float* __restrict__ flow,           // (frames or 1, 2, coarser_height, coarser_width)
                           const int* __restrict__ row_index,        // (height, row_taps)
                           const float* __restrict__ row_weight,     // (height, row_taps)
                           const int* __restrict__ column_index,     // (column_taps, width)
                           const float* __restrict__ column_weight,  // (column_taps, width)
                           const int* __restrict__ strips,           // (tiles along x, 2)
                           int coarser_height, int coarser_width, int row_taps, int column_taps, int channels, int height,
                           int width, int tile, long long reference_stride, long long flow_stride,
                           float scale_x, float scale_y, float cx, float cy, float c1, float c2, float c3,
                           float* __restrict__ tensor,       // (frames, channels, 6, height, width)
                           float* __restrict__ upsampled) {  // (frames or 1, 2, height, width)
  const long long plane = (long long)height * width;
  const Tile own(blockIdx.x * tile, blockIdx.y * tile, tile, tile, Term::HALO, height, width);
  const Targets target(own);
  upsample_targets(own, target, flow + blockIdx.z * flow_stride,
                   {coarser_height, coarser_width, row_index, row_weight, column_index, column_weight, row_taps,
                    column_taps},
                   strips[2 * blockIdx.x], strips[2 * blockIdx.x + 1], height, width, {scale_x, scale_y},
                   flow_stride > 0 ? upsampled + blockIdx.z * 2 * plane : (blockIdx.z == 0 ? upsampled : nullptr));
  warp_and_differentiate<Term>(own, target, moving + blockIdx.z * channels * plane,
                               reference + blockIdx.z * reference_stride, channels, height, width,
                               {cx, cy, c1, c2, c3}, tensor + blockIdx.z * channels * 6 * plane);
}
