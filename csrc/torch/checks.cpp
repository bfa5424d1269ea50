// See checks.h.
#include "checks.h"

#include <limits>

#include "overlap.h"

namespace paraminit {

using at::IntArrayRef;
using at::Tensor;

std::optional<ElementType> find_element_type(at::ScalarType type) {
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
      return std::nullopt;
  }
}

ElementType element_type(const char* op, at::ScalarType type) {
  const auto found = find_element_type(type);
  TORCH_CHECK_NOT_IMPLEMENTED(found.has_value(), "paraminit_ext.", op,
                              ": expected a float32, float64, float16 or bfloat16 tensor, got ",
                              type, ". Fill one of these and convert it.");
  return *found;
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
  TORCH_CHECK_VALUE((key.scalar_type() == at::kUInt64 || key.scalar_type() == at::kLong) &&
                        key.dim() == 1 && key.size(0) == 2 && key.is_contiguous(),
                    "paraminit_ext.", op,
                    ": expected a contiguous key of two uint64 or int64, got ", key.scalar_type(),
                    " of shape ", key.sizes(), ". Use Key.to_tensor().");
  TORCH_CHECK_VALUE(key.device() == self.device(), "paraminit_ext.", op, ": expected a key on ",
                    self.device(), ", got one on ", key.device(), ". Use key.to(tensor.device).");
}

bool lacks_storage(const Tensor& self) {
  // Other devices' storages may be handles, of no size that says anything.
  if (!(self.is_cpu() || self.is_cuda()) || !self.has_storage() || self.numel() == 0) return false;
  uint64_t last = static_cast<uint64_t>(self.storage_offset());
  for (int64_t d = 0; d < self.dim(); ++d) {
    last += static_cast<uint64_t>(self.size(d) - 1) * static_cast<uint64_t>(self.stride(d));
  }
  return (last + 1) * self.element_size() > self.storage().nbytes();
}

void check_storage(const char* op, const Tensor& self) {
  TORCH_CHECK(!lacks_storage(self), "paraminit_ext.", op,
              ": expected storage for every element, got shape ", self.sizes(), " in ",
              self.storage().nbytes(),
              " bytes. Resize the storage, or fill the tensor before its "
              "memory is freed.");
}

void check_disjoint(const char* op, const Tensor& self) {
  TORCH_CHECK(!overlaps_itself(self), "paraminit_ext.", op,
              ": expected a tensor whose elements do not share memory, got shape ", self.sizes(),
              " with strides ", self.strides(), ". Use .contiguous() or .clone().");
}

}  // namespace paraminit
