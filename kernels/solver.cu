// Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor.
//
// Minimises, with lagged robust weights psi (Brox, Bruhn, Papenberg, Weickert 2004),
//
//   E = 1/2 sum_edges c |grad(u + du, v + dv)|^2 + 1/2 sum_k weight_k (J_k-form(du, dv) + 1e-5)^a_data,
//
// c = alpha / h^2, times psi_smooth averaged over the two pixels of an edge where a_smooth < 1. Two rules:
//
// - block: red-black, u and v of a pixel solved together, in three ways that agree to the last bit: a small level in one
//   launch, in shared memory; a large one in strips whose rows flow through shared memory, many sweeps in one
//   launch; and plainly, a launch for every colour, which is the yardstick of the others and does all that they do not;
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

// A row that is sorted by colour: pixel i of a colour is column 2 i + parity, parity = (y + colour) % 2; the `half` pixels of
// colour 0 come first. The neighbours above and below are pixel i of the other colour, those beside it pixels i - 1 + parity
// and i + parity. `above` and `below` are where these rows begin, or below 0 where there are none.
__device__ __forceinline__ Neighbours in_sorted_rows(int row, int above, int below, int half, int colour, int i,
                                                     int parity, bool first, bool last) {
  int other = half - colour * half + i;
  Neighbours at;
  at.here = row + colour * half + i;
  at.before = first ? at.here : row + other - 1 + parity;
  at.after = last ? at.here : row + other + parity;
  at.left = above < 0 ? at.here : above + other;
  at.right = below < 0 ? at.here : below + other;
  return at;
}

__device__ __forceinline__ int sorted_column(int x, int y, int half) { return (x + y) % 2 * half + x / 2; }

