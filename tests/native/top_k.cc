// The reading of rows for a teacher that kept k categories, and its gradient, without MXNet: random rows of every type
// against plain sums in long double. Every array ends at the end of its allocation (run.py builds it with sanitizers).
#include <stdio.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "top_k.h"

using namespace gluon_kl;

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
void expect(const char* what, double got, long double want, double tolerance) {
  if ((std::isnan(got) && std::isnan(want)) || got == want || std::fabs(got - want) <= tolerance * (1 + std::fabs(want))) return;
  if (++failures < 20) printf("%s: %.9g, expected %.9Lg\n", what, got, want);
}

// One row against its definition.
template <class T> void compare(const TopK& job, const Buffer& pred, const Buffer& out, const Buffer& head, const Buffer& grad, int64_t r) {
  const bool single = sizeof(T) == 4;
  const double tolerance = single ? 3e-6 : 1e-13, rough = grad.type == kFloat16 ? 2e-3 : 3 * tolerance;
  const double* const index = job.index + r * (job.k + job.hard);
  std::vector<long double> x(job.n), expected(job.n, 0.0L);
  std::vector<bool> kept(job.n);
  bool sound = true;
  for (int64_t j = 0; j < job.n; ++j) x[j] = pred.get(r * job.n + j);
  for (int64_t i = 0; i < job.k; ++i) {
    if (index[i] == -1) continue;
    if (index[i] < 0 || index[i] >= job.n || index[i] != std::floor(index[i]) || kept[static_cast<int64_t>(index[i])]) { sound = false; break; }
    kept[static_cast<int64_t>(index[i])] = true;
  }
  const int64_t first = r * job.columns();
  bool silent = true;
  for (int64_t i = 0; i <= job.k + job.hard; ++i) silent &= head.get(first + i) == 0;
  expect("sound", out.get(first + job.sound()), sound ? job.n : 0, 0);
  if (!sound) {
    for (int64_t j = 0; j < job.n; ++j) expect("unsound", grad.get(r * job.n + j), silent ? 0 : NAN, 0);
    return expect("unsound value", out.get(first), NAN, 0);
  }
  long double top = -INFINITY, others = 0, all = 0;
  for (long double each : x) top = std::max(top, each);
  for (int64_t j = 0; j < job.n; ++j) {
    all += expl(x[j] - top);
    if (!kept[j]) others += expl((x[j] - top) * job.inv_temperature);
  }
  for (int64_t i = 0; i < job.k; ++i)
    expect("kept", out.get(first + i), index[i] == -1 ? -INFINITY : (x[static_cast<int64_t>(index[i])] - top) * job.inv_temperature, tolerance);
  expect("tail", out.get(first + job.k), logl(others), tolerance);
  const int64_t c = job.hard ? static_cast<int64_t>(index[job.k]) : 0;
  if (job.hard) expect("hard", out.get(first + job.k + 1), logl(all) + top - x[c], tolerance);
  for (int64_t i = 0; i < job.k; ++i)
    if (index[i] != -1) expected[static_cast<int64_t>(index[i])] += head.get(first + i) * job.inv_temperature;
  for (int64_t j = 0; j < job.n; ++j) {
    if (!kept[j] && others > 0) expected[j] += head.get(first + job.k) * job.inv_temperature * expl((x[j] - top) * job.inv_temperature) / others;
    if (job.hard) expected[j] += head.get(first + job.k + 1) * (expl(x[j] - top) / all - (j == c));
    expect("gradient", grad.get(r * job.n + j), silent ? 0 : expected[j], rough);
  }
}

template <class T> void check_one(Type type) {
  TopK job{};
  job.rows = pick(1, 3), job.n = pick(0, 2) ? pick(1, 70) : pick(900, 3000), job.hard = pick(0, 1);
  job.k = pick(1, std::min<int64_t>(job.n, 20));
  job.inv_temperature = pick(0, 1) ? 1 : 0.4, job.type = type, job.grad_type = type, job.stream = pick(0, 1);
  Buffer pred(job.rows * job.n, type), index(job.rows * (job.k + job.hard), kFloat64), grad(job.rows * job.n, type);
  Buffer out(job.rows * job.columns(), type_of<T>()), head(job.rows * job.columns(), type_of<T>());
  for (int64_t i = 0; i < job.rows * job.n; ++i) pred.set(i, pick(0, 9) ? uniform(-4, 4) : -INFINITY);
  for (int64_t i = 0; i < job.rows * job.columns(); ++i) head.set(i, uniform(-1, 1));
  for (int64_t r = 0; r < job.rows; ++r) {
    pred.set(r * job.n, 1);
    std::vector<int64_t> places(job.n);
    for (int64_t j = 0; j < job.n; ++j) places[j] = j;
    std::shuffle(places.begin(), places.end(), engine);
    for (int64_t i = 0; i < job.k; ++i) index.set(r * (job.k + job.hard) + i, pick(0, 4) ? places[i] : -1);
    const double odd[] = {-2, static_cast<double>(job.n), 0.5, NAN, INFINITY};
    if (pick(0, 9) == 0) index.set(r * (job.k + job.hard) + pick(0, job.k - 1), odd[pick(0, 4)]);
    if (job.hard) index.set(r * (job.k + job.hard) + job.k, 0);
    if (pick(0, 4)) continue;
    for (int64_t i = 0; i < job.columns(); ++i) head.set(r * job.columns() + i, 0);
    pred.set(r * job.n, NAN);  // which silence hides
  }
  std::vector<double> numbers(job.rows * (job.k + job.hard));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = index.get(i);
  job.pred = pred.data, job.index = numbers.data(), job.out = out.data, job.head = head.data, job.grad = grad.data;
  top_k_forward<T>(job, 0, job.rows);
  top_k_backward<T>(job, 0, job.rows);
  for (int64_t r = 0; r < job.rows; ++r) compare<T>(job, pred, out, head, grad, r);
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
