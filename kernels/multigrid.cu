// The rule multigrid: V-cycles on cell-centred grids for the increment (du, dv), with quadratic smoothness.
//
// A cycle refreshes psi and solves the linear system that this gives a little further: a sweep of the rule block, the same
// for what is left on a grid of half the size, and another sweep. The system is discretised anew on the coarser grid: its
// data term is the mean over the pixels' area, its alpha / h^2 follows from the true ratio of the sizes. What is left of
// the right-hand side is averaged likewise, and the correction interpolated linearly. A pixel I of a coarser side covers
// the pixels 2 I and 2 I + 1 and, where the finer side is odd, a part of 2 I - 1 and only a part of 2 I + 1.
//
// Large grids are relaxed in tiles, in shared memory: on the way to the coarsest grid, a sweep and the restriction are one
// launch; on the way back, the correction and a sweep. On the finest grid, the way back of a cycle and the way out of the
// next are one launch, and each sums the system anew, from the weights of the channels. On the others, the way back repeats
// the sweep of the way out, from zero, instead of having its result stored. All small grids take one launch for all their
// steps of a cycle.
#include "relaxation.cuh"

// Pixels of a tile's halo that become wrong. On the way back, the sweep: one pixel in each of its half-sweeps. On the way
// out, likewise the sweep, then the residual, which reads its neighbours, and its mean, which reads those of the residual.
constexpr int CORRECTION_HALO = 2, RESTRICTION_HALO = 4;

struct Grid {
  int height, width;
  Smoothness c;

