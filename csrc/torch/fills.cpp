// See fills.h. Converts arrays and parameters to the requests that the kernels take.
#include "fills.h"

#include <array>
#include <limits>

#include "../cpu/capability.h"
#include "../cpu/fill.h"
#include "../cpu/fork.h"
#include "../cpu/fill_many.h"
#include "../cpu/sparse.h"
#include "../stream/errors.h"
#include "../stream/overlap.h"
#include "orthogonal.h"
#include "tensors.h"

namespace paraminit {
namespace {

const CudaBackend* backend = nullptr;

// A non-empty array viewed as real numbers, like torch.view_as_real: a complex array gets one more
// dimension of size 2. Dimensions of global size 1 are left out, which leaves at most 62 dimensions
// of fewer than 2^63 elements.
struct RealView {
  RealView(const Array& self, const ShardPosition& place) {
    const int parts = is_complex(self.type) ? 2 : 1;
    for (size_t d = 0; d < self.sizes.size(); ++d) {
      if ((place.global_shape.empty() ? self.sizes[d] : place.global_shape[d]) == 1) continue;
      sizes[dims] = self.sizes[d];
      strides[dims] = parts * self.strides[d];
      if (!place.global_shape.empty()) whole[dims] = place.global_shape[d];
      if (!place.shard_offset.empty()) start[dims] = place.shard_offset[d];
      ++dims;
    }
    if (parts == 1) return;
    sizes[dims] = whole[dims] = 2;
    strides[dims] = 1;
    ++dims;
  }
  Array array(const Array& self, ElementType type) const {
    Array real = self;
    real.type = type == ElementType::kFloat64    ? Dtype::kFloat64
                : type == ElementType::kFloat16  ? Dtype::kFloat16
                : type == ElementType::kBFloat16 ? Dtype::kBFloat16
                                                 : Dtype::kFloat32;
    real.sizes = {sizes.data(), static_cast<size_t>(dims)};
    real.strides = {strides.data(), static_cast<size_t>(dims)};
    return real;
  }
  int dims = 0;
  std::array<int64_t, kMaxDims> sizes{}, strides{}, whole{}, start{};
};

}  // namespace

const CudaBackend* cuda_backend() { return backend; }
void set_cuda_backend(const CudaBackend* loaded) { backend = loaded; }

bool has_kernels(Device device) {
  return device.kind == DeviceKind::kCpu ||
         (device.kind == DeviceKind::kCuda && backend != nullptr);
}

// --- checks ----------------------------------------------------------------------------------

bool storage_too_small(const Array& self) {
  if (self.storage_bytes < 0 || self.numel() == 0) return false;
  auto last = static_cast<uint64_t>(self.storage_offset);
  for (size_t d = 0; d < self.sizes.size(); ++d) {
    last += static_cast<uint64_t>(self.sizes[d] - 1) * static_cast<uint64_t>(self.strides[d]);
  }
  return (last + 1) * static_cast<uint64_t>(self.element_bytes) >
         static_cast<uint64_t>(self.storage_bytes);
}

void check_storage(const char* op, const Array& self) {
  if (!storage_too_small(self)) return;
  refuse<std::runtime_error>(op, "expected storage for every element, got shape ", self.sizes,
                             " in ", self.storage_bytes,
                             " bytes. Resize the storage, or fill the tensor before its memory is "
                             "freed.");
}

void check_shard(const char* op, const Array& self, const ShardPosition& place) {
  const auto [whole, start] = place;
  if (whole.empty() && start.empty()) return;
  const size_t dim = self.sizes.size();
  if (whole.size() != dim || start.size() != dim) {
    refuse<ValueError>(op, "expected global_shape and shard_offset of ", dim,
                       " dimensions, as the tensor has, got ", whole, " and ", start, ".");
  }
  int64_t numel = 1;
  for (size_t d = 0; d < dim; ++d) {
    if (start[d] < 0 || whole[d] < 0 || self.sizes[d] > whole[d] ||
        start[d] > whole[d] - self.sizes[d]) {
      refuse<ValueError>(op, "expected a shard inside ", whole, ", got shape ", self.sizes,
                         " at offset ", start, ".");
    }
    if (whole[d] != 0 && numel > std::numeric_limits<int64_t>::max() / whole[d]) {
      refuse<ValueError>(op, "expected a global_shape of less than 2^63 elements, got ", whole,
                         ".");
    }
    numel *= whole[d];
  }
}

namespace {

// Returns the element type; for a complex array, the type of its parts. Raises an error if the fill
// does not support the dtype or if its parameters are invalid.
template <class Law>
ElementType checked_type(const Law& law, const Array& self) {
  const auto type = real_type(self.type);
  if (!type.has_value() || (is_complex(self.type) && !Law::takes_complex)) {
    refuse<NotImplementedError>(Law::name,
                                "expected a float32, float64, float16 or bfloat16 tensor, got ",
                                self.type_name, ". Fill one of these and convert it.");
  }
  law.check(*type);
  return *type;
}

ElementType checked_type(const RawWords&, const Array& self) {
  if (self.type != Dtype::kInt64) {
    refuse<NotImplementedError>(RawWords::name, "expected an int64 tensor, got ", self.type_name,
                                ".");
  }
  return ElementType::kWord;
}

void check_layout(const char* op, const Array& self, const ShardPosition& place) {
  check_shard(op, self, place);
  if (overlaps_itself(self.sizes, self.strides)) {
    refuse<std::runtime_error>(
        op, "expected a tensor whose elements do not share memory, got shape ", self.sizes,
        " with strides ", self.strides, ". Use .contiguous() or .clone().");
  }
  check_storage(op, self);
}

template <class Law>
void check_shape(const Law&, const Array&) {}

void check_shape(const Orthogonal&, const Array& self) {
  if (self.sizes.size() < 2) {
    refuse<ValueError>(Orthogonal::name, "expected a tensor of 2 or more dimensions, got ",
                       self.sizes.size(), ". Pass a matrix.");
  }
}

void check_shape(const Sparse&, const Array& self) {
  if (self.sizes.size() != 2) {
    refuse<ValueError>(Sparse::name, "expected a tensor of 2 dimensions, got ", self.sizes.size(),
                       ". Pass a matrix.");
  }
}

template <class Law>
void check_count(const Law&, const Array&, const ShardPosition&) {}

void check_count(const Sparse& law, const Array& self, const ShardPosition& place) {
  const int64_t rows = place.global_shape.empty() ? self.sizes[0] : place.global_shape[0];
  if (law.zeros < 0 || law.zeros > rows) {
    refuse<ValueError>(Sparse::name, "expected 0 to ", rows, " zeros per column, got ", law.zeros,
                       ".");
  }
  if (rows >= int64_t(1) << 32) {
    refuse<NotImplementedError>(Sparse::name, "expected fewer than 2^32 rows, got ", rows,
                                ". Fill a matrix of fewer rows.");
  }
}

}  // namespace

template <class Law>
void check_fill(const Law& law, const Array& self, const ShardPosition& place) {
  checked_type(law, self);
  check_shape(law, self);
  check_layout(Law::name, self, place);
  check_count(law, self, place);
}

// --- element-wise fills ----------------------------------------------------------------------

namespace {

Key host_key(KeySource key) {
  return key.words != nullptr ? Key{key.words[0], key.words[1]} : key.value;
}

void launch(FillRequest request, const Geometry& geometry, const Array& self, KeySource key) {
  if (self.device.kind == DeviceKind::kCuda) {
    backend->fill(request, geometry, self.data, key.value, key.words, self.device.index);
    return;
  }
  request.keys = make_key_schedule(host_key(key));
  fill_cpu(request, geometry, self.data);
}

// Sets every element to `value`. For a complex array, sets both parts of every element.
void fill_constant(const Array& self, const ShardPosition& place, double value) {
  const ElementType type = *real_type(self.type);
  if (self.device.kind == DeviceKind::kCuda) {
    // torch's own fill, because it can be captured in a CUDA graph.
    const RealView real(self, place);
    torch::stable::fill_(tensor_of(real.array(self, type)), value);
    return;
  }
  const Geometry geometry = geometry_of(self, place);
  ManyItem item{};
  item.value[0] = bits_of(type, value);
  item.size = element_size(type);
  item.data = self.data;
  item.numel = geometry.numel();
  item.geometry = &geometry;
  fill_many_cpu({item});
}

// Element-wise fills.
template <class Law>
void fill_checked(const Law& law, const Array& self, KeySource key, const ShardPosition& place) {
  const ElementType type = *real_type(self.type);
  const DefaultFloatMode mode;
  const Plan plan = law.plan(type, is_complex(self.type));
  if (plan.is_constant) {
    fill_constant(self, place, plan.value);
  } else {
    launch(plan.request, geometry_of(self, place), self, key);
  }
}

void fill_checked(const RawWords&, const Array& self, KeySource key, const ShardPosition& place) {
  launch(plan_words().request, geometry_of(self, place), self, key);
}

// --- matrices --------------------------------------------------------------------------------

void fill_checked(const Sparse& law, const Array& self, KeySource key, const ShardPosition& place) {
  const Normal normal{0.0, law.std};
  if (law.zeros == 0) return fill_checked(normal, self, key, place);
  const auto [whole, start] = place;
  const ElementType type = *real_type(self.type);
  const DefaultFloatMode mode;
  const Plan plan = normal.plan(type, is_complex(self.type));
  SparseRequest request{};
  request.parts = is_complex(self.type) ? 2 : 1;
  request.rows = whole.empty() ? self.sizes[0] : whole[0];
  request.columns = whole.empty() ? self.sizes[1] : whole[1];
  if (plan.is_constant || law.zeros == request.rows) {
    fill_constant(self, place, 0.0);
    return;
  }
  request.values = plan.request;
  request.shard = {start.empty() ? 0 : start[0], start.empty() ? 0 : start[1], self.sizes[0],
                   self.sizes[1]};
  request.zeros = law.zeros;
  request.spread = kWindowSpread;
  const int64_t strides[] = {self.strides[0] * request.parts, self.strides[1] * request.parts};
  if (self.device.kind == DeviceKind::kCuda) {
    backend->sparse(request, strides, self.data, key.value, key.words, self.device.index);
    return;
  }
  const Key value = host_key(key);
  request.values.keys = make_key_schedule(value);
  request.word_keys = make_key_schedule(fold_in(value, 1));
  sparse_cpu(request, strides, self.data);
}

void fill_checked(const Orthogonal& law, const Array& self, KeySource key,
                  const ShardPosition& place) {
  fill_orthogonal(law, self, key, place);
}

}  // namespace

template <class Law>
void fill(const Law& law, const Array& self, KeySource key, const ShardPosition& place) {
  if (self.numel() == 0) return;
  const auto work = [&] { fill_checked(law, self, key, place); };
  try {
    self.device.kind == DeviceKind::kCpu ? run_with_threads(work) : work();
  } catch (const std::bad_alloc&) {
    refuse<OutOfMemoryError>(Law::name,
                             "expected memory for temporary lists, got none. Free some memory and "
                             "fill the tensor again, because it may be partly filled.");
  }
}

Geometry geometry_of(const Array& self, const ShardPosition& place) {
  const RealView real(self, place);
  return make_geometry(real.dims, real.sizes.data(), real.strides.data(),
                       place.global_shape.empty() ? nullptr : real.whole.data(),
                       place.shard_offset.empty() ? nullptr : real.start.data());
}

#define PARAMINIT_INSTANTIATE(Law)                                          \
  template void check_fill(const Law&, const Array&, const ShardPosition&); \
  template void fill(const Law&, const Array&, KeySource, const ShardPosition&);
PARAMINIT_INSTANTIATE(Uniform)
PARAMINIT_INSTANTIATE(Normal)
PARAMINIT_INSTANTIATE(TruncNormal)
PARAMINIT_INSTANTIATE(Sparse)
PARAMINIT_INSTANTIATE(Orthogonal)
PARAMINIT_INSTANTIATE(RawWords)
#undef PARAMINIT_INSTANTIATE

}  // namespace paraminit
