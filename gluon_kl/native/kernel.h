// The divergence of rows and its gradients, for one instruction set: included once by each kernel_*.cc.
//
// The same formulas run in two layouts. Row: a vector holds neighbouring categories of one row (long contiguous rows).
// Lanes: a vector holds one category of neighbouring rows (few categories, or an axis that is not the last). Either
// hands out what it has in parts, a block of categories of one vector (or row) at a time: floats are added up within a
// block, blocks in double.
#ifndef GLUON_KL_KERNEL_H_
#define GLUON_KL_KERNEL_H_

#include "convert.h"
#include "job.h"
#include "vec.h"

namespace {

using namespace gluon_kl;

constexpr int64_t kRowBlock = 1024;       // categories
constexpr int64_t kLaneBlock = 64;
constexpr int64_t kFarBlock = 8;          // at most, where they lie far apart and so share few lines of the cache
constexpr int64_t kTileBytes = 32 << 10;  // of one side's tile
constexpr int64_t kWideBytes = 2 << 10;   // lanes in hand, of one category: half a page
constexpr int64_t kAhead = 128;           // how far to ask ahead along each of several rows
constexpr int64_t kRunRows = 64;          // this many neighbouring rows are worth reading where they lie

// Below this many categories, contiguous rows are worth transposing, which is done in vectors for floats alone.
template <class T> constexpr int64_t kShortRow = sizeof(T) == 4 && kBytes > 16 ? 16 * kLanes<T> : 48;

enum Sides { kPred = 1, kLabel = 2, kBoth = 3 };

// What stands in the lanes past the end of a row: it adds nothing to any sum.
template <class T> constexpr T padding(Space space, bool is_label) {
  return space != kProbs ? -inf<T>() : is_label ? T(0) : T(1);
}

// ---- layouts -----------------------------------------------------------------------------------------------------

// One row, of which `sweep` hands out neighbouring categories.
template <class T> struct Row {
  using V = Vec<T>;
  static constexpr int kMost = 1;  // vectors at once

  const Job& job;
  int64_t row;
  T* pred_buffer;  // kRowBlock each, used where the type has to be converted
  T* label_buffer;

  Row(const Job& j, int64_t r, T* scratch) : job(j), row(r), pred_buffer(scratch), label_buffer(scratch + kRowBlock) {}

  struct Part {
    const T *pred, *label;
    int64_t count;
    T pred_fill, label_fill;

    template <class Each> KL_INLINE void one(bool of_label, Each each) const {
      const T* const x = of_label ? label : pred;
      int64_t i = 0;
      for (; i + kLanes<T> <= count; i += kLanes<T>) {
        __builtin_prefetch(x + i + kRowBlock);
        each(load(x + i));
      }
      if (i < count) each(load_part(x + i, count - i, of_label ? label_fill : pred_fill));
    }
    // The largest of these and of `best`, in every lane; four at a time, since each step waits for the one before.
    V largest(bool of_label, V best) const {
      const T* const x = of_label ? label : pred;
      V m[4] = {best, best, best, best};
      int64_t i = 0;
      for (; i + 4 * kLanes<T> <= count; i += 4 * kLanes<T>)
        for (int j = 0; j < 4; ++j) m[j] = max_over<T>(m[j], load(x + i + j * kLanes<T>));
      for (; i + kLanes<T> <= count; i += kLanes<T>) m[0] = max_over<T>(m[0], load(x + i));
      if (i < count) m[1] = max_over<T>(m[1], load_part(x + i, count - i, -inf<T>()));
      return splat<T>(hmax<T>(max_over<T>(max_over<T>(m[0], m[1]), max_over<T>(m[2], m[3]))));
    }
    template <class Each> KL_INLINE void both(Each each) const {
      int64_t i = 0;
      for (; i + kLanes<T> <= count; i += kLanes<T>) {
        __builtin_prefetch(label + i + kRowBlock);
        each(load(pred + i), load(label + i));
      }
      if (i < count) each(load_part(pred + i, count - i, pred_fill), load_part(label + i, count - i, label_fill));
    }
    template <class Each> KL_INLINE void write(T* out, bool past_cache, Each each) const {
      int64_t i = 0;
      if (past_cache) {
        const int64_t skew = reinterpret_cast<uintptr_t>(out) % kBytes / sizeof(T);
        const int64_t head = skew ? kLanes<T> - skew : 0;
        if (head && head <= count) {
          store_part(out, head, each(load_part(pred, head, pred_fill), load_part(label, head, label_fill)));
          i = head;
        }
        if (head <= count)
          for (; i + kLanes<T> <= count; i += kLanes<T>) stream(out + i, each(load(pred + i), load(label + i)));
      }
      for (; i + kLanes<T> <= count; i += kLanes<T>) store<T>(out + i, each(load(pred + i), load(label + i)));
      if (i < count)
        store_part(out + i, count - i,
                   each(load_part(pred + i, count - i, pred_fill), load_part(label + i, count - i, label_fill)));
    }
  };

  int vectors() const { return 1; }
  const T* fetch(const void* side, Type type, int64_t k, int64_t count, T* buffer) const {
    const int64_t at = row * job.n + k;
    if (type == type_of<T>()) return static_cast<const T*>(side) + at;
    convert_in(buffer, side, type, at, count);
    return buffer;
  }
  Part part(int sides, int64_t k) const {
    const int64_t count = job.n - k < kRowBlock ? job.n - k : kRowBlock;
    return {sides & kPred ? fetch(job.pred, job.pred_type, k, count, pred_buffer) : nullptr,
            sides & kLabel ? fetch(job.label, job.label_type, k, count, label_buffer) : nullptr, count,
            padding<T>(job.pred_space, false), padding<T>(job.label_space, true)};
  }
  // f(vector, first category, part)
  template <class F> KL_INLINE void sweep(int sides, F f) const {
    for (int64_t k = 0; k < job.n; k += kRowBlock) f(0, k, part(sides, k));
  }
  // f(vector, put), where put(each) writes each(pred, label) to the gradient of one side.
  template <class F> KL_INLINE void write(void* grad, Type type, F f) const {
    const bool direct = type == type_of<T>();
    sweep(kBoth, [&](int, int64_t k, const Part& part) {
      T converted[kRowBlock];
      f(0, [&](auto each) {
        part.write(direct ? static_cast<T*>(grad) + row * job.n + k : converted, direct && job.stream, each);
      });
      if (!direct) convert_out(grad, type, row * job.n + k, converted, part.count);
    });
  }

  KL_INLINE void join(Sums<T>& sums) const { sums.join(); }
  void spread(const double* factor, V* g) const { g[0] = splat(static_cast<T>(*factor)); }
  V load_stat(int stat, int) const { return splat<T>(static_cast<const T*>(job.stats[stat])[row]); }
  void store_stat(int stat, int, V v) const {
    if (job.stats[stat]) static_cast<T*>(job.stats[stat])[row] = v[0];
  }
};

// `rows` rows of n numbers, one after the other, to n lines of `stride` lanes, and back.
template <class T> void transpose_in(const T* from, int64_t rows, int64_t n, T* to, int64_t stride) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4) {
    i = transpose_in_vectors(from, rows, n, to, stride);
  }
  for (; i < rows; ++i)
    for (int64_t k = 0; k < n; ++k) to[k * stride + i] = from[i * n + k];
}
template <class T> void transpose_out(const T* from, int64_t stride, int64_t rows, int64_t n, T* to) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4) {
    i = transpose_out_vectors(from, stride, rows, n, to);
  }
  for (; i < rows; ++i)
    for (int64_t k = 0; k < n; ++k) to[i * n + k] = from[k * stride + i];
}

