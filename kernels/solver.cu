// Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor.
//
// Minimises, with lagged robust weights psi (Brox, Bruhn, Papenberg, Weickert 2004),
//
//   E = 1/2 sum_edges c |grad(u + du, v + dv)|^2 + 1/2 sum_k weight_k (J_k-form(du, dv) + 1e-5)^a_data,
//
// c = alpha / h^2, times psi_smooth averaged over the two pixels of an edge where a_smooth < 1. Two rules:
//
// - block: red-black, u and v of a pixel solved together, in three ways that agree to the last bit: a small level in one
//   launch, the increment in shared memory; a large one in tiles, all sweeps between two refreshes of psi in one launch; and
//   plainly, a launch for every colour, which is the yardstick of the others and does all that they do not;
// - sor: over-relaxed Gauss-Seidel in lexicographic order, u first, v with the new u of its pixel. A pixel (x, y) of sweep k
//   needs what was done at smaller x + y + 2k alone, so that all pixels of equal t = x + y + 2k are relaxed at once; one
//   block of threads a frame follows that wave, and several sweeps are under way at a time.
#include "relaxation.cuh"

// Launch: blockIdx.z = frame; thread (x, y): the coefficients of one pixel, with psi of the present increment.
template <int CHANNELS, bool ORDERED, bool ROBUST>
__global__ void refresh_coefficients(
    const float* __restrict__ tensor,      // (frames, CHANNELS, 6, height, width)
    const float* __restrict__ weight,      // (CHANNELS, height, width)
    const float* __restrict__ flow,        // (frames or 1, 2, height, width)
    const float* __restrict__ psi_smooth,  // (frames, height, width); unused unless ROBUST
    const float* __restrict__ increment,   // (frames, 2, height, width)
    int height, int width, long long flow_stride, float along, float across, float omega, float constant, float factor,
    float power,
    float* __restrict__ coefficients) {  // (frames, 5, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width;
  Stencil<ORDERED> at(x, y, height, width);
  const float* du = increment + blockIdx.z * 2 * plane + at.here;
  store(fold<CHANNELS, ORDERED, ROBUST>(tensor + blockIdx.z * CHANNELS * 6 * plane, weight,
                                        flow + blockIdx.z * flow_stride, psi_smooth + blockIdx.z * plane, at, plane,
                                        du[0], du[plane], {along, across}, omega, {constant, factor, power}),
        coefficients + blockIdx.z * 5 * plane + at.here, plane);
}

// Launch: blockIdx.z = frame; thread (x, y): psi_smooth of one pixel.
template <bool ORDERED>
__global__ void refresh_smoothness(const float* __restrict__ flow,       // (frames or 1, 2, height, width)
                                   const float* __restrict__ increment,  // (frames, 2, height, width)
                                   int height, int width, long long flow_stride,
                                   float half_along, float half_across,  // 1 / (2 h)
                                   float constant, float factor, float power,
                                   float* __restrict__ psi_smooth) {  // (frames, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width;
  Stencil<ORDERED> at(x, y, height, width);
  const float* u = flow + blockIdx.z * flow_stride;
  const float* du = increment + blockIdx.z * 2 * plane;
  psi_smooth[blockIdx.z * plane + at.here] = smoothness_weight(
      u, u + plane, du, du + plane, at, {half_along, half_across}, {constant, factor, power});
}

// Launch: blockIdx.z = frame; thread (i, y): the pixel of one colour, (x + y) % 2 == colour, x = 2i or 2i + 1. Neighbours have
// the other colour, so the update is in place.
template <bool ROBUST>
__global__ void relax_colour(const float* __restrict__ coefficients,  // (frames, 5, height, width), of the rule block
                             const float* __restrict__ psi_smooth,    // (frames, height, width); unused unless ROBUST
                             int height, int width, int colour, float along, float across, float omega,
                             float* increment) {  // (frames, 2, height, width)
  int y = pixel_y(), x = 2 * pixel_x() + (y + colour) % 2;
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width;
  Stencil<false> at(x, y, height, width);
  Coefficients value = load(coefficients + blockIdx.z * 5 * plane + at.here, plane);
  float* du = increment + blockIdx.z * 2 * plane;
  relax_pixel<ROBUST>(du, du + plane, value, psi_smooth + blockIdx.z * plane, at, {along, across}, omega);
}

