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
//
// A missing neighbour at the edge is the pixel's own value before its update: indices are clamped.
//
// psi = constant + factor (x + 1e-5)^power.
#include "common.cuh"

struct Psi {
  float constant, factor, power;
};

// x^exponent for normal x > 0, relative error about 1e-6, by the arithmetic that the CPU uses: log2 as a series in
// (m - 1) / (m + 1) of the mantissa m in [sqrt(1/2), sqrt(2)), 2^f as a Taylor polynomial for |f| <= 1/2.
__device__ __forceinline__ float power(float x, float exponent) {
  const int sqrt_half = 0x3F3504F3;
  int bits = __float_as_int(x) - sqrt_half;
  float mantissa = __int_as_float((bits & 0x007FFFFF) + sqrt_half);
  float s = (mantissa - 1.0f) / (mantissa + 1.0f), s2 = s * s;
  float log2 = (float)(bits >> 23) +
               s * (2.88539004f + s2 * (0.961796701f + s2 * (0.577078044f + s2 * (0.412198573f + s2 * 0.3205989f))));
  float y = exponent * log2, nearest = floorf(y + 0.5f), f = y - nearest;
  float fraction =
      1.0f + f * (0.693147182f + f * (0.240226507f + f * (0.0555041097f + f * (0.00961812865f + f * (0.00133335579f +
                  f * (0.000154035297f + f * 1.52527336e-05f))))));
  return fraction * __int_as_float(((int)nearest + 127) << 23);
}

__device__ __forceinline__ float robust_weight(float x, Psi psi) {
  return psi.constant + psi.factor * power(x + 1e-5f, psi.power);
}

// The five pixels of the stencil, as offsets in a plane: before and after along the line that is relaxed in order (a column
// for sor, a row for block, where it only fixes the order of sums), left and right of it.
template <bool ORDERED>
struct Stencil {
  int here, before, after, left, right;
  bool first, last;  // of the line
  __device__ __forceinline__ Stencil(int x, int y, int height, int width) {
    int position = ORDERED ? y : x, length = ORDERED ? height : width, step = ORDERED ? width : 1;
    int line = ORDERED ? x : y, lines = ORDERED ? width : height, across = ORDERED ? 1 : width;
    here = y * width + x;
    first = position == 0;
    last = position == length - 1;
    before = first ? here : here - step;
    after = last ? here : here + step;
    left = line == 0 ? here : here - across;
    right = line == lines - 1 ? here : here + across;
  }
};

// alpha / h^2 along the line and across it.
struct Smoothness {
  float along, across;
};

// Weights of the four edges of a pixel where the smoothness is robust.
struct Edges {
  float before, after, left, right;
  template <bool ORDERED>
  __device__ __forceinline__ Edges(const float* psi, const Stencil<ORDERED>& at, Smoothness c)
      : before(c.along * 0.5f * (psi[at.before] + psi[at.here])),
        after(c.along * 0.5f * (psi[at.here] + psi[at.after])),
        left(c.across * 0.5f * (psi[at.left] + psi[at.here])),
        right(c.across * 0.5f * (psi[at.here] + psi[at.right])) {}
};

// Sum over the edges of a pixel of weight times difference.
template <bool ORDERED, bool ROBUST>
__device__ __forceinline__ float laplacian(const float* plane, const float* psi, const Stencil<ORDERED>& at,
                                           Smoothness c) {
  float here = plane[at.here];
  if (ROBUST) {
    Edges edge(psi, at, c);
    return edge.before * (plane[at.before] - here) + edge.after * (plane[at.after] - here) +
           edge.left * (plane[at.left] - here) + edge.right * (plane[at.right] - here);
  }
  float across = c.across * (plane[at.left] - 2.0f * here + plane[at.right]);
  if (at.first) return c.along * (plane[at.after] - here) + across;
  if (at.last) return c.along * (plane[at.before] - here) + across;
  return c.along * (plane[at.before] - 2.0f * here + plane[at.after]) + across;
}

// What the sweeps need of a pixel. block: the inverse of its 2x2 system times omega (11, 12, 22), right-hand sides of u and
// v. sor: omega over the diagonal of u, the same of v, the coupling, right-hand sides of u and v.
struct Coefficients {
  float k0, k1, k2, bu, bv;
};

