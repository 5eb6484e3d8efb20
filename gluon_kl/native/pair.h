// Divergences between two distributions: KL and skew KL, Jensen-Shannon and total variation. The reverse divergences are
// the first two with the sides exchanged (plan.h).
#ifndef GLUON_KL_PAIR_H_
#define GLUON_KL_PAIR_H_

#include "form.h"

namespace {

using namespace gluon_kl;

// One element of two distributions: probabilities p and q, their logarithms, and u = log p - log q. If a side is given by
// logarithms, its probability is s exp(z). The compiler removes values that a formula does not use.
template <class T> struct Point {
  Vec<T> p, q, log_p, log_q, u;
  Vec<T> z_p, z_q, e_p, e_q, s_p, s_q;
  bool logs, logits;  // constants: whether both probabilities are exponentials, and those of softmaxes
  KL_INLINE Vec<T> exp_of(Vec<T> z) const { return logits ? exp_down<T>(z) : exp<T>(z); }
};

// A point formula has
//   at(point)                   what the other functions need of an element, computed once
//   term(at), whole_term(at)    the term; another with the same sum over a whole row, if kWhole
//   p_slope, q_slope(at, per_element)
//                               its derivative by a side's logarithm. Where the row has one factor, a multiple of the side's
//                               own probability adds nothing to a gradient through a softmax: per_element = 0 leaves it out,
//                               which keeps digits
//   by_p, by_q(at)              its derivative by a side's probability
//   q_less_p(at)                if kByValue: q - p, with all digits where they hardly differ
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
    return (x.u < T(1)) & (x.u > T(-1)) ? x.p * (unit_excess<T>(x.u) - x.u) : x.q - x.p;
  }
  KL_INLINE V q_slope(const P& x, T) const { return -x.p; }
  KL_INLINE V p_slope(const P& x, T per_element) const { return x.p == T(0) ? V{} : x.p * (x.u + per_element); }
  // If a probability is 0 and that of the other side is not, the derivative is infinite. It counts as 0, because no step
  // could change this probability.
  KL_INLINE V by_q(const P& x) const { return (x.p == T(0)) | (x.q == T(0)) ? V{} : -x.p / x.q; }
  KL_INLINE V by_p(const P& x) const {
    const V at_zero = x.log_q > -inf<T>() ? log_epsilon - x.log_q : V{};
    return x.p == T(0) ? at_zero : x.u + T(1);
  }
};

// KL(p || s p + r q), r = 1 - s, by Y = r expm1(-u): m / p is 1 + Y, and (q - p) / m is Y / (r (1 + Y)).
template <class T> struct SkewKL {
  using V = Vec<T>;
  explicit SkewKL(const Constants<T>& constants) : c(constants) {}
  const Constants<T>& c;

  static constexpr bool kWhole = true;
  static constexpr int kByValue = -1, kWeighs = 1 << kPred | 1 << kTarget;

  struct Mixed { V p, q, log_p, log_q, log_share, change, y; };  // log p/m; (q - p) / m; Y
  KL_INLINE Mixed at(const Point<T>& x) const {
    const V u = (x.log_p == -inf<T>()) & (x.log_q == -inf<T>()) ? V{} : x.u;
    const auto p_is_larger = u >= T(0);
    const ExpPair<T> e = exp_pair_down<T>(p_is_larger ? -u : u);  // of the smaller side by the larger
    const V own = p_is_larger ? splat(c.skew) : splat(c.unskewed), other = p_is_larger ? splat(c.unskewed) : splat(c.skew);
    const V m = own + other * e.e, log_m = log1p<T>(other * e.minus_one, m), change = e.minus_one / m;
    return {x.p, x.q, x.log_p, x.log_q, p_is_larger ? -log_m : u - log_m, p_is_larger ? change : -change,
            c.unskewed * (p_is_larger ? e.minus_one : -e.minus_one / e.e)};
  }
  KL_INLINE V term(const Mixed& m) const { return m.p == T(0) ? V{} : m.p * m.log_share; }
  // p (Y - log1p(Y)), because p Y is r (q - p), which sums to 0.
  KL_INLINE V whole_term(const Mixed& m) const {
    const V far = term(m) + c.unskewed * (m.q - m.p), near = m.p * log1p_excess<T>(m.y);
    return Max<T>(T(0), (m.y < T(0.4999)) & (m.y > T(-0.2499)) ? near : far);
  }
  // Through a softmax each is a multiple of its own probability away from -r p q / m, and from p (log p/m + r q / m): so
  // it is small where the sides are near.
  KL_INLINE V q_slope(const Mixed& m, T per_element) const {
    return c.unskewed * m.q * (c.unskewed * m.change - per_element);
  }
  KL_INLINE V p_slope(const Mixed& m, T per_element) const {
    const V slope = m.log_share + c.unskewed * (c.skew * m.change + per_element);
    return m.p == T(0) ? V{} : m.p * slope;
  }
  KL_INLINE V by_q(const Mixed& m) const {
    return (m.p == T(0)) & (m.q == T(0)) ? V{} : c.unskewed * (c.unskewed * m.change - T(1));
  }
  // As in KL; log r was subtracted from `log_epsilon`.
  KL_INLINE V by_p(const Mixed& m) const {
    const V at_zero = m.log_q > -inf<T>() ? c.log_epsilon - m.log_q : V{};
    return m.p == T(0) ? at_zero : m.log_share + c.unskewed * (c.skew * m.change + T(1));
  }
};

