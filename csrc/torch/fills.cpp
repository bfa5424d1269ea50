// See fills.h. Arrays become plain requests here.
#include "fills.h"

#include <array>
#include <limits>

#include "../cpu/capability.h"
#include "../cpu/fill.h"
#include "../cpu/forked.h"
#include "../cpu/many.h"
#include "../cpu/sparse.h"
#include "../stream/errors.h"
#include "../stream/overlap.h"
#include "orthogonal.h"
#include "tensors.h"

namespace paraminit {
namespace {

const CudaBackend* backend = nullptr;

// The real numbers that the elements are or are made of: of a complex array one dimension more.
struct Numbers {
  Numbers(const Array& self, const Place& place) : dims(static_cast<int>(self.sizes.size())) {
    const int parts = is_complex(self.type) ? 2 : 1;
    if (dims + parts - 1 > kMaxDims) {
      refuse<NotImplementedError>("fill", "expected at most ", kMaxDims - parts + 1,
                                  " dimensions, got ", dims, ". Fill a view() of fewer.");
    }
    for (int d = 0; d < dims; ++d) {
      sizes[d] = self.sizes[d];
      strides[d] = parts * self.strides[d];
      if (!place.whole.empty()) whole[d] = place.whole[d];
      if (!place.start.empty()) start[d] = place.start[d];
    }
    if (parts == 1) return;
    sizes[dims] = whole[dims] = 2;
    strides[dims] = 1;
    ++dims;
  }
  Array array(const Array& self, ElementType type) const {
    Array numbers = self;
    numbers.type = type == ElementType::kFloat64    ? Dtype::kFloat64
                   : type == ElementType::kFloat16  ? Dtype::kFloat16
                   : type == ElementType::kBFloat16 ? Dtype::kBFloat16
                                                    : Dtype::kFloat32;
    numbers.sizes = {sizes.data(), static_cast<size_t>(dims)};
    numbers.strides = {strides.data(), static_cast<size_t>(dims)};
    return numbers;
  }
  int dims;
  std::array<int64_t, kMaxDims + 1> sizes{}, strides{}, whole{}, start{};
};

}  // namespace

const CudaBackend* cuda_backend() { return backend; }
void set_cuda_backend(const CudaBackend* given) { backend = given; }

bool has_kernels(Device device) {
  return device.kind == DeviceKind::kCpu ||
         (device.kind == DeviceKind::kCuda && backend != nullptr);
}

// --- checks ----------------------------------------------------------------------------------

bool lacks_storage(const Array& self) {
  if (self.storage_bytes < 0 || self.numel() == 0) return false;
  auto last = static_cast<uint64_t>(self.storage_offset);
  for (size_t d = 0; d < self.sizes.size(); ++d) {
    last += static_cast<uint64_t>(self.sizes[d] - 1) * static_cast<uint64_t>(self.strides[d]);
  }
  return (last + 1) * static_cast<uint64_t>(self.element_bytes) >
         static_cast<uint64_t>(self.storage_bytes);
}

void check_storage(const char* op, const Array& self) {
  if (!lacks_storage(self)) return;
  refuse<std::runtime_error>(op, "expected storage for every element, got shape ", self.sizes,
                             " in ", self.storage_bytes,
                             " bytes. Resize the storage, or fill the tensor before its memory is "
                             "freed.");
}

void check_shard(const char* op, const Array& self, const Place& place) {
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

// Of a complex array the type of its parts, where the fill takes them.
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

void check_place(const char* op, const Array& self, const Place& place) {
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
void check_count(const Law&, const Array&, const Place&) {}

void check_count(const Sparse& law, const Array& self, const Place& place) {
  const int64_t rows = place.whole.empty() ? self.sizes[0] : place.whole[0];
  if (law.zeros < 0 || law.zeros > rows) {
    refuse<ValueError>(Sparse::name, "expected 0 to ", rows, " zeros a column, got ", law.zeros,
                       ".");
  }
  if (rows >= int64_t(1) << 32) {
    refuse<NotImplementedError>(Sparse::name, "expected fewer than 2^32 rows, got ", rows,
                                ". Fill the transpose of a smaller matrix.");
  }
}

}  // namespace

template <class Law>
void check_fill(const Law& law, const Array& self, const Place& place) {
  checked_type(law, self);
  check_shape(law, self);
  check_place(Law::name, self, place);
  check_count(law, self, place);
}

// --- elementwise fills -----------------------------------------------------------------------

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

// Where the elements are complex, of the numbers that they are made of.
void fill_constant(const char* op, const Array& self, const Place& place, double value) {
  const ElementType type = *real_type(self.type);
  ManyItem item{};
  item.value[0] = bits_of(op, type, value);
  if (self.device.kind == DeviceKind::kCuda) {
    // torch's own, which the capture of a graph takes.
    const Numbers numbers(self, place);
    torch::stable::fill_(tensor_of(numbers.array(self, type)), value);
    return;
  }
  const Geometry geometry = geometry_of(self, place);
  item.size = element_size(type);
  item.data = self.data;
  item.numel = geometry.numel();
  item.geometry = &geometry;
  fill_many_cpu({item});
}

// An elementwise fill.
template <class Law>
void fill_checked(const Law& law, const Array& self, KeySource key, const Place& place) {
  const ElementType type = *real_type(self.type);
  const DefaultFloatMode mode;
  const Plan plan = law.plan(type, is_complex(self.type));
  if (plan.is_constant) {
    fill_constant(Law::name, self, place, plan.value);
  } else {
    launch(plan.request, geometry_of(self, place), self, key);
  }
}

void fill_checked(const RawWords&, const Array& self, KeySource key, const Place& place) {
  launch(plan_words().request, geometry_of(self, place), self, key);
}

// --- matrices --------------------------------------------------------------------------------

void fill_checked(const Sparse& law, const Array& self, KeySource key, const Place& place) {
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
    fill_constant(Sparse::name, self, place, 0.0);
    return;
  }
  request.values = plan.request;
  request.held = {start.empty() ? 0 : start[0], start.empty() ? 0 : start[1], self.sizes[0],
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

void fill_checked(const Orthogonal& law, const Array& self, KeySource key, const Place& place) {
  fill_orthogonal(law, self, key, place);
}

}  // namespace

template <class Law>
void fill(const Law& law, const Array& self, KeySource key, const Place& place) {
  if (self.numel() == 0) return;
  const auto work = [&] { fill_checked(law, self, key, place); };
  try {
    self.device.kind == DeviceKind::kCpu ? run_with_threads(work) : work();
  } catch (const std::bad_alloc&) {
    refuse<OutOfMemoryError>(Law::name,
                             "expected memory for lists beside the tensor, got none. Free some and "
                             "fill the tensor again: it may be filled in part.");
  }
}

Geometry geometry_of(const Array& self, const Place& place) {
  const Numbers numbers(self, place);
  return make_geometry(numbers.dims, numbers.sizes.data(), numbers.strides.data(),
                       place.whole.empty() ? nullptr : numbers.whole.data(),
                       place.start.empty() ? nullptr : numbers.start.data());
}

#define PARAMINIT_INSTANTIATE(Law)                                  \
  template void check_fill(const Law&, const Array&, const Place&); \
  template void fill(const Law&, const Array&, KeySource, const Place&);
PARAMINIT_INSTANTIATE(Uniform)
PARAMINIT_INSTANTIATE(Normal)
PARAMINIT_INSTANTIATE(TruncNormal)
PARAMINIT_INSTANTIATE(Sparse)
PARAMINIT_INSTANTIATE(Orthogonal)
PARAMINIT_INSTANTIATE(RawWords)
#undef PARAMINIT_INSTANTIATE

}  // namespace paraminit
