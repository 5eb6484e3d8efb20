// Registers the operator with MXNet through its extension interface; what the call's text may say is in
// call.h, the plan of a call in plan.h, the arithmetic in the forms (form.h).
//
//   _gluon_kl_divergence(*inputs, call="form=... inputs=... ...") -> result [, kept (stats, rows)]
//
// The interface hides grad_req from the operator: an "add" is lost, and a gradient nobody asked for looks like any
// other. autograd.py stands guard in front of it.
// MXNet's errors quote all messages that a library holds. MXNet's half of the interface, which is compiled into the
// library, keeps every message for ever. `_msgSize` and `_msgGet` below replace these two: they keep the last message only.
// `_opCallFCompute` below passes booleans on to MXNet's.
#define _msgSize every_msgSize
#define _msgGet every_msgGet
#define _opCallFCompute without_bool_opCallFCompute
#include <lib_api.cc>
#undef _msgSize
#undef _msgGet
#undef _opCallFCompute

#include "plan.h"

namespace {

namespace ext = mxnet::ext;
using Attributes = std::unordered_map<std::string, std::string>;
using gluon_kl::Array;
using gluon_kl::Call;
using gluon_kl::Plan;
using gluon_kl::Shape;

thread_local std::string last_message;  // MXNet asks for it at once, in the thread that it was said in

std::shared_ptr<const Call> call_of(const Attributes& attributes) {
  const auto found = attributes.find("call");
  return gluon_kl::call_of(found == attributes.end() ? "" : found->second);
}

template <class F> ext::MXReturnValue guarded(F f) {
  try {
    f();
    return ext::MX_SUCCESS;
  } catch (const std::exception& error) {
    last_message = std::string("gluon_kl: ") + error.what();
    return ext::MX_FAIL;
  }
}

ext::MXReturnValue parse_attributes(const Attributes& attributes, int* inputs, int* outputs) {
  return guarded([&] {
    const auto held = call_of(attributes);
    const Call& call = *held;
    *inputs = static_cast<int>(call.inputs.size());
    *outputs = Plan::kept(call) ? 2 : 1;
  });
}

bool is_float(int type) { return type >= gluon_kl::kFloat32 && type <= gluon_kl::kFloat16; }

ext::MXReturnValue infer_type(const Attributes& attributes, std::vector<int>* in, std::vector<int>* out) {
  return guarded([&] {
    bool in_double = false, known = true;
    const int first = (*in)[call_of(attributes)->position(gluon_kl::kPred)];
    if (first == gluon_kl::kBool) throw std::invalid_argument("pred must be numbers, not booleans");
    for (int& type : *in) {
      if (type < 0 && is_float(first)) type = first;  // what nobody says is as the first
      if (type < 0) known = false;
      else if (type > gluon_kl::kBool) throw std::invalid_argument("arrays of this dtype cannot reach an operator of an extension");
      in_double |= type == gluon_kl::kFloat64;
    }
    for (int& type : *out) type = in_double ? gluon_kl::kFloat64 : known ? gluon_kl::kFloat32 : -1;
  });
}

// An axis of unknown length is -1.
Shape shape_from(const std::vector<unsigned int>& shape) {
  Shape s;
  for (unsigned int d : shape) s.push_back(static_cast<int>(d));
  return s;
}
std::vector<unsigned int> shape_to(const Shape& shape) { return {shape.begin(), shape.end()}; }

ext::MXReturnValue infer_shape(const Attributes& attributes, std::vector<std::vector<unsigned int>>* in,
                               std::vector<std::vector<unsigned int>>* out) {
  return guarded([&] {
    const auto held = call_of(attributes);
    const Call& call = *held;
    std::vector<Shape> shapes;
    for (const auto& shape : *in) shapes.push_back(shape_from(shape));
    const Shape result = gluon_kl::infer_shapes(call, &shapes);
    for (size_t i = 0; i < in->size(); ++i) (*in)[i] = shape_to(shapes[i]);
    if (result.empty()) return;
    (*out)[0] = shape_to(result);
    if (out->size() > 1) (*out)[1] = shape_to({Plan::kept(call), gluon_kl::Geometry(call, shapes[call.position(gluon_kl::kPred)]).rows});
  });
}

// The inputs of a call by slot; they start at `first`.
std::vector<Array> arrays(const Call& call, std::vector<ext::MXTensor>* in, size_t first) {
  std::vector<Array> found(gluon_kl::kSlots, Array{});
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    ext::MXTensor& t = (*in)[first + i];
    found[call.inputs[i]] = {t.data_ptr, static_cast<gluon_kl::Type>(t.dtype), t.shape};
  }
  return found;
}

