// The loop over rows, for one instruction set: each kernel_*.cc includes it once. Layouts are in layout.h; a form (form.h)
// says what is computed at each place.
#ifndef GLUON_KL_KERNEL_H_
#define GLUON_KL_KERNEL_H_

#include "forms.h"
#include "job.h"
#include "layout.h"
#include "vector_math.h"

namespace {

using namespace gluon_kl;

// ---- a form, as the loop sees it ---------------------------------------------------------------------------------

// What is added up over a block.
template <class T> struct Added { Vec<T> total, sum[2]; };

// The functions of one form over a part: only these are compiled for each form.
template <class T> struct Blocks {
  using V = Vec<T>;
  using State = RowState<T>;
  int reads, sums, by_value, given;
  // Adds up a part without neighbours: the terms and, if asked for, the form's sums; or the sums alone. An element whose
  // own factor is 0 adds nothing, even if it is NaN.
  using Add = void (*)(const Constants<T>&, const State&, const Part<T>&, bool whole, bool sums, Added<T>* added);
  Add add[2], add_sums[2];  // the second of each reads the exponentials of the sides `given`, which were kept
  // Each writes one vector for each of the part's, as Row::write says. `terms` writes g, times the element's own factor,
  // times the term; `gradient[i]` writes the gradient to input i.
  using Write = void (*)(const Constants<T>&, const State*, const Part<T>&, const V* g, T* out, int64_t step, bool past_cache);
  Write terms;
  Write gradient[kInputs];
  Write near_gradient[kInputs];  // the same if some current rows are near; it differs for few forms
};

// Blocks work on local copies of the constants. The compiler would load any others again after each store of a vector, which
// might have changed them.
template <class T, class F, bool kTerms> void add_block(const Constants<T>& c, const RowState<T>& state, const Part<T>& block,
                                                        bool whole, bool sums, Added<T>* out) {
  using V = Vec<T>;
  const Constants<T> constants = c;
  const F form(constants);
  RowState<T> r = state;
  const Part<T> part = block;
  for (int side = 0; side < 2; ++side)
    if (F::kTaken & 1 << side) r.side[side].scale *= exp_down<T>((load(part.base(side)) - r.side[side].max) * constants.t[side]);
  const bool elements = part.at[kFactor];
  const T per_element = elements ? T(1) : T(0);
  V total = {}, sum[2] = {};
  for (int64_t i = 0; i < part.count; ++i) {
    const int64_t m = part.lanes(i);
    const Values<T> x = part.template values<F::kReads, F::kTaken>(i, m);
    V term = {}, s[2] = {};
    form.template add<kTerms>(r, x, whole, per_element, sums, &term, s);
    if (elements) {
      const V w = x.x[kFactor];
      const auto none = w == T(0);
      term = none ? V{} : w * term;
      for (V& each : s) each = none ? V{} : w * each;
    }
    if (m < kLanes<T>) {
      term = first_lanes<T>(term, m);
      for (V& each : s) each = first_lanes<T>(each, m);
    }
    total += term;
    for (int j = 0; j < 2; ++j)
      if (F::kSums >> j & 1) sum[j] += s[j];
  }
  *out = {total, {sum[0], sum[1]}};
}
template <class T> KL_INLINE void put_vector(T* out, int64_t m, Vec<T> v, bool past_cache) {
  if (m < kLanes<T>) store_part(out, m, v);
  else if (past_cache) stream(out, v);
  else store<T>(out, v);
}
template <class T, class F> void terms_block(const Constants<T>& c, const RowState<T>* state, const Part<T>& block,
                                             const Vec<T>* g, T* out, int64_t step, bool past_cache) {
  const Constants<T> constants = c;
  const F form(constants);
  for (int64_t j = 0; j < block.vectors; ++j, out += kLanes<T>) {
    const RowState<T> r = state[j];
    const Part<T> part = block.vector(j);
    for (int64_t i = 0; i < part.count; ++i) {
      const int64_t m = part.lanes(i);
      const Values<T> x = part.template values<F::kReads>(i, m);
      Vec<T> w = g[j];
      if (part.at[kFactor]) w = x.x[kFactor] == T(0) ? Vec<T>{} : x.x[kFactor] * w;
      put_vector(out + i * step, m, w == T(0) ? Vec<T>{} : w * form.term(r, x), past_cache);
    }
  }
}
template <int i, bool kNearRows, class T, class F>
KL_INLINE Vec<T> one_gradient(const F& form, const RowState<T>& r, const Values<T>& x, Vec<T> g, T per_element) {
  if constexpr (kNearRows) return form.template gradient<i, true>(r, x, g, per_element);
  else return form.template gradient<i>(r, x, g, per_element);
}
// The loop for whole vectors of the same rows under one factor. It has no branches, which makes rows of few categories
// faster. It is a function of its own, because the constants of two loops would not fit the registers.
template <class T, class F, int i, bool kNearRows>
__attribute__((noinline)) void whole_gradients(const Constants<T>& c, const RowState<T>& state, const Part<T>& block, Vec<T> g, T* out,
                                               int64_t step, bool past_cache) {
  const Constants<T> constants = c;
  const F form(constants);
  const RowState<T> r = state;
  const Part<T> part = block;
  for (int64_t k = 0, n = part.whole(); k < n; ++k) {
    const Vec<T> v = one_gradient<i, kNearRows>(form, r, part.template whole_values<F::kReads>(k), g, T(0));
    past_cache ? stream(out + k * step, v) : store<T>(out + k * step, v);
  }
}
// For any vectors, each of the same rows (next 0) or of the next ones (1).
template <class T, class F, int i, bool kNearRows>
__attribute__((noinline)) void other_gradients(const Constants<T>& c, const RowState<T>* state, const Part<T>& block, const Vec<T>* g,
                                               int64_t next, T* out, int64_t step, bool past_cache) {
  const Constants<T> constants = c;
  const F form(constants);
  const Part<T> part = block;
  const bool elements = part.at[kFactor];
  for (int64_t k = 0; k < part.count; ++k, state += next, g += next, out += step) {
    const int64_t m = part.lanes(k);
    const Values<T> x = part.template values<F::kReads>(k, m);
    Vec<T> w = *g;
    if (elements) w = x.x[kFactor] == T(0) ? Vec<T>{} : x.x[kFactor] * w;
    const Vec<T> v = one_gradient<i, kNearRows>(form, *state, x, w, elements ? T(1) : T(0));
    put_vector(out, m, v, past_cache);
  }
}
// Categories that lie far apart are read and written in the order of the memory, because memory bounds this loop.
template <class T, class F, int i, bool kNearRows>
void gradient_block(const Constants<T>& c, const RowState<T>* state, const Part<T>& block, const Vec<T>* g, T* out, int64_t step,
                    bool past_cache) {
  const auto other = other_gradients<T, F, i, kNearRows>;
  if (block.far) {
    for (int64_t k = 0; k < block.count; ++k) other(c, state, block.category(k), g, 1, out + k * step, kLanes<T>, past_cache);
    return;
  }
  for (int64_t j = 0; j < block.vectors; ++j, out += kLanes<T>) {
    const Part<T> part = block.vector(j);
    if (part.at[kFactor]) {
      other(c, state + j, part, g + j, 0, out, step, past_cache);
      continue;
    }
    whole_gradients<T, F, i, kNearRows>(c, state[j], part, g[j], out, step, past_cache);
    if (part.last != kLanes<T>) other(c, state + j, part.last_one(), g + j, 0, out + part.whole() * step, step, past_cache);
  }
}
template <class T, class F> constexpr typename Blocks<T>::Add sums_of() {
  if constexpr (F::kSums) return add_block<T, F, false>;
  else return nullptr;
}
template <class T, class F, int i, bool kNearRows = false> constexpr typename Blocks<T>::Write gradient_of() {
  if constexpr ((kNearRows ? F::kNear : F::kGradients) >> i & 1) return gradient_block<T, F, i, kNearRows>;
  else return nullptr;
}
template <class T, class F> constexpr Blocks<T> blocks = {
    F::kReads | 1 << kFactor, F::kSums, F::kByValue, F::Given::kTaken,
    {add_block<T, F, true>, add_block<T, typename F::Given, true>},
    {sums_of<T, F>(), sums_of<T, typename F::Given>()}, terms_block<T, F>,
    {gradient_of<T, F, 0>(), gradient_of<T, F, 1>(), gradient_of<T, F, 2>(), gradient_of<T, F, 3>()},
    {gradient_of<T, F, 0, true>(), gradient_of<T, F, 1, true>()}};

// ---- the loop ----------------------------------------------------------------------------------------------------

// The largest distance of log p - log q from `log_sums` in a row that is near: beyond it, two rounded logarithms leave
// enough digits.
template <class T> constexpr T kNear = sizeof(T) == 4 ? T(0x1p-5) : T(0x1p-10);
// If both logarithms of a category are below this, it adds nothing to a row that is near.
template <class T> constexpr T kNoMass = sizeof(T) == 4 ? T(-50) : T(-100);

// The state of the current rows that their values or gradients need: computed, kept or loaded.
template <class T, class L> struct Work {
  using V = Vec<T>;
  static constexpr int kMaxVectors = L::kMaxVectors;
  const L& rows;
  const Job& job;
  const Constants<T>& c;
  const Blocks<T>& form;
  RowState<T> state[kMaxVectors];
  bool near_rows = false;  // there are some

  Work(const L& l, const Constants<T>& constants, const Blocks<T>& blocks) : rows(l), job(l.job), c(constants), form(blocks) {
    for (int side = 0; side < 2; ++side)
      for (int j = 0; job.space[side] == kLogProbs && j < rows.vectors(); ++j) state[j].side[side] = {V{}, V{}, splat(T(1))};
  }

  bool per_element() const { return present(job, kFactor); }

  // ---- softmax ----

  // Of every vector in hand: largest logit (0 if there is none) and sum of exp((x - largest) * t), block by block; with
  // kAgain also the sum at temperature 1. The exponentials are kept if there is room.
  template <bool kAgain> void sum_exponentials(int side, Sums<T>* sum, Sums<T>* again) {
    const V t = splat(c.t[side]);
    for (int j = 0; j < rows.vectors(); ++j) {
      state[j].side[side].max = splat(-inf<T>());
      sum[j].clear();
      if (kAgain) again[j].clear();
    }
    rows.sweep(1 << side, [&](int64_t k, const Part<T>& part) {
      for (int j = 0; j < rows.vectors(); ++j) {
        V& largest = state[j].side[side].max;
        const V before = largest, best = rows.join(part.largest(side, j, before));
        const V base = best == -inf<T>() ? V{} : best;
        if (k) {
          sum[j].scale(exp_down<T>((before - base) * t));
          if (kAgain) again[j].scale(exp_down<T>(before - base));
        }
        V added = {}, added_again = {};
        T* const kept = form.given & 1 << side && part.kept[side] ? part.kept[side] + j * kLanes<T> : nullptr;
        if (kept) store<T>(part.base(side) + j * kLanes<T>, best);
        part.one(side, j, [&](int64_t i, V x) {
          const V off = x - base, e = exp_down<T>(off * t);
          added += e;
          if (kAgain) added_again += at_temperature_one<T>(c.squarings, e, off);
          if (kept) store<T>(kept + i * part.kept_step, e);
        });
        sum[j].add(added);
        if (kAgain) again[j].add(added_again);
        largest = best;
      }
    });
    for (int j = 0; j < rows.vectors(); ++j) {
      rows.join(sum[j]);
      if (kAgain) rows.join(again[j]);
      V& largest = state[j].side[side].max;
      largest = largest == -inf<T>() ? V{} : largest;
    }
  }
  void normalise(int side, int j, V sum) {
    state[j].side[side].log = log<T>(sum);
    state[j].side[side].scale = T(1) / sum;
  }
  void normalise_hard(int j, V sum) {
    state[j].hard_log = log<T>(sum);
    state[j].hard_scale = T(1) / sum;
  }
  // The exact difference of the maxima, in two parts: a common shift of a side costs no digits.
  void find_differences() {
    if (!c.softmax[kPred] || !c.softmax[kTarget]) return;
    bool open[kMaxVectors], any_open = false;  // neighbours that hold rows which may be near
    for (int j = 0; j < rows.vectors(); ++j) {
      RowState<T>& r = state[j];
      const V a = r.side[kTarget].max, b = r.side[kPred].max, back = (a - b) - a;
      r.shift = a - b;
      r.shift_low = (a - (r.shift - back)) - (b + back);
      r.log_sums = r.side[kTarget].log - r.side[kPred].log;
      r.near = V{};
      any_open |= open[j] = may_be_near(j);
    }
    if (any_open) refine_log_sums(open);
  }
  // Whether all of the first few categories leave it open that a row is near.
  bool may_be_near(int j) {
    const int64_t looks = L::kSecond && job.n > 2 ? 3 : 1;
    // The logarithms of the sums of exponentials differ no more than those of the exponentials do.
    const V d = state[j].log_sums;
    V any_far = Max<T>(d, -d) < T(1.01) * kNear<T> ? V{} : splat(T(1));
    for (int64_t k = 0; k < looks; ++k) {
      any_far = Max<T>(any_far, Place(*this, j, rows.first(kPred, j, k), rows.first(kTarget, j, k)).far);
      if (rows.for_every_row(any_far, j)) return false;
    }
    return true;
  }
  // If both sides hardly differ, the difference of two rounded logarithms has no right digits. With d `log_sums` and
  // w = log p - log q + d, which is `difference`, 1 = sum of q = e^d sum of p e^-w, whose terms near
  // equality differ from p by little, and exactly. `open`: the neighbours that hold rows which may be near.
  void refine_log_sums(bool* open) {
    Sums<T> sum[kMaxVectors];
    V far[kMaxVectors] = {};
    for (int j = 0; j < rows.vectors(); ++j) sum[j].clear();
    rows.sweep(1 << kPred | 1 << kTarget, [&](int64_t, const Part<T>& block) {
      for (int j = 0; j < rows.vectors(); ++j) {
        if (!open[j]) continue;
        const Part<T> part = block.vector(j);
        V added = {};
        for (int64_t i = 0; i < part.count && open[j]; ++i) {
          const int64_t m = part.lanes(i);
          const Place at(*this, j, part.load_at(kPred, i, m, -inf<T>()), part.load_at(kTarget, i, m, -inf<T>()));
          added += at.excess(*this, j);
          far[j] = Max<T>(far[j], at.far);
          open[j] = !rows.for_every_row(far[j], j);
        }
        sum[j].add(added);
      }
    });
    for (int j = 0; j < rows.vectors(); ++j) {
      if (!open[j]) continue;
      rows.join(sum[j]);
      const auto near = rows.for_each_row(far[j]) == T(0);
      state[j].log_sums = near ? -log1p<T>(sum[j].narrow()) : state[j].log_sums;
      state[j].near = near ? splat(T(1)) : V{};
      near_rows |= any<T>(state[j].near);
    }
  }
  // One place of rows that may be near: w, and whether that is far from 0 (1 or 0) where either side has any mass.
  struct Place {
    V z_q, z_p, w, far;
    KL_INLINE Place(const Work& work, int j, V b, V a) {
      const RowState<T>& r = work.state[j];
      const T t = work.c.t[kPred];
      z_q = (b - r.side[kPred].max) * t, z_p = (a - r.side[kTarget].max) * t;
      w = difference<T>(r, b, a) * t;
      const auto small = ((w <= kNear<T>) & (w >= -kNear<T>)) | ((z_q < kNoMass<T>) & (z_p < kNoMass<T>));
      far = small ? V{} : splat(T(1));
    }
    KL_INLINE V excess(const Work& work, int j) const {  // p e^-w - p
      const V scale = work.state[j].side[kTarget].scale, p = scale * exp_down<T>(z_p);
      return (w < T(1)) & (w > T(-1)) ? p * (unit_excess<T>(w) - w) : scale * exp_down<T>(z_q) - p;
    }
  };
  bool another_temperature() const { return job.hard && c.t[job.scored] != T(1); }

  void compute_softmax() {
    Sums<T> sum[kMaxVectors], again[kMaxVectors];
    for (int side = 0; side < 2; ++side) {
      if (!c.softmax[side]) continue;
      const bool twice = side == job.scored && another_temperature();
      twice ? sum_exponentials<true>(side, sum, again) : sum_exponentials<false>(side, sum, again);
      for (int j = 0; j < rows.vectors(); ++j) {
        const V total = sum[j].narrow();
        normalise(side, j, total);
        rows.store_stat(side == kPred ? kPredMax : kTargetMax, j, state[j].side[side].max);
        rows.store_stat(side == kPred ? kPredSum : kTargetSum, j, total);
        if (side != job.scored || !job.hard) continue;
        const V hard = twice ? again[j].narrow() : total;
        normalise_hard(j, hard);
        rows.store_stat(kHardSum, j, hard);
      }
    }
    find_differences();
  }
  void load_softmax() {
    for (int side = 0; side < 2; ++side) {
      if (!c.softmax[side]) continue;
      for (int j = 0; j < rows.vectors(); ++j) {
        state[j].side[side].max = rows.load_stat(side == kPred ? kPredMax : kTargetMax, j);
        const V total = rows.load_stat(side == kPred ? kPredSum : kTargetSum, j);
        normalise(side, j, total);
        if (side == job.scored && job.hard) normalise_hard(j, another_temperature() ? rows.load_stat(kHardSum, j) : total);
      }
    }
    find_differences();
  }
  void prepare() { job.kept ? load_softmax() : compute_softmax(); }

  // ---- values ----

  // Through the softmaxes of both sides the sums follow from the value.
  bool knows_sums() const { return form.by_value >= 0 && !per_element(); }
  void set_sums(int j, V value) {
    for (int i = 0; i < 2; ++i) state[j].sum[i] = i == form.by_value ? value : splat(T(-1));
  }
  // Passes the values in double to take(vector, values); computes and keeps the sums that gradients need.
  template <class Take> void value(Take take) { add_up(true, take); }
  // Only these sums.
  void find_sums() {
    if (!knows_sums() || job.grad[form.by_value].data) return add_up(knows_sums(), [](int, const Sums<T>&) {});
    for (int j = 0; j < rows.vectors(); ++j) set_sums(j, V{});
  }
  template <class Take> void add_up(bool terms, Take take) {
    Sums<T> total[kMaxVectors], sum[2][kMaxVectors];
    const bool known = knows_sums();
    const int sums = known || !(c.softmax[kPred] || c.softmax[kTarget]) ? 0 : form.sums;
    const auto add = (terms ? form.add : form.add_sums)[rows.room != 0];
    for (int j = 0; j < rows.vectors(); ++j) {
      total[j].clear();
      for (auto& each : sum) each[j].clear();
    }
    rows.sweep(form.reads, [&](int64_t, const Part<T>& part) {
      for (int j = 0; j < rows.vectors(); ++j) {
        Added<T> added;
        add(c, state[j], part.vector(j), job.whole_rows, sums > 0, &added);
        if (terms) total[j].add(added.total);
        for (int i = 0; i < 2; ++i)
          if (sums >> i & 1) sum[i][j].add(added.sum[i]);
      }
    });
    for (int j = 0; j < rows.vectors(); ++j) {
      rows.join(total[j]);
      const V value = total[j].narrow();
      if (known) set_sums(j, value);
      for (int i = 0; i < 2; ++i) {
        if (sums >> i & 1) {
          rows.join(sum[i][j]);
          state[j].sum[i] = sum[i][j].narrow();
        }
        if (form.sums >> i & 1) rows.store_stat(kFirstSum + i, j, state[j].sum[i]);
      }
      if (terms) rows.store_stat(kValue, j, value);
      take(j, total[j]);
    }
  }
  // Every single term, times the factor of its row and its own factor.
  void terms(const V* g) {
    rows.write(form.reads, job.terms, [&](const Part<T>& part, T* out, int64_t step, bool past_cache) {
      form.terms(c, state, part, g, out, step, past_cache);
    });
  }

  // ---- gradients ----

  // The sums that the wanted gradients need: kept by the forward, or found again. Those of elements that each have a
  // factor are multiplied by their row's.
  void prepare_sums(const V* g) {
    bool needed = false;
    for (int side = 0; side < 2; ++side) needed |= c.softmax[side] && job.grad[side].data;
    if (!form.sums || !needed) return;
    if (!job.kept || job.head.data) find_sums();
    else load_sums();
    for (int j = 0; per_element() && j < rows.vectors(); ++j)
      for (V& sum : state[j].sum) sum = g[j] == T(0) ? V{} : sum * g[j];
  }
  void load_sums() {
    for (int j = 0; j < rows.vectors(); ++j)
      for (int i = 0; i < 2; ++i) state[j].sum[i] = job.stats[kFirstSum + i] ? rows.load_stat(kFirstSum + i, j) : V{};
  }
  void gradients(const V* g) {
    for (int i = 0; i < kInputs; ++i) {
      if (!job.grad[i].data) continue;
      const auto gradient = near_rows && form.near_gradient[i] && !per_element() ? form.near_gradient[i] : form.gradient[i];
      rows.write(form.reads, job.grad[i], [&](const Part<T>& part, T* out, int64_t step, bool past_cache) {
        gradient(c, state, part, g, out, step, past_cache);
      });
    }
  }
};

// ---- entry points ------------------------------------------------------------------------------------------------

template <class T> bool by_rows(const Job& job) { return job.inner == 1 && job.n >= kShortRow<T>; }

// f(work, done) for as many rows of [begin, end) at a time as the layout takes; what the softmax has computed serves again
// if asked to and there is room.
template <class T, class F> void each_rows(const Job& job, int64_t begin, int64_t end, bool again, F f) {
  const Constants<T> constants(job);
  const Blocks<T>& form = *with_form<T>(job, [](auto type) { return &blocks<T, typename decltype(type)::Type>; });
  const bool single = by_rows<T>(job), keeps = again && constants.all_softmax(form.given);
  const int64_t room = !keeps ? 0 : single ? Row<T>::keeps(job) : Lanes<T>::keeps(job);
  if (single) {
    T* const memory = scratch<T>(Row<T>::scratch(job) + 2 * room);
    for (int64_t row = begin; row < end; ++row) {
      const Row<T> rows(job, row, memory, room);
      Work<T, Row<T>> work(rows, constants, form);
      f(work, row - begin);
    }
    return;
  }
  T* const memory = scratch<T>(Lanes<T>::scratch(job) + 2 * room);
  for (int64_t row = begin; row < end;) {
    const Lanes<T> rows(job, row, end, memory, room);
    Work<T, Lanes<T>> work(rows, constants, form);
    f(work, row - begin);
    row += rows.rows;
  }
}

template <class T> void take(const Row<T>&, int, const Sums<T>& sums, double* value) { *value = sums.first(); }
template <class T> void take(const Lanes<T>& rows, int j, const Sums<T>& sums, double* value) {
  sums.get(value + j * kLanes<T>, rows.width(j));
}

template <class T> void forward(const Job& job, int64_t begin, int64_t end, double* value) {
  each_rows<T>(job, begin, end, true, [&](auto& work, int64_t done) {
    work.compute_softmax();
    work.value([&](int j, const Sums<T>& sums) { take(work.rows, j, sums, value + done); });
  });
}
template <class T> void terms(const Job& job, int64_t begin, int64_t end, const double* factor) {
  each_rows<T>(job, begin, end, false, [&](auto& work, int64_t done) {
    Vec<T> g[work.kMaxVectors];
    work.rows.broadcast(factor + done, g);
    work.prepare();
    work.terms(g);
  });
  if (job.stream) stream_fence();
}
template <class T> void backward(const Job& job, int64_t begin, int64_t end, const double* factor) {
  each_rows<T>(job, begin, end, !job.kept, [&](auto& work, int64_t done) {
    Vec<T> g[work.kMaxVectors];
    work.rows.broadcast(factor + done, g);
    work.prepare();
    work.prepare_sums(g);
    work.gradients(g);
  });
  if (job.stream) stream_fence();
}

template <class T> int64_t grain(const Job& job) {
  if (!by_rows<T>(job)) return Lanes<T>::lanes(job);
  const int64_t rows = (int64_t(1) << 15) / job.n;
  return rows > kMaxGrain ? kMaxGrain : rows > 1 ? rows : 1;
}

}  // namespace

#include "top_k.h"

namespace {

template <class T> constexpr Kernels table(const char* isa) {
  return {isa, forward<T>, terms<T>, backward<T>, grain<T>, top_k_forward<T>, top_k_backward<T>};
}

}  // namespace
#endif  // GLUON_KL_KERNEL_H_
