// Motion tensors of the three data terms: J11, J22, J33, J12, J13, J23 of every pixel and channel.
//
// The squared, normalised residual of an increment (du, dv) is J11 du^2 + J22 dv^2 + 2 J12 du dv + 2 J13 du + 2 J23 dv
// + J33 (Bruhn, Weickert, Schnoerr 2005). Spatial derivatives are those of the mean of the two frames, temporal ones
// their difference. Images have a replicated border.
//
// Launch: blockIdx.z = frame * channels + channel; thread (x, y): one pixel of that plane, all six outputs.
#include "common.cuh"

// Pixels around (x, y), border replicated.
struct Neighbours {
  int left, right;                  // columns
  long long above, here, below;     // offsets of rows
  __device__ __forceinline__ Neighbours(int x, int y, int height, int width)
      : left(clamped(x - 1, width)),
        right(clamped(x + 1, width)),
        above((long long)clamped(y - 1, height) * width),
        here((long long)y * width),
        below((long long)clamped(y + 1, height) * width) {}
};

__device__ __forceinline__ void add_products(float* j, float share, float fx, float fy, float ft) {
  j[0] += share * fx * fx;
  j[1] += share * fy * fy;
  j[2] += share * ft * ft;
  j[3] += share * fx * fy;
  j[4] += share * fx * ft;
  j[5] += share * fy * ft;
}

__device__ __forceinline__ void store(const float* j, float* out, long long pixel, long long plane) {
#pragma unroll
  for (int k = 0; k < 6; ++k) out[k * plane + pixel] = j[k];
}

// Constancy of the gradient, each component normalised by its own gradient (Zimmer, Bruhn, Weickert 2011).
__global__ void gradient_constancy(const float* __restrict__ reference,  // (frames or 1, channels, height, width)
                                   const float* __restrict__ moving,     // (frames, channels, height, width)
                                   int channels, int height, int width, long long reference_stride,
                                   float cx, float cy, float cxx, float cyy, float cxy,
                                   float* __restrict__ out) {  // (frames, channels, 6, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width;
  int frame = blockIdx.z / channels, channel = blockIdx.z % channels;
  const float* a = reference + frame * reference_stride + channel * plane;
  const float* b = moving + blockIdx.z * plane;

  // 1. mean and change of the two frames where they are needed
  Neighbours at(x, y, height, width);
  auto mean = [&](long long row, int column) { return 0.5f * (a[row + column] + b[row + column]); };
  auto change = [&](long long row, int column) { return b[row + column] - a[row + column]; };
  float centre = mean(at.here, x);

  // 2. derivatives
  float fxx = cxx * (mean(at.here, at.left) - 2.0f * centre + mean(at.here, at.right));
  float fyy = cyy * (mean(at.above, x) - 2.0f * centre + mean(at.below, x));
  float fxy = cxy * ((mean(at.below, at.right) - mean(at.below, at.left)) -
                     (mean(at.above, at.right) - mean(at.above, at.left)));
  float fxt = cx * (change(at.here, at.right) - change(at.here, at.left));
  float fyt = cy * (change(at.below, x) - change(at.above, x));

  // 3. normalised products; 1e-6 keeps them finite where the image is flat
  float rx = 1.0f / (fxx * fxx + fxy * fxy + 1e-6f);
  float ry = 1.0f / (fxy * fxy + fyy * fyy + 1e-6f);
  float j[6] = {};
  add_products(j, rx, fxx, fxy, fxt);
  add_products(j, ry, fxy, fyy, fyt);
  store(j, out + 6 * plane * blockIdx.z, at.here + x, plane);
}

// Constancy of the brightness (Horn and Schunck 1981).
__global__ void brightness_constancy(const float* __restrict__ reference,  // (frames or 1, channels, height, width)
                                     const float* __restrict__ moving,     // (frames, channels, height, width)
                                     int channels, int height, int width, long long reference_stride,
                                     float cx, float cy,
                                     float* __restrict__ out) {  // (frames, channels, 6, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width;
  int frame = blockIdx.z / channels, channel = blockIdx.z % channels;
  const float* a = reference + frame * reference_stride + channel * plane;
  const float* b = moving + blockIdx.z * plane;

  Neighbours at(x, y, height, width);
  auto along_x = [&](const float* image) { return image[at.here + at.right] - image[at.here + at.left]; };
  auto along_y = [&](const float* image) { return image[at.below + x] - image[at.above + x]; };
  float j[6] = {};
  add_products(j, 1.0f, cx * 0.5f * (along_x(a) + along_x(b)), cy * 0.5f * (along_y(a) + along_y(b)),
               b[at.here + x] - a[at.here + x]);
  store(j, out + 6 * plane * blockIdx.z, at.here + x, plane);
}

// Constancy of the smoothed census signature (Hafner, Demetz, Weickert 2013), for each of the 8 neighbours
//   s = (1 + r / sqrt(r^2 + eps^2)) / 2,  r = (neighbour - centre) / distance,  eps = 0.1 / 255,
// whose gray tensors are added with the share 2 / 8. `reciprocal` is 1 / distance for a step along x, along y, and both.
__global__ void census_constancy(const float* __restrict__ reference,  // (frames or 1, channels, height, width)
                                 const float* __restrict__ moving,     // (frames, channels, height, width)
                                 int channels, int height, int width, long long reference_stride,
                                 float cx, float cy, float reciprocal_x, float reciprocal_y, float reciprocal_xy,
                                 float* __restrict__ out) {  // (frames, channels, 6, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const float eps2 = (0.1f / 255.0f) * (0.1f / 255.0f);
  const long long plane = (long long)height * width;
  int frame = blockIdx.z / channels, channel = blockIdx.z % channels;
  const float* a = reference + frame * reference_stride + channel * plane;
  const float* b = moving + blockIdx.z * plane;

  int left = clamped(x - 1, width), right = clamped(x + 1, width);
  int above = clamped(y - 1, height), below = clamped(y + 1, height);
  float j[6] = {};
  for (int dy = -1; dy <= 1; ++dy) {
    for (int dx = -1; dx <= 1; ++dx) {
      if (dx == 0 && dy == 0) continue;
      float reciprocal = dx == 0 ? reciprocal_y : (dy == 0 ? reciprocal_x : reciprocal_xy);
      auto signature = [&](const float* image, int row, int column) {
        float neighbour = image[(long long)clamped(row + dy, height) * width + clamped(column + dx, width)];
        float r = (neighbour - image[(long long)row * width + column]) * reciprocal;
        return 0.5f * (1.0f + r / sqrtf(r * r + eps2));
      };
      auto along_x = [&](const float* image) { return signature(image, y, right) - signature(image, y, left); };
      auto along_y = [&](const float* image) { return signature(image, below, x) - signature(image, above, x); };
      add_products(j, 0.25f, cx * 0.5f * (along_x(a) + along_x(b)), cy * 0.5f * (along_y(a) + along_y(b)),
                   signature(b, y, x) - signature(a, y, x));
    }
  }
  store(j, out + 6 * plane * blockIdx.z, (long long)y * width + x, plane);
}