  // As flowreg_gpu/model/relaxation.py plans it. Semi-coarsening: an axis whose coupling is below half the other's is not
  // halved yet.
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

// Columns from `left` to before `right`, rows likewise.
struct Region {
  int left, top, right, bottom;
  __device__ __forceinline__ bool contains(int x, int y) const {
    return x >= left && x < right && y >= top && y < bottom;
  }
  // With as many pixels more on every side, as far as the grid goes.
  __device__ __forceinline__ Region grown(int margin, const Grid& grid) const {
    return {max(left - margin, 0), max(top - margin, 0), min(right + margin, grid.width),
            min(bottom + margin, grid.height)};
  }
};

// Planes of a grid, or of a part of it that begins at (left, top): data term 11, 22, 12 and right-hand sides u, v; and the
// increment u, v. A row is `pitch` floats long, and planes lie `plane` apart.
struct Planes {
  Grid grid;
  int left, top, pitch, plane;
  float* system;
  float* increment;
  __device__ __forceinline__ int index(int x, int y) const { return (y - top) * pitch + x - left; }
  __device__ __forceinline__ Neighbours around(int x, int y) const {
    const int here = index(x, y);
    return {here, x == 0 ? here : here - 1, x == grid.width - 1 ? here : here + 1, y == 0 ? here : here - pitch,
            y == grid.height - 1 ? here : here + pitch};
  }
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

__device__ __forceinline__ void clear_increment(const Planes& planes, int x, int y) {
  float* here = planes.increment + planes.index(x, y);
  here[0] = here[planes.plane] = 0.0f;
}

__device__ __forceinline__ void copy_increment(const Planes& from, const Planes& to, int x, int y) {
  const float* in = from.increment + from.index(x, y);
  float* out = to.increment + to.index(x, y);
  out[0] = in[0];
  out[to.plane] = in[from.plane];
}

// Neighbours along one side, in order, and their weights.
template <int COUNT>
struct Taps {
  int index[COUNT];
  float weight[COUNT];
};

// Pixels of a finer side that pixel `at` of a coarser one covers.
__device__ __forceinline__ Taps<3> mean_taps(int at, int fine, int coarse) {
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
__device__ __forceinline__ Taps<2> linear_taps(int at, int fine, int coarse) {
  int middle = fine == coarse ? at : at / 2;
  float offset = (float)((2 * at + 1) * coarse - fine - 2 * fine * middle) / (float)(2 * fine);
  if (offset < 0.0f) return {{max(middle - 1, 0), middle}, {-offset, 1.0f + offset}};
  return {{middle, min(middle + 1, coarse - 1)}, {1.0f - offset, offset}};
}

// Update of one pixel by the rule block.
__device__ __forceinline__ void relax_at(const Planes& now, int x, int y, float omega) {
  const Neighbours at = now.around(x, y);
  Coefficients value = invert(load_system(now.system + at.here, now.plane), now.grid.diagonal(), omega);
  relax_pixel<false>(now.increment, now.increment + now.plane, value, now.increment, at, now.grid.c, omega);
}

// Data term of one pixel, and in place of the right-hand sides what is left of them.
__device__ __forceinline__ System residual(const Planes& now, int x, int y) {
  const Smoothness c = now.grid.c;
  const float diagonal = now.grid.diagonal();
  const Neighbours at = now.around(x, y);
  System sum = load_system(now.system + at.here, now.plane);
  const float* du = now.increment;
  const float* dv = du + now.plane;
  float u = du[at.here], v = dv[at.here];
  sum.bu = fmaf(-sum.d12, v, fmaf(-(diagonal + sum.d11), u, weighted_sum(du, at, c, sum.bu)));
  sum.bv = fmaf(-sum.d12, u, fmaf(-(diagonal + sum.d22), v, weighted_sum(dv, at, c, sum.bv)));
  return sum;
}

// System of one pixel of the coarser grid.
__device__ __forceinline__ void restrict_at(const Planes& fine, const Planes& coarse, int x, int y) {
  const Taps<3> columns = mean_taps(x, fine.grid.width, coarse.grid.width);
  const Taps<3> rows = mean_taps(y, fine.grid.height, coarse.grid.height);
  System mean = {};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (columns.weight[i] == 0.0f) continue;
    System column = {};
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (rows.weight[j] == 0.0f) continue;
      System one = residual(fine, columns.index[i], rows.index[j]);
      column.d11 = fmaf(rows.weight[j], one.d11, column.d11);
      column.d22 = fmaf(rows.weight[j], one.d22, column.d22);
      column.d12 = fmaf(rows.weight[j], one.d12, column.d12);
      column.bu = fmaf(rows.weight[j], one.bu, column.bu);
      column.bv = fmaf(rows.weight[j], one.bv, column.bv);
    }
    mean.d11 = fmaf(columns.weight[i], column.d11, mean.d11);
    mean.d22 = fmaf(columns.weight[i], column.d22, mean.d22);
    mean.d12 = fmaf(columns.weight[i], column.d12, mean.d12);
    mean.bu = fmaf(columns.weight[i], column.bu, mean.bu);
    mean.bv = fmaf(columns.weight[i], column.bv, mean.bv);
  }
  store_system(mean, coarse.system + coarse.index(x, y), coarse.plane);
}

// Adds the correction of the coarser grid to one pixel.
__device__ __forceinline__ void correct_at(const Planes& coarse, const Planes& fine, int x, int y) {
  const Taps<2> columns = linear_taps(x, fine.grid.width, coarse.grid.width);
  const Taps<2> rows = linear_taps(y, fine.grid.height, coarse.grid.height);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float* correction = coarse.increment + k * coarse.plane;
    float& increment = fine.increment[k * fine.plane + fine.index(x, y)];
    float sum = increment;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float between = 0.0f;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        between = fmaf(rows.weight[j], correction[coarse.index(columns.index[i], rows.index[j])], between);
      }
      sum = fmaf(columns.weight[i], between, sum);
    }
    increment = sum;
  }
}

// The threads of a block, 32 x 16, divide the pixels of a region among themselves, a column each, and wait for each other
// at the end.
template <typename Work>
__device__ __forceinline__ void for_pixels(const Region& region, Work work) {
  for (int x = region.left + threadIdx.x; x < region.right; x += blockDim.x) {
    for (int y = region.top + threadIdx.y; y < region.bottom; y += blockDim.y) work(x, y);
  }
  __syncthreads();
}

