// A dense tensor as the fills see it: where its elements lie. Made of a torch tensor (tensors.h) or
// of a Python object (csrc/python). No header of torch.
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

// What kernels are there for; the rest is kOther.
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

// Of a complex dtype that of its parts; none of a dtype that no kernel knows.
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
  void* data;  // of the first element
  Dtype type;
  const char* type_name;  // for messages
  int64_t element_bytes;
  Device device;
  Span sizes, strides;
  // From the storage's beginning on, where they are known; -1 where not.
  int64_t storage_offset = -1, storage_bytes = -1;

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : sizes) product *= size;
    return product;
  }
};

// The part at `start` of a tensor of shape `whole`; both are empty where it is all of it.
struct Place {
  Span whole, start;
};

// A key by value, or two words on the tensor's device.
struct KeySource {
  Key value{};
  const uint64_t* words = nullptr;
};

}  // namespace paraminit
