// A fill of many arrays on a CUDA device. What the kernels need to know of the items is written
// into pinned memory, which torch's allocator keeps until the copy is done, and copied once; the
// copy in device memory goes back to its allocator in the order of the stream.
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "../cuda/many_items.h"
#include "../stream/errors.h"
#include "cuda.h"

namespace paraminit {

namespace {

// Lets calls through that another thread's capture forbids to all threads, such as one for pinned
// memory and for the events of earlier copies.
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
    Described made = describe(item, g);
    if (made.scattered && item.request != nullptr) {
      // Strides leave the kernel no registers for finding its tensor as well: a launch of its own.
      fill_cuda(*item.request, g, item.data, item.key, nullptr, device);
      continue;
    }
    if (made.scattered) {
      geometries.push_back(g);
      // Its number, counted from 1, until its address is known.
      made.item.geometry = reinterpret_cast<const Geometry*>(geometries.size());
    }
    Group& group = groups[kind_of(item)];
    group.items.push_back(made.item);
    group.first_chunk.push_back(group.first_chunk.back() + made.chunks);
  }

  if (groups.empty()) return;
  const size_t bytes = items.size() * sizeof(DeviceItem) +
                       (items.size() + groups.size()) * sizeof(int64_t) +
                       geometries.size() * sizeof(Geometry);
  const Tensor host = pinned_bytes(static_cast<int64_t>(bytes));
  const Tensor there = device_memory(static_cast<int64_t>(bytes), device);
  char* to = static_cast<char*>(host.mutable_data_ptr());
  const char* at_device = static_cast<const char*>(there.const_data_ptr());
  // Appends an array, and says where on the device it will lie.
  const auto put = [&](const auto& array) {
    using Element = typename std::decay_t<decltype(array)>::value_type;
    const auto* const place = reinterpret_cast<const Element*>(at_device);
    const size_t size = array.size() * sizeof(Element);
    std::memcpy(to, array.data(), size);
    to += size;
    at_device += size;
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
  Tensor copied = there;
  torch::stable::copy_(copied, host, /*non_blocking=*/true);
  for (const auto& [kind, launch] : launches) STD_CUDA_CHECK(dispatch(launch, kind));
}

}  // namespace paraminit
