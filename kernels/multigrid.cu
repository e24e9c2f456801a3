// The rule multigrid: V-cycles on cell-centred grids for the increment (du, dv), with quadratic smoothness.
//
// A cycle refreshes psi and solves the linear system that this gives a little further: a sweep of the rule block, the same
// for what is left on a grid of half the size, and another sweep. The system is discretised anew on the coarser grid: its
// data term is the mean over the pixels' area, its alpha / h^2 follows from the true ratio of the sizes. What is left of the
// right-hand side is averaged likewise, and the correction interpolated linearly. A pixel I of a coarser side covers the
// pixels 2 I and 2 I + 1 and, where the finer side is odd, a part of 2 I - 1 and only a part of 2 I + 1.
//
// Large grids take a launch a step; all that are small take one launch for all their steps of a cycle.
#include "relaxation.cuh"

struct Grid {
  int height, width;
  Smoothness c;

  // As flowreg_gpu/relaxation.py plans it: a side is halved unless its pixels are joined much less than the other's.
  __device__ __forceinline__ Grid coarser() const {
    float along = width > 1 ? c.along : 0.0f, across = height > 1 ? c.across : 0.0f;
    Grid coarse = {2.0f * across >= along ? (height + 1) / 2 : height, 2.0f * along >= across ? (width + 1) / 2 : width};
    float ratio_x = (float)width / (float)coarse.width, ratio_y = (float)height / (float)coarse.height;
    coarse.c = {c.along / (ratio_x * ratio_x), c.across / (ratio_y * ratio_y)};
    return coarse;
  }
  __device__ __forceinline__ int pixels() const { return height * width; }
  __device__ __forceinline__ float diagonal() const { return 2.0f * (c.along + c.across); }
};

// A grid and its planes of one frame: data term 11, 22, 12 and right-hand sides u, v; increment u, v.
struct Planes {
  Grid grid;
  float* system;
  float* increment;
};

__device__ __forceinline__ System load_system(const float* from, long long plane) {
  return {from[0], from[plane], from[2 * plane], from[3 * plane], from[4 * plane]};
}

__device__ __forceinline__ void store_system(const System& value, float* out, long long plane) {
  out[0] = value.d11;
  out[plane] = value.d22;
  out[2 * plane] = value.d12;
  out[3 * plane] = value.bu;
  out[4 * plane] = value.bv;
}

// Three neighbours along one side and what each counts.
struct Taps {
  int index[3];
  float share[3];
};

// Pixels of a finer side that pixel `at` of a coarser one covers.
__device__ __forceinline__ Taps mean_taps(int at, int fine, int coarse) {
  int middle = fine == coarse ? at : 2 * at;
  float all = (float)coarse / (float)fine, before = 0.0f, after = 0.0f;
  if (fine == 2 * coarse) {
    after = all;
  } else if (fine > coarse) {
    before = (float)at / (float)fine;
    after = (float)(coarse - 1 - at) / (float)fine;
  }
  return {{max(middle - 1, 0), middle, min(middle + 1, fine - 1)}, {before, all, after}};
}

// Pixels of a coarser side between which pixel `at` of a finer one lies.
__device__ __forceinline__ Taps linear_taps(int at, int fine, int coarse) {
  int middle = fine == coarse ? at : at / 2;
  float offset = (float)((2 * at + 1) * coarse - fine - 2 * fine * middle) / (float)(2 * fine);
  return {{max(middle - 1, 0), middle, min(middle + 1, coarse - 1)},
          {fmaxf(-offset, 0.0f), 1.0f - fabsf(offset), fmaxf(offset, 0.0f)}};
}

// Update of one pixel by the rule block.
__device__ __forceinline__ void relax_at(const Planes& now, int x, int y, float omega) {
  const int plane = now.grid.pixels();
  Stencil<false> at(x, y, now.grid.height, now.grid.width);
  Coefficients value = invert(load_system(now.system + at.here, plane), now.grid.diagonal(), omega);
  relax_pixel<false>(now.increment, now.increment + plane, value, now.increment, at, now.grid.c, omega);
}

