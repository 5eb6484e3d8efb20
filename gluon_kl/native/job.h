// The job that a call of the operator gives to the kernels. Plain data: no MXNet, no allocation.
#ifndef GLUON_KL_JOB_H_
#define GLUON_KL_JOB_H_

#include <stdint.h>

namespace gluon_kl {

// The codes are MXNet's own (mshadow), so that they pass through unchanged.
enum Type { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kUint8 = 3, kInt32 = 4, kInt8 = 5, kInt64 = 6, kBool = 7 };

inline int size_of(Type type) {
  switch (type) {
    case kFloat64:
    case kInt64: return 8;
    case kFloat32:
    case kInt32: return 4;
    case kFloat16: return 2;
    default: return 1;
  }
}

// The kernels have no reverse divergences: a plan exchanges the sides.
enum Form { kKL, kReverseKL, kJS, kSkewKL, kSkewReverseKL, kTotalVariation, kGaussian, kBernoulli, kCrossEntropy };

// What the numbers of one side are: probabilities, their logs, or scores that a softmax over the axis (of a Bernoulli
// divergence: a sigmoid) turns into both.
enum Space { kProbs = 0, kLogProbs = 1, kLogits = 2 };

// The streams that are read at each place: the inputs of a form, and the factor of a single element.
enum Stream { kPred = 0, kTarget = 1, kHard = 2, kMean = 0, kLogVariance = 1, kPriorMean = 2, kPriorLogVariance = 3,
              kInputs = 4, kFactor = 4, kStreams = 5 };

// Per-row numbers kept from the forward for the backward, each an array of `rows` (or null: computed again). The sum
// of exponentials behind kHardSum is that of pred at temperature 1; what the two sums are is the form's matter.
enum Stat { kPredMax, kPredSum, kHardSum, kTargetMax, kTargetSum, kFirstSum, kSecondSum, kValue, kStats };

// One merged axis of an array that broadcasts: element e of the call's shape lies at the sum of
// e / stride % size * step over the array's axes, innermost first.
struct BroadcastAxis { int64_t stride, size, step; };

// An array that is read at every element of the call's shape. If `categories` is not 0, it holds one class index for each
// row: then its value is `at_class` at the row's class and `elsewhere` at the others, or NaN everywhere if the index is no
// class.
struct View {
  const void* data;  // null: there is none
  Type type;
  bool whole;        // it has the call's shape
  int64_t categories, inner;
  int axes;
  const BroadcastAxis* axis;
  double at_class = 1, elsewhere = 0;
};

// Where results go: an array of the call's shape, or sums over the elements that share a place.
struct Sink {
  void* data;  // null: not wanted
  Type type;
  double* totals;  // not null: instead of data
  int axes;
  const BroadcastAxis* axis;
};

constexpr int kSeriesTerms = 18;

// `outer * inner` rows of `n` categories; category k of row o * inner + i lies at o * n * inner + k * inner + i.
struct Job {
  Form form;
  bool hard;           // hard labels beside (or, for kCrossEntropy, instead of) the target
  int scored;          // the side whose softmax they score
  Space space[2];
  bool whole_rows;     // only the sum over a whole row under one weight is needed
  bool prior, spread_is_std;  // of a Gaussian: there is one other than N(0, 1); spreads are standard deviations
  View in[kInputs];
  View weight, head;   // their product is what each single element counts
  Sink grad[kInputs];
  Sink terms;
  int64_t outer, n, inner;
  double inv_temperature;         // multiplies logits, but for the hard labels' softmax
  double soft_share, hard_share;  // of the divergence from the target, and of the cross-entropy with the hard label
  double log_epsilon;  // stands in for log(0) in the gradient of a target given as probability
  double free_nats;
  double beta;         // share of the target in the mixture
  double skew;         // share, in what the skewed forms compare with, of the side that is compared
  double series[kSeriesTerms];  // of a mixed term near equality, see JS in pair.h
  void* stats[kStats]; // of the computing type
  bool kept;           // the stats are there, from the forward
  bool stream;         // gradients too large for the cache: write past it
};

// What happens to the teacher's probability of categories that were not kept. In order: there is no such teacher; it is one
// more category; the kept probabilities are scaled to sum to 1; it is left out.
enum Tail { kWholeTeacher, kBucket, kRenormalize, kDrop };

struct Numbers { const void* data; Type type; };  // null: there are none

// A student's rows of n scores, and a teacher that kept k categories of each (top_k.h): `index` and `value` have rows of k,
// `label` the class of each row, or nothing. `loss` has a number for each row, in the computing type: hard_share times the
// cross-entropy with the label, and 1 - hard_share times T^2 times the divergence from the teacher. `kept` has columns() for
// each: the gradient to the kept scores and to that of the class, and what the others' is computed from.
struct TopK {
  const void* pred;
  Type type;
  Numbers index, value, label;
  int64_t rows, n, k;
  Form form;
  Tail tail;
  Space space;
  double temperature, beta, hard_share, smoothing;
  void *loss, *kept;
  const void* head;  // gradients of the losses
  void* grad;        // to pred
  Type grad_type;
  bool in_double, stream;
  int64_t columns() const { return k + 4; }
};

// The same functions for each instruction set and computing type. Rows are independent of each other.
struct Kernels {
  const char* isa;
  // The sums of rows [begin, end) into value[0 ... end - begin), and the stats asked for.
  void (*forward)(const Job&, int64_t begin, int64_t end, double* value);
  // The single terms of rows [begin, end), times factor[0 ... end - begin), into job.terms.
  void (*terms)(const Job&, int64_t begin, int64_t end, const double* factor);
  // Gradients of rows [begin, end), times factor[0 ... end - begin); a factor of 0 gives 0 whatever the row holds.
  void (*backward)(const Job&, int64_t begin, int64_t end, const double* factor);
  // The number of neighbouring rows that should be passed at once, at most kMaxGrain.
  int64_t (*grain)(const Job&);
  // Losses of rows [begin, end), and the gradient to pred: a head of 0 gives 0 whatever the row holds.
  void (*top_k_forward)(const TopK&, int64_t begin, int64_t end);
  void (*top_k_backward)(const TopK&, int64_t begin, int64_t end);
};

constexpr int64_t kMaxGrain = 512;

enum Precision { kSingle = 0, kDouble = 1 };

const Kernels* kernels_baseline(Precision);
#if defined(__x86_64__)
const Kernels* kernels_avx2(Precision);
const Kernels* kernels_avx512(Precision);
#endif

}  // namespace gluon_kl
#endif  // GLUON_KL_JOB_H_
