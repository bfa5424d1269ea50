// The operators: schemas, argument checks, tensors turned into plain requests. Torch ends here.
// Every check comes before the first write, so that an error leaves the tensor as it was.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "constants.h"
#include "cpu/capability.h"
#include "cpu/fill.h"
#include "cpu/sparse.h"
#include "forked.h"
#include "generator.h"
#include "ops.h"
#include "orthogonal.h"
#include "overlap.h"
#include "staging.h"
#ifdef PARAMINIT_WITH_CUDA
#include "cuda/fill.h"
#endif

namespace paraminit {
namespace {

using at::IntArrayRef;
using at::Tensor;

// --- checks ----------------------------------------------------------------------------------

ElementType element_type(const char* op, at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return ElementType::kFloat32;
    case at::kDouble:
      return ElementType::kFloat64;
    case at::kHalf:
      return ElementType::kFloat16;
    case at::kBFloat16:
      return ElementType::kBFloat16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "paraminit_ext.", op,
                                  ": expected a float32, float64, float16 or bfloat16 tensor, got ",
                                  type, ". Fill one of these and convert it.");
  }
}

void check_layout(const char* op, const Tensor& self) {
  TORCH_CHECK_NOT_IMPLEMENTED(self.layout() == at::kStrided, "paraminit_ext.", op,
                              ": expected a strided tensor, got layout ", self.layout(),
                              ". Fill its values() or a dense tensor.");
  TORCH_CHECK_NOT_IMPLEMENTED(!self.is_quantized(), "paraminit_ext.", op,
                              ": expected a floating-point tensor, got ", self.scalar_type(),
                              ". Fill a float tensor and quantize it.");
  TORCH_CHECK_NOT_IMPLEMENTED(!self.is_nested(), "paraminit_ext.", op,
                              ": expected a dense tensor, got a nested one. Fill its parts.");
}

void check_shard(const char* op, const Tensor& self, IntArrayRef whole, IntArrayRef start) {
  if (whole.empty() && start.empty()) return;
  const auto dim = static_cast<size_t>(self.dim());
  TORCH_CHECK_VALUE(whole.size() == dim && start.size() == dim, "paraminit_ext.", op,
                    ": expected global_shape and shard_offset of ", dim,
                    " dimensions, as the tensor has, got ", whole, " and ", start, ".");
  int64_t numel = 1;
  for (size_t d = 0; d < dim; ++d) {
    const bool inside = start[d] >= 0 && whole[d] >= 0 && self.size(d) <= whole[d] &&
                        start[d] <= whole[d] - self.size(d);
    TORCH_CHECK_VALUE(inside, "paraminit_ext.", op, ": expected a shard inside ", whole,
                      ", got shape ", self.sizes(), " at offset ", start, ".");
    TORCH_CHECK_VALUE(whole[d] == 0 || numel <= std::numeric_limits<int64_t>::max() / whole[d],
                      "paraminit_ext.", op,
                      ": expected a global_shape of less than 2^63 elements, got ", whole, ".");
    numel *= whole[d];
  }
}

void check_key(const char* op, const Tensor& key, const Tensor& self) {
  TORCH_CHECK_VALUE(
      key.scalar_type() == at::kUInt64 && key.dim() == 1 && key.size(0) == 2 && key.is_contiguous(),
      "paraminit_ext.", op, ": expected a contiguous key of two uint64, got ", key.scalar_type(),
      " of shape ", key.sizes(), ". Use Key.to_tensor().");
  TORCH_CHECK_VALUE(key.device() == self.device(), "paraminit_ext.", op, ": expected a key on ",
                    self.device(), ", got one on ", key.device(), ". Use key.to(tensor.device).");
}

// --- distributions ---------------------------------------------------------------------------