ext::MXReturnValue forward(const Attributes& attributes, std::vector<ext::MXTensor>* in, std::vector<ext::MXTensor>* out,
                           const ext::OpResource&) {
  return guarded([&] {
    const auto held = call_of(attributes);
    const Call& call = *held;
    Plan plan(call, arrays(call, in, 0));
    if (out->size() > 1) plan.keep_in((*out)[1].data_ptr);
    plan.forward((*out)[0].data_ptr);
  });
}

// Inputs: gradients of the outputs, inputs, outputs; outputs: gradients of the inputs.
ext::MXReturnValue backward(const Attributes& attributes, std::vector<ext::MXTensor>* in, std::vector<ext::MXTensor>* out,
                            const ext::OpResource&) {
  return guarded([&] {
    const auto held = call_of(attributes);
    const Call& call = *held;
    const bool keeps = Plan::kept(call);
    Plan plan(call, arrays(call, in, keeps ? 2 : 1));
    if (keeps) plan.keep_in(in->back().data_ptr);
    std::vector<gluon_kl::Output> grads(gluon_kl::kSlots, gluon_kl::Output{});
    for (size_t i = 0; i < call.inputs.size(); ++i)
      grads[call.inputs[i]] = {(*out)[i].data_ptr, static_cast<gluon_kl::Type>((*out)[i].dtype)};
    plan.backward((*in)[0].data_ptr, grads);
  });
}

// ---- a teacher that kept k categories -----------------------------------------------------------------------------

//   _gluon_kl_top_k(*inputs, call="inputs=pred,index,target,hard tail=bucket form=... ...") -> losses, kept
//
// pred's last axis is that of the categories, and the losses have 1 there; index and target have k, the categories that the
// teacher kept and what it gave them; hard has a class for each row. Gradients go to pred alone.
const int kRead[] = {gluon_kl::kPred, gluon_kl::kIndex, gluon_kl::kTarget, gluon_kl::kHard};

ext::MXReturnValue top_k_parse(const Attributes& attributes, int* inputs, int* outputs) {
  return guarded([&] {
    const auto call = call_of(attributes);
    if (!call->has(gluon_kl::kIndex) || !call->has(gluon_kl::kTarget))
      throw std::invalid_argument("inputs must name index and target");
    if (call->form > gluon_kl::kJS) throw std::invalid_argument("form must be one of kl, reverse_kl, js");
    *inputs = static_cast<int>(call->inputs.size());
    *outputs = 2;
  });
}
ext::MXReturnValue top_k_shape(const Attributes& attributes, std::vector<std::vector<unsigned int>>* in,
                               std::vector<std::vector<unsigned int>>* out) {
  return guarded([&] {
    const auto call = call_of(attributes);
    std::vector<Shape> shapes;
    for (const auto& shape : *in) shapes.push_back(shape_from(shape));
    for (int slot : kRead)
      if (call->has(slot) && !gluon_kl::known(shapes[call->position(slot)])) return;
    const Shape losses = gluon_kl::top_k_shape(*call, shapes);
    gluon_kl::TopK job{};
    job.k = shapes[call->position(gluon_kl::kIndex)].back();
    (*out)[0] = shape_to(losses), (*out)[1] = shape_to({gluon_kl::size_of(losses), job.columns()});
  });
}
ext::MXReturnValue top_k_forward(const Attributes& attributes, std::vector<ext::MXTensor>* in, std::vector<ext::MXTensor>* out,
                                 const ext::OpResource&) {
  return guarded([&] {
    const auto call = call_of(attributes);
    gluon_kl::TopK job = gluon_kl::top_k_job(*call, arrays(*call, in, 0));
    job.loss = (*out)[0].data_ptr, job.kept = (*out)[1].data_ptr;
    gluon_kl::top_k_loss(job);
  });
}
ext::MXReturnValue top_k_backward(const Attributes& attributes, std::vector<ext::MXTensor>* in, std::vector<ext::MXTensor>* out,
                                  const ext::OpResource&) {
  return guarded([&] {
    const auto call = call_of(attributes);
    gluon_kl::TopK job = gluon_kl::top_k_job(*call, arrays(*call, in, 2));
    ext::MXTensor& grad = (*out)[call->position(gluon_kl::kPred)];
    job.head = (*in)[0].data_ptr, job.kept = in->back().data_ptr;
    job.grad = grad.data_ptr, job.grad_type = static_cast<gluon_kl::Type>(grad.dtype);
    gluon_kl::top_k_gradient(job);
  });
}

// ---- for the inference of shapes in a user's graph ----------------------------------------------------------------

// The buffer for the shapes that MXNet passes to an extension's operator has one element too few for each input whose rank
// is unknown, and MXNet writes beyond it. For a single such input there is no buffer at all, and MXNet reports that. So the
// rank of each input of the divergence must be known: native/__init__.py puts this operator in front.
//
//   _gluon_kl_like(x) -> an array of x's shape and of the dtype that its use asks for, with nothing written to it
//   _gluon_kl_like(x, known="1") -> the same of shape (1, 1) and float32; an x of unknown dtype becomes float32
//
// If only the shape of an array is read, it need not be filled, and costs no pass.
bool only_known(const Attributes& attributes) { return attributes.count("known") > 0; }

