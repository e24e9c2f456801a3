// Per-frame statistics: correlation with the reference; displacement, divergence and translation of the flow.
//
// Sums are taken in double and in an order that the size of the frame alone decides: a frame is cut into parts of
// `part_size` elements, one block each, and the parts are added by one block per frame. So a frame's figures are the same
// to the last bit whatever batch it is in.
//
// Correlation is Pearson's r in one pass, with a' = a - a(0) and b' = b - b(0), a(0) and b(0) the first pixels:
//
//   r = (S_a'b' - S_a' S_b' / n) / sqrt((S_a'a' - S_a'^2 / n) (S_b'b' - S_b'^2 / n)).
//
// The first pixel is one of those that enter, (mean - a(0))^2 <= sum (a - mean)^2; the differences therefore lose a
// factor of n in precision at the very worst, whatever the background. S_a'a' = 0 is a constant frame.
//
// Launch: 256 threads (any power of two), shared memory for one struct of sums per thread.
#include "common.cuh"

// Columns of `statistics`, as flowreg_gpu/engine/cpu_task.py names them.
enum Column {
  MEAN_DISP, MAX_DISP, MEAN_DIV, MEAN_TRANSLATION, TRANSLATION_X, TRANSLATION_Y, CORRELATION_BEFORE, CORRELATION_AFTER,
  CONSTANT, DIVERGED, COLUMNS
};

struct ImageSums {
  double a, aa, ab;
  __device__ __forceinline__ void merge(const ImageSums& other) {
    a += other.a;
    aa += other.aa;
    ab += other.ab;
  }
};

struct FlowSums {
  double length, u, v, divergence, largest, leaving;  // leaving: pixels whose displacement leaves the frame
  __device__ __forceinline__ void merge(const FlowSums& other) {
    length += other.length;
    u += other.u;
    v += other.v;
    divergence += other.divergence;
    largest = fmax(largest, other.largest);
    leaving += other.leaving;
  }
};

// Sum of the parts of one image, known to all threads of a block.
template <typename Sums>
__device__ __forceinline__ Sums total_of_parts(const double* partial, int parts) {
  const Sums* part = reinterpret_cast<const Sums*>(partial);  // (parts)
  Sums sums = {};
  for (int k = threadIdx.x; k < parts; k += blockDim.x) sums.merge(part[k]);
  return merge_block(sums);
}

// Block (part, 0, frame): `part_size` elements of a frame, a thread every blockDim.x-th of them.
template <typename T>
__global__ void image_sums(const T* __restrict__ frames,         // (frames, elements), elements = height width channels
                           const float* __restrict__ reference,  // (elements)
                           int elements, int part_size,
                           double* __restrict__ partial) {  // (frames, parts, 3), parts = gridDim.x
  const T* frame = frames + blockIdx.z * (long long)elements;
  const double a_first = frame[0], b_first = reference[0];
  const int begin = blockIdx.x * part_size, end = min(elements - begin, part_size) + begin;
  ImageSums sums = {};
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
    double a = (double)frame[i] - a_first, b = (double)reference[i] - b_first;
    sums.a += a;
    sums.aa += a * a;
    sums.ab += a * b;
  }
  sums = merge_block(sums);
  if (threadIdx.x == 0) reinterpret_cast<ImageSums*>(partial)[blockIdx.z * (long long)gridDim.x + blockIdx.x] = sums;
}

// Block (0, 0, frame): one frame; correlation to `column`, and whether the raw frame is constant.
__global__ void correlate(const double* __restrict__ partial,    // (frames, parts, 3)
                          const double* __restrict__ reference,  // (parts, 3), the reference with itself
                          int parts, int elements, int column,
                          double* __restrict__ statistics) {  // (frames, COLUMNS)
  // 1. add the parts
  const ImageSums frame = total_of_parts<ImageSums>(partial + blockIdx.z * 3LL * parts, parts);
  const ImageSums own = total_of_parts<ImageSums>(reference, parts);
  if (threadIdx.x > 0) return;

  // 2. moments about the means; a comparison with NaN is false
  double aa = frame.aa - frame.a * frame.a / elements;
  double bb = own.aa - own.a * own.a / elements;
  double ab = frame.ab - frame.a * own.a / elements;
  double* row = statistics + blockIdx.z * (long long)COLUMNS;
  row[column] = aa > 0.0 && bb > 0.0 ? ab / sqrt(aa * bb) : 0.0;
  if (column == CORRELATION_BEFORE) row[CONSTANT] = frame.aa == 0.0;
}

