// The plan of a call: how its arrays become rows, which rows go to which thread, weights, and the reduction. It contains
// nothing of MXNet, and no formula.
#ifndef GLUON_KL_PLAN_H_
#define GLUON_KL_PLAN_H_

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "call.h"
#include "dispatch.h"
#include "job.h"
#include "layout.h"
#include "threads.h"

namespace gluon_kl {

using Shape = std::vector<int64_t>;

struct Array {
  const void* data;  // null: there is none
  Type type;
  Shape shape;
};
struct Output {
  void* data;  // null: not wanted
  Type type;
};

inline int normal_axis(int axis, int rank, const char* name) {
  if (axis < -rank || axis >= rank)
    throw std::invalid_argument(std::string(name) + " must lie in [" + std::to_string(-rank) + ", " +
                                std::to_string(rank) + ") for arrays of " + std::to_string(rank) + " axes, not " +
                                std::to_string(axis));
  return axis < 0 ? axis + rank : axis;
}
inline std::string text(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}
inline int64_t product(const Shape& shape, size_t begin, size_t end) {
  int64_t size = 1;
  for (size_t d = begin; d < end; ++d) size *= shape[d];
  return size;
}
inline int64_t size_of(const Shape& shape) { return product(shape, 0, shape.size()); }

// Merged axes of an array of `shape` (each axis 1 or the call's) in a call of shape `over`.
inline std::vector<BroadcastAxis> broadcast_axes(const Shape& shape, const Shape& over) {
  std::vector<BroadcastAxis> found;
  int64_t stride = 1, step = 1;
  for (size_t d = over.size(); d-- > 0;) {
    if (shape[d] == over[d] && over[d] > 1) {
      if (!found.empty() && found.back().stride * found.back().size == stride && found.back().step * found.back().size == step)
        found.back().size *= over[d];
      else
        found.push_back({stride, over[d], step});
      step *= over[d];
    }
    stride *= over[d];
  }
  return found;
}

// f(s) = -M log M - w s e^-s with M = 1 - w + w e^-s, as out[0] s^2 + out[1] s^3 + ...: power series M of M, K of log M
// from M K' = M', and -w s e^-s = s M'. In long double, since the coefficients cancel where w is near 1.
inline void series_near_equality(double w, double* out) {
  constexpr int terms = kSeriesTerms + 2;
  long double m[terms] = {1}, k[terms] = {}, power = w;
  for (int i = 1; i < terms; ++i) {
    m[i] = power *= -1.0L / i;
    k[i] = m[i];
    for (int j = 1; j < i; ++j) k[i] -= j * k[j] * m[i - j] / i;
    if (i < 2) continue;
    long double f = i * m[i];
    for (int j = 0; j < i; ++j) f -= m[j] * k[i - j];
    out[i - 2] = static_cast<double>(f);
  }
}

// What is known of a call once its shapes are. Rows are what a sum runs over inside the kernels: the categories along
// `axis`, or of forms without an axis as many neighbouring elements of one sample as there are.
struct Geometry {
  Shape shape;
  int axis, batch_axis;  // axis -1: the form has none
  int64_t outer = 1, n = 1, inner = 1, rows, batch, batch_stride = 1;
  int first_inner = 0, last_inner = 0;  // the axes within a row
  bool by_row;                          // each row has a result of its own, as if it were a sample

