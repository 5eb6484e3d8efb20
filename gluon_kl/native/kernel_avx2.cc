#include "kernel.h"

const gluon_kl::Kernels* gluon_kl::kernels_avx2(gluon_kl::Precision precision) {
  static constexpr Kernels single = table<float>("avx2"), twice = table<double>("avx2");
  return precision == kSingle ? &single : &twice;
}
