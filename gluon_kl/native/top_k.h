// The loss of a row of logits against a teacher that kept k of its categories, which reads the row once; and its gradient,
// which reads the row once more and writes it. The k categories, and all others as one more, are computed in double.
// Each kernel_*.cc includes this file once.
#ifndef GLUON_KL_TOP_K_H_
#define GLUON_KL_TOP_K_H_

#include "convert.h"
#include "form.h"
#include "job.h"
#include "layout.h"
#include "vector_math.h"

namespace {

using namespace gluon_kl;

inline double exp_of(double x) { return exp<double>(splat(x))[0]; }
inline double log_of_number(double x) { return log<double>(splat(x))[0]; }
inline double larger(double a, double b) { return a > b ? a : b; }  // b if one is NaN

// A number for each kept category and one for all others, filled up to whole vectors.
struct Few {
  double* at;
  int64_t count;

  static int64_t room(int64_t k) { return (k + kLanes<double>) / kLanes<double> * kLanes<double>; }
  double& operator[](int64_t i) const { return at[i]; }
  void fill(double x) const {
    for (int64_t i = 0; i < count; ++i) at[i] = x;
  }
  template <class F> void set(const Few& from, const F& f) const {
    for (int64_t i = 0; i < count; i += kLanes<double>) store<double>(at + i, f(load(from.at + i)));
  }
  void set_exp(const Few& from) const { set(from, [](Vec<double> x) { return exp<double>(x); }); }
  void set_log(const Few& from) const { set(from, [](Vec<double> x) { return log<double>(x); }); }
  double sum() const {
    double all = 0;
    for (int64_t i = 0; i < count; ++i) all += at[i];
    return all;
  }
};

// The working memory of a row, in units of 8 bytes.
struct TopKMemory {
  static constexpr int kFew = 8;
  double* next;
  static int64_t size(const TopK& job, int64_t block_bytes) {
    const int64_t blocks = job.n / (block_bytes / 8) + 2;  // of doubles: of floats there are fewer
    return block_bytes / 8 + kFew * Few::room(job.k) + 2 * job.k + blocks;
  }
  double* take(int64_t count) {
    double* const taken = next;
    next += count;
    return taken;
  }
  Few few(const TopK& job) { return {take(Few::room(job.k)), Few::room(job.k)}; }
  int64_t* whole_numbers(int64_t count) { return reinterpret_cast<int64_t*>(take(count)); }
};

template <class T> struct TopKRow {
  using V = Vec<T>;
  static constexpr int64_t kBlock = kRowBlock<T>, kStep = 4 * kLanes<T>;
  static_assert(kBlock % 64 == 0 && kBlock % kStep == 0, "a block has whole words of marks, and whole steps");
  const TopK& job;
  TopKMemory memory;
  T* const block;
  const Few score, z, q, log_q, p, log_p, slope, own;  // of pred: scores, these over T, softmax; of the teacher; see below
  int64_t* const category;  // -1 at empty places
  int64_t* const next;      // the next one that is kept in the same block of the row, or -1
  int64_t* const kept_in;   // the first of each block
  const T t;
  const int squarings;
  const bool hard;
  int64_t row = 0, known = 0, skew = 0;
  // Of the scores that are not kept: the largest, and the sums of exp((x - largest) / T) and of exp(x - largest); the sum of
  // all scores.
  double largest = 0, others = 0, others_at_one = 0, total = 0;

  TopKRow(const TopK& of, double* scratch)
      : job(of), memory{scratch}, block(reinterpret_cast<T*>(memory.take(kBlock * sizeof(T) / 8))), score(memory.few(of)),
        z(memory.few(of)), q(memory.few(of)), log_q(memory.few(of)), p(memory.few(of)), log_p(memory.few(of)),
        slope(memory.few(of)), own(memory.few(of)), category(memory.whole_numbers(of.k)), next(memory.whole_numbers(of.k)),
        kept_in(memory.whole_numbers(0)), t(static_cast<T>(1 / of.temperature)), squarings(squarings_of(t)),
        hard(of.label.data != nullptr) {}
  static int64_t scratch_size(const TopK& job) { return TopKMemory::size(job, kBlock * sizeof(T)); }

  T* kept() const { return static_cast<T*>(job.kept) + row * job.columns(); }
  int64_t category_of(double x) const {  // the category that a number names, or -1
    const int64_t c = x >= 0 && x < static_cast<double>(job.n) ? static_cast<int64_t>(x) : -1;
    return static_cast<double>(c) == x ? c : -1;
  }
  int64_t label() const { return hard ? category_of(number(job.label.data, job.label.type, row)) : -1; }

  // f(block, first category, number of categories) for each block of the row. The first one is shorter by `skew`.
  template <class F> void each_block(const F& f) {
    for (int64_t b = 0, first = 0; first < job.n; ++b) {
      const int64_t end = (b + 1) * kBlock - skew < job.n ? (b + 1) * kBlock - skew : job.n;
      f(b, first, end - first);
      first = end;
    }
  }
  // Lists the kept categories of each block; returns whether there are any.
  bool find_kept() {
    for (int64_t b = 0; b <= (job.n + skew) / kBlock; ++b) kept_in[b] = -1;
    known = 0;
    for (int64_t i = 0; i < job.k; ++i) {
      const double x = number(job.index.data, job.index.type, row * job.k + i);
      category[i] = category_of(x);
      if (x == -1) continue;
      if (category[i] < 0) return false;
      int64_t& list = kept_in[(category[i] + skew) / kBlock];
      next[i] = list, list = i;
      ++known;
    }
    return true;
  }
  // Takes the kept logits out of a block; returns whether no category occurs twice.
  bool take_kept(int64_t b, int64_t first) {
    uint64_t seen[kBlock / 64] = {};
    for (int64_t i = kept_in[b]; i >= 0; i = next[i]) {
      const int64_t at = category[i] - first;
      const uint64_t bit = uint64_t(1) << (at & 63);
      if (seen[at >> 6] & bit) return false;
      seen[at >> 6] |= bit;
      score[i] = block[at];
      block[at] = -inf<T>();
    }
    return true;
  }

  // ---- forward: one read of the row ----

  bool read_row() {
    Sums<T> sum, at_one;
    sum.clear(), at_one.clear();
    T best = -inf<T>();
    bool sound = true;
    total = 0;
    each_block([&](int64_t b, int64_t first, int64_t count) {
      if (!sound) return;
      convert_in(block, job.pred, job.type, row * job.n + first, count);
      if (job.smoothing != 0 && hard) total += sum_of_block(count);
      const int64_t whole = (count + kStep - 1) / kStep * kStep;
      for (int64_t i = count; i < whole; ++i) block[i] = -inf<T>();
      sound = take_kept(b, first);
      add_block(whole, &best, &sum, &at_one);
    });
    sum.join(), at_one.join();
    largest = best, others = sum.first();
    others_at_one = squarings == 0 ? others : at_one.first();
    return sound;
  }
  double sum_of_block(int64_t count) const {
    Sums<T> sum;
    V added = {};
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) added += load(block + i);
    if (i < count) added += load_part(block + i, count - i, T(0));
    sum.clear(), sum.add(added), sum.join();
    return sum.first();
  }
  T largest_of_block(int64_t count) const {
    V best[4];
    for (V& each : best) each = splat(-inf<T>());
    for (int64_t i = 0; i < count; i += kStep)
      for (int j = 0; j < 4; ++j) best[j] = Max<T>(load(block + i + j * kLanes<T>), best[j]);
    return MaxOfLanes<T>(Max<T>(Max<T>(best[0], best[1]), Max<T>(best[2], best[3])));
  }
  void add_block(int64_t count, T* best, Sums<T>* sum, Sums<T>* at_one) const {
    const T before = *best, here = largest_of_block(count);
    if (here > before) *best = here;
    const T base = *best == -inf<T>() ? T(0) : *best;
    if (*best != before) {
      sum->scale(exp_down<T>(splat((before - base) * t)));
      at_one->scale(exp_down<T>(splat(before - base)));
    }
    V added = {}, added_at_one = {};
    const bool twice = hard && squarings != 0;
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const V off = load(block + i) - base, e = exp_down<T>(off * t);
      added += e;
      if (twice) added_at_one += at_temperature_one<T>(squarings, e, off);
    }
    sum->add(added), at_one->add(added_at_one);
  }

  // ---- forward: k + 1 numbers ----

  // The softmax of the kept scores and of all others as one, over T.
  double read_student() {
    double top = others == 0 ? -inf<double>() : largest;
    for (int64_t i = 0; i < job.k; ++i)
      if (category[i] >= 0) top = larger(score[i], top);
    const double by_t = 1 / job.temperature;
    z.fill(-inf<double>());
    for (int64_t i = 0; i < job.k; ++i)
      if (category[i] >= 0) z[i] = (score[i] - top) * by_t;
    if (others != 0) z[job.k] = (largest - top) * by_t + log_of_number(others);
    q.set_exp(z);
    const double sum = q.sum(), log_sum = log_of_number(sum);
    log_q.set(z, [&](Vec<double> x) { return x - log_sum; });
    q.set(q, [&](Vec<double> x) { return x / sum; });
    return top;
  }
  // The teacher's probabilities, and at the end that of all others.
  void read_teacher() {
    p.fill(job.space == kProbs ? 0 : -inf<double>());
    double top = -inf<double>();
    for (int64_t i = 0; i < job.k; ++i) {
      if (category[i] < 0) continue;
      p[i] = number(job.value.data, job.value.type, row * job.k + i);
      top = larger(p[i], top);
    }
    const double by_t = 1 / job.temperature;
    if (job.space == kLogits) p.set(p, [&](Vec<double> x) { return (x - top) * by_t; });
    if (job.space != kProbs) p.set_exp(p);
    const double mass = p.sum();
    if (job.tail == kRenormalize) p.set(p, [&](Vec<double> x) { return x / mass; });
    if (job.tail == kBucket && known < job.n && mass < 1) p[job.k] = 1 - mass;
    log_p.set_log(p);
  }
  // The divergence, and its derivatives by the logarithms of the student's probabilities in `slope`.
  double divergence() const {
    double value = 0;
    if (job.form == kJS) {
      own.set(p, [&](Vec<double> x) { return job.beta * x; });
      for (int64_t i = 0; i <= job.k; ++i) own[i] += (1 - job.beta) * q[i];
      own.set_log(own);  // of the mixture
    }
    for (int64_t i = 0; i <= job.k; ++i) {
      const double of_p = job.form == kJS ? job.beta * (log_p[i] - own[i]) : log_p[i] - log_q[i];
      const double of_q = job.form == kJS ? (1 - job.beta) * (log_q[i] - own[i]) : log_q[i] - log_p[i];
      const double by_p = job.form == kReverseKL || p[i] == 0 ? 0 : p[i] * of_p;
      const double by_q = job.form == kKL || q[i] == 0 ? 0 : q[i] * of_q;
      slope[i] = job.form == kKL ? -p[i] : by_q;
      value += job.form == kJS && by_p + by_q < 0 ? 0 : by_p + by_q;  // rounding may give less than 0
    }
    return value;
  }
  // The divergence with its weight; in `slope` its derivatives by the kept scores and by the logarithm of the others' sum.
  double soft() {
    slope.fill(0);
    if (known == 0) return 0;
    read_teacher();
    const double share = 1 - job.hard_share, value = divergence();
    double all = 0;
    for (int64_t i = 0; i <= job.k; ++i) all += slope[i];
    for (int64_t i = 0; i <= job.k; ++i) slope[i] = share * job.temperature * (slope[i] - q[i] * all);
    return share * job.temperature * job.temperature * value;
  }
  // The cross-entropy with its weight; `own` becomes the probabilities of the kept categories at temperature 1, and `one`
  // what exp(x - largest) of the others is multiplied by. What is the same for all categories is left out of it.
  double cross_entropy(double top, int64_t c, double score_of_class, double* one) const {
    own.fill(-inf<double>());
    for (int64_t i = 0; i < job.k; ++i)
      if (category[i] >= 0) own[i] = score[i] - top;
    own.set_exp(own);
    const double down = others == 0 ? 0 : exp_of(largest - top);
    const double sum = own.sum() + (others == 0 ? 0 : others_at_one * down), log_sum = log_of_number(sum);
    own.set(own, [&](Vec<double> x) { return x / sum; });
    *one = down / sum;
    double value = (1 - job.smoothing) * (log_sum + (top - score_of_class));
    if (job.smoothing != 0) value += job.smoothing * (log_sum + (top - total / static_cast<double>(job.n)));
    return value;
  }
  void forward() {
    skew = 0;
    const int64_t c = label();
    if (!find_kept() || (hard && c < 0) || !read_row()) return spoil();
    const double top = read_student(), value = soft();
    double hard_value = 0, one = 0, of_others = others == 0 ? 0 : slope[job.k] / others;
    T* const to = kept();
    to[job.k] = T(0);
    if (hard) {
      const double score_of_class = number(job.pred, job.type, row * job.n + c);
      hard_value = job.hard_share * cross_entropy(top, c, score_of_class, &one);
      one *= job.hard_share;
      const double everywhere = evenly(), at_class = job.hard_share * (1 - job.smoothing);
      double of_class = -at_class - everywhere;
      if (others != 0) {
        const double off = score_of_class - largest;
        of_class += of_others * exp_of(off / job.temperature) + one * exp_of(off);
      }
      to[job.k] = static_cast<T>(of_class);
      for (int64_t i = 0; i < job.k; ++i)
        if (category[i] >= 0) slope[i] += job.hard_share * own[i] - everywhere - (category[i] == c ? at_class : 0);
    }
    if (squarings == 0) of_others += one, one = 0;  // they share their exponential
    for (int64_t i = 0; i < job.k; ++i) to[i] = static_cast<T>(slope[i]);
    to[job.k + 1] = static_cast<T>(others == 0 ? 0 : largest);
    to[job.k + 2] = static_cast<T>(of_others), to[job.k + 3] = static_cast<T>(one);
    static_cast<T*>(job.loss)[row] = static_cast<T>(value + hard_value);
  }
  // What label smoothing subtracts from the gradient of every category.
  double evenly() const { return hard ? job.hard_share * job.smoothing / static_cast<double>(job.n) : 0; }
  void spoil() const {
    for (int64_t i = 0; i < job.columns(); ++i) kept()[i] = nan<T>();
    static_cast<T*>(job.loss)[row] = nan<T>();
  }

  // ---- backward: one read of the row, and one write ----

  void silence() const {
    const int64_t bytes = job.n * size_of(job.grad_type);
    memset(static_cast<char*>(job.grad) + row * bytes, 0, bytes);
  }
  void backward() {
    const T g = static_cast<const T*>(job.head)[row];
    if (g == T(0)) return silence();
    const T* const rest = kept() + job.k;
    const T base = rest[1], of_others = g * rest[2], one = g * rest[3], less = g * static_cast<T>(evenly());
    const int powers = squarings;
    if (of_others == T(0) && one == T(0)) sweep(g, [&](V) { return splat(-less); });
    else if (one == T(0)) sweep(g, [&](V x) { return of_others * exp_down<T>((x - base) * t) - less; });
    else sweep(g, [&](V x) {
      const V off = x - base, e = exp_down<T>(off * t);
      return (of_others * e - less) + one * at_temperature_one<T>(powers, e, off);
    });
  }
  // f of each score, but what the forward found where a category is kept or the class.
  template <class F> void sweep(T g, const F& f) {
    char* const grad = static_cast<char*>(job.grad) + row * job.n * size_of(job.grad_type);
    const bool in_place = job.type == type_of<T>(), out_place = job.grad_type == type_of<T>();
    skew = job.stream && out_place ? reinterpret_cast<uintptr_t>(grad) % kBytes / sizeof(T) : 0;  // whole lines are streamed
    const bool exist = find_kept();
    const int64_t c = label();
    each_block([&](int64_t b, int64_t first, int64_t count) {
      const T* from = static_cast<const T*>(job.pred) + row * job.n + first;
      if (!in_place) convert_in(block, job.pred, job.type, row * job.n + first, count), from = block;
      int64_t i = 0;
      for (; i + kLanes<T> <= count; i += kLanes<T>) store<T>(block + i, f(load(from + i)));
      if (i < count) store<T>(block + i, f(load_part(from + i, count - i, T(0))));
      if (c >= first && c < first + count) block[c - first] = g * kept()[job.k];
      for (int64_t j = exist ? kept_in[b] : -1; j >= 0; j = next[j]) block[category[j] - first] = g * kept()[j];
      if (out_place) copy_run(reinterpret_cast<T*>(grad) + first, block, count, job.stream);
      else convert_out(job.grad, job.grad_type, row * job.n + first, block, count);
    });
  }
};

template <class T> void top_k_forward(const TopK& job, int64_t begin, int64_t end) {
  TopKRow<T> work(job, scratch<double>(TopKRow<T>::scratch_size(job)));
  for (work.row = begin; work.row < end; ++work.row) work.forward();
}
template <class T> void top_k_backward(const TopK& job, int64_t begin, int64_t end) {
  TopKRow<T> work(job, scratch<double>(TopKRow<T>::scratch_size(job)));
  for (work.row = begin; work.row < end; ++work.row) work.backward();
  if (job.stream) stream_fence();
}

}  // namespace
#endif  // GLUON_KL_TOP_K_H_