template <int CHANNELS, bool ORDERED, bool ROBUST>
__device__ __forceinline__ Coefficients fold(const float* tensor, const float* weight, const float* flow,
                                             const float* psi_smooth, const Stencil<ORDERED>& at, long long plane, float du,
                                             float dv, Smoothness c, float omega, Psi psi) {
  // 1. smoothness: diagonal, and right-hand sides from the Laplacian of the flow
  float diagonal = 2.0f * (c.along + c.across);
  if (ROBUST) {
    Edges edge(psi_smooth, at, c);
    diagonal = edge.before + edge.after + edge.left + edge.right;
  }
  float bu = laplacian<ORDERED, ROBUST>(flow, psi_smooth, at, c);
  float bv = laplacian<ORDERED, ROBUST>(flow + plane, psi_smooth, at, c);

  // 2. data term, summed over the channels
  float d11 = 0.0f, d22 = 0.0f, d12 = 0.0f;
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel) {
    const float* j = tensor + 6 * channel * plane + at.here;
    float j11 = j[0], j22 = j[plane], j33 = j[2 * plane], j12 = j[3 * plane], j13 = j[4 * plane], j23 = j[5 * plane];
    float energy = j11 * du * du + j22 * dv * dv + 2.0f * (j12 * du * dv + j13 * du + j23 * dv) + j33;
    // the resampling of a weight map overshoots below 0 at the edge of a mask, which would make the system indefinite
    float share = robust_weight(fmaxf(energy, 0.0f), psi) * fmaxf(weight[channel * plane + at.here], 0.0f);
    d11 += share * j11;
    d22 += share * j22;
    d12 += share * j12;
    bu -= share * j13;
    bv -= share * j23;
  }

  // 3. what the sweeps need
  if (ORDERED) return {omega / (diagonal + d11), omega / (diagonal + d22), d12, bu, bv};
  // the data part alone may have rank 1: its determinant is kept apart and from going below 0
  float determinant = diagonal * (diagonal + d11 + d22) + fmaxf(d11 * d22 - d12 * d12, 0.0f);
  float scale = omega / determinant;
  return {scale * (diagonal + d22), -scale * d12, scale * (diagonal + d11), bu, bv};
}

__device__ __forceinline__ void store(const Coefficients& value, float* out, long long plane) {
  out[0] = value.k0;
  out[plane] = value.k1;
  out[2 * plane] = value.k2;
  out[3 * plane] = value.bu;
  out[4 * plane] = value.bv;
}

__device__ __forceinline__ Coefficients load(const float* from, long long plane) {
  return {from[0], from[plane], from[2 * plane], from[3 * plane], from[4 * plane]};
}

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

// psi_smooth of one pixel from the gradient of u + du, v + dv, by central differences; at the edge the missing neighbour is
// the pixel itself. `half` is 1 / (2 h).
template <bool ORDERED>
__device__ __forceinline__ float smoothness_weight(const float* u, const float* v, const float* du, const float* dv,
                                                   const Stencil<ORDERED>& at, Smoothness half, Psi psi) {
  auto difference = [](const float* plane, const float* change, int to, int from) {
    return plane[to] + change[to] - plane[from] - change[from];
  };
  float u_along = half.along * difference(u, du, at.after, at.before);
  float u_across = half.across * difference(u, du, at.right, at.left);
  float v_along = half.along * difference(v, dv, at.after, at.before);
  float v_across = half.across * difference(v, dv, at.right, at.left);
  return robust_weight(u_along * u_along + u_across * u_across + v_along * v_along + v_across * v_across, psi);
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

// Update of u and v of one pixel by the rule block, from its neighbours'.
template <bool ROBUST>
__device__ __forceinline__ void relax_pixel(float* du, float* dv, const Coefficients& value, const float* psi_smooth,
                                            const Stencil<false>& at, Smoothness c, float omega) {
  float su, sv;
  if (ROBUST) {
    Edges edge(psi_smooth, at, c);
    auto around = [&](const float* now) {
      return edge.before * now[at.before] + edge.after * now[at.after] + edge.left * now[at.left] +
             edge.right * now[at.right];
    };
    su = around(du) + value.bu;
    sv = around(dv) + value.bv;
  } else {
    auto around = [&](const float* now) {
      return c.along * (now[at.before] + now[at.after]) + c.across * (now[at.left] + now[at.right]);
    };
    su = around(du) + value.bu;
    sv = around(dv) + value.bv;
  }
  float keep = 1.0f - omega;
  du[at.here] = keep * du[at.here] + value.k0 * su + value.k1 * sv;
  dv[at.here] = keep * dv[at.here] + value.k1 * su + value.k2 * sv;
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
