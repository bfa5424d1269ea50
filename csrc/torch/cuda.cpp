// Where torch's streams and generators meet the kernels. See cuda.h.
#include "cuda.h"

#include <ATen/Functions.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraphsUtils.cuh>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <mutex>

#include "../stream/constants.h"
#include "../cuda/launch.h"

namespace paraminit {
namespace {

// What the lists of a panel of columns may take. A panel of fewer than all columns is not one run,
// and stores element by element.
constexpr int64_t kPanelBytes = int64_t{64} << 20;

}  // namespace

void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  Launch launch{request,
                geometry,
                data,
                device_key,
                at::cuda::getCurrentCUDAStream(),
                device.index(),
                at::cuda::getCurrentDeviceProperties()->multiProcessorCount};
  launch.request.keys = make_key_schedule(key);
  C10_CUDA_CHECK(dispatch(launch));
}

void sparse_cuda(const SparseRequest& request, const int64_t (&strides)[2], void* data, Key key,
                 const uint64_t* device_key, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  SparseLaunch launch{};
  launch.request = request;
  launch.request.values.keys = make_key_schedule(key);
  launch.request.word_keys = make_key_schedule(fold_in(key, 1));
  launch.device_key = device_key;
  launch.capacity = sparse_capacity(request);
  launch.stream = at::cuda::getCurrentCUDAStream();
  launch.device = device.index();
  launch.multiprocessors = at::cuda::getCurrentDeviceProperties()->multiProcessorCount;

  const Rectangle& held = request.held;
  const int64_t column_words = 2 + launch.capacity;  // threshold, two counters, list
  const int64_t width =
      std::min(held.columns, std::max<int64_t>(256, kPanelBytes / 8 / column_words / 256 * 256));
  // From the caching allocator, in the order of the stream: it may be handed out again at once.
  const at::Tensor workspace =
      at::empty({width * column_words + 2}, at::TensorOptions().dtype(at::kUInt64).device(device));
  launch.thresholds = workspace.mutable_data_ptr<uint64_t>();
  launch.counters = reinterpret_cast<uint32_t*>(launch.thresholds + width);
  launch.found = launch.thresholds + 2 * width;
  if (device_key != nullptr) {
    uint64_t* const folded = launch.thresholds + width * column_words;
    fold_in_cuda(device_key, 1, folded, device);
    launch.device_word_key = folded;
  }
  for (int64_t done = 0; done < held.columns; done += width) {
    launch.first = held.column + done;
    launch.width = std::min(width, held.columns - done);
    launch.data = static_cast<char*>(data) + done * strides[1] * element_size(request.values.type);
    const int64_t sizes[] = {held.rows, launch.width, 2};
    const int64_t steps[] = {strides[0], strides[1], 1};
    const int64_t whole[] = {request.rows, request.columns, 2};
    const int64_t start[] = {held.row, launch.first, 0};
    C10_CUDA_CHECK(launch_sparse(
        launch, make_geometry(request.parts == 1 ? 2 : 3, sizes, steps, whole, start)));
  }
}

void apply_cuda(const FillRequest& request, const uint32_t* words, int64_t groups, float* out,
                c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch_apply(request, words, groups, out, at::cuda::getCurrentCUDAStream()));
}

Key draw_cuda(at::Generator generator) {
  auto* cuda_generator = at::check_generator<at::CUDAGeneratorImpl>(generator);
  uint64_t seed, philox_offset;
  {
    const std::lock_guard<std::mutex> lock(cuda_generator->mutex_);
    std::tie(seed, philox_offset) = cuda_generator->philox_engine_inputs(4);
  }
  return fold_in({seed, philox_offset / 4}, 0);
}

at::Generator default_cuda_generator(int64_t device_index) {
  return at::cuda::detail::getDefaultCUDAGenerator(static_cast<c10::DeviceIndex>(device_index));
}

void draw_key_cuda(uint64_t* key, c10::Device device,
                   const std::optional<at::Generator>& generator) {
  const c10::cuda::CUDAGuard guard(device);
  auto* cuda_generator = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      generator, default_cuda_generator(device.index()));
  at::PhiloxCudaState state;
  {
    const std::lock_guard<std::mutex> lock(cuda_generator->mutex_);
    state = cuda_generator->philox_cuda_state(4);
  }
  const PhiloxState set_apart{state.captured_, state.seed_.val,   state.offset_.val,
                              state.seed_.ptr, state.offset_.ptr, state.offset_intragraph_};
  C10_CUDA_CHECK(launch_draw_key(set_apart, key, at::cuda::getCurrentCUDAStream()));
}

void fold_in_cuda(const uint64_t* key, uint64_t data, uint64_t* folded, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch_fold_in(key, data, folded, at::cuda::getCurrentCUDAStream()));
}

void statistics_cuda(ElementType type, bool is_complex, const void* data, int64_t count,
                     Statistics* units, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(
      launch_statistics(type, is_complex, data, count, units, at::cuda::getCurrentCUDAStream()));
}

void merge_cuda(const Statistics* units, int64_t count, double* out, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch_merge(units, count, out, at::cuda::getCurrentCUDAStream()));
}

bool is_capturing_cuda(int64_t device_index) {
  const auto count = static_cast<int64_t>(c10::cuda::device_count());
  const bool every = device_index < 0;
  for (int64_t n = every ? 0 : device_index; n < (every ? count : device_index + 1); ++n) {
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(n));
    if (at::cuda::currentStreamCaptureStatus() != at::cuda::CaptureStatus::None) return true;
  }
  return false;
}

std::string cuda_toolkit_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

}  // namespace paraminit
