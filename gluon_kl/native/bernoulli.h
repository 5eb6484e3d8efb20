// KL between Bernoulli distributions, one per element.
#ifndef GLUON_KL_BERNOULLI_H_
#define GLUON_KL_BERNOULLI_H_

#include "form.h"

namespace {

using namespace gluon_kl;

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
  // As in KL: a probability of 0 has the logarithm of epsilon, unless the other side is 0 too.
  KL_INLINE V at_zero(V p, V log_q, V difference) const {
    return p == T(0) ? (log_q > -inf<T>() ? log_epsilon - log_q : V{}) : difference;
  }
  // The derivative of -p log q by q; as in KL, it is 0 if q is 0.
  static KL_INLINE V slope(V p, V q) { return (p == T(0)) | (q == T(0)) ? V{} : p / q; }
  template <int i> KL_INLINE V gradient(const R&, const Values<T>& x, V g, T) const {
    const Point r = point(x);
    V by;
    if (i == kPred && kPredScore) {
      by = r.p.yes > T(0.5) ? r.p.no - r.q.no : r.q.yes - r.p.yes;
    } else if (i == kPred) {
      by = slope(r.p.no, r.q.no) - slope(r.p.yes, r.q.yes);
    } else if (kTargetScore) {
      const V variance = r.p.yes * r.p.no;
      by = variance == T(0) ? V{} : variance * (kPredScore ? x.x[kTarget] - x.x[kPred] : r.yes - r.no);
    } else {
      by = at_zero(r.p.yes, r.q.log_yes, r.yes) - at_zero(r.p.no, r.q.log_no, r.no);
    }
    // If pred excludes an outcome that the label allows, the loss is infinite, and so would be the gradient to the label.
    if (i == kTarget) by = (by == inf<T>()) | (by == -inf<T>()) ? V{} : by;
    return g == T(0) ? V{} : g * by;
  }
};

}  // namespace
#endif  // GLUON_KL_BERNOULLI_H_
