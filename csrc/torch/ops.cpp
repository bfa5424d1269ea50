// The operators: their schemas, a kernel of each for every kind of device, and what torch does
// before and after it.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/TensorOptions.h>
#include <torch/library.h>

#include <new>
#include <string>

#include "checks.h"
#include "fills.h"
#include "forked.h"
#include "generator.h"
#include "read.h"
#include "../stream/statistics.h"
#ifdef PARAMINIT_WITH_CUDA
#include "cuda.h"
#endif

namespace paraminit {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;

// --- fills -----------------------------------------------------------------------------------

// What every kernel runs in. Other devices' streams are a thread's own, and have no use for OpenMP;
// what the CPU does for them, fill_by_pieces() runs so.
template <class Work>
void run(const char* op, const Tensor& self, const Work& work) {
  try {
    self.is_cpu() ? run_with_threads(work) : work();
  } catch (const std::bad_alloc&) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "paraminit_ext.", op,
                     ": expected memory for lists beside the tensor, got none. Free some and fill "
                     "the tensor again: it may be filled in part.");
  }
}

template <class ByValue, class ByKey>
void add_pair(torch::Library& m, const std::string& name, ByValue* by_value, ByKey* by_key) {
  m.impl(name.c_str(), by_value);
  m.impl((name + ".key").c_str(), by_key);
}

// The kernels of the operator that fills by a law of these parameters: the key by value, or in a
// tensor on the device.
template <class Law, class... Parameters>
struct Kernels {
  static void by_value(Tensor& self, Parameters... parameters, int64_t seed, int64_t offset,
                       IntArrayRef whole, IntArrayRef start) {
    const Key key{static_cast<uint64_t>(seed), static_cast<uint64_t>(offset)};
    run(Law::name, self, [&] { fill(Law{parameters...}, self, {key}, whole, start); });
  }
  static void by_key(Tensor& self, Parameters... parameters, const Tensor& key, IntArrayRef whole,
                     IntArrayRef start) {
    run(Law::name, self, [&] { fill(Law{parameters...}, self, {{}, &key}, whole, start); });
  }
  static void add_to(torch::Library& m) { add_pair(m, Law::name, by_value, by_key); }
};

// A meta tensor may have symbolic sizes: what does not depend on them is checked.
double known(double parameter) { return parameter; }
int64_t known(const c10::SymInt& count) { return count.maybe_as_int().value_or(0); }

template <class Law, class... Parameters>
struct MetaKernels {
  static void by_value(Tensor& self, Parameters... parameters, int64_t, int64_t, SymIntArrayRef,
                       SymIntArrayRef) {
    check_fill(Law{known(parameters)...}, self);
  }
  static void by_key(Tensor& self, Parameters... parameters, const Tensor& key, SymIntArrayRef,
                     SymIntArrayRef) {
    check_fill(Law{known(parameters)...}, self);
    check_key(Law::name, key, self);
  }
  static void add_to(torch::Library& m) { add_pair(m, Law::name, by_value, by_key); }
};

// --- keys ------------------------------------------------------------------------------------

const uint64_t* words_in(const Tensor& key) {
  return static_cast<const uint64_t*>(key.const_data_ptr());
}
uint64_t* words_to(const Tensor& key) { return static_cast<uint64_t*>(key.mutable_data_ptr()); }

// As int64 of the same bits: torch before 2.12 cannot save a graph that has uint64 in it.
Tensor draw_key(at::Device device, std::optional<at::Generator> generator) {
  const auto options = at::TensorOptions().dtype(at::kLong);
#ifdef PARAMINIT_WITH_CUDA
  if (device.is_cuda()) {
    const Tensor key = at::empty({2}, options.device(device));
    draw_key_cuda(words_to(key), key.device(), generator);
    return key;
  }
#endif
  const Tensor key = at::empty({2}, options.device(at::kCPU));
  const Key drawn = draw(generator.value_or(at::detail::getDefaultCPUGenerator()));
  words_to(key)[0] = drawn.seed;
  words_to(key)[1] = drawn.offset;
  return device.is_cpu() ? key : key.to(device);
}

