// How far the functions of vector_math.h and the terms of the forms are from long double, over their whole range: compiled for
// one instruction set by run.py. Prints a table; fails where a bound is passed. Errors are in ULP of the result (for a
// result below the smallest normal number, in units of its last place), those of terms relative to the exact term in
// units of the type's epsilon.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "plan.h"
#include "forms.h"

namespace {

int failures = 0;

template <class T> long double ulp(long double exact) {
  const long double size = fabsl(exact), least = sizeof(T) == 4 ? 0x1p-149L : 0x1p-1074L;
  if (size == 0) return least;
  const long double unit = ldexpl(1, ilogbl(size) - (sizeof(T) == 4 ? 23 : 52));
  return unit < least ? least : unit;
}

template <class T, class Got, class Exact>
void measure(const char* name, double low, double high, bool geometric, double bound, Got got, Exact exact) {
  const int steps = 400000;
  const double start = ::log(fabs(low)), way = ::log(fabs(high)) - start;  // not of their ratio, which may be infinite
  long double worst = 0;
  double at = 0;
  for (int i = 0; i <= steps; i += kLanes<T>) {
    Vec<T> x;
    for (int j = 0; j < kLanes<T>; ++j) {
      const double share = static_cast<double>(i + j) / (steps + kLanes<T>);
      x[j] = static_cast<T>(geometric ? copysign(::exp(start + share * way), low) : low + (high - low) * share);
    }
    const Vec<T> y = got(x);
    for (int j = 0; j < kLanes<T>; ++j) {
      const long double e = exact(static_cast<long double>(x[j]));
      const long double off = y[j] == static_cast<T>(e) ? 0 : fabsl(y[j] - e) / ulp<T>(e);
      if (!(off <= worst)) worst = off, at = x[j];
    }
  }
  if (at == 0) ++failures, printf("  nothing was measured:\n");
  printf("%-7s %-28s [%11.4g, %11.4g]  %6.2Lf ULP (at most %.1f), worst at %.9g\n", sizeof(T) == 4 ? "float" : "double", name,
         low, high, worst, bound, at);
  if (!(worst <= bound)) ++failures, printf("  too far\n");
}

long double log_ratio(long double p, long double q) {
  const long double off = (p - q) / q;
  return fabsl(off) < 0.5L ? log1pl(off) : logl(p / q);
}
// A term of a point formula at p and q over many ratios, against `exact`, relative to it.
template <class T, class Term, class Exact> void term(const char* name, double low, double high, double bound, Term got, Exact exact) {
  const T epsilon = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);
  long double worst = 0;
  double at_p = 0, at_q = 0;
  for (double p = 1e-6; p < 1; p *= 1.7)
    for (int sign = -1; sign <= 1; sign += 2)
      for (double ratio = low; ratio < high; ratio *= 1.01) {
        const T tp = static_cast<T>(p), tq = static_cast<T>(p * __builtin_exp(sign * ratio));
        if (!(tq < 1) || tq == tp) continue;
        const Vec<T> y = got(splat(tp), splat(tq));
        const long double e = exact(static_cast<long double>(tp), static_cast<long double>(tq));
        const long double off = fabsl(y[0] - e) / (fabsl(e) * epsilon);
        if (!(off <= worst)) worst = off, at_p = tp, at_q = tq;
      }
  printf("%-7s %-28s |log p/q| in [%g, %g]  %8.2Lf epsilon (at most %g), worst at p %.6g q %.6g\n", sizeof(T) == 4 ? "float" : "double",
         name, low, high, worst, bound, at_p, at_q);
  if (!(worst <= bound)) ++failures, printf("  too far\n");
}

