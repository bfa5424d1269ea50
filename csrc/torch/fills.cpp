// See fills.h. Tensors become plain requests here.
#include "fills.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"
#include "../cpu/capability.h"
#include "../cpu/fill.h"
#include "../cpu/sparse.h"
#include "orthogonal.h"
#include "staging.h"
#ifdef PARAMINIT_WITH_CUDA
#include "cuda.h"
#endif

namespace paraminit {

using at::IntArrayRef;
using at::Tensor;

// --- what is drawn from ----------------------------------------------------------------------

namespace {

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

}  // namespace

void Uniform::check(ElementType type) const {
  const double most = largest(type);
  TORCH_CHECK(std::abs(a) <= most && std::abs(b) <= most, "paraminit_ext.", name,
              ": expected bounds within +-", most, " (the dtype's range), got a=", a, ", b=", b,
              ".");
  TORCH_CHECK(a <= b, "paraminit_ext.", name, ": expected a <= b, got a=", a, " > b=", b, ".");
  TORCH_CHECK(b - a <= most, "paraminit_ext.", name, ": expected b - a <= ", most,
              " (the dtype's range), got a=", a, ", b=", b, ".");
}

Plan Uniform::plan(ElementType type, bool) const { return plan_uniform(type, a, b); }

void Normal::check(ElementType type) const {
  const double most = largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
  TORCH_CHECK(std::abs(mean) <= most, "paraminit_ext.", name,
              ": expected a finite mean, got mean=", mean, ".");
  TORCH_CHECK(std >= 0 && std <= most, "paraminit_ext.", name,
              ": expected a finite std >= 0, got std=", std, ".");
}

// The variance of a complex normal is that of both parts together.
Plan Normal::plan(ElementType type, bool complex) const {
  return plan_normal(type, mean, complex ? std / std::sqrt(2.0) : std);
}

void TruncNormal::check(ElementType type) const {
  const double most = largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
  TORCH_CHECK_VALUE(std::abs(mean) <= most, "paraminit_ext.", name,
                    ": expected a finite mean, got mean=", mean, ".");
  TORCH_CHECK_VALUE(std > 0 && std <= most && (type == ElementType::kFloat64 || float(std) > 0),
                    "paraminit_ext.", name, ": expected a finite std > 0, got std=", std,
                    ". Use constant_ where nothing is to vary.");
  TORCH_CHECK_VALUE(a <= b, "paraminit_ext.", name, ": expected a <= b, got a=", a, ", b=", b, ".");
  TORCH_CHECK_VALUE(a <= most && b >= -most, "paraminit_ext.", name,
                    ": expected bounds that leave a finite value, got a=", a, ", b=", b, ".");
  const double nearest = std::max((a - mean) / std, (mean - b) / std);
  TORCH_CHECK_VALUE(a == b || nearest <= kFarthestBound, "paraminit_ext.", name,
                    ": expected the nearer bound within ", kFarthestBound,
                    " standard deviations of the mean, got ", nearest, " (a=", a, ", b=", b,
                    ", mean=", mean, ", std=", std, "). Use uniform_ or constant_.");
}

Plan TruncNormal::plan(ElementType type, bool) const {
  return plan_trunc_normal(type, mean, std, a, b);
}

void Sparse::check(ElementType type) const {
  const double most = largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
  TORCH_CHECK(std >= 0 && std <= most, "paraminit_ext.", name,
              ": expected a finite std >= 0, got std=", std, ".");
}

void Orthogonal::check(ElementType) const {
  TORCH_CHECK_VALUE(std::isfinite(gain), "paraminit_ext.", name,
                    ": expected a finite gain, got gain=", gain, ".");
}

// --- checks ----------------------------------------------------------------------------------

namespace {

// Of a complex tensor, the type of its parts where the fill takes them.
template <class Law>
ElementType checked_type(const Law& law, const Tensor& self) {
  check_layout(Law::name, self);
  at::ScalarType type = self.scalar_type();
  if (Law::takes_complex && self.is_complex()) type = c10::toRealValueType(type);
  const ElementType element = element_type(Law::name, type);
  law.check(element);
  return element;
}

ElementType checked_matrix_type(const Sparse& law, const Tensor& self) {
  const ElementType type = checked_type(law, self);
  TORCH_CHECK_VALUE(self.dim() == 2, "paraminit_ext.", Sparse::name,
                    ": expected a tensor of 2 dimensions, got ", self.dim(), ". Pass a matrix.");
  return type;
}

// Where the fill is to go: the same for all.
void check_place(const char* op, const Tensor& self, KeySource key, IntArrayRef whole,
                 IntArrayRef start) {
  check_shard(op, self, whole, start);
  check_disjoint(op, self);
  check_storage(op, self);
  if (key.tensor != nullptr) check_key(op, *key.tensor, self);
}

}  // namespace

void check_fill(const Uniform& law, const Tensor& self) { checked_type(law, self); }
void check_fill(const Normal& law, const Tensor& self) { checked_type(law, self); }
void check_fill(const TruncNormal& law, const Tensor& self) { checked_type(law, self); }

void check_fill(const Sparse& law, const Tensor& self) { checked_matrix_type(law, self); }

void check_fill(const Orthogonal& law, const Tensor& self) {
  checked_type(law, self);
  TORCH_CHECK_VALUE(self.dim() >= 2, "paraminit_ext.", Orthogonal::name,
                    ": expected a tensor of 2 or more dimensions, got ", self.dim(),
                    ". Pass a matrix.");
}

void check_fill(const RawWords&, const Tensor& self) {
  check_layout(RawWords::name, self);
  TORCH_CHECK_NOT_IMPLEMENTED(self.scalar_type() == at::kLong, "paraminit_ext.", RawWords::name,
                              ": expected an int64 tensor, got ", self.scalar_type(), ".");
}

// --- elementwise fills -----------------------------------------------------------------------

namespace {

// The two words of a key tensor where they lie, or null.
const uint64_t* words_of(KeySource key) {
  return key.tensor != nullptr ? static_cast<const uint64_t*>(key.tensor->const_data_ptr())
                               : nullptr;
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

// The bytes of each piece of a fill by way of the host's memory, 0 where kernels reach the tensor.
// Tests ask for a number of their own.
int64_t staging_of(const Tensor& self, int64_t asked) {
  return has_kernels(self) ? asked : kStagingBytes;
}

// By pieces, at a key that the CPU can read.
template <class Law>
void fill_by_way_of_host(const Law& law, const Tensor& self, KeySource key, IntArrayRef whole,
                         IntArrayRef start, int64_t bytes, bool columns) {
  KeySource on_host = key;
  if (key.tensor != nullptr) {
    const Tensor copy = key.tensor->cpu();
    on_host = {host_key({{}, &copy})};
  }
  const auto part = [&](const Tensor& piece, IntArrayRef of, IntArrayRef place) {
    fill(law, piece, on_host, of, place);
  };
  fill_by_pieces(Law::name, self, whole, start, bytes, columns, part);
}

template <class Law>
void fill_elementwise(const Law& law, const Tensor& self, KeySource key, IntArrayRef whole,
                      IntArrayRef start, int64_t staging_bytes) {
  const ElementType type = checked_type(law, self);
  check_place(Law::name, self, key, whole, start);
  if (self.numel() == 0) return;
  if (const int64_t bytes = staging_of(self, staging_bytes); bytes != 0) {
    return fill_by_way_of_host(law, self, key, whole, start, bytes, false);
  }
  const DefaultFloatMode mode;
  const Plan plan = law.plan(type, self.is_complex());
  const Tensor real = self.is_complex() ? at::view_as_real(self) : self;
  if (plan.is_constant) {
    at::AutoDispatchBelowADInplaceOrView guard;
    real.fill_(plan.value);
    return;
  }
  launch(plan.request, geometry_of_parts(self, real, whole, start), real, key);
}

}  // namespace

void fill(const Uniform& law, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start, int64_t staging_bytes) {
  fill_elementwise(law, self, key, whole, start, staging_bytes);
}

void fill(const Normal& law, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start, int64_t staging_bytes) {
  fill_elementwise(law, self, key, whole, start, staging_bytes);
}

void fill(const TruncNormal& law, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start, int64_t staging_bytes) {
  fill_elementwise(law, self, key, whole, start, staging_bytes);
}

void fill(const RawWords& law, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start, int64_t staging_bytes) {
  check_fill(law, self);
  check_place(RawWords::name, self, key, whole, start);
  if (self.numel() == 0) return;
  if (const int64_t bytes = staging_of(self, staging_bytes); bytes != 0) {
    return fill_by_way_of_host(law, self, key, whole, start, bytes, false);
  }
  launch(plan_words().request, geometry_of(self, whole, start), self, key);
}

// --- sparse_ ---------------------------------------------------------------------------------

void fill(const Sparse& law, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start, int64_t staging_bytes) {
  const ElementType type = checked_matrix_type(law, self);
  check_place(Sparse::name, self, key, whole, start);
  const int64_t zeros = law.zeros;
  const int64_t rows = whole.empty() ? self.size(0) : whole[0];
  TORCH_CHECK_VALUE(zeros >= 0 && zeros <= rows, "paraminit_ext.", Sparse::name, ": expected 0 to ",
                    rows, " zeros a column, got ", zeros, ".");
  TORCH_CHECK_NOT_IMPLEMENTED(rows < int64_t(1) << 32, "paraminit_ext.", Sparse::name,
                              ": expected fewer than 2^32 rows, got ", rows,
                              ". Fill the transpose of a smaller matrix.");
  const Normal normal{0.0, law.std};
  if (zeros == 0) return fill(normal, self, key, whole, start, staging_bytes);
  if (self.numel() == 0) return;
  const DefaultFloatMode mode;
  const Plan plan = normal.plan(type, self.is_complex());
  if (plan.is_constant || zeros == rows) {
    at::AutoDispatchBelowADInplaceOrView guard;
    self.zero_();
    return;
  }
  if (const int64_t bytes = staging_of(self, staging_bytes); bytes != 0) {
    // Whole columns where they fit: each piece counts the words of its columns anew.
    return fill_by_way_of_host(law, self, key, whole, start, bytes, true);
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

// --- orthogonal_ -----------------------------------------------------------------------------

namespace {

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

}  // namespace

void fill(const Orthogonal& law, const Tensor& self, KeySource key, IntArrayRef whole,
          IntArrayRef start) {
  check_fill(law, self);
  check_place(Orthogonal::name, self, key, whole, start);
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
  if (law.gain != 1.0) matrix.mul_(law.gain);
  if (here.has_value()) return;
  Tensor part = matrix.view(shape);
  for (int64_t d = 0; d < self.dim(); ++d) {
    part = part.narrow(d, start.empty() ? 0 : start[d], self.size(d));
  }
  self.copy_(part);
}

// --- by name ---------------------------------------------------------------------------------

namespace {

// What `use` makes of the elementwise fill of that name.
template <class Use>
auto with_elementwise(const std::string& name, at::ArrayRef<double> p, const Use& use) {
  if (name == Uniform::name && p.size() == 2) return use(Uniform{p[0], p[1]});
  if (name == Normal::name && p.size() == 2) return use(Normal{p[0], p[1]});
  TORCH_CHECK_VALUE(name == TruncNormal::name && p.size() == 4,
                    "paraminit_ext.fill_many: expected an elementwise fill, got ", name, " of ",
                    p.size(), " parameters.");
  return use(TruncNormal{p[0], p[1], p[2], p[3]});
}

}  // namespace

bool has_kernels(const Tensor& tensor) {
#ifdef PARAMINIT_WITH_CUDA
  if (tensor.is_cuda()) return true;
#endif
  return tensor.is_cpu();
}

Plan plan_of(const std::string& name, at::ArrayRef<double> parameters, const Tensor& self) {
  const DefaultFloatMode mode;
  return with_elementwise(name, parameters, [&](const auto& law) {
    return law.plan(checked_type(law, self), self.is_complex());
  });
}

void check_parameters(const std::string& name, at::ArrayRef<double> parameters,
                      at::ScalarType type) {
  if (c10::isComplexType(type)) type = c10::toRealValueType(type);
  with_elementwise(name, parameters,
                   [&](const auto& law) { law.check(element_type(law.name, type)); });
}

Geometry geometry_for(const char* name, const Tensor& self, bool parts, IntArrayRef whole,
                      IntArrayRef start) {
  check_shard(name, self, whole, start);
  if (!self.is_contiguous()) check_disjoint(name, self);
  if (!parts || !self.is_complex()) return geometry_of(self, whole, start);
  return geometry_of_parts(self, at::view_as_real(self), whole, start);
}

void fill_staged(const std::string& name, at::ArrayRef<double> parameters, const Tensor& self,
                 Key key, IntArrayRef whole, IntArrayRef start, int64_t bytes) {
  const KeySource source{key};
  if (name == Sparse::name) {
    const Sparse law{parameters.at(0), static_cast<int64_t>(parameters.at(1))};
    fill(law, self, source, whole, start, bytes);
  } else if (name == RawWords::name) {
    fill(RawWords{}, self, source, whole, start, bytes);
  } else {
    with_elementwise(name, parameters,
                     [&](const auto& law) { fill(law, self, source, whole, start, bytes); });
  }
}

}  // namespace paraminit
