// What Python needs that is not a tensor operator: facts of the build, instruction sets, raw words,
// and the host's draw from a generator.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "constants.h"
#include "cpu/capability.h"
#include "cpu/quota.h"
#include "cpu/fill.h"
#include "cpu/sparse.h"
#include "generator.h"
#include "overlap.h"
#ifdef PARAMINIT_WITH_CUDA
#include "cuda/fill.h"
#endif

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "cpu/lane_scalar.h"
#include "philox.h"

namespace py = pybind11;

namespace {

// Two's complement, as the operators take it.
std::pair<int64_t, int64_t> as_signed(paraminit::Key key) {
  return {static_cast<int64_t>(key.seed), static_cast<int64_t>(key.offset)};
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const uint32_t words_in[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t words[4];
  const paraminit::KeySchedule keys =
      paraminit::make_key_schedule({key[0] | uint64_t(key[1]) << 32, 0});
  paraminit::baseline::philox_any<paraminit::baseline::Lane>(keys, words_in, words);
  return {words[0], words[1], words[2], words[3]};
}

// What the distribution makes of these words (int32, four a group), for tests of the numbers. On a
// CUDA device it does so for float32.
at::Tensor apply_distribution(const std::string& name, const std::vector<double>& p,
                              const at::Tensor& words, at::ScalarType dtype) {
  using paraminit::ElementType;
  const bool wide = dtype == at::kDouble;
  TORCH_CHECK_VALUE(
      words.is_contiguous() && words.scalar_type() == at::kInt && words.dim() == 2 &&
          words.size(1) == 4,
      "paraminit_ext._C.apply_distribution: expected int32 words of shape (groups, 4).");
  const ElementType type = wide                     ? ElementType::kFloat64
                           : dtype == at::kHalf     ? ElementType::kFloat16
                           : dtype == at::kBFloat16 ? ElementType::kBFloat16
                                                    : ElementType::kFloat32;
  const paraminit::DefaultFloatMode mode;
  const paraminit::Plan plan =
      name == "uniform_"  ? paraminit::plan_uniform(type, p.at(0), p.at(1))
      : name == "normal_" ? paraminit::plan_normal(type, p.at(0), p.at(1))
                          : paraminit::plan_trunc_normal(type, p.at(0), p.at(1), p.at(2), p.at(3));
  TORCH_CHECK_VALUE(!plan.is_constant,
                    "paraminit_ext._C.apply_distribution: one value takes no words.");
  const at::Tensor out = at::empty({words.size(0) * (wide ? 2 : 4)}, words.options().dtype(dtype));
  const auto* from = reinterpret_cast<const uint32_t*>(words.const_data_ptr<int32_t>());
  if (words.is_cpu()) {
    paraminit::apply_cpu(plan.request, from, words.size(0), out.mutable_data_ptr());
    return out;
  }
#ifdef PARAMINIT_WITH_CUDA
  TORCH_CHECK_VALUE(words.is_cuda() && type == ElementType::kFloat32,
                    "paraminit_ext._C.apply_distribution: expected float32 on CUDA.");
  paraminit::apply_cuda(plan.request, from, words.size(0), out.mutable_data_ptr<float>(),
                        words.device());
  return out;
#else
  TORCH_CHECK_VALUE(false, "paraminit_ext._C.apply_distribution: expected words on the CPU.");
#endif
}

// The zeros of a sparse fill of ones, thresholds being looked for in a window of another width: for
// tests, since the width may decide nothing.
void sparse_ones(const at::Tensor& matrix, int64_t zeros, std::pair<uint64_t, uint64_t> key,
                 double spread) {
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.scalar_type() == at::kFloat && matrix.numel() > 0 &&
                        zeros > 0 && zeros <= matrix.size(0),
                    "paraminit_ext._C.sparse_ones: expected a float32 matrix and 1 to rows zeros.");
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const paraminit::Key given{key.first, key.second};
  paraminit::SparseRequest request{};
  request.values = paraminit::plan_normal(paraminit::ElementType::kFloat32, 1.0, 0x1p-100).request;
  request.values.keys = paraminit::make_key_schedule(given);
  request.word_keys = paraminit::make_key_schedule(paraminit::fold_in(given, 1));
  request.parts = 1;
  request.rows = rows;
  request.columns = columns;
  request.held = {0, 0, rows, columns};
  request.zeros = zeros;
  request.spread = spread;
  paraminit::sparse_cpu(request, {matrix.stride(0), matrix.stride(1)}, matrix.mutable_data_ptr());
}

// The operator of that name on a whole tensor, without gradient, through torch's dispatcher: what
// torch.ops does, for a third of the time of its call.
template <class... Parameters>
auto direct_fill(const char* name) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow(name, "")
                      .typed<void(at::Tensor&, Parameters..., int64_t, int64_t, c10::SymIntArrayRef,
                                  c10::SymIntArrayRef)>();
  return [op](at::Tensor self, Parameters... parameters, int64_t seed, int64_t offset) {
    const at::NoGradGuard no_grad;
    op.call(self, parameters..., seed, offset, {}, {});
  };
}