double largest(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return 65504.0;
    case ElementType::kBFloat16:
      return 0x1.FEp+127;
    case ElementType::kFloat32:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

struct Uniform {
  static constexpr const char* name = "uniform_";
  static constexpr bool takes_complex = true;
  double a, b;

  void check(ElementType type) const {
    const double most = largest(type);
    TORCH_CHECK(std::abs(a) <= most && std::abs(b) <= most, "paraminit_ext.", name,
                ": expected bounds within +-", most, " (the dtype's range), got a=", a, ", b=", b,
                ".");
    TORCH_CHECK(a <= b, "paraminit_ext.", name, ": expected a <= b, got a=", a, " > b=", b, ".");
    TORCH_CHECK(b - a <= most, "paraminit_ext.", name, ": expected b - a <= ", most,
                " (the dtype's range), got a=", a, ", b=", b, ".");
  }
  Plan plan(ElementType type, bool) const { return plan_uniform(type, a, b); }
};

struct Normal {
  static constexpr const char* name = "normal_";
  static constexpr bool takes_complex = true;
  double mean, std;

  void check(ElementType type) const {
    const double most = largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
    TORCH_CHECK(std::abs(mean) <= most, "paraminit_ext.", name,
                ": expected a finite mean, got mean=", mean, ".");
    TORCH_CHECK(std >= 0 && std <= most, "paraminit_ext.", name,
                ": expected a finite std >= 0, got std=", std, ".");
  }
  // The variance of a complex normal is that of both parts together.
  Plan plan(ElementType type, bool complex) const {
    return plan_normal(type, mean, complex ? std / std::sqrt(2.0) : std);
  }
};

struct TruncNormal {
  static constexpr const char* name = "trunc_normal_";
  static constexpr bool takes_complex = false;
  double mean, std, a, b;

  void check(ElementType type) const {
    const double most = largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
    TORCH_CHECK_VALUE(std::abs(mean) <= most, "paraminit_ext.", name,
                      ": expected a finite mean, got mean=", mean, ".");
    TORCH_CHECK_VALUE(std > 0 && std <= most && (type == ElementType::kFloat64 || float(std) > 0),
                      "paraminit_ext.", name, ": expected a finite std > 0, got std=", std, ".");
    TORCH_CHECK_VALUE(a <= b, "paraminit_ext.", name, ": expected a <= b, got a=", a, ", b=", b,
                      ".");
    TORCH_CHECK_VALUE(a <= most && b >= -most, "paraminit_ext.", name,
                      ": expected bounds that leave a finite value, got a=", a, ", b=", b, ".");
    const double nearest = std::max((a - mean) / std, (mean - b) / std);
    TORCH_CHECK_VALUE(a == b || nearest <= kFarthestBound, "paraminit_ext.", name,
                      ": expected the nearer bound within ", kFarthestBound,
                      " standard deviations of the mean, got ", nearest, " (a=", a, ", b=", b,
                      ", mean=", mean, ", std=", std, "). Use uniform_ or constant_.");
  }
  Plan plan(ElementType type, bool) const { return plan_trunc_normal(type, mean, std, a, b); }
};

struct Sparse {
  static constexpr const char* name = "sparse_";
  static constexpr bool takes_complex = true;
  double std;

  void check(ElementType type) const {
    const double most = largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
    TORCH_CHECK(std >= 0 && std <= most, "paraminit_ext.", name,
                ": expected a finite std >= 0, got std=", std, ".");
  }
  Plan plan(ElementType type, bool complex) const { return Normal{0.0, std}.plan(type, complex); }
};

struct Orthogonal {
  static constexpr const char* name = "orthogonal_";
  static constexpr bool takes_complex = false;
  double gain;

  void check(ElementType) const {
    TORCH_CHECK_VALUE(std::isfinite(gain), "paraminit_ext.", name,
                      ": expected a finite gain, got gain=", gain, ".");
  }
};

struct RawWords {
  static constexpr const char* name = "words_";
};

// --- fills -----------------------------------------------------------------------------------

// A key by value, or on the device.
struct KeySource {
  Key value{};
  const Tensor* tensor = nullptr;
};

Key as_key(int64_t seed, int64_t offset) {
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(offset)};
}

// The two words of a key tensor where they lie, or null.
const uint64_t* words_of(KeySource key) {
  return key.tensor != nullptr ? key.tensor->const_data_ptr<uint64_t>() : nullptr;
}

Key host_key(KeySource key) {
  const uint64_t* words = words_of(key);
  return words != nullptr ? Key{words[0], words[1]} : key.value;
}

