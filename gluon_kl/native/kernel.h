// The divergence of rows and its gradients, for one instruction set: included once by each kernel_*.cc.
//
// The same formulas run in two layouts. Row: a vector holds neighbouring categories of one row (long contiguous rows).
// Lanes: a vector holds one category of neighbouring rows, brought into a small tile first (few categories, or an
// axis that is not the last). In both, `sweep` visits the categories in blocks: floats are added up within a block,
// blocks in double.
#ifndef GLUON_KL_KERNEL_H_
#define GLUON_KL_KERNEL_H_

#include "convert.h"
#include "job.h"
#include "vec.h"

namespace {

using namespace gluon_kl;

constexpr int64_t kRowBlock = 1024;      // categories
constexpr int64_t kLaneBlock = 64;
constexpr int64_t kTileBytes = 32 << 10;  // of one side's tile
constexpr int64_t kShortRow = 48;        // below this many categories, contiguous rows are worth transposing

// What stands in the lanes past the end of a row: it adds nothing to any sum.
template <class T> constexpr T padding(Space space, bool is_label) {
  return space != kProbs ? -inf<T>() : is_label ? T(0) : T(1);
}

// ---- layouts -----------------------------------------------------------------------------------------------------

template <class T> struct Row {
  using V = Vec<T>;
  const Job& job;
  int64_t row;
  T* pred_buffer;   // kRowBlock each, used where the type has to be converted
  T* label_buffer;

  Row(const Job& j, int64_t r, T* scratch) : job(j), row(r), pred_buffer(scratch), label_buffer(scratch + kRowBlock) {}

  const T* fetch(const void* side, Type type, int64_t k, int64_t count, T* buffer) const {
    const int64_t at = row * job.n + k;
    if (type == type_of<T>()) return static_cast<const T*>(side) + at;
    convert_in(buffer, side, type, at, count);
    return buffer;
  }

  // f(start): called once per block, with g(x) to be called on every vector of one side.
  template <class Block> KL_INLINE void blocks(Block block) const {
    for (int64_t k = 0; k < job.n; k += kRowBlock) block(k, job.n - k < kRowBlock ? job.n - k : kRowBlock);
  }
  template <class Each> KL_INLINE void one(bool label, int64_t k, int64_t count, Each each) const {
    const T* x = label ? fetch(job.label, job.label_type, k, count, label_buffer)
                       : fetch(job.pred, job.pred_type, k, count, pred_buffer);
    const T fill = padding<T>(label ? job.label_space : job.pred_space, label);
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      __builtin_prefetch(x + i + kRowBlock);
      each(load(x + i));
    }
    if (i < count) each(load_part(x + i, count - i, fill));
  }
  // Largest of a block and of `best`, in every lane; four at a time, since each step waits for the one before.
  V largest(bool label, int64_t k, int64_t count, V best) const {
    const T* x = label ? fetch(job.label, job.label_type, k, count, label_buffer)
                       : fetch(job.pred, job.pred_type, k, count, pred_buffer);
    V m[4] = {best, best, best, best};
    int64_t i = 0;
    for (; i + 4 * kLanes<T> <= count; i += 4 * kLanes<T>)
      for (int j = 0; j < 4; ++j) m[j] = max_over<T>(m[j], load(x + i + j * kLanes<T>));
    for (; i + kLanes<T> <= count; i += kLanes<T>) m[0] = max_over<T>(m[0], load(x + i));
    if (i < count) m[1] = max_over<T>(m[1], load_part(x + i, count - i, -inf<T>()));
    return splat<T>(hmax<T>(max_over<T>(max_over<T>(m[0], m[1]), max_over<T>(m[2], m[3]))));
  }
  template <class Each> KL_INLINE void both(int64_t k, int64_t count, Each each) const {
    const T* b = fetch(job.pred, job.pred_type, k, count, pred_buffer);
    const T* a = fetch(job.label, job.label_type, k, count, label_buffer);
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      __builtin_prefetch(a + i + kRowBlock);
      each(load(b + i), load(a + i));
    }
    if (i < count) {
      each(load_part(b + i, count - i, padding<T>(job.pred_space, false)),
           load_part(a + i, count - i, padding<T>(job.label_space, true)));
    }
  }
  // Writes each(pred, label) to the gradient of one side.
  template <class Each> KL_INLINE void write(void* grad, Type type, Each each) const {
    blocks([&](int64_t k, int64_t count) {
      const T* b = fetch(job.pred, job.pred_type, k, count, pred_buffer);
      const T* a = fetch(job.label, job.label_type, k, count, label_buffer);
      const T b_fill = padding<T>(job.pred_space, false), a_fill = padding<T>(job.label_space, true);
      T converted[kRowBlock];
      const bool direct = type == type_of<T>();
      T* out = direct ? static_cast<T*>(grad) + row * job.n + k : converted;
      int64_t i = 0;
      if (direct && job.stream) {
        const int64_t skew = reinterpret_cast<uintptr_t>(out) % kBytes / sizeof(T);
        const int64_t head = skew ? kLanes<T> - skew : 0;
        if (head && head <= count) {
          store_part(out, head, each(load_part(b, head, b_fill), load_part(a, head, a_fill)));
          i = head;
        }
        if (head <= count)
          for (; i + kLanes<T> <= count; i += kLanes<T>) stream(out + i, each(load(b + i), load(a + i)));
      }
      for (; i + kLanes<T> <= count; i += kLanes<T>) store<T>(out + i, each(load(b + i), load(a + i)));
      if (i < count)
        store_part(out + i, count - i, each(load_part(b + i, count - i, b_fill), load_part(a + i, count - i, a_fill)));
      if (!direct) convert_out(grad, type, row * job.n + k, converted, count);
    });
  }

  KL_INLINE void join(Sums<T>& sums) const { sums.join(); }
  V load_stat(int stat) const { return splat<T>(static_cast<const T*>(job.stats[stat])[row]); }
  void store_stat(int stat, V v) const {
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

// A tile of `rows` rows from `begin` on, category-major with `stride` lanes; held whole where it fits.
template <class T> struct Tile {
  const Job& job;
  int64_t begin, rows, end, stride;
  bool held;
  T *pred, *label, *grad, *staging;

  static int64_t lanes(const Job& job) {
    int64_t fit = kTileBytes / (static_cast<int64_t>(sizeof(T)) * job.n);
    fit = fit < kMaxGrain ? fit / kLanes<T> * kLanes<T> : kMaxGrain;
    return fit > kLanes<T> ? fit : kLanes<T>;
  }
  static bool fits(const Job& job) { return job.n <= 4096; }
  static int64_t size(const Job& job) { return lanes(job) * (fits(job) ? job.n : kLaneBlock); }
  static int64_t scratch(const Job& job) { return 4 * size(job); }

  // Rows [first, last), at most lanes(job) of them.
  Tile(const Job& j, int64_t first, int64_t last, T* memory)
      : job(j), begin(first), rows(last - first < lanes(j) ? last - first : lanes(j)), end(last),
        stride((rows + kLanes<T> - 1) / kLanes<T> * kLanes<T>), held(fits(j)), pred(memory), label(memory + size(j)),
        grad(memory + 2 * size(j)), staging(memory + 3 * size(j)) {
    if (held) {
      gather(pred, job.pred, job.pred_type, 0, job.n);
      gather(label, job.label, job.label_type, 0, job.n);
    }
  }

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
        if (type == type_of<T>()) {
          // Runs lie too far apart for the processor to guess the next; ask for the one after it.
          const T* const run = static_cast<const T*>(side) + from;
          for (int64_t c = 0; c < m; c += 64 / sizeof(T)) __builtin_prefetch(run + 2 * job.inner + c);
          copy_run(to + k * stride + i, run, m, false);
        }
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

template <class T> struct Lanes {
  using V = Vec<T>;
  const Job& job;
  const Tile<T>& tile;
  int64_t lane;  // first of the tile's lanes that are in hand

  Lanes(const Tile<T>& t, int64_t first) : job(t.job), tile(t), lane(first) {}

  template <class Block> KL_INLINE void blocks(Block block) const {
    for (int64_t k = 0; k < job.n; k += kLaneBlock) block(k, job.n - k < kLaneBlock ? job.n - k : kLaneBlock);
  }
  const T* fetch(bool label, int64_t k, int64_t count) const {
    T* held = label ? tile.label : tile.pred;
    if (tile.held) return held + k * tile.stride + lane;
    tile.gather(held, label ? job.label : job.pred, label ? job.label_type : job.pred_type, k, count);
    return held + lane;
  }
  template <class Each> KL_INLINE void one(bool label, int64_t k, int64_t count, Each each) const {
    const T* x = fetch(label, k, count);
    for (int64_t i = 0; i < count; ++i) each(load(x + i * tile.stride));
  }
  V largest(bool label, int64_t k, int64_t count, V best) const {
    const T* x = fetch(label, k, count);
    for (int64_t i = 0; i < count; ++i) best = max_over<T>(best, load(x + i * tile.stride));
    return best;
  }
  template <class Each> KL_INLINE void both(int64_t k, int64_t count, Each each) const {
    const T *b = fetch(false, k, count), *a = fetch(true, k, count);
    for (int64_t i = 0; i < count; ++i) each(load(b + i * tile.stride), load(a + i * tile.stride));
  }
  template <class Each> KL_INLINE void write(void* grad, Type type, Each each) const {
    blocks([&](int64_t k, int64_t count) {
      const T *b = fetch(false, k, count), *a = fetch(true, k, count);
      T* out = tile.held ? tile.grad + k * tile.stride + lane : tile.grad + lane;
      for (int64_t i = 0; i < count; ++i)
        store<T>(out + i * tile.stride, each(load(b + i * tile.stride), load(a + i * tile.stride)));
      if (!tile.held) tile.scatter(grad, type, k, count);
    });
  }

  KL_INLINE void join(Sums<T>&) const {}
  int64_t width() const { return tile.rows - lane < kLanes<T> ? tile.rows - lane : kLanes<T>; }
  V load_stat(int stat) const {
    V v = {};
    memcpy(&v, static_cast<const T*>(job.stats[stat]) + tile.begin + lane, width() * sizeof(T));
    return v;
  }
  void store_stat(int stat, V v) const {
    if (job.stats[stat]) memcpy(static_cast<T*>(job.stats[stat]) + tile.begin + lane, &v, width() * sizeof(T));
  }
};

// ---- formulas ----------------------------------------------------------------------------------------------------

// What is constant along a row. log q = (b - pred_max) * pred_t - pred_log, and the same for the label.
template <class T> struct Params {
  Vec<T> pred_max = {}, pred_log = {}, pred_scale = {}, pred_t = splat(T(1));
  Vec<T> label_max = {}, label_log = {}, label_scale = splat(T(1)), label_t = splat(T(1));
  Vec<T> gap_high = {}, gap_low = {};  // log-sum-exp of the label minus that of the pred, in two parts
  Vec<T> mass = splat(T(1));           // sum of the label
  Vec<T> value = {};
};

// Largest logit (0 if there is none) and sum of exp((x - largest) * t), block by block.
template <class T, class L>
void softmax_stats(const L& rows, bool label, Vec<T> t, Vec<T>& largest, Sums<T>& sum) {
  using V = Vec<T>;
  V best = splat(-inf<T>());
  rows.blocks([&](int64_t k, int64_t count) {
    const V new_best = rows.largest(label, k, count, best);
    const V base = new_best == -inf<T>() ? V{} : new_best;
    if (k) sum.scale(exp<T>((best - base) * t));
    V part = {};
    rows.one(label, k, count, [&](V x) { part += exp<T>((x - base) * t); });
    sum.add(part);
    best = new_best;
  });
  rows.join(sum);
  largest = best == -inf<T>() ? V{} : best;
}

template <class T> struct Terms {
  // label * (log label - log pred), the label's part left unnormalised (times the sum of exponentials).
  template <bool kPredLog, bool kLabelLog>
  static KL_INLINE Vec<T> plain(Vec<T> b, Vec<T> a, const Params<T>& r, Vec<T>& mass) {
    const Vec<T> log_q = kPredLog ? (b - r.pred_max) * r.pred_t - r.pred_log : log<T>(b);
    const Vec<T> z = (a - r.label_max) * r.label_t;
    const Vec<T> p = kLabelLog ? exp<T>(z) : a;
    const Vec<T> log_p = kLabelLog ? z - r.label_log : log<T>(a);
    const Vec<T> term = p * (log_p - log_q);
    mass += p;
    return p == T(0) ? Vec<T>{} : term;
  }
  // log p - log q of two rows of logits, from their difference, so that near-equal rows keep their digits.
  static KL_INLINE Vec<T> log_ratio(Vec<T> b, Vec<T> a, const Params<T>& r) {
    // What the subtraction rounds off is given back; where it is inf or NaN nothing is.
    const Vec<T> d = a - b, back = d - a, lost = (a - (d - back)) - (b + back);
    const Vec<T> u = (d * r.pred_t - r.gap_high) - r.gap_low;
    return u + (lost == lost ? lost * r.pred_t : Vec<T>{});
  }
  // p u + q - p with u = log p - log q: the same sum, since both rows add up to 1, and no term below 0.
  static KL_INLINE Vec<T> both_logits(Vec<T> b, Vec<T> a, const Params<T>& r) {
    const Vec<T> q = exp<T>((b - r.pred_max) * r.pred_t) * r.pred_scale;
    const Vec<T> p = exp<T>((a - r.label_max) * r.label_t) * r.label_scale;
    const Vec<T> u = log_ratio(b, a, r);
    const Vec<T> far = p * (u - T(1)) + q;
    const Vec<T> near = p * gap<T>(u);
    Vec<T> term = (u < T(1)) & (u > T(-1)) ? near : far;
    term = p == T(0) ? q : term;
    return term < T(0) ? Vec<T>{} : term;
  }
};

// Everything about the rows in hand that the value or the gradients need and that was not kept.
template <class T, class L> struct Rows {
  using V = Vec<T>;
  const L& rows;
  const Job& job;
  Params<T> r;
  Sums<T> label_sum;

  explicit Rows(const L& l) : rows(l), job(l.job) {
    if (job.pred_space == kLogits) r.pred_t = splat(static_cast<T>(job.inv_temperature));
    if (job.label_space == kLogits) r.label_t = splat(static_cast<T>(job.inv_temperature));
  }
  bool both_logits() const { return job.pred_space == kLogits && job.label_space == kLogits; }

  void normalise(V pred_sum, V label_sum_t) {
    if (job.pred_space == kLogits) {
      r.pred_log = log<T>(pred_sum);
      r.pred_scale = T(1) / pred_sum;
    }
    if (job.label_space == kLogits) {
      r.label_log = log<T>(label_sum_t);
      r.label_scale = T(1) / label_sum_t;
    }
    if (both_logits()) {  // exact differences and sums in two parts: a common shift of a side costs no digits
      const V d = r.label_max - r.pred_max, back = d - r.label_max;
      const V d_low = (r.label_max - (d - back)) - (r.pred_max + back);
      const V x = d * r.pred_t, y = r.label_log - r.pred_log;
      const V s = x + y, part = s - x;
      r.gap_high = s;
      r.gap_low = ((x - (s - part)) + (y - part)) + d_low * r.pred_t;
    }
  }
  void compute_stats() {
    V pred_sum_t = splat(T(1)), label_sum_t = splat(T(1));
    if (job.pred_space == kLogits) {
      Sums<T> sum;
      softmax_stats<T>(rows, false, r.pred_t, r.pred_max, sum);
      pred_sum_t = sum.narrow();
      rows.store_stat(kPredMax, r.pred_max);
      rows.store_stat(kPredSum, pred_sum_t);
    }
    if (job.label_space == kLogits) {
      softmax_stats<T>(rows, true, r.label_t, r.label_max, label_sum);
      label_sum_t = label_sum.narrow();
      rows.store_stat(kLabelMax, r.label_max);
      rows.store_stat(kLabelSum, label_sum_t);
    }
    normalise(pred_sum_t, label_sum_t);
  }
  void load_stats() {
    V pred_sum_t = splat(T(1)), label_sum_t = splat(T(1));
    if (job.pred_space == kLogits) {
      r.pred_max = rows.load_stat(kPredMax);
      pred_sum_t = rows.load_stat(kPredSum);
    }
    if (job.label_space == kLogits) {
      r.label_max = rows.load_stat(kLabelMax);
      label_sum_t = rows.load_stat(kLabelSum);
    }
    normalise(pred_sum_t, label_sum_t);
  }

  template <bool kPredLog, bool kLabelLog> void sum_terms(Sums<T>& total, Sums<T>& mass) const {
    const Params<T> p = r;
    rows.blocks([&](int64_t k, int64_t count) {
      V part = {}, part_mass = {};
      rows.both(k, count, [&](V b, V a) { part += Terms<T>::template plain<kPredLog, kLabelLog>(b, a, p, part_mass); });
      total.add(part);
      mass.add(part_mass);
    });
  }
  // The value of each row in hand, in double; sets and keeps the stats that go with it.
  Sums<T> value() {
    Sums<T> total, mass;
    if (both_logits()) {
      const Params<T> p = r;
      rows.blocks([&](int64_t k, int64_t count) {
        V part = {};
        rows.both(k, count, [&](V b, V a) { part += Terms<T>::both_logits(b, a, p); });
        total.add(part);
      });
      rows.join(total);
    } else {
      const bool label_log = job.label_space != kProbs;
      if (job.pred_space != kProbs) label_log ? sum_terms<true, true>(total, mass) : sum_terms<true, false>(total, mass);
      else label_log ? sum_terms<false, true>(total, mass) : sum_terms<false, false>(total, mass);
      rows.join(total);
      if (job.label_space == kLogits) {
        total.divide(label_sum);
      } else if (job.pred_space == kLogits) {
        rows.join(mass);
        r.mass = mass.narrow();
        rows.store_stat(kMass, r.mass);
      }
    }
    r.value = total.narrow();
    rows.store_stat(kValue, r.value);
    return total;
  }
  // Sum of the label alone, where the backward has to find it again.
  void compute_mass() {
    Sums<T> mass;
    const bool label_log = job.label_space != kProbs;
    rows.blocks([&](int64_t k, int64_t count) {
      V part = {};
      if (label_log) rows.one(true, k, count, [&](V a) { part += exp<T>(a); });
      else rows.one(true, k, count, [&](V a) { part += a; });
      mass.add(part);
    });
    rows.join(mass);
    r.mass = mass.narrow();
  }

  template <Space kPred, bool kLabelLog> void pred_gradient(V g) const {
    const Params<T> s = r;
    // No label at all: no pull on any logit, whatever they hold.
    const V pull = s.mass == T(0) ? V{} : s.mass * s.pred_scale;
    const V gt = g * s.pred_t;
    rows.write(job.pred_grad, job.pred_type, [&](V b, V a) {
      const V p = kLabelLog ? exp<T>((a - s.label_max) * s.label_t) * s.label_scale : a;
      V x;
      if (kPred == kLogits) {
        const V q = exp<T>((b - s.pred_max) * s.pred_t) * pull;
        x = gt * ((pull == T(0) ? V{} : q) - p);
      } else if (kPred == kLogProbs) {
        x = -g * p;
      } else {
        x = p == T(0) ? V{} : -g * (p / b);
      }
      return g == T(0) ? V{} : x;
    });
  }
  template <bool kPredLog, Space kLabel, bool kBoth> void label_gradient(V g) const {
    const Params<T> s = r;
    const T log_epsilon = static_cast<T>(job.log_epsilon);
    const V gt = g * s.label_t;
    rows.write(job.label_grad, job.label_type, [&](V b, V a) {
      const V log_q = kPredLog ? (b - s.pred_max) * s.pred_t - s.pred_log : log<T>(b);
      V x;
      if (kLabel == kProbs) {
        const V at_zero = log_q > -inf<T>() ? log_epsilon - log_q : V{};
        x = g * (a == T(0) ? at_zero : log<T>(a) - log_q + T(1));
      } else {
        const V z = (a - s.label_max) * s.label_t;
        const V p = exp<T>(z) * s.label_scale;
        const V u = kBoth ? Terms<T>::log_ratio(b, a, s) : (z - s.label_log) - log_q;
        x = kLabel == kLogits ? gt * (p * (u - s.value)) : g * (p * (u + T(1)));
        x = p == T(0) ? V{} : x;
      }
      return g == T(0) ? V{} : x;
    });
  }
  void write_pred_gradient(V g) const {
    const bool label_log = job.label_space != kProbs;
    if (job.pred_space == kLogits) label_log ? pred_gradient<kLogits, true>(g) : pred_gradient<kLogits, false>(g);
    else if (job.pred_space == kLogProbs) label_log ? pred_gradient<kLogProbs, true>(g) : pred_gradient<kLogProbs, false>(g);
    else label_log ? pred_gradient<kProbs, true>(g) : pred_gradient<kProbs, false>(g);
  }
  void write_label_gradient(V g) const {
    const bool pred_log = job.pred_space != kProbs;
    if (both_logits()) label_gradient<true, kLogits, true>(g);
    else if (job.label_space == kLogits) pred_log ? label_gradient<true, kLogits, false>(g) : label_gradient<false, kLogits, false>(g);
    else if (job.label_space == kLogProbs) pred_log ? label_gradient<true, kLogProbs, false>(g) : label_gradient<false, kLogProbs, false>(g);
    else pred_log ? label_gradient<true, kProbs, false>(g) : label_gradient<false, kProbs, false>(g);
  }
};

// Brings up what the wanted gradients need: kept by the forward, or found again.
template <class T, class L> void ready(Rows<T, L>& work, const L& rows) {
  const Job& job = rows.job;
  const bool softmax = job.pred_space == kLogits || job.label_space == kLogits;
  const bool kept = job.stats[job.pred_space == kLogits ? kPredMax : kLabelMax] != nullptr;
  if (softmax) kept ? work.load_stats() : work.compute_stats();
  if (job.pred_space == kLogits && job.label_space != kLogits && job.pred_grad) {
    if (job.stats[kMass]) work.r.mass = rows.load_stat(kMass);
    else work.compute_mass();
  }
  if (job.label_space == kLogits && job.label_grad) {
    if (job.stats[kValue]) work.r.value = rows.load_stat(kValue);
    else work.value();
  }
}

// ---- entry points ------------------------------------------------------------------------------------------------

template <class T> bool by_rows(const Job& job) { return job.inner == 1 && job.n >= kShortRow; }

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
      Rows<T, Row<T>> work(rows);
      work.compute_stats();
      value[row - begin] = work.value().first();
    }
    return;
  }
  T* const memory = scratch<T>(Tile<T>::scratch(job));
  for (int64_t row = begin; row < end;) {
    const Tile<T> tile(job, row, end, memory);
    for (int64_t lane = 0; lane < tile.rows; lane += kLanes<T>) {
      const Lanes<T> rows(tile, lane);
      Rows<T, Lanes<T>> work(rows);
      work.compute_stats();
      work.value().get(value + (row - begin) + lane, rows.width());
    }
    row += tile.rows;
  }
}

