// The kernels without MXNet, for sanitizers, valgrind and stopwatches (run.py builds and runs it).
//
//   driver check [rounds]   random calls of every form in every type against the same numbers in double, whose formulas
//                           tests/test_native.py checks; every array ends at the end of its allocation
//   driver bench [name]     best ns per element of forward and backward of each form
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <chrono>
#include <memory>
#include <random>

#include "plan.h"

using namespace gluon_kl;

namespace {

std::mt19937 engine(11);
int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
double uniform() { return std::uniform_real_distribution<double>(0, 1)(engine); }

// An array whose last byte is the last of its allocation, starting some elements in; or, as MXNet's, at a multiple of 64.
bool aligned = false;
struct Buffer {
  Type type;
  int64_t count;
  std::unique_ptr<char[]> bytes;
  char* data;
  Buffer(int64_t n, Type t) : type(t), count(n) {
    int64_t skew = aligned ? 64 : pick(0, 16) * size_of(t);
    const int64_t size = n * size_of(t) + skew;
    bytes.reset(new char[size]);
    if (aligned) skew -= reinterpret_cast<uintptr_t>(bytes.get()) % 64;
    data = bytes.get() + skew;
    memset(bytes.get(), 0x7b, size);
  }
  double get(int64_t i) const { return number(data, type, i); }
  void set(int64_t i, double x) { convert_out(data, type, i, &x, 1); }
};

int failures = 0;
void expect(const char* what, double got, double expected, double tolerance, const std::string& where) {
  const bool same = (got != got && expected != expected) || got == expected ||
                    std::fabs(got - expected) <= tolerance * (1 + std::fabs(expected));
  if (!same && ++failures < 20) printf("%s: %.9g, expected %.9g (%s)\n", what, got, expected, where.c_str());
}

// A call with its arrays; results and gradients after `run`.
struct Made {
  const Call& call;
  std::vector<std::unique_ptr<Buffer>> in, grad;
  std::vector<Array> arrays;
  std::unique_ptr<Buffer> out;
  explicit Made(const Call& c) : call(c), in(kSlots), grad(kSlots), arrays(kSlots, Array{}) {}
  void add(int slot, const Shape& shape, Type type) {
    in[slot].reset(new Buffer(gluon_kl::size_of(shape), type));
    grad[slot].reset(new Buffer(gluon_kl::size_of(shape), type));
    arrays[slot] = {in[slot]->data, type, shape};
  }
  Made in_double() const {
    Made twin(call);
    for (int s = 0; s < kSlots; ++s) {
      if (!in[s]) continue;
      twin.add(s, arrays[s].shape, kFloat64);
      for (int64_t i = 0; i < in[s]->count; ++i) twin.in[s]->set(i, in[s]->get(i));
    }
    return twin;
  }
  void run(const std::vector<double>& head) {
    Plan forward(call, arrays);
    const Type type = forward.in_double() ? kFloat64 : kFloat32;
    out.reset(new Buffer(static_cast<int64_t>(head.size()), type));
    Buffer ograd(out->count, type), kept(Plan::kept(call) * forward.rows(), type);
    for (int64_t i = 0; i < ograd.count; ++i) ograd.set(i, head[i]);
    forward.keep_in(kept.data);
    forward.forward(out->data);
    Plan backward(call, arrays);
    backward.keep_in(kept.data);
    std::vector<Output> grads(kSlots, Output{});
    for (int s = 0; s < kSlots; ++s)
      if (grad[s]) grads[s] = {grad[s]->data, grad[s]->type};
    backward.backward(ograd.data, grads);
  }
};

double value_in(const Call& c, int slot, Type type, int64_t categories) {
  const bool whole = type >= kUint8;
  if (slot == kWeight) return uniform() < 0.2 ? 0 : whole ? 1 : uniform() + 0.25;
  if (c.gaussian()) return slot % 2 == 1 && c.spread_is_std ? uniform() * 2 + 0.5 : uniform() * 4 - 2;
  if (slot == kHard) return c.dense ? (uniform() < 0.3 ? 0 : uniform()) : static_cast<double>(pick(0, std::min<int64_t>(categories, 127) - 1));
  const Space space = c.space[slot];
  if (c.form == kBernoulli && space == kProbs) return whole ? pick(0, 1) * (slot == kTarget) : 0.05 + 0.9 * uniform();
  if (space == kProbs) return slot == kTarget && uniform() < 0.2 && c.form == kKL ? 0 : uniform() * 3 + 0.1;
  return space == kLogProbs ? -3 * uniform() - 0.1 : uniform() * 6 - 3;
}

std::string described(const Call& c, const Shape& shape, const Array& weight) {
  return "form " + std::to_string(c.form) + " shape " + text(shape) + " axis " + std::to_string(c.axis) + " batch " +
         std::to_string(c.batch_axis) + " spaces " + std::to_string(c.space[0]) + std::to_string(c.space[1]) + " reduction " +
         std::to_string(c.reduction) + (c.has(kHard) ? " hard" : "") + (weight.data ? " weight " + text(weight.shape) : "");
}

std::vector<double> random_head(int64_t count) {
  std::vector<double> head(count);
  for (double& h : head) h = static_cast<float>(uniform() * 2 - 1);
  return head;
}

void check_one(Call c, const Shape& shape, bool weighted) {
  const Type types[] = {kFloat32, kFloat32, kFloat32, kFloat64, kFloat16, kFloat16, kInt32, kUint8, kInt8, kInt64};
  const bool mixed = pick(0, 2) == 0;
  if (weighted) c.inputs.push_back(kWeight);
  c.grad = 0;
  for (int s : c.inputs)
    if (!(c.pair() && c.has(kHard) && (s == kTarget || (s == kHard && !c.dense)))) c.grad |= 1 << s;
  const Geometry g(c, shape);
  Made made(c);
  for (int s : c.inputs) {
    Shape own = shape;
    if (s == kWeight)
      for (int64_t& d : own) d = pick(0, 2) ? d : 1;
    if (s == kWeight && pick(0, 1))
      for (int d = g.first_inner; d < g.last_inner; ++d) own[d] = 1;
    if (s == kHard && c.pair() && !c.dense) own.erase(own.begin() + g.axis);
    Type type = mixed ? types[pick(0, 9)] : kFloat32;
    if (type >= kUint8 && !(s == kTarget && c.space[1] == kProbs && c.pair() && c.form == kKL) && s != kHard) type = kFloat16;
    made.add(s, own, type);
    for (int64_t i = 0; i < made.in[s]->count; ++i) made.in[s]->set(i, value_in(c, s, type, g.n));
  }
  const std::vector<double> head = random_head(c.reduction == kNone ? gluon_kl::size_of(shape) : g.batch);
  Made twin = made.in_double();
  made.run(head), twin.run(head);
  const std::string where = described(c, shape, made.arrays[kWeight]);
  for (int64_t i = 0; i < made.out->count; ++i)
    expect("value", made.out->get(i), twin.out->get(i), made.out->type == kFloat64 ? 1e-12 : 3e-6, where);
  const char* const names[] = {"gradient 0", "gradient 1", "gradient 2", "gradient 3", "weight's gradient"};
  for (int s = 0; s < kSlots; ++s) {
    if (!(c.grad & 1 << s) || made.grad[s]->type >= kUint8) continue;
    double size = 0;  // sums may cancel
    for (int64_t i = 0; i < twin.grad[s]->count; ++i) size = std::max(size, std::fabs(twin.grad[s]->get(i)));
    const double tolerance = made.grad[s]->type == kFloat16 ? 2e-3 : made.out->type == kFloat64 && made.grad[s]->type == kFloat64 ? 1e-11 : 8e-6;
    for (int64_t i = 0; i < made.grad[s]->count; ++i) {
      double expected = twin.grad[s]->get(i);
      if (made.grad[s]->type == kFloat16 && std::fabs(expected) >= 65520) expected = expected < 0 ? -INFINITY : INFINITY;
      expect(names[s], made.grad[s]->get(i), expected, tolerance * (1 + size), where);
    }
  }
}

Call random_call(int round) {
  Call c;
  const Form forms[] = {kKL, kKL, kReverseKL, kJS, kSkewKL, kSkewReverseKL, kTotalVariation, kGaussian, kBernoulli,
                        kCrossEntropy, kKL};
  constexpr int kinds = sizeof forms / sizeof *forms;
  c.form = forms[round % kinds];
  const Reduction reductions[] = {kSum, kMeanOver, kNone, kRowMean, kRow};
  c.reduction = reductions[pick(0, c.pair() ? 4 : 2)];
  c.scale = 0.75;
  c.keep = pick(0, 3) > 0;
  c.space[0] = static_cast<Space>(pick(0, 2)), c.space[1] = static_cast<Space>(pick(0, 2));
  c.temperature = pick(0, 1) ? 1 : 2;
  c.beta = pick(0, 1) ? 0.5 : 0.05 + 0.9 * uniform(), c.skew = 0.05 + 0.9 * uniform();
  if (c.form == kGaussian) {
    c.inputs = {kMean, kLogVariance};
    if (pick(0, 1)) c.inputs.push_back(kPriorMean);
    if (pick(0, 1)) c.inputs.push_back(kPriorLogVariance);
    c.spread_is_std = pick(0, 1), c.free_nats = pick(0, 1) ? 0 : 0.1;
  } else if (c.form == kBernoulli) {
    for (Space& s : c.space) s = pick(0, 1) ? kProbs : kLogits;
  } else if (c.form == kCrossEntropy || round % (2 * kinds) == kinds - 1) {
    c.inputs = c.form == kCrossEntropy ? std::vector<int>{kPred, kHard} : std::vector<int>{kPred, kTarget, kHard};
    c.hard_weight = c.form == kCrossEntropy ? 1 : 0.25;
    c.space[0] = kLogits;
    c.dense = pick(0, 1);
    if (!c.dense && pick(0, 1)) c.ignore_label = 1, c.label_smoothing = 0.1;
    if (c.reduction == kNone) c.reduction = kRowMean;
  }
  return c;
}

void check(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    Call c = random_call(round);
    const int rank = static_cast<int>(pick(1, 4));
    c.axis = static_cast<int>(pick(0, rank - 1)), c.batch_axis = static_cast<int>(pick(0, rank - 1));
    Shape shape;
    for (int d = 0; d < rank; ++d) shape.push_back(pick(0, 40) == 0 ? 0 : pick(1, rank <= 2 ? 40 : 9));
    if (round % 3 == 0) shape[c.axis] = pick(40, 1500);
    if (round % 41 == 0) shape[c.axis] = 5000;
    if (rank < 4 && c.axis < rank - 1 && shape[c.axis] <= 40) shape[rank - 1] = pick(60, 700);  // rows read where they lie
    if (c.has(kHard) && !c.dense && shape[c.axis] == 0) shape[c.axis] = 3;
    check_one(c, shape, pick(0, 1));
  }
}