void launch(FillRequest request, const Geometry& geometry, const Tensor& self, KeySource key) {
  void* data = self.mutable_data_ptr();
#ifdef PARAMINIT_WITH_CUDA
  if (self.is_cuda()) {
    fill_cuda(request, geometry, data, key.value, words_of(key), self.device());
    return;
  }
#endif
  request.keys = make_key_schedule(host_key(key));
  fill_cpu(request, geometry, data);
}

Geometry geometry_of(const Tensor& self, IntArrayRef whole, IntArrayRef start) {
  return make_geometry(static_cast<int>(self.dim()), self.sizes().data(), self.strides().data(),
                       whole.empty() ? nullptr : whole.data(),
                       start.empty() ? nullptr : start.data());
}

// Of the real numbers that a complex tensor is made of, which are one dimension more.
Geometry geometry_of_parts(const Tensor& self, const Tensor& real, IntArrayRef whole,
                           IntArrayRef start) {
  std::vector<int64_t> real_whole(whole.begin(), whole.end());
  std::vector<int64_t> real_start(start.begin(), start.end());
  if (self.is_complex() && !whole.empty()) {
    real_whole.push_back(2);
    real_start.push_back(0);
  }
  return geometry_of(real, real_whole, real_start);
}

template <class Dist>
ElementType check_fill(const Dist& distribution, const Tensor& self) {
  check_layout(Dist::name, self);
  at::ScalarType type = self.scalar_type();
  if (Dist::takes_complex && self.is_complex()) type = c10::toRealValueType(type);
  const ElementType element = element_type(Dist::name, type);
  distribution.check(element);
  return element;
}

void check_disjoint(const char* op, const Tensor& self) {
  TORCH_CHECK(!overlaps_itself(self), "paraminit_ext.", op,
              ": expected a tensor whose elements do not share memory, got shape ", self.sizes(),
              " with strides ", self.strides(), ". Use .contiguous() or .clone().");
}

// The bytes of each piece of a fill by way of the host's memory, 0 where kernels reach the tensor.
// Tests ask for a number of their own.
int64_t staging_of(const Tensor& self, int64_t asked) {
  return has_kernels(self) ? asked : kStagingBytes;
}

// The key where the CPU can read it: of a fill on a device without kernels.
KeySource key_on_host(KeySource key) {
  if (key.tensor == nullptr) return key;
  const Tensor copy = key.tensor->cpu();
  return {host_key({{}, &copy})};
}

template <class Dist>
void fill(const Dist& distribution, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start, int64_t staging_bytes = 0) {
  const ElementType type = check_fill(distribution, self);
  check_shard(Dist::name, self, whole, start);
  check_disjoint(Dist::name, self);
  if (key.tensor != nullptr) check_key(Dist::name, *key.tensor, self);
  if (self.numel() == 0) return;
  if (const int64_t bytes = staging_of(self, staging_bytes); bytes != 0) {
    const KeySource on_host = key_on_host(key);
    const auto part = [&](const Tensor& piece, IntArrayRef of, IntArrayRef place) {
      fill(distribution, piece, on_host, of, place);
    };
    return fill_by_pieces(Dist::name, self, whole, start, bytes, false, part);
  }
  const DefaultFloatMode mode;
  const Plan plan = distribution.plan(type, self.is_complex());
  const Tensor real = self.is_complex() ? at::view_as_real(self) : self;
  if (plan.is_constant) {
    at::AutoDispatchBelowADInplaceOrView guard;
    real.fill_(plan.value);
    return;
  }
  launch(plan.request, geometry_of_parts(self, real, whole, start), real, key);
}

void check_words(const Tensor& self) {
  check_layout(RawWords::name, self);
  TORCH_CHECK_NOT_IMPLEMENTED(self.scalar_type() == at::kLong, "paraminit_ext.", RawWords::name,
                              ": expected an int64 tensor, got ", self.scalar_type(), ".");
}

void fill_words(const Tensor& self, KeySource key, IntArrayRef whole, IntArrayRef start,
                int64_t staging_bytes = 0) {
  check_words(self);
  check_shard(RawWords::name, self, whole, start);
  check_disjoint(RawWords::name, self);
  if (key.tensor != nullptr) check_key(RawWords::name, *key.tensor, self);
  if (self.numel() == 0) return;
  if (const int64_t bytes = staging_of(self, staging_bytes); bytes != 0) {
    const KeySource on_host = key_on_host(key);
    const auto part = [&](const Tensor& piece, IntArrayRef of, IntArrayRef place) {
      fill_words(piece, on_host, of, place);
    };
    return fill_by_pieces(RawWords::name, self, whole, start, bytes, false, part);
  }
  launch(plan_words().request, geometry_of(self, whole, start), self, key);
}

