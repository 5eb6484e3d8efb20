// Cross-entropy with labels, alone and together with a divergence.
#ifndef GLUON_KL_HARD_LABELS_H_
#define GLUON_KL_HARD_LABELS_H_

#include "form.h"

namespace {

using namespace gluon_kl;

// Cross-entropy of the softmax of one side's scores at temperature 1 with labels y of any mass: -y log q.
template <class T, int kSide = kPred> struct CrossEntropy {
  using V = Vec<T>;
  using R = RowState<T>;
  using Given = CrossEntropy;
  explicit CrossEntropy(const Constants<T>&) {}

  static constexpr int kReads = 1 << kSide | 1 << kHard, kSums = 1 << kSide, kGradients = kReads;
  static constexpr int kByValue = -1, kTaken = 0, kNear = 0;

  KL_INLINE V term(const R& r, const Values<T>& x) const {
    const V y = x.x[kHard];
    return y == T(0) ? V{} : y * (r.hard_log - (x.x[kSide] - r.side[kSide].max));
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool, T, bool, V* own, V* s) const {
    if (kTerms) *own = term(r, x);
    s[kSide] = x.x[kHard];
  }
  template <int i> KL_INLINE V gradient(const R& r, const Values<T>& x, V g, T per_element) const {
    return i == kHard ? to_label(r, x, g) : to_scores(x, g, per_element, exp_down<T>(x.x[kSide] - r.side[kSide].max) * r.hard_scale, r.sum[kSide]);
  }
  // The gradient to the logits, from their probability q and the sum of the labels.
  static KL_INLINE V to_scores(const Values<T>& x, V g, T per_element, V q, V mass) {
    const V y = x.x[kHard];
    if (per_element == T(0)) return g == T(0) ? V{} : g * (mass == T(0) ? -y : MulAdd<T>(q, mass, -y));
    return (mass == T(0) ? V{} : q * mass) - (g == T(0) ? V{} : g * y);
  }
  // If the label is 0 and the logit masked, the gradient to the label is 0, as in KL.
  KL_INLINE V to_label(const R& r, const Values<T>& x, V g) const {
    const V by = r.hard_log - (x.x[kSide] - r.side[kSide].max);
    return (g == T(0)) | ((x.x[kHard] == T(0)) & !(by < inf<T>())) ? V{} : g * by;
  }
};

// soft times a divergence, plus hard times the cross-entropy of one side, pred; the other side, the teacher, has no gradient.
template <class T, class Soft, int kSide> struct Distilled {
  using V = Vec<T>;
  using R = RowState<T>;
  using Shared = typename Soft::template Taking<1 << kSide>;
  explicit Distilled(const Constants<T>& constants) : c(constants), soft(constants), shared(constants), hard(constants) {}
  const Constants<T>& c;
  const Soft soft;
  const Shared shared;  // the same with pred's exponential, which the gradient to pred needs for both parts
  const CrossEntropy<T, kSide> hard;

  static constexpr int kReads = Soft::kReads | 1 << kHard, kSums = 3, kGradients = 1 << kSide | 1 << kHard;
  static constexpr int kByValue = -1, kTaken = Soft::kTaken, kNear = Soft::kNear & 1 << kSide;
  using Given = Distilled<T, typename Soft::Given, kSide>;

  KL_INLINE V term(const R& r, const Values<T>& x) const {
    return MulAdd<T>(splat(c.soft), soft.term(r, x), c.hard * hard.term(r, x));
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool whole, T per_element, bool sums, V* own, V* s) const {
    V of_soft;
    soft.template add<kTerms>(r, x, whole, per_element, sums, &of_soft, s);
    if (kTerms) *own = MulAdd<T>(splat(c.soft), of_soft, c.hard * hard.term(r, x));
    s[1 - kSide] = x.x[kHard];
  }
  template <int i, bool kNearRows = false> KL_INLINE V gradient(const R& r, const Values<T>& x, V g, T per_element) const {
    if (i == kHard) return c.hard * hard.to_label(r, x, g);
    const V off = x.x[kSide] - r.side[kSide].max;
    Values<T> y = x;
    y.e[kSide] = exp_down<T>(off * c.t[kSide]);
    const V q = at_temperature_one<T>(c.squarings, y.e[kSide], off) * r.hard_scale;
    return MulAdd<T>(splat(c.soft), shared.template gradient<kSide, kNearRows>(r, y, g, per_element),
                         c.hard * hard.to_scores(x, g, per_element, q, r.sum[1 - kSide]));
  }
};

}  // namespace
#endif  // GLUON_KL_HARD_LABELS_H_
