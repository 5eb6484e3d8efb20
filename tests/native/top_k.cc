// The loss against a teacher that kept k categories, and its gradient, without MXNet: random rows of every type against the
// definition in long double, and its differences. Every array ends at the end of its allocation (run.py builds it with sanitizers).
#include <stdio.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "top_k.h"

using namespace gluon_kl;

#ifdef IN_DOUBLE  // where long double is slow, or no more than that
using Number = double;
#else
using Number = long double;
#endif

namespace {

std::mt19937 engine(5);
int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine); }

struct Buffer {
  Type type;
  std::unique_ptr<char[]> bytes;
  char* data;
  Buffer(int64_t count, Type t) : type(t) {
    const int64_t skew = pick(0, 3) * size_of(t), size = count * size_of(t) + skew;
    bytes.reset(new char[size]);
    data = bytes.get() + skew;
    memset(bytes.get(), 0x7b, size);
  }
  double get(int64_t i) const { return number(data, type, i); }
  void set(int64_t i, double x) { convert_out(data, type, i, &x, 1); }
};

int failures = 0;
void expect(const char* what, double got, Number want, double tolerance) {
  if ((std::isnan(got) && std::isnan(want)) || got == want || std::fabs(got - want) <= tolerance * (1 + std::fabs(want))) return;
  if (++failures < 20) printf("%s: %.9g, expected %.9g\n", what, got, static_cast<double>(want));
}

using Wide = std::vector<Number>;

Number of_log(Number p, Number log_ratio) { return p == 0 ? 0 : p * log_ratio; }

// The loss of a row of scores by its definition; `where` has the kept categories, or -1.
Number loss_of(const TopK& job, const Wide& x, const std::vector<int64_t>& where, const Wide& value, int64_t c) {
  Number top = -INFINITY, sum = 0, sum_at_one = 0, mean = 0, others = 0, mass = 0, soft = 0;
  for (Number each : x) top = std::max(top, each);
  std::vector<bool> is_kept(job.n);
  int64_t known = 0;
  for (int64_t at : where)
    if (at >= 0) is_kept[at] = true, ++known;
  for (int64_t j = 0; j < job.n; ++j) {
    const Number e = std::exp((x[j] - top) / job.temperature);
    sum += e, sum_at_one += std::exp(x[j] - top), mean += x[j] / job.n;
    if (!is_kept[j]) others += e;
  }
  Wide p, q;
  Number best = -INFINITY;
  for (size_t i = 0; i < where.size(); ++i)
    if (where[i] >= 0) best = std::max(best, value[i]);
  for (size_t i = 0; i < where.size(); ++i) {
    if (where[i] < 0) continue;
    p.push_back(job.space == kProbs ? value[i] : job.space == kLogProbs ? std::exp(value[i]) : std::exp((value[i] - best) / job.temperature));
    q.push_back(std::exp((x[where[i]] - top) / job.temperature) / sum);
    mass += p.back();
  }
  for (Number& each : p) each /= job.tail == kRenormalize ? mass : 1;
  p.push_back(job.tail == kBucket && known < job.n ? std::max(Number(0), 1 - mass) : 0), q.push_back(others / sum);
  for (size_t i = 0; i < p.size() && known; ++i) {
    const Number m = job.beta * p[i] + (1 - job.beta) * q[i];
    if (job.form == kKL) soft += of_log(p[i], std::log(p[i] / q[i]));
    if (job.form == kReverseKL) soft += of_log(q[i], std::log(q[i] / p[i]));
    if (job.form == kJS) soft += job.beta * of_log(p[i], std::log(p[i] / m)) + (1 - job.beta) * of_log(q[i], std::log(q[i] / m));
  }
  soft *= (1 - job.hard_share) * job.temperature * job.temperature;
  if (!job.label.data) return soft;
  const Number log_sum = std::log(sum_at_one) + top;
  Number hard = (1 - job.smoothing) * (log_sum - x[c]);
  if (job.smoothing != 0) hard += job.smoothing * (log_sum - mean);
  return soft + job.hard_share * hard;
}

