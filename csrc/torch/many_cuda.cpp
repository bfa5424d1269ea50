// See many_cuda.h. What the kernels need to know of the items is written into pinned memory, which
// torch's allocator keeps until the copy is done, and copied once; the copy in device memory goes
// back to its allocator in the order of the stream.
#include "many_cuda.h"

#include <ATen/Functions.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraphsUtils.cuh>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "../cuda/many_items.h"
#include "cuda.h"

namespace paraminit {

void fill_many_cuda(const std::vector<ManyItem>& items, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  at::cuda::assertNotCapturing("paraminit_ext.fill_many");
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
  const auto options = at::TensorOptions().dtype(at::kByte);
  at::Tensor host;
  {
    // Pinned memory is asked for, and events of earlier copies are: another thread's capture, which
    // forbids such calls to all threads, goes on.
    const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
    host = at::empty({static_cast<int64_t>(bytes)}, options.device(at::kCPU).pinned_memory(true));
  }
  const at::Tensor there = at::empty({static_cast<int64_t>(bytes)}, options.device(device));
  char* to = reinterpret_cast<char*>(host.mutable_data_ptr<uint8_t>());
  const char* at_device = reinterpret_cast<const char*>(there.const_data_ptr<uint8_t>());
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
    launch.stream = at::cuda::getCurrentCUDAStream();
    launches.emplace_back(kind, launch);
  }
  there.copy_(host, /*non_blocking=*/true);
  for (const auto& [kind, launch] : launches) C10_CUDA_CHECK(dispatch(launch, kind));
}

}  // namespace paraminit
