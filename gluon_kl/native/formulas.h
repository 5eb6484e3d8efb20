// What the divergences are: for each a struct with its term, what its gradients need to know of a whole row, and its
// gradients. `with_form` at the end turns a job into one of them. What sweeps over rows is in kernel.h.
//
// A form has
//   kReads                      the streams it reads, as bits
//   kSums                       how many sums over a row its gradients need (through a softmax; at most 2)
//   kGradients                  its inputs that can have gradients, as bits
//   term(row, x)                one element's term
//   add<kTerms>(row, x, whole, full, sums, &term, s)
//                               what the element adds: if kTerms, to the row's value, which in a whole row other terms of
//                               the same sum may make up; if sums, to the row's sums, of a row under one factor if full
//                               is 0, of elements each under its own if it is 1
//   kByValue                    where both sides add up to 1 and so the sums follow: the input whose sum is the row's value,
//                               while the other's is -1; else -1
//   kTaken                      the sides, as bits, whose exponentials it takes from x.e, where their softmax left them
//   Given                       the same form, taking all that its terms and sums have a use for
//   gradient<i>(row, x, g, full)  to input i, of the sum of the terms times their factors; g is that of this element
//   kNear                       the inputs, as bits, that have a gradient<i, true> too, slower, which keeps its digits in
//                               rows whose `near` is 1, of a row under one factor
// A divergence between two distributions is less: a point formula such as KL below, of which Pair makes a form.
#ifndef GLUON_KL_FORMULAS_H_
#define GLUON_KL_FORMULAS_H_

#include "job.h"
#include "layout.h"
#include "vec.h"

