#pragma once
// The data term at one pyramid level, linearised about the flow: the motion tensor of the reference and the warped image.
//
// The flow of the level above is upsampled, the image warped cubically with it (warp.cuh), and the tensor J11, J22, J33, J12,
// J13, J23 of every pixel and channel formed. The squared, normalised residual of an increment (du, dv) is J11 du^2 + J22 dv^2
// + 2 J12 du dv + 2 J13 du + 2 J23 dv + J33 (Bruhn, Weickert, Schnoerr 2005). Spatial derivatives are those of the mean of the
// two frames, temporal ones their difference. Images have a replicated border.
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

// Pixels around (x, y), border replicated.
struct Around {
  int left, right, above, below;
  __device__ __forceinline__ Around(int x, int y, int height, int width)
      : left(clamped(x - 1, width)),
        right(clamped(x + 1, width)),
        above(clamped(y - 1, height)),
        below(clamped(y + 1, height)) {}
};

__device__ __forceinline__ void add_products(float* j, float share, float fx, float fy, float ft) {
  j[0] += share * fx * fx;
  j[1] += share * fy * fy;
  j[2] += share * ft * ft;
  j[3] += share * fx * fy;
  j[4] += share * fx * ft;
  j[5] += share * fy * ft;
}

// Data terms: HALO is how far they look, `reference` a and `warped` b are the images. Their factors are 1 / (2 hx),
// 1 / (2 hy), and three more of their own.

// Constancy of the gradient, each component normalised by its own gradient (Zimmer, Bruhn, Weickert 2011).
struct GradientConstancy {
  static const int HALO = 1;
  float cx, cy, cxx, cyy, cxy;
  __device__ __forceinline__ void operator()(const Window& a, const Window& b, int x, int y, int height, int width,
                                             float* j) const {
    // 1. mean and change of the two frames where they are needed
    const Around at(x, y, height, width);
    auto mean = [&](int row, int column) { return 0.5f * (a(row, column) + b(row, column)); };
    auto change = [&](int row, int column) { return b(row, column) - a(row, column); };
    float centre = mean(y, x);

    // 2. derivatives
    float fxx = cxx * (mean(y, at.left) - 2.0f * centre + mean(y, at.right));
    float fyy = cyy * (mean(at.above, x) - 2.0f * centre + mean(at.below, x));
    float fxy = cxy * ((mean(at.below, at.right) - mean(at.below, at.left)) -
                       (mean(at.above, at.right) - mean(at.above, at.left)));
    float fxt = cx * (change(y, at.right) - change(y, at.left));
    float fyt = cy * (change(at.below, x) - change(at.above, x));

    // 3. normalised products; 1e-6 keeps them finite where the image is flat
    float rx = 1.0f / (fxx * fxx + fxy * fxy + 1e-6f);
    float ry = 1.0f / (fxy * fxy + fyy * fyy + 1e-6f);
    add_products(j, rx, fxx, fxy, fxt);
    add_products(j, ry, fxy, fyy, fyt);
  }
};

// Constancy of the brightness (Horn and Schunck 1981).
struct BrightnessConstancy {
  static const int HALO = 1;
  float cx, cy, unused[3];
  __device__ __forceinline__ void operator()(const Window& a, const Window& b, int x, int y, int height, int width,
                                             float* j) const {
    const Around at(x, y, height, width);
    auto along_x = [&](const Window& image) { return image(y, at.right) - image(y, at.left); };
    auto along_y = [&](const Window& image) { return image(at.below, x) - image(at.above, x); };
    add_products(j, 1.0f, cx * 0.5f * (along_x(a) + along_x(b)), cy * 0.5f * (along_y(a) + along_y(b)),
                 b(y, x) - a(y, x));
  }
};