// Gradients of 8 MiB and more, which are written past the cache, with rows that are no multiple of a vector.
void check_large() {
  for (int i = 0; i < 3; ++i) {
    Call c;
    c.space[0] = kLogits;
    c.form = i == 1 ? kJS : kKL;
    if (i == 2) c.axis = 1;
    check_one(c, i == 2 ? Shape{3, 9, 80000 + 8 * pick(0, 1) + pick(0, 1)} : Shape{501, 5001}, i == 1);
  }
}

// Of a tiny negative number the half is -0.
void check_zeros() {
  const double tiny[] = {-5e-324, -7e-46, -1e-45, -1e-40, -1e-10, -0.0};
  for (double x : tiny) {
    uint16_t half[12];
    double twelve[12];
    float narrow[12];
    for (int j = 0; j < 12; ++j) narrow[j] = static_cast<float>(twelve[j] = x);
    convert_out(half, kFloat16, 0, twelve, 12);
    for (uint16_t h : half) expect("half of a tiny double", h, 0x8000, 0, std::to_string(x));
    convert_out(half, kFloat16, 0, narrow, 12);
    for (uint16_t h : half) expect("half of a tiny float", h, 0x8000, 0, std::to_string(x));
  }
}

// Halves between two neighbours go to the even one, from float and double, in vectors and in what is left over.
void check_conversions() {
  const double ties[] = {1 + 0x1p-11, 1 + 3 * 0x1p-11, 65519.99, 65520, 0x1p-25, 3 * 0x1p-25, 0x1p-14 - 0x1p-25, -1 - 0x1p-11,
                         1 + 0x1p-11 + 0x1p-40, 1 + 3 * 0x1p-11 - 0x1p-40, 1 + 0x1p-11 - 0x1p-40};
  const double from_double[] = {1, 1 + 0x1p-9, 65504, INFINITY, 0, 0x1p-23, 0x1p-14, -1, 1 + 0x1p-10, 1 + 0x1p-10, 1};
  const double from_float[] = {1, 1 + 0x1p-9, 65504, INFINITY, 0, 0x1p-23, 0x1p-14, -1, 1, 1 + 0x1p-9, 1};
  for (int i = 0; i < 11; ++i) {
    double twelve[12];
    float narrow[12];
    for (int j = 0; j < 12; ++j) narrow[j] = static_cast<float>(twelve[j] = ties[i]);
    Buffer half(12, kFloat16);
    convert_out(half.data, kFloat16, 0, twelve, 12);
    for (int j = 0; j < 12; ++j) expect("half of a double", half.get(j), from_double[i], 0, std::to_string(i));
    convert_out(half.data, kFloat16, 0, narrow, 12);
    for (int j = 0; j < 12; ++j) expect("half of a float", half.get(j), from_float[i], 0, std::to_string(i));
  }
  const double numbers[] = {NAN, INFINITY, -INFINITY, 1e30, -1e30, -1.9, 1.9};
  const Type types[] = {kInt8, kUint8, kInt32, kInt64};
  const double low[] = {-128, 0, -2147483648.0, -9223372036854775808.0}, high[] = {127, 255, 2147483647.0, 9223372036854775807.0};
  for (int t = 0; t < 4; ++t) {
    Buffer whole(7, types[t]);
    convert_out(whole.data, types[t], 0, numbers, 7);
    const double expected[] = {0, high[t], low[t], high[t], low[t], t == 1 ? 0.0 : -1.0, 1};
    for (int i = 0; i < 7; ++i) expect("integer", whole.get(i), expected[i], 0, std::to_string(t) + std::to_string(i));
  }
}