// Launch: one block of 512 threads a frame, blockIdx.z = frame; shared memory for the increment, 8 bytes a pixel. All sweeps
// of the rule block: a thread owns every 512th pixel, or pixel of a colour, between two barriers.
template <int CHANNELS, bool ROBUST>
__global__ void __launch_bounds__(512, 1)
    relax_level(const float* __restrict__ tensor,  // (frames, CHANNELS, 6, height, width)
                const float* __restrict__ weight,  // (CHANNELS, height, width)
                const float* __restrict__ flow,    // (frames or 1, 2, height, width)
                int height, int width, long long flow_stride, int sweeps, int lag, float along, float across,
                float half_along, float half_across, float omega, float data_constant, float data_factor,
                float data_power, float smooth_constant, float smooth_factor, float smooth_power,
                float* psi_smooth,    // (frames, height, width), scratch; unused unless ROBUST
                float* coefficients,  // (frames, 5, height, width), scratch
                float* __restrict__ increment) {  // (frames, 2, height, width)
  const int plane = height * width, half_width = (width + 1) / 2;
  tensor += (long long)blockIdx.z * CHANNELS * 6 * plane;
  flow += blockIdx.z * flow_stride;
  psi_smooth += (long long)blockIdx.z * plane;
  coefficients += (long long)blockIdx.z * 5 * plane;
  increment += (long long)blockIdx.z * 2 * plane;
  float* du = (float*)shared_memory;
  float* dv = du + plane;
  const Smoothness c = {along, across};
  auto refresh = [&](Psi psi) {
    for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
      Stencil<false> at(pixel % width, pixel / width, height, width);
      store(fold<CHANNELS, false, ROBUST>(tensor, weight, flow, psi_smooth, at, plane, du[pixel], dv[pixel], c, omega,
                                          psi),
            coefficients + pixel, plane);
    }
    __syncthreads();
  };

  // 1. start from zero, with psi = 1
  for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
    du[pixel] = dv[pixel] = 0.0f;
    if (ROBUST) psi_smooth[pixel] = 1.0f;
  }
  __syncthreads();
  refresh({1.0f, 0.0f, 0.0f});

  for (int sweep = 0; sweep < sweeps; ++sweep) {
    // 2. psi of the present increment
    if ((sweep + 1) % lag == 0) {
      if (ROBUST) {
        for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
          Stencil<false> at(pixel % width, pixel / width, height, width);
          psi_smooth[pixel] = smoothness_weight(flow, flow + plane, du, dv, at, {half_along, half_across},
                                                {smooth_constant, smooth_factor, smooth_power});
        }
        __syncthreads();
      }
      refresh({data_constant, data_factor, data_power});
    }
    // 3. one colour after the other
    for (int colour = 0; colour < 2; ++colour) {
      for (int pair = threadIdx.x; pair < height * half_width; pair += blockDim.x) {
        int y = pair / half_width, x = 2 * (pair % half_width) + (y + colour) % 2;
        if (x >= width) continue;
        Stencil<false> at(x, y, height, width);
        relax_pixel<ROBUST>(du, dv, load(coefficients + at.here, plane), psi_smooth, at, c, omega);
      }
      __syncthreads();
    }
  }

  // 4. the result
  for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
    increment[pixel] = du[pixel];
    increment[plane + pixel] = dv[pixel];
  }
}

// Launch: blockIdx = tile (x, y) and frame; shared memory for 7 floats a pixel of the tile with its halo. Refreshes psi_data,
// then does `sweeps` sweeps of the rule block, with quadratic smoothness. Where the halo does not end at the edge of the level,
// the pixels that have all their neighbours are one fewer on that side after every colour:
//
//   |<- halo = 2 sweeps ->|<- tile ->|<- halo ->|      relaxed by colour 1: all but the outermost pixels, ...,
//                                                     by colour 2 sweeps: the tile
template <int CHANNELS>
__global__ void __launch_bounds__(512, 1)
    relax_tiles(const float* __restrict__ tensor,  // (frames, CHANNELS, 6, height, width)
                const float* __restrict__ weight,  // (CHANNELS, height, width)
                const float* __restrict__ flow,    // (frames or 1, 2, height, width)
                const float* __restrict__ before,  // (frames, 2, height, width), the increment so far
                int height, int width, int tile_height, int tile_width, long long flow_stride, int sweeps, float along,
                float across, float omega, float constant, float factor, float power,
                float* __restrict__ increment) {  // (frames, 2, height, width)
  const int plane = height * width, halo = 2 * sweeps;
  const int first_x = blockIdx.x * tile_width, last_x = min(first_x + tile_width, width);
  const int first_y = blockIdx.y * tile_height, last_y = min(first_y + tile_height, height);
  const int left = max(first_x - halo, 0), right = min(last_x + halo, width);
  const int top = max(first_y - halo, 0), bottom = min(last_y + halo, height);
  const int columns = right - left, pixels = columns * (bottom - top);
  const Smoothness c = {along, across};
  tensor += (long long)blockIdx.z * CHANNELS * 6 * plane;
  flow += blockIdx.z * flow_stride;
  before += (long long)blockIdx.z * 2 * plane;
  increment += (long long)blockIdx.z * 2 * plane;
  float* du = (float*)shared_memory;
  float* dv = du + pixels;
  float* coefficients = dv + pixels;

  // 1. increment and coefficients of tile and halo
  for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
    Stencil<false> at(left + pixel % columns, top + pixel / columns, height, width);
    du[pixel] = before[at.here];
    dv[pixel] = before[plane + at.here];
    store(fold<CHANNELS, false, false>(tensor, weight, flow, before, at, plane, du[pixel], dv[pixel], c, omega,
                                       {constant, factor, power}),
          coefficients + pixel, pixels);
  }
  __syncthreads();

  // 2. one colour after the other, where the neighbours are known
  for (int half_sweep = 0; half_sweep < 2 * sweeps; ++half_sweep) {
    int x0 = left == 0 ? 0 : left + half_sweep + 1, x1 = right == width ? width : right - half_sweep - 1;
    int y0 = top == 0 ? 0 : top + half_sweep + 1, y1 = bottom == height ? height : bottom - half_sweep - 1;
    int pairs = (x1 - x0 + 1) / 2;
    for (int pair = threadIdx.x; pair < pairs * (y1 - y0); pair += blockDim.x) {
      int y = y0 + pair / pairs, x = x0 + 2 * (pair % pairs) + (x0 + y + half_sweep) % 2;
      if (x >= x1) continue;
      Stencil<false> at(x - left, y - top, bottom - top, columns);
      relax_pixel<false>(du, dv, load(coefficients + at.here, pixels), coefficients, at, c, omega);
    }
    __syncthreads();
  }

  // 3. the tile
  const int core = last_x - first_x;
  for (int pixel = threadIdx.x; pixel < core * (last_y - first_y); pixel += blockDim.x) {
    int x = first_x + pixel % core, y = first_y + pixel / core, here = (y - top) * columns + x - left;
    increment[y * width + x] = du[here];
    increment[plane + y * width + x] = dv[here];
  }
}

