// A row of scores, read once, as what a teacher that kept k categories asks of it: the kept scores, and the logarithm of
// the sum over all others; and back. Included once by each kernel_*.cc.
#ifndef GLUON_KL_TOP_K_H_
#define GLUON_KL_TOP_K_H_

#include "convert.h"
#include "job.h"
#include "layout.h"
#include "vector_math.h"

namespace {

using namespace gluon_kl;

// Which categories of a row are kept, as bits: a block of categories has whole words.
struct Marks {
  uint64_t* words;
  int64_t count;
  void clear() { memset(words, 0, count * sizeof *words); }
  bool set(int64_t category) {  // whether it was not
    const uint64_t bit = uint64_t(1) << (category & 63);
    const bool first = !(words[category >> 6] & bit);
    words[category >> 6] |= bit;
    return first;
  }
};

// Of a row: the largest of the others and the logarithm of the sum of exp((x - largest) / T), and the same of all scores at
// temperature 1.
struct Found { double largest, log_sum, top, log_all; };

inline double exp_of(double x) { return exp<double>(splat(x))[0]; }
inline double log_of_number(double x) { return log<double>(splat(x))[0]; }
inline double larger(double a, double b) { return a > b ? a : b; }

template <class T> struct TopKRow {
  using V = Vec<T>;
  static_assert(kRowBlock<T> % 64 == 0, "a block has whole words of marks");
  const TopK& job;
  T* const block;
  Marks marks;
  int64_t row = 0;

  TopKRow(const TopK& of, T* memory) : job(of), block(memory), marks{reinterpret_cast<uint64_t*>(memory + kRowBlock<T>), words(of)} {}
  static int64_t words(const TopK& job) { return (job.n + 63) / 64; }
  static int64_t scratch_size(const TopK& job) { return kRowBlock<T> + words(job) * static_cast<int64_t>(8 / sizeof(T)); }

  double score(int64_t category) const { return number(job.pred, job.type, row * job.n + category); }
  double index(int64_t i) const { return job.index[row * (job.k + job.hard) + i]; }
  // The category that a number names, or -1.
  int64_t category(int64_t i) const {
    const double x = index(i);
    const int64_t c = x >= 0 && x < static_cast<double>(job.n) ? static_cast<int64_t>(x) : -1;
    return static_cast<double>(c) == x ? c : -1;
  }
  T* out() const { return static_cast<T*>(job.out) + row * job.columns(); }

  // Whether the kept categories exist, and each stands once.
  bool mark() {
    marks.clear();
    for (int64_t i = 0; i < job.k; ++i) {
      if (index(i) == -1) continue;
      const int64_t c = category(i);
      if (c < 0 || !marks.set(c)) return false;
    }
    return true;
  }
  // The scores from category `first` on, in the block; a whole number of vectors, of which what is no category is -inf.
  int64_t read(int64_t first) {
    const int64_t left = job.n - first, count = left < kRowBlock<T> ? left : kRowBlock<T>;
    convert_in(block, job.pred, job.type, row * job.n + first, count);
    const int64_t whole = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    for (int64_t i = count; i < whole; ++i) block[i] = -inf<T>();
    return whole;
  }
  void hide_kept(int64_t first) {
    for (int64_t w = first >> 6; w < marks.count && w << 6 < first + kRowBlock<T>; ++w)
      for (uint64_t bits = marks.words[w]; bits; bits &= bits - 1) block[(w << 6) + __builtin_ctzll(bits) - first] = -inf<T>();
  }

  Found find() {
    const T t = static_cast<T>(job.inv_temperature);
    const bool twice = job.hard && t != T(1);
    Sums<T> sum, again;
    sum.clear(), again.clear();
    T largest = -inf<T>();
    for (int64_t first = 0; first < job.n; first += kRowBlock<T>) {
      const int64_t count = read(first);
      hide_kept(first);
      V best = splat(largest);
      for (int64_t i = 0; i < count; i += kLanes<T>) best = Max<T>(load(block + i), best);
      const T before = largest;
      largest = MaxOfLanes<T>(best);
      const T base = largest == -inf<T>() ? T(0) : largest;
      if (largest != before) {
        sum.scale(exp_down<T>(splat((before - base) * t)));
        again.scale(exp_down<T>(splat(before - base)));
      }
      V added = {}, added_again = {};
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        const V off = load(block + i) - base;
        added += exp_down<T>(off * t);
        if (twice) added_again += exp_down<T>(off);
      }
      sum.add(added), again.add(twice ? added_again : V{});
    }
    sum.join(), again.join();
    return finish(largest, sum.first(), twice ? again.first() : sum.first());
  }
  Found finish(double largest, double sum, double sum_at_one) const {
    double top = largest, all = 0;
    for (int64_t i = 0; i < job.k; ++i) top = index(i) == -1 ? top : larger(score(category(i)), top);
    for (int64_t i = 0; job.hard && i < job.k; ++i) all += index(i) == -1 ? 0 : exp_of(score(category(i)) - top);
    all += sum_at_one == 0 ? 0 : sum_at_one * exp_of(largest - top);
    return {largest, log_of_number(sum), top, log_of_number(all)};
  }

