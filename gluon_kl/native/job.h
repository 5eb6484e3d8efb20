// What one call of the operator asks of the kernels. Plain data: no MXNet, no allocation.
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

// What the numbers of one side are: probabilities, their logs, or scores that a softmax over the axis turns into both.
enum Space { kProbs = 0, kLogProbs = 1, kLogits = 2 };

// Per-row numbers kept from the forward for the backward, each an array of `rows` (or null: computed again).
enum Stat { kPredMax, kPredSum, kMass, kLabelMax, kLabelSum, kValue, kStats };

constexpr int kSeriesTerms = 18;

// KL(label || pred), or the Jensen-Shannon divergence if beta > 0, of `outer * inner` rows of `n` categories; category k of row o * inner + i lies at
// o * n * inner + k * inner + i.
struct Job {
  const void* pred;
  const void* label;
  Type pred_type, label_type;
  Space pred_space, label_space;
  int64_t outer, n, inner;
  double inv_temperature;  // multiplies logits
  double log_epsilon;      // stands in for log(0) in the gradient of a label given as probability
  double beta;             // share of the label in the mixture
  double series[2][kSeriesTerms];  // of a term near equality, see Terms::mixed: where pred is the smaller, and the label
  void* stats[kStats];     // of the computing type
  void* pred_grad;         // null: not wanted
  void* label_grad;
  bool stream;             // gradients too large for the cache: write past it
};

// The same two functions for each instruction set and computing type. Rows are independent of each other.
struct Kernels {
  const char* isa;
  // The divergence of rows [begin, end) into value[0 ... end - begin), and the stats asked for.
  void (*forward)(const Job&, int64_t begin, int64_t end, double* value);
  // Gradients of rows [begin, end), times factor[0 ... end - begin); a factor of 0 gives 0 whatever the row holds.
  void (*backward)(const Job&, int64_t begin, int64_t end, const double* factor);
  // How many neighbouring rows are worth passing at once: at most kMaxGrain.
  int64_t (*grain)(const Job&);
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