ElementType check_sparse(const Sparse& sparse, const Tensor& self) {
  const ElementType type = check_fill(sparse, self);
  TORCH_CHECK_VALUE(self.dim() == 2, "paraminit_ext.", Sparse::name,
                    ": expected a tensor of 2 dimensions, got ", self.dim(), ". Pass a matrix.");
  return type;
}

void check_orthogonal(const Orthogonal& orthogonal, const Tensor& self) {
  check_fill(orthogonal, self);
  TORCH_CHECK_VALUE(self.dim() >= 2, "paraminit_ext.", Orthogonal::name,
                    ": expected a tensor of 2 or more dimensions, got ", self.dim(),
                    ". Pass a matrix.");
}

void fill_sparse(const Sparse& sparse, int64_t zeros, const Tensor& self, KeySource key,
                 IntArrayRef whole, IntArrayRef start, int64_t staging_bytes = 0) {
  const ElementType type = check_sparse(sparse, self);
  check_shard(Sparse::name, self, whole, start);
  check_disjoint(Sparse::name, self);
  if (key.tensor != nullptr) check_key(Sparse::name, *key.tensor, self);
  const int64_t rows = whole.empty() ? self.size(0) : whole[0];
  TORCH_CHECK_VALUE(zeros >= 0 && zeros <= rows, "paraminit_ext.", Sparse::name, ": expected 0 to ",
                    rows, " zeros a column, got ", zeros, ".");
  TORCH_CHECK_NOT_IMPLEMENTED(rows < int64_t(1) << 32, "paraminit_ext.", Sparse::name,
                              ": expected fewer than 2^32 rows, got ", rows,
                              ". Fill the transpose of a smaller matrix.");
  if (zeros == 0) return fill(Normal{0.0, sparse.std}, self, key, whole, start, staging_bytes);
  if (self.numel() == 0) return;
  const DefaultFloatMode mode;
  const Plan plan = sparse.plan(type, self.is_complex());
  if (plan.is_constant || zeros == rows) {
    at::AutoDispatchBelowADInplaceOrView guard;
    self.zero_();
    return;
  }
  if (const int64_t bytes = staging_of(self, staging_bytes); bytes != 0) {
    const KeySource on_host = key_on_host(key);
    const auto part = [&](const Tensor& piece, IntArrayRef of, IntArrayRef place) {
      fill_sparse(sparse, zeros, piece, on_host, of, place);
    };
    // Whole columns where they fit: each piece counts the words of its columns anew.
    return fill_by_pieces(Sparse::name, self, whole, start, bytes, true, part);
  }
  SparseRequest request{};
  request.values = plan.request;
  request.parts = self.is_complex() ? 2 : 1;
  request.rows = rows;
  request.columns = whole.empty() ? self.size(1) : whole[1];
  request.held = {start.empty() ? 0 : start[0], start.empty() ? 0 : start[1], self.size(0),
                  self.size(1)};
  request.zeros = zeros;
  request.spread = kWindowSpread;
  const int64_t strides[] = {self.stride(0) * request.parts, self.stride(1) * request.parts};
  void* data = self.mutable_data_ptr();
#ifdef PARAMINIT_WITH_CUDA
  if (self.is_cuda()) {
    sparse_cuda(request, strides, data, key.value, words_of(key), self.device());
    return;
  }
#endif
  const Key value = host_key(key);
  request.values.keys = make_key_schedule(value);
  request.word_keys = make_key_schedule(fold_in(value, 1));
  sparse_cpu(request, strides, data);
}

// The matrix that `self` is, where the products can work in it: of their precision, its rows or its
// columns in one piece each.
std::optional<Tensor> matrix_in_place(const Tensor& self, at::ScalarType type, int64_t rows,
                                      int64_t columns) {
  if (self.scalar_type() != type) return std::nullopt;
  if (self.is_contiguous()) return self.view({rows, columns});
  if (self.dim() != 2) return std::nullopt;
  const bool by_rows = self.stride(1) == 1 && self.stride(0) >= columns;
  const bool by_columns = self.stride(0) == 1 && self.stride(1) >= rows;
  return by_rows || by_columns ? std::optional<Tensor>(self) : std::nullopt;
}