// Neighbouring rows, a lane for each. They are read where they lie if they are neighbours in memory; else they are
// brought into a tile first, category-major, whole where it fits.
template <class T> struct Lanes {
  using V = Vec<T>;
  static constexpr int kMost = kWideBytes / kBytes;  // vectors at once

  const Job& job;
  int64_t begin, rows, stride;
  bool in_place, whole;
  T *pred, *label, *grad, *staging;

  static bool long_runs(const Job& job) { return job.inner >= kRunRows; }
  static int64_t lanes(const Job& job) {
    const int64_t most = kMost * kLanes<T>;
    if (long_runs(job)) return most;
    const int64_t fit = kTileBytes / (static_cast<int64_t>(sizeof(T)) * job.n) / kLanes<T> * kLanes<T>;
    return fit > most ? most : fit > kLanes<T> ? fit : kLanes<T>;
  }
  static bool fits(const Job& job) { return !long_runs(job) && job.n <= 4096; }
  static int64_t size(const Job& job) {
    return lanes(job) * (fits(job) ? job.n : long_runs(job) ? kFarBlock : kLaneBlock);
  }
  static int64_t scratch(const Job& job) { return 4 * size(job); }

  // As many rows from `first` on as are taken at once, at most up to `last`.
  Lanes(const Job& j, int64_t first, int64_t last, T* memory)
      : job(j), begin(first), rows(last - first < lanes(j) ? last - first : lanes(j)), in_place(false), whole(fits(j)),
        pred(memory), label(memory + size(j)), grad(memory + 2 * size(j)), staging(memory + 3 * size(j)) {
    if (long_runs(job)) {  // up to where the run ends; what fills no vector comes after the rest, by itself
      const int64_t left = job.inner - begin % job.inner;
      if (rows > left) rows = left;
      if (rows > kLanes<T>) rows -= rows % kLanes<T>;
      in_place = rows % kLanes<T> == 0 && job.pred_type == type_of<T>() && job.label_type == type_of<T>();
    }
    stride = (rows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    if (in_place || !whole) return;
    gather(pred, job.pred, job.pred_type, 0, job.n);
    gather(label, job.label, job.label_type, 0, job.n);
  }

  struct Part {
    const T *pred, *label;
    int64_t step, count;
    bool far;  // neighbours are pages apart

    // f(offset) for every category.
    template <class F> KL_INLINE void each_offset(F f) const {
      if (far) {  // an instruction of its own for each of several rows lets the processor see where each is going
#pragma GCC unroll 4
        for (int64_t i = 0; i < count; ++i) f(i * step);
      } else {
        for (int64_t i = 0; i < count; ++i) f(i * step);
      }
    }
    template <class Each> KL_INLINE void one(bool of_label, Each each) const {
      const T* const x = of_label ? label : pred;
      each_offset([&](int64_t at) { each(load(x + at)); });
    }
    KL_INLINE V largest(bool of_label, V best) const {
      const T* const x = of_label ? label : pred;
      each_offset([&](int64_t at) {
        if (far) __builtin_prefetch(x + at + kAhead);
        best = max_over<T>(best, load(x + at));
      });
      return best;
    }
    template <class Each> KL_INLINE void both(Each each) const {
      each_offset([&](int64_t at) {
        if (far) {
          __builtin_prefetch(pred + at + kAhead);
          __builtin_prefetch(label + at + kAhead);
        }
        each(load(pred + at), load(label + at));
      });
    }
  };

  int vectors() const { return static_cast<int>(stride / kLanes<T>); }
  // How many categories at once: equal shares of them, since the last block takes as long as a full one.
  int64_t block() const {
    if (!long_runs(job)) return kLaneBlock;
    const int64_t blocks = (job.n + kFarBlock - 1) / kFarBlock;
    return (job.n + blocks - 1) / blocks;
  }
  const T* fetch(const void* side, Type type, T* tile, int64_t k, int64_t count) const {
    if (in_place) return static_cast<const T*>(side) + address(k);
    if (whole) return tile + k * stride;
    gather(tile, side, type, k, count);
    return tile;
  }
  // Of category k of the first row, where rows are neighbours.
  int64_t address(int64_t k) const { return (begin / job.inner * job.n + k) * job.inner + begin % job.inner; }

  // f(vector, first category, part)
  template <class F> KL_INLINE void sweep(int sides, F f) const {
    const int64_t length = block(), step = in_place ? job.inner : stride;
    for (int64_t k = 0; k < job.n; k += length) {
      const int64_t count = job.n - k < length ? job.n - k : length;
      const T* const b = sides & kPred ? fetch(job.pred, job.pred_type, pred, k, count) : pred;
      const T* const a = sides & kLabel ? fetch(job.label, job.label_type, label, k, count) : label;
      for (int j = 0; j < vectors(); ++j)
        f(j, k, Part{b + j * kLanes<T>, a + j * kLanes<T>, step, count, in_place});
    }
  }
  // f(vector, put), where put(each) writes each(pred, label) to the gradient of one side.
  template <class F> KL_INLINE void write(void* side, Type type, F f) const {
    T* const out = in_place ? static_cast<T*>(side) + address(0) : grad;
    const int64_t step = in_place ? job.inner : stride;
    const bool past_cache = in_place && job.stream && reinterpret_cast<uintptr_t>(out) % kBytes == 0 &&
                            job.inner % kLanes<T> == 0;
    sweep(kBoth, [&](int j, int64_t k, const Part& part) {
      T* to = out + (in_place || whole ? k * step : 0) + j * kLanes<T>;
      f(j, [&](auto each) {
        part.both([&](V b, V a) {
          past_cache ? stream(to, each(b, a)) : store<T>(to, each(b, a));
          to += step;
        });
      });
      if (!in_place && !whole && j + 1 == vectors()) scatter(side, type, k, part.count);
    });
    if (!in_place && whole) scatter(side, type, 0, job.n);
  }

  KL_INLINE void join(Sums<T>&) const {}
  void spread(const double* factor, V* g) const {
    T lanes[kMost * kLanes<T>];
    for (int64_t i = 0; i < stride; ++i) lanes[i] = i < rows ? static_cast<T>(factor[i]) : T(0);
    for (int j = 0; j < vectors(); ++j) g[j] = load(lanes + j * kLanes<T>);
  }
  int64_t width(int j) const { return rows - j * kLanes<T> < kLanes<T> ? rows - j * kLanes<T> : kLanes<T>; }
  V load_stat(int stat, int j) const {
    const T* const from = static_cast<const T*>(job.stats[stat]) + begin + j * kLanes<T>;
    return width(j) == kLanes<T> ? load(from) : load_part(from, width(j), T(0));
  }
  void store_stat(int stat, int j, V v) const {
    if (!job.stats[stat]) return;
    T* const to = static_cast<T*>(job.stats[stat]) + begin + j * kLanes<T>;
    width(j) == kLanes<T> ? store<T>(to, v) : store_part(to, width(j), v);
  }

 private:
  // f(outer, inner, first lane, lanes) for each run of rows that are neighbours in memory.
  template <class F> KL_INLINE void runs(F f) const {
    for (int64_t i = 0; i < rows;) {
      const int64_t o = (begin + i) / job.inner, at = (begin + i) % job.inner;
      const int64_t left = job.inner - at, count = left < rows - i ? left : rows - i;
      f(o, at, i, count);
      i += count;
    }
  }
  void gather(T* to, const void* side, Type type, int64_t k0, int64_t count) const {
    if (stride != rows)
      for (int64_t k = 0; k < count; ++k)
        for (int64_t i = rows; i < stride; ++i) to[k * stride + i] = T(0);
    if (job.inner == 1) {  // whole rows: short ones, or they would not be here
      const T* from = static_cast<const T*>(side) + begin * job.n;
      if (type != type_of<T>()) {
        convert_in(staging, side, type, begin * job.n, rows * job.n);
        from = staging;
      }
      return transpose_in(from, rows, job.n, to, stride);
    }
    runs([&](int64_t o, int64_t at, int64_t i, int64_t m) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t from = (o * job.n + k0 + k) * job.inner + at;
        if (type == type_of<T>()) copy_run(to + k * stride + i, static_cast<const T*>(side) + from, m, false);
        else convert_in(to + k * stride + i, side, type, from, m);
      }
    });
  }
  void scatter(void* side, Type type, int64_t k0, int64_t count) const {
    if (job.inner == 1) {
      T* to = static_cast<T*>(side) + begin * job.n;
      const bool direct = type == type_of<T>() && !job.stream;
      transpose_out(grad, stride, rows, job.n, direct ? to : staging);
      if (direct) return;
      if (type == type_of<T>()) copy_run(to, staging, rows * job.n, true);
      else convert_out(side, type, begin * job.n, staging, rows * job.n);
      return;
    }
    runs([&](int64_t o, int64_t at, int64_t i, int64_t m) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t to = (o * job.n + k0 + k) * job.inner + at;
        if (type == type_of<T>()) copy_run(static_cast<T*>(side) + to, grad + k * stride + i, m, job.stream);
        else convert_out(side, type, to, grad + k * stride + i, m);
      }
    });
  }
};

