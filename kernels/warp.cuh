#pragma once
// Where a warped pixel comes from, and its interpolation: cubic (4 taps), linear (2) or nearest (1).
//
// A target outside the image (x < 0, x >= W, y < 0 or y >= H) is taken from the reference. Inside, coordinates are clamped
// to [0, W - 1] x [0, H - 1] and the interpolation kernel sees replicated borders. Cubic convolution (Keys 1981) with
// a = -0.75, at exact sub-pixel positions.
//
//        0         W-1   W
//   ref  |  image   | clamped to W-1 |  ref
#include "common.cuh"

// Where a pixel is taken from: first column and row of the taps, which may lie outside, and their weights.
template <int TAPS>
struct Target {
  int column, row;
  float weight_x[TAPS], weight_y[TAPS];
};

// The first tap's index; weights of all.
template <int TAPS>
__device__ __forceinline__ int place_taps(float position, float* weight) {
  if (TAPS == 1) {
    weight[0] = 1.0f;
    return (int)rintf(position);
  }
  int first = (int)position;
  float t = position - (float)first;
  if (TAPS == 2) {
    weight[0] = 1.0f - t;
    weight[TAPS - 1] = t;
    return first;
  }
  const float a = -0.75f;
  float s = 1.0f - t, far = t + 1.0f;
  weight[0] = ((a * far - 5.0f * a) * far + 8.0f * a) * far - 4.0f * a;
  weight[1 % TAPS] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
  weight[2 % TAPS] = ((a + 2.0f) * s - (a + 3.0f)) * s * s + 1.0f;
  weight[3 % TAPS] = 1.0f - weight[0] - weight[1 % TAPS] - weight[2 % TAPS];
  return first - 1;
}

// Whether a target lies inside; NaN does not.
__device__ __forceinline__ bool lies_inside(float x, float y, int height, int width) {
  return x >= 0.0f && x < (float)width && y >= 0.0f && y < (float)height;
}

// False where the target lies outside.
template <int TAPS>
__device__ __forceinline__ bool find_target(float x, float y, int height, int width, Target<TAPS>& target) {
  if (!lies_inside(x, y, height, width)) return false;
  target.column = place_taps<TAPS>(fminf(x, (float)(width - 1)), target.weight_x);
  target.row = place_taps<TAPS>(fminf(y, (float)(height - 1)), target.weight_y);
  return true;
}

// Interpolated value of an image whose neighbouring pixels lie `step` elements apart.
template <typename Real, int TAPS, typename T>
__device__ __forceinline__ Real interpolate(const T* image, const Target<TAPS>& target, int height, int width, int step) {
  T values[TAPS][TAPS];
  if (target.column >= 0 && target.column <= width - TAPS && target.row >= 0 && target.row <= height - TAPS) {
    const T* row = image + ((long long)target.row * width + target.column) * step;
#pragma unroll
    for (int k = 0; k < TAPS; ++k, row += width * step) {
#pragma unroll
      for (int l = 0; l < TAPS; ++l) values[k][l] = row[l * step];
    }
  } else {
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
      const T* row = image + (long long)clamped(target.row + k, height) * width * step;
#pragma unroll
      for (int l = 0; l < TAPS; ++l) values[k][l] = row[clamped(target.column + l, width) * step];
    }
  }
  Real sum = 0;
#pragma unroll
  for (int k = 0; k < TAPS; ++k) {
    Real line = 0;
#pragma unroll
    for (int l = 0; l < TAPS; ++l) line += target.weight_x[l] * (Real)values[k][l];
    sum += target.weight_y[k] * line;
  }
  return sum;
}
