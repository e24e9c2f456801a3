#pragma once
// What the relaxations of a pyramid level share: psi, the smoothness over the edges of a pixel, the coefficients of a pixel
// and its update by the rule block.
//
// psi = constant + factor (x + 1e-5)^power. A missing neighbour at the edge is the pixel's own value before its update:
// indices are clamped.
#include "common.cuh"

struct Psi {
  float constant, factor, power;
};

// x^exponent for normal x > 0, relative error about 1e-6, by the arithmetic that the CPU uses: log2(1 + t) of the mantissa
// 1 + t in [sqrt(1/2), sqrt(2)) and 2^f, |f| <= 1/2, as minimax polynomials. 3 * 2^22 added to a small number leaves the
// nearest integer in its last bits, from where it goes to the exponent of the result.
__device__ __forceinline__ float power(float x, float exponent) {
  const int sqrt_half = 0x3F3504F3;
  const float round = 12582912.0f;
  int bits = __float_as_int(x) - sqrt_half;
  float t = __int_as_float((bits & 0x007FFFFF) + sqrt_half) - 1.0f;
  float series = fmaf(0.170634523f, t, -0.272698015f);
  series = fmaf(series, t, 0.297262609f);
  series = fmaf(series, t, -0.35896185f);
  series = fmaf(series, t, 0.480465025f);
  series = fmaf(series, t, -0.721375883f);
  series = fmaf(series, t, 1.44269967f);
  float log2 = fmaf(t, series, (float)(bits >> 23));
  float rounded = fmaf(exponent, log2, round), f = fmaf(exponent, log2, round - rounded);
  float fraction = fmaf(0.00132647273f, f, 0.00967151299f);
  fraction = fmaf(fraction, f, 0.0555073358f);
  fraction = fmaf(fraction, f, 0.240222424f);
  fraction = fmaf(fraction, f, 0.693147004f);
  fraction = fmaf(fraction, f, 1.0f);
  return __int_as_float(__float_as_int(fraction) + (__float_as_int(rounded) << 23));
}

__device__ __forceinline__ float robust_weight(float x, Psi psi) {
  return fmaf(psi.factor, power(x + 1e-5f, psi.power), psi.constant);
}

// The five pixels of the stencil, as offsets in a plane: before and after along the line that is relaxed in order (a column
// for sor, a row for block, where it only fixes the order of sums), left and right of it.
struct Neighbours {
  int here, before, after, left, right;
};

template <bool ORDERED>
struct Stencil : Neighbours {
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
  __device__ __forceinline__ Edges(const float* psi, const Neighbours& at, Smoothness c)
      : before(c.along * 0.5f * (psi[at.before] + psi[at.here])),
        after(c.along * 0.5f * (psi[at.here] + psi[at.after])),
        left(c.across * 0.5f * (psi[at.left] + psi[at.here])),
        right(c.across * 0.5f * (psi[at.here] + psi[at.right])) {}
};

// A pixel and its neighbours.
struct Values {
  float here, before, after, left, right;
};

template <bool ORDERED>
__device__ __forceinline__ Values values(const float* plane, const Stencil<ORDERED>& at) {
  return {plane[at.here], plane[at.before], plane[at.after], plane[at.left], plane[at.right]};
}

// Sum over the edges of a pixel of weight times difference, where the smoothness is quadratic; first and last on its line.
__device__ __forceinline__ float laplacian(const Values& of, bool first, bool last, Smoothness c) {
  float along = first  ? of.after - of.here
                : last ? of.before - of.here
                       : fmaf(-2.0f, of.here, of.before) + of.after;
  return fmaf(c.along, along, c.across * (fmaf(-2.0f, of.here, of.left) + of.right));
}

// The same in general.
template <bool ORDERED, bool ROBUST>
__device__ __forceinline__ float laplacian(const float* plane, const float* psi, const Stencil<ORDERED>& at,
                                           Smoothness c) {
  float here = plane[at.here];
  if (ROBUST) {
    Edges edge(psi, at, c);
    float along = fmaf(edge.after, plane[at.after] - here, edge.before * (plane[at.before] - here));
    return fmaf(edge.right, plane[at.right] - here, fmaf(edge.left, plane[at.left] - here, along));
  }
  return laplacian(values(plane, at), at.first, at.last, c);
}

// Data term of a pixel, summed over the channels, and right-hand sides of u and v.
struct System {
  float d11, d22, d12, bu, bv;
};

// Weight of one channel in the data term of a pixel: the channel's own times psi of the increment. The planes of the tensor
// lie `plane` apart.
__device__ __forceinline__ float data_weight(const float* j, float weight, long long plane, float du, float dv, Psi psi) {
  float j11 = j[0], j22 = j[plane], j33 = j[2 * plane], j12 = j[3 * plane], j13 = j[4 * plane], j23 = j[5 * plane];
  float mixed = fmaf(j12, dv, j13);
  float energy = fmaf(du, fmaf(j11, du, mixed + mixed), fmaf(dv, fmaf(j22, dv, j23 + j23), j33));
  // the resampling of a weight map overshoots below 0 at the edge of a mask, which would make the system indefinite
  return robust_weight(fmaxf(energy, 0.0f), psi) * fmaxf(weight, 0.0f);
}