  Geometry(const Call& call, const Shape& of) : shape(of), axis(-1), by_row(call.reduction == kRow) {
    const int rank = static_cast<int>(shape.size());
    batch_axis = normal_axis(call.batch_axis, rank, "batch_axis");
    batch = shape[batch_axis];
    if (call.pair()) {
      axis = normal_axis(call.axis, rank, "axis");
      first_inner = axis, last_inner = axis + 1;
    } else if (product(shape, batch_axis + 1, rank) > 1) {
      first_inner = batch_axis + 1, last_inner = rank;
    } else {
      last_inner = batch_axis;
    }
    outer = product(shape, 0, first_inner);
    n = product(shape, first_inner, last_inner);
    inner = product(shape, last_inner, rank);
    for (int d = batch_axis + 1; d < rank; ++d)
      if (d < first_inner || d >= last_inner) batch_stride *= shape[d];
    rows = outer * inner;
    if (by_row) batch = rows, batch_stride = 1;
  }
  bool sample_per_category() const { return axis == batch_axis && !by_row; }
  bool own_sample() const { return rows == batch && !sample_per_category(); }  // each row is a sample, in their order
  int64_t sample(int64_t row) const { return row / batch_stride % batch; }
  int64_t first_element(int64_t row) const { return row / inner * n * inner + row % inner; }
  bool empty() const { return rows == 0 || n == 0; }
  bool per_row(const Shape& weight) const { return product(weight, first_inner, last_inner) == 1; }
};

// ---- shapes ------------------------------------------------------------------------------------------------------

constexpr int64_t kUnknown = -1;  // of an axis; of a shape: no axes

inline bool known(const Shape& shape) {
  for (int64_t d : shape)
    if (d == kUnknown) return false;
  return !shape.empty();
}
// Fills the unknown sizes of `to` from `from`.
inline void fill(Shape* to, const Shape& from) {
  if (to->empty()) *to = from;
  if (to->size() != from.size()) return;
  for (size_t d = 0; d < from.size(); ++d)
    if ((*to)[d] == kUnknown) (*to)[d] = from[d];
}
inline bool may_be(const Shape& own, const Shape& shape) {
  Shape filled = own;
  fill(&filled, shape);
  return filled == shape;
}
inline const char* name_of(const Call& call, int slot) {
  static const char* const pair[] = {"pred", "target", "hard", "", "weight", "anchor", "rank", "index"};
  static const char* const gaussian[] = {"mean", "log_variance", "prior_mean", "prior_log_variance", "weight", "anchor", "rank"};
  return (call.gaussian() ? gaussian : pair)[slot];
}
// Class indices have pred's shape without `axis` or with 1 there; in a user's graph they have one more leading axis.
inline void fit_indices(Shape* own, const Shape& shape, int axis) {
  Shape without = shape, with_one = shape;
  without.erase(without.begin() + axis);
  with_one[axis] = 1;
  const auto behind_one = [](Shape inner) {
    inner.insert(inner.begin(), 1);
    return inner;
  };
  for (const Shape& allowed : {behind_one(without), without, with_one, behind_one(with_one)})
    if (may_be(*own, allowed)) return fill(own, allowed);
  throw std::invalid_argument("hard must have pred's shape without axis " + std::to_string(axis) + " or with 1 there, not " +
                              text(*own) + " for pred " + text(shape));
}
inline void check_weight(const Shape& own, const Shape& shape, const std::string& first) {
  bool fits = own.size() == shape.size();
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = own[d] == 1 || own[d] == shape[d];
  if (!fits)
    throw std::invalid_argument("the weight must have as many axes as " + first + ", each 1 or " + first + "'s length, not " +
                                text(own) + " for " + first + " " + text(shape));
}
// Whether an input has the shape of the first.
inline bool same_shape(const Call& call, int slot) {
  return slot < kInputs && !(slot == kHard && call.pair() && !call.dense);
}
// Fills in unknown sizes that follow from the other inputs; returns the result's shape, empty if it does not follow.
// Nothing determines a weight's shape.
inline Shape infer_shapes(const Call& call, std::vector<Shape>* shapes) {
  Shape shape;
  for (int pass = 0; pass < 2; ++pass)
    for (size_t i = 0; i < shapes->size(); ++i) {
      if (!same_shape(call, call.inputs[i])) continue;
      fill(&shape, (*shapes)[i]);
      if (pass) fill(&(*shapes)[i], shape);
    }
  if (!known(shape)) return {};
  const Geometry geometry(call, shape);
  const std::string first = name_of(call, kPred);
  for (size_t i = 0; i < shapes->size(); ++i) {
    const int slot = call.inputs[i];
    Shape& own = (*shapes)[i];
    if (same_shape(call, slot) && own != shape)
      throw std::invalid_argument(first + " and " + name_of(call, slot) + " must have the same shape, not " + text(shape) +
                                  " and " + text(own));
    if (slot == kHard && !same_shape(call, slot)) fit_indices(&own, shape, geometry.axis);
    if (slot == kAnchor) fill(&own, {geometry.batch, 1});
    if (slot == kWeight && !own.empty()) check_weight(own, shape, first);
  }
  if (call.reduction == kNone) return shape;
  if (!call.value) return {geometry.batch, 1};
  if (call.reduction != kRow || shape.size() == 1) return {geometry.batch};
  shape.erase(shape.begin() + geometry.axis);
  return shape;
}

// Gradients larger than this are gone from the cache before use: another array or two of their size are read beside them.
constexpr int64_t kStreamBytes = 3 << 20;

// ---- the plan ----------------------------------------------------------------------------------------------------

class Plan {
 public:
  // Arrays by slot; those that the call has no input for are null.
  Plan(const Call& call, const std::vector<Array>& arrays) : call_(call), arrays_(arrays), g_(call, arrays[kPred].shape) {
    double_ = false;
    for (const Array& a : arrays_) double_ |= a.data && a.type == kFloat64;
    weighted_ = arrays_[kWeight].data != nullptr;
    weight_per_row_ = weighted_ && g_.per_row(arrays_[kWeight].shape);
    ignores_ = call_.has(kHard) && call_.pair() && !std::isnan(call_.ignore_label);
    if (weighted_) weight_view_ = view(kWeight);
    fill_job();
    find_factors();
  }

