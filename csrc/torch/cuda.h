// A fill on a CUDA device, the draws from its generator, the reading of what it holds.
// Everything runs on the current stream of the tensor's device; nothing waits for it.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include <optional>
#include <string>

#include "../stream/geometry.h"
#include "../stream/request.h"
#include "../stream/sparse_request.h"
#include "../stream/statistics.h"

namespace paraminit {

// The key is `key`, or, where `device_key` is not null, the two words that it points to.
void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, c10::Device device);

// The key likewise; `strides` are those of the elements held here, in real numbers.
void sparse_cuda(const SparseRequest& request, const int64_t (&strides)[2], void* data, Key key,
                 const uint64_t* device_key, c10::Device device);

// The distribution of the request, of float32, applied to given words, four a group: for tests.
void apply_cuda(const FillRequest& request, const uint32_t* words, int64_t groups, float* out,
                c10::Device device);

// Key(seed, philox_offset / 4).fold_in(0) of the generator's state, which advances by 4.
Key draw_cuda(at::Generator generator);
at::Generator default_cuda_generator(int64_t device_index);

// The same on the device: under graph capture every replay draws anew.
void draw_key_cuda(uint64_t* key, c10::Device device,
                   const std::optional<at::Generator>& generator);
void fold_in_cuda(const uint64_t* key, uint64_t data, uint64_t* folded, c10::Device device);

// Whether the current stream of a device, or of any device for -1, is being captured.
bool is_capturing_cuda(int64_t device_index);

// Units of statistics to `units`, and those of `count` units merged to kStatistics numbers; all of
// them on the device.
void statistics_cuda(ElementType type, bool is_complex, const void* data, int64_t count,
                     Statistics* units, c10::Device device);
void merge_cuda(const Statistics* units, int64_t count, double* out, c10::Device device);

std::string cuda_toolkit_version();

}  // namespace paraminit