namespace {

using namespace gluon_kl;

// What is constant along a row. A side's probability is exp((x - max) * t) * scale and its logarithm
// (x - max) * t - log; log-probabilities have 0, 0 and 1 there.
template <class T> struct RowState {
  struct { Vec<T> max, log, scale; } side[2];
  Vec<T> shift, shift_low, gap; // target minus pred: the maximum, in two parts, and the logarithm of the sum
  Vec<T> near;                  // 1 where both sides are logits that hardly differ, else 0
  Vec<T> hard_log, hard_scale;  // of pred's softmax at temperature 1
  Vec<T> sum[2];
};

// Target minus pred of two logits b and a at a place, less that of the maxima. What the subtraction rounds off is given
// back; where it is inf or NaN nothing is.
template <class T> KL_INLINE Vec<T> difference(const RowState<T>& r, Vec<T> b, Vec<T> a) {
  const Vec<T> d = a - b, back = d - a, lost = ((a - (d - back)) - (b + back)) - r.shift_low;
  return (d - r.shift) + (lost == lost ? lost : Vec<T>{});
}

// What is constant in a call.
template <class T> struct Constants {
  static constexpr int kTerms = sizeof(T) == 4 ? 9 : kSeriesTerms;
  T t[2], soft, hard, log_epsilon, free_nats;
  bool softmax[2];
  int squarings;  // that turn an exponential at the temperature into one at temperature 1; less than 0: none do
  T beta, rest, limit, series[kTerms];

  explicit Constants(const Job& job) {
    for (int i = 0; i < 2; ++i) {
      softmax[i] = job.form != kGaussian && job.form != kBernoulli && job.space[i] == kLogits;
      t[i] = static_cast<T>(softmax[i] ? job.inv_temperature : 1);
    }
    squarings = t[0] == T(1) ? 0 : t[0] == T(0.5) ? 1 : t[0] == T(0.25) ? 2 : -1;
    soft = static_cast<T>(job.soft_share), hard = static_cast<T>(job.hard_share);
    log_epsilon = static_cast<T>(job.log_epsilon), free_nats = static_cast<T>(job.free_nats);
    beta = static_cast<T>(job.beta), rest = static_cast<T>(1 - job.beta);
    limit = static_cast<T>(job.form == kJS ? __builtin_log1p(-job.beta) - __builtin_log(job.beta) : 0);
    for (int i = 0; i < kTerms; ++i) series[i] = static_cast<T>(job.series[i]);
  }
  // exp(off), e = exp(off * t[kPred]) being there.
  KL_INLINE Vec<T> at_temperature_one(Vec<T> e, Vec<T> off) const {
    if (squarings < 0) return exp_down<T>(off);
    if (squarings > 0) e *= e;
    return squarings > 1 ? e * e : e;
  }
  bool all_softmax(int sides) const { return sides && !(sides & 1 && !softmax[0]) && !(sides & 2 && !softmax[1]); }
};

// p u + q - p with u = log p - log q: the same sum as p u where both rows add up to 1, no term below 0, and the leading
// digits of nearly equal rows are kept. At p = 0 it is q.
template <class T> KL_INLINE Vec<T> excess(Vec<T> p, Vec<T> q, Vec<T> u) {
  const Vec<T> far = p * (u - T(1)) + q, near = p * gap<T>(u);
  Vec<T> term = (u < T(1)) & (u > T(-1)) ? near : far;
  term = p == T(0) ? q : term;
  return most<T>(T(0), term);
}

// ---- point formulas: p of the target, q of pred ------------------------------------------------------------------

// One place of two distributions: probabilities and logarithms, u = log p - log q; and a side's logarithm z with the
// factor s that is left to its probability, where it is given by logarithms. What a formula does not use is not computed.
template <class T> struct Point {
  Vec<T> p, q, log_p, log_q, u;
  Vec<T> z_p, z_q, s_p, s_q;
  bool logs, logits;  // known when compiled: whether each probability takes an exponential, and one of a softmax
  KL_INLINE Vec<T> exp_of(Vec<T> z) const { return logits ? exp_down<T>(z) : exp<T>(z); }
  KL_INLINE Point swapped() const { return {q, p, log_q, log_p, -u, z_q, z_p, s_q, s_p, logs, logits}; }
};

// A point formula has
//   at(point)                   what the other functions need of a place, computed once
//   term(at), whole_term(at)    the term; another with the same sum over a whole row, if kWhole
//   p_slope, q_slope(at, full)  its derivative by a side's logarithm. Through a softmax a multiple of the side's own
//                               probability has no effect, where the whole row is under one factor: full = 0 leaves it
//                               out, which keeps digits
//   by_p, by_q(at)              its derivative by a side's probability
//   q_less_p(at)                if kWhole: q - p (where the sides are swapped: p - q), with the digits that two numbers
//                               that hardly differ would lose
//   kWeighs                     the sides, as bits, whose probabilities its term multiplies
//   kByValue                    as of a form, between two softmaxes

template <class T> struct KL {
  using V = Vec<T>;
  using P = Point<T>;
  explicit KL(const Constants<T>& c) : log_epsilon(c.log_epsilon) {}
  const T log_epsilon;

  static constexpr bool kWhole = true;
  static constexpr int kByValue = kTarget, kWeighs = 1 << kTarget;
  KL_INLINE P at(const P& x) const { return x; }
  KL_INLINE V term(const P& x) const { return x.p == T(0) ? V{} : x.p * x.u; }
  KL_INLINE V whole_term(const P& x) const { return excess<T>(x.p, x.q, x.u); }
  KL_INLINE V q_less_p(const P& x) const {
    return (x.u < T(1)) & (x.u > T(-1)) ? x.p * (gap<T>(x.u) - x.u) : x.q - x.p;
  }
  KL_INLINE V q_slope(const P& x, T) const { return -x.p; }
  KL_INLINE V p_slope(const P& x, T full) const { return x.p == T(0) ? V{} : x.p * (x.u + full); }
  // At a probability of 0 that the other side does not share the slope is infinite, and 0 serves: nothing could move it
  // in the direction that this asks for.
  KL_INLINE V by_q(const P& x) const { return (x.p == T(0)) | (x.q == T(0)) ? V{} : -x.p / x.q; }
  KL_INLINE V by_p(const P& x) const {
    const V at_zero = x.log_q > -inf<T>() ? log_epsilon - x.log_q : V{};
    return x.p == T(0) ? at_zero : x.u + T(1);
  }
};

template <class T> struct ReverseKL {
  using V = Vec<T>;
  using P = Point<T>;  // with the sides swapped
  explicit ReverseKL(const Constants<T>& c) : kl(c) {}
  const KL<T> kl;

  static constexpr bool kWhole = true;
  static constexpr int kByValue = kPred, kWeighs = 1 << kPred;
  KL_INLINE P at(const P& x) const { return x.swapped(); }
  KL_INLINE V term(const P& x) const { return kl.term(x); }
  KL_INLINE V whole_term(const P& x) const { return kl.whole_term(x); }
  KL_INLINE V q_less_p(const P& x) const { return kl.q_less_p(x); }
  KL_INLINE V q_slope(const P& x, T full) const { return kl.p_slope(x, full); }
  KL_INLINE V p_slope(const P& x, T full) const { return kl.q_slope(x, full); }
  KL_INLINE V by_q(const P& x) const { return kl.by_p(x); }
  KL_INLINE V by_p(const P& x) const { return kl.by_q(x); }
};

// beta p log(p / m) + (1 - beta) q log(q / m), m = beta p + (1 - beta) q.
//
// With b the side whose share of m is the larger, o the other, c the share that o has by weight and d = log(o / b), m / b
// is 1 + c expm1(d), and the term b f(d), f = c d e^d - (m/b) log(m/b): no part of it overflows, and the derivatives keep
// their digits. Near d = 0, f is a power series, (1 - c) c d^2 / 2 + ...; there p always serves as b.
template <class T> struct JS {
  using V = Vec<T>;
  using P = Point<T>;
  explicit JS(const Constants<T>& constants) : c(constants) {}
  const Constants<T>& c;

  static constexpr bool kWhole = false;
  static constexpr int kByValue = -1, kWeighs = 1 << kPred | 1 << kTarget;
  static constexpr double kNear = 0.34;  // where the series holds: the next term is below 2e-8 (float), 1e-16 (double)

  struct Mixed { V p, q, u, by_p, by_q, f, base; };
  KL_INLINE Mixed at(const P& x) const {
    const V u = (x.log_p == -inf<T>()) & (x.log_q == -inf<T>()) ? V{} : x.u;
    const auto p_is_base = u >= c.limit;
    const V d = p_is_base ? -u : u;
    const V share = p_is_base ? splat(c.rest) : splat(c.beta), own = p_is_base ? splat(c.beta) : splat(c.rest);
    const ExpPair<T> e = exp_pair_down<T>(least<T>(ExpRange<T>::fits, d));
    // One exponential for both sides, where they are given by logarithms.
    const V base = x.logs ? x.exp_of(p_is_base ? x.z_p : x.z_q) * (p_is_base ? x.s_p : x.s_q) : p_is_base ? x.p : x.q;
    const V other = base * e.e;
    const V m = own + share * e.e, y = log1p<T>(share * e.minus_one, m);
    // A side of 0 has the slope of one e^80 times smaller than the other, which is finite.
    const V bounded = d == -inf<T>() ? splat(T(-80)) : d;
    const V by_base = -own * y, by_other = share * (bounded - y);
    return {x.logs ? p_is_base ? base : other : x.p, x.logs ? p_is_base ? other : base : x.q, u,
            p_is_base ? by_base : by_other, p_is_base ? by_other : by_base, times_plus<T>(share * bounded, e.e, -(m * y)), base};
  }
  KL_INLINE V term(const Mixed& m) const {
    V f = splat(c.series[c.kTerms - 1]);
    for (int i = c.kTerms - 2; i >= 0; --i) f = f * m.u + c.series[i];
    f *= m.u * m.u;
    const auto near = (m.u < T(kNear)) & (m.u > T(-kNear));
    const V inside = near ? f : m.f;
    return (near ? m.p : m.base) * most<T>(T(0), inside);
  }
  KL_INLINE V q_slope(const Mixed& m, T) const { return m.q * m.by_q; }
  KL_INLINE V p_slope(const Mixed& m, T) const { return m.p * m.by_p; }
  KL_INLINE V by_q(const Mixed& m) const { return m.by_q; }
  KL_INLINE V by_p(const Mixed& m) const { return m.by_p; }
};

// ---- two distributions -------------------------------------------------------------------------------------------

// kDifference: both are logits, whose difference gives log p - log q to the last digits where they are nearly equal.
// kTakes: as kTaken of a form.
template <class T, template <class> class D, bool kPredLog, bool kTargetLog, bool kDifference, int kTakes = 0> struct Pair {
  using V = Vec<T>;
  using R = RowState<T>;
  explicit Pair(const Constants<T>& constants) : c(constants), divergence(constants) {}
  const Constants<T>& c;
  const D<T> divergence;

  static constexpr int kBoth = 1 << kPred | 1 << kTarget, kReads = kBoth, kGradients = kBoth;
  static constexpr int kSums = kTargetLog ? 2 : kPredLog ? 1 : 0;
  static constexpr bool kWhole = kDifference && D<T>::kWhole;
  static constexpr int kByValue = kWhole ? D<T>::kByValue : -1;
  static constexpr int kNear = kWhole ? kBoth & ~(1 << kByValue) : 0;  // which is q - p, or p - q
  static constexpr int kTaken = kTakes, kUse = kDifference ? kBoth : kPredLog && !kTargetLog ? D<T>::kWeighs & 1 << kPred : 0;
  template <int kSides> using Taking = Pair<T, D, kPredLog, kTargetLog, kDifference, kSides>;
  using Given = Taking<kUse>;

  KL_INLINE V log_ratio(const R& r, V b, V a) const { return difference<T>(r, b, a) * c.t[0] - r.gap; }
  template <int kSoftmax, int side> static KL_INLINE V exponential(const Values<T>& x, V z) {
    return kTaken >> side & 1 ? x.e[side] : kSoftmax >> side & 1 ? exp_down<T>(z) : exp<T>(z);
  }
  // kSoftmax: the sides, as bits, of which it is known that they are logits.
  template <int kSoftmax> KL_INLINE Point<T> point(const R& r, const Values<T>& x) const {
    const V b = x.x[kPred], a = x.x[kTarget];
    Point<T> p;
    p.logs = kPredLog && kTargetLog && kTaken != kBoth, p.logits = kSoftmax == kBoth;
    p.z_q = (b - r.side[0].max) * c.t[0], p.s_q = r.side[0].scale;
    p.z_p = (a - r.side[1].max) * c.t[1], p.s_p = r.side[1].scale;
    p.log_q = kPredLog ? p.z_q - r.side[0].log : log<T>(b);
    p.log_p = kTargetLog ? p.z_p - r.side[1].log : log<T>(a);
    p.q = !kPredLog ? b : p.s_q * exponential<kSoftmax, kPred>(x, p.z_q);
    p.p = !kTargetLog ? a : p.s_p * exponential<kSoftmax, kTarget>(x, p.z_p);
    p.u = kDifference ? log_ratio(r, b, a) : p.log_p - p.log_q;
    return p;
  }
  KL_INLINE Point<T> point(const R& r, const Values<T>& x) const { return point<kDifference ? kBoth : 0>(r, x); }
  KL_INLINE V term(const R& r, const Values<T>& x) const { return divergence.term(divergence.at(point(r, x))); }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool whole, T full, bool sums, V* term, V* s) const {
    const auto at = divergence.at(point(r, x));
    if constexpr (kTerms && kWhole) *term = whole ? divergence.whole_term(at) : divergence.term(at);
    else if constexpr (kTerms) *term = divergence.term(at);
    if (kSums > 0 && sums) s[0] = divergence.q_slope(at, full);
    if (kSums > 1 && sums) s[1] = divergence.p_slope(at, full);
  }
  template <int i, bool kNearRows = false> KL_INLINE V gradient(const R& r, const Values<T>& x, V g, T full) const {
    constexpr bool log = i == kPred ? kPredLog : kTargetLog;
    if (log && (kDifference || c.softmax[i])) return softmax_gradient<i, kNearRows>(r, x, g, full);
    const auto at = divergence.at(point(r, x));
    if (log) return g == T(0) ? V{} : g * (i == kPred ? divergence.q_slope(at, T(1)) : divergence.p_slope(at, T(1)));
    return g == T(0) ? V{} : g * (i == kPred ? divergence.by_q(at) : divergence.by_p(at));
  }
  // From the slope by the logarithm.
  template <int i, bool kNearRows> KL_INLINE V softmax_gradient(const R& r, const Values<T>& x, V g, T full) const {
    const Point<T> p = point<kDifference ? kBoth : 1 << i>(r, x);
    const auto at = divergence.at(p);
    const V own = i == kPred ? divergence.q_slope(at, full) : divergence.p_slope(at, full);
    const V scale = (i == kPred ? p.s_q : p.s_p) * r.sum[i];  // the same along a row
    const V pull = r.sum[i] == T(0) ? V{} : scale * exponential<kBoth, i>(x, i == kPred ? p.z_q : p.z_p);
    if (full == T(0)) {
      V both = times_plus<T>(splat(T(-1)), pull, own);
      if constexpr (kNearRows) both = r.near == T(0) ? both : divergence.q_less_p(at);
      return g == T(0) ? V{} : g * c.t[i] * both;
    }
    return c.t[i] * ((g == T(0) ? V{} : g * own) - pull);
  }
};

