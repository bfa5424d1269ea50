// The parts of DLPack's C exchange API that are used here, as its ABI defines them (DLPack 1.3,
// include/dlpack/dlpack.h). torch.Tensor provides this API since torch 2.10.
#pragma once

#include <cstdint>

namespace paraminit::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kComplex = 5 };

struct Tensor {
  void* data;
  int32_t device_type;
  int32_t device_index;
  int32_t dims;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Header {
  uint32_t major, minor;
  Header* previous;
};

struct Exchange {
  Header header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Writes a description to `out` that is valid while the tensor lives and keeps its shape. Returns
  // -1 and sets a Python error if the tensor has no memory.
  int (*describe)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};

}  // namespace paraminit::dlpack