// ---- formulas ----------------------------------------------------------------------------------------------------

// What is constant along a row, but for the temperatures. log q = (b - pred_max) * pred_t - pred_log, and the same for
// the label.
template <class T> struct Params {
  Vec<T> pred_max, pred_log, pred_scale;
  Vec<T> label_max, label_log, label_scale;
  Vec<T> gap_high, gap_low;  // log-sum-exp of the label minus that of the pred, in two parts
  Vec<T> mass;               // sum of the label; of the mixed divergence, sum of q times its derivative
  Vec<T> value;
};

// What is constant in a mixed divergence: see Terms::mixed. Index 0 is for places where pred is the smaller.
template <class T> struct Mixture {
  static constexpr int kTerms = sizeof(T) == 4 ? 9 : kSeriesTerms;
  static constexpr double kNear = 0.34;  // where the series holds: the next term is below 2e-8 (float), 1e-16 (double)
  T smaller[2], larger[2], series[2][kTerms];

  explicit Mixture(const Job& job) {
    if (job.beta == 0) return;
    smaller[0] = larger[1] = static_cast<T>(1 - job.beta);
    smaller[1] = larger[0] = static_cast<T>(job.beta);
    for (int i = 0; i < 2 * kTerms; ++i) series[i / kTerms][i % kTerms] = static_cast<T>(job.series[i / kTerms][i % kTerms]);
  }
};

