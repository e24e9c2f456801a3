#pragma once
// What the threads of relax_strips do: rows of a strip flow through shared memory while many sweeps of the rule block pass
// over them. Each thread has one role, and takes row after row, each `behind` steps after it came.
//
// Shared memory holds rings of rows sorted by colour. Row y lies at y modulo the rows of its ring, so that every thread
// begins at the first and goes on by one at a step; what is known of a pixel lies `pitch` apart. Rows and columns are
// counted from the strip's first ones, where colour 0 begins. The ends of a strip are treated as if they were the level's:
// where they are not, this spoils no more than the halo.
#include "sorted_rows.cuh"

// What the host plans for a launch of relax_strips, filled by name in flowreg_gpu/cuda/solver.py.
struct StripPlan {
  int height, width;               // of the level
  int strip_height, strip_width;   // without halo, even
  int pitch;                       // floats of a row, a multiple of 8
  int is_first;                    // whether this is the first launch, which begins without an increment
  int first, more, lag;            // sweeps before the second refresh of psi, after it, and from refresh to refresh
  int half_sweeps, refreshes;      // of all these sweeps
  int increment_rows, fixed_rows;  // of the rings
  int colour_threads;              // threads that relax one colour: the first ones colour 0, the next ones colour 1
  int first_loading;               // number of the first thread that loads; those that refresh come before it
  float omega;
  long long flow_stride;
  Smoothness smoothness;
  Psi first_psi, psi;  // before sweep 0, and from then on
};

// Of a pixel with so many channels: floats that a refresh reads (tensor and weight of each channel, Laplacian of the flow);
// and columns that a thread loads, since more would not fit its registers.
template <int CHANNELS>
constexpr int FIXED_FLOATS = 7 * CHANNELS + 2;
template <int CHANNELS>
constexpr int LOADED_COLUMNS = CHANNELS <= 2 ? 2 : 1;

// Four pixels of one colour, read and written at once.
struct __align__(16) Quad {
  float at[4];
};

__device__ __forceinline__ Quad& quad_at(float* line) { return *(Quad*)line; }
__device__ __forceinline__ const Quad& quad_at(const float* line) { return *(const Quad*)line; }

// A place in a ring of rows, that goes on with them.
struct Place {
  float* now;
  const float* end;
  int row, ring;  // floats
  __device__ __forceinline__ Place(float* first, int row, int rows)
      : now(first), end(first + row * rows), row(row), ring(row * rows) {}
  __device__ __forceinline__ void advance() {
    now += row;
    if (now == end) now -= ring;
  }
};

// Barrier to which the threads of a block may come from different places in the text, as PTX's `barrier` allows them to.
__device__ __forceinline__ void meet() {
#ifdef __CUDA_ARCH__
  asm volatile("barrier.sync 0;" ::: "memory");
#else
  __syncthreads();
#endif
}

// A strip with its halo. All threads meet after every step, each in the loop of its own role.
struct Strip {
  int rows, columns, pitch, steps;

  template <typename Action>
  __device__ __forceinline__ void for_steps(Action action) const {
    for (int step = 0; step < steps; ++step) {
      action(step);
      meet();
    }
  }
};

// Relaxes the quad `own` of one row. Its neighbours have the other colour: of those above, beside and below it (u, v) the
// last alone are read, as they lie beside the next row's quad and above the quad of the row after. The outer neighbour
// beside it is at `third`.
template <int PARITY>
__device__ __forceinline__ void relax_quad(float* own, const float* below, const float* coefficients, int third, int pitch,
                                           Quad (&above)[2], Quad (&beside)[2], Smoothness c, float keep) {
  Quad here[2], around[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    here[k] = quad_at(own + k * pitch);
    const Quad next = quad_at(below + k * pitch);
    const Quad right_side = quad_at(coefficients + (3 + k) * pitch);
    const float outside = own[k * pitch + third];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float before = PARITY == 1 ? beside[k].at[i] : i == 0 ? outside : beside[k].at[i - 1];
      float after = PARITY == 0 ? beside[k].at[i] : i == 3 ? outside : beside[k].at[i + 1];
      around[k].at[i] = weighted_sum(before, after, above[k].at[i], next.at[i], c, right_side.at[i]);
    }
    above[k] = beside[k];
    beside[k] = next;
  }
  const Quad k0 = quad_at(coefficients), k1 = quad_at(coefficients + pitch), k2 = quad_at(coefficients + 2 * pitch);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    update(keep, {k0.at[i], k1.at[i], k2.at[i]}, around[0].at[i], around[1].at[i], here[0].at[i], here[1].at[i]);
  }
  quad_at(own) = here[0];
  quad_at(own + pitch) = here[1];
}