// Constancy of the smoothed census signature (Hafner, Demetz, Weickert 2013), for each of the 8 neighbours
//   s = (1 + r / sqrt(r^2 + eps^2)) / 2,  r = (neighbour - centre) / distance,  eps = 0.1 / 255,
// whose gray tensors are added with the share 2 / 8. `reciprocal` is 1 / distance for a step along x, along y, and both.
struct CensusConstancy {
  static const int HALO = 2;
  float cx, cy, reciprocal_x, reciprocal_y, reciprocal_xy;
  __device__ __forceinline__ void operator()(const Window& a, const Window& b, int x, int y, int height, int width,
                                             float* j) const {
    const float eps2 = (0.1f / 255.0f) * (0.1f / 255.0f);
    const Around at(x, y, height, width);
    for (int dy = -1; dy <= 1; ++dy) {
      for (int dx = -1; dx <= 1; ++dx) {
        if (dx == 0 && dy == 0) continue;
        float reciprocal = dx == 0 ? reciprocal_y : (dy == 0 ? reciprocal_x : reciprocal_xy);
        auto signature = [&](const Window& image, int row, int column) {
          float neighbour = image(clamped(row + dy, height), clamped(column + dx, width));
          float r = (neighbour - image(row, column)) * reciprocal;
          return 0.5f * (1.0f + r / sqrtf(r * r + eps2));
        };
        auto along_x = [&](const Window& image) { return signature(image, y, at.right) - signature(image, y, at.left); };
        auto along_y = [&](const Window& image) { return signature(image, at.below, x) - signature(image, at.above, x); };
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

// Shared memory: where the pixels of tile and halo come from, and behind it the warped image, where something else may have
// been before.
struct Targets {
  float *x, *y, *behind;
  __device__ __forceinline__ explicit Targets(const Tile& tile)
      : x(reinterpret_cast<float*>(shared_memory)), y(x + tile.rows * tile.columns), behind(y + tile.rows * tile.columns) {}
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
  const Divisor per_row(tile.columns);
  for (int pixel = threadIdx.x; pixel < tile.rows * tile.columns; pixel += blockDim.x) {
    int x = tile.left + per_row.remainder(pixel), y = tile.top + per_row.quotient(pixel);
    const float* uv = flow + (long long)y * width + x;
    target.x[pixel] = (float)x + uv[0] * scale.x;
    target.y[pixel] = (float)y + uv[plane] * scale.y;
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

// Targets by the flow of the level above: the rows of tile and halo in the columns `first` to `first + count` that the taps
// span, then the columns. Shared memory behind the targets: 2 floats a pixel of those rows.
__device__ __forceinline__ void upsample_targets(const Tile& tile, const Targets& target, const float* flow,
                                                 const Upsampling& taps, int first, int count, int height, int width,
                                                 Scale scale,
                                                 float* upsampled) {  // (2, height, width), of the tile; may be null
  const long long plane = (long long)height * width, above_plane = (long long)taps.height * taps.width;
  const Divisor per_row(tile.columns), per_line(count);
  float* lines_u = target.behind;  // (tile.rows, count)
  float* lines_v = lines_u + tile.rows * count;

  // 1. rows
  for (int pixel = threadIdx.x; pixel < tile.rows * count; pixel += blockDim.x) {
    const float* u = flow + first + per_line.remainder(pixel);
    const float* v = u + above_plane;
    const int first_tap = (tile.top + per_line.quotient(pixel)) * taps.row_taps;
    float sum_u = 0.0f, sum_v = 0.0f;
    for (int tap = first_tap; tap < first_tap + taps.row_taps; ++tap) {
      long long row = (long long)taps.row_index[tap] * taps.width;
      sum_u += taps.row_weight[tap] * u[row];
      sum_v += taps.row_weight[tap] * v[row];
    }
    lines_u[pixel] = sum_u;
    lines_v[pixel] = sum_v;
  }
  __syncthreads();

  // 2. columns
  for (int pixel = threadIdx.x; pixel < tile.rows * tile.columns; pixel += blockDim.x) {
    const int row = per_row.quotient(pixel), x = tile.left + per_row.remainder(pixel), y = tile.top + row;
    float u = 0.0f, v = 0.0f;
    for (int tap = 0; tap < taps.column_taps; ++tap) {
      int at = row * count + taps.column_index[tap * width + x] - first;
      u += taps.column_weight[tap * width + x] * lines_u[at];
      v += taps.column_weight[tap * width + x] * lines_v[at];
    }
    target.x[pixel] = (float)x + u * scale.x;
    target.y[pixel] = (float)y + v * scale.y;
    if (upsampled != nullptr && tile.owns(x, y)) {
      upsampled[(long long)y * width + x] = u;
      upsampled[plane + (long long)y * width + x] = v;
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
  const int pixels = tile.rows * tile.columns, owned = tile.last_x - tile.first_x;
  float* warped = target.behind;
  const Divisor per_row(tile.columns), per_owned(owned);
  for (int channel = 0; channel < channels; ++channel, moving += plane, reference += plane, tensor += 6 * plane) {
    const Window a = {reference, 0, 0, width}, b = {warped, tile.left, tile.top, tile.columns};
    __syncthreads();  // what was there has been read

    // 1. the warped image
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
      Target<4> taps;
      warped[pixel] = find_target<4>(target.x[pixel], target.y[pixel], height, width, taps)
                          ? interpolate<float, 4>(moving, taps, width, 1)
                          : a(tile.top + per_row.quotient(pixel), tile.left + per_row.remainder(pixel));
    }
    __syncthreads();

    // 2. the tensor of the tile
    for (int pixel = threadIdx.x; pixel < owned * (tile.last_y - tile.first_y); pixel += blockDim.x) {
      int x = tile.first_x + per_owned.remainder(pixel), y = tile.first_y + per_owned.quotient(pixel);
      float j[6] = {};
      term(a, b, x, y, height, width, j);
#pragma unroll
      for (int k = 0; k < 6; ++k) tensor[k * plane + (long long)y * width + x] = j[k];
    }
  }
}
