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

// Alone, or beside hard labels that score the scores of side kScored, of a form that may have them on either.
template <class T, int kScored, class F, class Use> auto with_hard(const Job& job, Use use) {
  return job.hard ? use(Is<Distilled<T, F, kScored>>{}) : use(Is<F>{});
}
template <class T, class F, class Use> auto with_either_hard(const Job& job, Use use) {
  return job.scored == kPred ? with_hard<T, kPred, F>(job, use) : with_hard<T, kTarget, F>(job, use);
}
template <class T, template <class> class D, How kPredHow, How kTargetHow> using Plain = Pair<T, D, kPredHow, kTargetHow, false>;
template <class T, template <class> class D> using Logits = Pair<T, D, kAsLogs, kAsLogs, true>;
// use(Is<form>) of the form that the job asks for.
template <class T, class Use> auto with_form(const Job& job, Use use) {
  const bool std = job.spread_is_std, pred = job.space[0] == kLogits, target = job.space[1] == kLogits;
  const bool logits = pred && target, pred_log = job.space[0] != kProbs, target_log = job.space[1] != kProbs;
  switch (job.form) {
    case kKL:
      if (logits) return with_either_hard<T, Logits<T, KL>>(job, use);
      if (pred_log && target_log) return with_either_hard<T, Plain<T, KL, kAsLogs, kAsLogs>>(job, use);
      if (pred_log) return with_hard<T, kPred, Plain<T, KL, kAsLogs, kAsProbs>>(job, use);
      if (target_log) return with_hard<T, kTarget, Plain<T, KL, kAsProbs, kAsLogs>>(job, use);
      return use(Is<Plain<T, KL, kAsProbs, kAsProbs>>{});
    case kJS:
      if (logits) return with_hard<T, kPred, Logits<T, JS>>(job, use);
      if (pred_log && target_log) return with_hard<T, kPred, Plain<T, JS, kAsLogs, kAsLogs>>(job, use);
      if (pred_log) return with_hard<T, kPred, Plain<T, JS, kAsLogs, kAsProbs>>(job, use);
      return use(Is<Plain<T, JS, kAsGiven, kAsGiven>>{});
    case kSkewKL:
      if (logits) return with_either_hard<T, Logits<T, SkewKL>>(job, use);
      return with_either_hard<T, Plain<T, SkewKL, kAsGiven, kAsGiven>>(job, use);
    case kTotalVariation:
      if (logits) return with_hard<T, kPred, Logits<T, TotalVariation>>(job, use);
      return with_hard<T, kPred, Plain<T, TotalVariation, kAsGiven, kAsGiven>>(job, use);
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
