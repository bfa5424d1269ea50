// What Python needs that is not a tensor operator: facts of the build, instruction sets, raw words,
// and the host's draw from a generator.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "checks.h"
#include "../stream/constants.h"
#include "../cpu/capability.h"
#include "../cpu/fill.h"
#include "../cpu/quota.h"
#include "../cpu/sparse.h"
#include "fills.h"
#include "generator.h"
#include "many.h"
#include "overlap.h"
#ifdef PARAMINIT_WITH_CUDA
#include "cuda.h"
#endif

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "../stream/lane_scalar.h"
#include "../stream/philox.h"

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
  TORCH_CHECK_VALUE(matrix.is_cpu() && matrix.dim() == 2 && matrix.scalar_type() == at::kFloat &&
                        matrix.numel() > 0 && zeros > 0 && zeros <= matrix.size(0),
                    "paraminit_ext._C.sparse_ones: expected a float32 matrix on the CPU and 1 to "
                    "rows zeros.");
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

// Whether a value may stand for another one among a call's arguments: a number for one of the same
// type and, to the sign of a zero, the same value.
bool same_value(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyFloat_CheckExact(a)) {
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return std::memcmp(&x, &y, sizeof(x)) == 0;
  }
  if (PyUnicode_CheckExact(a)) return PyUnicode_Compare(a, b) == 0;
  return PyLong_CheckExact(a) && PyObject_RichCompareBool(a, b, Py_EQ) == 1;
}

bool same_arguments(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (PyDict_GET_SIZE(a) != PyDict_GET_SIZE(b)) return false;
  PyObject *name_a, *value_a, *name_b, *value_b;
  Py_ssize_t at_a = 0, at_b = 0;
  while (PyDict_Next(a, &at_a, &name_a, &value_a) && PyDict_Next(b, &at_b, &name_b, &value_b)) {
    if (!same_value(name_a, name_b) || !same_value(value_a, value_b)) return false;
  }
  return true;
}

// For each entry of a fill of many the first one that differs from it in nothing that the checks of
// a fill look at: the same function and arguments, and tensors of the same dtype, shape and kind of
// device that nothing else could be said about. -1 for an entry that has to be looked at by itself.
std::vector<int64_t> first_alike(const py::list& entries, const py::handle key_type) {
  // More kinds of calls than this are looked at anew.
  constexpr size_t kKinds = 64;
  struct Kind {
    PyObject *name, *arguments;
    const at::Tensor* tensor;
    int64_t first;
  };
  std::vector<Kind> kinds;
  std::vector<int64_t> found(entries.size(), -1);
  for (size_t i = 0; i < found.size(); ++i) {
    PyObject* const entry = PyList_GET_ITEM(entries.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != 4) continue;
    PyObject* const given = PyTuple_GET_ITEM(entry, 0);
    PyObject* const name = PyTuple_GET_ITEM(entry, 1);
    PyObject* const arguments = PyTuple_GET_ITEM(entry, 2);
    PyObject* const source = PyTuple_GET_ITEM(entry, 3);
    if (!THPVariable_CheckExact(given) || !PyUnicode_CheckExact(name) ||
        !PyDict_CheckExact(arguments) ||
        (source != Py_None && reinterpret_cast<PyObject*>(Py_TYPE(source)) != key_type.ptr())) {
      continue;
    }
    const at::Tensor& tensor = THPVariable_Unpack(given);
    if (!paraminit::is_plain(tensor) || !tensor.is_contiguous() || tensor.numel() == 0 ||
        tensor.is_inference() || paraminit::lacks_storage(tensor)) {
      continue;
    }
    const auto alike = [&](const Kind& kind) {
      return tensor.scalar_type() == kind.tensor->scalar_type() &&
             tensor.device().type() == kind.tensor->device().type() &&
             tensor.sizes() == kind.tensor->sizes() && same_value(name, kind.name) &&
             same_arguments(arguments, kind.arguments);
    };
    const auto kind = std::find_if(kinds.rbegin(), kinds.rend(), alike);
    found[i] = kind != kinds.rend() ? kind->first : static_cast<int64_t>(i);
    if (kind == kinds.rend() && kinds.size() < kKinds) {
      kinds.push_back({name, arguments, &tensor, static_cast<int64_t>(i)});
    }
  }
  return found;
}

// One draw. Another thread may hold the generator for the whole of a fill of torch's own.
paraminit::Key draw_without_lock(const at::Generator& generator) {
  const py::gil_scoped_release no_gil;
  return paraminit::draw(generator);
}