// ---- hard labels -------------------------------------------------------------------------------------------------

// Cross-entropy of pred's softmax at temperature 1 with labels y of any mass: -y log q.
template <class T> struct CrossEntropy {
  using V = Vec<T>;
  using R = RowState<T>;
  using Given = CrossEntropy;
  explicit CrossEntropy(const Constants<T>&) {}

  static constexpr int kReads = 1 << kPred | 1 << kHard, kSums = 1, kGradients = 1 << kPred | 1 << kHard;
  static constexpr int kByValue = -1, kTaken = 0, kNear = 0;

  KL_INLINE V term(const R& r, const Values<T>& x) const {
    const V y = x.x[kHard];
    return y == T(0) ? V{} : y * (r.hard_log - (x.x[kPred] - r.side[0].max));
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool, T, bool, V* own, V* s) const {
    if (kTerms) *own = term(r, x);
    s[0] = x.x[kHard];
  }
  template <int i> KL_INLINE V gradient(const R& r, const Values<T>& x, V g, T full) const {
    return i == kHard ? to_label(r, x, g) : to_pred(x, g, full, exp_down<T>(x.x[kPred] - r.side[0].max) * r.hard_scale, r.sum[0]);
  }
  // By pred's probability q and the sum of the labels.
  static KL_INLINE V to_pred(const Values<T>& x, V g, T full, V q, V mass) {
    const V y = x.x[kHard];
    if (full == T(0)) return g == T(0) ? V{} : g * (mass == T(0) ? -y : times_plus<T>(q, mass, -y));
    return (mass == T(0) ? V{} : q * mass) - (g == T(0) ? V{} : g * y);
  }
  // Of a label of 0 under a masked score 0 serves, as of KL.
  KL_INLINE V to_label(const R& r, const Values<T>& x, V g) const {
    const V by = r.hard_log - (x.x[kPred] - r.side[0].max);
    return (g == T(0)) | ((x.x[kHard] == T(0)) & !(by < inf<T>())) ? V{} : g * by;
  }
};