template <class T> void all() {
  const bool single = sizeof(T) == 4;
  const double highest = single ? 88.7 : 709.7, lowest = single ? -103.9 : -745.1, top = single ? 3e38 : 1e308, small = single ? 1e-45 : 5e-324;
  const auto expl_ = [](long double x) { return expl(x); };
  measure<T>("exp", lowest, highest, false, 1.5, [](Vec<T> x) { return exp<T>(x); }, expl_);
  measure<T>("exp_down", ExpRange<T>::least_normal, ExpRange<T>::fits, false, 1.5, [](Vec<T> x) { return exp_down<T>(x); }, expl_);
  measure<T>("expm1 of exp_pair_down", 1e-12, ExpRange<T>::fits, true, 2.5, [](Vec<T> x) { return exp_pair_down<T>(x).minus_one; }, [](long double x) { return expm1l(x); });
  measure<T>("the same below 0", -1e-12, -1e3, true, 2.0, [](Vec<T> x) { return exp_pair_down<T>(x).minus_one; }, [](long double x) { return expm1l(x); });
  measure<T>("log below 1", small, 1, true, 1.5, [](Vec<T> x) { return log<T>(x); }, [](long double x) { return logl(x); });
  measure<T>("log above 1", 1, top, true, 1.5, [](Vec<T> x) { return log<T>(x); }, [](long double x) { return logl(x); });
  measure<T>("log near 1", 0.5, 2, false, 1.5, [](Vec<T> x) { return log<T>(x); }, [](long double x) { return logl(x); });
  measure<T>("log1p", 1e-12, 1e6, true, 3.0, [](Vec<T> x) { return log1p<T>(x); }, [](long double x) { return log1pl(x); });
  measure<T>("log1p below 0", -1e-12, -0.5, true, 4.0, [](Vec<T> x) { return log1p<T>(x); }, [](long double x) { return log1pl(x); });
  measure<T>("u + expm1(-u)", 1e-3, 1, true, 4.0, [](Vec<T> x) { return unit_excess<T>(x); }, [](long double x) { return expm1l(-x) + x; });
  measure<T>("u + expm1(-u) below 0", -1e-3, -1, true, 4.0, [](Vec<T> x) { return unit_excess<T>(x); }, [](long double x) { return expm1l(-x) + x; });
  measure<T>("x - log1p(x)", 1e-3, 0.4999, true, 6.0, [](Vec<T> x) { return log1p_excess<T>(x); }, [](long double x) { return x - log1pl(x); });
  measure<T>("x - log1p(x) below 0", -1e-3, -0.2499, true, 6.0, [](Vec<T> x) { return log1p_excess<T>(x); }, [](long double x) { return x - log1pl(x); });

  Job job{};
  job.form = kJS;
  job.soft_share = 1;
  const auto point = [](Vec<T> p, Vec<T> q, long double u) {
    return Point<T>{p, q, log<T>(p), log<T>(q), splat(static_cast<T>(u)), {}, {}, {}, {}, {}, {}, false, false};
  };
  const auto exact_u = [](Vec<T> p, Vec<T> q) {
    return log_ratio(p[0], q[0]);
  };
  const double nearest = single ? 1e-4 : 1e-2;  // closer, long double has no digits left
  {
    const Constants<T> c(job);
    const KL<T> kl(c);
    term<T>("KL, whole rows", nearest, 20, 12, [&](Vec<T> p, Vec<T> q) { return kl.whole_term(point(p, q, exact_u(p, q))); },
            [](long double p, long double q) { return p * log_ratio(p, q) + (q - p); });
    term<T>("KL", 1e-2, 20, 4, [&](Vec<T> p, Vec<T> q) { return kl.term(point(p, q, exact_u(p, q))); },
            [](long double p, long double q) { return p * log_ratio(p, q); });
  }
  for (double beta : {0.001, 0.1, 0.5, 0.9, 0.999}) {
    job.beta = beta;
    series_near_equality(1 - beta, job.series);
    const Constants<T> c(job);
    const JS<T> js(c);
    char name[40];
    snprintf(name, sizeof name, "JS, beta %g", beta);
    const long double b = beta;
    term<T>(name, single ? nearest : 0.1, 60, 40, [&](Vec<T> p, Vec<T> q) { return js.term(js.at(point(p, q, exact_u(p, q)))); },
            [b](long double p, long double q) {
              const long double d = (q - p) / p, m = 1 + (1 - b) * d;  // m / p
              const long double near = p * ((1 - b) * (q / p) * log_ratio(q, p) - m * log1pl((1 - b) * d));
              return near;
            });
  }
  const Constants<T> c(job);
  const Gaussian<T, false, false> gaussian(c);
  const RowState<T> row{};
  const auto slope = [&](Vec<T> x) {
    Values<T> v;
    v.x[kMean] = Vec<T>{}, v.x[kLogVariance] = x;
    return gaussian.template gradient<kLogVariance>(row, v, splat(T(1)), T(1));
  };
  const auto exact_slope = [](long double x) { return expm1l(x) / 2; };
  measure<T>("Gaussian's slope, narrower", -1e-12, -1e3, true, 1.5, slope, exact_slope);
  measure<T>("Gaussian's slope, wider", 1e-12, highest, true, 2.0, slope, exact_slope);
  for (int sign = -1; sign <= 1; sign += 2)
    measure<T>(sign < 0 ? "Gaussian, narrower" : "Gaussian, wider", sign * 1e-3, sign * 80.0, true, 4.0,
               [&](Vec<T> x) {
                 Values<T> v;
                 v.x[kMean] = Vec<T>{}, v.x[kLogVariance] = x;
                 return gaussian.term(row, v);
               },
               [](long double x) { return x * x < 1e-6L ? x * x / 4 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))) : (expm1l(x) - x) / 2; });
  const Bernoulli<T, true, true> bernoulli(c);
  for (double y : {-30.0, -3.0, 0.0, 3.0, 30.0})
    measure<T>("Bernoulli of scores", y - 8 + 0.125, y + 8, false, 64.0,
               [&](Vec<T> x) {
                 Values<T> v;
                 v.x[kPred] = x, v.x[kTarget] = splat(static_cast<T>(y));
                 return bernoulli.term(row, v);
               },
               [y](long double z) {
                 const auto soft = [](long double x) { return x > 0 ? x + log1pl(expl(-x)) : log1pl(expl(x)); };
                 const long double a = static_cast<long double>(static_cast<T>(y)), p = 1 / (1 + expl(-a)), no = 1 / (1 + expl(a));
                 const auto excess_l = [](long double p, long double u) { return fabsl(u) < 1e-3L ? p * u * u / 2 * (1 - u / 3 * (1 - u / 4 * (1 - u / 5 * (1 - u / 6 * (1 - u / 7))))) : p * (u + expm1l(-u)); };
                 // Of each category by its own logarithms' difference, near equality from the difference of the scores.
                 const long double d = a - z;
                 const long double yes = fabsl(d) < 1 ? log1pl(no * expm1l(d)) : soft(-z) - soft(-a);
                 const long double nay = fabsl(d) < 1 ? log1pl(p * expm1l(-d)) : soft(z) - soft(a);
                 return excess_l(p, yes) + excess_l(no, nay);
               });
}

}  // namespace

int main() {
  printf("vectors of %d bytes\n", kBytes);
  all<float>();
  all<double>();
  return failures != 0;
}