ext::MXReturnValue like_parse(const Attributes&, int* inputs, int* outputs) {
  *inputs = *outputs = 1;
  return ext::MX_SUCCESS;
}
ext::MXReturnValue like_type(const Attributes& attributes, std::vector<int>* in, std::vector<int>* out) {
  if (only_known(attributes) && (*in)[0] < 0) (*in)[0] = gluon_kl::kFloat32;
  (*out)[0] = only_known(attributes) ? gluon_kl::kFloat32 : -1;  // as its use asks
  return ext::MX_SUCCESS;
}
ext::MXReturnValue like_shape(const Attributes& attributes, std::vector<std::vector<unsigned int>>* in,
                              std::vector<std::vector<unsigned int>>* out) {
  (*out)[0] = only_known(attributes) ? std::vector<unsigned int>{1, 1} : (*in)[0];
  return ext::MX_SUCCESS;
}
ext::MXReturnValue like_forward(const Attributes&, std::vector<ext::MXTensor>*, std::vector<ext::MXTensor>*,
                                const ext::OpResource&) {
  return ext::MX_SUCCESS;
}

}  // namespace

REGISTER_OP(_gluon_kl_top_k)
    .setForward(top_k_forward, "cpu")
    .setBackward(top_k_backward, "cpu")
    .setParseAttrs(top_k_parse)
    .setInferType(infer_type)
    .setInferShape(top_k_shape);

REGISTER_OP(_gluon_kl_like)
    .setForward(like_forward, "cpu")
    .setParseAttrs(like_parse)
    .setInferType(like_type)
    .setInferShape(like_shape);

REGISTER_OP(_gluon_kl_divergence)
    .setForward(forward, "cpu")
    .setBackward(backward, "cpu")
    .setParseAttrs(parse_attributes)
    .setInferType(infer_type)
    .setInferShape(infer_shape);

ext::MXReturnValue initialize(int version) {
  if (version >= 10700) return ext::MX_SUCCESS;
  last_message = "gluon_kl: MXNet " + std::to_string(version) + " is older than 1.7";
  return ext::MX_FAIL;
}

extern "C" int _msgSize() { return last_message.empty() ? 0 : 1; }
extern "C" void _msgGet(int, const char** message) { *message = last_message.c_str(); }

// MXNet calls this for each forward and backward. Its half of the interface raises an error at an array of booleans, which
// has the same bytes as one of uint8.
extern "C" int _opCallFCompute(
    ext::fcomp_t function, const char* const* keys, const char* const* values, int attributes, const int64_t** in_shapes,
    int* in_ranks, void** in, int* in_types, size_t* in_ids, const char** in_devices, int* in_device_ids, int inputs,
    const int64_t** out_shapes, int* out_ranks, void** out, int* out_types, size_t* out_ids, const char** out_devices,
    int* out_device_ids, int outputs, ext::xpu_malloc_t cpu_malloc, void* cpu, ext::xpu_malloc_t gpu_malloc, void* gpu,
    void* stream, ext::sparse_malloc_t sparse_malloc, void* sparse, int* in_storage, int* out_storage, void** in_indices,
    void** out_indices, void** in_starts, void** out_starts, int64_t* in_indices_sizes, int64_t* out_indices_sizes,
    int64_t* in_starts_sizes, int64_t* out_starts_sizes, void* cpu_random, void* gpu_random) {
  std::replace(in_types, in_types + inputs, int(gluon_kl::kBool), int(gluon_kl::kUint8));
  std::replace(out_types, out_types + outputs, int(gluon_kl::kBool), int(gluon_kl::kUint8));
  return without_bool_opCallFCompute(
      function, keys, values, attributes, in_shapes, in_ranks, in, in_types, in_ids, in_devices, in_device_ids, inputs,
      out_shapes, out_ranks, out, out_types, out_ids, out_devices, out_device_ids, outputs, cpu_malloc, cpu, gpu_malloc,
      gpu, stream, sparse_malloc, sparse, in_storage, out_storage, in_indices, out_indices, in_starts, out_starts,
      in_indices_sizes, out_indices_sizes, in_starts_sizes, out_starts_sizes, cpu_random, gpu_random);
}

// For native/__init__.py: of which release the library is, and what `info` tells.
extern "C" const char* gluon_kl_version() { return GLUON_KL_VERSION; }
extern "C" const char* gluon_kl_isa() { return gluon_kl::kernels(gluon_kl::kSingle).isa; }
extern "C" int gluon_kl_threads() { return gluon_kl::Threads::get().count(); }
