#if !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps wherever that comes in (gcc.gnu.org/PR105593); the other sources are looked at.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "kernel.h"

const gluon_kl::Kernels* gluon_kl::kernels_avx512(gluon_kl::Precision precision) {
  static constexpr Kernels single = table<float>("avx512"), twice = table<double>("avx512");
  return precision == kSingle ? &single : &twice;
}