// Of every vector in hand: largest logit (0 if there is none) and sum of exp((x - largest) * t), block by block.
template <class T, class L> void softmax_stats(const L& rows, bool label, Vec<T> t, Vec<T>* largest, Sums<T>* sum) {
  using V = Vec<T>;
  for (int j = 0; j < rows.vectors(); ++j) {
    largest[j] = splat(-inf<T>());
    sum[j].clear();
  }
  rows.sweep(label ? kLabel : kPred, [&](int j, int64_t k, const auto& part) {
    const V best = part.largest(label, largest[j]);
    const V base = best == -inf<T>() ? V{} : best;
    if (k) sum[j].scale(exp<T>((largest[j] - base) * t));
    V added = {};
    part.one(label, [&](V x) { added += exp<T>((x - base) * t); });
    sum[j].add(added);
    largest[j] = best;
  });
  for (int j = 0; j < rows.vectors(); ++j) {
    rows.join(sum[j]);
    largest[j] = largest[j] == -inf<T>() ? V{} : largest[j];
  }
}

// The terms of one row, or of one vector of rows.
template <class T> struct Terms {
  const Params<T> r;
  const Vec<T> pred_t, label_t;

  // label * (log label - log pred), the label's part left unnormalised (times the sum of exponentials).
  template <bool kPredLog, bool kLabelLog> KL_INLINE Vec<T> plain(Vec<T> b, Vec<T> a, Vec<T>& mass) const {
    const Vec<T> log_q = kPredLog ? (b - r.pred_max) * pred_t - r.pred_log : log<T>(b);
    const Vec<T> z = (a - r.label_max) * label_t;
    const Vec<T> p = kLabelLog ? exp<T>(z) : a;
    const Vec<T> log_p = kLabelLog ? z - r.label_log : log<T>(a);
    const Vec<T> term = p * (log_p - log_q);
    mass += p;
    return p == T(0) ? Vec<T>{} : term;
  }
  // log p - log q of two rows of logits, from their difference, so that near-equal rows keep their digits.
  KL_INLINE Vec<T> log_ratio(Vec<T> b, Vec<T> a) const {
    // What the subtraction rounds off is given back; where it is inf or NaN nothing is.
    const Vec<T> d = a - b, back = d - a, lost = (a - (d - back)) - (b + back);
    const Vec<T> u = (d * pred_t - r.gap_high) - r.gap_low;
    return u + (lost == lost ? lost * pred_t : Vec<T>{});
  }
  // p u + q - p with u = log p - log q: the same sum, since both rows add up to 1, and no term below 0.
  KL_INLINE Vec<T> both_logits(Vec<T> b, Vec<T> a) const {
    const Vec<T> q = exp<T>((b - r.pred_max) * pred_t) * r.pred_scale;
    const Vec<T> p = exp<T>((a - r.label_max) * label_t) * r.label_scale;
    const Vec<T> u = log_ratio(b, a);
    const Vec<T> far = p * (u - T(1)) + q;
    const Vec<T> near = p * gap<T>(u);
    Vec<T> term = (u < T(1)) & (u > T(-1)) ? near : far;
    term = p == T(0) ? q : term;
    return term < T(0) ? Vec<T>{} : term;
  }
  // A term of the divergence from the mixture m = beta p + (1 - beta) q, and its derivatives by p and by q.
  //
  // With s = |log p - log q|, w the share of the smaller side and v = 1 - w, M = m / larger = v + w e^-s, and the term is
  // larger * f(s), f = -M log M - w s e^-s. Where w e^-s outweighs v, log M + s = log1p(v (e^s - 1)) has the digits that
  // the sum would lose. Near s = 0, f is a series: w v s^2 / 2 + ...
  struct Mixed { Vec<T> term, by_p, by_q, p, q; };
  template <bool kLabelLog, bool kBothLogits> KL_INLINE Mixed mixed(Vec<T> b, Vec<T> a, const Mixture<T>& mix) const {
    using V = Vec<T>;
    const V z_q = (b - r.pred_max) * pred_t, q = exp<T>(z_q) * r.pred_scale;
    const V z_p = (a - r.label_max) * label_t, p = kLabelLog ? exp<T>(z_p) * r.label_scale : a;
    const V ratio = kBothLogits ? log_ratio(b, a) : (kLabelLog ? z_p - r.label_log : log<T>(a)) - (z_q - r.pred_log);
    const V u = (p == T(0)) & (q == T(0)) ? V{} : ratio;
    const auto label_larger = u >= T(0);
    // Beyond a ratio of e^80 the smaller side adds nothing; the bound keeps its slope finite.
    const V s = least<T>(T(80), label_larger ? u : -u);
    const V w = label_larger ? splat(mix.smaller[0]) : splat(mix.smaller[1]);
    const V v = label_larger ? splat(mix.larger[0]) : splat(mix.larger[1]);
    const V e = exp<T>(-s), m = v + w * e;
    const auto near = s < T(Mixture<T>::kNear), heavy = (w > T(0.5)) & (w * e > v);
    const V d = heavy ? s : -s;
    const V x = (heavy ? v : w) * (near ? exp_slope(d) * d : (heavy ? T(1) / e : e) - T(1));
    const V y = (x > T(-0.29)) & (x < T(0.5)) ? log1p_poly(x, V{}) : log<T>(heavy ? x + T(1) : m);
    V f = label_larger ? splat(mix.series[0][Mixture<T>::kTerms - 1]) : splat(mix.series[1][Mixture<T>::kTerms - 1]);
    for (int i = Mixture<T>::kTerms - 2; i >= 0; --i)
      f = f * s + (label_larger ? splat(mix.series[0][i]) : splat(mix.series[1][i]));
    f = near ? f * (s * s) : heavy ? v * s - m * y : -m * y - w * s * e;
    const V term = (label_larger ? p : q) * (f < T(0) ? V{} : f);
    const V larger = -v * (heavy ? y - s : y), smaller = -w * (heavy ? y : y + s);
    return {term, label_larger ? larger : smaller, label_larger ? smaller : larger, p, q};
  }
  // Gradients of the loss, times g.
  template <Space kPredSpace, bool kLabelLog> KL_INLINE Vec<T> to_pred(Vec<T> b, Vec<T> a, Vec<T> g, Vec<T> pull) const {
    const Vec<T> p = kLabelLog ? exp<T>((a - r.label_max) * label_t) * r.label_scale : a;
    Vec<T> x;
    if (kPredSpace == kLogits) {
      const Vec<T> q = exp<T>((b - r.pred_max) * pred_t) * pull;
      x = g * pred_t * ((pull == T(0) ? Vec<T>{} : q) - p);
    } else if (kPredSpace == kLogProbs) {
      x = -g * p;
    } else {
      x = p == T(0) ? Vec<T>{} : -g * (p / b);
    }
    return g == T(0) ? Vec<T>{} : x;
  }
  template <bool kPredLog, Space kLabelSpace, bool kBothLogits>
  KL_INLINE Vec<T> to_label(Vec<T> b, Vec<T> a, Vec<T> g, T log_epsilon) const {
    const Vec<T> log_q = kPredLog ? (b - r.pred_max) * pred_t - r.pred_log : log<T>(b);
    Vec<T> x;
    if (kLabelSpace == kProbs) {
      const Vec<T> at_zero = log_q > -inf<T>() ? log_epsilon - log_q : Vec<T>{};
      x = g * (a == T(0) ? at_zero : log<T>(a) - log_q + T(1));
    } else {
      const Vec<T> z = (a - r.label_max) * label_t;
      const Vec<T> p = exp<T>(z) * r.label_scale;
      const Vec<T> u = kBothLogits ? log_ratio(b, a) : (z - r.label_log) - log_q;
      x = kLabelSpace == kLogits ? g * label_t * (p * (u - r.value)) : g * (p * (u + T(1)));
      x = p == T(0) ? Vec<T>{} : x;
    }
    return g == T(0) ? Vec<T>{} : x;
  }
};

