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
#include "strips.cuh"

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

// Launch: blockIdx.z = frame; thread (i, y): the pixel of one colour, (x + y) % 2 == colour, x = 2i or 2i + 1. Neighbours
// have the other colour, so the update is in place.
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

// Launch: blockIdx = strip of columns, section of rows, and frame. The first `first` sweeps of the rule block and `more`
// after them, with quadratic smoothness and a refresh of psi_data before sweep 0 and before every `lag`th sweep after the
// first ones, as the plan says. Rows flow through shared memory: at step t the block loads row t, half-sweep k follows at
// row t - 2 - 2k, so that all half-sweeps of a step are independent, and its refresh one row ahead of it; what no later
// half-sweep needs is overwritten. So a pixel is loaded once for all sweeps of a launch, or as often as strips need it for
// their halo: as many pixels as half-sweeps on each side that does not end at the edge of the level, of which every
// half-sweep spoils one more.
//
// Shared memory holds, in rings of rows sorted by colour: the increment, for all half-sweeps; the coefficients of each
// refresh, for those up to the next; and what a refresh reads (tensor, weight, Laplacian of the flow), up to the last one.
//
// Every thread has one role from the first step to the last (strips.cuh): to relax four pixels of a colour in one
// half-sweep, to refresh four pixels, or to load one or two columns and to write their result. The block has as many
// threads as that takes.
template <int CHANNELS>
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    relax_strips(const float* __restrict__ tensor,  // (frames, CHANNELS, 6, height, width)
                 const float* __restrict__ weight,  // (CHANNELS, height, width)
                 const float* __restrict__ flow,    // (frames or 1, 2, height, width)
                 const float* __restrict__ before,  // (frames, 2, height, width), the increment so far, unless is_first
                 const StripPlan plan,
                 float* __restrict__ increment) {  // (frames, 2, height, width)
  constexpr int FIXED = FIXED_FLOATS<CHANNELS>, COLUMNS = LOADED_COLUMNS<CHANNELS>;
  const int height = plan.height, width = plan.width, plane = height * width, pitch = plan.pitch;
  const int half_sweeps = plan.half_sweeps, first = plan.first, lag = plan.lag;
  const int first_x = blockIdx.x * plan.strip_width, last_x = min(first_x + plan.strip_width, width);
  const int first_y = blockIdx.y * plan.strip_height, last_y = min(first_y + plan.strip_height, height);
  const int left = max(first_x - half_sweeps, 0), right = min(last_x + half_sweeps, width);  // left and top are even
  const int top = max(first_y - half_sweeps, 0), bottom = min(last_y + half_sweeps, height);
  const int quads = pitch / 8;  // of a colour
  const Strip strip = {bottom - top, right - left, pitch, bottom - top + 2 * half_sweeps + 1};
  const Smoothness c = plan.smoothness;

  // The rings. Refresh r comes before half-sweep refreshed(r); its coefficients take two rows for each of its half-sweeps.
  const auto refreshed = [&](int refresh) {
    return refresh == 0 ? 0 : min(2 * (first + (refresh - 1) * lag), half_sweeps);
  };
  float* increments = (float*)shared_memory;
  float* fixed = increments + plan.increment_rows * 2 * pitch;
  float* coefficients = fixed + plan.fixed_rows * FIXED * pitch;
  const auto increments_at = [&](int sorted) { return Place(increments + sorted, 2 * pitch, plan.increment_rows); };
  const auto fixed_at = [&](int sorted) { return Place(fixed + sorted, FIXED * pitch, plan.fixed_rows); };
  const auto coefficients_at = [&](int refresh, int sorted) {
    int first_row = 2 * refreshed(refresh), rows = 2 * refreshed(refresh + 1) - first_row;
    return Place(coefficients + first_row * 5 * pitch + sorted, 5 * pitch, rows);
  };

  // The roles. A warp has one, and those that relax one colour: all their pixels of a step have one parity.
  const int per_colour = plan.colour_threads, refreshing = 2 * per_colour, loading = plan.first_loading;
  const int thread = threadIdx.x, first_of_warp = 32 * warp_number();
  if (first_of_warp < refreshing) {
    int colour = thread / per_colour, item = thread - colour * per_colour;
    int half_sweep = 2 * (item / quads) + colour, i = 4 * (item % quads);
    int refresh = half_sweep < 2 * first ? 0 : 1 + (half_sweep - 2 * first) / (2 * lag);
    int behind = half_sweep < half_sweeps ? 2 + 2 * half_sweep : strip.steps + 1;
    int sorted = colour * pitch / 2 + i;
    relax_rows(strip, behind, colour, i, increments_at(sorted), coefficients_at(refresh, sorted), c, 1.0f - plan.omega);
  } else if (first_of_warp < loading) {
    int item = thread - refreshing, refresh = item / (2 * quads), sorted = 4 * (item % (2 * quads));
    int behind = refresh < plan.refreshes ? 1 + 2 * refreshed(refresh) : strip.steps;
    const Psi psi = refresh == 0 ? plan.first_psi : plan.psi;
    refresh_rows<CHANNELS>(strip, behind, fixed_at(sorted), increments_at(sorted), coefficients_at(refresh, sorted), c,
                           plan.omega, psi);
  } else {
    const int column = COLUMNS * (thread - loading - thread % 32) + thread % 32, x = left + column;
    const long long frame = (long long)blockIdx.z * plane, at = (long long)top * width + x;
    Columns<CHANNELS, COLUMNS> columns;
    columns.tensor = tensor + 6 * CHANNELS * frame + at;
    columns.weight = weight + at;
    columns.flow = flow + blockIdx.z * plan.flow_stride + at;
    columns.before = before + 2 * frame + at;
    columns.result = increment + 2 * frame + at + (long long)(first_y - top) * width;
    columns.plane = plane;
    columns.width = width;
    columns.is_first_launch = plan.is_first;
    columns.is_first = column == 0;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
      columns.is_last[i] = x + 32 * i == right - 1;
      columns.is_loaded[i] = x + 32 * i < right;
      columns.is_written[i] = x + 32 * i >= first_x && x + 32 * i < last_x;
    }
    load_and_write_rows(strip, columns, column, increments_at(0), fixed_at(0), 1 + 2 * half_sweeps, first_y - top,
                        last_y - top, c);
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
__global__ void __launch_bounds__(GROUP_THREADS, 1)
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