// Sum of the derivative along a line of samples `step` elements apart, by central differences, one-sided at the ends: all
// but the ends cancels. size >= 2.
__device__ __forceinline__ double line_divergence(const float* line, int size, long long step) {
  double outer = line[(size - 1) * step] - line[0], inner = line[(size - 2) * step] - line[step];
  return 1.5 * outer - 0.5 * inner;
}

// Block (part, 0, frame): `part_size` pixels of a flow, a thread every blockDim.x-th of them.
__global__ void flow_sums(const float* __restrict__ flow,  // (frames, 2, height, width)
                          int height, int width, int part_size,
                          double* __restrict__ partial) {  // (frames, parts, 6), parts = gridDim.x
  const int pixels = height * width;
  const float* plane_u = flow + blockIdx.z * 2LL * pixels;
  const float* plane_v = plane_u + pixels;
  const int begin = blockIdx.x * part_size, end = min(pixels - begin, part_size) + begin;
  FlowSums sums = {};
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
    // 1. the pixel's own vector; a NaN is not the largest, but it leaves the frame: no comparison with it is true
    double u = plane_u[i], v = plane_v[i], length = sqrt(u * u + v * v);
    sums.length += length;
    sums.u += u;
    sums.v += v;
    sums.largest = fmax(sums.largest, length);
    if (!(fabs(u) < width && fabs(v) < height)) sums.leaving += 1.0;
    // 2. the last pixel of a row or column stands for all of it
    int y = i / width, x = i - y * width;
    if (x == width - 1) sums.divergence += line_divergence(plane_u + i - x, width, 1);
    if (y == height - 1) sums.divergence += line_divergence(plane_v + x, height, width);
  }
  sums = merge_block(sums);
  if (threadIdx.x == 0) reinterpret_cast<FlowSums*>(partial)[blockIdx.z * (long long)gridDim.x + blockIdx.x] = sums;
}

// Block (0, 0, frame): one frame; its flow becomes zero where the frame is constant or the flow leaves the frame.
__global__ void settle(const double* __restrict__ partial,  // (frames, parts, 6)
                       int parts, int pixels,
                       float* __restrict__ flow,           // (frames, 2, pixels)
                       double* __restrict__ statistics) {  // (frames, COLUMNS)
  // 1. add the parts
  const FlowSums sums = total_of_parts<FlowSums>(partial + blockIdx.z * 6LL * parts, parts);
  const double mean = sums.length / pixels, divergence = sums.divergence / pixels;
  const double u = sums.u / pixels, v = sums.v / pixels;

  // 2. decide
  double* row = statistics + blockIdx.z * (long long)COLUMNS;
  const bool constant = row[CONSTANT] != 0.0, diverged = !constant && sums.leaving > 0.0;
  const bool zero = constant || diverged;

  // 3. write
  if (threadIdx.x == 0) {
    row[MEAN_DISP] = zero ? 0.0 : mean;
    row[MAX_DISP] = zero ? 0.0 : sums.largest;
    row[MEAN_DIV] = zero ? 0.0 : divergence;
    row[MEAN_TRANSLATION] = zero ? 0.0 : hypot(u, v);
    row[TRANSLATION_X] = zero ? 0.0 : u;
    row[TRANSLATION_Y] = zero ? 0.0 : v;
    row[DIVERGED] = diverged;
  }
  if (!zero) return;
  float* planes = flow + blockIdx.z * 2LL * pixels;
  for (long long i = threadIdx.x; i < 2LL * pixels; i += blockDim.x) planes[i] = 0.0f;
}
