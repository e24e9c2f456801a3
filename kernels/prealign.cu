// Rigid pre-alignment by phase correlation; sub-pixel step by upsampled DFT (Guizar-Sicairos, Thurman, Fienup 2008).
//
// Per frame: channel-weighted mean, reduced to (h, w) [by the pyramid's kernels], mean removed, Hann window: image m. With
// M and R the spectra of m and of the reference's image r [by cuFFT],
//
//   X = M conj(R) / max(|M conj(R)|, floor),   correlation = Re IDFT(X),
//
// whose peak is a circular shift; of it and its wrapped alternatives the one counts whose overlap, sum r(p) m(p + d),
// correlates best. The peak is then refined within 3/4 pixel on a grid of 1 / upsampling pixel, where
//
//   correlation(y, x) ~ Re sum_ky exp(2 pi i y f(ky)) sum_kx exp(2 pi i x f(kx)) X(ky, kx).
//
// Images are float32, everything from the spectra on double, as on the CPU. Ties go to the first in memory.
//
// Launch: one thread an element, or one block a frame (512 threads or any power of two), as the kernels say;
// blockIdx.z = frame.
#include "common.cuh"

// Components weaker than this (images scaled to 0-1) are noise of the arithmetic: 100 times the epsilon of float32.
constexpr double SPECTRUM_FLOOR = 100.0 / (1 << 23);
// Below every value that can win.
constexpr double LOWEST = -1.7976931348623157e308;

struct Sum {
  double value;
  __device__ __forceinline__ void merge(const Sum& other) { value += other.value; }
};

// The first of the largest values; index 0 where all are NaN.
struct Peak {
  double value;
  int index;
  __device__ __forceinline__ void merge(const Peak& other) {
    if (other.value > value || (other.value == value && other.index < index)) *this = other;
  }
};

// Correlation of the overlaps under the four shifts, [y wrapped][x wrapped].
struct Overlaps {
  double score[4];
  __device__ __forceinline__ void merge(const Overlaps& other) {
#pragma unroll
    for (int k = 0; k < 4; ++k) score[k] += other.score[k];
  }
};

// First largest real part of `count` values, known to all threads of a block.
__device__ __forceinline__ Peak find_peak(const double2* values, int count) {
  Peak peak = {LOWEST, 0};
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    if (values[i].x > peak.value) peak = {values[i].x, i};
  return merge_block(peak);
}

// Thread (x, 0): one pixel; the sum is rounded to float32 once.
__global__ void weighted_mean(const float* __restrict__ planes,  // (frames, channels, pixels)
                              const float* __restrict__ weight,  // (channels)
                              int channels, int pixels,
                              float* __restrict__ mean) {  // (frames, pixels)
  int pixel = blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= pixels) return;
  const float* plane = planes + blockIdx.z * (long long)channels * pixels;
  double sum = 0.0;
  for (int channel = 0; channel < channels; ++channel)
    sum += (double)weight[channel] * plane[(long long)channel * pixels + pixel];
  mean[blockIdx.z * (long long)pixels + pixel] = (float)sum;
}

// Block (0, 0, frame): one image, without its mean and windowed, as float32 and ready for the transform.
__global__ void centre(const float* __restrict__ images,  // (frames, pixels)
                       const float* __restrict__ window,  // (pixels)
                       int pixels,
                       float* __restrict__ centred,      // (frames, pixels)
                       double2* __restrict__ samples) {  // (frames, pixels)
  const long long first = blockIdx.z * (long long)pixels;
  Sum sum = {0.0};
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) sum.value += images[first + i];
  const float mean = (float)(merge_block(sum).value / pixels);
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
    float value = (images[first + i] - mean) * window[i];
    centred[first + i] = value;
    samples[first + i] = {value, 0.0};
  }
}

// Thread (x, 0): one component of the cross-power spectrum, in place.
__global__ void whiten(const double2* __restrict__ reference,  // (pixels)
                       int pixels,
                       double2* __restrict__ spectra) {  // (frames, pixels): M, then X
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pixels) return;
  const double2 r = reference[i], m = spectra[blockIdx.z * (long long)pixels + i];
  const double re = m.x * r.x + m.y * r.y, im = m.y * r.x - m.x * r.y;
  const double size = hypot(re, im), divisor = size < SPECTRUM_FLOOR ? SPECTRUM_FLOOR : size;  // NaN stays
  spectra[blockIdx.z * (long long)pixels + i] = {re / divisor, im / divisor};
}