// |p - q| / 2.
template <class T> struct TotalVariation {
  using V = Vec<T>;
  explicit TotalVariation(const Constants<T>& c) : kl(c) {}
  const KL<T> kl;

  static constexpr bool kWhole = false;
  static constexpr int kByValue = -1, kWeighs = 1 << kPred | 1 << kTarget;

  struct Apart { V p, q, half; };  // half of q - p
  KL_INLINE Apart at(const Point<T>& x) const {
    return {x.p, x.q, T(0.5) * (x.logits ? kl.q_less_p(x) : x.q - x.p)};
  }
  static KL_INLINE V half_sign(V x) {
    const V below = x < T(0) ? splat(T(-0.5)) : x;  // NaN stays
    return x > T(0) ? splat(T(0.5)) : below;
  }
  KL_INLINE V term(const Apart& x) const { return x.half < T(0) ? -x.half : x.half; }
  KL_INLINE V q_slope(const Apart& x, T) const { return x.q * by_q(x); }
  KL_INLINE V p_slope(const Apart& x, T) const { return x.p * by_p(x); }
  KL_INLINE V by_q(const Apart& x) const { return half_sign(x.half); }
  KL_INLINE V by_p(const Apart& x) const { return -half_sign(x.half); }
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
    const ExpPair<T> e = exp_pair_down<T>(Min<T>(ExpRange<T>::fits, d));
    // One exponential for both sides, if they are given by logarithms.
    const V base = x.logs ? x.exp_of(p_is_base ? x.z_p : x.z_q) * (p_is_base ? x.s_p : x.s_q) : p_is_base ? x.p : x.q;
    const V other = base * e.e;
    const V m = own + share * e.e, y = log1p<T>(share * e.minus_one, m);
    // A side of 0 has the derivative of one that is e^80 times smaller than the other, which is finite.
    const V bounded = d == -inf<T>() ? splat(T(-80)) : d;
    const V by_base = -own * y, by_other = share * (bounded - y);
    return {x.logs ? p_is_base ? base : other : x.p, x.logs ? p_is_base ? other : base : x.q, u,
            p_is_base ? by_base : by_other, p_is_base ? by_other : by_base, MulAdd<T>(share * bounded, e.e, -(m * y)), base};
  }
  KL_INLINE V term(const Mixed& m) const {
    V f = splat(c.series[c.kTerms - 1]);
    for (int i = c.kTerms - 2; i >= 0; --i) f = f * m.u + c.series[i];
    f *= m.u * m.u;
    const auto near = (m.u < T(kNear)) & (m.u > T(-kNear));
    const V inside = near ? f : m.f;
    return (near ? m.p : m.base) * Max<T>(T(0), inside);
  }
  KL_INLINE V q_slope(const Mixed& m, T) const { return m.q * m.by_q; }
  KL_INLINE V p_slope(const Mixed& m, T) const { return m.p * m.by_p; }
  KL_INLINE V by_q(const Mixed& m) const { return m.by_q; }
  KL_INLINE V by_p(const Mixed& m) const { return m.by_p; }
};

// ---- two distributions -------------------------------------------------------------------------------------------

// How a form reads the numbers of a side. kAsGiven checks the call's space at each vector; it is for rare combinations.
enum How { kAsProbs, kAsLogs, kAsGiven };