void fill_orthogonal(const Orthogonal& orthogonal, const Tensor& self, KeySource key,
                     IntArrayRef whole, IntArrayRef start) {
  check_orthogonal(orthogonal, self);
  check_shard(Orthogonal::name, self, whole, start);
  check_disjoint(Orthogonal::name, self);
  if (key.tensor != nullptr) check_key(Orthogonal::name, *key.tensor, self);
  if (self.numel() == 0) return;
  const DefaultFloatMode mode;
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);

  const IntArrayRef shape = whole.empty() ? self.sizes() : whole;
  const int64_t rows = shape[0], columns = c10::multiply_integers(shape.slice(1));
  const at::ScalarType type = self.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  std::optional<Tensor> here;
  if (shape == self.sizes()) here = matrix_in_place(self, type, rows, columns);
  const Tensor matrix =
      here.has_value()
          ? *here
          : at::empty({rows, columns},
                      self.options().dtype(type).memory_format(at::MemoryFormat::Contiguous));
  const Tensor tall = rows >= columns ? matrix : matrix.t();
  fill(Normal{0.0, 1.0}, tall, key, {}, {});
  make_orthonormal(tall);
  if (orthogonal.gain != 1.0) matrix.mul_(orthogonal.gain);
  if (here.has_value()) return;
  Tensor part = matrix.view(shape);
  for (int64_t d = 0; d < self.dim(); ++d) {
    part = part.narrow(d, start.empty() ? 0 : start[d], self.size(d));
  }
  self.copy_(part);
}

// --- kernels ---------------------------------------------------------------------------------

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

void uniform(Tensor& self, double a, double b, int64_t seed, int64_t offset, IntArrayRef whole,
             IntArrayRef start) {
  run(Uniform::name, self,
      [&] { fill(Uniform{a, b}, self, {as_key(seed, offset)}, whole, start); });
}
void uniform_key(Tensor& self, double a, double b, const Tensor& key, IntArrayRef whole,
                 IntArrayRef start) {
  run(Uniform::name, self, [&] { fill(Uniform{a, b}, self, {{}, &key}, whole, start); });
}
void normal(Tensor& self, double mean, double std, int64_t seed, int64_t offset, IntArrayRef whole,
            IntArrayRef start) {
  run(Normal::name, self,
      [&] { fill(Normal{mean, std}, self, {as_key(seed, offset)}, whole, start); });
}
void normal_key(Tensor& self, double mean, double std, const Tensor& key, IntArrayRef whole,
                IntArrayRef start) {
  run(Normal::name, self, [&] { fill(Normal{mean, std}, self, {{}, &key}, whole, start); });
}
void trunc_normal(Tensor& self, double mean, double std, double a, double b, int64_t seed,
                  int64_t offset, IntArrayRef whole, IntArrayRef start) {
  run(TruncNormal::name, self,
      [&] { fill(TruncNormal{mean, std, a, b}, self, {as_key(seed, offset)}, whole, start); });
}
void trunc_normal_key(Tensor& self, double mean, double std, double a, double b, const Tensor& key,
                      IntArrayRef whole, IntArrayRef start) {
  run(TruncNormal::name, self,
      [&] { fill(TruncNormal{mean, std, a, b}, self, {{}, &key}, whole, start); });
}
void sparse(Tensor& self, double std, int64_t zeros, int64_t seed, int64_t offset,
            IntArrayRef whole, IntArrayRef start) {
  run(Sparse::name, self,
      [&] { fill_sparse(Sparse{std}, zeros, self, {as_key(seed, offset)}, whole, start); });
}
void sparse_key(Tensor& self, double std, int64_t zeros, const Tensor& key, IntArrayRef whole,
                IntArrayRef start) {
  run(Sparse::name, self, [&] { fill_sparse(Sparse{std}, zeros, self, {{}, &key}, whole, start); });
}
void orthogonal(Tensor& self, double gain, int64_t seed, int64_t offset, IntArrayRef whole,
                IntArrayRef start) {
  run(Orthogonal::name, self,
      [&] { fill_orthogonal(Orthogonal{gain}, self, {as_key(seed, offset)}, whole, start); });
}
void orthogonal_key(Tensor& self, double gain, const Tensor& key, IntArrayRef whole,
                    IntArrayRef start) {
  run(Orthogonal::name, self,
      [&] { fill_orthogonal(Orthogonal{gain}, self, {{}, &key}, whole, start); });
}
void words(Tensor& self, int64_t seed, int64_t offset, IntArrayRef whole, IntArrayRef start) {
  run(RawWords::name, self, [&] { fill_words(self, {as_key(seed, offset)}, whole, start); });
}
void words_key(Tensor& self, const Tensor& key, IntArrayRef whole, IntArrayRef start) {
  run(RawWords::name, self, [&] { fill_words(self, {{}, &key}, whole, start); });
}

