// The data term at one pyramid level, linearised about the flow: the motion tensor of the reference and the warped image.
//
// One launch upsamples the flow, warps the image cubically with it (warp.cuh) and forms the tensor J11, J22, J33, J12, J13,
// J23 of every pixel and channel. The squared, normalised residual of an increment (du, dv) is J11 du^2 + J22 dv^2 +
// 2 J12 du dv + 2 J13 du + 2 J23 dv + J33 (Bruhn, Weickert, Schnoerr 2005). Spatial derivatives are those of the mean of the
// two frames, temporal ones their difference. Images have a replicated border.
//
// A block owns a tile. It warps the tile and a halo of as many pixels as the differences reach, as far as the image goes:
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
struct Neighbours {
  int left, right, above, below;
  __device__ __forceinline__ Neighbours(int x, int y, int height, int width)
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
    const Neighbours at(x, y, height, width);
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
    const Neighbours at(x, y, height, width);
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
    const Neighbours at(x, y, height, width);
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

// The tile of a block. `flow_at(x, y, owned, u, v)` finds the flow of a pixel, which is the block's own or one of the halo.
template <typename Term, typename FlowAt>
__device__ __forceinline__ void linearize_tile(
    const float* moving,     // (channels, height, width)
    const float* reference,  // (channels, height, width)
    int channels, int height, int width, int tile_height, int tile_width, float scale_x, float scale_y, const Term& term,
    FlowAt flow_at,
    float* tensor) {  // (channels, 6, height, width)
  const long long plane = (long long)height * width;
  const int first_x = blockIdx.x * tile_width, last_x = min(first_x + tile_width, width);
  const int first_y = blockIdx.y * tile_height, last_y = min(first_y + tile_height, height);
  const int left = max(first_x - Term::HALO, 0), right = min(last_x + Term::HALO, width);
  const int top = max(first_y - Term::HALO, 0), bottom = min(last_y + Term::HALO, height);
  const int columns = right - left, pixels = columns * (bottom - top);
  float* target_x = reinterpret_cast<float*>(shared_memory);
  float* target_y = target_x + pixels;
  float* warped = target_y + pixels;

  // 1. where the pixels of tile and halo come from
  for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
    int x = left + pixel % columns, y = top + pixel / columns;
    float u, v;
    flow_at(x, y, x >= first_x && x < last_x && y >= first_y && y < last_y, u, v);
    target_x[pixel] = (float)x + u * scale_x;
    target_y[pixel] = (float)y + v * scale_y;
  }

  for (int channel = 0; channel < channels; ++channel, moving += plane, reference += plane, tensor += 6 * plane) {
    const Window a = {reference, 0, 0, width}, b = {warped, left, top, columns};

    // 2. the warped image
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
      Target<4> target;
      warped[pixel] = find_target<4>(target_x[pixel], target_y[pixel], height, width, target)
                          ? interpolate<float, 4>(moving, target, width, 1)
                          : a(top + pixel / columns, left + pixel % columns);
    }
    __syncthreads();

    // 3. the tensor of the tile
    const int owned = last_x - first_x;
    for (int pixel = threadIdx.x; pixel < owned * (last_y - first_y); pixel += blockDim.x) {
      int x = first_x + pixel % owned, y = first_y + pixel / owned;
      float j[6] = {};
      term(a, b, x, y, height, width, j);
#pragma unroll
      for (int k = 0; k < 6; ++k) tensor[k * plane + (long long)y * width + x] = j[k];
    }
    __syncthreads();
  }
}

// Launch: blocks of 256 threads, blockIdx = tile (x, y) and frame; shared memory for 3 floats a pixel of the tile with its
// halo. `scale` turns full-resolution pixels into those of the level.
template <typename Term>
__global__ void __launch_bounds__(256)
    linearize(const float* __restrict__ moving,     // (frames, channels, height, width)
              const float* __restrict__ reference,  // (frames or 1, channels, height, width)
              const float* __restrict__ flow,       // (frames or 1, 2, height, width)
              int channels, int height, int width, int tile_height, int tile_width, long long reference_stride,
              long long flow_stride, float scale_x, float scale_y, float cx, float cy, float c1, float c2, float c3,
              float* __restrict__ tensor) {  // (frames, channels, 6, height, width)
  const long long plane = (long long)height * width;
  flow += blockIdx.z * flow_stride;
  linearize_tile<Term>(
      moving + blockIdx.z * channels * plane, reference + blockIdx.z * reference_stride, channels, height, width,
      tile_height, tile_width, scale_x, scale_y, {cx, cy, c1, c2, c3},
      [&](int x, int y, bool, float& u, float& v) {
        u = flow[(long long)y * width + x];
        v = flow[plane + (long long)y * width + x];
      },
      tensor + blockIdx.z * channels * 6 * plane);
}

// The same with a flow of the level above, which is upsampled by the tap tables of pyramid.cu, rows first.
template <typename Term>
__global__ void __launch_bounds__(256)
    upsample_and_linearize(const float* __restrict__ moving,         // (frames, channels, height, width)
                           const float* __restrict__ reference,      // (frames or 1, channels, height, width)
                           const float* __restrict__ flow,           // (frames or 1, 2, above_height, above_width)
                           const int* __restrict__ row_index,        // (height, row_taps)
                           const float* __restrict__ row_weight,     // (height, row_taps)
                           const int* __restrict__ column_index,     // (column_taps, width)
                           const float* __restrict__ column_weight,  // (column_taps, width)
                           int above_height, int above_width, int row_taps, int column_taps, int channels, int height,
                           int width, int tile_height, int tile_width, long long reference_stride, long long flow_stride,
                           float scale_x, float scale_y, float cx, float cy, float c1, float c2, float c3,
                           float* __restrict__ tensor,       // (frames, channels, 6, height, width)
                           float* __restrict__ upsampled) {  // (frames or 1, 2, height, width)
  const long long plane = (long long)height * width;
  const bool shared_flow = flow_stride == 0;
  flow += blockIdx.z * flow_stride;
  if (!shared_flow) upsampled += blockIdx.z * 2 * plane;
  auto resampled = [&](const float* component, int x, int y) {
    float sum = 0.0f;
    for (int tap = 0; tap < column_taps; ++tap) {
      const float* column = component + column_index[tap * width + x];
      float line = 0.0f;
      for (int row_tap = y * row_taps; row_tap < (y + 1) * row_taps; ++row_tap)
        line += row_weight[row_tap] * column[(long long)row_index[row_tap] * above_width];
      sum += column_weight[tap * width + x] * line;
    }
    return sum;
  };
  linearize_tile<Term>(
      moving + blockIdx.z * channels * plane, reference + blockIdx.z * reference_stride, channels, height, width,
      tile_height, tile_width, scale_x, scale_y, {cx, cy, c1, c2, c3},
      [&](int x, int y, bool owned, float& u, float& v) {
        u = resampled(flow, x, y);
        v = resampled(flow + (long long)above_height * above_width, x, y);
        if (!owned || (shared_flow && blockIdx.z > 0)) return;
        upsampled[(long long)y * width + x] = u;
        upsampled[plane + (long long)y * width + x] = v;
      },
      tensor + blockIdx.z * channels * 6 * plane);
}
