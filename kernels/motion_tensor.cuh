#pragma once
// The data term at one pyramid level, linearised about the flow: the motion tensor of the reference and the warped image.
//
// The flow of the coarser level is upsampled, the image warped cubically with it (warp.cuh), and the tensor J11, J22, J33,
// J12, J13, J23 of every pixel and channel formed. The squared, normalised residual of an increment (du, dv) is J11 du^2 +
// J22 dv^2 + 2 J12 du dv + 2 J13 du + 2 J23 dv + J33 (Bruhn, Weickert, Schnoerr 2005). Spatial derivatives are those of the
// mean of the two frames, temporal ones their difference. Images have a replicated border.
//
// A block works on a tile at a time. It warps the tile and a halo of as many pixels as the differences reach, as far as the
// image goes:
//
//   |<- halo ->|<- tile ->|<- halo ->|      flow and warped image, in shared memory
//              |<- tile ->|                 upsampled flow and tensor, to device memory
#include "warp.cuh"

// Some columns and rows of an image, or all of it, found by the image's coordinates.
struct Window {
  const float* pixels;
  int left, top, columns;
  __device__ __forceinline__ float operator()(int y, int x) const { return pixels[(y - top) * columns + x - left]; }
};

__device__ __forceinline__ void add_products(float* j, float factor, float fx, float fy, float ft) {
  j[0] += factor * fx * fx;
  j[1] += factor * fy * fy;
  j[2] += factor * ft * ft;
  j[3] += factor * fx * fy;
  j[4] += factor * fx * ft;
  j[5] += factor * fy * ft;
}

// Data terms: HALO is how far they look, BLOCKS how many blocks of 256 threads run on a multiprocessor, `reference` a and
// `warped` b are the images. Their factors are 1 / (2 hx), 1 / (2 hy), and three more of their own.

// A pixel and its eight neighbours, [row][column], border replicated.
struct Neighbourhood {
  float at[3][3];
  __device__ __forceinline__ Neighbourhood(const Window& image, int x, int y, int height, int width) {
    const float* here = image.pixels + (y - image.top) * image.columns + x - image.left;
    const float* rows[3] = {y == 0 ? here : here - image.columns, here, y == height - 1 ? here : here + image.columns};
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      at[k][1] = rows[k][0];
      at[k][0] = x == 0 ? at[k][1] : rows[k][-1];
      at[k][2] = x == width - 1 ? at[k][1] : rows[k][1];
    }
  }
};

// Constancy of the gradient, each component normalised by its own gradient (Zimmer, Bruhn, Weickert 2011).
struct GradientConstancy {
  static const int HALO = 1, BLOCKS = 4;
  float cx, cy, cxx, cyy, cxy;
  __device__ __forceinline__ void operator()(const Window& reference, const Window& warped, int x, int y, int height,
                                             int width, float* j) const {
    // 1. mean and change of the two frames
    const Neighbourhood a(reference, x, y, height, width), b(warped, x, y, height, width);
    auto mean = [&](int row, int column) { return 0.5f * (a.at[row][column] + b.at[row][column]); };
    auto change = [&](int row, int column) { return b.at[row][column] - a.at[row][column]; };
    float centre = mean(1, 1);

    // 2. derivatives
    float fxx = cxx * (mean(1, 0) - 2.0f * centre + mean(1, 2));
    float fyy = cyy * (mean(0, 1) - 2.0f * centre + mean(2, 1));
    float fxy = cxy * ((mean(2, 2) - mean(2, 0)) - (mean(0, 2) - mean(0, 0)));
    float fxt = cx * (change(1, 2) - change(1, 0));
    float fyt = cy * (change(2, 1) - change(0, 1));

    // 3. normalised products; 1e-6 keeps them finite where the image is flat
    float rx = 1.0f / (fxx * fxx + fxy * fxy + 1e-6f);
    float ry = 1.0f / (fxy * fxy + fyy * fyy + 1e-6f);
    add_products(j, rx, fxx, fxy, fxt);
    add_products(j, ry, fxy, fyy, fyt);
  }
};

// Constancy of the brightness (Horn and Schunck 1981).
struct BrightnessConstancy {
  static const int HALO = 1, BLOCKS = 4;
  float cx, cy, unused[3];
  __device__ __forceinline__ void operator()(const Window& reference, const Window& warped, int x, int y, int height,
                                             int width, float* j) const {
    const Neighbourhood a(reference, x, y, height, width), b(warped, x, y, height, width);
    auto along_x = [](const Neighbourhood& image) { return image.at[1][2] - image.at[1][0]; };
    auto along_y = [](const Neighbourhood& image) { return image.at[2][1] - image.at[0][1]; };
    add_products(j, 1.0f, cx * 0.5f * (along_x(a) + along_x(b)), cy * 0.5f * (along_y(a) + along_y(b)),
                 b.at[1][1] - a.at[1][1]);
  }
};