// kDifference: both are logits, whose difference gives log p - log q to the last digits if they are nearly equal.
// kTakes: as kTaken in a form.
template <class T, template <class> class D, How kPredHow, How kTargetHow, bool kDifference, int kTakes = 0> struct Pair {
  using V = Vec<T>;
  using R = RowState<T>;
  explicit Pair(const Constants<T>& constants) : c(constants), divergence(constants) {}
  const Constants<T>& c;
  const D<T> divergence;

  static constexpr int kBoth = 1 << kPred | 1 << kTarget, kReads = kBoth, kGradients = kBoth;
  static constexpr int kSums = (kPredHow != kAsProbs) << kPred | (kTargetHow != kAsProbs) << kTarget;
  static constexpr bool kWhole = kDifference && D<T>::kWhole;
  static constexpr int kByValue = kWhole ? D<T>::kByValue : -1;
  static constexpr int kNear = kByValue < 0 ? 0 : kBoth & ~(1 << kByValue);  // which is q - p, or p - q
  static constexpr int kOneLog = kPredHow == kAsLogs && kTargetHow == kAsProbs ? 1 << kPred
                               : kTargetHow == kAsLogs && kPredHow == kAsProbs ? 1 << kTarget : 0;
  static constexpr int kTaken = kTakes, kUse = kDifference ? kBoth : D<T>::kWeighs & kOneLog;
  template <int kSides> using Taking = Pair<T, D, kPredHow, kTargetHow, kDifference, kSides>;
  using Given = Taking<kUse>;

  template <int side> KL_INLINE bool by_log() const {
    constexpr How how = side == kPred ? kPredHow : kTargetHow;
    return how == kAsGiven ? c.log[side] : how == kAsLogs;
  }
  template <int side> KL_INLINE V exponential(const Values<T>& x, V z, bool softmax) const {
    return kTaken >> side & 1 ? x.e[side] : softmax ? exp_down<T>(z) : exp<T>(z);
  }
  // softmax: the sides, as bits, that are known to be softmaxes.
  KL_INLINE Point<T> point(const R& r, const Values<T>& x, int softmax = kDifference ? kBoth : 0) const {
    const V b = x.x[kPred], a = x.x[kTarget];
    Point<T> p;
    p.logs = kPredHow == kAsLogs && kTargetHow == kAsLogs && kTaken != kBoth, p.logits = kDifference;
    p.z_q = (b - r.side[0].max) * c.t[0], p.s_q = r.side[0].scale;
    p.z_p = (a - r.side[1].max) * c.t[1], p.s_p = r.side[1].scale;
    p.log_q = by_log<kPred>() ? p.z_q - r.side[0].log : log<T>(b);
    p.log_p = by_log<kTarget>() ? p.z_p - r.side[1].log : log<T>(a);
    if (by_log<kPred>()) p.e_q = exponential<kPred>(x, p.z_q, softmax & 1 << kPred);
    if (by_log<kTarget>()) p.e_p = exponential<kTarget>(x, p.z_p, softmax & 1 << kTarget);
    p.q = by_log<kPred>() ? p.s_q * p.e_q : b;
    p.p = by_log<kTarget>() ? p.s_p * p.e_p : a;
    p.u = kDifference ? difference<T>(r, b, a) * c.t[0] - r.log_sums : p.log_p - p.log_q;
    return p;
  }
  KL_INLINE V term(const R& r, const Values<T>& x) const { return divergence.term(divergence.at(point(r, x))); }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool whole, T per_element, bool sums, V* term, V* s) const {
    const auto at = divergence.at(point(r, x));
    if constexpr (kTerms && kWhole) *term = whole ? divergence.whole_term(at) : divergence.term(at);
    else if constexpr (kTerms) *term = divergence.term(at);
    if (kSums & 1 << kPred && sums) s[kPred] = divergence.q_slope(at, per_element);
    if (kSums & 1 << kTarget && sums) s[kTarget] = divergence.p_slope(at, per_element);
  }
  // The derivative by a logarithm, minus the part that a softmax cancels.
  template <int i, bool kNearRows = false> KL_INLINE V gradient(const R& r, const Values<T>& x, V g, T per_element) const {
    const bool softmax = kDifference || c.softmax[i];
    const Point<T> p = point(r, x, kDifference ? kBoth : softmax ? 1 << i : 0);
    const auto at = divergence.at(p);
    if (!by_log<i>()) return g == T(0) ? V{} : g * (i == kPred ? divergence.by_q(at) : divergence.by_p(at));
    const T per = softmax ? per_element : T(1);
    const V own = i == kPred ? divergence.q_slope(at, per) : divergence.p_slope(at, per);
    if (!softmax) return g == T(0) ? V{} : g * own;
    const V scale = (i == kPred ? p.s_q : p.s_p) * r.sum[i];  // the same along a row
    const V pull = r.sum[i] == T(0) ? V{} : scale * (i == kPred ? p.e_q : p.e_p);
    if (per_element == T(0)) {
      V both = MulAdd<T>(splat(T(-1)), pull, own);
      if constexpr (kNearRows) both = r.near == T(0) ? both : divergence.q_less_p(at);
      return g == T(0) ? V{} : g * c.t[i] * both;
    }
    return c.t[i] * ((g == T(0) ? V{} : g * own) - pull);
  }
};

}  // namespace
#endif  // GLUON_KL_PAIR_H_