// soft times the divergence from the target, and hard times the cross-entropy: no gradient to the target.
template <class T, class Soft> struct Distilled {
  using V = Vec<T>;
  using R = RowState<T>;
  using Shared = typename Soft::template Taking<1 << kPred>;
  explicit Distilled(const Constants<T>& constants) : c(constants), soft(constants), shared(constants), hard(constants) {}
  const Constants<T>& c;
  const Soft soft;
  const Shared shared;  // the same with pred's exponential, which the gradient to pred needs for both parts
  const CrossEntropy<T> hard;

  static constexpr int kReads = Soft::kReads | 1 << kHard, kSums = 2, kGradients = 1 << kPred | 1 << kHard;
  static constexpr int kByValue = -1, kTaken = Soft::kTaken, kNear = Soft::kNear & 1 << kPred;
  using Given = Distilled<T, typename Soft::Given>;

  KL_INLINE V term(const R& r, const Values<T>& x) const {
    return times_plus<T>(splat(c.soft), soft.term(r, x), c.hard * hard.term(r, x));
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool whole, T full, bool sums, V* own, V* s) const {
    V of_soft;
    soft.template add<kTerms>(r, x, whole, full, sums, &of_soft, s);
    if (kTerms) *own = times_plus<T>(splat(c.soft), of_soft, c.hard * hard.term(r, x));
    s[1] = x.x[kHard];
  }
  template <int i, bool kNearRows = false> KL_INLINE V gradient(const R& r, const Values<T>& x, V g, T full) const {
    if (i == kHard) return c.hard * hard.to_label(r, x, g);
    const V off = x.x[kPred] - r.side[0].max;
    Values<T> y = x;
    y.e[kPred] = exp_down<T>(off * c.t[0]);
    const V q = c.at_temperature_one(y.e[kPred], off) * r.hard_scale;
    return times_plus<T>(splat(c.soft), shared.template gradient<0, kNearRows>(r, y, g, full),
                         c.hard * hard.to_pred(x, g, full, q, r.sum[1]));
  }
};

