// Reserves a part of a CUDA generator's Philox stream for a draw, atomically and also during graph
// capture. Before torch 2.15, only torch's C++ interface offers this. This is the only file that
// depends on a particular torch: it is built from source for that torch, and no wheel contains it.
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <tuple>

namespace {

namespace py = pybind11;

// Returns (captured, seed, offset, seed address, offset address, offset in the graph). During
// capture, seed and offset are only known at replay, and are then at these addresses.
std::tuple<bool, uint64_t, uint64_t, uintptr_t, uintptr_t, uint64_t> philox_state(
    const at::Generator& generator, uint64_t increment) {
  auto* const cuda = at::check_generator<at::CUDAGeneratorImpl>(generator);
  at::PhiloxCudaState state;
  {
    const py::gil_scoped_release no_gil;
    const std::lock_guard<std::mutex> lock(cuda->mutex_);
    state = cuda->philox_cuda_state(increment);
  }
  if (!state.captured_) return {false, state.seed_.val, state.offset_.val, 0, 0, 0};
  return {true,
          0,
          0,
          reinterpret_cast<uintptr_t>(state.seed_.ptr),
          reinterpret_cast<uintptr_t>(state.offset_.ptr),
          state.offset_intragraph_};
}

}  // namespace

PYBIND11_MODULE(_capture, m) {
  m.def("philox_state", philox_state, py::arg("generator"), py::arg("increment"));
}