// Everything about the rows in hand that the value or the gradients need and that was not kept.
template <class T, class L> struct Work {
  using V = Vec<T>;
  const L& rows;
  const Job& job;
  const V pred_t, label_t;
  const Mixture<T> mix;
  Params<T> r[L::kMost];
  Sums<T> label_sum[L::kMost];

  explicit Work(const L& l)
      : rows(l), job(l.job), pred_t(splat(static_cast<T>(job.pred_space == kLogits ? job.inv_temperature : 1))),
        label_t(splat(static_cast<T>(job.label_space == kLogits ? job.inv_temperature : 1))), mix(job) {
    const V zero = {}, one = splat(T(1));
    for (int j = 0; j < rows.vectors(); ++j) r[j] = {zero, zero, one, zero, zero, one, zero, zero, one, zero};
  }
  Terms<T> terms(int j) const { return {r[j], pred_t, label_t}; }
  bool both_logits() const { return job.pred_space == kLogits && job.label_space == kLogits; }

  // From the sums of exponentials and the largest logits.
  void normalise(Params<T>& r, V pred_sum, V label_sum) const {
    if (job.pred_space == kLogits) {
      r.pred_log = log<T>(pred_sum);
      r.pred_scale = T(1) / pred_sum;
    }
    if (job.label_space == kLogits) {
      r.label_log = log<T>(label_sum);
      r.label_scale = T(1) / label_sum;
    }
    if (both_logits()) {  // exact differences and sums in two parts: a common shift of a side costs no digits
      const V d = r.label_max - r.pred_max, back = d - r.label_max;
      const V d_low = (r.label_max - (d - back)) - (r.pred_max + back);
      const V x = d * pred_t, y = r.label_log - r.pred_log;
      const V s = x + y, part = s - x;
      r.gap_high = s;
      r.gap_low = ((x - (s - part)) + (y - part)) + d_low * pred_t;
    }
  }
  void compute_stats() {
    V largest[L::kMost], pred_total[L::kMost];
    if (job.pred_space == kLogits) {
      Sums<T> sum[L::kMost];
      softmax_stats<T>(rows, false, pred_t, largest, sum);
      for (int j = 0; j < rows.vectors(); ++j) {
        r[j].pred_max = largest[j];
        pred_total[j] = sum[j].narrow();
        rows.store_stat(kPredMax, j, largest[j]);
        rows.store_stat(kPredSum, j, pred_total[j]);
      }
    }
    if (job.label_space == kLogits) softmax_stats<T>(rows, true, label_t, largest, label_sum);
    for (int j = 0; j < rows.vectors(); ++j) {
      V label_total = {};
      if (job.label_space == kLogits) {
        label_total = label_sum[j].narrow();
        r[j].label_max = largest[j];
        rows.store_stat(kLabelMax, j, largest[j]);
        rows.store_stat(kLabelSum, j, label_total);
      }
      normalise(r[j], pred_total[j], label_total);
    }
  }
  void load_stats() {
    for (int j = 0; j < rows.vectors(); ++j) {
      V pred_total = {}, label_total = {};
      if (job.pred_space == kLogits) {
        r[j].pred_max = rows.load_stat(kPredMax, j);
        pred_total = rows.load_stat(kPredSum, j);
      }
      if (job.label_space == kLogits) {
        r[j].label_max = rows.load_stat(kLabelMax, j);
        label_total = rows.load_stat(kLabelSum, j);
      }
      normalise(r[j], pred_total, label_total);
    }
  }

  template <bool kPredLog, bool kLabelLog> void sum_terms(Sums<T>* total, Sums<T>* mass) const {
    rows.sweep(kBoth, [&](int j, int64_t, const auto& part) {
      const Terms<T> t = terms(j);
      V added = {}, added_mass = {};
      part.both([&](V b, V a) { added += t.template plain<kPredLog, kLabelLog>(b, a, added_mass); });
      total[j].add(added);
      mass[j].add(added_mass);
    });
  }
  void sum_terms_of_logits(Sums<T>* total) const {
    rows.sweep(kBoth, [&](int j, int64_t, const auto& part) {
      const Terms<T> t = terms(j);
      V added = {};
      part.both([&](V b, V a) { added += t.both_logits(b, a); });
      total[j].add(added);
    });
  }
  template <bool kLabelLog, bool kBothLogits> void sum_mixed_terms(Sums<T>* total, Sums<T>* slope) const {
    rows.sweep(kBoth, [&](int j, int64_t, const auto& part) {
      const Terms<T> t = terms(j);
      V added = {}, added_slope = {};
      part.both([&](V b, V a) {
        const auto x = t.template mixed<kLabelLog, kBothLogits>(b, a, mix);
        added += x.term;
        added_slope += x.q * x.by_q;
      });
      total[j].add(added);
      slope[j].add(added_slope);
    });
  }
  // The values in double to take(vector, values); sets and keeps the stats that go with them.
  template <class Take> void value(Take take) {
    Sums<T> total[L::kMost], mass[L::kMost];
    for (int j = 0; j < rows.vectors(); ++j) {
      total[j].clear();
      mass[j].clear();
    }
    const bool label_log = job.label_space != kProbs;
    if (job.beta > 0) both_logits() ? sum_mixed_terms<true, true>(total, mass)
                      : label_log   ? sum_mixed_terms<true, false>(total, mass)
                                    : sum_mixed_terms<false, false>(total, mass);
    else if (both_logits()) sum_terms_of_logits(total);
    else if (job.pred_space != kProbs) label_log ? sum_terms<true, true>(total, mass) : sum_terms<true, false>(total, mass);
    else label_log ? sum_terms<false, true>(total, mass) : sum_terms<false, false>(total, mass);
    for (int j = 0; j < rows.vectors(); ++j) {
      rows.join(total[j]);
      if (job.beta > 0 || (job.label_space != kLogits && job.pred_space == kLogits)) {
        rows.join(mass[j]);
        r[j].mass = mass[j].narrow();
        rows.store_stat(kMass, j, r[j].mass);
      }
      if (job.beta == 0 && job.label_space == kLogits && job.pred_space != kLogits) total[j].divide(label_sum[j]);
      r[j].value = total[j].narrow();
      rows.store_stat(kValue, j, r[j].value);
      take(j, total[j]);
    }
  }
  // Sum of the label alone, where the backward has to find it again.
  void compute_mass() {
    Sums<T> mass[L::kMost];
    for (int j = 0; j < rows.vectors(); ++j) mass[j].clear();
    const bool label_log = job.label_space != kProbs;
    rows.sweep(kLabel, [&](int j, int64_t, const auto& part) {
      V added = {};
      if (label_log) part.one(true, [&](V a) { added += exp<T>(a); });
      else part.one(true, [&](V a) { added += a; });
      mass[j].add(added);
    });
    for (int j = 0; j < rows.vectors(); ++j) {
      rows.join(mass[j]);
      r[j].mass = mass[j].narrow();
    }
  }
  // Brings up what the wanted gradients need: kept by the forward, or found again.
  void prepare_gradients() {
    const bool softmax = job.pred_space == kLogits || job.label_space == kLogits;
    const bool kept = job.stats[job.pred_space == kLogits ? kPredMax : kLabelMax] != nullptr;
    if (softmax) kept ? load_stats() : compute_stats();
    if (job.beta > 0) {
      if (!softmax) return;
      if (!job.stats[kValue]) return value([](int, const Sums<T>&) {});
      for (int j = 0; j < rows.vectors(); ++j) {
        r[j].mass = rows.load_stat(kMass, j);
        r[j].value = rows.load_stat(kValue, j);
      }
      return;
    }
    if (job.pred_space == kLogits && job.label_space != kLogits && job.pred_grad) {
      if (!job.stats[kMass]) compute_mass();
      else for (int j = 0; j < rows.vectors(); ++j) r[j].mass = rows.load_stat(kMass, j);
    }
    if (job.label_space == kLogits && job.label_grad) {
      if (!job.stats[kValue]) value([](int, const Sums<T>&) {});
      else for (int j = 0; j < rows.vectors(); ++j) r[j].value = rows.load_stat(kValue, j);
    }
  }

  // g: what the gradients of every vector are multiplied by.
  template <Space kPredSpace, bool kLabelLog> void pred_gradient(const V* g) const {
    rows.write(job.pred_grad, job.pred_type, [&](int j, auto put) {
      const Terms<T> t = terms(j);
      const V gj = g[j], pull = t.r.mass == T(0) ? V{} : t.r.mass * t.r.pred_scale;  // no label: no pull on any logit
      put([&](V b, V a) { return t.template to_pred<kPredSpace, kLabelLog>(b, a, gj, pull); });
    });
  }
  template <bool kPredLog, Space kLabelSpace, bool kBothLogits> void label_gradient(const V* g) const {
    const T log_epsilon = static_cast<T>(job.log_epsilon);
    rows.write(job.label_grad, job.label_type, [&](int j, auto put) {
      const Terms<T> t = terms(j);
      const V gj = g[j];
      put([&](V b, V a) { return t.template to_label<kPredLog, kLabelSpace, kBothLogits>(b, a, gj, log_epsilon); });
    });
  }
  // The gradient to the label or to pred. Through a softmax, what is common to all categories has no pull.
  template <bool kOfLabel, bool kLabelLog, bool kBothLogits> void mixed_gradient(const V* g) const {
    rows.write(kOfLabel ? job.label_grad : job.pred_grad, kOfLabel ? job.label_type : job.pred_type, [&](int j, auto put) {
      const Terms<T> t = terms(j);
      const bool logits = (kOfLabel ? job.label_space : job.pred_space) == kLogits;
      const V gt = g[j] * (kOfLabel ? label_t : pred_t), common = !logits ? V{} : kOfLabel ? t.r.value - t.r.mass : t.r.mass;
      put([&](V b, V a) {
        const auto x = t.template mixed<kLabelLog, kBothLogits>(b, a, mix);
        const V side = kOfLabel ? x.p : x.q, by = kOfLabel ? x.by_p : x.by_q;
        const V slope = kOfLabel && !kLabelLog ? by : side * (by - common);
        return gt == T(0) ? V{} : gt * slope;
      });
    });
  }
  template <bool kOfLabel> void write_mixed_gradient(const V* g) const {
    if (both_logits()) mixed_gradient<kOfLabel, true, true>(g);
    else if (job.label_space != kProbs) mixed_gradient<kOfLabel, true, false>(g);
    else mixed_gradient<kOfLabel, false, false>(g);
  }
  void write_pred_gradient(const V* g) const {
    if (job.beta > 0) return write_mixed_gradient<false>(g);
    const bool label_log = job.label_space != kProbs;
    if (job.pred_space == kLogits) label_log ? pred_gradient<kLogits, true>(g) : pred_gradient<kLogits, false>(g);
    else if (job.pred_space == kLogProbs) label_log ? pred_gradient<kLogProbs, true>(g) : pred_gradient<kLogProbs, false>(g);
    else label_log ? pred_gradient<kProbs, true>(g) : pred_gradient<kProbs, false>(g);
  }
  void write_label_gradient(const V* g) const {
    if (job.beta > 0) return write_mixed_gradient<true>(g);
    const bool pred_log = job.pred_space != kProbs;
    if (both_logits()) label_gradient<true, kLogits, true>(g);
    else if (job.label_space == kLogits) pred_log ? label_gradient<true, kLogits, false>(g) : label_gradient<false, kLogits, false>(g);
    else if (job.label_space == kLogProbs) pred_log ? label_gradient<true, kLogProbs, false>(g) : label_gradient<false, kLogProbs, false>(g);
    else pred_log ? label_gradient<true, kProbs, false>(g) : label_gradient<false, kProbs, false>(g);
  }
};

