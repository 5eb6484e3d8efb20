// One call of the operator: which rows go to which thread, weights, and the sum over each sample. No MXNet here.
#ifndef GLUON_KL_DIVERGENCE_H_
#define GLUON_KL_DIVERGENCE_H_

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "job.h"
#include "threads.h"

namespace gluon_kl {

// GLUON_KL_ISA=baseline|avx2 keeps to less than the processor has (tests compare them).
inline const Kernels& kernels(Precision precision) {
  static const int level = [] {
#if defined(__x86_64__)
    const char* text = getenv("GLUON_KL_ISA");
    const std::string cap = text ? text : "";
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return avx512 && cap != "avx2" && cap != "baseline" ? 2 : avx2 && cap != "baseline" ? 1 : 0;
#else
    return 0;
#endif
  }();
#if defined(__x86_64__)
  if (level == 2) return *kernels_avx512(precision);
  if (level == 1) return *kernels_avx2(precision);
#endif
  return *kernels_baseline(precision);
}

struct Array {
  const void* data;
  Type type;
  std::vector<int64_t> shape;
};

struct Options {
  int axis = -1, batch_axis = 0;
  Space pred_space = kLogProbs, label_space = kProbs;
  double inv_temperature = 1, epsilon = 1e-12, scale = 1;
  double beta = 0;
  bool mean = true;
};

inline double number(const void* data, Type type, int64_t i) {
  switch (type) {
    case kFloat32: return static_cast<const float*>(data)[i];
    case kFloat64: return static_cast<const double*>(data)[i];
    case kInt32: return static_cast<const int32_t*>(data)[i];
    case kInt64: return static_cast<double>(static_cast<const int64_t*>(data)[i]);
    case kInt8: return static_cast<const int8_t*>(data)[i];
    case kUint8:
    case kBool: return static_cast<const uint8_t*>(data)[i];
    case kFloat16: {
      const uint16_t h = static_cast<const uint16_t*>(data)[i];
      const int exponent = h >> 10 & 31, fraction = h & 1023;
      const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                         : std::ldexp(fraction, -24);
      return h & 0x8000 ? -size : size;
    }
  }
  return NAN;
}
inline uint16_t half(double x) {  // to nearest even
  if (std::isnan(x)) return 0x7e00;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (x >= 65520) return sign | 0x7c00;
  if (x < 6.103515625e-05) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(x, 24)));
  int exponent;
  const double fraction = std::frexp(x, &exponent);  // carries from rounding run into the exponent as they should
  return sign | static_cast<uint16_t>((exponent + 13) * 1024 + static_cast<int>(std::nearbyint(std::ldexp(fraction, 11))));
}
template <class To> To whole(double x) {
  if (!(x == x)) return 0;
  if (x >= static_cast<double>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  if (x <= static_cast<double>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  return static_cast<To>(x);
}
inline void put(void* data, Type type, int64_t i, double x) {
  switch (type) {
    case kFloat32: static_cast<float*>(data)[i] = static_cast<float>(x); break;
    case kFloat64: static_cast<double*>(data)[i] = x; break;
    case kFloat16: static_cast<uint16_t*>(data)[i] = half(x); break;
    case kInt32: static_cast<int32_t*>(data)[i] = whole<int32_t>(x); break;
    case kInt64: static_cast<int64_t*>(data)[i] = whole<int64_t>(x); break;
    case kInt8: static_cast<int8_t*>(data)[i] = whole<int8_t>(x); break;
    case kUint8:
    case kBool: static_cast<uint8_t*>(data)[i] = whole<uint8_t>(x); break;
  }
}

inline int normal_axis(int axis, int rank, const char* name) {
  if (axis < -rank || axis >= rank)
    throw std::invalid_argument(std::string(name) + " must lie in [" + std::to_string(-rank) + ", " +
                                std::to_string(rank) + ") for arrays of " + std::to_string(rank) + " axes, not " +
                                std::to_string(axis));
  return axis < 0 ? axis + rank : axis;
}
inline std::string text(const std::vector<int64_t>& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

// f(s) = -M log M - w s e^-s with M = 1 - w + w e^-s, as out[0] s^2 + out[1] s^3 + ...: power series M of M, K of log M
// from M K' = M', and -w s e^-s = s M'.
inline void series_near_equality(double w, double* out) {
  constexpr int terms = kSeriesTerms + 2;
  double m[terms] = {1}, k[terms] = {}, power = w;
  for (int i = 1; i < terms; ++i) {
    m[i] = power *= -1.0 / i;
    k[i] = m[i];
    for (int j = 1; j < i; ++j) k[i] -= j * k[j] * m[i - j] / i;
    if (i < 2) continue;
    double f = i * m[i];
    for (int j = 0; j < i; ++j) f -= m[j] * k[i - j];
    out[i - 2] = f;
  }
}

class Divergence {
 public:
  // weight.data may be null: no weight.
  Divergence(const Options& options, const Array& pred, const Array& label, const Array& weight)
      : options_(options), pred_(pred), label_(label), weight_(weight) {
    const int rank = static_cast<int>(pred.shape.size());
    axis_ = normal_axis(options.axis, rank, "axis");
    batch_axis_ = normal_axis(options.batch_axis, rank, "batch_axis");
    double_ = pred.type == kFloat64 || label.type == kFloat64 || (weight.data && weight.type == kFloat64);
    job_ = Job{};
    job_.pred = pred.data;
    job_.label = label.data;
    job_.pred_type = pred.type;
    job_.label_type = label.type;
    job_.pred_space = options.pred_space;
    job_.label_space = options.label_space;
    job_.inv_temperature = options.inv_temperature;
    job_.log_epsilon = std::log(options.epsilon);
    job_.beta = options.beta;
    if (job_.beta > 0) {
      if (options.pred_space == kProbs) throw std::invalid_argument("beta needs pred_space log_probs or logits");
      series_near_equality(1 - job_.beta, job_.series[0]);
      series_near_equality(job_.beta, job_.series[1]);
    }
    job_.outer = job_.inner = batch_stride_ = 1;
    job_.n = pred.shape[axis_];
    batch_ = pred.shape[batch_axis_];
    double count = 1;
    for (int d = 0; d < rank; ++d) {
      if (d < axis_) job_.outer *= pred.shape[d];
      if (d > axis_) job_.inner *= pred.shape[d];
      if (d > batch_axis_ && d != axis_) batch_stride_ *= pred.shape[d];
      if (d != batch_axis_) count *= static_cast<double>(pred.shape[d]);
    }
    rows_ = job_.outer * job_.inner;
    factor_ = options.scale / (options.mean ? count : 1);
    if (weight.data) plan_weight();
  }

  bool in_double() const { return double_; }
  int64_t rows() const { return rows_; }
  // Stats of the computing type, `rows` each, that the forward is to keep: how many there can be.
  static int kept(const Options& o, bool weighted) {
    int n = 0;
    for (int s = 0; s < kStats; ++s) n += keeps(o, weighted, s);
    return n;
  }
  void keep_in(void* memory) {
    char* at = static_cast<char*>(memory);
    for (int s = 0; s < kStats; ++s) {
      if (!memory || !keeps(options_, weight_.data != nullptr, s)) continue;
      job_.stats[s] = at;
      at += rows_ * (double_ ? 8 : 4);
    }
  }

  // out[i] for each sample i, of the computing type.
  void forward(void* out) {
    if (axis_ == batch_axis_) return elementwise_forward(out);
    std::vector<double> total(batch_, 0.0);
    if (rows_ > 0 && job_.n > 0) {
      // Neighbouring rows of one sample are summed within a piece; where samples alternate, row by row.
      const Pieces pieces = split();
      const bool by_piece = pieces.run > 1;
      std::vector<double> parts(by_piece ? pieces.count() : own_sample() ? 0 : rows_);
      double* const part = by_piece || !own_sample() ? parts.data() : total.data();
      const Kernels& k = kernels(double_ ? kDouble : kSingle);
      share(pieces.count(), [&](int64_t i) {
        int64_t begin, end;
        pieces.bounds(i, &begin, &end);
        double values[kMaxGrain];
        double* const value = by_piece ? values : &part[begin];
        k.forward(job_, begin, end, value);
        if (weight_.data) weigh(begin, end, value);
        if (by_piece) part[i] = sum(value, end - begin);
      });
      if (by_piece) {
        for (int64_t i = 0; i < pieces.count(); ++i) total[i / pieces.per_run % batch_] += part[i];
      } else if (!own_sample()) {
        samples(0, rows_, [&](int64_t r, int64_t b) { total[b] += part[r]; });
      }
    }
    put_all(out, total);
  }

  // Null gradients are not wanted. `value` is the kept stat; the weight's gradient needs it.
  void backward(const void* ograd, void* pred_grad, void* label_grad, void* weight_grad) {
    if (axis_ == batch_axis_) return elementwise_backward(ograd, pred_grad, label_grad, weight_grad);
    job_.pred_grad = pred_grad;
    job_.label_grad = label_grad;
    const double bytes = static_cast<double>(rows_) * static_cast<double>(job_.n) * (double_ ? 8 : 4);
    job_.stream = bytes >= kStreamBytes;
    if (rows_ > 0 && job_.n > 0 && (pred_grad || label_grad)) {
      const Pieces pieces = split();
      const Kernels& k = kernels(double_ ? kDouble : kSingle);
      share(pieces.count(), [&](int64_t i) {
        int64_t begin, end;
        pieces.bounds(i, &begin, &end);
        double factor[kMaxGrain];
        if (double_) factors(static_cast<const double*>(ograd), begin, end, factor);
        else factors(static_cast<const float*>(ograd), begin, end, factor);
        if (weight_.data) weigh(begin, end, factor);
        k.backward(job_, begin, end, factor);
      });
    }
    if (weight_grad) weight_gradient(ograd, weight_grad);
  }

 private:
  // Rows cut into pieces that do not cross from one run (neighbouring rows of one sample) to the next, or plainly.
  struct Pieces {
    int64_t rows, run, grain, per_run;
    int64_t count() const { return rows / run_or_rows() * per_run; }
    int64_t run_or_rows() const { return run > 1 ? run : rows; }
    void bounds(int64_t i, int64_t* begin, int64_t* end) const {
      const int64_t start = i / per_run * run_or_rows(), at = i % per_run * grain;
      *begin = start + at;
      *end = start + std::min(at + grain, run_or_rows());
    }
  };
  Pieces split() const {
    const int64_t grain = kernels(double_ ? kDouble : kSingle).grain(job_);
    const int64_t run = batch_stride_ > 1 && batch_stride_ >= std::min<int64_t>(grain, 64) ? batch_stride_ : 1;
    const int64_t length = run > 1 ? run : rows_;
    return {rows_, run, grain, (length + grain - 1) / grain};
  }
  // Several sums at once: each addition waits for the one before.
  static double sum(const double* x, int64_t count) {
    double part[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
      for (int j = 0; j < 8; ++j) part[j] += x[i + j];
    for (; i < count; ++i) part[0] += x[i];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  }
  // f(row, sample) for rows [begin, end).
  template <class F> void samples(int64_t begin, int64_t end, F f) const {
    int64_t b = begin / batch_stride_ % batch_, left = batch_stride_ - begin % batch_stride_;
    for (int64_t r = begin; r < end; left = batch_stride_) {
      for (const int64_t stop = std::min(end, r + left); r < stop; ++r) f(r, b);
      if (++b == batch_) b = 0;
    }
  }
  bool own_sample() const { return rows_ == batch_; }  // each row is a sample, in their order
  template <class T> void factors(const T* ograd, int64_t begin, int64_t end, double* factor) const {
    if (own_sample())
      for (int64_t r = begin; r < end; ++r) factor[r - begin] = ograd[r] * factor_;
    else
      samples(begin, end, [&](int64_t r, int64_t b) { factor[r - begin] = ograd[b] * factor_; });
  }
  void put_all(void* out, const std::vector<double>& total) const {
    for (int64_t b = 0; double_ && b < batch_; ++b) static_cast<double*>(out)[b] = scaled(total[b]);
    for (int64_t b = 0; !double_ && b < batch_; ++b) static_cast<float*>(out)[b] = static_cast<float>(scaled(total[b]));
  }
  template <class F> void share(int64_t pieces, const F& task) const {
    const double work = static_cast<double>(rows_) * static_cast<double>(job_.n);
    const int wanted = work < kSmall ? 1 : 4096;
    if (wanted == 1) {
      for (int64_t i = 0; i < pieces; ++i) task(i);
      return;
    }
    Threads::get().run(pieces, wanted, task);
  }

  static bool keeps(const Options& o, bool weighted, int stat) {
    const bool mixed = o.beta > 0 && (o.pred_space == kLogits || o.label_space == kLogits);
    switch (stat) {
      case kPredMax:
      case kPredSum: return o.pred_space == kLogits;
      case kMass: return o.beta > 0 ? mixed : o.pred_space == kLogits && o.label_space != kLogits;
      case kLabelMax:
      case kLabelSum: return o.label_space == kLogits;
      default: return weighted || mixed || o.label_space == kLogits;
    }
  }

  // The weight's position for row r: sum of (r / stride % size) * step over its merged axes.
  struct Walk { int64_t stride, size, step; };
  void plan_weight() {
    const int rank = static_cast<int>(pred_.shape.size());
    weight_size_ = 1;
    for (int64_t size : weight_.shape) weight_size_ *= size;
    int64_t row_stride = 1, step = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (d == axis_) continue;
      const int64_t size = pred_.shape[d];
      if (weight_.shape[d] == size && size > 1) {
        if (!walk_.empty() && walk_.back().stride * walk_.back().size == row_stride &&
            walk_.back().step * walk_.back().size == step)
          walk_.back().size *= size;
        else
          walk_.push_back({row_stride, size, step});
        step *= size;
      }
      row_stride *= size;
    }
  }
  int64_t weight_at(int64_t row) const {
    int64_t at = 0;
    for (const Walk& w : walk_) at += row / w.stride % w.size * w.step;
    return at;
  }
  // value *= weight; a row of weight 0 counts for nothing, whatever it holds.
  void weigh(int64_t begin, int64_t end, double* value) const {
    for (int64_t r = begin; r < end; ++r) {
      const double w = number(weight_.data, weight_.type, weight_at(r));
      value[r - begin] = w == 0 ? 0 : value[r - begin] * w;
    }
  }
  void weight_gradient(const void* ograd, void* grad) const {
    std::vector<double> total(weight_size_, 0.0);
    if (rows_ > 0 && job_.n > 0)
      samples(0, rows_, [&](int64_t r, int64_t b) {
        const int64_t at = weight_at(r);
        const double value = number(job_.stats[kValue], double_ ? kFloat64 : kFloat32, r);
        if (std::isfinite(value) || number(weight_.data, weight_.type, at) != 0)
          total[at] += out_grad(ograd, b) * factor_ * value;
      });
    for (int64_t i = 0; i < weight_size_; ++i) put(grad, weight_.type, i, total[i]);
  }

  double out_grad(const void* ograd, int64_t i) const { return number(ograd, double_ ? kFloat64 : kFloat32, i); }
  double scaled(double total) const { return total == 0 ? 0 : total * factor_; }  // nothing over nothing is nothing

  // ---- axis == batch_axis: each category is its own sample. Plain terms, in double, one row at a time.
  struct Term { double value, pred, label; };  // and its derivatives, the softmax left out
  double rounded(double x) const { return double_ ? x : static_cast<float>(x); }
  struct Line { std::vector<double> p, log_p, log_q, q; };
  void log_softmax(std::vector<double>* x) const {
    double best = -INFINITY, sum = 0;
    for (double v : *x) best = v > best ? v : best;
    if (best == -INFINITY) best = 0;
    for (double& v : *x) sum += std::exp((v = (v - best) * options_.inv_temperature));
    for (double& v : *x) v -= std::log(sum);
  }
  void read(int64_t row, Line* line) const {
    const int64_t n = job_.n, base = row / job_.inner * n * job_.inner + row % job_.inner;
    for (auto* v : {&line->p, &line->log_p, &line->log_q, &line->q}) v->resize(n);
    for (int64_t k = 0; k < n; ++k) {
      line->log_q[k] = number(pred_.data, pred_.type, base + k * job_.inner);
      line->log_p[k] = number(label_.data, label_.type, base + k * job_.inner);
    }
    if (options_.pred_space == kLogits) log_softmax(&line->log_q);
    if (options_.label_space == kLogits) log_softmax(&line->log_p);
    for (int64_t k = 0; k < n; ++k) {
      if (options_.pred_space == kProbs) {
        line->q[k] = line->log_q[k];
        line->log_q[k] = std::log(line->q[k]);
      } else {
        line->q[k] = std::exp(line->log_q[k]);
      }
      if (options_.label_space == kProbs) {
        line->p[k] = line->log_p[k];
        line->log_p[k] = std::log(line->p[k]);
      } else {
        line->p[k] = rounded(std::exp(line->log_p[k]));
      }
    }
  }
  double weight_of(int64_t row) const { return weight_.data ? number(weight_.data, weight_.type, weight_at(row)) : 1; }

  Term mixed(const Line& x, int64_t k) const {  // as Terms::mixed in kernel.h
    const double p = x.p[k], q = x.q[k], u = p == 0 && q == 0 ? 0 : x.log_p[k] - x.log_q[k], s = std::fmin(std::fabs(u), 80);
    if (u != u) return {NAN, NAN, NAN};
    const double w = u >= 0 ? 1 - job_.beta : job_.beta, v = u >= 0 ? job_.beta : 1 - job_.beta;
    const double m = v + w * std::exp(-s), log_m = m > 0.7 ? std::log1p(w * std::expm1(-s)) : std::log(m);
    const double f = -m * log_m - w * s * std::exp(-s), larger = -v * log_m, smaller = -w * (log_m + s);
    return {(u >= 0 ? p : q) * std::fmax(f, 0), u >= 0 ? smaller : larger, u >= 0 ? larger : smaller};
  }
  void elementwise_forward(void* out) {
    std::vector<double> total(batch_, 0.0);
    Line x;
    for (int64_t row = 0; row < rows_; ++row) {
      const double w = weight_of(row);
      if (w == 0) continue;
      read(row, &x);
      for (int64_t k = 0; k < job_.n; ++k) {
        if (job_.beta > 0) total[k] += w * mixed(x, k).value;
        else if (x.p[k] != 0) total[k] += w * (x.p[k] * (x.log_p[k] - x.log_q[k]));
      }
    }
    put_all(out, total);
  }
  void elementwise_backward(const void* ograd, void* pred_grad, void* label_grad, void* weight_grad) {
    std::vector<double> weight_total(weight_.data ? weight_size_ : 0, 0.0);
    const int64_t n = job_.n;
    Line x;
    std::vector<double> for_pred(n), for_label(n);
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t base = row / job_.inner * n * job_.inner + row % job_.inner;
      const double w = weight_of(row);
      read(row, &x);
      double pulled = 0, pushed = 0, value = 0;
      for (int64_t k = 0; k < n; ++k) {
        const double g = out_grad(ograd, k) * factor_ * w, u = x.log_p[k] - x.log_q[k];
        const bool none = x.p[k] == 0;
        const double gp = none ? 0 : g * x.p[k];
        if (job_.beta > 0) {
          const Term term = mixed(x, k);
          value += out_grad(ograd, k) * factor_ * term.value;
          for_pred[k] = g * term.pred * x.q[k];
          for_label[k] = options_.label_space == kProbs ? g * term.label : g * term.label * x.p[k];
          pulled -= for_pred[k];
          pushed += for_label[k];
          continue;
        }
        if (!none) value += out_grad(ograd, k) * factor_ * (x.p[k] * u);
        for_pred[k] = options_.pred_space == kProbs ? (none ? 0 : -gp / x.q[k]) : -gp;
        if (options_.label_space == kProbs)
          for_label[k] = !none ? g * (u + 1) : x.log_q[k] > -INFINITY ? g * (job_.log_epsilon - x.log_q[k]) : 0;
        else
          for_label[k] = none ? 0 : gp * (u + 1);
        pulled += gp;
        pushed += for_label[k];
      }
      for (int64_t k = 0; k < n; ++k) {
        const double t = options_.inv_temperature;
        if (options_.pred_space == kLogits) for_pred[k] = t * (for_pred[k] + (pulled == 0 ? 0 : x.q[k] * pulled));
        if (options_.label_space == kLogits) for_label[k] = x.p[k] == 0 ? 0 : t * (for_label[k] - x.p[k] * pushed);
        if (pred_grad) put(pred_grad, pred_.type, base + k * job_.inner, w == 0 ? 0 : for_pred[k]);
        if (label_grad) put(label_grad, label_.type, base + k * job_.inner, w == 0 ? 0 : for_label[k]);
      }
      if (weight_grad && (w != 0 || std::isfinite(value))) weight_total[weight_at(row)] += value;
    }
    for (int64_t i = 0; weight_grad && i < weight_size_; ++i) put(weight_grad, weight_.type, i, weight_total[i]);
  }

  static constexpr double kSmall = 32768;            // elements: below, waking a thread costs more than it brings
  static constexpr double kStreamBytes = 8 << 20;  // gradients larger than this are gone from the cache before use

  Options options_;
  Array pred_, label_, weight_;
  Job job_;
  int axis_, batch_axis_;
  bool double_;
  int64_t rows_, batch_, batch_stride_, weight_size_ = 0;
  double factor_;
  std::vector<Walk> walk_;
};

}  // namespace gluon_kl
#endif  // GLUON_KL_DIVERGENCE_H_
