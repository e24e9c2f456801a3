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

// Pixels of a sensor that are hot or dead, from their neighbours; none of these is one itself, so that no thread reads
// what another writes. Launch: blockIdx.z = frame; thread (x, 0): one such pixel.
__global__ void replace_pixels(const int* __restrict__ position,  // (count), in the planes of a frame
                               const int* __restrict__ source,    // (count, 8)
                               const float* __restrict__ weight,  // (count, 8)
                               int count, long long frame,
                               float* planes) {  // (frames, frame)
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) return;
  float* own = planes + blockIdx.z * frame;
  float sum = 0.0f;
  for (int k = 0; k < 8; ++k) sum += weight[8 * index + k] * own[source[8 * index + k]];
  own[position[index]] = sum;
}
