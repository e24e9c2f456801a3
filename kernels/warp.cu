// Backward warp: registered(y, x) = image(y + v, x + u); see warp.cuh.
//
// Launch: blockIdx.z = frame; thread (x, y): one pixel, all channels.
#include "pixel.cuh"
#include "warp.cuh"

// Planes at full resolution, linear: what the pre-alignment sees.
__global__ void warp_linear(const float* __restrict__ moving,     // (frames, channels, height, width)
                            const float* __restrict__ flow,       // (frames or 1, 2, height, width)
                            const float* __restrict__ reference,  // (frames or 1, channels, height, width)
                            int channels, int height, int width, long long flow_stride, long long reference_stride,
                            float* __restrict__ out) {  // (frames, channels, height, width)
  int x = pixel_x(), y = pixel_y();
  if (x >= width || y >= height) return;
  const long long plane = (long long)height * width, pixel = (long long)y * width + x;
  const long long first = blockIdx.z * channels * plane;
  const float* uv = flow + blockIdx.z * flow_stride + pixel;
  Target<2> target;
  bool inside = find_target<2>((float)x + uv[0], (float)y + uv[plane], height, width, target);
  for (int channel = 0; channel < channels; ++channel)
    out[first + channel * plane + pixel] = inside ? interpolate<float, 2>(moving + first + channel * plane, target,
                                                                          height, width, 1)
                                                  : reference[blockIdx.z * reference_stride + channel * plane + pixel];
}

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
    registered[channel] = Pixel<T>::from(inside ? interpolate<Real, TAPS>(image + channel, target, height, width, channels)
                                                : (Real)reference[pixel * channels + channel]);
  }
}
