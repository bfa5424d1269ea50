// See tensors.h.
#include "tensors.h"

#include <utility>

#include "../stream/errors.h"
#include "fills.h"

namespace paraminit {
namespace {

constexpr std::pair<ScalarType, Dtype> kDtypes[] = {
    {ScalarType::Float, Dtype::kFloat32},          {ScalarType::Double, Dtype::kFloat64},
    {ScalarType::Half, Dtype::kFloat16},           {ScalarType::BFloat16, Dtype::kBFloat16},
    {ScalarType::ComplexFloat, Dtype::kComplex64}, {ScalarType::ComplexDouble, Dtype::kComplex128},
    {ScalarType::ComplexHalf, Dtype::kComplex32},  {ScalarType::Long, Dtype::kInt64}};

Dtype dtype_of(ScalarType type) {
  for (const auto& [scalar, dtype] : kDtypes) {
    if (scalar == type) return dtype;
  }
  return Dtype::kOther;  // also for a dtype that the stable headers do not name
}

}  // namespace

ScalarType scalar_type_of(Dtype type) {
  for (const auto& [scalar, dtype] : kDtypes) {
    if (dtype == type) return scalar;
  }
  return ScalarType::Byte;
}

Device device_of(const Tensor& tensor) {
  int32_t type = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
  const DeviceKind kind = type == aoti_torch_device_type_cpu()    ? DeviceKind::kCpu
                          : type == aoti_torch_device_type_cuda() ? DeviceKind::kCuda
                                                                  : DeviceKind::kOther;
  return {kind, kind == DeviceKind::kCpu ? 0 : index};  // torch uses both cpu and cpu:0
}

Array array_of(const char* op, const Tensor& tensor, Use use) {
  int32_t layout = 0, type = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  const auto scalar = static_cast<ScalarType>(type);
  if (layout != aoti_torch_layout_strided()) {
    refuse<NotImplementedError>(op,
                                "expected a strided tensor, got another layout. Fill its "
                                "values() or a dense tensor.");
  }
  if (aoti_torch_get_sizes(tensor.get(), &sizes) != TORCH_SUCCESS ||
      aoti_torch_get_strides(tensor.get(), &strides) != TORCH_SUCCESS) {
    refuse<NotImplementedError>(op, "expected a dense tensor, got a nested one. Fill its parts.");
  }
  const auto dims = static_cast<size_t>(tensor.dim());
  Array array{nullptr,
              dtype_of(scalar),
              torch::headeronly::toString(scalar),
              static_cast<int64_t>(aoti_torch_dtype_element_size(type)),
              device_of(tensor),
              Span(sizes, dims),
              Span(strides, dims)};
  // On other devices, a storage may be an opaque handle with a meaningless size.
  if (array.device.kind != DeviceKind::kOther) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &array.storage_bytes));
    array.storage_offset = tensor.storage_offset();
  }
  if (has_kernels(array.device)) {
    array.data =
        use == Use::kWrite ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  }
  return array;
}

Tensor tensor_of(const Array& array) {
  return torch::stable::from_blob(array.data, reference_to(array.sizes),
                                  reference_to(array.strides), torch_device(array.device),
                                  scalar_type_of(array.type));
}

}  // namespace paraminit
