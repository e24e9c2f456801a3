#pragma once
// Rows of a level in shared memory, sorted by colour, and their relaxation by the rule block.
//
// Pixel i of a colour is column 2 i + parity, parity = (y + colour) % 2; the `half` pixels of colour 0 come first. The
// neighbours above and below are pixel i of the other colour, those beside it pixels i - 1 + parity and i + parity. `half`
// is even, so that pixels i and i + 1 are read and written at once where i is. What lies behind the last pixel of a row is
// computed like a pixel, and never used.
#include "relaxation.cuh"

struct __align__(8) Pair {
  float first, second;
};

__device__ __forceinline__ Pair& pair_at(float* line, int index) { return *(Pair*)(line + index); }
__device__ __forceinline__ Pair pair_at(const float* line, int index) { return *(const Pair*)(line + index); }

// Half of the pixels of a row of so many columns.
__host__ __device__ __forceinline__ constexpr int half_of(int columns) { return (columns + 3) / 4 * 2; }

__device__ __forceinline__ int sorted_column(int x, int y, int half) { return ((x + y) & 1) * half + x / 2; }

// Pixels i and i + 1 of a colour by the rule block, with quadratic smoothness. `row`, `above` and `below` are where these
// rows begin in du and dv, below 0 where there is none; the coefficients lie `stride` apart. `x` is the column of pixel i
// in the level, of which column 0 and column `last` have no neighbour beyond.
__device__ __forceinline__ void relax_pair(float* du, float* dv, const float* coefficients, int stride, int row,
                                           int above, int below, int half, int colour, int i, int parity, int x, int last,
                                           Smoothness c, float omega) {
  const int own = row + colour * half + i, other = half - colour * half + i;
  const int third = row + other - i + clamped(i + (parity == 0 ? -1 : 2), half);
  const auto sum = [&](const float* now, Pair here, Pair right_side) {
    const Pair up = above < 0 ? here : pair_at(now, above + other), down = below < 0 ? here : pair_at(now, below + other);
    const Pair beside = pair_at(now, row + other);
    const float outside = now[third];
    float before = parity == 0 ? outside : beside.first, between = parity == 0 ? beside.first : beside.second;
    float after = parity == 0 ? beside.second : outside;
    return Pair{fmaf(c.along, (x == 0 ? here.first : before) + (x == last ? here.first : between),
                     fmaf(c.across, up.first + down.first, right_side.first)),
                fmaf(c.along, between + (x + 2 == last ? here.second : after),
                     fmaf(c.across, up.second + down.second, right_side.second))};
  };
  Pair u = pair_at(du, own), v = pair_at(dv, own);
  const Pair su = sum(du, u, pair_at(coefficients, 3 * stride)), sv = sum(dv, v, pair_at(coefficients, 4 * stride));
  const Pair k0 = pair_at(coefficients, 0), k1 = pair_at(coefficients, stride), k2 = pair_at(coefficients, 2 * stride);
  const float keep = 1.0f - omega;
  update(keep, {k0.first, k1.first, k2.first}, su.first, sv.first, u.first, v.first);
  update(keep, {k0.second, k1.second, k2.second}, su.second, sv.second, u.second, v.second);
  pair_at(du, own) = u;
  pair_at(dv, own) = v;
}