// ---- Gaussians ---------------------------------------------------------------------------------------------------

// KL(N(mean, e^l) || N(prior mean, e^l')) = (g^2 e^-l' + expm1(d) - d) / 2, g the difference of the means, d = l - l'.
template <class T, bool kPrior, bool kStd> struct Gaussian {
  using V = Vec<T>;
  using R = RowState<T>;
  using Given = Gaussian;
  explicit Gaussian(const Constants<T>& c) : free_nats(c.free_nats) {}
  const T free_nats;

  static constexpr int kReads = kPrior ? 15 : 3, kSums = 0, kGradients = kReads;
  static constexpr int kByValue = -1, kTaken = 0, kNear = 0;

  struct Point { V distance, narrow, narrow_again, half; };  // g / s', factors of 1 / s', d / 2
  KL_INLINE Point point(const Values<T>& x) const {
    const V spread = x.x[kLogVariance], one = splat(T(1));
    if (!kPrior) return {x.x[kMean], one, one, kStd ? log<T>(spread) : T(0.5) * spread};
    const V prior = x.x[kPriorLogVariance], g = x.x[kMean] - x.x[kPriorMean];
    if (kStd) {
      const V off = (spread - prior) / prior;
      const V half = (off < T(0.25)) & (off > T(-0.25)) ? log1p<T>(off) : log<T>(spread) - log<T>(prior);
      return {g == T(0) ? V{} : g / prior, one / prior, one, half};
    }
    // In two steps, since e^(-l'/2) may overflow where the product fits; and 0 * inf at no distance is 0.
    const V root = exp<T>(T(-0.25) * prior);
    return {g == T(0) ? V{} : g * root * root, root, root, T(0.5) * spread - T(0.5) * prior};
  }
  static KL_INLINE auto is_near(V half) { return (half < T(0.5)) & (half > T(-0.5)); }
  KL_INLINE V value(const Point& p) const {
    const V near = T(0.5) * gap<T>(p.half * T(-2)), root = root_of(p.half).e;  // e^d may overflow where its half fits
    const V off = p.half < T(1e38) ? p.half : splat(T(1e38));  // lest inf - inf
    const V far = root * (T(0.5) * root) + (T(-0.5) - off);
    return p.distance * (T(0.5) * p.distance) + (is_near(p.half) ? near : far);
  }
  // e^(d/2) and that less 1; where they would be infinite, their squares still are.
  static KL_INLINE ExpPair<T> root_of(V half) { return exp_pair_down<T>(least<T>(ExpRange<T>::fits, half)); }
  static KL_INLINE V half_expm1(V half) {
    const ExpPair<T> root = root_of(half);
    return root.minus_one * (T(0.5) * root.e + T(0.5));
  }
  KL_INLINE V term(const R&, const Values<T>& x) const {
    const V v = value(point(x));
    return v < free_nats ? splat(free_nats) : v;
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool, T, bool, V* own, V*) const { *own = term(r, x); }
  template <int i> KL_INLINE V gradient(const R&, const Values<T>& x, V g, T) const {
    const Point p = point(x);
    V by;
    const V pull = p.distance == T(0) ? V{} : p.distance * p.narrow * p.narrow_again;  // narrow may be inf
    if (i == kMean) by = pull;
    if (i == kPriorMean) by = -pull;
    if (i == kLogVariance) by = half_expm1(p.half);
    if (i == kPriorLogVariance) by = -(p.distance * (T(0.5) * p.distance) + half_expm1(p.half));
    if (kStd && (i == kLogVariance || i == kPriorLogVariance)) by *= T(2) / x.x[i];
    // Between free_nats and none only a call with free nats has to look at the value.
    V out = g == T(0) ? V{} : g * by;
    if (free_nats > T(0)) out = value(p) < free_nats ? V{} : out;
    return out;
  }
};

