// Defines the Python module _C. The operators are registered in csrc/torch/ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <dlfcn.h>
#include <paraminit_built.h>

#include <array>
#include <map>
#include <string>

#include "../cpu/capability.h"
#include "../cpu/fill.h"
#include "../cpu/quota.h"
#include "../cpu/sparse.h"
#include "../stream/constants.h"
#include "../stream/errors.h"
#include "../stream/overlap.h"
#include "../torch/fills.h"
#include "../torch/ops.h"
#include "../torch/orthogonal.h"
#include "fast_path.h"
#include "python_tensor.h"

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "../stream/lane_scalar.h"
#include "../stream/philox.h"

namespace {

namespace py = pybind11;
using namespace paraminit;

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const uint32_t words_in[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t words[4];
  const KeySchedule keys = make_key_schedule({key[0] | uint64_t(key[1]) << 32, 0});
  baseline::philox_any<baseline::Lane>(keys, words_in, words);
  return {words[0], words[1], words[2], words[3]};
}

Array described_or_throw(const py::handle& tensor) {
  Array array{};
  if (!describe(tensor.ptr(), &array))
    throw ValueError("paraminit_ext._C: expected a dense tensor.");
  return array;
}

// For tests: applies a distribution to given words (int32, four per group). On a CUDA device, only
// for float32.
py::object apply_distribution(const std::string& name, const std::vector<double>& parameters,
                              const py::object& words, const py::object& dtype) {
  const Array from = described_or_throw(words);
  if (from.sizes.size() != 2 || from.sizes[1] != 4 || from.element_bytes != 4 ||
      !is_contiguous(from.sizes, from.strides)) {
    throw ValueError(
        "paraminit_ext._C.apply_distribution: expected int32 words of shape (groups, 4).");
  }
  const ElementType type = real_type(dtype_of(dtype)).value();
  const DefaultFloatMode mode;
  Plan plan{true, 0.0, {}};
  with_law(name, parameters, [&](const auto& law) {
    if constexpr (requires { law.plan(type, false); }) plan = law.plan(type, false);
  });
  if (plan.is_constant) {
    throw ValueError(
        "paraminit_ext._C.apply_distribution: expected a distribution of several values.");
  }
  const int64_t group = type == ElementType::kFloat64 ? 2 : 4;
  const py::object out = py::module_::import("torch").attr("empty")(
      from.sizes[0] * group, py::arg("dtype") = dtype, py::arg("device") = words.attr("device"));
  const auto* const data = static_cast<const uint32_t*>(from.data);
  void* const to = described_or_throw(out).data;
  if (from.device.kind == DeviceKind::kCpu) {
    apply_cpu(plan.request, data, from.sizes[0], to);
  } else if (has_kernels(from.device) && type == ElementType::kFloat32) {
    cuda_backend()->apply(plan.request, data, from.sizes[0], static_cast<float*>(to),
                          from.device.index);
  } else {
    throw ValueError("paraminit_ext._C.apply_distribution: expected float32 on CUDA.");
  }
  return out;
}

// For tests: a sparse fill of ones that searches its thresholds in a window of another width. The
// width must not affect the result.
void sparse_ones(const py::object& tensor, int64_t zeros, std::pair<uint64_t, uint64_t> key,
                 double spread) {
  const Array matrix = described_or_throw(tensor);
  if (matrix.device.kind != DeviceKind::kCpu || matrix.type != Dtype::kFloat32 ||
      matrix.sizes.size() != 2 || matrix.numel() == 0 || zeros < 1 || zeros > matrix.sizes[0]) {
    throw ValueError(
        "paraminit_ext._C.sparse_ones: expected a float32 matrix on the CPU and 1 to "
        "rows zeros.");
  }
  const Key fill_key{key.first, key.second};
  SparseRequest request{};
  request.values = plan_normal(ElementType::kFloat32, 1.0, 0x1p-100).request;
  request.values.keys = make_key_schedule(fill_key);
  request.word_keys = make_key_schedule(fold_in(fill_key, 1));
  request.parts = 1;
  request.rows = matrix.sizes[0];
  request.columns = matrix.sizes[1];
  request.shard = {0, 0, request.rows, request.columns};
  request.zeros = zeros;
  request.spread = spread;
  sparse_cpu(request, {matrix.strides[0], matrix.strides[1]}, matrix.data);
}

// Loads the CUDA kernel library. Returns the reason if that fails, otherwise an empty string.
std::string load_cuda(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto get = reinterpret_cast<GetCudaBackend>(dlsym(library, kCudaBackendSymbol));
  const CudaBackend* const backend = get != nullptr ? get(PARAMINIT_BUILT) : nullptr;
  if (backend == nullptr) return path + " was built from other sources";
  set_cuda_backend(backend);
  return "";
}

std::map<std::string, std::string> build_info() {
  return {{"cuda", cuda_backend() != nullptr ? cuda_backend()->toolkit_version : ""},
#if defined(__clang__)
          {"compiler", "clang " __clang_version__},
#else
          {"compiler", "gcc " __VERSION__},
#endif
          {"sources", PARAMINIT_BUILT},
          {"version", PARAMINIT_VERSION},
          {"stream_version", std::to_string(kStreamVersion)}};
}

void translate_errors() {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const NotImplementedError& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    } catch (const OutOfMemoryError& e) {
      py::set_error(py::module_::import("torch").attr("OutOfMemoryError"), e.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  // An unknown name in PARAMINIT_CPU_CAPABILITY fails here, at import, rather than in a fill.
  try {
    cpu_capability();
  } catch (const std::invalid_argument& error) {
    throw py::import_error(error.what());
  }
  load_torch_functions();
  translate_errors();
  set_products_may_round(products_may_round);

  m.def("build_info", build_info);
  m.def("cpu_capability", cpu_capability);
  m.def("read_cpu_quota", read_cpu_quota, py::arg("root"));
  m.def("set_cpu_capability", set_cpu_capability, py::arg("name"));
  m.def("available_cpu_capabilities", available_cpu_capabilities);
  m.def("philox", philox, py::arg("counter"), py::arg("key"));
  m.def("upper_tail", upper_tail, py::arg("x"));
  m.def("minus_two_log_upper_tail", minus_two_log_upper_tail, py::arg("x"));

  m.def("load_cuda", load_cuda, py::arg("path"));
  m.def("has_cuda", [] { return cuda_backend() != nullptr; });
  m.def(
      "is_capturing",
      [](int device) { return cuda_backend() != nullptr && cuda_backend()->is_capturing(device); },
      py::arg("device_index"));
  m.def(
      "write_drawn_key",
      [](const py::object& key, bool captured, uint64_t seed, uint64_t offset,
         uintptr_t seed_address, uintptr_t offset_address, uint64_t offset_in_graph) {
        const Array to = described_or_throw(key);
        cuda_backend()->draw_key(
            {captured, seed, offset, reinterpret_cast<const int64_t*>(seed_address),
             reinterpret_cast<const int64_t*>(offset_address), offset_in_graph},
            static_cast<uint64_t*>(to.data), to.device.index);
      },
      py::arg("key"), py::arg("captured"), py::arg("seed"), py::arg("offset"),
      py::arg("seed_address"), py::arg("offset_address"), py::arg("offset_in_graph"));

  m.def("set_key_type", set_key_type, py::arg("key_type"));
  m.def("take_error_type", take_error_type);
  m.def("dispatch_is_plain", dispatch_is_plain);
  m.def(
      "is_plain",
      [](const py::handle& tensor) {
        Array array{};
        return describe_plain(tensor.ptr(), &array);
      },
      py::arg("tensor"));
  m.def(
      "is_fillable",
      [](const py::handle& tensor) {
        Array array{};
        return !is_wrapped(tensor.ptr()) && describe_plain(tensor.ptr(), &array) &&
               has_own_elements(tensor.ptr(), &array) &&
               (!is_inference(tensor.ptr()) || is_inference_mode());
      },
      py::arg("tensor"));
  m.def(
      "storage_too_small",
      [](const py::handle& tensor) {
        Array array{};
        if (is_wrapped(tensor.ptr()) || !describe(tensor.ptr(), &array)) return false;
        describe_storage(tensor.ptr(), &array);
        return storage_too_small(array);
      },
      py::arg("tensor"));
  m.def(
      "overlaps_itself",
      [](const py::handle& tensor) { return paraminit::overlaps_itself(tensor); },
      py::arg("tensor"));
  m.def(
      "check_parameters",
      [](const std::string& name, const std::vector<double>& parameters, const py::handle& dtype) {
        with_law(name, parameters, [&](const auto& law) {
          if (const auto type = real_type(dtype_of(dtype))) law.check(*type);
        });
      },
      py::arg("name"), py::arg("parameters"), py::arg("dtype"));
  m.def("fill", fill_plain, py::arg("name"), py::arg("tensor"), py::arg("parameters"),
        py::arg("source"), py::arg("whole"), py::arg("start"));
  m.def("fill_with_key", fill_plain_with_key, py::arg("name"), py::arg("tensor"),
        py::arg("parameters"), py::arg("key"), py::arg("whole"), py::arg("start"));
  py::class_<Entries>(m, "Entries")
      .def(py::init<py::list>(), py::arg("entries"))
      .def("first_equivalent", &Entries::first_equivalent);
  m.def("fill_many", fill_many_plain, py::arg("fills"), py::arg("calls"), py::arg("which"),
        py::arg("places"), py::arg("entries"), py::arg("indices"), py::arg("default_generator"),
        py::arg("draw"));

  m.def("apply_distribution", apply_distribution, py::arg("name"), py::arg("parameters"),
        py::arg("words"), py::arg("dtype"));
  m.def("sparse_ones", sparse_ones, py::arg("matrix"), py::arg("zeros"), py::arg("key"),
        py::arg("spread"));
  m.def(
      "fill_staged",
      [](const std::string& name, const std::vector<double>& parameters, const py::handle& tensor,
         std::pair<uint64_t, uint64_t> key, const std::vector<int64_t>& whole,
         const std::vector<int64_t>& start, int64_t bytes) {
        Array array = described_or_throw(tensor);
        describe_storage(tensor.ptr(), &array);
        const py::gil_scoped_release no_gil;
        fill_staged(name, parameters, array, {key.first, key.second}, {whole, start}, bytes);
      },
      py::arg("name"), py::arg("parameters"), py::arg("tensor"), py::arg("key"), py::arg("whole"),
      py::arg("start"), py::arg("bytes"));
}