// Block (0, 0, frame): one frame; its likeliest whole shift.
__global__ void whole_shift(const double2* __restrict__ correlation,  // (frames, height, width)
                            const float* __restrict__ reference,      // (height, width)
                            const float* __restrict__ images,         // (frames, height, width)
                            int height, int width, double spacing_x, double spacing_y,
                            int* __restrict__ whole,      // (frames, 2), dy, dx in pixels of the images
                            float* __restrict__ shift) {  // (frames, 2), dx, dy in full-resolution pixels
  const int pixels = height * width;
  const long long first = blockIdx.z * (long long)pixels;

  // 1. the circular shift
  const int peak = find_peak(correlation + first, pixels).index;
  const int peak_y = peak / width, peak_x = peak - peak_y * width;

  // 2. every pixel of the reference meets the moving image under one of the four shifts
  Overlaps overlaps = {};
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
    int y = i / width + peak_y, x = i % width + peak_x;
    int wrapped = 2 * (y >= height) + (x >= width);
    y -= y >= height ? height : 0;
    x -= x >= width ? width : 0;
    double product = (double)reference[i] * images[first + y * width + x];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (k == wrapped) overlaps.score[k] += product;
  }
  overlaps = merge_block(overlaps);
  if (threadIdx.x > 0) return;

  // 3. the best of them; no shift wraps a peak at 0, as nothing would overlap
  int dy = 0, dx = 0;
  double best = LOWEST;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    bool empty = (k / 2 && peak_y == 0) || (k % 2 && peak_x == 0);
    if (!empty && overlaps.score[k] > best) {
      best = overlaps.score[k];
      dy = peak_y - k / 2 * height;
      dx = peak_x - k % 2 * width;
    }
  }
  whole[2 * blockIdx.z] = dy;
  whole[2 * blockIdx.z + 1] = dx;
  shift[2 * blockIdx.z] = (float)(dx * spacing_x);
  shift[2 * blockIdx.z + 1] = (float)(dy * spacing_y);
}

// Where sample i of `size` lies, in pixels from the whole shift.
__device__ __forceinline__ double fine_offset(int i, int size, int upsampling) {
  return (double)(i - size / 2) / upsampling;
}

// Thread (column, i, frame): a Fourier sum along one axis, transposed so that a second pass does the other axis,
//
//   out(column, i) = sum_k exp(2 pi i (whole + offset_i) f(k)) in(k, column),
//
// f(k) = k / length, in the upper half (k - length) / length. Shared memory: one complex number per thread.
__global__ void fourier_sums(const double2* __restrict__ in,  // (frames, length, columns)
                             const int* __restrict__ whole,   // (frames, 2), dy, dx
                             int length, int columns, int axis, int upsampling,
                             double2* __restrict__ out) {  // (frames, columns, size), size = gridDim.y
  double2* twiddle = reinterpret_cast<double2*>(shared_memory);  // (blockDim.x)
  const int column = blockIdx.x * blockDim.x + threadIdx.x, size = gridDim.y;
  const double position = whole[2 * blockIdx.z + axis] + fine_offset(blockIdx.y, size, upsampling);
  const double2* spectrum = in + blockIdx.z * (long long)length * columns;
  double2 sum = {0.0, 0.0};
  for (int first = 0; first < length; first += blockDim.x) {
    // 1. the factors of the next frequencies
    int k = first + threadIdx.x;
    __syncthreads();  // the factors before have been used
    if (k < length) {
      double frequency = (double)(k <= (length - 1) / 2 ? k : k - length) / length;
      sincospi(2.0 * position * frequency, &twiddle[threadIdx.x].y, &twiddle[threadIdx.x].x);
    }
    __syncthreads();
    // 2. their terms of this column's sum
    int count = column < columns ? min((int)blockDim.x, length - first) : 0;
    for (int j = 0; j < count; ++j) {
      double2 factor = twiddle[j], value = spectrum[(long long)(first + j) * columns + column];
      sum.x += factor.x * value.x - factor.y * value.y;
      sum.y += factor.x * value.y + factor.y * value.x;
    }
  }
  if (column < columns) out[(blockIdx.z * (long long)columns + column) * size + blockIdx.y] = sum;
}

// Block (0, 0, frame): one frame; the peak of its upsampled correlation.
__global__ void refined_shift(const double2* __restrict__ upsampled,  // (frames, size, size)
                              const int* __restrict__ whole,          // (frames, 2), dy, dx
                              int size, int upsampling, double spacing_x, double spacing_y,
                              float* __restrict__ shift) {  // (frames, 2), dx, dy in full-resolution pixels
  const int peak = find_peak(upsampled + blockIdx.z * (long long)size * size, size * size).index;
  if (threadIdx.x > 0) return;
  double dy = whole[2 * blockIdx.z] + fine_offset(peak / size, size, upsampling);
  double dx = whole[2 * blockIdx.z + 1] + fine_offset(peak % size, size, upsampling);
  shift[2 * blockIdx.z] = (float)(dx * spacing_x);
  shift[2 * blockIdx.z + 1] = (float)(dy * spacing_y);
}