// ---- Bernoulli ---------------------------------------------------------------------------------------------------

// KL(Bernoulli(p) || Bernoulli(q)) of every element: two categories, p and 1 - p, each by `excess`.
template <class T, bool kPredScore, bool kTargetScore> struct Bernoulli {
  using V = Vec<T>;
  using R = RowState<T>;
  using Given = Bernoulli;
  explicit Bernoulli(const Constants<T>& c) : log_epsilon(c.log_epsilon) {}
  const T log_epsilon;

  static constexpr int kReads = 3, kSums = 0, kGradients = 3;
  static constexpr int kByValue = -1, kTaken = 0, kNear = 0;

  struct Side { V yes, no, log_yes, log_no; };
  template <bool kScore> static KL_INLINE Side side(V x) {
    if (!kScore) return {x, T(1) - x, log<T>(x), log1p<T>(-x)};
    const V size = x < T(0) ? -x : x, e = exp<T>(-size), more = T(1) / (T(1) + e), less = e * more;
    const V log_more = -log1p<T>(e), log_less = log_more - size;
    const auto up = x >= T(0);
    return {up ? more : less, up ? less : more, up ? log_more : log_less, up ? log_less : log_more};
  }
  struct Point { Side p, q; V yes, no; };  // and the differences of the logarithms, p's minus q's
  static KL_INLINE V ratio(V p, V q, V log_p, V log_q) {
    const V off = (q - p) / p;
    return (off < T(0.25)) & (off > T(-0.25)) ? -log1p<T>(off) : log_p - log_q;
  }
  static KL_INLINE Point point(const Values<T>& x) {
    const V b = x.x[kPred], a = x.x[kTarget];
    Point r = {side<kTargetScore>(a), side<kPredScore>(b), {}, {}};
    r.yes = r.p.log_yes - r.q.log_yes, r.no = r.p.log_no - r.q.log_no;
    if (kPredScore && kTargetScore) {
      // log(p / q) = log1p((1 - p) expm1(a - b)), and the same of the other category with b - a.
      const V d = a == b ? V{} : a - b;
      const ExpPair<T> e = exp_pair_down<T>(d);  // of which nothing far from 0 is used
      const auto near = (d < T(1)) & (d > T(-1));
      r.yes = near ? log1p<T>(r.p.no * e.minus_one) : r.yes;
      r.no = near ? log1p<T>(r.p.yes * (-e.minus_one / e.e)) : r.no;
    } else if (!kPredScore && !kTargetScore) {
      r.yes = ratio(r.p.yes, r.q.yes, r.p.log_yes, r.q.log_yes);
      r.no = ratio(r.p.no, r.q.no, r.p.log_no, r.q.log_no);
    }
    return r;
  }
  KL_INLINE V term(const R&, const Values<T>& x) const {
    const Point r = point(x);
    return excess<T>(r.p.yes, r.q.yes, r.yes) + excess<T>(r.p.no, r.q.no, r.no);
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool, T, bool, V* own, V*) const { *own = term(r, x); }
  // As of KL: a probability of 0 has epsilon's logarithm, unless the other side is 0 too.
  KL_INLINE V at_zero(V p, V log_q, V difference) const {
    return p == T(0) ? (log_q > -inf<T>() ? log_epsilon - log_q : V{}) : difference;
  }
  // Of -p log q by q; as of KL, 0 at a q of 0.
  static KL_INLINE V slope(V p, V q) { return (p == T(0)) | (q == T(0)) ? V{} : p / q; }
  template <int i> KL_INLINE V gradient(const R&, const Values<T>& x, V g, T) const {
    const Point r = point(x);
    V by;
    if (i == kPred && kPredScore) {
      by = r.p.yes > T(0.5) ? r.p.no - r.q.no : r.q.yes - r.p.yes;
    } else if (i == kPred) {
      by = slope(r.p.no, r.q.no) - slope(r.p.yes, r.q.yes);
    } else if (kTargetScore) {
      const V spread = r.p.yes * r.p.no;
      by = spread == T(0) ? V{} : spread * (kPredScore ? x.x[kTarget] - x.x[kPred] : r.yes - r.no);
    } else {
      by = at_zero(r.p.yes, r.q.log_yes, r.yes) - at_zero(r.p.no, r.q.log_no, r.no);
    }
    // Where pred excludes what the label allows, the loss is infinite, and so would be the gradient to the label.
    if (i == kTarget) by = (by == inf<T>()) | (by == -inf<T>()) ? V{} : by;
    return g == T(0) ? V{} : g * by;
  }
};