// Constancy of the smoothed census signature (Hafner, Demetz, Weickert 2013), for each of the 8 neighbours
//   s = (1 + r / sqrt(r^2 + eps^2)) / 2,  r = (neighbour - centre) / distance,  eps = 0.1 / 255,
// whose gray tensors are added with the factor 2 / 8. `reciprocal` is 1 / distance for a step along x, along y, and both.
struct CensusConstancy {
  static const int HALO = 2, BLOCKS = 3;
  float cx, cy, reciprocal_x, reciprocal_y, reciprocal_xy;
  __device__ __forceinline__ void operator()(const Window& a, const Window& b, int x, int y, int height, int width,
                                             float* j) const {
    const float eps2 = (0.1f / 255.0f) * (0.1f / 255.0f);
    const int left = clamped(x - 1, width), right = clamped(x + 1, width);
    const int above = clamped(y - 1, height), below = clamped(y + 1, height);
    for (int dy = -1; dy <= 1; ++dy) {
      for (int dx = -1; dx <= 1; ++dx) {
        if (dx == 0 && dy == 0) continue;
        float reciprocal = dx == 0 ? reciprocal_y : (dy == 0 ? reciprocal_x : reciprocal_xy);
        auto signature = [&](const Window& image, int row, int column) {
          float neighbour = image(clamped(row + dy, height), clamped(column + dx, width));
          float r = (neighbour - image(row, column)) * reciprocal;
          return 0.5f * (1.0f + r / sqrtf(r * r + eps2));
        };
        auto along_x = [&](const Window& image) { return signature(image, y, right) - signature(image, y, left); };
        auto along_y = [&](const Window& image) { return signature(image, below, x) - signature(image, above, x); };
        add_products(j, 0.25f, cx * 0.5f * (along_x(a) + along_x(b)), cy * 0.5f * (along_y(a) + along_y(b)),
                     signature(b, y, x) - signature(a, y, x));
      }
    }
  }
};

// A tile with its halo, as far as the image goes.
struct Tile {
  int first_x, last_x, first_y, last_y;  // of the tile
  int left, top, columns, rows;          // with the halo
  __device__ __forceinline__ Tile(int first_x, int first_y, int tile_height, int tile_width, int halo, int height, int width)
      : first_x(first_x),
        last_x(min(first_x + tile_width, width)),
        first_y(first_y),
        last_y(min(first_y + tile_height, height)),
        left(max(first_x - halo, 0)),
        top(max(first_y - halo, 0)),
        columns(min(last_x + halo, width) - left),
        rows(min(last_y + halo, height) - top) {}
  __device__ __forceinline__ bool owns(int x, int y) const {
    return x >= first_x && x < last_x && y >= first_y && y < last_y;
  }
};

// The threads of a block divide columns and rows among themselves: a warp takes columns side by side of one row, and a
// thread goes on with the same columns in later rows.
struct PixelLoop {
  int column, row, rows;  // first column and row; rows from one to the next
  __device__ __forceinline__ PixelLoop() : column(threadIdx.x % 32), row(threadIdx.x / 32), rows(blockDim.x / 32) {}
};

// Two values of a pixel, read and written at once.
struct __align__(8) Point {
  float x, y;
};

// Shared memory: where the pixels of tile and halo come from, and behind it the warped image, where something else may have
// been before.
struct Targets {
  Point* points;
  float* behind;
  __device__ __forceinline__ explicit Targets(const Tile& tile)
      : points(reinterpret_cast<Point*>(shared_memory)),
        behind(reinterpret_cast<float*>(points + tile.rows * tile.columns)) {}
};

// Pixels of a level per full-resolution pixel.
struct Scale {
  float x, y;
};

// Targets by a flow of the level's size.
__device__ __forceinline__ void find_targets(const Tile& tile, const Targets& target,
                                             const float* flow,  // (2, height, width)
                                             int height, int width, Scale scale) {
  const long long plane = (long long)height * width;
  const PixelLoop own;
  for (int column = own.column; column < tile.columns; column += 32) {
    for (int row = own.row; row < tile.rows; row += own.rows) {
      int x = tile.left + column, y = tile.top + row;
      const float* uv = flow + (long long)y * width + x;
      target.points[row * tile.columns + column] = {(float)x + uv[0] * scale.x, (float)y + uv[plane] * scale.y};
    }
  }
}

