// The coarsest levels of the pyramid in one launch, a block of threads a frame: what the other files do with a launch a
// step.
//
// For every level, coarsest first: upsampling of the flow, warp and motion tensor (motion_tensor.cuh); all sweeps of the
// rule block, with quadratic smoothness, in shared memory (sorted_rows.cuh); and the sum with the median (median.cuh).
// Between the steps, frames keep what they need in device memory of their own, which mostly stays in the L2 cache.
#include "median.cuh"
#include "motion_tensor.cuh"
#include "sorted_rows.cuh"

// A level, as flowreg_gpu/cuda/descend.py describes it: its size and the pixels of a plane that lie before it, or a
// negative number at full resolution; the size of the coarser level, the taps that lead from it and where they begin (none
// where the flow has the level's size); rows of a tile; how flow and increment are added; the relaxation; and the factors
// of all of these.
struct Level {
  int height, width, first_pixel;
  int coarser_height, coarser_width, row_taps, first_row_tap, column_taps, first_column_tap;
  int tensor_rows, median_rows;
  int smoothed, sum_first;
  int in_shared, sweeps, lag;
  float scale_x, scale_y, cx, cy, c1, c2, c3;
  float along, across, omega;
};

// All sweeps of one level of one frame. Shared memory for the increment, and for the coefficients where in_shared, in rows
// sorted by colour.
template <int CHANNELS>
__device__ __forceinline__ void relax_level(const Level& level,
                                            const float* tensor,     // (CHANNELS, 6, height, width)
                                            const float* weight,     // (CHANNELS, height, width)
                                            const float* flow,       // (2, height, width)
                                            Psi psi, float* apart,   // (5, height, width rounded up to a multiple of 4)
                                            float* increment) {      // (2, height, width)
  const int height = level.height, width = level.width;
  const int plane = height * width, half = half_of(width), pitch = 2 * half, sorted_plane = height * pitch;
  const Smoothness c = {level.along, level.across};
  float* du = (float*)shared_memory;
  float* dv = du + sorted_plane;
  float* coefficients = level.in_shared ? dv + sorted_plane : apart;
  const Divisor per_row(width), per_half(half / 2);
  const auto for_pixels = [&](auto action) {  // of the level, and where they are among the sorted ones
    for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
      int y = per_row.quotient(pixel), x = per_row.remainder(pixel);
      action(x, y, y * pitch + sorted_column(x, y, half));
    }
    __syncthreads();
  };
  const auto refresh = [&](Psi psi) {
    for_pixels([&](int x, int y, int sorted) {
      store(fold<CHANNELS, false, false>(tensor, weight, flow, flow, Stencil<false>(x, y, height, width), plane,
                                         du[sorted], dv[sorted], c, level.omega, psi),
            coefficients + sorted, sorted_plane);
    });
  };

  // 1. start from zero, with psi = 1
  for_pixels([&](int, int, int sorted) { du[sorted] = dv[sorted] = 0.0f; });
  refresh({1.0f, 0.0f, 0.0f});

  for (int sweep = 0; sweep < level.sweeps; ++sweep) {
    // 2. psi of the present increment
    if ((sweep + 1) % level.lag == 0) refresh(psi);
    // 3. one colour after the other
    for (int colour = 0; colour < 2; ++colour) {
      for (int pair = threadIdx.x; pair < height * (half / 2); pair += blockDim.x) {
        int y = per_half.quotient(pair), i = 2 * per_half.remainder(pair), row = y * pitch, parity = (y + colour) % 2;
        relax_pair(du, dv, coefficients + row + colour * half + i, sorted_plane, row,
                   y == 0 ? -1 : row - pitch, y == height - 1 ? -1 : row + pitch, half, colour, i, parity, 2 * i + parity,
                   width - 1, c, level.omega);
      }
      __syncthreads();
    }
  }

  // 4. the result
  for_pixels([&](int x, int y, int sorted) {
    increment[y * width + x] = du[sorted];
    increment[plane + y * width + x] = dv[sorted];
  });
}