// The default generator's draw for a tensor's device.
Tensor draw_key_like(const Tensor& like) { return draw_key(like.device(), std::nullopt); }

Tensor fold_in_tensor(const Tensor& key, int64_t data) {
  check_key("fold_in", key, key);
  if (!has_kernels(key)) return fold_in_tensor(key.cpu(), data).to(key.device());
  const Tensor folded = at::empty_like(key);
#ifdef PARAMINIT_WITH_CUDA
  if (key.is_cuda()) {
    fold_in_cuda(words_in(key), static_cast<uint64_t>(data), words_to(folded), key.device());
    return folded;
  }
#endif
  const uint64_t* from = words_in(key);
  const Key to = fold_in({from[0], from[1]}, static_cast<uint64_t>(data));
  words_to(folded)[0] = to.seed;
  words_to(folded)[1] = to.offset;
  return folded;
}

// An operator without a tensor argument has no device to be dispatched on but the one it names.
Tensor select_draw_key(at::Device device, std::optional<at::Generator> generator) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paraminit_ext::draw_key", "")
                             .typed<decltype(select_draw_key)>();
  const c10::DispatchKey key = c10::computeDispatchKey(at::kLong, at::kStrided, device);
  return op.redispatch(c10::DispatchKeySet(key), device, std::move(generator));
}

Tensor meta_draw_key(at::Device device, std::optional<at::Generator>) {
  return at::empty({2}, at::TensorOptions().dtype(at::kLong).device(device));
}

Tensor meta_draw_key_like(const Tensor& like) { return meta_draw_key(like.device(), std::nullopt); }

Tensor meta_fold_in(const Tensor& key, int64_t) { return at::empty_like(key); }

Tensor meta_statistics(const Tensor& self) {
  return at::empty({kStatistics},
                   self.options().dtype(at::kDouble).memory_format(at::MemoryFormat::Contiguous));
}

// --- schemas ---------------------------------------------------------------------------------

// Each fill twice: the key by value, and in a tensor.
void define_fill(torch::Library& m, const std::string& name, const std::string& parameters) {
  const std::string self = "(Tensor(a!) self, " + parameters;
  const std::string place = "SymInt[] global_shape, SymInt[] shard_offset) -> ()";
  m.def((name + self + "int seed, int offset, " + place).c_str());
  m.def((name + ".key" + self + "Tensor key, " + place).c_str());
}

constexpr const char* kFills[] = {"uniform_",      "uniform_.key",      "normal_", "normal_.key",
                                  "trunc_normal_", "trunc_normal_.key", "sparse_", "sparse_.key",
                                  "orthogonal_",   "orthogonal_.key",   "words_",  "words_.key"};

void add_kernels(torch::Library& m) {
  Kernels<Uniform, double, double>::add_to(m);
  Kernels<Normal, double, double>::add_to(m);
  Kernels<TruncNormal, double, double, double, double>::add_to(m);
  Kernels<Sparse, double, int64_t>::add_to(m);
  Kernels<Orthogonal, double>::add_to(m);
  Kernels<RawWords>::add_to(m);
  m.impl("fold_in", fold_in_tensor);
  m.impl("draw_key", draw_key);
  m.impl("draw_key.like", draw_key_like);
  m.impl("statistics", statistics);
}

}  // namespace

