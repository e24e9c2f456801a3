// Backward warp: registered(y, x) = image(y + v, x + u), cubic (4 taps), linear (2) or nearest (1).
//
// A target outside the image (x < 0, x >= W, y < 0 or y >= H) is taken from the reference. Inside, coordinates are clamped
// to [0, W - 1] x [0, H - 1] and the interpolation kernel sees replicated borders. Cubic convolution (Keys 1981) with
// a = -0.75, at exact sub-pixel positions.
//
//        0         W-1   W
//   ref  |  image   | clamped to W-1 |  ref
//
// Launch: blockIdx.z = frame; thread (x, y): one pixel, all channels.
#include "common.cuh"

// Where a pixel is taken from: columns, rows and weights of the taps.
template <int TAPS>
struct Target {
  int column[TAPS], row[TAPS];
  float weight_x[TAPS], weight_y[TAPS];
};

template <int TAPS>
__device__ __forceinline__ void place_taps(float position, int size, int* index, float* weight) {
  if (TAPS == 1) {
    index[0] = (int)rintf(position);
    weight[0] = 1.0f;
    return;
  }
  int first = (int)position;
  float t = position - (float)first;
  if (TAPS == 2) {
    index[0] = first;
    index[TAPS - 1] = min(first + 1, size - 1);
    weight[0] = 1.0f - t;
    weight[TAPS - 1] = t;
    return;
  }
  const float a = -0.75f;
  float s = 1.0f - t, far = t + 1.0f;
  weight[0] = ((a * far - 5.0f * a) * far + 8.0f * a) * far - 4.0f * a;
  weight[1 % TAPS] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
  weight[2 % TAPS] = ((a + 2.0f) * s - (a + 3.0f)) * s * s + 1.0f;
  weight[3 % TAPS] = 1.0f - weight[0] - weight[1 % TAPS] - weight[2 % TAPS];
#pragma unroll
  for (int k = 0; k < TAPS; ++k) index[k] = clamped(first - 1 + k, size);
}

// False where the target lies outside, or is NaN.
template <int TAPS>
__device__ __forceinline__ bool find_target(float x, float y, int height, int width, Target<TAPS>& target) {
  if (!(x >= 0.0f && x < (float)width && y >= 0.0f && y < (float)height)) return false;
  place_taps<TAPS>(fminf(x, (float)(width - 1)), width, target.column, target.weight_x);
  place_taps<TAPS>(fminf(y, (float)(height - 1)), height, target.row, target.weight_y);
  return true;
}

// Interpolated value of an image whose neighbouring pixels lie `step` elements apart.
template <typename Real, int TAPS, typename T>
__device__ __forceinline__ Real interpolate(const T* image, const Target<TAPS>& target, int width, int step) {
  Real sum = 0;
#pragma unroll
  for (int k = 0; k < TAPS; ++k) {
    const T* row = image + (long long)target.row[k] * width * step;
    Real line = 0;
#pragma unroll
    for (int l = 0; l < TAPS; ++l) line += target.weight_x[l] * (Real)row[(long long)target.column[l] * step];
    sum += target.weight_y[k] * line;
  }
  return sum;
}

// Planes at one pyramid level; `scale` turns full-resolution pixels into those of the level.
template <int TAPS>
__global__ void warp(const float* __restrict__ moving,     // (frames, channels, height, width)
                     const float* __restrict__ flow,       // (frames or 1, 2, height, width)
                     const float* __restrict__ reference,  // (frames or 1, channels, height, width)
                     int channels, int height, int width, long long flow_stride, long long reference_stride,
                     float scale_x, float scale_y,
                     float* __restrict__ out) {  // (frames, channels, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width, pixel = (long long)y * width + x;
  const long long first = blockIdx.z * channels * plane;
  const float* uv = flow + blockIdx.z * flow_stride + pixel;
  Target<TAPS> target;
  bool inside = find_target<TAPS>((float)x + uv[0] * scale_x, (float)y + uv[plane] * scale_y, height, width, target);
  for (int channel = 0; channel < channels; ++channel)
    out[first + channel * plane + pixel] =
        inside ? interpolate<float, TAPS>(moving + first + channel * plane, target, width, 1)
               : reference[blockIdx.z * reference_stride + channel * plane + pixel];
}

// Arithmetic of a pixel type, and its value for a result: integers are rounded to nearest even and saturated.
template <typename T>
struct Pixel;
#define INTEGER_PIXEL(T, LOW, HIGH)                                                                     \
  template <>                                                                                           \
  struct Pixel<T> {                                                                                     \
    typedef float Real;                                                                                 \
    static __device__ __forceinline__ T from(float value) { return (T)fminf(fmaxf(rintf(value), LOW), HIGH); } \
  };
#define REAL_PIXEL(T)                                                       \
  template <>                                                               \
  struct Pixel<T> {                                                         \
    typedef T Real;                                                         \
    static __device__ __forceinline__ T from(T value) { return value; }     \
  };
INTEGER_PIXEL(unsigned char, 0.0f, 255.0f)
INTEGER_PIXEL(signed char, -128.0f, 127.0f)
INTEGER_PIXEL(unsigned short, 0.0f, 65535.0f)
INTEGER_PIXEL(short, -32768.0f, 32767.0f)
REAL_PIXEL(float)
REAL_PIXEL(double)

// Raw frames, in and out in the file's type T.
template <typename T, int TAPS>
__global__ void warp_frames(const T* __restrict__ frames,         // (frames, height, width, channels)
                            const float* __restrict__ flow,       // (frames, 2, height, width)
                            const float* __restrict__ reference,  // (height, width, channels)
                            int channels, int height, int width,
                            T* __restrict__ out) {  // (frames, height, width, channels)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width, pixel = (long long)y * width + x;
  const float* uv = flow + blockIdx.z * 2 * plane + pixel;
  const T* image = frames + blockIdx.z * plane * channels;
  T* registered = out + blockIdx.z * plane * channels + pixel * channels;
  Target<TAPS> target;
  bool inside = find_target<TAPS>((float)x + uv[0], (float)y + uv[plane], height, width, target);
  for (int channel = 0; channel < channels; ++channel) {
    typedef typename Pixel<T>::Real Real;
    registered[channel] = Pixel<T>::from(inside ? interpolate<Real, TAPS>(image + channel, target, width, channels)
                                                : (Real)reference[pixel * channels + channel]);
  }
}

// Where the registered frame shows the frame, not the reference.
__global__ void valid_mask(const float* __restrict__ flow,  // (frames, 2, height, width)
                           int height, int width,
                           unsigned char* __restrict__ out) {  // (frames, height, width), 1 inside
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width, pixel = (long long)y * width + x;
  const float* uv = flow + blockIdx.z * 2 * plane + pixel;
  Target<1> target;
  out[blockIdx.z * plane + pixel] = find_target<1>((float)x + uv[0], (float)y + uv[plane], height, width, target);
}