const char* only = nullptr;  // this name

// With one thread its own processor time, which other work on the machine lengthens least; else the wall's.
double now() {
  if (Threads::get().count() > 1)
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e9 * t.tv_sec + t.tv_nsec;
}

void bench_one(const char* name, const char* words, const Shape& shape, const Shape& weight = {}) {
  if (only && strcmp(name, only)) return;
  const auto held = call_of(words);
  const Call& c = *held;
  const Geometry g(c, shape);
  Made made(c);
  for (int s : c.inputs) {
    Shape own = s == kWeight ? weight : shape;
    if (s == kHard && c.pair() && !c.dense) own.erase(own.begin() + g.axis);
    made.add(s, own, kFloat32);
    const double low = c.pair() && s == kTarget && c.space[1] == kProbs ? 0 : s == kWeight ? 0.5 : s == kHard ? 0 : -3;
    const double high = s == kTarget && low == 0 ? 2.0 / static_cast<double>(g.n) : s == kWeight ? 1 : s == kHard && !c.dense ? 9 : 3;
    for (int64_t i = 0; i < made.in[s]->count; ++i) {
      const double x = low + (high - low) * uniform();
      made.in[s]->set(i, s == kHard && !c.dense ? std::floor(x) : x);
    }
  }
  const int64_t size = gluon_kl::size_of(shape);
  Buffer out(size, kFloat32), head(size, kFloat32), kept(kStats * g.rows, kFloat32);
  for (int64_t i = 0; i < size; ++i) head.set(i, 1);
  std::vector<Output> grads(kSlots, Output{});
  for (int s = 0; s < kSlots; ++s)
    if (made.grad[s]) grads[s] = {made.grad[s]->data, kFloat32};
  double there = INFINITY, back = INFINITY;
  for (int i = 0; i < (size < 100000 ? 200 : size < 4000000 ? 15 : 5) + 1; ++i) {
    const double start = now();
    Plan f(c, made.arrays);
    f.keep_in(kept.data);
    f.forward(out.data);
    const double middle = now();
    Plan b(c, made.arrays);
    b.keep_in(kept.data);
    b.backward(head.data, grads);
    const double end = now();
    if (i) there = std::min(there, middle - start), back = std::min(back, end - middle);
  }
  printf("%-34s %-14s forward %8.1f us (%.3f ns/element)  backward %8.1f us (%.3f)\n", name, text(shape).c_str(), there / 1e3,
         there / size, back / 1e3, back / size);
  fflush(stdout);
}

