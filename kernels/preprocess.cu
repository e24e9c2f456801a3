// Raw frames to normalised, time-filtered planes (preprocessing up to the Gaussian filter in space).
//
//   planes(t, c, y, x) = scale(c) sum_k temporal(c, k) (frames(t + k, y, x, c) - minimum(c)),   k = 0 .. 2 halo
//
// The minimum is subtracted first, so that small differences on a high background keep their digits. A channel whose
// radius in time is below the halo has zero weights at the ends. Sums run in the order of k, as on the CPU.
//
// Launch: blockIdx.z = frame t; thread (x, 0): one pixel, all channels.
#include "common.cuh"

template <typename T>
__global__ void normalize(const T* __restrict__ frames,        // (frames + 2 halo, pixels, channels)
                          const float* __restrict__ minimum,   // (channels)
                          const float* __restrict__ scale,     // (channels)
                          const float* __restrict__ temporal,  // (channels, taps), taps = 2 halo + 1
                          int pixels, int channels, int taps,
                          float* __restrict__ planes) {  // (frames, channels, pixels)
  int pixel = blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= pixels) return;
  const long long frame = (long long)pixels * channels;
  const T* window = frames + blockIdx.z * frame + (long long)pixel * channels;
  for (int channel = 0; channel < channels; ++channel) {
    float sum = 0.0f;
    for (int k = 0; k < taps; ++k)
      sum += temporal[channel * taps + k] * ((float)window[k * frame + channel] - minimum[channel]);
    planes[blockIdx.z * frame + (long long)channel * pixels + pixel] = sum * scale[channel];
  }
}
