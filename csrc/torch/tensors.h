// torch's tensors, by its stable headers alone: calls of its operators, and tensors as arrays.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <vector>

#include "array.h"

namespace paraminit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An operator of torch that returns one tensor. Arguments are those of its schema, all of them;
// numbers that the schema calls Scalar cannot be passed so before torch 2.14.
template <class... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// As the fills see it; refuses a tensor that is not dense, in the name of `op`. `data` is null
// where the device has no kernels. What is only read is not copied where a write would copy it.
enum class Use { kWrite, kRead };
Array array_of(const char* op, const Tensor& tensor, Use use = Use::kWrite);

// The elements of an array, as a tensor of its own that autograd knows nothing of.
Tensor tensor_of(const Array& array);
// Raises OutOfMemoryError where there is none.
Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type, Device device);

Device device_of(const Tensor& tensor);
ScalarType scalar_type_of(Dtype type);

// Without what stable::narrow asks for, a tensor that is not const.
inline Tensor part_of(Tensor tensor, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(tensor, dim, start, length);
}
inline void copy(Tensor to, const Tensor& from) { torch::stable::copy_(to, from); }
inline torch::headeronly::IntHeaderOnlyArrayRef reference_to(Span numbers) {
  return {numbers.data(), numbers.size()};
}

}  // namespace paraminit