// One row against its definition.
template <class T> void compare(const TopK& job, const Buffer& pred, const Buffer& loss, const Buffer& head, const Buffer& grad, int64_t r) {
  const bool single = sizeof(T) == 4;
  std::vector<int64_t> where(job.k);
  Wide x(job.n), value(job.k);
  std::vector<bool> is_kept(job.n);
  bool sound = true;
  for (int64_t j = 0; j < job.n; ++j) x[j] = pred.get(r * job.n + j);
  for (int64_t i = 0; i < job.k && sound; ++i) {
    const double at = number(job.index.data, job.index.type, r * job.k + i);
    where[i] = -1, value[i] = number(job.value.data, job.value.type, r * job.k + i);
    if (at == -1) continue;
    sound = at >= 0 && at < job.n && at == std::floor(at) && !is_kept[static_cast<int64_t>(at)];
    if (sound) where[i] = static_cast<int64_t>(at), is_kept[where[i]] = true;
  }
  const double label = job.label.data ? number(job.label.data, job.label.type, r) : 0, g = head.get(r);
  sound &= label >= 0 && label < job.n;
  const auto each = [&](const char* what, const auto& expected) {
    for (int64_t j = 0; j < job.n; ++j) expect(what, grad.get(r * job.n + j), g == 0 ? 0 : expected(j), 0);
  };
  if (!sound) {
    expect("unsound loss", loss.get(r), NAN, 0);
    return each("unsound", [](int64_t) { return NAN; });
  }
  if (g == 0) return each("silent", [](int64_t) { return 0; });  // whatever the row holds
  const int64_t c = static_cast<int64_t>(label);
  const Number own = loss_of(job, x, where, value, c);
  expect("loss", loss.get(r), own, single ? 3e-6 : 1e-12);
  if (!std::isfinite(own)) return;
  const double rough = grad.type == kFloat16 ? 2e-3 : single ? 3e-6 : 1e-9, step = 1e-4;
  for (int64_t j = 0; j < job.n; ++j) {
    if (std::isinf(x[j]) && !is_kept[j] && j != c) expect("masked", grad.get(r * job.n + j), 0, 0);
    if (std::isinf(x[j]) || (job.n > 80 && !is_kept[j] && j != c && j % 97)) continue;
    Number moved[2];
    for (int side = 0; side < 2; ++side) {
      Wide other = x;
      other[j] += side ? step : -step;
      moved[side] = loss_of(job, other, where, value, c);
    }
    expect("gradient", grad.get(r * job.n + j), g * (moved[1] - moved[0]) / (2 * step), rough);
  }
}

template <class T> void check_one(Type type) {
  static const double temperatures[] = {1, 2, 4, 2.5, 0.5}, smoothings[] = {0, 0.1};
  static const Type of_index[] = {kFloat32, kFloat64, kInt32, kInt64};
  TopK job{};
  job.rows = pick(1, 3), job.n = pick(0, 2) ? pick(1, 70) : pick(900, 3000), job.k = pick(1, std::min<int64_t>(job.n, 20));
  job.type = type, job.grad_type = type, job.stream = pick(0, 1), job.in_double = sizeof(T) == 8;
  job.temperature = temperatures[pick(0, 4)], job.beta = 0.3, job.hard_share = pick(0, 1) ? 0.4 : 0;
  job.smoothing = smoothings[pick(0, 1)];
  job.tail = static_cast<Tail>(pick(kBucket, kDrop));
  job.form = job.tail == kDrop ? kKL : job.tail == kRenormalize ? (pick(0, 1) ? kKL : kJS) : static_cast<Form>(pick(kKL, kJS));
  job.space = static_cast<Space>(pick(kProbs, job.tail == kRenormalize ? kLogits : kLogProbs));
  const Type value_type = pick(0, 1) ? kFloat32 : kFloat64;
  Buffer pred(job.rows * job.n, type), index(job.rows * job.k, of_index[pick(0, 3)]), value(job.rows * job.k, value_type);
  Buffer label(job.rows, of_index[pick(0, 3)]), loss(job.rows, type_of<T>()), kept(job.rows * job.columns(), type_of<T>());
  Buffer head(job.rows, type_of<T>()), grad(job.rows * job.n, type);
  for (int64_t i = 0; i < job.rows * job.n; ++i) pred.set(i, pick(0, 9) || job.smoothing != 0 ? uniform(-4, 4) : -INFINITY);
  for (int64_t r = 0; r < job.rows; ++r) {
    std::vector<int64_t> places(job.n);
    for (int64_t j = 0; j < job.n; ++j) places[j] = j;
    std::shuffle(places.begin(), places.end(), engine);
    for (int64_t i = 0; i < job.k; ++i) {
      index.set(r * job.k + i, pick(0, 4) ? places[i] : -1);
      const double p = pick(0, 9) ? uniform(0, 1.0 / job.k) : 0;
      value.set(r * job.k + i, job.space == kProbs ? p : std::log(p));
    }
    label.set(r, pick(0, 19) ? pick(0, job.n - 1) : pick(0, 1) ? -1 : job.n);
    pred.set(r * job.n + std::max(0.0, std::min(job.n - 1.0, label.get(r))), 1);
    head.set(r, uniform(-1, 1));
    const double odd[] = {-2, static_cast<double>(job.n), places[0] + 0.0, 0.5, NAN, INFINITY};
    if (pick(0, 9) == 0) index.set(r * job.k + pick(0, job.k - 1), odd[pick(0, index.type == kFloat32 || index.type == kFloat64 ? 5 : 2)]);
    if (pick(0, 4)) continue;
    head.set(r, 0);
    pred.set(r * job.n, NAN);  // which silence hides
  }
  job.pred = pred.data, job.index = {index.data, index.type}, job.value = {value.data, value.type};
  if (job.hard_share != 0) job.label = {label.data, label.type};
  job.loss = loss.data, job.kept = kept.data, job.head = head.data, job.grad = grad.data;
  top_k_forward<T>(job, 0, job.rows);
  top_k_backward<T>(job, 0, job.rows);
  for (int64_t r = 0; r < job.rows; ++r) compare<T>(job, pred, loss, head, grad, r);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 300;
  for (int round = 0; round < rounds; ++round) {
    check_one<float>(round % 3 ? kFloat32 : kFloat16);
    check_one<double>(kFloat64);
  }
  if (failures) printf("%d failures\n", failures);
  return failures > 0;
}