  bool in_double() const { return double_; }
  int64_t rows() const { return g_.rows; }

  // Stats of the computing type, `rows` each, that the forward is to keep: how many there are.
  static int kept(const Call& c) {
    int n = 0;
    for (int s = 0; s < kStats; ++s) n += keeps(c, s);
    return c.keep && c.value ? n : 0;
  }
  void keep_in(void* memory) {
    if (!memory || !kept(call_)) return;
    char* at = static_cast<char*>(memory);
    for (int s = 0; s < kStats; ++s) {
      if (!keeps(call_, s)) continue;
      job_.stats[s] = at;
      at += g_.rows * (double_ ? 8 : 4);
    }
    if (!exchanged()) return;
    std::swap(job_.stats[kPredMax], job_.stats[kTargetMax]);
    std::swap(job_.stats[kPredSum], job_.stats[kTargetSum]);
    std::swap(job_.stats[kFirstSum], job_.stats[kSecondSum]);
  }

  // The result, of the computing type: one number for each sample or row, or for reduction none the terms.
  void forward(void* out) {
    const int64_t results = call_.reduction == kNone ? size_of(g_.shape) : g_.batch;
    if (!call_.value || g_.empty()) {
      memset(out, 0, results * (double_ ? 8 : 4));
      return;
    }
    if (weighted_ && !weight_per_row_) job_.weight = weight_view_;
    if (call_.reduction == kNone) return write_terms({out, type(), nullptr, 0, nullptr});
    std::vector<double> total(g_.batch, 0.0);
    if (g_.sample_per_category()) {
      const Shape one = sample_shape();
      total = add_up_terms(one);
    } else {
      sum_rows(&total);
    }
    // Without rows there is nothing to do. Terms that were added up already have their factors.
    for (int64_t b = 0; !g_.sample_per_category() && b < g_.batch; ++b) total[b] *= total[b] == 0 ? 1 : share(b);
    convert_out(out, type(), 0, total.data(), g_.batch);
  }

  // Gradients by slot. `ograd` is the result's, of the computing type.
  void backward(const void* ograd, const std::vector<Output>& grads) {
    ograd_ = ograd;
    for (int s = 0; s < kInputs; ++s)
      if (arrays_[s].data && (call_.grad & 1 << s)) job_.grad[side_of(s)] = {grads[s].data, grads[s].type, nullptr, 0, nullptr};
    Sink& to_hard = job_.grad[kHard];
    if (to_hard.data && call_.pair() && !hard_counts(call_)) {  // labels without a share are not looked at
      memset(to_hard.data, 0, size_of(g_.shape) * gluon_kl::size_of(to_hard.type));
      to_hard = Sink{};
    }
    const bool weight_wanted = weighted_ && (call_.grad & 1 << kWeight) && grads[kWeight].data;
    bool any = false;
    for (const Sink& s : job_.grad) any |= s.data != nullptr;
    if (weighted_ && !weight_per_row_) job_.weight = weight_view_;
    job_.kept = kept(call_) > 0;
    set_head();
    if (any && !g_.empty()) {
      each_piece([&](const Kernels& k, const Job& job, int64_t begin, int64_t end) {
        double factor[kMaxGrain];
        factors(begin, end, factor, true);
        k.backward(job, begin, end, factor);
      });
    }
    if (weight_wanted) weight_gradient(grads[kWeight]);
    if (arrays_[kAnchor].data) memcpy(grads[kAnchor].data, ograd, g_.batch * (double_ ? 8 : 4));
  }