// The same with the pixels of one colour, (x + y) % 2 == colour. A thread takes every other pixel of its column, so that the
// pixels of a warp lie in different banks of shared memory.
template <typename Work>
__device__ __forceinline__ void for_colour(const Region& region, int colour, Work work) {
  for (int x = region.left + threadIdx.x; x < region.right; x += blockDim.x) {
    const int first = region.top + (x + region.top + colour) % 2;
    for (int y = first + 2 * threadIdx.y; y < region.bottom; y += 2 * blockDim.y) work(x, y);
  }
  __syncthreads();
}

// A sweep of the rule block over a region and `margin` pixels around it. Increments are known two pixels further.
__device__ __forceinline__ void relax(const Planes& now, const Region& region, int margin, float omega) {
  for (int colour = 0; colour < 2; ++colour) {
    for_colour(region.grown(margin + 1 - colour, now.grid), colour, [&](int x, int y) { relax_at(now, x, y, omega); });
  }
}

__device__ __forceinline__ void correct(const Planes& coarse, const Planes& fine, const Region& region) {
  for_pixels(region, [&](int x, int y) { correct_at(coarse, fine, x, y); });
}

// The pixels of the coarser grid that belong to a region which begins at even x and y.
__device__ __forceinline__ void restrict_to(const Planes& coarse, const Planes& fine, const Region& region) {
  const int step_x = fine.grid.width == coarse.grid.width ? 1 : 2, step_y = fine.grid.height == coarse.grid.height ? 1 : 2;
  for_pixels({region.left / step_x, region.top / step_y, (region.right + step_x - 1) / step_x,
              (region.bottom + step_y - 1) / step_y},
             [&](int x, int y) { restrict_at(fine, coarse, x, y); });
}

// Planes of this launch's frame, of which one may be missing.
__device__ __forceinline__ Planes frame_planes(Grid grid, const float* system, const float* increment) {
  const long long pixels = grid.pixels();
  return {grid, 0, 0, grid.width, grid.pixels(), const_cast<float*>(system) + blockIdx.z * 5 * pixels,
          const_cast<float*>(increment) + blockIdx.z * 2 * pixels};
}

// The tile of this block in shared memory: what it answers for, and a halo around it, which makes WIDTH x `height` pixels.
// A row holds the seven planes one after the other.
struct Tile {
  static const int WIDTH = 64;
  Region core;
  Planes planes;
  __device__ __forceinline__ Tile(Grid grid, int height, int halo) {
    const int inner_width = WIDTH - 2 * halo, inner_height = height - 2 * halo;
    const int left = blockIdx.x * inner_width, top = blockIdx.y * inner_height;
    float* shared = (float*)shared_memory;
    core = {left, top, min(left + inner_width, grid.width), min(top + inner_height, grid.height)};
    planes = {grid, left - halo, top - halo, 7 * WIDTH, WIDTH, shared, shared + 5 * WIDTH};
  }
  __device__ __forceinline__ Region around(int margin) const { return core.grown(margin, planes.grid); }
  __device__ __forceinline__ void write_increment(float* out) const {
    const Planes whole = frame_planes(planes.grid, nullptr, out);
    for_pixels(core, [&](int x, int y) { copy_increment(planes, whole, x, y); });
  }
};

// Launch: blockIdx.z = frame; thread (x, y): the Laplacian of the flow at one pixel, which the right-hand sides begin with.
__global__ void differentiate_flow(const float* __restrict__ flow,  // (frames, 2, height, width)
                                   int height, int width, float along, float across,
                                   float* __restrict__ flow_laplacian) {  // (frames, 2, height, width)
  const int x = pixel_x(), y = pixel_y(), plane = height * width;
  if (x >= width || y >= height) return;
  const Stencil<false> at(x, y, height, width);
  flow += (long long)blockIdx.z * 2 * plane;
  float* out = flow_laplacian + (long long)blockIdx.z * 2 * plane + at.here;
  out[0] = laplacian<false, false>(flow, flow, at, {along, across});
  out[plane] = laplacian<false, false>(flow + plane, flow, at, {along, across});
}

