// Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor.
//
// Minimises, with lagged robust weights psi (Brox, Bruhn, Papenberg, Weickert 2004),
//
//   E = 1/2 sum_edges c |grad(u + du, v + dv)|^2 + 1/2 sum_k weight_k (J_k-form(du, dv) + 1e-5)^a_data,
//
// c = alpha / h^2, times psi_smooth averaged over the two pixels of an edge where a_smooth < 1. Two rules:
//
// - block: red-black, u and v of a pixel solved together, in ways that agree to the last bit: in strips whose rows flow
//   through shared memory, many sweeps in one launch; and plainly, a launch for every colour, which is the yardstick of the
//   strips, and of small levels (descend.cu), and does all that they do not;
// - sor: over-relaxed Gauss-Seidel in lexicographic order, u first, v with the new u of its pixel. A pixel (x, y) of sweep k
//   needs what was done at smaller x + y + 2k alone, so that all pixels of equal t = x + y + 2k are relaxed at once; one
//   block of threads a frame follows that wave, and several sweeps are under way at a time.
#include "sorted_rows.cuh"

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

// Launch: blockIdx = strip of columns, section of rows, and frame. The first `first` sweeps of the rule block and `more` after
// them, with quadratic smoothness and a refresh of psi_data before sweep 0 and before every `lag`th sweep after the first ones.
// Rows flow through shared memory: at step t the block loads row t, half-sweep k follows at row t - 2 - 2k, so that all
// half-sweeps of a step are independent, and its refresh one row ahead of it; what no later half-sweep needs is overwritten. So
// a pixel is loaded once for all sweeps of a launch, or as often as strips need it for their halo: as many pixels as
// half-sweeps on each side that does not end at the edge of the level, of which every half-sweep spoils one more.
//
// Shared memory holds, in rings of rows sorted by colour: the increment, for all half-sweeps; the coefficients of each refresh,
// for those up to the next; and what a refresh reads (tensor, weight, Laplacian of the flow), up to the last one.
template <int CHANNELS>
__global__ void __launch_bounds__(512, 1)
    relax_strips(const float* __restrict__ tensor,  // (frames, CHANNELS, 6, height, width)
                 const float* __restrict__ weight,  // (CHANNELS, height, width)
                 const float* __restrict__ flow,    // (frames or 1, 2, height, width)
                 const float* __restrict__ before,  // (frames, 2, height, width), the increment so far; unused where fresh
                 int height, int width, int strip_height, int strip_width,  // without halo; strip_width is even
                 long long flow_stride, int fresh, int first, int more, int lag, float along, float across, float omega,
                 float first_constant, float first_factor, float first_power,  // psi before sweep 0
                 float constant, float factor, float power,                    // psi from then on
                 float* __restrict__ increment) {  // (frames, 2, height, width)
  constexpr int FIXED = 7 * CHANNELS + 2;  // floats of a pixel that a refresh reads
  const int plane = height * width, half_sweeps = 2 * (first + more), refreshes = 1 + (more + lag - 1) / lag;
  const int first_x = blockIdx.x * strip_width, last_x = min(first_x + strip_width, width);
  const int first_y = blockIdx.y * strip_height, last_y = min(first_y + strip_height, height);
  const int left = max(first_x - half_sweeps, 0), right = min(last_x + half_sweeps, width);  // left is even
  const int top = max(first_y - half_sweeps, 0), bottom = min(last_y + half_sweeps, height);
  const int half = half_of(right - left), pitch = 2 * half, pairs = half / 2;
  const Smoothness c = {along, across};
  tensor += (long long)blockIdx.z * CHANNELS * 6 * plane;
  flow += blockIdx.z * flow_stride;
  before += (long long)blockIdx.z * 2 * plane;
  increment += (long long)blockIdx.z * 2 * plane;

  // Refresh r comes before half-sweep refreshed(r). Rows are counted by the floats that they take in a ring.
  const auto refreshed = [&](int refresh) { return refresh == 0 ? 0 : 2 * (first + (refresh - 1) * lag); };
  const int size = (2 * half_sweeps + 2) * pitch, line = 5 * pitch, lines = 4 * lag * line;
  const int fixed_line = FIXED * pitch, fixed_lines = (2 * refreshed(refreshes - 1) + 2) * fixed_line;
  float* du = (float*)shared_memory;
  float* dv = du + size;
  float* coefficients = dv + size;                    // a ring of `lines` for every refresh
  float* fixed = coefficients + refreshes * lines;  // of `fixed_lines`
  const auto wrapped = [](int row, int ring) { return row < 0 ? row + ring : row; };
  const auto next = [](int row, int step, int ring) { return row + step == ring ? 0 : row + step; };

  // At every step, the threads share out: columns to load, pairs of pixels to refresh, pairs to relax, columns to write, each
  // beginning with a warp of its own. Where the step is in each ring says where a row lies.
  const auto whole_warps = [](int count) { return (count + 31) / 32 * 32; };
  const int refreshing = whole_warps(right - left), relaxing = refreshing + whole_warps(2 * pairs * refreshes);
  const int writing = relaxing + whole_warps(pairs * half_sweeps), parts = writing + last_x - first_x;
  const Divisor per_refresh(2 * pairs), per_half_sweep(pairs), per_lag(2 * lag);
  int step_row = 0, step_fixed = 0, step_first = 0, step_later = (4 * lag - 4 * first) % (4 * lag) * line;
  for (int step = 0; step <= bottom - top + 2 * half_sweeps; ++step) {
    for (int part = threadIdx.x; part < parts; part += blockDim.x) {
      if (part < refreshing) {
        int x = left + part, y = top + step;
        if (x >= right || y >= bottom) continue;
        Stencil<false> at(x, y, height, width);
        int sorted = sorted_column(part, y, half);
        du[step_row + sorted] = fresh ? 0.0f : before[at.here];
        dv[step_row + sorted] = fresh ? 0.0f : before[plane + at.here];
        float* out = fixed + step_fixed + sorted;
        const float *j = tensor + at.here, *share = weight + at.here;
#pragma unroll
        for (int k = 0; k < 6 * CHANNELS; ++k, j += plane, out += pitch) *out = *j;
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k, share += plane, out += pitch) *out = *share;
        out[0] = laplacian<false, false>(flow, flow, at, c);
        out[pitch] = laplacian<false, false>(flow + plane, flow, at, c);
      } else if (part < relaxing) {
        int refresh = per_refresh.quotient(part - refreshing), sorted = 2 * per_refresh.remainder(part - refreshing);
        int ahead = 1 + 2 * refreshed(refresh), y = top + step - ahead;
        if (refresh >= refreshes || y < top || y >= bottom) continue;
        int here = wrapped(step_row - ahead * pitch, size) + sorted;
        int to = wrapped((refresh == 0 ? step_first : step_later) - line, lines) + refresh * lines + sorted;
        const float* in = fixed + wrapped(step_fixed - ahead * fixed_line, fixed_lines) + sorted;
        Psi psi = refresh == 0 ? Psi{first_constant, first_factor, first_power} : Psi{constant, factor, power};
        float first_fixed[FIXED], second_fixed[FIXED];
#pragma unroll
        for (int k = 0; k < FIXED; ++k, in += pitch) {
          const Pair both = pair_at(in, 0);
          first_fixed[k] = both.first;
          second_fixed[k] = both.second;
        }
        Pair u = pair_at(du, here), v = pair_at(dv, here);
        const auto folded = [&](const float* values, float now_u, float now_v) {
          System sum = {0.0f, 0.0f, 0.0f, values[7 * CHANNELS], values[7 * CHANNELS + 1]};
          add_data<CHANNELS>(values, values + 6 * CHANNELS, 1, now_u, now_v, psi, sum);
          return invert(sum, 2.0f * (c.along + c.across), omega);
        };
        const Coefficients a = folded(first_fixed, u.first, v.first), b = folded(second_fixed, u.second, v.second);
        pair_at(coefficients, to) = {a.k0, b.k0};
        pair_at(coefficients, to + pitch) = {a.k1, b.k1};
        pair_at(coefficients, to + 2 * pitch) = {a.k2, b.k2};
        pair_at(coefficients, to + 3 * pitch) = {a.bu, b.bu};
        pair_at(coefficients, to + 4 * pitch) = {a.bv, b.bv};
      } else if (part < writing) {
        int half_sweep = per_half_sweep.quotient(part - relaxing), i = 2 * per_half_sweep.remainder(part - relaxing);
        int ahead = 2 + 2 * half_sweep, y = top + step - ahead, colour = half_sweep % 2, parity = (y + colour) % 2;
        if (half_sweep >= half_sweeps || y < top || y >= bottom) continue;
        int row = wrapped(step_row - ahead * pitch, size);
        int later = half_sweep - 2 * first, refresh = later < 0 ? 0 : 1 + per_lag.quotient(later);
        int from = (refresh == 0 ? step_first : step_later) - (ahead - 2 * refreshed(refresh)) * line;
        relax_pair(du, dv, coefficients + wrapped(from, lines) + refresh * lines + colour * half + i, pitch, row,
                   y == 0 ? -1 : wrapped(row - pitch, size), y == height - 1 ? -1 : next(row, pitch, size), half, colour,
                   i, parity, left + 2 * i + parity, width - 1, c, omega);
      } else {
        int x = first_x + part - writing, y = top + step - 1 - 2 * half_sweeps;
        if (y < first_y || y >= last_y) continue;
        int here = wrapped(step_row - (1 + 2 * half_sweeps) * pitch, size) + sorted_column(x - left, y, half);
        increment[y * width + x] = du[here];
        increment[plane + y * width + x] = dv[here];
      }
    }
    __syncthreads();
    step_row = next(step_row, pitch, size);
    step_fixed = next(step_fixed, fixed_line, fixed_lines);
    step_first = next(step_first, line, lines);
    step_later = next(step_later, line, lines);
  }
}

// New value of u or v of a pixel by the rule sor: `scale` is omega over its diagonal, `right_side` holds the coupling.
template <bool ROBUST>
__device__ __forceinline__ float relaxed(const float* now, float scale, float right_side, const float* psi_smooth,
                                         const Stencil<true>& at, Smoothness c, float keep) {
  float behind = c.along, around;
  if (ROBUST) {
    Edges edge(psi_smooth, at, c);
    behind = edge.before;
    around = fmaf(edge.left, now[at.left], fmaf(edge.after, now[at.after], right_side));
    around = fmaf(edge.right, now[at.right], around);
  } else {
    around = fmaf(c.along, now[at.after], fmaf(c.across, now[at.left] + now[at.right], right_side));
  }
  return fmaf(scale * behind, now[at.before], fmaf(scale, around, keep * now[at.here]));
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
        float u = relaxed<ROBUST>(du, value.k0, fmaf(-value.k2, dv[at.here], value.bu), psi_smooth, at, c, keep);
        du[at.here] = u;
        dv[at.here] = relaxed<ROBUST>(dv, value.k1, fmaf(-value.k2, u, value.bv), psi_smooth, at, c, keep);
      }
    }
    __syncthreads();
  }
}
