// The kernels without MXNet, for sanitizers, valgrind and stopwatches (run.py builds and runs it).
//
//   driver check [rounds]   random calls against plain loops in double; every array ends at the end of its allocation
//   driver bench [shape]            best ns per element of forward and backward on the shapes of the benchmark
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <chrono>
#include <memory>
#include <random>

#include "divergence.h"

using namespace gluon_kl;

namespace {

std::mt19937 engine(11);
int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
double uniform() { return std::uniform_real_distribution<double>(0, 1)(engine); }

// An array whose last byte is the last of its allocation, starting `skew` bytes in.
struct Buffer {
  std::unique_ptr<char[]> bytes;
  char* data;
  Buffer(int64_t count, Type type, int64_t skew) : bytes(new char[count * size_of(type) + skew]), data(bytes.get() + skew) {
    memset(bytes.get(), 0x7b, count * size_of(type) + skew);
  }
};

int failures = 0;
void compare(const char* what, double got, double expected, double tolerance, const std::string& where) {
  const bool same = (got != got && expected != expected) || got == expected ||
                    std::fabs(got - expected) <= tolerance * (1 + std::fabs(expected));
  if (!same && ++failures < 20) printf("%s: %.9g, expected %.9g (%s)\n", what, got, expected, where.c_str());
}

struct Case {
  std::vector<int64_t> shape, weight_shape;
  Options options;
  Type pred_type, label_type;
  bool weighted, keep;
};

// Values and gradients by the definitions, for axis != batch_axis.
struct Plain {
  std::vector<double> out, pred_grad, label_grad, weight_grad;
  std::vector<double> weight_size;  // of what is added up in weight_grad, which may cancel
};

void log_and_prob(Space space, double t, std::vector<double> x, std::vector<double>* log, std::vector<double>* prob) {
  if (space == kLogits) {
    double best = -INFINITY, sum = 0;
    for (double v : x) best = std::max(best, v);
    if (best == -INFINITY) best = 0;
    for (double& v : x) sum += std::exp(v = (v - best) * t);
    for (double& v : x) v -= std::log(sum);
  }
  *log = *prob = x;
  for (size_t k = 0; k < x.size(); ++k) {
    if (space == kProbs) (*log)[k] = std::log(x[k]);
    else (*prob)[k] = std::exp(x[k]);
  }
}

Plain plain(const Case& c, const char* pred, const char* label, const char* weight, const std::vector<double>& head) {
  const int rank = static_cast<int>(c.shape.size());
  const int axis = normal_axis(c.options.axis, rank, "axis"), batch_axis = normal_axis(c.options.batch_axis, rank, "batch_axis");
  int64_t size = 1, outer = 1, inner = 1, weights = 1;
  double count = 1;
  for (int d = 0; d < rank; ++d) {
    size *= c.shape[d];
    if (d < axis) outer *= c.shape[d];
    if (d > axis) inner *= c.shape[d];
    if (d != batch_axis) count *= c.shape[d];
    weights *= c.weight_shape[d];
  }
  const int64_t n = c.shape[axis];
  Plain r{std::vector<double>(c.shape[batch_axis]), std::vector<double>(size), std::vector<double>(size), std::vector<double>(weights),
          std::vector<double>(weights)};
  if (size == 0) return r;
  const double factor = c.options.scale / (c.options.mean ? count : 1), t = c.options.inv_temperature;
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) {
      std::vector<double> b(n), a(n), log_q, q, log_p, p;
      const auto at = [&](int64_t k) { return (o * n + k) * inner + i; };
      for (int64_t k = 0; k < n; ++k) b[k] = number(pred, c.pred_type, at(k)), a[k] = number(label, c.label_type, at(k));
      log_and_prob(c.options.pred_space, t, b, &log_q, &q);
      log_and_prob(c.options.label_space, t, a, &log_p, &p);
      int64_t rest = at(0), batch = 0, place = 0, step = 1;
      for (int d = rank - 1; d >= 0; --d) {
        const int64_t index = rest % c.shape[d];
        rest /= c.shape[d];
        if (d == batch_axis) batch = index;
        if (c.weight_shape[d] > 1) place += index * step;
        step *= c.weight_shape[d];
      }
      const double w = c.weighted ? number(weight, kFloat32, place) : 1;
      double value = 0, mass = 0;
      for (int64_t k = 0; k < n; ++k)
        if (p[k] != 0) value += p[k] * (log_p[k] - log_q[k]), mass += p[k];
      if (c.options.label_space == kLogits) mass = 1;
      const double beta = c.options.beta;
      std::vector<double> by_p(n), by_q(n);
      double mean_p = 0, mean_q = 0;
      if (beta > 0) {
        value = 0;
        for (int64_t k = 0; k < n; ++k) {
          const double log_m = std::log(beta * p[k] + (1 - beta) * q[k]);
          by_p[k] = beta * (p[k] == 0 ? (q[k] == 0 ? 0 : -80 - std::log(1 - beta)) : log_p[k] - log_m);
          by_q[k] = q[k] == 0 ? 0 : (1 - beta) * (log_q[k] - log_m);
          mean_p += p[k] == 0 ? 0 : p[k] * by_p[k];
          mean_q += q[k] * by_q[k];
        }
        value = mean_p + mean_q;
      }
      const double g = head[batch] * factor;
      if (w != 0) r.out[batch] += w * value * factor;
      if (w != 0 || std::isfinite(value)) {
        r.weight_grad[place] += g * value;
        r.weight_size[place] += std::fabs(g * value);
      }
      for (int64_t k = 0; k < n; ++k) {
        const double u = log_p[k] - log_q[k];
        double x = c.options.pred_space == kLogits     ? t * (q[k] * mass - p[k])
                   : c.options.pred_space == kLogProbs ? -p[k]
                   : p[k] == 0                         ? 0
                                                       : -p[k] / q[k];
        double y = c.options.label_space == kProbs     ? (p[k] != 0 ? u + 1 : std::log(c.options.epsilon) - log_q[k])
                   : p[k] == 0                         ? 0
                   : c.options.label_space == kLogProbs ? p[k] * (u + 1)
                                                        : t * p[k] * (u - value);
        if (beta > 0) {
          x = c.options.pred_space == kLogits ? t * q[k] * (by_q[k] - mean_q) : q[k] * by_q[k];
          y = c.options.label_space == kProbs      ? by_p[k]
              : c.options.label_space == kLogProbs ? p[k] * by_p[k]
                                                   : t * p[k] * (by_p[k] - mean_p);
        }
        r.pred_grad[at(k)] = w * g == 0 ? 0 : w * g * x;
        r.label_grad[at(k)] = w * g == 0 ? 0 : w * g * y;
      }
    }
  return r;
}

