// How the rows of a call lie in memory, and how they are loaded into vectors.
//
// Row: a vector holds neighbouring categories of one row (long contiguous rows). Lanes: a vector holds one category of
// neighbouring rows (few categories, or an axis that is not the last). Either gives its rows in parts, one block of
// categories at a time: within a block floats are added up, and the sums of blocks are added in double.
#ifndef GLUON_KL_LAYOUT_H_
#define GLUON_KL_LAYOUT_H_

#include "convert.h"
#include "job.h"
#include "vector_math.h"

namespace {

using namespace gluon_kl;

constexpr int64_t kLaneBlock = 64;        // vectors that are added up in their own precision: more would be too far off
template <class T> constexpr int64_t kRowBlock = kLaneBlock * kLanes<T>;  // categories
constexpr int64_t kFarBlock = 8;          // at most, where they lie far apart and so share few lines of the cache
constexpr int64_t kTileBytes = 32 << 10;  // of one stream's tile
constexpr int64_t kWideBytes = 2 << 10;   // lanes in hand, of one category: half a page
constexpr int64_t kKeptBytes = 256 << 10; // of one side's exponentials, which are to stay in the cache
constexpr int64_t kRowAhead = 1024;       // how far to ask ahead along one row
constexpr int64_t kAhead = 128;           // how far to ask ahead along each of several rows
constexpr int64_t kRunRows = 64;          // this many neighbouring rows are worth reading where they lie

// Below this many categories, contiguous rows are worth transposing, which is done in vectors for floats alone.
template <class T> constexpr int64_t kShortRow = sizeof(T) == 4 && kBytes > 16 ? 16 * kLanes<T> : 48;

// The values at one place: the streams and, if they are known, the exponentials of both sides.
template <class T> struct Values { Vec<T> x[kStreams], e[2]; };

// ---- runs of consecutive elements --------------------------------------------------------------------------------

inline int64_t place(int axes, const BroadcastAxis* axis, int64_t element) {
  int64_t at = 0;
  for (int i = 0; i < axes; ++i) at += element / axis[i].stride % axis[i].size * axis[i].step;
  return at;
}
// f(done, length, place, moves) for each stretch of elements [first, first + count) that lie side by side, or on one place.
template <class F> KL_INLINE void stretches(int axes, const BroadcastAxis* axis, int64_t first, int64_t count, F f) {
  for (int64_t i = 0; i < count;) {
    const int64_t e = first + i;
    int64_t length = count - i;
    const bool moves = axes && axis[0].stride == 1;
    if (axes) {
      const int64_t left = moves ? axis[0].size - e % axis[0].size : axis[0].stride - e % axis[0].stride;
      length = left < length ? left : length;
    }
    f(i, length, place(axes, axis, e), moves);
    i += length;
  }
}

// The class of a row, or -1 if its index is no class.
inline int64_t class_of(const View& v, int64_t row) {
  const double x = number(v.data, v.type, row);
  const int64_t k = x >= 0 && x < static_cast<double>(v.categories) ? static_cast<int64_t>(x) : -1;
  return static_cast<double>(k) == x ? k : -1;
}
template <class T> void read_classes(const View& v, T* to, int64_t first, int64_t count) {
  const auto at = [&](int64_t e) { return e / v.inner % v.categories; };
  const auto row = [&](int64_t e) { return e / v.inner / v.categories * v.inner + e % v.inner; };
  if (v.inner == 1) {
    for (int64_t i = 0; i < count;) {
      const int64_t k = at(first + i), hot = class_of(v, row(first + i)), left = v.categories - k;
      const int64_t length = left < count - i ? left : count - i;
      for (int64_t j = 0; j < length; ++j) to[i + j] = hot < 0 ? nan<T>() : static_cast<T>(v.elsewhere);
      if (hot >= k && hot < k + length) to[i + hot - k] = static_cast<T>(v.at_class);
      i += length;
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t hot = class_of(v, row(first + i));
    to[i] = hot < 0 ? nan<T>() : static_cast<T>(hot == at(first + i) ? v.at_class : v.elsewhere);
  }
}

template <class T> void read(const View& v, T* to, int64_t first, int64_t count) {
  if (v.categories) return read_classes(v, to, first, count);
  if (v.whole) return convert_in(to, v.data, v.type, first, count);
  stretches(v.axes, v.axis, first, count, [&](int64_t done, int64_t length, int64_t at, bool moves) {
    if (moves) return convert_in(to + done, v.data, v.type, at, length);
    const T x = static_cast<T>(number(v.data, v.type, at));
    for (int64_t i = 0; i < length; ++i) to[done + i] = x;
  });
}
template <class T> void put(const Sink& s, const T* from, int64_t first, int64_t count) {
  if (!s.totals) return convert_out(s.data, s.type, first, from, count);
  stretches(s.axes, s.axis, first, count, [&](int64_t done, int64_t length, int64_t at, bool moves) {
    for (int64_t i = 0; i < length; ++i) s.totals[moves ? at + i : at] += from[done + i];
  });
}

// The arrays of each stream of a job; the factor is a product of up to two.
inline bool present(const Job& job, int stream) {
  return stream == kFactor ? job.weight.data || job.head.data : job.in[stream].data != nullptr;
}
// The one array that can be read in place, or null.
template <class T> const T* direct(const Job& job, int stream) {
  if (stream == kFactor && job.weight.data && job.head.data) return nullptr;
  const View& v = stream != kFactor ? job.in[stream] : job.weight.data ? job.weight : job.head;
  return v.data && v.whole && !v.categories && v.type == type_of<T>() ? static_cast<const T*>(v.data) : nullptr;
}
template <class T> void read_stream(const Job& job, int stream, T* to, int64_t first, int64_t count) {
  if (stream != kFactor) return read(job.in[stream], to, first, count);
  read(job.weight.data ? job.weight : job.head, to, first, count);
  if (!job.weight.data || !job.head.data) return;
  T other[kLaneBlock];
  for (int64_t i = 0; i < count; i += kLaneBlock) {
    const int64_t m = count - i < kLaneBlock ? count - i : kLaneBlock;
    read(job.head, other, first + i, m);
    for (int64_t j = 0; j < m; ++j) to[i + j] = to[i + j] == T(0) ? T(0) : to[i + j] * other[j];
  }
}
template <class T> T* direct(const Sink& s) {
  return !s.totals && s.type == type_of<T>() ? static_cast<T*>(s.data) : nullptr;
}

// ---- a block in hand ---------------------------------------------------------------------------------------------

// Each stream has `count` vectors, `step` apart, for each of `vectors` neighbours. Of the last vector, `last` lanes count.
template <class T> struct Part {
  using V = Vec<T>;
  const T* at[kStreams];  // of the factor: null if there is none
  int64_t step[kStreams];
  int64_t count, vectors, last, ahead;  // how far to ask ahead
  bool far;                             // vectors are pages apart
  T* kept[2];                           // of each side: room for its exponentials, kept_step apart, or null
  int64_t kept_step;

  KL_INLINE int64_t whole() const { return last == kLanes<T> ? count : count - 1; }
  KL_INLINE int64_t lanes(int64_t i) const { return i + 1 < count ? kLanes<T> : last; }
  KL_INLINE Part vector(int64_t j) const {
    Part one = *this;
    for (const T*& x : one.at)
      if (x) x += j * kLanes<T>;
    for (T*& x : one.kept)
      if (x) x += j * kLanes<T>;
    one.vectors = 1;
    return one;
  }
  // Category k of all neighbours.
  KL_INLINE Part category(int64_t k) const {
    Part one = *this;
    for (int s = 0; s < kStreams; ++s) {
      if (one.at[s]) one.at[s] += k * step[s];
      one.step[s] = kLanes<T>;
    }
    one.count = vectors, one.ahead = step[0];
    return one;
  }
  KL_INLINE Part last_one() const {
    Part one = *this;
    for (int s = 0; s < kStreams; ++s)
      if (one.at[s]) one.at[s] += (count - 1) * step[s];
    one.count = 1;
    return one;
  }
  KL_INLINE V load_at(int stream, int64_t i, int64_t m, T fill) const {
    const T* const x = at[stream] + i * step[stream];
    return m == kLanes<T> ? load(x) : load_part(x, m, fill);
  }
  // The score that was subtracted before the exponentials; it is stored in front of them.
  KL_INLINE T* base(int side) const { return kept[side] - kept_step; }
  // Room for those of the `block`-th part, of `length` vectors `step` apart, in `size` numbers a side, or none.
  void keep_in(T* memory, int64_t size, int64_t block, int64_t length, int64_t step) {
    kept_step = step;
    for (int side = 0; side < 2; ++side) kept[side] = size ? memory + side * size + (block * (length + 1) + 1) * step : nullptr;
  }
  template <int kReads, int kGiven = 0> KL_INLINE Values<T> values(int64_t i, int64_t m) const {
    Values<T> v;
    for (int side = 0; side < 2; ++side)
      if (kGiven & 1 << side) v.e[side] = load(kept[side] + i * kept_step);
    for (int s = 0; s < kInputs; ++s)
      if (kReads & 1 << s) {
        __builtin_prefetch(at[s] + i * step[s] + ahead);
        v.x[s] = load_at(s, i, m, T(0));
      }
    if (at[kFactor]) v.x[kFactor] = load_at(kFactor, i, m, T(0));
    return v;
  }
  // As `values`, for whole vectors and without the factor.
  template <int kReads> KL_INLINE Values<T> whole_values(int64_t i) const {
    Values<T> v;
    for (int s = 0; s < kInputs; ++s)
      if (kReads & 1 << s) {
        const T* const x = at[s] + i * step[s];
        __builtin_prefetch(x + ahead);
        v.x[s] = load(x);
      }
    return v;
  }
  // f(number) for every whole vector.
  template <class F> KL_INLINE void each_whole(F f) const {
    const int64_t n = whole();
    if (far) {  // with separate instructions for several rows, the processor can predict each address
#pragma GCC unroll 4
      for (int64_t i = 0; i < n; ++i) f(i);
    } else {
      for (int64_t i = 0; i < n; ++i) f(i);
    }
  }
  // each(i, vector) for neighbour j; lanes that do not count hold -inf.
  template <class Each> KL_INLINE void one(int stream, int64_t j, Each each) const {
    const T* const x = at[stream] + j * kLanes<T>;
    const int64_t s = step[stream];
    each_whole([&](int64_t i) {
      __builtin_prefetch(x + i * s + ahead);
      each(i, load(x + i * s));
    });
    if (last != kLanes<T>) each(count - 1, load_part(x + (count - 1) * s, last, -inf<T>()));
  }
  // The largest of each lane of neighbour j and of `best`; four at a time, since each step waits for the one before. NaN
  // is passed over: the sum of exponentials that follows keeps it.
  V largest(int stream, int64_t j, V best) const {
    V m[4] = {best, best, best, best};
    int64_t i = 0;
    const T* const x = at[stream] + j * kLanes<T>;
    const int64_t s = step[stream];
    for (; i + 4 < count; i += 4)
      for (int k = 0; k < 4; ++k) {
        if (far) __builtin_prefetch(x + (i + k) * s + kAhead);
        m[k] = Max<T>(load(x + (i + k) * s), m[k]);
      }
    for (; i + 1 < count; ++i) m[0] = Max<T>(load(x + i * s), m[0]);
    m[0] = Max<T>(last == kLanes<T> ? load(x + i * s) : load_part(x + i * s, last, -inf<T>()), m[0]);
    return Max<T>(Max<T>(m[3], m[2]), Max<T>(m[1], m[0]));
  }
};

// Numbers in `count` times `width` of them, a side's exponentials with what they are taken from; 0 if they are too many.
template <class T> int64_t in_cache(int64_t count, int64_t width) {
  const int64_t size = count * width;
  return size * static_cast<int64_t>(sizeof(T)) <= kKeptBytes ? size : 0;
}

// ---- one row -----------------------------------------------------------------------------------------------------

template <class T> struct Row {
  using V = Vec<T>;
  static constexpr int kMaxVectors = 1;  // vectors at once

  const Job& job;
  const int64_t row;
  T* const buffers;  // of kRowBlock each, used where a stream cannot be read where it lies
  T* const kept;     // room for a side's exponentials, after them, and for the other's
  const int64_t room;

  static int64_t scratch(const Job&) { return kStreams * kRowBlock<T>; }
  static int64_t keeps(const Job& job) {
    return in_cache<T>((job.n + kLanes<T> - 1) / kLanes<T> + (job.n + kRowBlock<T> - 1) / kRowBlock<T>, kLanes<T>);
  }

  Row(const Job& j, int64_t r, T* memory, int64_t room)
      : job(j), row(r), buffers(memory), kept(memory + scratch(j)), room(room) {}

  int vectors() const { return 1; }
  Part<T> part(int reads, int64_t k) const {
    const int64_t count = job.n - k < kRowBlock<T> ? job.n - k : kRowBlock<T>, first = row * job.n + k;
    Part<T> p;
    p.count = (count + kLanes<T> - 1) / kLanes<T>;
    p.vectors = 1;
    p.last = count - (p.count - 1) * kLanes<T>;
    p.ahead = kRowAhead;
    p.far = false;
    p.keep_in(kept, room, k / kRowBlock<T>, kLaneBlock, kLanes<T>);
    for (int s = 0; s < kStreams; ++s) {
      p.at[s] = nullptr;
      p.step[s] = kLanes<T>;
      if (!(reads & 1 << s) || !present(job, s)) continue;
      const T* const whole = direct<T>(job, s);
      p.at[s] = whole ? whole + first : buffers + s * kRowBlock<T>;
      if (!whole) read_stream(job, s, buffers + s * kRowBlock<T>, first, count);
    }
    return p;
  }
  // f(first category, part)
  template <class F> void sweep(int reads, F f) const {
    for (int64_t k = 0; k < job.n; k += kRowBlock<T>) {
      Part<T> p = part(reads, k);
      f(k, p);
    }
  }
  // f(part, out, step, past cache) is to write a vector for each of the part's: `count` of them step apart, neighbours
  // side by side.
  template <class F> void write(int reads, const Sink& sink, F f) const {
    T* const out = direct<T>(sink);
    sweep(reads, [&](int64_t k, Part<T>& p) {
      if (!out) {
        T converted[kRowBlock<T>];
        f(p, converted, kLanes<T>, false);
        return put(sink, converted, row * job.n + k, (p.count - 1) * kLanes<T> + p.last);
      }
      T* to = out + row * job.n + k;
      const int64_t skew = job.stream ? reinterpret_cast<uintptr_t>(to) % kBytes / sizeof(T) : 0;
      const int64_t count = (p.count - 1) * kLanes<T> + p.last, head = kLanes<T> - skew;
      if (!skew || count <= head) return f(p, to, kLanes<T>, job.stream && !skew);
      // First up to where vectors can go past the cache.
      Part<T> start = p;
      start.count = 1, start.last = head;
      f(start, to, kLanes<T>, false);
      for (const T*& x : p.at)
        if (x) x += head;
      p.count = (count - head + kLanes<T> - 1) / kLanes<T>;
      p.last = count - head - (p.count - 1) * kLanes<T>;
      f(p, to + head, kLanes<T>, true);
    });
  }

  // Whether `first` knows another number of each row than its first.
  static constexpr bool kSecond = false;
  // The first categories, -inf where there are no more.
  V first(int stream, int, int64_t) const {
    const int64_t m = job.n < kLanes<T> ? job.n : kLanes<T>;
    if (const T* const whole = direct<T>(job, stream)) return load_part(whole + row * job.n, m, -inf<T>());
    T some[kLanes<T>];
    read_stream(job, stream, some, row * job.n, m);
    return load_part(some, m, -inf<T>());
  }
  // Whether `yes`, 1 or 0 of each number of the first ones or more, is 1 for a number of every row in hand.
  bool for_every_row(V yes, int) const { return any<T>(yes); }
  V for_each_row(V yes) const { return splat(any<T>(yes) ? T(1) : T(0)); }

  V join(V largest) const { return splat<T>(MaxOfLanes<T>(largest)); }
  KL_INLINE void join(Sums<T>& sums) const { sums.join(); }
  void broadcast(const double* factor, V* g) const { g[0] = splat(static_cast<T>(*factor)); }
  V load_stat(int stat, int) const { return splat<T>(static_cast<const T*>(job.stats[stat])[row]); }
  void store_stat(int stat, int, V v) const {
    if (job.stats[stat]) static_cast<T*>(job.stats[stat])[row] = v[0];
  }
};

// ---- neighbouring rows -------------------------------------------------------------------------------------------

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

// A lane for each row. They are read where they lie if they are neighbours in memory; else they are brought into a tile
// first, category-major, whole where it fits.
template <class T> struct Lanes {
  using V = Vec<T>;
  static constexpr int kMaxVectors = kWideBytes / kBytes;  // vectors at once

  const Job& job;
  const int64_t begin;
  int64_t rows, stride;
  bool aligned;  // no lane is left over
  const bool whole;
  T *tiles, *grad, *staging, *kept;
  const int64_t room;

  static bool long_runs(const Job& job) { return job.inner >= kRunRows; }
  static int64_t lanes(const Job& job) {
    const int64_t limit = kMaxVectors * kLanes<T>;
    if (long_runs(job)) return limit;
    const int64_t fit = kTileBytes / (static_cast<int64_t>(sizeof(T)) * job.n) / kLanes<T> * kLanes<T>;
    return fit > limit ? limit : fit > kLanes<T> ? fit : kLanes<T>;
  }
  static bool fits(const Job& job) { return !long_runs(job) && job.n <= 4096; }
  static int64_t size(const Job& job) {
    return lanes(job) * (fits(job) ? job.n : long_runs(job) ? kFarBlock : kLaneBlock);
  }
  static int64_t scratch(const Job& job) { return (kStreams + 2) * size(job); }
  static int64_t keeps(const Job& job) {  // in long runs the memory is what takes the time
    return long_runs(job) ? 0 : in_cache<T>(job.n + (job.n + block(job) - 1) / block(job), lanes(job));
  }

  // As many rows from `first` on as are taken at once, at most up to `last`.
  Lanes(const Job& j, int64_t first, int64_t last, T* memory, int64_t room)
      : job(j), begin(first), rows(last - first < lanes(j) ? last - first : lanes(j)), aligned(false), whole(fits(j)),
        tiles(memory), grad(memory + kStreams * size(j)), staging(grad + size(j)),
        kept(memory + scratch(j)), room(room) {
    if (long_runs(job)) {  // up to where the run ends; what fills no vector comes after the rest, by itself
      const int64_t left = job.inner - begin % job.inner;
      if (rows > left) rows = left;
      if (rows > kLanes<T>) rows -= rows % kLanes<T>;
      aligned = rows % kLanes<T> == 0;
    }
    stride = (rows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    for (int s = 0; whole && s < kStreams; ++s)
      if (present(job, s)) gather(tile(s), s, 0, job.n);
  }

  int vectors() const { return static_cast<int>(stride / kLanes<T>); }
  T* tile(int stream) const { return tiles + stream * size(job); }
  // How many categories at once: equal shares of them, since the last block takes as long as a full one.
  static int64_t block(const Job& job) {
    if (!long_runs(job)) return kLaneBlock;
    const int64_t blocks = (job.n + kFarBlock - 1) / kFarBlock;
    return (job.n + blocks - 1) / blocks;
  }
  // Of category k of the first row, where rows are neighbours.
  int64_t address(int64_t k) const { return (begin / job.inner * job.n + k) * job.inner + begin % job.inner; }

  // f(first category, part)
  template <class F> void sweep(int reads, F f) const {
    const int64_t length = block(job);
    for (int64_t k = 0; k < job.n; k += length) {
      Part<T> p;
      p.count = job.n - k < length ? job.n - k : length;
      p.vectors = vectors();
      p.last = kLanes<T>;
      p.ahead = 0;
      p.far = false;
      p.keep_in(kept, room, k / length, length, stride);
      for (int s = 0; s < kStreams; ++s) {
        p.at[s] = nullptr;
        if (!(reads & 1 << s) || !present(job, s)) continue;
        const T* const there = aligned ? direct<T>(job, s) : nullptr;
        p.at[s] = there ? there + address(k) : whole ? tile(s) + k * stride : tile(s);
        p.step[s] = there ? job.inner : stride;
        if (there) p.far = true, p.ahead = kAhead;
        if (!there && !whole) gather(tile(s), s, k, p.count);
      }
      f(k, p);
    }
  }
  // As of Row.
  template <class F> void write(int reads, const Sink& sink, F f) const {
    T* const there = aligned ? direct<T>(sink) : nullptr;
    T* const out = there ? there + address(0) : grad;
    const int64_t step = there ? job.inner : stride;
    const bool past_cache = there && job.stream && reinterpret_cast<uintptr_t>(out) % kBytes == 0 &&
                            job.inner % kLanes<T> == 0;
    sweep(reads, [&](int64_t k, const Part<T>& p) {
      f(p, out + (there || whole ? k * step : 0), step, past_cache);
      if (!there && !whole) scatter(sink, k, p.count);
    });
    if (!there && whole) scatter(sink, 0, job.n);
  }

  static constexpr bool kSecond = true;
  // As of Row: category k of each row; if they neither lie side by side nor are all in the tile, the first.
  V first(int stream, int j, int64_t k) const {
    const T* const there = aligned ? direct<T>(job, stream) : nullptr;
    if (there) return load(there + address(k) + j * kLanes<T>);
    if (!whole && j == 0 && k == 0) gather(tile(stream), stream, 0, 1);
    return load(tile(stream) + (whole ? k * stride : 0) + j * kLanes<T>);
  }
  bool for_every_row(V yes, int j) const { return !any<T>(first_lanes<T>(T(1) - yes, width(j))); }
  V for_each_row(V yes) const { return yes; }

  V join(V largest) const { return largest; }
  KL_INLINE void join(Sums<T>&) const {}
  void broadcast(const double* factor, V* g) const {
    T lanes[kMaxVectors * kLanes<T>];
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
  void gather(T* to, int stream, int64_t k0, int64_t count) const {
    const T* const source = direct<T>(job, stream);
    if (stride != rows)
      for (int64_t k = 0; k < count; ++k)
        for (int64_t i = rows; i < stride; ++i) to[k * stride + i] = T(0);
    if (job.inner == 1) {  // whole rows: short ones, or they would not be here
      if (!source) read_stream(job, stream, staging, begin * job.n, rows * job.n);
      return transpose_in(source ? source + begin * job.n : staging, rows, job.n, to, stride);
    }
    runs([&](int64_t o, int64_t at, int64_t i, int64_t m) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t from = (o * job.n + k0 + k) * job.inner + at;
        if (source) copy_run(to + k * stride + i, source + from, m, false);
        else read_stream(job, stream, to + k * stride + i, from, m);
      }
    });
  }
  void scatter(const Sink& sink, int64_t k0, int64_t count) const {
    T* const out = direct<T>(sink);
    if (job.inner == 1) {
      const int64_t at = begin * job.n;
      transpose_out(grad, stride, rows, job.n, out && !job.stream ? out + at : staging);
      if (out && job.stream) copy_run(out + at, staging, rows * job.n, true);
      else if (!out) put(sink, staging, at, rows * job.n);
      return;
    }
    runs([&](int64_t o, int64_t at, int64_t i, int64_t m) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t to = (o * job.n + k0 + k) * job.inner + at;
        if (out) copy_run(out + to, grad + k * stride + i, m, job.stream);
        else put(sink, grad + k * stride + i, to, m);
      }
    });
  }
};

// Working memory that a thread keeps, because a new allocation would need new pages each time.
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

}  // namespace
#endif  // GLUON_KL_LAYOUT_H_
