// Planes to raw frames, in the type of a file: integers are rounded to nearest even and saturated, see pixel.cuh.
//
// Launch: blockIdx.z = frame; thread (x, 0): one pixel, all channels.
#include "common.cuh"
#include "pixel.cuh"

template <typename T>
__global__ void store(const float* __restrict__ planes,  // (frames, channels, pixels)
                      int pixels, int channels,
                      T* __restrict__ frames) {  // (frames, pixels, channels)
  int pixel = blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= pixels) return;
  const long long first = blockIdx.z * (long long)pixels * channels;
  for (int channel = 0; channel < channels; ++channel)
    frames[first + (long long)pixel * channels + channel] =
        Pixel<T>::from(planes[first + (long long)channel * pixels + pixel]);
}