 private:
  static bool keeps(const Call& c, int stat) {
    if (!c.pair()) return stat == kValue && keeps_value(c);
    const bool pred = c.space[0] == kLogits, target = c.has(kTarget) && c.space[1] == kLogits, hard = hard_counts(c);
    switch (stat) {
      case kPredMax:
      case kPredSum: return pred;
      case kHardSum: return hard && c.form != kCrossEntropy && c.temperature != 1;
      case kTargetMax:
      case kTargetSum: return target && soft_counts(c);
      case kFirstSum: return pred && (c.grad & 1 << kPred) && c.reduction != kNone;
      case kSecondSum: return c.reduction != kNone && ((hard && soft_counts(c)) || (target && (c.grad & 1 << kTarget)));
      default: return keeps_value(c);
    }
  }
  static bool keeps_value(const Call& c) { return c.has(kWeight) && (c.grad & 1 << kWeight) && c.reduction != kNone; }
  // A part of a distillation whose share is 0 is not read.
  static bool hard_counts(const Call& c) { return c.has(kHard) && c.pair() && c.hard_weight != 0; }
  static bool soft_counts(const Call& c) { return c.form != kCrossEntropy && !(hard_counts(c) && c.hard_weight == 1); }

  Type type() const { return double_ ? kFloat64 : kFloat32; }

  // KL(pred || label) is KL(label || pred) with the sides exchanged.
  bool exchanged() const { return soft_counts(call_) && (call_.form == kReverseKL || call_.form == kSkewReverseKL); }
  int side_of(int slot) const { return exchanged() && slot <= kTarget ? 1 - slot : slot; }

  View view(int slot) {
    const Array& a = arrays_[slot];
    if (!a.data) return View{};
    const bool whole = a.shape == g_.shape;
    if (!whole) axes_[slot] = broadcast_axes(a.shape, g_.shape);
    return {a.data, a.type, whole, 0, 1, static_cast<int>(axes_[slot].size()), axes_[slot].data()};
  }
  View constant(int slot, double value) {
    constant_[slot] = value;
    return {&constant_[slot], kFloat64, false, 0, 1, 0, nullptr};
  }
  void fill_job() {
    job_ = Job{};
    const bool hard = hard_counts(call_), soft = soft_counts(call_);
    job_.form = !soft ? kCrossEntropy : call_.form == kReverseKL ? kKL : call_.form == kSkewReverseKL ? kSkewKL : call_.form;
    job_.hard = hard;
    job_.scored = side_of(kPred);
    job_.space[side_of(kPred)] = call_.space[0];
    job_.space[side_of(kTarget)] = call_.pair() && !soft ? kProbs : call_.space[1];
    job_.outer = g_.outer, job_.n = g_.n, job_.inner = g_.inner;
    const double temperature = soft ? call_.temperature : 1;
    job_.inv_temperature = 1 / temperature;
    job_.hard_share = hard ? call_.hard_weight : 0;
    // This undoes what the temperature does to the gradient: T^2 for smooth divergences, T for total variation.
    const double restored = job_.form == kTotalVariation ? temperature : temperature * temperature;
    job_.soft_share = hard ? (1 - call_.hard_weight) * restored : 1;
    // If the share of hard labels is 0, only the divergence's factor is left.
    scale_ = call_.scale * (call_.has(kHard) && call_.pair() && soft && !hard ? restored : 1);
    job_.log_epsilon = std::log(call_.epsilon);
    job_.skew = call_.skew;
    if (job_.form == kSkewKL) job_.log_epsilon -= std::log1p(-call_.skew);
    job_.free_nats = call_.free_nats;
    job_.beta = call_.beta;
    job_.spread_is_std = call_.spread_is_std;
    job_.whole_rows = call_.reduction != kNone && !g_.sample_per_category() && (!weighted_ || weight_per_row_);
    if (job_.form == kJS) {
      static thread_local double known = 0, series[kSeriesTerms];  // programs have one beta or few
      if (known != call_.beta) series_near_equality(1 - (known = call_.beta), series);
      memcpy(job_.series, series, sizeof series);
    }
    job_.in[side_of(kPred)] = view(kPred);
    if (call_.gaussian()) return fill_gaussian();
    if (soft) job_.in[side_of(kTarget)] = arrays_[kTarget].data ? view(kTarget) : constant(kTarget, call_.target_value);
    if (!hard) return;
    job_.in[kHard] = view_as_it_is(kHard);
  }
  View view_as_it_is(int slot) {  // hard labels: of pred's shape, or class indices
    if (call_.dense) return view(slot);
    const double elsewhere = call_.label_smoothing / static_cast<double>(std::max<int64_t>(g_.n, 1));
    return {arrays_[slot].data, arrays_[slot].type, false, g_.n, g_.inner, 0, nullptr,
            1 - call_.label_smoothing + elsewhere, elsewhere};
  }
  void fill_gaussian() {
    job_.in[kLogVariance] = view(kLogVariance);
    job_.prior = arrays_[kPriorMean].data || arrays_[kPriorLogVariance].data || call_.prior_mean != 0 ||
                 !std::isnan(call_.prior_log_variance);
    if (!job_.prior) return;
    const double standard = call_.spread_is_std ? 1 : 0;
    const double spread = std::isnan(call_.prior_log_variance) ? standard : call_.prior_log_variance;
    job_.in[kPriorMean] = arrays_[kPriorMean].data ? view(kPriorMean) : constant(kPriorMean, call_.prior_mean);
    job_.in[kPriorLogVariance] =
        arrays_[kPriorLogVariance].data ? view(kPriorLogVariance) : constant(kPriorLogVariance, spread);
  }