// Tap tables that upsample a flow (2, height, width), rows first, as pyramid.cu does it.
struct Upsampling {
  int height, width;
  const int* row_index;        // (height of the level, row_taps)
  const float* row_weight;     // likewise
  const int* column_index;     // (column_taps, width of the level)
  const float* column_weight;  // likewise
  int row_taps, column_taps;
};

// Targets by the flow of the coarser level: the rows of tile and halo in the columns `first` to `first + count` that the
// taps span, then the columns. Shared memory behind the targets: 2 floats a pixel of those rows.
__device__ __forceinline__ void upsample_targets(const Tile& tile, const Targets& target, const float* flow,
                                                 const Upsampling& taps, int first, int count, int height, int width,
                                                 Scale scale,
                                                 float* upsampled) {  // (2, height, width), of the tile; may be null
  const long long plane = (long long)height * width;
  Point* lines = reinterpret_cast<Point*>(target.behind);  // (tile.rows, count), of the flow
  const PixelLoop own;

  // 1. rows
  for (int column = own.column; column < count; column += 32) {
    const float* u = flow + first + column;
    const float* v = u + (long long)taps.height * taps.width;
    for (int row = own.row; row < tile.rows; row += own.rows) {
      const int first_tap = (tile.top + row) * taps.row_taps;
      Point sum = {0.0f, 0.0f};
      for (int tap = first_tap; tap < first_tap + taps.row_taps; ++tap) {
        const int at = taps.row_index[tap] * taps.width;
        const float weight = taps.row_weight[tap];
        sum.x += weight * u[at];
        sum.y += weight * v[at];
      }
      lines[row * count + column] = sum;
    }
  }
  __syncthreads();

  // 2. columns, of several rows at once
  const int ROWS = 4;
  for (int column = own.column; column < tile.columns; column += 32) {
    const int x = tile.left + column;
    for (int top = own.row; top < tile.rows; top += ROWS * own.rows) {
      const Point* line[ROWS];
      Point sum[ROWS];
#pragma unroll
      for (int k = 0; k < ROWS; ++k) {
        line[k] = lines + min(top + k * own.rows, tile.rows - 1) * count - first;
        sum[k] = {0.0f, 0.0f};
      }
      for (int tap = 0; tap < taps.column_taps; ++tap) {
        const int at = taps.column_index[tap * width + x];
        const float weight = taps.column_weight[tap * width + x];
#pragma unroll
        for (int k = 0; k < ROWS; ++k) {
          const Point value = line[k][at];
          sum[k].x += weight * value.x;
          sum[k].y += weight * value.y;
        }
      }
#pragma unroll
      for (int k = 0; k < ROWS; ++k) {
        const int row = top + k * own.rows, y = tile.top + row;
        if (row >= tile.rows) continue;
        target.points[row * tile.columns + column] = {(float)x + sum[k].x * scale.x, (float)y + sum[k].y * scale.y};
        if (upsampled != nullptr && tile.owns(x, y)) {
          float* out = upsampled + (long long)y * width + x;
          out[0] = sum[k].x;
          out[plane] = sum[k].y;
        }
      }
    }
  }
}

// What follows once the targets of tile and halo are known, by the thread that warps them.
template <typename Term>
__device__ __forceinline__ void warp_and_differentiate(
    const Tile& tile, const Targets& target,
    const float* moving,     // (channels, height, width)
    const float* reference,  // (channels, height, width)
    int channels, int height, int width, const Term& term,
    float* tensor) {  // (channels, 6, height, width)
  const long long plane = (long long)height * width;
  const PixelLoop own;
  float* warped = target.behind;
  for (int channel = 0; channel < channels; ++channel, moving += plane, reference += plane, tensor += 6 * plane) {
    const Window a = {reference, 0, 0, width}, b = {warped, tile.left, tile.top, tile.columns};
    __syncthreads();  // what was there has been read

    // 1. the warped image
    for (int column = own.column; column < tile.columns; column += 32) {
      for (int row = own.row; row < tile.rows; row += own.rows) {
        const int pixel = row * tile.columns + column;
        const Point from = target.points[pixel];
        Target<4> taps;
        warped[pixel] = find_target<4>(from.x, from.y, height, width, taps)
                            ? interpolate<float, 4>(moving, taps, height, width, 1)
                            : a(tile.top + row, tile.left + column);
      }
    }
    __syncthreads();

    // 2. the tensor of the tile
    for (int x = tile.first_x + own.column; x < tile.last_x; x += 32) {
      for (int y = tile.first_y + own.row; y < tile.last_y; y += own.rows) {
        float j[6] = {};
        term(a, b, x, y, height, width, j);
        float* out = tensor + (long long)y * width + x;
#pragma unroll
        for (int k = 0; k < 6; ++k, out += plane) *out = j[k];
      }
    }
  }
}
