// Vectors of the widest kind this translation unit may use, with exp and log. GCC's vector extensions carry the
// arithmetic (Clang has them too); intrinsics stand only where they save what the extensions cannot say. By hand, since
// no portable SIMD library can be had as a build requirement from PyPI, and those that distributions carry are too old
// for dispatch at run time. tests/native/accuracy.cc states the error of each function in ULP, and its range.
// No standard C++ header here: a function template instantiated under -mavx512f could be the copy the linker keeps.
#ifndef GLUON_KL_VEC_H_
#define GLUON_KL_VEC_H_

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
// Makes streamed stores visible before whatever tells another thread that they are done.
KL_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// a > b ? a : b, and a < b ? a : b, as the processor has them: b where one is NaN.
template <class T> KL_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
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
template <class T> KL_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
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

// a * b + c, where c may be a product: it is rounded. Left to itself a compiler rounds one in one loop, another in the next.
template <class T> KL_INLINE Vec<T> times_plus(Vec<T> a, Vec<T> b, Vec<T> c) {
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

// NaN in x is passed over: the sum of exponentials that follows keeps it.
template <class T> KL_INLINE Vec<T> max_over(Vec<T> best, Vec<T> x) { return larger<T>(x, best); }

// The larger and the smaller of a bound and x; NaN stays.
template <class T> KL_INLINE Vec<T> most(T bound, Vec<T> x) { return larger<T>(splat<T>(bound), x); }
template <class T> KL_INLINE Vec<T> least(T bound, Vec<T> x) { return smaller<T>(splat<T>(bound), x); }

// Whether a lane of v, which holds no -0, is not 0.
template <class T> KL_INLINE bool any(Vec<T> v) {
  uint64_t words[kBytes / 8], all = 0;
  memcpy(words, &v, sizeof v);
  for (uint64_t word : words) all |= word;
  return all;
}

template <class T> KL_INLINE T hmax(Vec<T> v) {
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

// Copies a run of numbers, past the cache if asked.
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

// ---- exp ---------------------------------------------------------------------------------------------------------
// x = k ln 2 + r, |r| <= ln(2)/2; e^r by a polynomial; times 2^k in two steps, so that results below the smallest
// normal number round once and do not vanish early. exp(-inf) = 0, exp(NaN) = NaN, overflow gives inf.
KL_INLINE Vec<float> exp_slope(Vec<float> r) {  // (e^r - 1) / r
  // Fitted for the least relative error of e^r on |r| <= ln(2)/2: 3e-9.
  Vec<float> p = splat(0.001381459878757596f);
  p = p * r + 0.008368716575205326f;
  p = p * r + 0.04166838899254799f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  return p * r + 1.0f;
}
KL_INLINE Vec<double> exp_slope(Vec<double> r) {
  // Taylor to r^13: the next term is below 5e-18.
  constexpr double c[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                          1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
  Vec<double> p = splat(c[0]);
  for (int i = 1; i < 12; ++i) p = p * r + c[i];
  return p * r + 1.0;
}

template <class T> struct ExpRange;
template <> struct ExpRange<float> {
  static constexpr float low = -104.0f, high = 89.0f, shift = 12582912.0f;  // 1.5 * 2^23
  static constexpr float log2e = 1.44269504088896341f, ln2_hi = 0.693145751953125f, ln2_lo = 1.42860682030941723e-6f;
  static constexpr float least_normal = -87.33654f, fits = 88.0f;  // between them exponentials are normal numbers
  static constexpr int mantissa = 23, bias = 127;
};
template <> struct ExpRange<double> {
  static constexpr double low = -746.0, high = 710.0, shift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double log2e = 1.44269504088896341, ln2_hi = 0.693147180369123816490, ln2_lo = 1.90821492927058770002e-10;
  static constexpr double least_normal = -708.396418532264, fits = 709.0;
  static constexpr int mantissa = 52, bias = 1023;
};

// v * 2^k, where k = shifted - shift.
template <class T> KL_INLINE Vec<T> times_power(Vec<T> v, Vec<T> k, Vec<T> shifted) {
#if defined(__AVX512F__)
  (void)shifted;
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_scalef_ps((__m512)v, (__m512)k);
  else return (Vec<T>)_mm512_scalef_pd((__m512d)v, (__m512d)k);
#else
  using R = ExpRange<T>;
  using I = typename VecOf<T>::I;
  using U = typename VecOf<T>::U;
  const U ik = (U)shifted - (U)splat<T>(R::shift);
  const U half = (U)((I)ik >> 1);
  const Vec<T> s1 = (Vec<T>)((half + R::bias) << R::mantissa);
  const Vec<T> s2 = (Vec<T>)((ik - half + R::bias) << R::mantissa);
  return v * s1 * s2;
#endif
}

// e^r - 1, k, and k + shift, whose low bits are k as an integer.
template <class T> struct Reduced {
  Vec<T> p, k, shifted;
  explicit KL_INLINE Reduced(Vec<T> x) {
    using R = ExpRange<T>;
    shifted = x * R::log2e + R::shift;
    k = shifted - R::shift;
    const Vec<T> r = (x - k * R::ln2_hi) - k * R::ln2_lo;
    p = exp_slope(r) * r;
  }
};

// e^x and e^x - 1, each to its last digits, of an x that is not below `low` nor above `fits`; up to `high` e^x alone.
template <class T> struct ExpPair { Vec<T> e, minus_one; };
template <class T> KL_INLINE ExpPair<T> exp_pair_within(Vec<T> x) {
  const Reduced<T> by(x);
  const Vec<T> e = times_power<T>(by.p + T(1), by.k, by.shifted);
  const Vec<T> power = times_power<T>(splat(T(1)), by.k, by.shifted);
  return {e, by.p * power + (power - T(1))};
}
template <class T> KL_INLINE Vec<T> exp(Vec<T> x) {
  return exp_pair_within<T>(least<T>(ExpRange<T>::high, most<T>(ExpRange<T>::low, x))).e;
}

// The same of an x that is not above `fits`; 0 and -1 where e^x is below the smallest normal number. Two thirds of the
// work where no instruction scales by a power of 2.
template <class T> KL_INLINE ExpPair<T> exp_pair_down(Vec<T> x) {
#if defined(__AVX512F__)
  return exp_pair_within<T>(most<T>(ExpRange<T>::low, x));
#else
  using R = ExpRange<T>;
  using U = typename VecOf<T>::U;
  const Reduced<T> by(x);
  const U k = (U)by.shifted << R::mantissa;
  const Vec<T> e = (Vec<T>)((U)(by.p + T(1)) + k), power = (Vec<T>)((U)splat(T(1)) + k);
  const auto none = x < R::least_normal;
  const Vec<T> minus_one = by.p * power + (power - T(1));
  return {none ? Vec<T>{} : e, none ? splat(T(-1)) : minus_one};
#endif
}
template <class T> KL_INLINE Vec<T> exp_down(Vec<T> x) { return exp_pair_down<T>(x).e; }  // in a softmax, x <= 0

// ---- log ---------------------------------------------------------------------------------------------------------
// x = 2^e m, 3/4 <= m < 3/2, f = m - 1. log(0) = -inf, log(inf) = inf, log of a negative number = NaN.
KL_INLINE Vec<float> log1p_poly(Vec<float> f, Vec<float> e_lo) {
  // Fitted for the least relative error on -0.293 <= f <= 0.5: 1.2e-8.
  constexpr float c[] = {-0.055683985352516174f, 0.11690684407949448f, -0.13479763269424438f, 0.14389750361442566f,
                         -0.1660766303539276f,   0.1999133825302124f,  -0.2500109374523163f,  0.33333471417427063f};
  // In pairs, so that fewer steps wait for the one before; where two logarithms follow each other that shows.
  const Vec<float> f2 = f * f, f4 = f2 * f2;
  const Vec<float> p = ((c[0] * f + c[1]) * f2 + (c[2] * f + c[3])) * f4 + ((c[4] * f + c[5]) * f2 + (c[6] * f + c[7]));
  return f + times_plus<float>(f2, p * f - 0.5f, e_lo);
}
KL_INLINE Vec<double> log1p_poly(Vec<double> f, Vec<double> e_lo) {
  // log1p(f) = 2 atanh(s), s = f / (2 + f), |s| <= 1/5: the series to s^25, then f - (f^2/2 - s (f^2/2 + R)).
  const Vec<double> s = f / (f + 2.0), z = s * s, half = f * f * 0.5;
  Vec<double> p = splat(2.0 / 25);
  for (int i = 23; i >= 3; i -= 2) p = p * z + 2.0 / i;
  return f - (half - times_plus<double>(s, half + z * p, e_lo));
}

// log m of m = 1 + x: from x itself where that is near 0, so that the result keeps the digits that m has lost.
template <bool kNearOne, class T> KL_INLINE Vec<T> log_of(Vec<T> x, Vec<T> value) {
  using R = ExpRange<T>;
  const auto near = (x > T(-0.2499)) & (x < T(0.4999));  // so that value is one whose e is 0
  Vec<T> m, e;
#if defined(__AVX512F__)
  // getmant and getexp know denormals, 0, inf and NaN, and turn a negative number into NaN.
  if constexpr (sizeof(T) == 4) {
    m = (Vec<T>)_mm512_getmant_ps((__m512)value, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    e = (Vec<T>)_mm512_getexp_ps((__m512)value);
  } else {
    m = (Vec<T>)_mm512_getmant_pd((__m512d)value, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    e = (Vec<T>)_mm512_getexp_pd((__m512d)value);
  }
  e = m < T(1) ? e + T(1) : e;
  Vec<T> f = m - T(1);
  if (kNearOne) f = near ? x : f;  // there e is 0
  return e * R::ln2_hi + log1p_poly(f, e * R::ln2_lo);
#else
  using I = typename VecOf<T>::I;
  using U = typename VecOf<T>::U;
  constexpr T smallest = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
  constexpr T lift = T(int64_t(1) << R::mantissa) * T(2);
  const Vec<T> lifted = value < smallest ? value * lift : value;  // denormals become normal
  const Vec<T> unlift = value < smallest ? splat<T>(R::mantissa + 1) : Vec<T>{};
  const U base = (U)splat<T>(T(0.75));
  const U offset = (U)lifted - base;
  constexpr auto mantissa = (typename VecOf<T>::Bits(1) << R::mantissa) - 1;
  m = (Vec<T>)((offset & mantissa) + base);
  e = __builtin_convertvector((I)offset >> R::mantissa, Vec<T>) - unlift;
  Vec<T> f = m - T(1);
  if (kNearOne) f = near ? x : f;
  Vec<T> r = e * R::ln2_hi + log1p_poly(f, Vec<T>(e * R::ln2_lo));
  r = value < inf<T>() ? r : value;  // inf and NaN are their own logarithm
  const Vec<T> outside = value < T(0) ? splat(nan<T>()) : splat(-inf<T>());
  return value <= T(0) ? outside : r;
#endif
}
template <class T> KL_INLINE Vec<T> log(Vec<T> x) { return log_of<false, T>(Vec<T>{}, x); }
template <class T> KL_INLINE Vec<T> log1p(Vec<T> x, Vec<T> one_more) { return log_of<true, T>(x, one_more); }
template <class T> KL_INLINE Vec<T> log1p(Vec<T> x) { return log1p<T>(x, x + T(1)); }

// g(u) = u + expm1(-u) >= 0 for |u| < 1, with its leading digits near 0, where the sum would lose them: u^2 times
// 1/2! - u/3! + u^2/4! - ...
template <class T> struct GapSeries {  // to the next term below 1e-17 of the sum
  static constexpr int terms = 18;
  T c[terms] = {};
  constexpr GapSeries() {
    double factorial = 1;
    for (int i = 0; i < terms; ++i) {
      factorial *= i + 2;
      c[i] = static_cast<T>((i % 2 ? -1 : 1) / factorial);
    }
  }
};
template <> struct GapSeries<float> {  // fitted for the least relative error: 1e-8
  static constexpr int terms = 8;
  float c[terms] = {0.5f,                   -0.1666666716337204f,     0.04166673496365547f,   -0.00833331048488617f,
                    0.001388545148074627f, -0.00019844024791382253f, 2.535482963139657e-05f, -2.772278776319581e-06f};
};
template <class T> KL_INLINE Vec<T> gap(Vec<T> u) {
  constexpr GapSeries<T> series;
  Vec<T> p = splat<T>(series.c[series.terms - 1]);
  for (int i = series.terms - 2; i >= 0; --i) p = p * u + series.c[i];
  return p * (u * u);
}

}  // namespace
#endif  // GLUON_KL_VEC_H_