void check_one(const Case& c) {
  const int rank = static_cast<int>(c.shape.size());
  int64_t size = 1, weights = 1;
  for (int64_t d : c.shape) size *= d;
  for (int64_t d : c.weight_shape) weights *= d;
  const auto skew = [](Type type) { return pick(0, 16) * size_of(type); };
  Buffer pred(size, c.pred_type, skew(c.pred_type)), label(size, c.label_type, skew(c.label_type));
  Buffer pred_grad(size, c.pred_type, skew(c.pred_type)), label_grad(size, c.label_type, skew(c.label_type));
  Buffer weight(weights, kFloat32, skew(kFloat32)), weight_grad(weights, kFloat32, skew(kFloat32));
  for (int64_t i = 0; i < size; ++i) {
    const double x = uniform() * 3 + 0.1, y = uniform() * 3 + 0.1;
    put(pred.data, c.pred_type, i, c.options.pred_space == kProbs ? x : 2 * x - 3);
    put(label.data, c.label_type, i, c.options.label_space == kProbs ? (uniform() < 0.2 ? 0 : y) : 2 * y - 3);
  }
  for (int64_t i = 0; i < weights; ++i) put(weight.data, kFloat32, i, uniform() < 0.2 ? 0 : uniform());
  Divergence forward(c.options, {pred.data, c.pred_type, c.shape}, {label.data, c.label_type, c.shape},
                     c.weighted ? Array{weight.data, kFloat32, c.weight_shape} : Array{});
  const Type type = forward.in_double() ? kFloat64 : kFloat32;
  const int64_t batch = c.shape[normal_axis(c.options.batch_axis, rank, "batch_axis")];
  Buffer out(batch, type, 0), ograd(batch, type, 0), kept(Divergence::kept(c.options, c.weighted) * forward.rows(), type, 0);
  std::vector<double> head(batch);
  for (int64_t i = 0; i < batch; ++i) put(ograd.data, type, i, head[i] = static_cast<float>(uniform() * 2 - 1));
  const bool keep = c.keep || c.weighted;
  if (keep) forward.keep_in(kept.data);
  forward.forward(out.data);
  Divergence backward(c.options, {pred.data, c.pred_type, c.shape}, {label.data, c.label_type, c.shape},
                      c.weighted ? Array{weight.data, kFloat32, c.weight_shape} : Array{});
  if (keep) backward.keep_in(kept.data);
  backward.backward(ograd.data, pred_grad.data, label_grad.data, c.weighted ? weight_grad.data : nullptr);

  std::string where = "shape " + text(c.shape) + " axis " + std::to_string(c.options.axis) + " batch " + std::to_string(c.options.batch_axis) +
                      " spaces " + std::to_string(c.options.pred_space) + std::to_string(c.options.label_space) + " types " +
                      std::to_string(c.pred_type) + std::to_string(c.label_type) + (c.weighted ? " weighted " + text(c.weight_shape) : "");
  const Plain expected = plain(c, pred.data, label.data, weight.data, head);
  const auto tolerance = [&](Type t) { return t == kFloat16 ? 2e-3 : type == kFloat64 && t != kFloat32 ? 1e-11 : 4e-6; };
  for (int64_t i = 0; i < batch; ++i) compare("value", number(out.data, type, i), expected.out[i], tolerance(type), where);
  for (int64_t i = 0; i < size; ++i) {
    if (c.pred_type < kUint8)
      compare("pred gradient", number(pred_grad.data, c.pred_type, i), expected.pred_grad[i], tolerance(c.pred_type), where);
    if (c.label_type < kUint8)
      compare("label gradient", number(label_grad.data, c.label_type, i), expected.label_grad[i], tolerance(c.label_type), where);
  }
  for (int64_t i = 0; c.weighted && i < weights; ++i)
    compare("weight gradient", number(weight_grad.data, kFloat32, i), expected.weight_grad[i],
            1e-6 * (1 + expected.weight_size[i]), where);
}

