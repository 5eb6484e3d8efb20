// Registers the operator with MXNet through its extension interface; the arithmetic is in kernel.h, the plan of a call
// in divergence.h.
//
//   _gluon_kl_divergence(pred, label[, row_weight]) -> loss (batch,) [, kept (stats, rows)]
//
// The interface hides grad_req from the operator: an "add" is lost, and a gradient nobody asked for looks like any
// other. native/__init__.py stands guard in front of it.
#include <lib_api.cc>  // MXNet wants its half of the interface compiled into the library

#include <memory>

#include "divergence.h"

namespace {

namespace ext = mxnet::ext;
using Attributes = std::unordered_map<std::string, std::string>;
using gluon_kl::Array;
using gluon_kl::Divergence;
using gluon_kl::Space;

struct Spec {
  gluon_kl::Options options;
  bool weighted = false, keep = true;
  bool pred_grad = true, label_grad = false;
};

Space space(const std::string& name, const std::string& text) {
  if (text == "probs") return gluon_kl::kProbs;
  if (text == "log_probs") return gluon_kl::kLogProbs;
  if (text == "logits") return gluon_kl::kLogits;
  throw std::invalid_argument(name + " must be probs, log_probs or logits, not " + text);
}

Spec parse(const Attributes& attributes) {
  Spec s;
  for (const auto& entry : attributes) {
    const std::string &key = entry.first, &text = entry.second;
    if (key == "axis") s.options.axis = std::stoi(text);
    else if (key == "batch_axis") s.options.batch_axis = std::stoi(text);
    else if (key == "pred_space") s.options.pred_space = space(key, text);
    else if (key == "label_space") s.options.label_space = space(key, text);
    else if (key == "inv_temperature") s.options.inv_temperature = std::stod(text);
    else if (key == "beta") s.options.beta = std::stod(text);
    else if (key == "epsilon") s.options.epsilon = std::stod(text);
    else if (key == "scale") s.options.scale = std::stod(text);
    else if (key == "mean") s.options.mean = text == "1" || text == "True";
    else if (key == "weighted") s.weighted = text == "1" || text == "True";
    else if (key == "keep") s.keep = text == "1" || text == "True";
    else if (key == "grad") s.pred_grad = text != "label", s.label_grad = text != "pred";
  }
  return s;
}
bool keeps(const Spec& s) { return s.keep && Divergence::kept(s.options, s.weighted) > 0; }

template <class F> ext::MXReturnValue guarded(F f) {
  try {
    f();
    return ext::MX_SUCCESS;
  } catch (const std::exception& error) {
    MX_ERROR_MSG << "gluon_kl: " << error.what();
    return ext::MX_FAIL;
  }
}

ext::MXReturnValue parse_attributes(const Attributes& attributes, int* inputs, int* outputs) {
  return guarded([&] {
    const Spec s = parse(attributes);
    *inputs = s.weighted ? 3 : 2;
    *outputs = keeps(s) ? 2 : 1;
  });
}

ext::MXReturnValue infer_type(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  return guarded([&] {
    bool in_double = false, known = true;
    for (int type : *in) {
      if (type < 0) known = false;
      else if (type > gluon_kl::kInt64) throw std::invalid_argument("arrays of this dtype cannot reach an operator of an extension; cast bool to uint8");
      in_double |= type == gluon_kl::kFloat64;
    }
    for (int& type : *out) type = in_double ? gluon_kl::kFloat64 : known ? gluon_kl::kFloat32 : -1;
  });
}

std::vector<int64_t> wide(const std::vector<unsigned int>& shape) { return {shape.begin(), shape.end()}; }

ext::MXReturnValue infer_shape(const Attributes& attributes, std::vector<std::vector<unsigned int>>* in,
                               std::vector<std::vector<unsigned int>>* out) {
  return guarded([&] {
    const Spec s = parse(attributes);
    const auto &pred = (*in)[0], &label = (*in)[1];
    const int rank = static_cast<int>(pred.size());
    if (pred != label)
      throw std::invalid_argument("pred and label must have the same shape, not " + gluon_kl::text(wide(pred)) + " and " +
                                  gluon_kl::text(wide(label)));
    if (rank == 0) throw std::invalid_argument("pred must have at least one axis");
    const int axis = gluon_kl::normal_axis(s.options.axis, rank, "axis");
    const int batch_axis = gluon_kl::normal_axis(s.options.batch_axis, rank, "batch_axis");
    if (s.weighted) {
      const auto& weight = (*in)[2];
      bool fits = static_cast<int>(weight.size()) == rank;
      for (int d = 0; fits && d < rank; ++d) fits = weight[d] == 1 || (d != axis && weight[d] == pred[d]);
      if (!fits)
        throw std::invalid_argument("the weight must have as many axes as pred, with 1 at axis " + std::to_string(axis) +
                                    " and 1 or pred's length elsewhere, not " + gluon_kl::text(wide(weight)) + " for pred " +
                                    gluon_kl::text(wide(pred)));
    }
    (*out)[0] = {pred[batch_axis]};
    if (out->size() > 1) {
      unsigned int rows = 1;
      for (int d = 0; d < rank; ++d) rows *= d == axis ? 1 : pred[d];
      (*out)[1] = {static_cast<unsigned int>(Divergence::kept(s.options, s.weighted)), rows};
    }
  });
}

Array array(ext::MXTensor& t) { return {t.data_ptr, static_cast<gluon_kl::Type>(t.dtype), t.shape}; }

ext::MXReturnValue forward(const Attributes& attributes, std::vector<ext::MXTensor>* in, std::vector<ext::MXTensor>* out,
                           const ext::OpResource&) {
  return guarded([&] {
    const Spec s = parse(attributes);
    Divergence call(s.options, array((*in)[0]), array((*in)[1]), s.weighted ? array((*in)[2]) : Array{});
    if (keeps(s)) call.keep_in((*out)[1].data_ptr);
    call.forward((*out)[0].data_ptr);
  });
}

// Inputs: gradients of the outputs, inputs, outputs; outputs: gradients of the inputs.
ext::MXReturnValue backward(const Attributes& attributes, std::vector<ext::MXTensor>* in, std::vector<ext::MXTensor>* out,
                            const ext::OpResource&) {
  return guarded([&] {
    const Spec s = parse(attributes);
    const int outputs = keeps(s) ? 2 : 1;
    const auto input = [&](int i) { return array((*in)[outputs + i]); };
    Divergence call(s.options, input(0), input(1), s.weighted ? input(2) : Array{});
    if (keeps(s)) call.keep_in(in->back().data_ptr);
    call.backward((*in)[0].data_ptr, s.pred_grad ? (*out)[0].data_ptr : nullptr, s.label_grad ? (*out)[1].data_ptr : nullptr,
                  s.weighted ? (*out)[2].data_ptr : nullptr);
  });
}

}  // namespace

REGISTER_OP(_gluon_kl_divergence)
    .setForward(forward, "cpu")
    .setBackward(backward, "cpu")
    .setParseAttrs(parse_attributes)
    .setInferType(infer_type)
    .setInferShape(infer_shape);

ext::MXReturnValue initialize(int version) {
  if (version >= 10700) return ext::MX_SUCCESS;
  MX_ERROR_MSG << "gluon_kl: MXNet " << version << " is older than 1.7";
  return ext::MX_FAIL;
}

// For native.info().
extern "C" const char* gluon_kl_isa() { return gluon_kl::kernels(gluon_kl::kSingle).isa; }
extern "C" int gluon_kl_threads() { return gluon_kl::Threads::get().count(); }
