// Exponentials and logarithms of vectors. The comment of each function gives its largest error for floats and for doubles,
// in units of the last place (ULP) of the result, and the range in which tests/native/accuracy.cc found it with any
// instruction set.
#ifndef GLUON_KL_VECTOR_MATH_H_
#define GLUON_KL_VECTOR_MATH_H_

#include "simd.h"

namespace {

// ---- exp ---------------------------------------------------------------------------------------------------------
// x = k ln 2 + r, |r| <= ln(2)/2; e^r by a polynomial; times 2^k in two steps, so that results below the smallest
// normal number round once and do not vanish early. exp(-inf) = 0, exp(NaN) = NaN, overflow gives inf.
// (e^r - 1) / r for |r| <= ln(2)/2, within 3e-9 of it (float) and 5e-18 (double).
KL_INLINE Vec<float> exp_slope(Vec<float> r) {
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

// v * 2^k, where k = shifted - shift; exact, but rounded once where the result is below the smallest normal number.
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

// e^x and e^x - 1 of an x from `low` to `fits`; up to `high` e^x alone. Errors as those of exp and exp_pair_down.
template <class T> struct ExpPair { Vec<T> e, minus_one; };
template <class T> KL_INLINE ExpPair<T> exp_pair_within(Vec<T> x) {
  const Reduced<T> by(x);
  const Vec<T> e = times_power<T>(by.p + T(1), by.k, by.shifted);
  const Vec<T> power = times_power<T>(splat(T(1)), by.k, by.shifted);
  return {e, by.p * power + (power - T(1))};
}
// 0.87 and 0.84 ULP, for every x: -103.9 to 88.7 (float) and -745.1 to 709.7 (double), beyond which it is 0 or inf.
template <class T> KL_INLINE Vec<T> exp(Vec<T> x) {
  return exp_pair_within<T>(Min<T>(ExpRange<T>::high, Max<T>(ExpRange<T>::low, x))).e;
}

// e^x and e^x - 1 of an x that is not above `fits`, 88 (float) and 709 (double); 0 and -1 where e^x is below the smallest
// normal number. e^x: 0.87 and 0.84 ULP. e^x - 1: 1.9 and 2.3 ULP. Two thirds of the work of exp where no instruction
// scales by a power of 2.
template <class T> KL_INLINE ExpPair<T> exp_pair_down(Vec<T> x) {
#if defined(__AVX512F__)
  return exp_pair_within<T>(Max<T>(ExpRange<T>::low, x));
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
// e^x alone, as above: 0.87 and 0.84 ULP. In a softmax x <= 0.
template <class T> KL_INLINE Vec<T> exp_down(Vec<T> x) { return exp_pair_down<T>(x).e; }

// ---- log ---------------------------------------------------------------------------------------------------------
// x = 2^e m, 3/4 <= m < 3/2, f = m - 1. log(0) = -inf, log(inf) = inf, log of a negative number = NaN.
// (log(1 + f) - f) / f^2 for -0.25 <= f <= 0.5.
KL_INLINE Vec<float> log1p_tail(Vec<float> f) {
  // Fitted for the least relative error on -0.293 <= f <= 0.5: 1.2e-8.
  constexpr float c[] = {-0.055683985352516174f, 0.11690684407949448f, -0.13479763269424438f, 0.14389750361442566f,
                         -0.1660766303539276f,   0.1999133825302124f,  -0.2500109374523163f,  0.33333471417427063f};
  // In pairs, so that fewer steps wait for the one before; where two logarithms follow each other that shows.
  const Vec<float> f2 = f * f, f4 = f2 * f2;
  const Vec<float> p = ((c[0] * f + c[1]) * f2 + (c[2] * f + c[3])) * f4 + ((c[4] * f + c[5]) * f2 + (c[6] * f + c[7]));
  return p * f - 0.5f;
}
// log(1 + f) + e_lo for -0.25 <= f <= 0.5, within 1.2e-8 of it (float) and 1e-17 (double) before rounding.
KL_INLINE Vec<float> log1p_poly(Vec<float> f, Vec<float> e_lo) { return f + MulAdd<float>(f * f, log1p_tail(f), e_lo); }
// log1p(f) = 2 atanh(s), s = f / (2 + f), |s| <= 1/5: the series to s^25, then f - (f^2/2 - s (f^2/2 + R)).
struct Log1pSeries {
  Vec<double> s, half, rest;
  explicit KL_INLINE Log1pSeries(Vec<double> f) {
    s = f / (f + 2.0), half = f * f * 0.5;
    const Vec<double> z = s * s;
    Vec<double> p = splat(2.0 / 25);
    for (int i = 23; i >= 3; i -= 2) p = p * z + 2.0 / i;
    rest = half + z * p;
  }
};
KL_INLINE Vec<double> log1p_poly(Vec<double> f, Vec<double> e_lo) {
  const Log1pSeries by(f);
  return f - (by.half - MulAdd<double>(by.s, by.rest, e_lo));
}
// f - log(1 + f): 5.6 and 2.0 ULP for -0.25 <= f <= 0.5, and for no other f. The difference would lose its digits near 0.
KL_INLINE Vec<float> log1p_excess_poly(Vec<float> f) { return f * f * -log1p_tail(f); }
KL_INLINE Vec<double> log1p_excess_poly(Vec<double> f) {
  const Log1pSeries by(f);
  return by.half - by.s * by.rest;
}
template <class T> KL_INLINE Vec<T> log1p_excess(Vec<T> f) { return log1p_excess_poly(f); }

// log(value); if kNearOne value is 1 + x, and where x is near 0 the result follows from it, with the digits that value has
// lost. Errors as those of log and log1p.
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
// 0.96 and 0.87 ULP, for every x from the smallest subnormal number to the largest.
template <class T> KL_INLINE Vec<T> log(Vec<T> x) { return log_of<false, T>(Vec<T>{}, x); }
// log(1 + x), x and 1 + x given, or x alone: 2.1 and 2.0 ULP from 0 to 1e6, 2.5 and 2.4 ULP from -0.5 to 0.
template <class T> KL_INLINE Vec<T> log1p(Vec<T> x, Vec<T> one_more) { return log_of<true, T>(x, one_more); }
template <class T> KL_INLINE Vec<T> log1p(Vec<T> x) { return log1p<T>(x, x + T(1)); }

// The series of unit_excess, below: u^2 times 1/2! - u/3! + u^2/4! - ...
template <class T> struct UnitExcessSeries {  // to the next term below 1e-17 of the sum
  static constexpr int terms = 18;
  T c[terms] = {};
  constexpr UnitExcessSeries() {
    double factorial = 1;
    for (int i = 0; i < terms; ++i) {
      factorial *= i + 2;
      c[i] = static_cast<T>((i % 2 ? -1 : 1) / factorial);
    }
  }
};
template <> struct UnitExcessSeries<float> {  // fitted for the least relative error: 1e-8
  static constexpr int terms = 8;
  float c[terms] = {0.5f,                   -0.1666666716337204f,     0.04166673496365547f,   -0.00833331048488617f,
                    0.001388545148074627f, -0.00019844024791382253f, 2.535482963139657e-05f, -2.772278776319581e-06f};
};
// u + expm1(-u), which is u^2 / 2 - ... near 0, where the sum would lose its digits: 2.0 and 3.0 ULP for |u| <= 1, and for no
// other u. It is the excess (form.h) of p = 1.
template <class T> KL_INLINE Vec<T> unit_excess(Vec<T> u) {
  constexpr UnitExcessSeries<T> series;
  Vec<T> p = splat<T>(series.c[series.terms - 1]);
  for (int i = series.terms - 2; i >= 0; --i) p = p * u + series.c[i];
  return p * (u * u);
}

// ---- expm1 -------------------------------------------------------------------------------------------------------
// (e^r - 1 - r) / r^2 for |r| <= ln(2)/2, within 8e-9 (float) and 3e-18 (double) of it, relative.
KL_INLINE Vec<float> expm1_tail(Vec<float> r) {
  Vec<float> p = splat(0.00019851932302117348f);  // fitted for the least relative error, but for the first
  p = p * r + 0.0013930614804849029f;
  p = p * r + 0.008333367295563221f;
  p = p * r + 0.041666511446237564f;
  p = p * r + 0.1666666716337204f;
  return p * r + 0.5f;
}
KL_INLINE Vec<double> expm1_tail(Vec<double> r) {
  constexpr double c[] = {1.0 / 1307674368000, 1.0 / 87178291200, 1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800,
                          1.0 / 3628800,       1.0 / 362880,      1.0 / 40320,      1.0 / 5040,      1.0 / 720,
                          1.0 / 120,           1.0 / 24,          1.0 / 6,          0.5};
  Vec<double> p = splat(c[0]);
  for (int i = 1; i < 14; ++i) p = p * r + c[i];
  return p;
}
// Half of e^x - 1, 1.4 and 1.9 ULP, and half of e^x - 1 - x, 2.0 and 3.0 ULP, of an x from `least` up. With x = k ln 2 + r both
// follow from e^r - 1 - r, which keeps its digits, and from 2^k - 1 and k ln 2, whose difference is exact. A quarter is
// what is computed: 2^k may overflow where half of e^x fits.
template <class T> struct Expm1 {
  // Below, e^x adds nothing to 1. Above `most` the results overflow.
  static constexpr T least = sizeof(T) == 4 ? T(-80) : T(-700), most = sizeof(T) == 4 ? T(89.5) : T(710.5);
  Vec<T> k, high, r, tail, quarter, rise;  // x - k ln 2 without ln 2's low part; r; e^r - 1 - r; 2^k / 4; that less 1/4
  explicit KL_INLINE Expm1(Vec<T> within) {
    using R = ExpRange<T>;
    const Vec<T> x = Min<T>(most, within), shifted = x * R::log2e + R::shift;
    k = shifted - R::shift;
    high = x - k * R::ln2_hi;
    r = high - k * R::ln2_lo;
    tail = expm1_tail(r) * (r * r);
#if defined(__AVX512F__)
    quarter = times_power<T>(splat(T(0.25)), k, shifted);
#else
    using U = typename VecOf<T>::U;
    quarter = (Vec<T>)((U)splat(T(0.25)) + ((U)shifted << R::mantissa));
#endif
    rise = quarter - T(0.25);
  }
  KL_INLINE Vec<T> half() const { return T(2) * MulAdd<T>(quarter, r + tail, rise); }
  KL_INLINE Vec<T> half_excess() const {
    const Vec<T> linear = MulAdd<T>(rise, high, rise - k * (T(0.25) * ExpRange<T>::ln2_hi));
    return T(2) * MulAdd<T>(quarter, tail - k * ExpRange<T>::ln2_lo, linear);
  }
};

}  // namespace
#endif  // GLUON_KL_VECTOR_MATH_H_