void check(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    Case c;
    const int rank = static_cast<int>(pick(2, 4));
    c.options.axis = static_cast<int>(pick(0, rank - 1));
    do c.options.batch_axis = static_cast<int>(pick(0, rank - 1)); while (c.options.batch_axis == c.options.axis);
    for (int d = 0; d < rank; ++d) c.shape.push_back(pick(0, 40) == 0 ? 0 : pick(1, rank == 2 ? 40 : 9));
    if (round % 3 == 0) c.shape[c.options.axis] = pick(40, 1500);
    if (round % 41 == 0) c.shape[c.options.axis] = 5000;
    if (rank < 4 && c.options.axis < rank - 1 && c.shape[c.options.axis] <= 40)
      c.shape[rank - 1] = pick(60, 700);  // rows read where they lie
    if (round == 50) {  // gradients past the cache
      c.options.axis = 1;
      c.options.batch_axis = 0;
      c.shape = {3, 9, 80000 + pick(0, 1) * 8};
    }
    for (int d = 0; d < static_cast<int>(c.shape.size()); ++d) c.weight_shape.push_back(d == c.options.axis || pick(0, 2) == 0 ? 1 : c.shape[d]);
    c.options.pred_space = static_cast<Space>(pick(0, 2));
    c.options.label_space = static_cast<Space>(pick(0, 2));
    c.options.mean = pick(0, 1);
    c.options.scale = 0.75;
    c.options.inv_temperature = pick(0, 1) ? 1 : 0.5;
    const Type types[] = {kFloat32, kFloat32, kFloat64, kFloat16, kInt32, kUint8, kInt8, kInt64};
    c.pred_type = types[pick(0, 3)];
    c.label_type = types[pick(0, 7)];
    if (pick(0, 1)) c.pred_type = c.label_type = kFloat32;
    if (c.options.pred_space != kProbs && pick(0, 2) == 0) c.options.beta = 0.05 + 0.9 * uniform();
    c.weighted = pick(0, 1);
    c.keep = pick(0, 1);
    check_one(c);
    if (round % 7 == 0) {  // each category its own sample: for the sanitizers
      Case e = c;
      e.options.batch_axis = e.options.axis;
      int64_t size = 1;
      for (int64_t d : e.shape) size *= d;
      std::vector<double> x(size, 0.5), g(size), h(size), out(e.shape[e.options.axis]), head(out.size(), 1.0);
      Divergence call(e.options, {x.data(), kFloat64, e.shape}, {x.data(), kFloat64, e.shape}, Array{});
      call.forward(out.data());
      call.backward(head.data(), g.data(), h.data(), nullptr);
      if (e.options.pred_space == e.options.label_space)
        for (double v : out) compare("elementwise", v, 0, 1e-12, "axis == batch_axis");
    }
  }
  printf("%d calls on %s with %d threads: %d failures\n", rounds, kernels(kSingle).isa, Threads::get().count(), failures);
}