// One half-sweep of pixels i to i + 3 of a colour. A missing neighbour is the pixel itself.
__device__ __forceinline__ void relax_rows(const Strip& strip, int behind, int colour, int i, Place below,
                                           Place coefficients, Smoothness c, float keep) {
  const int pitch = strip.pitch, other = colour == 0 ? pitch / 2 : -pitch / 2;
  const int before = i == 0 ? 0 : other - 1, after = i + 4 >= (strip.columns + 1) / 2 ? 3 : other + 4;
  // Behind the last pixel of a row, where that has this colour, its own value is put before it is read. A refresh may read
  // it at the same step: what it makes of it is never used.
  const int last = (strip.columns - 1) / 2 - i, behind_last = strip.columns / 2 - i;
  const bool has_last = last >= 0 && behind_last < 4;
  float* own = below.now;
  Quad above[2], beside[2];
  strip.for_steps([&](int step) {
    const int y = step - behind;
    if (y < -1 || y >= strip.rows) return;
    const int parity = (y + colour) & 1;
    float* next = below.now;
    if (has_last && parity == strip.columns % 2) {
      next[other + behind_last] = next[last];
      next[pitch + other + behind_last] = next[pitch + last];
    }
    if (y < 0) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        above[k] = quad_at(next + k * pitch);
        beside[k] = quad_at(next + k * pitch + other);
      }
    } else {
      const float* lower = y == strip.rows - 1 ? own : next + other;
      if (parity == 0) {
        relax_quad<0>(own, lower, coefficients.now, before, pitch, above, beside, c, keep);
      } else {
        relax_quad<1>(own, lower, coefficients.now, after, pitch, above, beside, c, keep);
      }
      coefficients.advance();
    }
    own = next;
    below.advance();
  });
}

// Coefficients of four pixels, with psi of their increment.
template <int CHANNELS>
__device__ __forceinline__ void refresh_rows(const Strip& strip, int behind, Place fixed, Place increment,
                                             Place coefficients, Smoothness c, float omega, Psi psi) {
  const int pitch = strip.pitch;
  strip.for_steps([&](int step) {
    if (step < behind || step >= behind + strip.rows) return;
    const Quad du = quad_at(increment.now), dv = quad_at(increment.now + pitch);
    const Quad bu = quad_at(fixed.now + 7 * CHANNELS * pitch), bv = quad_at(fixed.now + (7 * CHANNELS + 1) * pitch);
    System sum[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = {0.0f, 0.0f, 0.0f, bu.at[i], bv.at[i]};
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel) {
      Quad in[7];
#pragma unroll
      for (int k = 0; k < 7; ++k) in[k] = quad_at(fixed.now + (7 * channel + k) * pitch);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float values[7] = {in[0].at[i], in[1].at[i], in[2].at[i], in[3].at[i], in[4].at[i], in[5].at[i], in[6].at[i]};
        add_data<1>(values, values + 6, 1, du.at[i], dv.at[i], psi, sum[i]);
      }
    }
    Quad out[5];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Coefficients value = invert(sum[i], 2.0f * (c.along + c.across), omega);
      out[0].at[i] = value.k0;
      out[1].at[i] = value.k1;
      out[2].at[i] = value.k2;
      out[3].at[i] = value.bu;
      out[4].at[i] = value.bv;
    }
#pragma unroll
    for (int k = 0; k < 5; ++k) quad_at(coefficients.now + k * pitch) = out[k];
    fixed.advance();
    increment.advance();
    coefficients.advance();
  });
}

