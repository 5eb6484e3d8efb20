// Vectors of the widest kind that this translation unit may use. GCC's vector extensions do the arithmetic (Clang has them
// too); intrinsics are used only where they are faster. This is written by hand, because PyPI has no portable SIMD library
// as a build requirement, and the libraries of distributions are too old for dispatch at run time.
// No standard C++ header here: a function template instantiated under -mavx512f could be the copy the linker keeps.
#ifndef GLUON_KL_SIMD_H_
#define GLUON_KL_SIMD_H_

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {  // each translation unit has its own copy, compiled for its own instruction set

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T> struct VecOf;
template <> struct VecOf<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef uint32_t U __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
  typedef uint32_t Bits;
};
template <> struct VecOf<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef uint64_t U __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
  typedef uint64_t Bits;
};
template <class T> using Vec = typename VecOf<T>::V;
template <class T> constexpr int kLanes = kBytes / sizeof(T);

#define KL_INLINE inline __attribute__((always_inline))

template <class T> constexpr T inf() { return static_cast<T>(__builtin_inf()); }
template <class T> constexpr T nan() { return static_cast<T>(__builtin_nan("")); }

template <class T> KL_INLINE Vec<T> splat(T x) { return x - Vec<T>{}; }
template <class T> KL_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T> KL_INLINE void store(T* p, Vec<T> v) { memcpy(p, &v, sizeof v); }

// The first m lanes, the others filled.
template <class T> KL_INLINE Vec<T> load_part(const T* p, int64_t m, T fill) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_mask_loadu_ps((__m512)splat<T>(fill), (__mmask16)((1u << m) - 1), p);
  else return (Vec<T>)_mm512_mask_loadu_pd((__m512d)splat<T>(fill), (__mmask8)((1u << m) - 1), p);
#else
  Vec<T> v = splat<T>(fill);
  memcpy(&v, p, m * sizeof(T));
  return v;
#endif
}
// The first m lanes of v; 0 in the others.
template <class T> KL_INLINE Vec<T> first_lanes(Vec<T> v, int64_t m) {
  using I = typename VecOf<T>::I;
  I lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < static_cast<decltype(+lane[0])>(m) ? v : Vec<T>{};
}
template <class T> KL_INLINE void store_part(T* p, int64_t m, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << m) - 1), (__m512)v);
  else _mm512_mask_storeu_pd(p, (__mmask8)((1u << m) - 1), (__m512d)v);
#else
  memcpy(p, &v, m * sizeof(T));
#endif
}