const char* only = nullptr;  // this shape

// With one thread its own processor time, which other work on the machine lengthens least; else the wall's.
double now() {
  if (Threads::get().count() > 1)
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e9 * t.tv_sec + t.tv_nsec;
}

void bench_one(const char* name, std::vector<int64_t> shape, int axis, Space label_space) {
  if (only && strcmp(only, name)) return;
  int64_t size = 1;
  for (int64_t d : shape) size *= d;
  const auto array = [&](double low, double high) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, size * 4)) abort();
    for (int64_t i = 0; i < size; ++i) static_cast<float*>(p)[i] = static_cast<float>(low + (high - low) * uniform());
    return static_cast<float*>(p);
  };
  Options o;
  o.axis = axis;
  o.pred_space = kLogits;
  o.label_space = label_space;
  float *pred = array(-3, 3), *label = array(0, 2.0 / shape[axis < 0 ? axis + shape.size() : axis]), *grad = array(0, 0);
  std::vector<float> out(shape[0]), head(shape[0], 1), kept(6 * (size / shape[axis < 0 ? axis + shape.size() : axis]));
  const int repeats = size < 100000 ? 200 : size < 4000000 ? 15 : 5;
  std::vector<double> there, back;
  for (int i = 0; i < repeats + 1; ++i) {
    const double start = now();
    Divergence f(o, {pred, kFloat32, shape}, {label, kFloat32, shape}, Array{});
    if (size >= 32768) f.keep_in(kept.data());
    f.forward(out.data());
    const double middle = now();
    Divergence b(o, {pred, kFloat32, shape}, {label, kFloat32, shape}, Array{});
    if (size >= 32768) b.keep_in(kept.data());
    b.backward(head.data(), grad, nullptr, nullptr);
    const double end = now();
    if (!i) continue;
    there.push_back(middle - start);
    back.push_back(end - middle);
  }
  std::sort(there.begin(), there.end());
  std::sort(back.begin(), back.end());
  const double f = there[0], b = back[0];
  printf("%-14s %-7s forward %8.1f us (%.3f ns/element)  backward %8.1f us (%.3f)\n", name, label_space == kLogits ? "logits" : "probs",
         f / 1e3, f / size, b / 1e3, b / size);
  free(pred), free(label), free(grad);
}

void bench() {
  printf("%s, %d threads\n", kernels(kSingle).isa, Threads::get().count());
  for (Space space : {kProbs, kLogits}) {
    bench_one("128x10", {128, 10}, -1, space);
    bench_one("4096x10", {4096, 10}, -1, space);
    bench_one("1024x1000", {1024, 1000}, -1, space);
    bench_one("256x32000", {256, 32000}, -1, space);
    bench_one("64x128256", {64, 128256}, -1, space);
    bench_one("8192x1000", {8192, 1000}, -1, space);
    bench_one("8x21x256x256", {8, 21, 256, 256}, 1, space);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !strcmp(argv[1], "bench")) return only = argc > 2 ? argv[2] : nullptr, bench(), 0;
  check(argc > 2 ? atoi(argv[2]) : 2000);
  return failures != 0;
}