// Data term of one pixel, and in place of the right-hand sides what is left of them.
__device__ __forceinline__ System residual(const Planes& now, int x, int y) {
  const int plane = now.grid.pixels();
  const Smoothness c = now.grid.c;
  const float diagonal = now.grid.diagonal();
  Stencil<false> at(x, y, now.grid.height, now.grid.width);
  System sum = load_system(now.system + at.here, plane);
  const float* du = now.increment;
  const float* dv = du + plane;
  float u = du[at.here], v = dv[at.here];
  sum.bu = fmaf(-sum.d12, v, fmaf(-(diagonal + sum.d11), u, weighted_sum(du, at, c, sum.bu)));
  sum.bv = fmaf(-sum.d12, u, fmaf(-(diagonal + sum.d22), v, weighted_sum(dv, at, c, sum.bv)));
  return sum;
}

// System of one pixel of the coarser grid, whose increment starts from zero.
__device__ __forceinline__ void restrict_at(const Planes& fine, const Planes& coarse, int x, int y) {
  Taps columns = mean_taps(x, fine.grid.width, coarse.grid.width);
  Taps rows = mean_taps(y, fine.grid.height, coarse.grid.height);
  System mean = {};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (columns.share[i] == 0.0f) continue;
    System column = {};
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (rows.share[j] == 0.0f) continue;
      System one = residual(fine, columns.index[i], rows.index[j]);
      column.d11 = fmaf(rows.share[j], one.d11, column.d11);
      column.d22 = fmaf(rows.share[j], one.d22, column.d22);
      column.d12 = fmaf(rows.share[j], one.d12, column.d12);
      column.bu = fmaf(rows.share[j], one.bu, column.bu);
      column.bv = fmaf(rows.share[j], one.bv, column.bv);
    }
    mean.d11 = fmaf(columns.share[i], column.d11, mean.d11);
    mean.d22 = fmaf(columns.share[i], column.d22, mean.d22);
    mean.d12 = fmaf(columns.share[i], column.d12, mean.d12);
    mean.bu = fmaf(columns.share[i], column.bu, mean.bu);
    mean.bv = fmaf(columns.share[i], column.bv, mean.bv);
  }
  const int plane = coarse.grid.pixels(), here = y * coarse.grid.width + x;
  store_system(mean, coarse.system + here, plane);
  coarse.increment[here] = coarse.increment[plane + here] = 0.0f;
}

// Adds the correction of the coarser grid to one pixel.
__device__ __forceinline__ void correct_at(const Planes& coarse, const Planes& fine, int x, int y) {
  Taps columns = linear_taps(x, fine.grid.width, coarse.grid.width);
  Taps rows = linear_taps(y, fine.grid.height, coarse.grid.height);
  const int here = y * fine.grid.width + x;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float* correction = coarse.increment + k * coarse.grid.pixels();
    float& increment = fine.increment[k * fine.grid.pixels() + here];
    float sum = increment;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      float between = 0.0f;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        between = fmaf(rows.share[j], correction[rows.index[j] * coarse.grid.width + columns.index[i]], between);
      }
      sum = fmaf(columns.share[i], between, sum);
    }
    increment = sum;
  }
}

// Planes of this launch's frame.
__device__ __forceinline__ Planes frame_planes(Grid grid, const float* system, float* increment) {
  const long long pixels = grid.pixels();
  return {grid, const_cast<float*>(system) + blockIdx.z * 5 * pixels, increment + blockIdx.z * 2 * pixels};
}

// Launch: blockIdx.z = frame; thread (x, y): the system of one pixel of the finest grid, with psi of the present increment.
template <int CHANNELS>
__global__ void accumulate_system(const float* __restrict__ tensor,     // (frames, CHANNELS, 6, height, width)
                                  const float* __restrict__ weight,     // (CHANNELS, height, width)
                                  const float* __restrict__ flow,       // (frames or 1, 2, height, width)
                                  const float* __restrict__ increment,  // (frames, 2, height, width)
                                  int height, int width, long long flow_stride, float along, float across,
                                  float constant, float factor, float power,
                                  float* __restrict__ system) {  // (frames, 5, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width;
  Stencil<false> at(x, y, height, width);
  flow += blockIdx.z * flow_stride;
  const float* du = increment + blockIdx.z * 2 * plane + at.here;
  const Smoothness c = {along, across};
  System sum = {0.0f, 0.0f, 0.0f, laplacian<false, false>(flow, flow, at, c),
                laplacian<false, false>(flow + plane, flow, at, c)};
  add_data<CHANNELS>(tensor + blockIdx.z * CHANNELS * 6 * plane + at.here, weight + at.here, plane, du[0], du[plane],
                     {constant, factor, power}, sum);
  store_system(sum, system + blockIdx.z * 5 * plane + at.here, plane);
}