// Adds the data term of one channel.
__device__ __forceinline__ void add_channel(const float* j, float factor, long long plane, System& sum) {
  float j11 = j[0], j22 = j[plane], j12 = j[3 * plane], j13 = j[4 * plane], j23 = j[5 * plane];
  sum.d11 = fmaf(factor, j11, sum.d11);
  sum.d22 = fmaf(factor, j22, sum.d22);
  sum.d12 = fmaf(factor, j12, sum.d12);
  sum.bu = fmaf(-factor, j13, sum.bu);
  sum.bv = fmaf(-factor, j23, sum.bv);
}

// Adds the data term of one pixel, with psi of its increment.
template <int CHANNELS>
__device__ __forceinline__ void add_data(const float* tensor, const float* weight, long long plane, float du, float dv,
                                         Psi psi, System& sum) {
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel) {
    const float* j = tensor + 6 * channel * plane;
    add_channel(j, data_weight(j, weight[channel * plane], plane, du, dv, psi), plane, sum);
  }
}

// What the sweeps need of a pixel. block: the inverse of its 2x2 system times omega (11, 12, 22), right-hand sides of u and
// v. sor: omega over the diagonal of u, the same of v, the coupling, right-hand sides of u and v.
struct Coefficients {
  float k0, k1, k2, bu, bv;
};

// Coefficients of the rule block; `diagonal` is the sum of the weights of the pixel's edges.
__device__ __forceinline__ Coefficients invert(const System& sum, float diagonal, float omega) {
  // the data part alone may have rank 1: its determinant is kept apart and from going below 0
  float data = fmaf(sum.d11, sum.d22, -(sum.d12 * sum.d12));
  float first = diagonal + sum.d11, second = diagonal + sum.d22;
  float scale = omega / fmaf(diagonal, first + sum.d22, fmaxf(data, 0.0f));
  return {scale * second, -scale * sum.d12, scale * first, sum.bu, sum.bv};
}

template <int CHANNELS, bool ORDERED, bool ROBUST>
__device__ __forceinline__ Coefficients fold(const float* tensor, const float* weight, const float* flow,
                                             const float* psi_smooth, const Stencil<ORDERED>& at, long long plane, float du,
                                             float dv, Smoothness c, float omega, Psi psi) {
  float diagonal = 2.0f * (c.along + c.across);
  if (ROBUST) {
    Edges edge(psi_smooth, at, c);
    diagonal = edge.before + edge.after + edge.left + edge.right;
  }
  System sum = {0.0f, 0.0f, 0.0f, laplacian<ORDERED, ROBUST>(flow, psi_smooth, at, c),
                laplacian<ORDERED, ROBUST>(flow + plane, psi_smooth, at, c)};
  add_data<CHANNELS>(tensor + at.here, weight + at.here, plane, du, dv, psi, sum);
  if (!ORDERED) return invert(sum, diagonal, omega);
  return {omega / (diagonal + sum.d11), omega / (diagonal + sum.d22), sum.d12, sum.bu, sum.bv};
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
  float u_part = fmaf(u_across, u_across, u_along * u_along);
  return robust_weight(fmaf(v_across, v_across, fmaf(v_along, v_along, u_part)), psi);
}

// Right-hand side of a pixel and the weighted sum of its neighbours, where the smoothness is quadratic.
__device__ __forceinline__ float weighted_sum(float before, float after, float left, float right, Smoothness c,
                                              float right_side) {
  return fmaf(c.along, before + after, fmaf(c.across, left + right, right_side));
}

__device__ __forceinline__ float weighted_sum(const float* now, const Neighbours& at, Smoothness c, float right_side) {
  return weighted_sum(now[at.before], now[at.after], now[at.left], now[at.right], c, right_side);
}

// u and v of one pixel by the rule block, from the right-hand sides.
__device__ __forceinline__ void update(float keep, const Coefficients& value, float su, float sv, float& u, float& v) {
  u = fmaf(value.k0, su, fmaf(value.k1, sv, keep * u));
  v = fmaf(value.k1, su, fmaf(value.k2, sv, keep * v));
}

// The same from the neighbours'.
template <bool ROBUST>
__device__ __forceinline__ void relax_pixel(float* du, float* dv, const Coefficients& value, const float* psi_smooth,
                                            const Neighbours& at, Smoothness c, float omega) {
  float su, sv;
  if (ROBUST) {
    Edges edge(psi_smooth, at, c);
    auto sum = [&](const float* now, float right_side) {
      float along = fmaf(edge.after, now[at.after], fmaf(edge.before, now[at.before], right_side));
      return fmaf(edge.right, now[at.right], fmaf(edge.left, now[at.left], along));
    };
    su = sum(du, value.bu);
    sv = sum(dv, value.bv);
  } else {
    su = weighted_sum(du, at, c, value.bu);
    sv = weighted_sum(dv, at, c, value.bv);
  }
  update(1.0f - omega, value, su, sv, du[at.here], dv[at.here]);
}
