// Converts runs of numbers of any type to the computing type and back.
#ifndef GLUON_KL_CONVERT_H_
#define GLUON_KL_CONVERT_H_

#include "job.h"
#include "vector_math.h"

namespace {

using namespace gluon_kl;

KL_INLINE float half_to_float(uint16_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  float f;
  if (magnitude >= 0x7c00u) {  // inf, NaN
    const uint32_t bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    memcpy(&f, &bits, 4);
  } else if (magnitude < 0x400u) {
    f = magnitude * 5.9604644775390625e-8f;  // denormal: a count of 2^-24
  } else {
    const uint32_t bits = (magnitude << 13) + 0x38000000u;
    memcpy(&f, &bits, 4);
  }
  return h & 0x8000u ? -f : f;
}

// Rounds to the nearest half, ties to even; overflow gives inf.
KL_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;
  if (bits >= 0x477ff000u) return sign | 0x7c00u;
  if (bits < 0x38800000u) {  // result is denormal: adding 1/2 leaves the count of 2^-24 in the low bits, rounded
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return sign | static_cast<uint16_t>(bits - 0x3f000000u);
  }
  bits += 0xc8000fffu + (bits >> 13 & 1u);
  return sign | static_cast<uint16_t>(bits >> 13);
}

inline void half_in(float* to, const uint16_t* from, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#endif
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}
inline void half_in(double* to, const uint16_t* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = half_to_float(from[i]);
}
inline void half_out(uint16_t* to, const float* from, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; ++i) to[i] = float_to_half(from[i]);
}
// A double that is no float becomes the neighbouring float whose last bit is odd. Rounded again, to half, this gives the
// same as the double itself would.
KL_INLINE float to_odd(double x) {
  float f = static_cast<float>(x);
  if (f == x || f != f) return f;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const bool above = __builtin_fabs(f) > __builtin_fabs(x);  // of magnitudes: a tiny negative x gives -0, which is not below 0
  if (!(bits & 1)) bits += above ? -1 : 1;
  memcpy(&f, &bits, 4);
  return f;
}
inline void half_out(uint16_t* to, const double* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_to_half(to_odd(from[i]));
}

template <class T, class From> void copy_in(T* to, const From* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
}
// A gradient in an integer type: truncated, kept in range (a plain cast would be undefined there), and 0 for NaN.
template <class To, class T> void copy_out_integer(To* to, const T* from, int64_t count) {
  constexpr double top = static_cast<double>(~(uint64_t(1) << 63) >> (64 - 8 * sizeof(To)));
  const double low = To(-1) < To(0) ? -top - 1 : 0, high = To(-1) < To(0) ? top : 2 * top + 1;
  for (int64_t i = 0; i < count; ++i) {
    const double x = from[i];
    if (x >= high) to[i] = static_cast<To>(sizeof(To) == 8 ? INT64_MAX : static_cast<int64_t>(high));
    else if (x <= low) to[i] = static_cast<To>(sizeof(To) == 8 ? INT64_MIN : static_cast<int64_t>(low));
    else to[i] = x == x ? static_cast<To>(x) : To(0);
  }
}

// Reads `count` numbers from element `offset` on, in the computing type.
template <class T> void convert_in(T* to, const void* from, Type type, int64_t offset, int64_t count) {
  switch (type) {
    case kFloat32: return copy_in(to, static_cast<const float*>(from) + offset, count);
    case kFloat64: return copy_in(to, static_cast<const double*>(from) + offset, count);
    case kFloat16: return half_in(to, static_cast<const uint16_t*>(from) + offset, count);
    case kInt32: return copy_in(to, static_cast<const int32_t*>(from) + offset, count);
    case kInt64: return copy_in(to, static_cast<const int64_t*>(from) + offset, count);
    case kInt8: return copy_in(to, static_cast<const int8_t*>(from) + offset, count);
    case kUint8:
    case kBool: return copy_in(to, static_cast<const uint8_t*>(from) + offset, count);
  }
}
template <class T> void convert_out(void* to, Type type, int64_t offset, const T* from, int64_t count) {
  switch (type) {
    case kFloat32: return copy_in(static_cast<float*>(to) + offset, from, count);
    case kFloat64: return copy_in(static_cast<double*>(to) + offset, from, count);
    case kFloat16: return half_out(static_cast<uint16_t*>(to) + offset, from, count);
    case kInt32: return copy_out_integer(static_cast<int32_t*>(to) + offset, from, count);
    case kInt64: return copy_out_integer(static_cast<int64_t*>(to) + offset, from, count);
    case kInt8: return copy_out_integer(static_cast<int8_t*>(to) + offset, from, count);
    case kUint8:
    case kBool: return copy_out_integer(static_cast<uint8_t*>(to) + offset, from, count);
  }
}

inline double number(const void* from, Type type, int64_t i) {
  double x = 0;
  convert_in(&x, from, type, i, 1);
  return x;
}

template <class T> constexpr Type type_of() { return sizeof(T) == 4 ? kFloat32 : kFloat64; }

}  // namespace
#endif  // GLUON_KL_CONVERT_H_