std::map<std::string, std::string> build_info() {
  return {{"torch", TORCH_VERSION},
#ifdef PARAMINIT_WITH_CUDA
          {"cuda", paraminit::cuda_toolkit_version()},
#else
          {"cuda", ""},
#endif
#if defined(__clang__)
          {"compiler", "clang " __clang_version__},
#else
          {"compiler", "gcc " __VERSION__},
#endif
          {"stream_version", std::to_string(paraminit::kStreamVersion)}};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  // An unknown name in PARAMINIT_CPU_CAPABILITY fails here, at import, rather than in a fill.
  try {
    paraminit::cpu_capability();
  } catch (const std::invalid_argument& error) {
    throw py::import_error(std::string("PARAMINIT_CPU_CAPABILITY: ") + error.what());
  }
  m.def("build_info", build_info);
  m.def("cpu_capability", paraminit::cpu_capability);
  m.def("read_cpu_quota", paraminit::read_cpu_quota, py::arg("root"));
  m.def("set_cpu_capability", paraminit::set_cpu_capability, py::arg("name"));
  m.def("available_cpu_capabilities", paraminit::available_cpu_capabilities);
  m.def("philox", philox, py::arg("counter"), py::arg("key"));
  m.def(
      "draw", [](const at::Generator& generator) { return as_signed(paraminit::draw(generator)); },
      py::arg("generator"));
  m.def(
      "draw_default",
      [](const std::string& device_type, int64_t device_index) {
        if (device_type == "cpu")
          return as_signed(paraminit::draw(at::detail::getDefaultCPUGenerator()));
#ifdef PARAMINIT_WITH_CUDA
        if (device_type == "cuda") {
          return as_signed(paraminit::draw(paraminit::default_cuda_generator(device_index)));
        }
#endif
        throw py::value_error(
            "paraminit_ext._C.draw_default: expected a device type with kernels, got '" +
            device_type + "' " + std::to_string(device_index) + ".");
      },
      py::arg("device_type"), py::arg("device_index"));
  m.def("apply_distribution", apply_distribution, py::arg("name"), py::arg("parameters"),
        py::arg("words"), py::arg("dtype"), py::call_guard<py::gil_scoped_release>());
  m.def("uniform_", direct_fill<double, double>("paraminit_ext::uniform_"),
        py::call_guard<py::gil_scoped_release>());
  m.def("normal_", direct_fill<double, double>("paraminit_ext::normal_"),
        py::call_guard<py::gil_scoped_release>());
  m.def("trunc_normal_",
        direct_fill<double, double, double, double>("paraminit_ext::trunc_normal_"),
        py::call_guard<py::gil_scoped_release>());
  m.def("sparse_ones", sparse_ones, py::arg("matrix"), py::arg("zeros"), py::arg("key"),
        py::arg("spread"), py::call_guard<py::gil_scoped_release>());
  m.def("overlaps_itself", paraminit::overlaps_itself, py::arg("tensor"));
  m.def("upper_tail", paraminit::upper_tail, py::arg("x"));
  m.def("minus_two_log_upper_tail", paraminit::minus_two_log_upper_tail, py::arg("x"));
  m.def("has_cuda", [] {
#ifdef PARAMINIT_WITH_CUDA
    return true;
#else
    return false;
#endif
  });
}