void bench() {
  printf("%s, %d threads\n", kernels(kSingle).isa, Threads::get().count());
  for (const Shape& shape : {Shape{128, 10}, Shape{4096, 10}, Shape{1024, 1000}, Shape{256, 32000}, Shape{8192, 1000}}) {
    bench_one("kl", shape[0] == 128 ? "pred=logits keep=0" : "pred=logits", shape);
    bench_one("kl of logits", shape[0] == 128 ? "pred=logits target=logits keep=0" : "pred=logits target=logits", shape);
  }
  bench_one("kl", "pred=logits axis=1", {8, 21, 256, 256});
  bench_one("kl of logits", "pred=logits target=logits axis=1", {8, 21, 256, 256});
  const Shape middle = {256, 1000};
  bench_one("kl from log-probabilities", "", middle);
  bench_one("reverse kl", "form=reverse_kl", middle);
  bench_one("reverse kl of logits", "form=reverse_kl pred=logits target=logits", middle);
  bench_one("js", "form=js", middle);
  bench_one("js of logits", "form=js pred=logits target=logits", middle);
  bench_one("js of logits and probs", "form=js pred=logits", middle);
  bench_one("skew kl of logits", "form=skew_kl skew=0.1 pred=logits target=logits", middle);
  bench_one("skew reverse kl of logits", "form=skew_reverse_kl skew=0.1 pred=logits target=logits", middle);
  bench_one("total variation of logits", "form=tv pred=logits target=logits", middle);
  bench_one("none", "pred=logits reduction=none", middle);
  bench_one("row weights", "pred=logits inputs=pred,target,weight", middle, {256, 1});
  bench_one("element weights", "pred=logits inputs=pred,target,weight", middle, middle);
  bench_one("element weights' gradient", "pred=logits inputs=pred,target,weight grad=pred,weight", middle, middle);
  bench_one("hard labels", "pred=logits inputs=pred,hard", middle);
  for (const Shape& shape : {middle, Shape{64, 50257}}) {
    bench_one("distillation, index", "pred=logits target=logits inputs=pred,target,hard hard_weight=0.5 temperature=4 reduction=row_mean", shape);
    bench_one("distillation, dense", "pred=logits target=logits inputs=pred,target,hard hard=dense hard_weight=0.5 temperature=4", shape);
  }
  bench_one("distillation, js", "form=js pred=logits target=logits inputs=pred,target,hard hard_weight=0.5 temperature=4", middle);
  for (const Shape& shape : {Shape{256, 64}, Shape{256, 4096}}) {
    bench_one("gaussian", "form=gaussian inputs=mean,log_variance grad=mean,log_variance", shape);
    bench_one("gaussian, prior", "form=gaussian inputs=mean,log_variance,prior_mean,prior_log_variance grad=mean,log_variance", shape);
  }
  bench_one("bernoulli", "form=bernoulli", middle);
  bench_one("bernoulli of scores", "form=bernoulli target=logits", middle);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !strcmp(argv[1], "bench")) return aligned = true, only = argc > 2 ? argv[2] : nullptr, bench(), 0;
  const int rounds = argc > 2 ? atoi(argv[2]) : 2000;
  check_conversions();
  check_zeros();
  check(rounds);
  if (rounds >= 400) check_large();
  printf("%d calls on %s with %d threads: %d failures\n", rounds, kernels(kSingle).isa, Threads::get().count(), failures);
  return failures != 0;
}