Tensor draw_key(at::Device device, std::optional<at::Generator> generator) {
  const auto options = at::TensorOptions().dtype(at::kUInt64);
#ifdef PARAMINIT_WITH_CUDA
  if (device.is_cuda()) {
    const Tensor key = at::empty({2}, options.device(device));
    draw_key_cuda(key.mutable_data_ptr<uint64_t>(), key.device(), generator);
    return key;
  }
#endif
  const Tensor key = at::empty({2}, options.device(at::kCPU));
  const Key drawn = draw(generator.value_or(at::detail::getDefaultCPUGenerator()));
  key.mutable_data_ptr<uint64_t>()[0] = drawn.seed;
  key.mutable_data_ptr<uint64_t>()[1] = drawn.offset;
  return device.is_cpu() ? key : key.to(device);
}

Tensor fold_in_tensor(const Tensor& key, int64_t data) {
  check_key("fold_in", key, key);
  if (!has_kernels(key)) return fold_in_tensor(key.cpu(), data).to(key.device());
  const Tensor folded = at::empty_like(key);
#ifdef PARAMINIT_WITH_CUDA
  if (key.is_cuda()) {
    fold_in_cuda(key.const_data_ptr<uint64_t>(), static_cast<uint64_t>(data),
                 folded.mutable_data_ptr<uint64_t>(), key.device());
    return folded;
  }
#endif
  const uint64_t* from = key.const_data_ptr<uint64_t>();
  const Key to = fold_in({from[0], from[1]}, static_cast<uint64_t>(data));
  folded.mutable_data_ptr<uint64_t>()[0] = to.seed;
  folded.mutable_data_ptr<uint64_t>()[1] = to.offset;
  return folded;
}

// An operator without a tensor argument has no device to be dispatched on but the one it names.
Tensor select_draw_key(at::Device device, std::optional<at::Generator> generator) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paraminit_ext::draw_key", "")
                             .typed<decltype(select_draw_key)>();
  const c10::DispatchKey key = c10::computeDispatchKey(at::kUInt64, at::kStrided, device);
  return op.redispatch(c10::DispatchKeySet(key), device, std::move(generator));
}

