// Separable filtering of planes with tap tables: pyramid resampling and Gaussian smoothing.
//
//   out(i, j) = sum_t columns.weight(t, j) sum_s rows.weight(s, i) in(rows.index(s, i), columns.index(t, j))
//
// The tables (flowreg_gpu/resampling.py) hold the boundary rule in their indices; they are made once on the host, so that
// both backends resample alike. They are stored [tap][output sample], so that neighbouring threads read neighbours.
// Rows are summed first, as on the CPU.
//
// Where there are few taps, one kernel does both and sums the rows again for every column; the sums are the same.
//
// Launch: blockIdx.z = plane; a plane begins every `stride` elements, which lets one channel of several be filtered.
#include "common.cuh"

// Thread (x, i): one pixel of a row of the output height and the input width.
__global__ void filter_rows(const float* __restrict__ planes,  // (planes, height, width)
                            const int* __restrict__ index,     // (taps, new_height)
                            const float* __restrict__ weight,  // (taps, new_height)
                            int width, int new_height, int taps, long long stride, long long out_stride,
                            float* __restrict__ out) {  // (planes, new_height, width)
  int x = pixel_x(), i = pixel_y();
  if (x >= width || i >= new_height) return;
  const float* plane = planes + blockIdx.z * stride;
  float sum = 0.0f;
  for (int tap = 0; tap < taps; ++tap)
    sum += weight[tap * new_height + i] * plane[(long long)index[tap * new_height + i] * width + x];
  out[blockIdx.z * out_stride + (long long)i * width + x] = sum;
}

// Thread (j, i): one pixel of the output.
__global__ void filter_columns(const float* __restrict__ planes,  // (planes, height, width)
                               const int* __restrict__ index,     // (taps, new_width)
                               const float* __restrict__ weight,  // (taps, new_width)
                               int height, int width, int new_width, int taps, long long stride, long long out_stride,
                               float* __restrict__ out) {  // (planes, height, new_width)
  int j = pixel_x(), i = pixel_y();
  if (j >= new_width || i >= height) return;
  const float* row = planes + blockIdx.z * stride + (long long)i * width;
  float sum = 0.0f;
  for (int tap = 0; tap < taps; ++tap) sum += weight[tap * new_width + j] * row[index[tap * new_width + j]];
  out[blockIdx.z * out_stride + (long long)i * new_width + j] = sum;
}

// Thread (j, i): one pixel of the output.
__global__ void filter_both(const float* __restrict__ planes,         // (planes, height, width)
                            const int* __restrict__ row_index,        // (row_taps, new_height)
                            const float* __restrict__ row_weight,     // (row_taps, new_height)
                            const int* __restrict__ column_index,     // (column_taps, new_width)
                            const float* __restrict__ column_weight,  // (column_taps, new_width)
                            int width, int new_height, int new_width, int row_taps, int column_taps, long long stride,
                            long long out_stride,
                            float* __restrict__ out) {  // (planes, new_height, new_width)
  int j = pixel_x(), i = pixel_y();
  if (j >= new_width || i >= new_height) return;
  const float* plane = planes + blockIdx.z * stride;
  float sum = 0.0f;
  for (int tap = 0; tap < column_taps; ++tap) {
    const float* column = plane + column_index[tap * new_width + j];
    float line = 0.0f;
    for (int row_tap = 0; row_tap < row_taps; ++row_tap)
      line += row_weight[row_tap * new_height + i] * column[(long long)row_index[row_tap * new_height + i] * width];
    sum += column_weight[tap * new_width + j] * line;
  }
  out[blockIdx.z * out_stride + (long long)i * new_width + j] = sum;
}