// Launch: blocks of (32, 16) threads, blockIdx = tile (x, y) and frame; shared memory for 7 floats a pixel of the tile. On
// the finest grid, the way back of cycle - 1, unless cycle is 0, and the way out of the next, unless cycle is `cycles`,
// each with its halo.
template <int CHANNELS>
__global__ void __launch_bounds__(GROUP_THREADS, 2)
    relax_finest(const float* __restrict__ tensor,            // (frames, CHANNELS, 6, height, width)
                 const float* __restrict__ weight,            // (CHANNELS, height, width)
                 const float* __restrict__ flow_laplacian,    // (frames or 1, 2, height, width)
                 const float* __restrict__ data_weights,      // (frames, CHANNELS, height, width), data_weight in cycle - 1
                 const float* __restrict__ before,            // (frames, 2, height, width), after its way out
                 const float* __restrict__ coarse_increment,  // (frames, 2, coarse height, coarse width)
                 int height, int width, int tile_height, float along, float across, float omega,
                 long long laplacian_stride, int cycle, int cycles, int refreshed,  // whether psi is made anew for `cycle`
                 float constant, float factor, float power,
                 float* __restrict__ new_data_weights,  // (frames, CHANNELS, height, width), written where psi changes
                 float* __restrict__ increment,        // (frames, 2, height, width), after the last sweep
                 float* __restrict__ coarse_system) {  // (frames, 5, coarse height, coarse width)
  const Grid grid = {height, width, {along, across}};
  const int halo = (cycle > 0 ? CORRECTION_HALO : 0) + (cycle < cycles ? RESTRICTION_HALO : 0);
  const int pixels = grid.pixels();
  const Tile tile(grid, tile_height, halo);
  const Planes& now = tile.planes;
  tensor += (long long)blockIdx.z * CHANNELS * 6 * pixels;
  flow_laplacian += blockIdx.z * laplacian_stride;
  data_weights += (long long)blockIdx.z * CHANNELS * pixels;
  new_data_weights += (long long)blockIdx.z * CHANNELS * pixels;
  const auto accumulate = [&](int margin, auto weight_of) {
    for_pixels(tile.around(margin), [&](int x, int y) {
      const int here = y * width + x;
      System sum = {0.0f, 0.0f, 0.0f, flow_laplacian[here], flow_laplacian[pixels + here]};
#pragma unroll
      for (int channel = 0; channel < CHANNELS; ++channel) {
        const float* j = tensor + 6LL * channel * pixels + here;
        add_channel(j, weight_of(x, y, channel, j), pixels, sum);
      }
      store_system(sum, now.system + now.index(x, y), now.plane);
    });
  };

  // 1. the way back of the earlier cycle
  if (cycle > 0) {
    const Planes from = frame_planes(grid, nullptr, before);
    for_pixels(tile.around(halo), [&](int x, int y) { copy_increment(from, now, x, y); });
    accumulate(halo - 1, [&](int x, int y, int channel, const float*) {
      return data_weights[channel * pixels + y * width + x];
    });
    correct(frame_planes(grid.coarser(), nullptr, coarse_increment), now, tile.around(halo));
    relax(now, tile.core, halo - CORRECTION_HALO, omega);
  } else {
    for_pixels(tile.around(halo), [&](int x, int y) { clear_increment(now, x, y); });
  }

  // 2. the way out of the next
  if (cycle < cycles) {
    if (refreshed || cycle == 0) {
      const Psi psi = refreshed ? Psi{constant, factor, power} : Psi{1.0f, 0.0f, 0.0f};
      accumulate(RESTRICTION_HALO - 1, [&](int x, int y, int channel, const float* j) {
        const int at = channel * pixels + y * width + x;
        const float* du = now.increment + now.index(x, y);
        const float value = data_weight(j, weight[at], pixels, du[0], du[now.plane], psi);
        if (tile.core.contains(x, y)) new_data_weights[at] = value;
        return value;
      });
    }
    relax(now, tile.core, RESTRICTION_HALO - 2, omega);
    restrict_to(frame_planes(grid.coarser(), coarse_system, nullptr), now, tile.core);
  }
  tile.write_increment(increment);
}