// Past the cache, to an address that is a multiple of the vector.
template <class T> KL_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  store<T>(p, v);
#endif
}
// Makes streamed stores visible before another thread is told that they are done.
KL_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// a > b ? a : b, and a < b ? a : b, like the processor's instructions: b if one is NaN.
template <class T> KL_INLINE Vec<T> Max(Vec<T> a, Vec<T> b) {
  [[maybe_unused]] constexpr bool single = sizeof(T) == 4;
#if defined(__AVX512F__)
  if constexpr (single) return (Vec<T>)_mm512_max_ps((__m512)a, (__m512)b);
  else return (Vec<T>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (single) return (Vec<T>)_mm256_max_ps((__m256)a, (__m256)b);
  else return (Vec<T>)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}
template <class T> KL_INLINE Vec<T> Min(Vec<T> a, Vec<T> b) {
  [[maybe_unused]] constexpr bool single = sizeof(T) == 4;
#if defined(__AVX512F__)
  if constexpr (single) return (Vec<T>)_mm512_min_ps((__m512)a, (__m512)b);
  else return (Vec<T>)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (single) return (Vec<T>)_mm256_min_ps((__m256)a, (__m256)b);
  else return (Vec<T>)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
  return a < b ? a : b;
#endif
}

// a * b + c, where c may be a product, which is rounded. Otherwise a compiler rounds one product in one loop and the other
// product in the next.
template <class T> KL_INLINE Vec<T> MulAdd(Vec<T> a, Vec<T> b, Vec<T> c) {
  [[maybe_unused]] constexpr bool single = sizeof(T) == 4;
#if defined(__AVX512F__)
  if constexpr (single) return (Vec<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else return (Vec<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  if constexpr (single) return (Vec<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else return (Vec<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// Of a bound and x; NaN stays.
template <class T> KL_INLINE Vec<T> Max(T bound, Vec<T> x) { return Max<T>(splat<T>(bound), x); }
template <class T> KL_INLINE Vec<T> Min(T bound, Vec<T> x) { return Min<T>(splat<T>(bound), x); }

// Whether a lane of v, which holds no -0, is not 0.
template <class T> KL_INLINE bool any(Vec<T> v) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)v, (__m512i)v);
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#else
  uint64_t words[kBytes / 8], all = 0;
  memcpy(words, &v, sizeof v);
  for (uint64_t word : words) all |= word;
  return all;
#endif
}

template <class T> KL_INLINE T MaxOfLanes(Vec<T> v) {
  T best = v[0];
  for (int i = 1; i < kLanes<T>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// Sums in double, one per lane: float vectors are added up for a block of categories only, then moved here.
template <class T> struct Sums {
  static constexpr int kParts = sizeof(double) / sizeof(T);
  Vec<double> part[kParts];

  static KL_INLINE void widen(Vec<T> v, Vec<double>* wide) {
    typedef T Piece __attribute__((vector_size(kBytes / kParts)));
    Piece piece[kParts];
    memcpy(piece, &v, sizeof v);
    for (int i = 0; i < kParts; ++i) wide[i] = __builtin_convertvector(piece[i], Vec<double>);
  }
  KL_INLINE void clear() {
    for (auto& p : part) p = Vec<double>{};
  }
  KL_INLINE void add(Vec<T> v) {
    Vec<double> wide[kParts];
    widen(v, wide);
    for (int i = 0; i < kParts; ++i) part[i] += wide[i];
  }
  KL_INLINE void scale(Vec<T> v) {
    Vec<double> wide[kParts];
    widen(v, wide);
    for (int i = 0; i < kParts; ++i) part[i] *= wide[i];
  }
  KL_INLINE void divide(const Sums& by) {
    for (int i = 0; i < kParts; ++i) part[i] /= by.part[i];
  }
  // All lanes added up, in every lane.
  KL_INLINE void join() {
    double lanes[kLanes<double>];
    Vec<double> sum = part[0];
    for (int i = 1; i < kParts; ++i) sum += part[i];
    memcpy(lanes, &sum, sizeof sum);
    for (int width = kLanes<double> / 2; width; width /= 2)
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    for (int i = 0; i < kParts; ++i) part[i] = splat<double>(lanes[0]);
  }
  KL_INLINE Vec<T> narrow() const {
    typedef T Piece __attribute__((vector_size(kBytes / kParts)));
    Piece piece[kParts];
    for (int i = 0; i < kParts; ++i) piece[i] = __builtin_convertvector(part[i], Piece);
    Vec<T> v;
    memcpy(&v, piece, sizeof v);
    return v;
  }
  KL_INLINE void get(double* lanes, int64_t count) const { memcpy(lanes, part, count * sizeof(double)); }
  KL_INLINE double first() const { return part[0][0]; }
};

// Copies a run of numbers; with `past_cache` it bypasses the cache.
template <class T> KL_INLINE void copy_run(T* to, const T* from, int64_t count, bool past_cache) {
  int64_t i = 0;
  if (past_cache) {
    const int64_t skew = reinterpret_cast<uintptr_t>(to) % kBytes / sizeof(T);
    const int64_t head = skew ? kLanes<T> - skew : 0;
    if (head <= count) {
      for (; i < head; ++i) to[i] = from[i];
      for (; i + kLanes<T> <= count; i += kLanes<T>) stream(to + i, load(from + i));
    }
  }
  for (; i + kLanes<T> <= count; i += kLanes<T>) store<T>(to + i, load(from + i));
  if (i < count) store_part(to + i, count - i, load_part(from + i, count - i, T(0)));
}

// ---- transposing -------------------------------------------------------------------------------------------------
// Floats in squares of 4 by 4 (four squares at once with AVX-512). Both return how many rows they did; n < 4 and the
// rows left over are for plain loops. Where n is no multiple of 4 the last square overlaps the one before.
#if defined(__AVX512F__)
constexpr int64_t kSquareRows = 16;
typedef __m512 Square;
KL_INLINE Square square_load(const float* p, int64_t n) {  // rows 0, 4, 8, 12
  Square v = _mm512_castps128_ps512(_mm_loadu_ps(p));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 4 * n), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 8 * n), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(p + 12 * n), 3);
}
KL_INLINE void square_store(float* p, int64_t n, Square v) {
  _mm_storeu_ps(p, _mm512_castps512_ps128(v));
  _mm_storeu_ps(p + 4 * n, _mm512_extractf32x4_ps(v, 1));
  _mm_storeu_ps(p + 8 * n, _mm512_extractf32x4_ps(v, 2));
  _mm_storeu_ps(p + 12 * n, _mm512_extractf32x4_ps(v, 3));
}
KL_INLINE void square_turn(Square* v) {
  const Square a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
  const Square c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
  v[0] = _mm512_shuffle_ps(a, c, 0x44), v[1] = _mm512_shuffle_ps(a, c, 0xee);
  v[2] = _mm512_shuffle_ps(b, d, 0x44), v[3] = _mm512_shuffle_ps(b, d, 0xee);
}
KL_INLINE Square line_load(const float* p) { return _mm512_loadu_ps(p); }
KL_INLINE void line_store(float* p, Square v) { _mm512_storeu_ps(p, v); }
#elif defined(__x86_64__)
constexpr int64_t kSquareRows = 4;
typedef __m128 Square;
KL_INLINE Square square_load(const float* p, int64_t) { return _mm_loadu_ps(p); }
KL_INLINE void square_store(float* p, int64_t, Square v) { _mm_storeu_ps(p, v); }
KL_INLINE void square_turn(Square* v) { _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]); }
KL_INLINE Square line_load(const float* p) { return _mm_loadu_ps(p); }
KL_INLINE void line_store(float* p, Square v) { _mm_storeu_ps(p, v); }
#endif