  // ---- the factors of samples and rows ----

  void find_factors() {
    double count = 1;
    if (call_.reduction == kMeanOver) {
      for (size_t d = 0; d < g_.shape.size(); ++d)
        if (static_cast<int>(d) != g_.batch_axis) count *= static_cast<double>(g_.shape[d]);
    } else if (call_.reduction == kRowMean) {
      count = g_.sample_per_category() ? static_cast<double>(g_.rows) : g_.batch ? static_cast<double>(g_.rows / g_.batch) : 1;
      if (weighted_ || ignores_) count_rows();
    }
    factor_ = scale_ / (count > 0 ? count : 1);
  }
  // Whether the row's class is the ignored one.
  bool ignored(int64_t row) const {
    return ignores_ && number(arrays_[kHard].data, arrays_[kHard].type, row) == call_.ignore_label;
  }
  double share(int64_t sample) const { return shares_.empty() ? factor_ : shares_[sample]; }
  // The rows of each sample that have a weight other than 0 and are not ignored.
  void count_rows() {
    std::vector<int64_t> counts(g_.batch, 0);
    const bool all = g_.sample_per_category();
    int64_t together = 0;
    for (int64_t r = 0; r < g_.rows && g_.n; ++r) {
      bool counts_in = !weighted_;
      for (int64_t k = 0; k < (weight_per_row_ ? 1 : g_.n) && !counts_in; ++k)
        counts_in = weight_at(g_.first_element(r) + k * g_.inner) != 0;
      counts_in &= !ignored(r);
      together += counts_in;
      if (!all) counts[g_.sample(r)] += counts_in;
    }
    shares_.resize(g_.batch);
    for (int64_t b = 0; b < g_.batch; ++b) {
      const int64_t count = all ? together : counts[b];
      shares_[b] = count ? scale_ / static_cast<double>(count) : 0;
    }
  }
  int64_t weight_place(int64_t element) const {
    return weight_view_.whole ? element : place(weight_view_.axes, weight_view_.axis, element);
  }
  double weight_at(int64_t element) const { return number(weight_view_.data, weight_view_.type, weight_place(element)); }
  double out_grad(int64_t i) const {
    return double_ ? static_cast<const double*>(ograd_)[i] : static_cast<const float*>(ograd_)[i];
  }
  // f(row, sample) for rows [begin, end).
  template <class F> void samples(int64_t begin, int64_t end, F f) const {
    if (g_.sample_per_category() || g_.own_sample()) {
      const int64_t each = g_.own_sample();
      for (int64_t r = begin; r < end; ++r) f(r, each * r);
      return;
    }
    int64_t b = g_.sample(begin), left = g_.batch_stride - begin % g_.batch_stride;
    for (int64_t r = begin; r < end; left = g_.batch_stride) {
      for (const int64_t stop = std::min(end, r + left); r < stop; ++r) f(r, b);
      if (++b == g_.batch) b = 0;
    }
  }
  // The factors of rows: their share of the sample; with `head` the result's gradient, and the weight, unless these belong
  // to single elements.
  void factors(int64_t begin, int64_t end, double* factor, bool head, bool weighed = true) const {
    if (shares_.empty()) std::fill(factor, factor + (end - begin), factor_);
    else samples(begin, end, [&](int64_t r, int64_t b) { factor[r - begin] = shares_[b]; });
    if (head && !job_.head.data)
      double_ ? times_head<double>(begin, end, factor) : times_head<float>(begin, end, factor);
    if (weighed && weight_per_row_) weigh(begin, end, factor);
    if (ignores_) silence_ignored(begin, end, factor);
  }
  template <class T> void times_head(int64_t begin, int64_t end, double* factor) const {
    const T* const head = static_cast<const T*>(ograd_);
    samples(begin, end, [&](int64_t r, int64_t b) { factor[r - begin] *= static_cast<double>(head[b]); });
  }
  // value *= weight; a row of weight 0 has no effect, even if it is NaN.
  void weigh(int64_t begin, int64_t end, double* value) const {
    for (int64_t r = begin; r < end; ++r) {
      const double w = weight_at(g_.first_element(r));
      value[r - begin] = w == 0 ? 0 : value[r - begin] * w;
    }
  }
  void silence_ignored(int64_t begin, int64_t end, double* value) const {
    for (int64_t r = begin; r < end; ++r)
      if (ignored(r)) value[r - begin] = 0;
  }
  Shape sample_shape() const {
    Shape one(g_.shape.size(), 1);
    if (g_.by_row) one = g_.shape, one[g_.axis] = 1;
    else one[g_.batch_axis] = g_.batch;
    return one;
  }
  // The result's gradient, if it is not one number per row.
  void set_head() {
    if (call_.reduction == kNone) {
      job_.head = {ograd_, type(), true, 0, 1, 0, nullptr};
    } else if (g_.sample_per_category()) {
      head_axes_ = broadcast_axes(sample_shape(), g_.shape);
      job_.head = {ograd_, type(), false, 0, 1, static_cast<int>(head_axes_.size()), head_axes_.data()};
    }
  }

