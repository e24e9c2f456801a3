// Separable filtering of planes with tap tables: pyramid resampling and Gaussian smoothing.
//
//   out(i, j) = sum_t columns.weight(t, j) sum_s rows.weight(s, i) in(rows.index(s, i), columns.index(t, j))
//
// The tables (flowreg_gpu/resampling.py) hold the boundary rule in their indices; they are made once on the host, so that
// both backends resample alike. Those of rows are stored [output row][tap], those of columns [tap][output column], so that
// neighbouring threads read neighbours. Rows are summed first, as on the CPU.
//
// One launch makes all levels of a pyramid. A block owns a tile of one level, as high as suits the number of input columns
// that the tile's taps span: it sums the rows of these columns into shared memory, then the columns.
#include "common.cuh"

// A level: its first block, its tiles along x and their size, its own size, its taps and where they begin, the pixels of a
// plane that lie before it, and the first of its strips (the columns of tiles).
struct Level {
  int first_block, tiles_x, tile_height, tile_width, height, width;
  int row_taps, first_row_tap, column_taps, first_column_tap, first_pixel, first_strip;
};

// Launch: blocks of 256 threads, blockIdx.x = tile, level after level; blockIdx.z = plane. The input planes begin `stride`
// elements apart; those of a level in the output lie `spread` planes apart, which lets one channel of several be filtered.
// Shared memory for the rows of a tile in the columns of its strip.
__global__ void __launch_bounds__(LINE_THREADS)
    resample(const float* __restrict__ planes,         // (planes, height, width)
             const int* __restrict__ levels,           // (n_levels), struct Level
             const int* __restrict__ strips,           // struct Span, the input columns of every strip
             const int* __restrict__ row_index,        // (new_height, row_taps) of every level
             const float* __restrict__ row_weight,     // likewise
             const int* __restrict__ column_index,     // (column_taps, new_width) of every level
             const float* __restrict__ column_weight,  // likewise
             int width, int n_levels, int spread, long long stride,
             float* __restrict__ out) {  // (planes, new_height, new_width) of every level
  const Level* found = reinterpret_cast<const Level*>(levels) + n_levels - 1;
  while ((int)blockIdx.x < found->first_block) --found;  // the last levels have most of the blocks
  const Level level = *found;
  const int tile = (int)blockIdx.x - level.first_block;
  const Span strip = reinterpret_cast<const Span*>(strips)[level.first_strip + tile % level.tiles_x];
  const int i0 = tile / level.tiles_x * level.tile_height, rows = min(level.tile_height, level.height - i0);
  const int j0 = tile % level.tiles_x * level.tile_width, columns = min(level.tile_width, level.width - j0);
  float* lines = reinterpret_cast<float*>(shared_memory);  // (rows, strip.count)
  const Divisor per_line(strip.count), per_row(columns);

  // 1. rows
  const float* source = planes + blockIdx.z * stride + strip.first;
  for (int pixel = threadIdx.x; pixel < rows * strip.count; pixel += blockDim.x) {
    const float* column = source + per_line.remainder(pixel);
    const int first_tap = level.first_row_tap + (i0 + per_line.quotient(pixel)) * level.row_taps;
    float sum = 0.0f;
    for (int tap = first_tap; tap < first_tap + level.row_taps; ++tap)
      sum += row_weight[tap] * column[(long long)row_index[tap] * width];
    lines[pixel] = sum;
  }
  __syncthreads();

  // 2. columns
  const long long plane = (long long)level.height * level.width;
  out += (long long)gridDim.z * level.first_pixel + blockIdx.z * spread * plane;
  for (int pixel = threadIdx.x; pixel < rows * columns; pixel += blockDim.x) {
    const int i = per_row.quotient(pixel), j = j0 + per_row.remainder(pixel);
    const float* line = lines + i * strip.count;
    float sum = 0.0f;
    for (int tap = 0; tap < level.column_taps; ++tap) {
      const int at = level.first_column_tap + tap * level.width + j;
      sum += column_weight[at] * line[column_index[at] - strip.first];
    }
    out[(long long)(i0 + i) * level.width + j] = sum;
  }
}
