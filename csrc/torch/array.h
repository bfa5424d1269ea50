// Describes a dense tensor to the fills: its dtype, device and memory layout. Created from a torch
// tensor (tensors.h) or from a Python object (csrc/python). Must not include torch headers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "../stream/request.h"

namespace paraminit {

using Span = std::span<const int64_t>;

enum class DeviceKind { kCpu, kCuda, kOther };

struct Device {
  DeviceKind kind;
  int index;
  bool operator==(const Device&) const = default;
};

// The dtypes that have kernels. Every other dtype is kOther.
enum class Dtype {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kComplex64,
  kComplex128,
  kComplex32,
  kInt64,
  kOther
};

constexpr bool is_complex(Dtype type) {
  return type == Dtype::kComplex64 || type == Dtype::kComplex128 || type == Dtype::kComplex32;
}

// Returns the element type of a floating-point dtype. For a complex dtype, this is the type of its
// real and imaginary parts. Returns nullopt for every other dtype.
constexpr std::optional<ElementType> real_type(Dtype type) {
  switch (type) {
    case Dtype::kFloat32:
    case Dtype::kComplex64:
      return ElementType::kFloat32;
    case Dtype::kFloat64:
    case Dtype::kComplex128:
      return ElementType::kFloat64;
    case Dtype::kFloat16:
    case Dtype::kComplex32:
      return ElementType::kFloat16;
    case Dtype::kBFloat16:
      return ElementType::kBFloat16;
    default:
      return std::nullopt;
  }
}

struct Array {
  void* data;  // address of the first element
  Dtype type;
  const char* type_name;  // for error messages
  int64_t element_bytes;
  Device device;
  Span sizes, strides;
  // Offset of the first element in the storage, in elements, and size of the storage. -1 if
  // unknown.
  int64_t storage_offset = -1, storage_bytes = -1;

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : sizes) product *= size;
    return product;
  }
};

// The position of a shard in the global tensor. Both are empty if the array is the global tensor.
struct ShardPosition {
  Span global_shape, shard_offset;
};

// A key. If `words` is null, it is `value`. Otherwise it is the two numbers (seed, offset) at this
// address on the tensor's device, and `value` is unused.
struct KeySource {
  Key value{};
  const uint64_t* words = nullptr;
};

}  // namespace paraminit
