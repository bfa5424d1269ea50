// What an operator asks of its tensors, the same for all of them: on a fault, one line that names
// the operator, what it expected and what it got.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../stream/request.h"

namespace paraminit {

// The type of a dtype that has kernels; none of others.
std::optional<ElementType> find_element_type(at::ScalarType type);
// The same, refusing others: of a complex dtype that of its parts is asked for.
ElementType element_type(const char* op, at::ScalarType type);

// Refuses sparse, quantized and nested tensors.
void check_layout(const char* op, const at::Tensor& self);

// Whether the tensor is the part at `start` of a tensor of shape `whole`; both may be empty.
void check_shard(const char* op, const at::Tensor& self, at::IntArrayRef whole,
                 at::IntArrayRef start);

// Whether `key` is one, on the device of `self`.
void check_key(const char* op, const at::Tensor& key, const at::Tensor& self);

// Whether no two elements share memory.
// Whether the tensor's storage ends before its elements do, as one whose memory was taken away.
bool lacks_storage(const at::Tensor& self);
void check_storage(const char* op, const at::Tensor& self);

void check_disjoint(const char* op, const at::Tensor& self);

}  // namespace paraminit
