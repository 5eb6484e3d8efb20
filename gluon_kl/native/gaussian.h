// KL between diagonal Gaussians.
#ifndef GLUON_KL_GAUSSIAN_H_
#define GLUON_KL_GAUSSIAN_H_

#include "form.h"

namespace {

using namespace gluon_kl;

// KL(N(mean, e^l) || N(prior mean, e^l')) = (g^2 e^-l' + expm1(d) - d) / 2, g the difference of the means, d = l - l'.
template <class T, bool kPrior, bool kStd> struct Gaussian {
  using V = Vec<T>;
  using R = RowState<T>;
  using Given = Gaussian;
  explicit Gaussian(const Constants<T>& c) : free_nats(c.free_nats) {}
  const T free_nats;

  static constexpr int kReads = kPrior ? 15 : 3, kSums = 0, kGradients = kReads;
  static constexpr int kByValue = -1, kTaken = 0, kNear = 0;

  static constexpr T least = Expm1<T>::least;  // of d: below, e^d adds nothing to 1
  // g / s', factors of 1 / s'; the larger of d and `least`, and half of what d is below that.
  struct Point { V distance, narrow, narrow_again, within, below; };
  // From d / 2, which is finite where d may not be.
  static KL_INLINE Point point(V distance, V narrow, V narrow_again, V half) {
    constexpr T bound = T(0.5) * least;
    return {distance, narrow, narrow_again, T(2) * Max<T>(bound, half), half < bound ? bound - half : V{}};
  }
  KL_INLINE Point point(const Values<T>& x) const {
    const V spread = x.x[kLogVariance], one = splat(T(1));
    if (!kPrior && kStd) return point(x.x[kMean], one, one, log<T>(spread));
    // The same without the product that brings it to d / 2: 5 % of the forward with AVX-512.
    if (!kPrior) return {x.x[kMean], one, one, Max<T>(least, spread), spread < least ? T(0.5) * (least - spread) : V{}};
    const V prior = x.x[kPriorLogVariance], g = x.x[kMean] - x.x[kPriorMean];
    if (kStd) {
      const V off = (spread - prior) / prior;
      const V half = (off < T(0.25)) & (off > T(-0.25)) ? log1p<T>(off) : log<T>(spread) - log<T>(prior);
      return point(g == T(0) ? V{} : g / prior, one / prior, one, half);
    }
    // Two steps, because e^(-l'/2) may overflow although the product does not. A distance of 0 must give 0, not 0 * inf.
    const V root = exp<T>(T(-0.25) * prior);
    return point(g == T(0) ? V{} : g * root * root, root, root, T(0.5) * spread - T(0.5) * prior);
  }
  KL_INLINE V value(const Point& p) const {
    return p.distance * (T(0.5) * p.distance) + (Expm1<T>(p.within).half_excess() + p.below);
  }
  KL_INLINE V term(const R&, const Values<T>& x) const {
    const V v = value(point(x));
    if (free_nats > T(0)) return v < free_nats ? splat(free_nats) : v;  // none is below 0
    return v;
  }
  template <bool kTerms> KL_INLINE void add(const R& r, const Values<T>& x, bool, T, bool, V* own, V*) const { *own = term(r, x); }
  template <int i> KL_INLINE V gradient(const R&, const Values<T>& x, V g, T) const {
    const Point p = point(x);
    V by;
    const V pull = p.distance == T(0) ? V{} : p.distance * p.narrow * p.narrow_again;  // narrow may be inf
    if (i == kMean) by = pull;
    if (i == kPriorMean) by = -pull;
    if (i == kLogVariance) by = Expm1<T>(p.within).half();
    if (i == kPriorLogVariance) by = -(p.distance * (T(0.5) * p.distance) + Expm1<T>(p.within).half());
    if (kStd && (i == kLogVariance || i == kPriorLogVariance)) by *= T(2) / x.x[i];
    // Only a call with free nats has to compute the value.
    V out = g == T(0) ? V{} : g * by;
    if (free_nats > T(0)) out = value(p) < free_nats ? V{} : out;
    return out;
  }
};

}  // namespace
#endif  // GLUON_KL_GAUSSIAN_H_
