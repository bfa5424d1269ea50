// Implements CudaBackend: connects the CUDA kernels to torch's streams and memory. All work runs on
// the current stream of the tensor's device.
#include "cuda.h"

#include <paraminit_built.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <algorithm>
#include <cstring>

#include "../stream/constants.h"
#include "../stream/errors.h"

namespace paraminit {
namespace {

// Workspace limit for a panel of columns. The limit is large because a panel without all columns is
// stored element by element.
constexpr int64_t kPanelBytes = int64_t{64} << 20;

void sparse(const SparseRequest& request, const int64_t (&strides)[2], void* data, Key key,
            const uint64_t* device_key, int device) {
  const DeviceGuard guard(device);
  SparseLaunch launch{};
  launch.request = request;
  launch.request.values.keys = make_key_schedule(key);
  launch.request.word_keys = make_key_schedule(fold_in(key, 1));
  launch.device_key = device_key;
  launch.capacity = sparse_capacity(request);
  launch.stream = current_stream(device);
  launch.device = device;
  launch.multiprocessors = multiprocessors(device);

  const Rectangle& shard = request.shard;
  const int64_t column_words = 2 + launch.capacity;  // threshold, two 32-bit counters, list
  const int64_t width =
      std::min(shard.columns, std::max<int64_t>(256, kPanelBytes / 8 / column_words / 256 * 256));
  // Reuse by the caching allocator is ordered on the stream, so the memory may be freed before the
  // kernels have finished.
  const Tensor workspace = device_memory((width * column_words + 2) * 8, device);
  launch.thresholds = static_cast<uint64_t*>(workspace.mutable_data_ptr());
  launch.counters = reinterpret_cast<uint32_t*>(launch.thresholds + width);
  launch.found = launch.thresholds + 2 * width;
  if (device_key != nullptr) {
    uint64_t* const folded = launch.thresholds + width * column_words;
    STD_CUDA_CHECK(launch_fold_in(device_key, 1, folded, launch.stream));
    launch.device_word_key = folded;
  }
  for (int64_t done = 0; done < shard.columns; done += width) {
    launch.first = shard.column + done;
    launch.width = std::min(width, shard.columns - done);
    launch.data = static_cast<char*>(data) + done * strides[1] * element_size(request.values.type);
    const int64_t sizes[] = {shard.rows, launch.width, 2};
    const int64_t steps[] = {strides[0], strides[1], 1};
    const int64_t whole[] = {request.rows, request.columns, 2};
    const int64_t start[] = {shard.row, launch.first, 0};
    STD_CUDA_CHECK(launch_sparse(
        launch, make_geometry(request.parts == 1 ? 2 : 3, sizes, steps, whole, start)));
  }
}

void apply(const FillRequest& request, const uint32_t* words, int64_t groups, float* out,
           int device) {
  const DeviceGuard guard(device);
  STD_CUDA_CHECK(launch_apply(request, words, groups, out, current_stream(device)));
}

void draw_key(const PhiloxState& state, uint64_t* key, int device) {
  const DeviceGuard guard(device);
  STD_CUDA_CHECK(launch_draw_key(state, key, current_stream(device)));
}

void fold_in_on_device(const uint64_t* key, uint64_t data, uint64_t* folded, int device) {
  const DeviceGuard guard(device);
  STD_CUDA_CHECK(launch_fold_in(key, data, folded, current_stream(device)));
}

bool is_capturing(int device) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return false;
  const bool every = device < 0;
  for (int n = every ? 0 : device; n < (every ? count : device + 1); ++n) {
    if (is_being_captured(current_stream(n))) return true;
  }
  return false;
}

void statistics(ElementType type, bool is_complex, const void* data, int64_t count,
                Statistics* units, int device) {
  const DeviceGuard guard(device);
  STD_CUDA_CHECK(launch_statistics(type, is_complex, data, count, units, current_stream(device)));
}

void merge(const Statistics* units, int64_t count, double* out, int device) {
  const DeviceGuard guard(device);
  STD_CUDA_CHECK(launch_merge(units, count, out, current_stream(device)));
}

void subtract_product(void* out, void* a, void* b) {
  const auto handle = [](void* tensor) { return static_cast<AtenTensorHandle>(tensor); };
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(handle(out), handle(out), handle(a), handle(b), 1.0, -1.0));
}

}  // namespace

void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device) {
  const DeviceGuard guard(device);
  Launch launch{
      request, geometry, data, device_key, current_stream(device), device, multiprocessors(device)};
  launch.request.keys = make_key_schedule(key);
  STD_CUDA_CHECK(dispatch(launch));
}

cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor device_memory(int64_t bytes, int device) {
  return empty({bytes}, ScalarType::Byte, {DeviceKind::kCuda, device});
}

Tensor pinned_memory(int64_t bytes) {
  return empty({bytes}, ScalarType::Byte, {DeviceKind::kCpu, 0}, true);
}

bool is_being_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  // The default stream cannot be captured. Its handle always refers to the current device.
  if (stream != nullptr) STD_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

int multiprocessors(int device) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace paraminit

extern "C" __attribute__((visibility("default"))) const paraminit::CudaBackend*
paraminit_cuda_backend(const char* built) {
  using namespace paraminit;
  static const std::string toolkit =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  static const CudaBackend backend{
      fill_cuda,         sparse,       fill_many_cuda, apply, draw_key,
      fold_in_on_device, is_capturing, statistics,     merge, subtract_product,
      toolkit.c_str()};
  return std::strcmp(built, PARAMINIT_BUILT) == 0 ? &backend : nullptr;
}