// Launch: one block of 512 threads a frame, blockIdx.z = frame; shared memory for the largest step of all levels. Pyramids
// lie level after level, each (frames, CHANNELS, height, width), those of what all frames share with one frame. `scratch`
// has, for every frame, 6 CHANNELS + 4 planes of the largest level, and five more in sorted rows where a level is not
// in_shared.
template <typename Term, int CHANNELS>
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    descend(const float* __restrict__ moving,          // pyramid
            const float* __restrict__ reference,       // pyramid of one frame
            const float* __restrict__ weight,          // likewise
            const float* __restrict__ full_moving,     // (frames, CHANNELS, height, width) at full resolution
            const float* __restrict__ full_reference,  // (CHANNELS, height, width) there
            const float* __restrict__ full_weight,     // likewise
            const float* start,                        // (frames or 1, 2, height, width) of the first level
            const int* __restrict__ levels,            // (n_levels), struct Level
            const int* __restrict__ row_index,         // (height, row_taps) of every level
            const float* __restrict__ row_weight,      // likewise
            const int* __restrict__ column_index,      // (column_taps, width) of every level
            const float* __restrict__ column_weight,   // likewise
            int n_levels, int linearizations, int largest, long long start_stride, long long scratch_stride, float constant,
            float factor, float power,
            float* scratch,  // (frames, scratch_stride)
            float* flow) {   // (frames, 2, height, width) of the last level
  const Level* described = reinterpret_cast<const Level*>(levels);
  float* tensor = scratch + blockIdx.z * scratch_stride;
  float* increment = tensor + 6 * CHANNELS * largest;
  float* spare = increment + 2 * largest;
  float* apart = spare + 2 * largest;
  flow += blockIdx.z * 2ll * described[n_levels - 1].height * described[n_levels - 1].width;

  // Flows are written to two places by turns; the last one is the result. `start` is not __restrict__, or what is read
  // through `now` would come from a cache that does not see what is written.
  const bool odd = (n_levels * linearizations + n_levels - 1) % 2;
  const float* now = start + blockIdx.z * start_stride;
  float* next = odd ? flow : spare;
  float* after = odd ? spare : flow;
  const auto advance = [&] {
    now = next;
    next = after;
    after = const_cast<float*>(now);
  };

  for (int k = 0; k < n_levels; ++k) {
    const Level level = described[k];
    const int height = level.height, width = level.width, plane = height * width;
    const bool full = level.first_pixel < 0;
    const long long first = (long long)CHANNELS * level.first_pixel, frame = (long long)CHANNELS * plane * blockIdx.z;
    const float* image = (full ? full_moving : moving + gridDim.z * first) + frame;
    const float* fixed = full ? full_reference : reference + first;
    const float* channel_weight = full ? full_weight : weight + first;
    const Upsampling taps = {level.coarser_height,
                             level.coarser_width,
                             row_index + level.first_row_tap,
                             row_weight + level.first_row_tap,
                             column_index + level.first_column_tap,
                             column_weight + level.first_column_tap,
                             level.row_taps,
                             level.column_taps};
    for (int linearization = 0; linearization < linearizations; ++linearization) {
      // 1. flow of this size, and motion tensor
      const bool upsamples = level.row_taps > 0 && linearization == 0;
      for (int y0 = 0; y0 < height; y0 += level.tensor_rows) {
        __syncthreads();  // shared memory has been read, the flow written
        const Tile tile(0, y0, level.tensor_rows, width, Term::HALO, height, width);
        const Targets target(tile);
        const Scale scale = {level.scale_x, level.scale_y};
        if (upsamples) {
          upsample_targets(tile, target, now, taps, 0, level.coarser_width, height, width, scale, next);
        } else {
          find_targets(tile, target, now, height, width, scale);
        }
        warp_and_differentiate<Term>(tile, target, image, fixed, CHANNELS, height, width,
                                     {level.cx, level.cy, level.c1, level.c2, level.c3}, tensor);
      }
      if (upsamples) advance();

      // 2. increment
      __syncthreads();  // likewise
      relax_level<CHANNELS>(level, tensor, channel_weight, now, {constant, factor, power}, apart, increment);

      // 3. sum
      for (int component = 0; component < 2; ++component) {
        const float* from = now + component * plane;
        const float* change = increment + component * plane;
        float* to = next + component * plane;
        if (level.smoothed) {
          for (int y0 = 0; y0 < height; y0 += level.median_rows) {
            __syncthreads();
            add_smoothed_tile(from, change, height, width, 0, y0, min(level.median_rows, height - y0),
                              (width + 1) / 2 * 2, level.sum_first, to);
          }
        } else {
          for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) to[pixel] = from[pixel] + change[pixel];
        }
      }
      advance();
    }
  }
}