TORCH_LIBRARY(paraminit_ext, m) {
  define_fill(m, Uniform::name, "float a, float b, ");
  define_fill(m, Normal::name, "float mean, float std, ");
  define_fill(m, TruncNormal::name, "float mean, float std, float a, float b, ");
  define_fill(m, Sparse::name, "float std, SymInt zeros, ");
  define_fill(m, Orthogonal::name, "float gain, ");
  define_fill(m, RawWords::name, "");
  // By name: what recomputes a part of a graph looks for a device under its name.
  m.def("draw_key(*, Device device, Generator? generator=None) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  // For torch.jit.trace, which takes no device for an argument.
  m.def("draw_key.like(Tensor like) -> Tensor", {at::Tag::nondeterministic_seeded});
  m.def("fold_in(Tensor key, int data) -> Tensor");
  m.def("statistics(Tensor self) -> Tensor");
}

TORCH_LIBRARY_IMPL(paraminit_ext, CPU, m) { add_kernels(m); }

#ifdef PARAMINIT_WITH_CUDA
TORCH_LIBRARY_IMPL(paraminit_ext, CUDA, m) { add_kernels(m); }
#endif

// Every other device, by way of the host's memory.
TORCH_LIBRARY_IMPL(paraminit_ext, CompositeExplicitAutograd, m) { add_kernels(m); }

TORCH_LIBRARY_IMPL(paraminit_ext, Meta, m) {
  MetaKernels<Uniform, double, double>::add_to(m);
  MetaKernels<Normal, double, double>::add_to(m);
  MetaKernels<TruncNormal, double, double, double, double>::add_to(m);
  MetaKernels<Sparse, double, c10::SymInt>::add_to(m);
  MetaKernels<Orthogonal, double>::add_to(m);
  MetaKernels<RawWords>::add_to(m);
  m.impl("fold_in", meta_fold_in);
  m.impl("draw_key", meta_draw_key);
  m.impl("draw_key.like", meta_draw_key_like);
  m.impl("statistics", meta_statistics);
}

// --- before and after the kernels ------------------------------------------------------------

namespace {

// What torch's own in-place functions do before and after their kernels: a tensor that requires
// grad is refused under grad mode (a fill has no gradient), an inference tensor outside inference
// mode; the tangent of forward-mode differentiation becomes zero, also without grad mode; the
// version counter moves. torch's fallbacks look for what an operator returns, and these return
// nothing.
void inplace(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const Tensor self = torch::jit::peek(*stack, 0, op.schema().arguments().size()).toTensor();
  const std::string name =
      "paraminit_ext." + op.schema().name().substr(sizeof("paraminit_ext::") - 1);
  TORCH_CHECK(
      !at::GradMode::is_enabled() || !self.requires_grad(), name,
      ": expected a tensor that does not require grad, got one that does while grad mode is on. "
      "Fill it under torch.no_grad().");
  TORCH_CHECK(!self.is_inference(), name,
              ": expected a normal tensor outside inference mode, got an inference tensor. "
              "Fill it under torch.inference_mode(), or fill a clone.");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  self.unsafeGetTensorImpl()->bump_version();
  const Tensor& tangent = self._fw_grad(/*level=*/0);
  if (tangent.defined()) tangent.zero_();
}

// A conjugate or negative view is filled as it reads, by way of a plain tensor. torch's own
// fallbacks take a result off the stack, where these operators leave none.
void fill_through_copy(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::IValue& slot = torch::jit::peek(*stack, 0, op.schema().arguments().size());
  const Tensor self = slot.toTensor();
  if (!self.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    check_disjoint(op.schema().name().c_str() + sizeof("paraminit_ext::") - 1, self);
  }
  const Tensor plain = at::empty_symint(self.sym_sizes(), self.options());
  slot = plain;
  op.callBoxed(stack);
  self.copy_(plain);
}

}  // namespace

TORCH_LIBRARY_IMPL(paraminit_ext, BackendSelect, m) { m.impl("draw_key", select_draw_key); }

TORCH_LIBRARY_IMPL(paraminit_ext, Conjugate, m) {
  for (const char* name : kFills)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fill_through_copy>());
}

TORCH_LIBRARY_IMPL(paraminit_ext, Negative, m) {
  for (const char* name : kFills)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fill_through_copy>());
}

TORCH_LIBRARY_IMPL(paraminit_ext, ADInplaceOrView, m) {
  for (const char* name : kFills)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&inplace>());
}

TORCH_LIBRARY_IMPL(paraminit_ext, Autograd, m) {
  for (const char* name : kFills) m.impl(name, torch::CppFunction::makeFallthrough());
  m.impl("fold_in", torch::CppFunction::makeFallthrough());
  m.impl("draw_key.like", torch::CppFunction::makeFallthrough());
  m.impl("statistics", torch::CppFunction::makeFallthrough());
}

}  // namespace paraminit
