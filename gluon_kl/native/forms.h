// From a job to the form that computes it.
#ifndef GLUON_KL_FORMS_H_
#define GLUON_KL_FORMS_H_

#include "bernoulli.h"
#include "gaussian.h"
#include "hard_labels.h"
#include "pair.h"

namespace {

using namespace gluon_kl;

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
    case kSkewKL: return with_spaces<T, SkewKL>(job, use);
    case kSkewReverseKL: return with_spaces<T, SkewReverseKL>(job, use);
    case kTotalVariation: return with_spaces<T, TotalVariation>(job, use);
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
#endif  // GLUON_KL_FORMS_H_
