// Pixels of raw frames, in the types of files.
#pragma once

// Arithmetic of a pixel type, and its value for a result: integers are rounded to nearest even and saturated.
template <typename T>
struct Pixel;
#define INTEGER_PIXEL(T, LOW, HIGH)                                                                     \
  template <>                                                                                           \
  struct Pixel<T> {                                                                                     \
    typedef float Real;                                                                                 \
    static __device__ __forceinline__ T from(float value) { return (T)fminf(fmaxf(rintf(value), LOW), HIGH); } \
  };
#define REAL_PIXEL(T)                                                       \
  template <>                                                               \
  struct Pixel<T> {                                                         \
    typedef T Real;                                                         \
    static __device__ __forceinline__ T from(T value) { return value; }     \
  };
INTEGER_PIXEL(unsigned char, 0.0f, 255.0f)
INTEGER_PIXEL(signed char, -128.0f, 127.0f)
INTEGER_PIXEL(unsigned short, 0.0f, 65535.0f)
INTEGER_PIXEL(short, -32768.0f, 32767.0f)
REAL_PIXEL(float)
REAL_PIXEL(double)
