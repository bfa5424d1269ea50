// Fills many arrays on a CUDA device. The item descriptions that the kernels read are written into
// pinned memory and copied to the device in one transfer. torch's allocator keeps the pinned memory
// until the transfer has finished, and the device memory until the kernels have (stream order).
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "../cuda/many_items.h"
#include "../stream/errors.h"
#include "cuda.h"

namespace paraminit {

namespace {

// Allows calls that a stream capture in another thread forbids in all threads. Allocating pinned
// memory and querying the events of earlier copies are such calls.
class RelaxedCapture {
 public:
  RelaxedCapture() { STD_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

Tensor pinned_bytes(int64_t count) {
  const RelaxedCapture relaxed;
  return pinned_memory(count);
}

}  // namespace

void fill_many_cuda(const std::vector<ManyItem>& items, int device) {
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  if (is_being_captured(stream)) {
    refuse<std::runtime_error>("fill_many",
                               "expected a stream that is not being captured, got one "
                               "that is. Call the fills one by one.");
  }
  struct Group {
    std::vector<DeviceItem> items;
    std::vector<int64_t> first_chunk{0};
  };
  std::map<Kind, Group> groups;
  std::vector<Geometry> geometries;
  for (const ManyItem& item : items) {
    const Geometry flat = item.geometry != nullptr ? Geometry{} : flat_geometry(item.numel);
    const Geometry& g = item.geometry != nullptr ? *item.geometry : flat;
    DeviceDescription described = describe(item, g);
    if (described.scattered && item.request != nullptr) {
      // A separate launch: strides leave the kernel no registers for the search for its tensor.
      fill_cuda(*item.request, g, item.data, item.key, nullptr, device);
      continue;
    }
    if (described.scattered) {
      geometries.push_back(g);
      // A placeholder until the device address is known: the index, counted from 1.
      described.item.geometry = reinterpret_cast<const Geometry*>(geometries.size());
    }
    Group& group = groups[kind_of(item)];
    group.items.push_back(described.item);
    group.first_chunk.push_back(group.first_chunk.back() + described.chunks);
  }

  if (groups.empty()) return;
  const size_t bytes = items.size() * sizeof(DeviceItem) +
                       (items.size() + groups.size()) * sizeof(int64_t) +
                       geometries.size() * sizeof(Geometry);
  const Tensor host = pinned_bytes(static_cast<int64_t>(bytes));
  const Tensor device_copy = device_memory(static_cast<int64_t>(bytes), device);
  char* host_address = static_cast<char*>(host.mutable_data_ptr());
  const char* device_address = static_cast<const char*>(device_copy.const_data_ptr());
  // Appends an array to the pinned memory. Returns its future address on the device.
  const auto put = [&](const auto& array) {
    using Element = typename std::decay_t<decltype(array)>::value_type;
    const auto* const place = reinterpret_cast<const Element*>(device_address);
    const size_t size = array.size() * sizeof(Element);
    std::memcpy(host_address, array.data(), size);
    host_address += size;
    device_address += size;
    return place;
  };
  const Geometry* const first_geometry = geometries.empty() ? nullptr : put(geometries);
  std::vector<std::pair<Kind, ManyLaunch>> launches;
  for (auto& [kind, group] : groups) {
    for (DeviceItem& item : group.items) {
      const auto number = reinterpret_cast<uintptr_t>(item.geometry);
      if (number != 0) item.geometry = first_geometry + (number - 1);
    }
    ManyLaunch launch{};
    if (kind.first != kConstant) {
      launch.distribution = static_cast<Distribution>(kind.first);
      launch.type = static_cast<ElementType>(kind.second);
    }
    launch.items = put(group.items);
    launch.first_chunk = put(group.first_chunk);
    launch.count = static_cast<int>(group.items.size());
    launch.chunks = group.first_chunk.back();
    launch.stream = stream;
    launches.emplace_back(kind, launch);
  }
  Tensor destination = device_copy;
  torch::stable::copy_(destination, host, /*non_blocking=*/true);
  for (const auto& [kind, launch] : launches) STD_CUDA_CHECK(dispatch(launch, kind));
}

}  // namespace paraminit
