// torch tensors through torch's stable headers only: calls of torch operators, and conversions
// between tensors and arrays.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <vector>

#include "../stream/errors.h"
#include "array.h"

namespace paraminit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls a torch operator that returns one tensor. All arguments of its schema must be passed.
// Arguments of the schema type Scalar cannot be passed this way before torch 2.14.
template <class... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Returns the description of a dense tensor. Raises an error of `op` for any other tensor. `data`
// is null if the device has no kernels. kRead does not trigger the copy of a copy-on-write tensor.
enum class Use { kWrite, kRead };
Array array_of(const char* op, const Tensor& tensor, Use use = Use::kWrite);

// Returns a new tensor that aliases the elements of an array. It is unknown to autograd.
Tensor tensor_of(const Array& array);
Device device_of(const Tensor& tensor);
ScalarType scalar_type_of(Dtype type);

// Like stable::narrow, but also accepts a const tensor.
inline Tensor narrowed(Tensor tensor, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(tensor, dim, start, length);
}
inline void copy(Tensor to, const Tensor& from) { torch::stable::copy_(to, from); }
inline torch::headeronly::IntHeaderOnlyArrayRef reference_to(Span numbers) {
  return {numbers.data(), numbers.size()};
}

// Returns torch's name of a device that has kernels.
inline torch::stable::Device torch_device(Device device) {
  const auto kind = device.kind == DeviceKind::kCuda ? torch::headeronly::DeviceType::CUDA
                                                     : torch::headeronly::DeviceType::CPU;
  return {kind, static_cast<torch::stable::DeviceIndex>(device.index)};
}

// Raises OutOfMemoryError if the allocation fails. Inline, because both libraries use it.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type, Device device,
                    bool pinned = false) {
  try {
    return torch::stable::empty({sizes.begin(), sizes.size()}, type,
                                torch::headeronly::Layout::Strided, torch_device(device), pinned,
                                torch::headeronly::MemoryFormat::Contiguous);
  } catch (const std::exception&) {
    std::ostringstream text;
    text << "paraminit_ext: expected memory for a temporary tensor of shape "
         << Span(sizes.begin(), sizes.size()) << " of " << torch::headeronly::toString(type)
         << (pinned                             ? " in pinned memory"
             : device.kind == DeviceKind::kCuda ? " on the GPU"
                                                : "")
         << ", got none. Free some memory.";
    throw OutOfMemoryError(text.str());
  }
}

}  // namespace paraminit