// Relaxes the tile of a coarser grid from zero.
__device__ __forceinline__ void relax_from_zero(const Tile& tile, const float* system, float omega) {
  const Planes &now = tile.planes, from = frame_planes(now.grid, system, nullptr);
  for_pixels(tile.around(RESTRICTION_HALO), [&](int x, int y) {
    clear_increment(now, x, y);
    store_system(load_system(from.system + from.index(x, y), from.plane), now.system + now.index(x, y), now.plane);
  });
  relax(now, tile.core, RESTRICTION_HALO - 2, omega);
}

// Launch: as of relax_finest, with the halo of the restriction. The way out on a coarser grid.
__global__ void __launch_bounds__(GROUP_THREADS, 2)
    relax_and_restrict(const float* __restrict__ system,  // (frames, 5, height, width)
                       int height, int width, int tile_height, float along, float across, float omega,
                       float* __restrict__ coarse_system) {  // (frames, 5, coarse height, coarse width)
  const Tile tile({height, width, {along, across}}, tile_height, RESTRICTION_HALO);
  const Planes& now = tile.planes;
  relax_from_zero(tile, system, omega);
  restrict_to(frame_planes(now.grid.coarser(), coarse_system, nullptr), now, tile.core);
}

// Launch: likewise. The way back on a coarser grid, after the sweep of the way out.
__global__ void __launch_bounds__(GROUP_THREADS, 2)
    relax_and_correct(const float* __restrict__ system,            // (frames, 5, height, width)
                      const float* __restrict__ coarse_increment,  // (frames, 2, coarse height, coarse width)
                      int height, int width, int tile_height, float along, float across, float omega,
                      float* __restrict__ increment) {  // (frames, 2, height, width)
  const Tile tile({height, width, {along, across}}, tile_height, RESTRICTION_HALO);
  const Planes& now = tile.planes;
  relax_from_zero(tile, system, omega);
  correct(frame_planes(now.grid.coarser(), nullptr, coarse_increment), now, tile.around(CORRECTION_HALO));
  relax(now, tile.core, 0, omega);
  tile.write_increment(increment);
}

// Launch: one block of (32, 16) threads a frame, blockIdx.z = frame; shared memory for `grids` Planes. A cycle from this
// grid to the coarsest and back.
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    relax_small_grids(const float* __restrict__ system,  // (frames, 5, height, width)
                      int height, int width, float along, float across, float omega, int grids, int coarsest_sweeps,
                      float* increment,                      // (frames, 2, height, width)
                      float* scratch, int scratch_pixels) {  // (frames, 7, pixels of all coarser grids)
  Planes* planes = (Planes*)shared_memory;
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    planes[0] = frame_planes({height, width, {along, across}}, system, increment);
    float* rest = scratch + (long long)blockIdx.z * 7 * scratch_pixels;
    for (int k = 1; k < grids; ++k) {
      Grid grid = planes[k - 1].grid.coarser();
      planes[k] = {grid, 0, 0, grid.width, grid.pixels(), rest, rest + 5 * grid.pixels()};
      rest += 7 * grid.pixels();
    }
  }
  __syncthreads();
  const auto all = [](const Grid& grid) { return Region{0, 0, grid.width, grid.height}; };

  // 1. out to the coarsest grid
  for (int k = 0; k < grids; ++k) {
    const Planes now = planes[k];
    for_pixels(all(now.grid), [&](int x, int y) { clear_increment(now, x, y); });
    for (int sweep = 0; sweep < (k < grids - 1 ? 1 : coarsest_sweeps); ++sweep) relax(now, all(now.grid), 0, omega);
    if (k < grids - 1) restrict_to(planes[k + 1], now, all(now.grid));
  }

  // 2. back
  for (int k = grids - 2; k >= 0; --k) {
    const Planes now = planes[k];
    correct(planes[k + 1], now, all(now.grid));
    relax(now, all(now.grid), 0, omega);
  }
}
