#include "kernel.h"

const gluon_kl::Kernels* gluon_kl::kernels_baseline(gluon_kl::Precision precision) {
  static constexpr Kernels single = table<float>("baseline"), twice = table<double>("baseline");
  return precision == kSingle ? &single : &twice;
}
