// What a CUDA generator sets apart for a draw, in one step and under the capture of a graph, which
// torch shows to no one but its own C++ before 2.15. The only file that needs a particular torch:
// it is built from source beside that torch, and no wheel has it.
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <tuple>

namespace {

namespace py = pybind11;

// Whether it is being captured; seed and offset, or where they will lie when the graph is replayed
// and this draw's place in the graph.
std::tuple<bool, uint64_t, uint64_t, uintptr_t, uintptr_t, uint64_t> philox_state(
    const at::Generator& generator, uint64_t increment) {
  auto* const cuda = at::check_generator<at::CUDAGeneratorImpl>(generator);
  at::PhiloxCudaState state;
  {
    const py::gil_scoped_release others_run;
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
