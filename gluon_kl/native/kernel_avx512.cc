#include "kernel.h"

const gluon_kl::Kernels* gluon_kl::kernels_avx512(gluon_kl::Precision precision) {
  static constexpr Kernels single = table<float>("avx512"), twice = table<double>("avx512");
  return precision == kSingle ? &single : &twice;
}