// New value of u (or v, `other` being u) of a pixel by the rule sor: `scale` is omega over its diagonal.
template <bool ROBUST>
__device__ __forceinline__ float relaxed(const float* now, float scale, float right_side, float coupled,
                                         const float* psi_smooth, const Stencil<true>& at, Smoothness c, float keep) {
  float behind = c.along, around;
  if (ROBUST) {
    Edges edge(psi_smooth, at, c);
    behind = edge.before;
    around = edge.after * now[at.after] + edge.left * now[at.left] + edge.right * now[at.right];
  } else {
    around = c.along * now[at.after] + c.across * (now[at.left] + now[at.right]);
  }
  return keep * now[at.here] + scale * (around + right_side - coupled) + scale * behind * now[at.before];
}

// Launch: one block (32, 16) a frame, blockIdx.z = frame. At step t, the threads of row k of the block relax the pixels
// x + y = t - 2 sweep of every 16th sweep. Where the smoothness is quadratic the refresh of psi is pointwise and joins in,
// before every sweep with (sweep + 1) % lag == 0; lag is 0 where there is none.
template <int CHANNELS, bool ROBUST>
__global__ void __launch_bounds__(512, 1)
    relax_ordered(const float* __restrict__ tensor,      // (frames, CHANNELS, 6, height, width)
                  const float* __restrict__ weight,      // (CHANNELS, height, width)
                  const float* __restrict__ flow,        // (frames or 1, 2, height, width)
                  const float* __restrict__ psi_smooth,  // (frames, height, width); unused unless ROBUST
                  int height, int width, long long flow_stride, int sweeps, int lag, float along, float across,
                  float omega, float constant, float factor, float power,
                  float* coefficients,  // (frames, 5, height, width), of the rule sor
                  float* increment) {   // (frames, 2, height, width)
  const long long plane = (long long)height * width;
  tensor += blockIdx.z * CHANNELS * 6 * plane;
  flow += blockIdx.z * flow_stride;
  psi_smooth += blockIdx.z * plane;
  coefficients += blockIdx.z * 5 * plane;
  float* du = increment + blockIdx.z * 2 * plane;
  float* dv = du + plane;
  const int last_diagonal = height + width - 2;
  const float keep = 1.0f - omega;
  const Smoothness c = {along, across};
  for (int t = 0; t <= last_diagonal + 2 * (sweeps - 1); ++t) {
    int first_sweep = max(0, (t - last_diagonal + 1) / 2), last_sweep = min(sweeps - 1, t / 2);
    for (int sweep = first_sweep + threadIdx.y; sweep <= last_sweep; sweep += blockDim.y) {
      int diagonal = t - 2 * sweep;
      for (int x = max(0, diagonal - height + 1) + threadIdx.x; x <= min(diagonal, width - 1); x += blockDim.x) {
        Stencil<true> at(x, diagonal - x, height, width);
        Coefficients value;
        if (lag > 0 && (sweep + 1) % lag == 0) {
          value = fold<CHANNELS, true, ROBUST>(tensor, weight, flow, psi_smooth, at, plane, du[at.here], dv[at.here], c,
                                               omega, {constant, factor, power});
          store(value, coefficients + at.here, plane);
        } else {
          value = load(coefficients + at.here, plane);
        }
        float u = relaxed<ROBUST>(du, value.k0, value.bu, value.k2 * dv[at.here], psi_smooth, at, c, keep);
        du[at.here] = u;
        dv[at.here] = relaxed<ROBUST>(dv, value.k1, value.bv, value.k2 * u, psi_smooth, at, c, keep);
      }
    }
    __syncthreads();
  }
}
