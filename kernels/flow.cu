// Arithmetic of flow planes: sums, means over frames, and the layout that users get.
//
// Launch: one thread an element, blockIdx.z = frame (or plane).
#include "common.cuh"
#include "warp.cuh"

// Thread: one element of a linear array.
__global__ void fill(float value, long long count, float* __restrict__ out) {  // (count)
  long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (element < count) out[element] = value;
}

// Thread (x, 0): one element of a frame; an increment per plane, such as a shift (frames, 2, 1, 1), has increment_plane 1.
__global__ void add(const float* __restrict__ planes,     // (frames or 1, planes, plane)
                    const float* __restrict__ increment,  // (frames or 1, planes, plane or 1)
                    long long plane, long long increment_plane, int n_planes, long long planes_stride,
                    long long increment_stride,
                    float* __restrict__ out) {  // (frames, planes, plane)
  long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (element >= plane * n_planes) return;
  long long source = increment_plane == plane ? element : element / plane;
  out[blockIdx.z * plane * n_planes + element] =
      planes[blockIdx.z * planes_stride + element] + increment[blockIdx.z * increment_stride + source];
}

// Thread: one element of the flow; frames are added in order, so that batches do not matter.
__global__ void add_frames(const float* __restrict__ flow,  // (frames, frame)
                           int first, int frames, long long frame,
                           double* __restrict__ total) {  // (frame)
  long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (element >= frame) return;
  double sum = total[element];
  for (int k = first; k < frames; ++k) sum += flow[k * frame + element];
  total[element] = sum;
}

// Thread: one pixel of all frames. Flows are rounded to 1/256 pixel, so that whole numbers are summed and the order does
// not matter; a frame is outside at a pixel that the warp takes from outside of it.
__global__ void add_field(const float* __restrict__ flow,  // (frames, 2, height, width)
                          int frames, int height, int width,
                          long long* __restrict__ sums) {  // (4, height, width): u, v, u^2 + v^2, outside
  const long long plane = (long long)height * width, pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= plane) return;
  const int y = (int)(pixel / width), x = (int)(pixel - (long long)y * width);
  long long sum_u = sums[pixel], sum_v = sums[plane + pixel], squares = sums[2 * plane + pixel];
  long long outside = sums[3 * plane + pixel];
  for (int k = 0; k < frames; ++k) {
    const float u = flow[2 * k * plane + pixel], v = flow[(2 * k + 1) * plane + pixel];
    const long long a = (long long)rintf(u * 256.0f), b = (long long)rintf(v * 256.0f);
    sum_u += a;
    sum_v += b;
    squares += a * a + b * b;
    outside += !lies_inside((float)x + u, (float)y + v, height, width);
  }
  sums[pixel] = sum_u;
  sums[plane + pixel] = sum_v;
  sums[2 * plane + pixel] = squares;
  sums[3 * plane + pixel] = outside;
}

// Thread: one pixel of a frame; planes to pairs.
__global__ void interleave(const float* __restrict__ flow,  // (frames, 2, plane)
                           long long plane,
                           float* __restrict__ out) {  // (frames, plane, 2)
  long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= plane) return;
  const float* u = flow + blockIdx.z * 2 * plane;
  long long first = 2 * (blockIdx.z * plane + pixel);
  out[first] = u[pixel];
  out[first + 1] = u[plane + pixel];
}