// ---- from a job to its form --------------------------------------------------------------------------------------

template <class F> struct Is { using Type = F; };

template <class T, class F, class Use> auto with_hard(const Job& job, Use use) {
  return job.hard ? use(Is<Distilled<T, F>>{}) : use(Is<F>{});
}
template <class T, template <class> class D, class Use> auto with_spaces(const Job& job, Use use) {
  const bool pred_log = job.space[0] != kProbs, target_log = job.space[1] != kProbs;
  if (job.space[0] == kLogits && job.space[1] == kLogits) return with_hard<T, Pair<T, D, true, true, true>>(job, use);
  if (pred_log && target_log) return with_hard<T, Pair<T, D, true, true, false>>(job, use);
  if (pred_log) return with_hard<T, Pair<T, D, true, false, false>>(job, use);
  return target_log ? use(Is<Pair<T, D, false, true, false>>{}) : use(Is<Pair<T, D, false, false, false>>{});
}
// use(Is<form>) of the form that the job asks for.
template <class T, class Use> auto with_form(const Job& job, Use use) {
  const bool std = job.spread_is_std, pred = job.space[0] == kLogits, target = job.space[1] == kLogits;
  switch (job.form) {
    case kKL: return with_spaces<T, KL>(job, use);
    case kReverseKL: return with_spaces<T, ReverseKL>(job, use);
    case kJS: return with_spaces<T, JS>(job, use);
    case kCrossEntropy: return use(Is<CrossEntropy<T>>{});
    case kGaussian:
      if (job.prior) return std ? use(Is<Gaussian<T, true, true>>{}) : use(Is<Gaussian<T, true, false>>{});
      return std ? use(Is<Gaussian<T, false, true>>{}) : use(Is<Gaussian<T, false, false>>{});
    default:
      if (pred) return target ? use(Is<Bernoulli<T, true, true>>{}) : use(Is<Bernoulli<T, true, false>>{});
      return target ? use(Is<Bernoulli<T, false, true>>{}) : use(Is<Bernoulli<T, false, false>>{});
  }
}

}  // namespace
#endif  // GLUON_KL_FORMULAS_H_