// Launch: blockIdx.z = frame; thread (i, y): the pixel of one colour, (x + y) % 2 == colour, x = 2i or 2i + 1.
__global__ void relax_grid(const float* __restrict__ system,  // (frames, 5, height, width)
                           int height, int width, int colour, float along, float across, float omega,
                           float* increment) {  // (frames, 2, height, width)
  int y = pixel_y(), x = 2 * pixel_x() + (y + colour) % 2;
  if (x < width && y < height) relax_at(frame_planes({height, width, {along, across}}, system, increment), x, y, omega);
}

// Launch: blockIdx.z = frame; thread (x, y): a pixel of the coarser grid.
__global__ void restrict_grid(const float* __restrict__ system,     // (frames, 5, height, width)
                              const float* __restrict__ increment,  // (frames, 2, height, width)
                              int height, int width, float along, float across,
                              float* __restrict__ coarse_system,       // (frames, 5, coarse height, coarse width)
                              float* __restrict__ coarse_increment) {  // (frames, 2, coarse height, coarse width)
  const Grid grid = {height, width, {along, across}}, coarse = grid.coarser();
  int x = pixel_x(), y = pixel_y();
  if (x >= coarse.width || y >= coarse.height) return;
  restrict_at(frame_planes(grid, system, const_cast<float*>(increment)),
              frame_planes(coarse, coarse_system, coarse_increment), x, y);
}

// Launch: blockIdx.z = frame; thread (x, y): a pixel of the finer grid.
__global__ void correct_grid(const float* __restrict__ coarse_increment,  // (frames, 2, coarse height, coarse width)
                             int height, int width, float along, float across,
                             float* __restrict__ increment) {  // (frames, 2, height, width)
  const Grid grid = {height, width, {along, across}};
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  correct_at(frame_planes(grid.coarser(), nullptr, const_cast<float*>(coarse_increment)),
             frame_planes(grid, nullptr, increment), x, y);
}

// Launch: one block of 512 threads a frame, blockIdx.z = frame; shared memory for `grids` Planes. A cycle from this grid to
// the coarsest and back: a thread owns every 512th pixel, or pixel of a colour, between two barriers.
__global__ void __launch_bounds__(512, 1)
    relax_small_grids(int height, int width, float along, float across, float omega, int grids, int coarsest_sweeps,
                       float* system,     // (frames, 5, height, width)
                       float* increment,  // (frames, 2, height, width)
                       float* scratch, int scratch_pixels) {  // (frames, 7, pixels of all coarser grids)
  Planes* planes = (Planes*)shared_memory;
  if (threadIdx.x == 0) {
    planes[0] = frame_planes({height, width, {along, across}}, system, increment);
    float* rest = scratch + (long long)blockIdx.z * 7 * scratch_pixels;
    for (int k = 1; k < grids; ++k) {
      Grid grid = planes[k - 1].grid.coarser();
      planes[k] = {grid, rest, rest + 5 * grid.pixels()};
      rest += 7 * grid.pixels();
    }
  }
  __syncthreads();
  auto relax = [&](const Planes& now, int sweeps) {
    const int half_width = (now.grid.width + 1) / 2;
    const Divisor per_row(half_width);
    for (int half_sweep = 0; half_sweep < 2 * sweeps; ++half_sweep) {
      for (int pair = threadIdx.x; pair < now.grid.height * half_width; pair += blockDim.x) {
        int y = per_row.quotient(pair), x = 2 * per_row.remainder(pair) + (y + half_sweep) % 2;
        if (x < now.grid.width) relax_at(now, x, y, omega);
      }
      __syncthreads();
    }
  };

  // 1. down to the coarsest grid
  for (int k = 0; k < grids - 1; ++k) {
    relax(planes[k], 1);
    const Grid coarse = planes[k + 1].grid;
    const Divisor per_row(coarse.width);
    for (int pixel = threadIdx.x; pixel < coarse.pixels(); pixel += blockDim.x) {
      restrict_at(planes[k], planes[k + 1], per_row.remainder(pixel), per_row.quotient(pixel));
    }
    __syncthreads();
  }
  relax(planes[grids - 1], coarsest_sweeps);

  // 2. back
  for (int k = grids - 2; k >= 0; --k) {
    const Grid grid = planes[k].grid;
    const Divisor per_row(grid.width);
    for (int pixel = threadIdx.x; pixel < grid.pixels(); pixel += blockDim.x) {
      correct_at(planes[k + 1], planes[k], per_row.remainder(pixel), per_row.quotient(pixel));
    }
    __syncthreads();
    relax(planes[k], 1);
  }
}
