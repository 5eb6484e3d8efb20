// What all forms share. A form is a struct that defines a divergence: its term, the sums over a whole row that its
// gradients need, and its gradients. The forms are in pair.h, hard_labels.h, gaussian.h and bernoulli.h. `with_form` in
// forms.h chooses the form of a job, and kernel.h goes over rows with it.
//
// A form has
//   kReads        the streams it reads, as bits
//   kGradients    the inputs that can have gradients, as bits
//   kSums         the sums over a row that its gradients through a softmax need, as bits, at most 2
//   kByValue      if both sides are softmaxes, their sums need not be computed: that of one input is the row's value, and
//                 that of the other is -1. kByValue is the first of these inputs; it is -1 if this does not hold. Saves 5 %
//                 of the forward with AVX-512, and -1 is exact
//   kTaken        the sides, as bits, whose exponentials it reads from x.e, where the loop of their softmax stored them
//   Given         the same form with kTaken of all sides whose exponentials its terms and sums use. The forward then takes
//                 0.78 of its time for two logits with AVX2, 0.9 for JS, 0.74 for distillation
//   kNear         the inputs, as bits, that also have a gradient<i, true>: it is slower, and keeps all digits in rows whose
//                 `near` is 1; for rows under one factor
//   term(row, x)  the term of one element
//   add<kTerms>(row, x, whole, per_element, sums, &term, s)
//                 what one element adds to its row: if kTerms, its term, or if `whole` another term with the same sum over
//                 a whole row; if `sums`, what it adds to each sum
//   gradient<i>(row, x, g, per_element)
//                 the gradient to input i of the sum of terms times factors; g is the factor of this element
// per_element is 1 if each element has its own factor, 0 if its row has one.
//
// A divergence between two distributions needs less: a point formula such as KL in pair.h, which Pair turns into a form.
#ifndef GLUON_KL_FORM_H_
#define GLUON_KL_FORM_H_

#include "job.h"
#include "layout.h"
#include "vector_math.h"

namespace {

using namespace gluon_kl;

// The constants of a row. A side's probability is exp((x - max) * t) * scale and its logarithm
// (x - max) * t - log; log-probabilities have 0, 0 and 1 there.
template <class T> struct RowState {
  struct { Vec<T> max, log, scale; } side[2];
  Vec<T> shift, shift_low;      // target's maximum minus pred's, as the sum of two numbers
  Vec<T> log_sums;              // target's logarithm of the sum minus pred's
  Vec<T> near;                  // 1 where both sides are logits that hardly differ, else 0
  Vec<T> hard_log, hard_scale;  // of pred's softmax at temperature 1
  Vec<T> sum[2];
};

// (a - b) - (max a - max b) of pred's logit b and target's a. The part that the subtraction rounds off is added again, unless
// it is NaN, as next to infinities.
template <class T> KL_INLINE Vec<T> difference(const RowState<T>& r, Vec<T> b, Vec<T> a) {
  const Vec<T> d = a - b, back = d - a, lost = ((a - (d - back)) - (b + back)) - r.shift_low;
  return (d - r.shift) + (lost == lost ? lost : Vec<T>{});
}

// How often exp(x / T) squared is exp(x), by t = 1 / T for T of 1, 2 and 4; -1 for any other.
template <class T> int squarings_of(T t) { return t == T(1) ? 0 : t == T(0.5) ? 1 : t == T(0.25) ? 2 : -1; }
// exp(off), from e = exp(off * t).
template <class T> KL_INLINE Vec<T> at_temperature_one(int squarings, Vec<T> e, Vec<T> off) {
  if (squarings < 0) return exp_down<T>(off);
  if (squarings > 0) e *= e;
  return squarings > 1 ? e * e : e;
}

// The constants of a call.
template <class T> struct Constants {
  static constexpr int kTerms = sizeof(T) == 4 ? 9 : kSeriesTerms;
  T t[2], soft, hard, log_epsilon, free_nats;
  bool softmax[2], log[2];  // of each side: whether it is one; whether it is given by logarithms
  int squarings;
  T beta, rest, limit, series[kTerms], skew, unskewed;

  explicit Constants(const Job& job) {
    for (int i = 0; i < 2; ++i) {
      softmax[i] = job.form != kGaussian && job.form != kBernoulli && job.space[i] == kLogits;
      log[i] = job.space[i] != kProbs;
      t[i] = static_cast<T>(softmax[i] ? job.inv_temperature : 1);
    }
    squarings = squarings_of(t[job.scored]);
    soft = static_cast<T>(job.soft_share), hard = static_cast<T>(job.hard_share);
    log_epsilon = static_cast<T>(job.log_epsilon), free_nats = static_cast<T>(job.free_nats);
    beta = static_cast<T>(job.beta), rest = static_cast<T>(1 - job.beta);
    limit = static_cast<T>(job.form == kJS ? __builtin_log1p(-job.beta) - __builtin_log(job.beta) : 0);
    skew = static_cast<T>(job.skew), unskewed = static_cast<T>(1 - job.skew);
    for (int i = 0; i < kTerms; ++i) series[i] = static_cast<T>(job.series[i]);
  }
  bool all_softmax(int sides) const { return sides && !(sides & 1 && !softmax[0]) && !(sides & 2 && !softmax[1]); }
};

// p u + q - p with u = log p - log q; q at p = 0. Over rows that add up to 1 it has the same sum as p u, but no term is below
// 0, and nearly equal rows keep their leading digits.
template <class T> KL_INLINE Vec<T> excess(Vec<T> p, Vec<T> q, Vec<T> u) {
  const Vec<T> far = p * (u - T(1)) + q, near = p * unit_excess<T>(u);
  Vec<T> term = (u < T(1)) & (u > T(-1)) ? near : far;
  term = p == T(0) ? q : term;
  return Max<T>(T(0), term);
}

}  // namespace
#endif  // GLUON_KL_FORM_H_