  void forward() {
    T* const to = out();
    const int64_t columns = job.columns();
    if (!mark()) {
      for (int64_t i = 0; i < columns; ++i) to[i] = nan<T>();
      to[job.sound()] = T(0);
      return;
    }
    const Found f = find();
    const double t = job.inv_temperature;
    for (int64_t i = 0; i < job.k; ++i)
      to[i] = index(i) == -1 ? -inf<T>() : static_cast<T>((score(category(i)) - f.top) * t);
    to[job.k] = f.log_sum == -inf<double>() ? -inf<T>() : static_cast<T>((f.largest - f.top) * t + f.log_sum);
    if (job.hard) {
      const int64_t c = category(job.k);
      to[job.k + 1] = c < 0 ? nan<T>() : static_cast<T>(f.log_all + (f.top - score(c)));
    }
    T* const rest = to + job.sound();
    rest[0] = static_cast<T>(job.n), rest[1] = static_cast<T>(f.largest), rest[2] = static_cast<T>(f.log_sum);
    rest[3] = static_cast<T>(f.top), rest[4] = static_cast<T>(f.log_all);
  }

  void put(int64_t category, double x) const {
    const T value = static_cast<T>(x);
    convert_out(job.grad, job.grad_type, row * job.n + category, &value, 1);
  }
  void silence() {
    const int64_t bytes = job.n * size_of(job.grad_type);
    memset(static_cast<char*>(job.grad) + row * bytes, 0, bytes);
  }
  // f of each score, a vector at a time, to the gradient.
  template <class F> void each_in_place(const F& f) {
    const T* const from = static_cast<const T*>(job.pred) + row * job.n;
    T* const to = static_cast<T*>(job.grad) + row * job.n;
    const int64_t skew = job.stream ? reinterpret_cast<uintptr_t>(to) % kBytes / sizeof(T) : 0;
    const int64_t head = skew ? kLanes<T> - skew : 0;
    int64_t i = head < job.n ? head : job.n;
    if (i) store_part(to, i, f(load_part(from, i, T(0))));
    for (; i + kLanes<T> <= job.n; i += kLanes<T>) {
      if (job.stream) stream(to + i, f(load(from + i)));
      else store<T>(to + i, f(load(from + i)));
    }
    if (i < job.n) store_part(to + i, job.n - i, f(load_part(from + i, job.n - i, T(0))));
  }
  template <class F> void each_converted(const F& f) {
    for (int64_t first = 0; first < job.n; first += kRowBlock<T>) {
      const int64_t left = job.n - first, count = read(first);
      for (int64_t i = 0; i < count; i += kLanes<T>) store<T>(block + i, f(load(block + i)));
      convert_out(job.grad, job.grad_type, row * job.n + first, block, left < kRowBlock<T> ? left : kRowBlock<T>);
    }
  }
  void backward() {
    const T* const g = static_cast<const T*>(job.head) + row * job.columns();
    bool any_head = false;
    for (int64_t i = 0; i <= job.k + job.hard; ++i) any_head |= g[i] != T(0);  // NaN is one
    const T* const rest = out() + job.sound();
    const bool tail = any_head && rest[2] != -inf<T>(), hard = any_head && job.hard;
    const T t = static_cast<T>(job.inv_temperature);
    const T of_tail = tail ? g[job.k] * t : T(0), of_hard = hard ? g[job.k + 1] : T(0);
    const T largest = tail ? rest[1] : T(0), log_sum = tail ? rest[2] : T(0);
    const auto gradient = [&](V x) {  // of scores that the teacher did not keep
      V out = tail ? of_tail * exp_down<T>(Min<T>(T(0), (x - largest) * t) - log_sum) : V{};
      if (hard) out += of_hard * exp_down<T>((x - rest[3]) - rest[4]);
      return out;
    };
    if (!any_head) silence();
    else if (job.type == type_of<T>() && job.grad_type == job.type) each_in_place(gradient);
    else each_converted(gradient);
    if (any_head) patch(g, rest, of_hard);
  }
  // What is not as that of the others: kept scores, and that of the class.
  void patch(const T* g, const T* rest, double of_hard) {
    if (job.stream) stream_fence();
    if (rest[0] == T(0)) {
      for (int64_t k = 0; k < job.n; ++k) put(k, nan<double>());
      return;
    }
    const int64_t c = job.hard ? category(job.k) : -1;
    bool kept = false;
    for (int64_t i = 0; i < job.k; ++i) {
      if (index(i) == -1) continue;
      const int64_t place = category(i);
      put(place, g[i] * job.inv_temperature + shared(place, rest, of_hard) - (place == c ? of_hard : 0));
      kept |= place == c;
    }
    if (c < 0 || kept) return;
    const bool tail = rest[2] != -inf<T>();
    const double t = job.inv_temperature;
    const double q = tail ? exp_of((score(c) - rest[1]) * t - rest[2]) : 0;
    put(c, (tail ? g[job.k] * t * q : 0) + shared(c, rest, of_hard) - of_hard);
  }
  double shared(int64_t place, const T* rest, double of_hard) const {
    return job.hard ? of_hard * exp_of((score(place) - rest[3]) - rest[4]) : 0;
  }
};

template <class T> void top_k_forward(const TopK& job, int64_t begin, int64_t end) {
  TopKRow<T> work(job, scratch<T>(TopKRow<T>::scratch_size(job)));
  for (work.row = begin; work.row < end; ++work.row) work.forward();
}
template <class T> void top_k_backward(const TopK& job, int64_t begin, int64_t end) {
  TopKRow<T> work(job, scratch<T>(TopKRow<T>::scratch_size(job)));
  for (work.row = begin; work.row < end; ++work.row) work.backward();
  if (job.stream) stream_fence();
}

}  // namespace
#endif  // GLUON_KL_TOP_K_H_