template <class T> void backward(const Job& job, int64_t begin, int64_t end, const double* factor) {
  if (by_rows<T>(job)) {
    alignas(64) T buffers[2 * kRowBlock];
    for (int64_t row = begin; row < end; ++row) {
      const Row<T> rows(job, row, buffers);
      Rows<T, Row<T>> work(rows);
      const Vec<T> g = splat(static_cast<T>(factor[row - begin]));
      ready(work, rows);
      if (job.pred_grad) work.write_pred_gradient(g);
      if (job.label_grad) work.write_label_gradient(g);
    }
  } else {
    T* const memory = scratch<T>(Tile<T>::scratch(job));
    for (int64_t row = begin; row < end;) {
      const Tile<T> tile(job, row, end, memory);
      for (int side = 0; side < 2; ++side) {
        void* grad = side ? job.label_grad : job.pred_grad;
        if (!grad) continue;
        for (int64_t lane = 0; lane < tile.rows; lane += kLanes<T>) {
          const Lanes<T> rows(tile, lane);
          Rows<T, Lanes<T>> work(rows);
          T g[kLanes<T>] = {};
          for (int64_t i = 0; i < rows.width(); ++i) g[i] = static_cast<T>(factor[row - begin + lane + i]);
          ready(work, rows);
          side ? work.write_label_gradient(load(g)) : work.write_pred_gradient(load(g));
        }
        if (tile.held) tile.scatter(grad, side ? job.label_type : job.pred_type, 0, job.n);
      }
      row += tile.rows;
    }
  }
  if (job.stream) stream_fence();
}

template <class T> int64_t grain(const Job& job) {
  if (!by_rows<T>(job)) return Tile<T>::lanes(job);
  const int64_t rows = (int64_t(1) << 15) / job.n;
  return rows > kMaxGrain ? kMaxGrain : rows > 1 ? rows : 1;
}

template <class T> constexpr Kernels table(const char* isa) { return {isa, forward<T>, backward<T>, grain<T>}; }

}  // namespace
#endif  // GLUON_KL_KERNEL_H_
