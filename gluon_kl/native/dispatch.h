// Chooses the instruction set: the widest that the processor has.
#ifndef GLUON_KL_DISPATCH_H_
#define GLUON_KL_DISPATCH_H_

#include <stdlib.h>

#include <algorithm>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "job.h"

namespace gluon_kl {

#if defined(__x86_64__)
// The processor itself is asked, because not every compiler's runtime sets what __builtin_cpu_supports reads. The system
// must also save the wide registers (xgetbv), or a task switch would lose them.
inline int widest_vectors() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const unsigned leaf_1 = bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C;
  if ((c & leaf_1) != leaf_1) return 0;
  unsigned saved, high;
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
  const unsigned leaf_7 = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
  return (saved & 0xe6) == 0xe6 && (b & leaf_7) == leaf_7 ? 2 : 1;
}
#endif

// GLUON_KL_ISA=baseline|avx2 chooses less than the processor has (tests compare them).
inline const Kernels& kernels(Precision precision) {
#if defined(__x86_64__)
  static const int level = [] {
    const char* text = getenv("GLUON_KL_ISA");
    const std::string cap = text ? text : "";
    return std::min(widest_vectors(), cap == "baseline" ? 0 : cap == "avx2" ? 1 : 2);
  }();
  if (level == 2) return *kernels_avx512(precision);
  if (level == 1) return *kernels_avx2(precision);
#endif
  return *kernels_baseline(precision);
}

}  // namespace gluon_kl
#endif  // GLUON_KL_DISPATCH_H_