// A meta tensor may have symbolic sizes: what does not depend on them is checked.
namespace meta {

using c10::SymIntArrayRef;

void uniform(Tensor& self, double a, double b, int64_t, int64_t, SymIntArrayRef, SymIntArrayRef) {
  check_fill(Uniform{a, b}, self);
}
void uniform_key(Tensor& self, double a, double b, const Tensor& key, SymIntArrayRef,
                 SymIntArrayRef) {
  check_fill(Uniform{a, b}, self);
  check_key(Uniform::name, key, self);
}
void normal(Tensor& self, double mean, double std, int64_t, int64_t, SymIntArrayRef,
            SymIntArrayRef) {
  check_fill(Normal{mean, std}, self);
}
void normal_key(Tensor& self, double mean, double std, const Tensor& key, SymIntArrayRef,
                SymIntArrayRef) {
  check_fill(Normal{mean, std}, self);
  check_key(Normal::name, key, self);
}
void trunc_normal(Tensor& self, double mean, double std, double a, double b, int64_t, int64_t,
                  SymIntArrayRef, SymIntArrayRef) {
  check_fill(TruncNormal{mean, std, a, b}, self);
}
void trunc_normal_key(Tensor& self, double mean, double std, double a, double b, const Tensor& key,
                      SymIntArrayRef, SymIntArrayRef) {
  check_fill(TruncNormal{mean, std, a, b}, self);
  check_key(TruncNormal::name, key, self);
}
void sparse(Tensor& self, double std, c10::SymInt, int64_t, int64_t, SymIntArrayRef,
            SymIntArrayRef) {
  check_sparse(Sparse{std}, self);
}
void sparse_key(Tensor& self, double std, c10::SymInt, const Tensor& key, SymIntArrayRef,
                SymIntArrayRef) {
  check_sparse(Sparse{std}, self);
  check_key(Sparse::name, key, self);
}
void orthogonal(Tensor& self, double gain, int64_t, int64_t, SymIntArrayRef, SymIntArrayRef) {
  check_orthogonal(Orthogonal{gain}, self);
}
void orthogonal_key(Tensor& self, double gain, const Tensor& key, SymIntArrayRef, SymIntArrayRef) {
  check_orthogonal(Orthogonal{gain}, self);
  check_key(Orthogonal::name, key, self);
}
void words(Tensor& self, int64_t, int64_t, SymIntArrayRef, SymIntArrayRef) { check_words(self); }
void words_key(Tensor& self, const Tensor& key, SymIntArrayRef, SymIntArrayRef) {
  check_words(self);
  check_key(RawWords::name, key, self);
}
Tensor draw_key(at::Device device, std::optional<at::Generator>) {
  return at::empty({2}, at::TensorOptions().dtype(at::kUInt64).device(device));
}
Tensor fold_in_tensor(const Tensor& key, int64_t) { return at::empty_like(key); }

}  // namespace meta

template <class Dist>
Plan checked_plan(const Dist& distribution, const Tensor& self) {
  return distribution.plan(check_fill(distribution, self), self.is_complex());
}

constexpr const char* kFills[] = {"uniform_",      "uniform_.key",      "normal_", "normal_.key",
                                  "trunc_normal_", "trunc_normal_.key", "sparse_", "sparse_.key",
                                  "orthogonal_",   "orthogonal_.key",   "words_",  "words_.key"};

void register_fills(torch::Library& m) {
  m.impl("uniform_", uniform);
  m.impl("uniform_.key", uniform_key);
  m.impl("normal_", normal);
  m.impl("normal_.key", normal_key);
  m.impl("trunc_normal_", trunc_normal);
  m.impl("trunc_normal_.key", trunc_normal_key);
  m.impl("sparse_", sparse);
  m.impl("sparse_.key", sparse_key);
  m.impl("orthogonal_", orthogonal);
  m.impl("orthogonal_.key", orthogonal_key);
  m.impl("words_", words);
  m.impl("words_.key", words_key);
  m.impl("fold_in", fold_in_tensor);
  m.impl("draw_key", draw_key);
}

}  // namespace

bool has_kernels(const Tensor& tensor) {
#ifdef PARAMINIT_WITH_CUDA
  if (tensor.is_cuda()) return true;
#endif
  return tensor.is_cpu();
}

Plan plan_of(const std::string& fill, at::ArrayRef<double> p, const Tensor& self) {
  const DefaultFloatMode mode;
  if (fill == Uniform::name && p.size() == 2) return checked_plan(Uniform{p[0], p[1]}, self);
  if (fill == Normal::name && p.size() == 2) return checked_plan(Normal{p[0], p[1]}, self);
  TORCH_CHECK_VALUE(fill == TruncNormal::name && p.size() == 4,
                    "paraminit_ext.fill_many: expected an elementwise fill, got ", fill, " of ",
                    p.size(), " parameters.");
  return checked_plan(TruncNormal{p[0], p[1], p[2], p[3]}, self);
}

Geometry geometry_for(const char* fill, const Tensor& self, bool parts, IntArrayRef whole,
                      IntArrayRef start) {
  check_shard(fill, self, whole, start);
  if (!self.is_contiguous()) check_disjoint(fill, self);
  if (!parts || !self.is_complex()) return geometry_of(self, whole, start);
  return geometry_of_parts(self, at::view_as_real(self), whole, start);
}