// ---- entry points ------------------------------------------------------------------------------------------------

template <class T> bool by_rows(const Job& job) { return job.inner == 1 && job.n >= kShortRow<T>; }

// Working memory that a thread keeps: a fresh allocation would bring fresh pages each time.
template <class T> T* scratch(int64_t count) {
  struct Held {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Held() { free(memory); }
  };
  static thread_local Held held;
  const size_t bytes = count * sizeof(T);
  if (bytes > held.bytes) {
    free(held.memory);
    held.memory = nullptr;
    held.bytes = 0;
    if (posix_memalign(&held.memory, 64, bytes)) abort();  // a few hundred KB at most
    held.bytes = bytes;
  }
  return static_cast<T*>(held.memory);
}

template <class T> void forward(const Job& job, int64_t begin, int64_t end, double* value) {
  if (by_rows<T>(job)) {
    alignas(64) T buffers[2 * kRowBlock];
    for (int64_t row = begin; row < end; ++row) {
      const Row<T> rows(job, row, buffers);
      Work<T, Row<T>> work(rows);
      work.compute_stats();
      work.value([&](int, const Sums<T>& sums) { value[row - begin] = sums.first(); });
    }
    return;
  }
  T* const memory = scratch<T>(Lanes<T>::scratch(job));
  for (int64_t row = begin; row < end;) {
    const Lanes<T> rows(job, row, end, memory);
    Work<T, Lanes<T>> work(rows);
    work.compute_stats();
    work.value([&](int j, const Sums<T>& sums) { sums.get(value + (row - begin) + j * kLanes<T>, rows.width(j)); });
    row += rows.rows;
  }
}