inline int64_t transpose_in_vectors(const float* from, int64_t rows, int64_t n, float* to, int64_t stride) {
  int64_t i = 0;
#if defined(__x86_64__)
  for (; n >= 4 && i + kSquareRows <= rows; i += kSquareRows)
    for (int64_t k = 0; k < n; k += 4) {
      const int64_t at = k + 4 <= n ? k : n - 4;
      Square v[4];
      for (int j = 0; j < 4; ++j) v[j] = square_load(from + (i + j) * n + at, n);
      square_turn(v);
      for (int j = 0; j < 4; ++j) line_store(to + (at + j) * stride + i, v[j]);
    }
#endif
  return i;
}
inline int64_t transpose_out_vectors(const float* from, int64_t stride, int64_t rows, int64_t n, float* to) {
  int64_t i = 0;
#if defined(__x86_64__)
  for (; n >= 4 && i + kSquareRows <= rows; i += kSquareRows)
    for (int64_t k = 0; k < n; k += 4) {
      const int64_t at = k + 4 <= n ? k : n - 4;
      Square v[4];
      for (int j = 0; j < 4; ++j) v[j] = line_load(from + (at + j) * stride + i);
      square_turn(v);
      for (int j = 0; j < 4; ++j) square_store(to + (i + j) * n + at, n, v[j]);
    }
#endif
  return i;
}

}  // namespace
#endif  // GLUON_KL_SIMD_H_