// Launch: one block of threads (32, n) a frame, blockIdx.z = frame; shared memory for the increment, and for the coefficients
// where in_shared, in rows sorted by colour. All sweeps of the rule block, with quadratic smoothness.
template <int CHANNELS>
__global__ void __launch_bounds__(512, 1)
    relax_level(const float* __restrict__ tensor,  // (frames, CHANNELS, 6, height, width)
                const float* __restrict__ weight,  // (CHANNELS, height, width)
                const float* __restrict__ flow,    // (frames or 1, 2, height, width)
                int height, int width, long long flow_stride, int sweeps, int lag, float along, float across, float omega,
                float constant, float factor, float power, int in_shared,
                float* scratch,                   // (frames, 5, height, width rounded up to an even number)
                float* __restrict__ increment) {  // (frames, 2, height, width)
  const int plane = height * width, half = (width + 1) / 2, pitch = 2 * half, sorted_plane = height * pitch;
  const Smoothness c = {along, across};
  tensor += (long long)blockIdx.z * CHANNELS * 6 * plane;
  flow += blockIdx.z * flow_stride;
  increment += (long long)blockIdx.z * 2 * plane;
  float* du = (float*)shared_memory;
  float* dv = du + sorted_plane;
  float* coefficients = in_shared ? dv + sorted_plane : scratch + (long long)blockIdx.z * 5 * sorted_plane;
  const auto for_pixels = [&](auto action) {  // of the level, and where they are among the sorted ones
    for (int y = threadIdx.y; y < height; y += blockDim.y)
      for (int x = threadIdx.x; x < width; x += blockDim.x) action(x, y, y * pitch + sorted_column(x, y, half));
    __syncthreads();
  };
  const auto refresh = [&](Psi psi) {
    for_pixels([&](int x, int y, int sorted) {
      store(fold<CHANNELS, false, false>(tensor, weight, flow, flow, Stencil<false>(x, y, height, width), plane,
                                         du[sorted], dv[sorted], c, omega, psi),
            coefficients + sorted, sorted_plane);
    });
  };

  // 1. start from zero, with psi = 1
  for_pixels([&](int, int, int sorted) { du[sorted] = dv[sorted] = 0.0f; });
  refresh({1.0f, 0.0f, 0.0f});

  for (int sweep = 0; sweep < sweeps; ++sweep) {
    // 2. psi of the present increment
    if ((sweep + 1) % lag == 0) refresh({constant, factor, power});
    // 3. one colour after the other
    for (int colour = 0; colour < 2; ++colour) {
      for (int y = threadIdx.y; y < height; y += blockDim.y) {
        const int parity = (y + colour) % 2, row = y * pitch;
        for (int i = threadIdx.x; 2 * i + parity < width; i += blockDim.x) {
          Neighbours at = in_sorted_rows(row, y == 0 ? -1 : row - pitch, y == height - 1 ? -1 : row + pitch, half, colour,
                                         i, parity, 2 * i + parity == 0, 2 * i + parity == width - 1);
          relax_pixel<false>(du, dv, load(coefficients + at.here, sorted_plane), du, at, c, omega);
        }
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

// Division without a divide instruction; exact while dividend times divisor stays below 65536.
struct Divisor {
  int inverse;
  __device__ __forceinline__ explicit Divisor(int divisor) : inverse(65536 / divisor + 1) {}
  __device__ __forceinline__ int quotient(int dividend) const { return dividend * inverse >> 16; }
};

// Launch: blockIdx = strip of columns, section of rows, and frame; threads (32, n). The first `first` sweeps of the rule block
// and `more` after them, with quadratic smoothness and a refresh of psi_data before sweep 0 and before every `lag`th sweep
// after the first ones. Rows flow through shared memory: at step t the block loads row t, half-sweep k follows at row
// t - 2 - 2k, so that all half-sweeps of a step are independent, and its refresh one row ahead of it; what no later half-sweep
// needs is overwritten. So a pixel is loaded once for all sweeps of a launch, or as often as strips need it for their halo: as
// many pixels as half-sweeps on each side that does not end at the edge of the level, of which every half-sweep leaves one
// fewer with known neighbours.
//
// Shared memory holds, in rings of rows: the increment, for all half-sweeps; the coefficients of each refresh, for those up to
// the next; and what a refresh reads (tensor, weight, Laplacian of the flow), up to the last one.
// Rows are sorted by colour, from `left` on.
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
  const int half = (right - left + 1) / 2, pitch = 2 * half;
  const Smoothness c = {along, across};
  tensor += (long long)blockIdx.z * CHANNELS * 6 * plane;
  flow += blockIdx.z * flow_stride;
  before += (long long)blockIdx.z * 2 * plane;
  increment += (long long)blockIdx.z * 2 * plane;

  // Refresh r comes before half-sweep refreshed(r); each has rows of coefficients for the half-sweeps up to the next.
  const auto refreshed = [&](int refresh) { return refresh == 0 ? 0 : 2 * (first + (refresh - 1) * lag); };
  const int rows = 2 * half_sweeps + 2, fixed_rows = 2 * refreshed(refreshes - 1) + 2, coefficient_rows = 4 * lag;
  float* du = (float*)shared_memory;  // (rows, pitch)
  float* dv = du + rows * pitch;
  float* coefficients = dv + rows * pitch;                                 // (refreshes, coefficient_rows, 5, pitch)
  float* fixed = coefficients + refreshes * coefficient_rows * 5 * pitch;  // (fixed_rows, FIXED, pitch)

  // Where the strip was cut out, a half-sweep has to stay one pixel further inside than the one before.
  const int cut_left = left > 0, cut_right = right < width, cut_top = top > 0, cut_bottom = bottom < height;
  const auto inside = [&](int x, int y, int margin) {
    return x >= left + cut_left * margin && x < right - cut_right * margin && y >= top + cut_top * margin &&
           y < bottom - cut_bottom * margin;
  };
  const auto wrapped = [](int row, int count) { return row < 0 ? row + count : row; };
  const auto next = [](int row, int count) { return row + 1 == count ? 0 : row + 1; };

  // At every step, the warps share out: runs of 32 columns to load, runs of 32 pixels of one colour to refresh and to relax,
  // runs of 32 columns to write. What the step is modulo each number of rows says where a row lies.
  const int lane = threadIdx.x, spans = (right - left + 31) / 32, runs = (half + 31) / 32;
  const int refreshing = spans, relaxing = refreshing + 2 * runs * refreshes, writing = relaxing + runs * half_sweeps;
  const Divisor per_refresh(2 * runs), per_colour(runs), per_lag(2 * lag);
  int step_row = 0, step_fixed = 0, step_first = 0, step_later = (coefficient_rows - 4 * first) % coefficient_rows;
  for (int step = 0; step <= bottom - top + 2 * half_sweeps; ++step) {
    for (int part = threadIdx.y; part < writing + spans; part += blockDim.y) {
      if (part < refreshing) {
        int x = left + 32 * part + lane, y = top + step;
        if (x >= right || y >= bottom) continue;
        Stencil<false> at(x, y, height, width);
        int sorted = sorted_column(x - left, y, half), here = step_row * pitch + sorted;
        du[here] = fresh ? 0.0f : before[at.here];
        dv[here] = fresh ? 0.0f : before[plane + at.here];
        float* out = fixed + step_fixed * FIXED * pitch + sorted;
        const float *j = tensor + at.here, *share = weight + at.here;
#pragma unroll
        for (int k = 0; k < 6 * CHANNELS; ++k, j += plane, out += pitch) *out = *j;
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k, share += plane, out += pitch) *out = *share;
        out[0] = laplacian<false, false>(flow, flow, at, c);
        out[pitch] = laplacian<false, false>(flow + plane, flow, at, c);
      } else if (part < relaxing) {
        int refresh = per_refresh.quotient(part - refreshing), run = part - refreshing - 2 * runs * refresh;
        int colour = run >= runs, i = 32 * (run - colour * runs) + lane, margin = refreshed(refresh);
        int y = top + step - 1 - 2 * margin, x = left + 2 * i + (y + colour) % 2;
        if (y < top || !inside(x, y, margin)) continue;
        int sorted = colour * half + i, here = wrapped(step_row - 1 - 2 * margin, rows) * pitch + sorted;
        int line = wrapped((refresh == 0 ? step_first : step_later) - 1, coefficient_rows) + refresh * coefficient_rows;
        const float* in = fixed + wrapped(step_fixed - 1 - 2 * margin, fixed_rows) * FIXED * pitch + sorted;
        Psi psi = refresh == 0 ? Psi{first_constant, first_factor, first_power} : Psi{constant, factor, power};
        Coefficients value = {0.0f, 0.0f, 0.0f, in[7 * CHANNELS * pitch], in[(7 * CHANNELS + 1) * pitch]};
        fold_data<CHANNELS, false>(in, in + 6 * CHANNELS * pitch, pitch, du[here], dv[here],
                                   2.0f * (c.along + c.across), omega, psi, value);
        store(value, coefficients + line * 5 * pitch + sorted, pitch);
      } else if (part < writing) {
        int half_sweep = per_colour.quotient(part - relaxing), i = 32 * (part - relaxing - runs * half_sweep) + lane;
        int y = top + step - 2 - 2 * half_sweep, colour = half_sweep % 2, parity = (y + colour) % 2;
        int x = left + 2 * i + parity;
        if (y < top || !inside(x, y, half_sweep + 1)) continue;
        int later = half_sweep - 2 * first, refresh = later < 0 ? 0 : 1 + per_lag.quotient(later);
        int line = (refresh == 0 ? step_first : step_later) - 2 - 2 * (half_sweep - refreshed(refresh));
        line = wrapped(line, coefficient_rows) + refresh * coefficient_rows;
        int row = wrapped(step_row - 2 - 2 * half_sweep, rows);
        Neighbours at = in_sorted_rows(row * pitch, y == 0 ? -1 : wrapped(row - 1, rows) * pitch,
                                       y == height - 1 ? -1 : next(row, rows) * pitch, half, colour, i, parity, x == 0,
                                       x == width - 1);
        const float* value = coefficients + line * 5 * pitch + colour * half + i;
        relax_pixel<false>(du, dv, load(value, pitch), du, at, c, omega);
      } else {
        int x = left + 32 * (part - writing) + lane, y = top + step - 1 - 2 * half_sweeps;
        if (x < first_x || x >= last_x || y < first_y || y >= last_y) continue;
        int here = wrapped(step_row - 1 - 2 * half_sweeps, rows) * pitch + sorted_column(x - left, y, half);
        increment[y * width + x] = du[here];
        increment[plane + y * width + x] = dv[here];
      }
    }
    __syncthreads();
    step_row = next(step_row, rows);
    step_fixed = next(step_fixed, fixed_rows);
    step_first = next(step_first, coefficient_rows);
    step_later = next(step_later, coefficient_rows);
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