  // ---- dividing the work ----

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
  const Kernels& kernel() const { return kernels(double_ ? kDouble : kSingle); }
  Pieces split() const {
    const int64_t grain = kernel().grain(job_);
    const int64_t stride = g_.batch_stride;
    const int64_t run = !g_.sample_per_category() && stride > 1 && stride >= std::min<int64_t>(grain, 64) ? stride : 1;
    const int64_t length = run > 1 ? run : g_.rows;
    return {g_.rows, run, grain, (length + grain - 1) / grain};
  }
  template <class F> void share_out(int64_t pieces, const F& task) const {
    const double work = static_cast<double>(g_.rows) * static_cast<double>(g_.n);
    if (work < kSmall) {
      for (int64_t i = 0; i < pieces; ++i) task(i);
      return;
    }
    Threads::get().run(pieces, 4096, task);
  }
  // f(kernels, job, begin, end) for every piece. The job writes past the cache if the results do not fit into it.
  template <class F> void each_piece(const F& f) {
    const double bytes = static_cast<double>(g_.rows) * static_cast<double>(g_.n) * (double_ ? 8 : 4);
    job_.stream = bytes >= kStreamBytes;
    const Pieces pieces = split();
    const Kernels& k = kernel();
    share_out(pieces.count(), [&](int64_t i) {
      int64_t begin, end;
      pieces.bounds(i, &begin, &end);
      f(k, job_, begin, end);
    });
  }

  // ---- reductions ----