// What is loaded of a pixel: what a refresh reads of it, its increment, and the flow there and around it.
template <int CHANNELS>
struct Pixel {
  float fixed[7 * CHANNELS], increment[2];
  Values flow[2];
};

// Loads one row of one or two columns, which are 32 apart, a step before it is stored; writes the result.
template <int CHANNELS, int COLUMNS>
struct Columns {
  const float *tensor, *weight, *flow, *before;  // at the first column, in the row that is loaded next
  float* result;                                 // there, in the row that is written next
  int plane, width, is_first_launch;
  bool is_first, is_last[COLUMNS], is_loaded[COLUMNS], is_written[COLUMNS];
  Pixel<CHANNELS> pixel[COLUMNS];

  // One row further on. A missing neighbour is the pixel itself; behind the last column it is not asked for.
  __device__ __forceinline__ void load(bool is_top, bool is_bottom) {
    if (!is_loaded[0]) return;
    const auto read = [&](const float* from, int i) { return i == 0 || is_loaded[i] ? from[32 * i] : 0.0f; };
    const float *j = tensor, *channel_weight = weight;
#pragma unroll
    for (int k = 0; k < 7 * CHANNELS; ++k) {
      const float*& from = k % 7 < 6 ? j : channel_weight;
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i) pixel[i].fixed[k] = read(from, i);
      from += plane;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float *row = flow + k * plane, *below = is_bottom ? row : row + width;
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i) {
        pixel[i].increment[k] = is_first_launch ? 0.0f : read(before + k * plane, i);
        const Values old = pixel[i].flow[k];
        const float here = is_top ? read(row, i) : old.right;
        pixel[i].flow[k] = {here, i == 0 && is_first ? here : read(row - 1, i), is_last[i] ? 0.0f : read(row + 1, i),
                            is_top ? here : old.here, read(below, i)};
      }
    }
    tensor += width;
    weight += width;
    flow += width;
    before += width;
  }

  __device__ __forceinline__ void store(float* increments, float* fixed, int pitch, Smoothness c) const {
    if (!is_loaded[0]) return;
    const auto put = [&](float* to, int i, float value) {
      if (i == 0 || is_loaded[i]) to[16 * i] = value;
    };
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
#pragma unroll
      for (int k = 0; k < 7 * CHANNELS; ++k) put(fixed + k * pitch, i, pixel[i].fixed[k]);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        put(increments + k * pitch, i, pixel[i].increment[k]);
        // the first column is like the others: before - 2 here is exact where before is here
        put(fixed + (7 * CHANNELS + k) * pitch, i, laplacian(pixel[i].flow[k], false, is_last[i], c));
      }
    }
  }

  __device__ __forceinline__ void write(const float* increments, int pitch) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
      if (!is_written[i]) continue;
      result[32 * i] = increments[16 * i];
      result[plane + 32 * i] = increments[pitch + 16 * i];
    }
    result += width;
  }
};

// Loads rows of columns, and writes those of [first, last), which are done `behind` steps after they came.
template <int CHANNELS, int COLUMNS>
__device__ __forceinline__ void load_and_write_rows(const Strip& strip, Columns<CHANNELS, COLUMNS>& columns, int column,
                                                    Place increment, Place fixed, int behind, int first, int last,
                                                    Smoothness c) {
  const int half = strip.pitch / 2;
  Place result = increment;
  columns.load(true, strip.rows == 1);
  strip.for_steps([&](int step) {
    if (step < strip.rows) {
      const int sorted = sorted_column(column, step, half);
      columns.store(increment.now + sorted, fixed.now + sorted, strip.pitch, c);
      increment.advance();
      fixed.advance();
      if (step + 1 < strip.rows) columns.load(false, step + 2 == strip.rows);
    }
    const int y = step - behind;
    if (y < 0) return;
    if (y >= first && y < last) columns.write(result.now + sorted_column(column, y, half), strip.pitch);
    result.advance();
  });
}