template <class T, class L> void backward_rows(const L& rows, const double* factor) {
  Work<T, L> work(rows);
  work.prepare_gradients();
  Vec<T> g[L::kMost];
  rows.spread(factor, g);
  if (rows.job.pred_grad) work.write_pred_gradient(g);
  if (rows.job.label_grad) work.write_label_gradient(g);
}

template <class T> void backward(const Job& job, int64_t begin, int64_t end, const double* factor) {
  if (by_rows<T>(job)) {
    alignas(64) T buffers[2 * kRowBlock];
    for (int64_t row = begin; row < end; ++row) backward_rows<T>(Row<T>(job, row, buffers), factor + (row - begin));
  } else {
    T* const memory = scratch<T>(Lanes<T>::scratch(job));
    for (int64_t row = begin; row < end;) {
      const Lanes<T> rows(job, row, end, memory);
      backward_rows<T>(rows, factor + (row - begin));
      row += rows.rows;
    }
  }
  if (job.stream) stream_fence();
}

template <class T> int64_t grain(const Job& job) {
  if (!by_rows<T>(job)) return Lanes<T>::lanes(job);
  const int64_t rows = (int64_t(1) << 15) / job.n;
  return rows > kMaxGrain ? kMaxGrain : rows > 1 ? rows : 1;
}

template <class T> constexpr Kernels table(const char* isa) { return {isa, forward<T>, backward<T>, grain<T>}; }

}  // namespace
#endif  // GLUON_KL_KERNEL_H_