// The key of one fill: of a paraminit_ext.Key, or one draw from a generator, or from the default
// one of the tensor's device.
paraminit::Key take_key(const py::handle source, const at::Tensor& tensor) {
  static PyObject* const seed = PyUnicode_InternFromString("_seed");
  static PyObject* const offset = PyUnicode_InternFromString("_offset");
  if (source.is_none()) {
#ifdef PARAMINIT_WITH_CUDA
    if (tensor.is_cuda())
      return draw_without_lock(paraminit::default_cuda_generator(tensor.device().index()));
#endif
    (void)tensor;
    return draw_without_lock(at::detail::getDefaultCPUGenerator());
  }
  if (THPGenerator_Check(source.ptr())) return draw_without_lock(source.cast<at::Generator>());
  const auto word = [&](PyObject* name) {
    const auto number = py::reinterpret_steal<py::object>(PyObject_GetAttr(source.ptr(), name));
    const int64_t value = number ? PyLong_AsLongLong(number.ptr()) : -1;
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return static_cast<uint64_t>(value);
  };
  const uint64_t first = word(seed);
  return {first, word(offset)};
}

void fill_many(const py::list& fills, const py::list& calls, const py::list& which,
               const py::dict& places) {
  std::vector<paraminit::ManyFill> asked;
  for (const py::handle fill : fills) {
    const auto pair = fill.cast<py::tuple>();
    paraminit::ManyFill& made = asked.emplace_back();
    made.name = pair[0].cast<std::string>();
    if (THPVariable_Check(pair[1].ptr())) {
      made.value = pair[1].cast<at::Tensor>();
    } else {
      made.parameters = pair[1].cast<std::vector<double>>();
    }
  }
  std::vector<paraminit::ManyEntry> entries(calls.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    paraminit::ManyEntry& entry = entries[i];
    PyObject* const call = PyList_GET_ITEM(calls.ptr(), static_cast<Py_ssize_t>(i));
    entry.self = THPVariable_Unpack(PyTuple_GET_ITEM(call, 0));
    entry.fill = PyLong_AsSize_t(PyList_GET_ITEM(which.ptr(), static_cast<Py_ssize_t>(i)));
    const py::handle source = PyTuple_GET_ITEM(call, 3);
    if (source.ptr() != Py_False && !asked.at(entry.fill).value.defined()) {
      entry.key = take_key(source, entry.self);
    }
  }
  for (const auto& [index, place] : places) {
    paraminit::ManyEntry& entry = entries.at(index.cast<size_t>());
    std::tie(entry.whole, entry.start) =
        place.cast<std::pair<std::vector<int64_t>, std::vector<int64_t>>>();
  }
  const py::gil_scoped_release no_gil;
  const at::NoGradGuard no_grad;
  paraminit::fill_many(asked, entries);
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
      "draw",
      [](const at::Generator& generator) { return as_signed(draw_without_lock(generator)); },
      py::arg("generator"));
  m.def(
      "draw_default",
      [](const std::string& device_type, int64_t device_index) {
        if (device_type == "cpu")
          return as_signed(draw_without_lock(at::detail::getDefaultCPUGenerator()));
#ifdef PARAMINIT_WITH_CUDA
        if (device_type == "cuda") {
          return as_signed(draw_without_lock(paraminit::default_cuda_generator(device_index)));
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
  m.def(
      "fill_staged",
      [](const std::string& name, const std::vector<double>& parameters, const at::Tensor& tensor,
         std::pair<uint64_t, uint64_t> key, const std::vector<int64_t>& whole,
         const std::vector<int64_t>& start, int64_t bytes) {
        const at::NoGradGuard no_grad;
        paraminit::fill_staged(name, parameters, tensor, {key.first, key.second}, whole, start,
                               bytes);
      },
      py::arg("name"), py::arg("parameters"), py::arg("tensor"), py::arg("key"), py::arg("whole"),
      py::arg("start"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>());
  m.def("calls_are_plain", paraminit::calls_are_plain);
  m.def("is_plain", paraminit::is_plain, py::arg("tensor"));
  m.def("is_fillable", paraminit::is_fillable, py::arg("tensor"));
  m.def("lacks_storage", paraminit::lacks_storage, py::arg("tensor"));
  m.def(
      "check_parameters",
      [](const std::string& name, const std::vector<double>& parameters, at::ScalarType dtype) {
        paraminit::check_parameters(name, parameters, dtype);
      },
      py::arg("name"), py::arg("parameters"), py::arg("dtype"));
  m.def("first_alike", first_alike, py::arg("entries"), py::arg("key_type"));
  m.def("fill_many", fill_many, py::arg("fills"), py::arg("calls"), py::arg("which"),
        py::arg("places"));
  m.def("overlaps_itself", paraminit::overlaps_itself, py::arg("tensor"));
  m.def("upper_tail", paraminit::upper_tail, py::arg("x"));
  m.def("minus_two_log_upper_tail", paraminit::minus_two_log_upper_tail, py::arg("x"));
  m.def(
      "is_capturing",
      [](int64_t device_index) {
#ifdef PARAMINIT_WITH_CUDA
        return paraminit::is_capturing_cuda(device_index);
#else
        (void)device_index;
        return false;
#endif
      },
      py::arg("device_index"));
  m.def("has_cuda", [] {
#ifdef PARAMINIT_WITH_CUDA
    return true;
#else
    return false;
#endif
  });
}