  // Several sums at once, because each addition to a sum waits for the one before.
  static double sum(const double* x, int64_t count) {
    double part[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
      for (int j = 0; j < 8; ++j) part[j] += x[i + j];
    for (; i < count; ++i) part[0] += x[i];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  }
  // Neighbouring rows of one sample are summed within a piece; where samples alternate, row by row.
  void sum_rows(std::vector<double>* total) {
    const Pieces pieces = split();
    const bool by_piece = pieces.run > 1, own = g_.own_sample();
    std::vector<double> parts(by_piece ? pieces.count() : own ? 0 : g_.rows);
    double* const part = by_piece || !own ? parts.data() : total->data();
    const Kernels& k = kernel();
    share_out(pieces.count(), [&](int64_t i) {
      int64_t begin, end;
      pieces.bounds(i, &begin, &end);
      double values[kMaxGrain];
      double* const value = by_piece ? values : &part[begin];
      k.forward(job_, begin, end, value);
      if (weight_per_row_) weigh(begin, end, value);
      if (ignores_) silence_ignored(begin, end, value);
      if (by_piece) part[i] = sum(value, end - begin);
    });
    if (by_piece) {
      for (int64_t i = 0; i < pieces.count(); ++i) (*total)[i / pieces.per_run % g_.batch] += part[i];
    } else if (!own) {
      samples(0, g_.rows, [&](int64_t r, int64_t b) { (*total)[b] += part[r]; });
    }
  }
  void write_terms(const Sink& sink, bool weighed = true) {
    job_.terms = sink;
    each_piece([&](const Kernels& k, const Job& job, int64_t begin, int64_t end) {
      double factor[kMaxGrain];
      factors(begin, end, factor, job.head.data != nullptr, weighed);
      k.terms(job, begin, end, factor);
    });
  }
  // The terms summed over the elements that share a place in an array of `shape`; how many sums are kept at a time does
  // not depend on the threads.
  std::vector<double> add_up_terms(const Shape& shape, bool weighed = true) {
    const std::vector<BroadcastAxis> axes = broadcast_axes(shape, g_.shape);
    const int64_t size = size_of(shape);
    const Pieces pieces = split();
    const int64_t groups = std::max<int64_t>(1, std::min({int64_t(16), pieces.count(), g_.rows * g_.n / (16 * size)}));
    std::vector<std::vector<double>> totals(groups, std::vector<double>(size, 0.0));
    const Kernels& k = kernel();
    share_out(groups, [&](int64_t group) {
      Job job = job_;
      job.stream = false;
      job.terms = {nullptr, kFloat64, totals[group].data(), static_cast<int>(axes.size()), axes.data()};
      for (int64_t i = pieces.count() * group / groups; i < pieces.count() * (group + 1) / groups; ++i) {
        int64_t begin, end;
        pieces.bounds(i, &begin, &end);
        double factor[kMaxGrain];
        factors(begin, end, factor, job.head.data != nullptr, weighed);
        k.terms(job, begin, end, factor);
      }
    });
    for (int64_t group = 1; group < groups; ++group)
      for (int64_t i = 0; i < size; ++i) totals[0][i] += totals[group][i];
    return totals[0];
  }

  // ---- the weight's gradient ----

  void weight_gradient(const Output& out) {
    const Array& weight = arrays_[kWeight];
    const int64_t size = size_of(weight.shape);
    std::vector<double> total;
    if (g_.empty()) {
      total.resize(size, 0.0);
    } else if (job_.whole_rows) {
      total.resize(size, 0.0);
      bool sound = true;
      const std::vector<double> values = job_.stats[kValue] ? std::vector<double>{} : row_values();
      samples(0, g_.rows, [&](int64_t r, int64_t b) {
        if (ignored(r)) return;
        const double value = values.empty() ? number(job_.stats[kValue], type(), r) : values[r];
        const int64_t at = weight_place(g_.first_element(r));
        if (std::isfinite(value) || number(weight.data, weight.type, at) != 0) total[at] += out_grad(b) * share(b) * value;
        else sound = false;
      });
      if (!sound && !call_.pair()) {  // without categories it is the term that is left out, not the row
        use_terms_without_weight();
        total = add_up_sound_terms(weight);
      }
    } else {
      use_terms_without_weight();
      if (weight_view_.whole) write_terms({out.data, out.type, nullptr, 0, nullptr}, false);
      else total = add_up_terms(weight.shape, false);
      if (!all_finite(total.empty() ? out : Output{total.data(), kFloat64}, size)) total = add_up_sound_terms(weight);
    }
    for (size_t i = 0; i < total.size(); ++i) convert_out(out.data, out.type, static_cast<int64_t>(i), &total[i], 1);
  }
  std::vector<double> row_values() const {
    const Pieces pieces = split();
    const Kernels& k = kernel();
    std::vector<double> values(g_.rows);
    share_out(pieces.count(), [&](int64_t i) {
      int64_t begin, end;
      pieces.bounds(i, &begin, &end);
      k.forward(job_, begin, end, &values[begin]);
    });
    return values;
  }
  static bool all_finite(const Output& x, int64_t size) {
    constexpr int64_t kRun = 256;
    double run[kRun];
    for (int64_t i = 0; i < size; i += kRun) {
      const int64_t m = std::min(kRun, size - i);
      convert_in(run, x.data, x.type, i, m);
      if (!std::all_of(run, run + m, [](double value) { return std::isfinite(value); })) return false;
    }
    return true;
  }
  // The terms summed over the elements of each weight. A term under a weight of 0 counts only if its row is finite. In
  // forms without categories each term is a row of its own.
  std::vector<double> add_up_sound_terms(const Array& weight) {
    std::vector<double> terms(g_.rows * g_.n), total(size_of(weight.shape), 0.0);
    write_terms({terms.data(), kFloat64, nullptr, 0, nullptr}, false);
    for (int64_t r = 0; r < g_.rows; ++r) {
      bool sound = true;
      for (int64_t k = 0; call_.pair() && k < g_.n; ++k) sound &= std::isfinite(terms[g_.first_element(r) + k * g_.inner]);
      for (int64_t k = 0; k < g_.n; ++k) {
        const int64_t i = g_.first_element(r) + k * g_.inner, at = weight_place(i);
        if (number(weight.data, weight.type, at) != 0 || (sound && std::isfinite(terms[i]))) total[at] += terms[i];
      }
    }
    return total;
  }
  void use_terms_without_weight() {
    job_.weight = View{};
    for (Sink& s : job_.grad) s = Sink{};
    if (job_.head.data) return;
    head_axes_ = broadcast_axes(sample_shape(), g_.shape);  // rows have the gradient of their sample
    job_.head = {ograd_, type(), false, 0, 1, static_cast<int>(head_axes_.size()), head_axes_.data()};
  }

  static constexpr double kSmall = 32768;          // elements: below, waking a thread costs more than it brings

  const Call& call_;
  std::vector<Array> arrays_;
  Geometry g_;
  Job job_;
  bool double_, weighted_, weight_per_row_, ignores_;
  double scale_, factor_;
  std::vector<double> shares_;  // of each sample, where they differ
  std::vector<BroadcastAxis> axes_[kSlots], head_axes_;
  double constant_[kSlots];
  View weight_view_{};
  const void* ograd_ = nullptr;
};

// ---- a teacher that kept k categories ----------------------------------------------------------------------------

// The shape of the losses, pred's with 1 along the last axis, of a call whose shapes are all known.
inline Shape top_k_shape(const Call& call, const std::vector<Shape>& shapes) {
  const Shape &pred = shapes[call.position(kPred)], &index = shapes[call.position(kIndex)];
  Shape one = pred, kept = pred;
  one.back() = 1, kept.back() = index.back();
  const auto check = [](bool fits, const std::string& what, const Shape& own, const Shape& other) {
    if (!fits) throw std::invalid_argument(what + ", not " + text(own) + " and " + text(other));
  };
  check(index == kept, "index and pred must have the same shape but in the last axis", index, pred);
  const Shape& value = shapes[call.position(kTarget)];
  check(value == index, "target and index must have the same shape", value, index);
  if (!call.has(kHard)) return one;
  const Shape& hard = shapes[call.position(kHard)];
  check(size_of(hard) == size_of(one), "hard must have a class for each row of pred", hard, pred);
  return one;
}
// Arrays by slot.
inline TopK top_k_job(const Call& call, const std::vector<Array>& arrays) {
  const auto numbers = [&](int slot) { return Numbers{arrays[slot].data, arrays[slot].type}; };
  const Array &pred = arrays[kPred], &index = arrays[kIndex];
  TopK job{};
  job.pred = pred.data, job.type = pred.type;
  job.index = numbers(kIndex), job.value = numbers(kTarget), job.label = numbers(kHard);
  job.n = pred.shape.back(), job.k = index.shape.back(), job.rows = size_of(pred.shape) / std::max<int64_t>(1, job.n);
  job.form = call.form, job.tail = call.tail, job.space = call.space[1];
  job.temperature = call.temperature, job.beta = call.beta;
  job.hard_share = call.hard_weight, job.smoothing = call.label_smoothing;
  for (const Array& a : arrays) job.in_double |= a.data && a.type == kFloat64;
  return job;
}
// f(kernels, begin, end) for pieces of a job's rows, on several threads where that is worth while.
template <class F> void each_top_k_piece(const TopK& job, const F& f) {
  const Kernels& k = kernels(job.in_double ? kDouble : kSingle);
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 15) / std::max<int64_t>(1, job.n));
  const int64_t pieces = (job.rows + grain - 1) / grain;
  Threads::get().run(pieces, 4096, [&](int64_t i) { f(k, i * grain, std::min(job.rows, (i + 1) * grain)); });
}
inline void top_k_loss(const TopK& job) {
  each_top_k_piece(job, [&](const Kernels& k, int64_t begin, int64_t end) { k.top_k_forward(job, begin, end); });
}
inline void top_k_gradient(TopK job) {
  job.stream = job.rows * job.n * (job.in_double ? 8 : 4) >= kStreamBytes;
  each_top_k_piece(job, [&](const Kernels& k, int64_t begin, int64_t end) { k.top_k_backward(job, begin, end); });
}

}  // namespace gluon_kl
#endif  // GLUON_KL_PLAN_H_