void fill_staged(const std::string& fill, at::ArrayRef<double> p, const Tensor& self, Key key,
                 IntArrayRef whole, IntArrayRef start, int64_t bytes) {
  const KeySource source{key};
  if (fill == Uniform::name) {
    paraminit::fill(Uniform{p.at(0), p.at(1)}, self, source, whole, start, bytes);
  } else if (fill == Normal::name) {
    paraminit::fill(Normal{p.at(0), p.at(1)}, self, source, whole, start, bytes);
  } else if (fill == TruncNormal::name) {
    const TruncNormal law{p.at(0), p.at(1), p.at(2), p.at(3)};
    paraminit::fill(law, self, source, whole, start, bytes);
  } else if (fill == Sparse::name) {
    fill_sparse(Sparse{p.at(0)}, static_cast<int64_t>(p.at(1)), self, source, whole, start, bytes);
  } else {
    fill_words(self, source, whole, start, bytes);
  }
}

TORCH_LIBRARY(paraminit_ext, m) {
  m.def(
      "uniform_(Tensor(a!) self, float a, float b, int seed, int offset, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "uniform_.key(Tensor(a!) self, float a, float b, Tensor key, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "normal_(Tensor(a!) self, float mean, float std, int seed, int offset, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "normal_.key(Tensor(a!) self, float mean, float std, Tensor key, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "trunc_normal_(Tensor(a!) self, float mean, float std, float a, float b, int seed, int "
      "offset, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "trunc_normal_.key(Tensor(a!) self, float mean, float std, float a, float b, Tensor key, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "sparse_(Tensor(a!) self, float std, SymInt zeros, int seed, int offset, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "sparse_.key(Tensor(a!) self, float std, SymInt zeros, Tensor key, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "orthogonal_(Tensor(a!) self, float gain, int seed, int offset, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "orthogonal_.key(Tensor(a!) self, float gain, Tensor key, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "words_(Tensor(a!) self, int seed, int offset, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def(
      "words_.key(Tensor(a!) self, Tensor key, "
      "SymInt[] global_shape, SymInt[] shard_offset) -> ()");
  m.def("draw_key(Device device, Generator? generator=None) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  m.def("fold_in(Tensor key, int data) -> Tensor");
}

TORCH_LIBRARY_IMPL(paraminit_ext, CPU, m) { register_fills(m); }

#ifdef PARAMINIT_WITH_CUDA
TORCH_LIBRARY_IMPL(paraminit_ext, CUDA, m) { register_fills(m); }
#endif

// Every other device, by way of the host's memory.
TORCH_LIBRARY_IMPL(paraminit_ext, CompositeExplicitAutograd, m) { register_fills(m); }

TORCH_LIBRARY_IMPL(paraminit_ext, Meta, m) {
  m.impl("uniform_", meta::uniform);
  m.impl("uniform_.key", meta::uniform_key);
  m.impl("normal_", meta::normal);
  m.impl("normal_.key", meta::normal_key);
  m.impl("trunc_normal_", meta::trunc_normal);
  m.impl("trunc_normal_.key", meta::trunc_normal_key);
  m.impl("sparse_", meta::sparse);
  m.impl("sparse_.key", meta::sparse_key);
  m.impl("orthogonal_", meta::orthogonal);
  m.impl("orthogonal_.key", meta::orthogonal_key);
  m.impl("words_", meta::words);
  m.impl("words_.key", meta::words_key);
  m.impl("fold_in", meta::fold_in_tensor);
  m.impl("draw_key", meta::draw_key);
}

TORCH_LIBRARY_IMPL(paraminit_ext, BackendSelect, m) { m.impl("draw_key", select_draw_key); }

// What torch's own in-place functions do before and after their kernels: a tensor that requires
// grad is refused under grad mode (a fill has no gradient), an inference tensor outside inference
// mode; the version counter moves. torch's fallbacks look for what an operator returns, and these
// return nothing.
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

// vmap's own fallback for these says nothing that helps: one key for a batch would repeat, and many
// would have to be named.
void refuse_batched(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, "paraminit_ext.", op.schema().name().c_str() + sizeof("paraminit_ext::") - 1,
              ": expected a tensor outside torch.vmap, got a batched one. Fill the whole batch "
              "before vmap, or its tensors one by one.");
}

TORCH_LIBRARY_IMPL(paraminit_ext, FuncTorchBatched, m) {
  for (const char* name : kFills)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_batched>());
}

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
}

}  // namespace paraminit
