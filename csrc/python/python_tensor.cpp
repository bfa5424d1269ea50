// See python_tensor.h. References to looked-up objects are never released.
#include "python_tensor.h"

#include <string>

#include "../stream/overlap.h"
#include "../torch/fills.h"
#include "dlpack.h"

namespace paraminit {
namespace {

struct Torch {
  const dlpack::Exchange* dlpack;
  PyObject *tensor_keys, *included_keys;  // functions that return DispatchKeySets
  PyObject *inference_mode, *profiler, *forward_ad, *increment_version;
  PyObject *empty, *int64, *generator_type, *tensor_type, *parameter_type, *inference;
  PyObject* precision;
  bool has_names;  // torch has named tensors (before 2.13)
  std::vector<std::pair<PyObject*, Dtype>> dtypes;
  // Bits of a DispatchKeySet: the backends, and the keys that do not intercept a fill.
  uint64_t backends, cpu, cuda, transparent_to_tensors, transparent_to_calls;
};

Torch torch;

// Interned names of attributes that are read in every call.
struct Names {
  PyObject* raw_repr = PyUnicode_InternFromString("raw_repr");
  PyObject* storage = PyUnicode_InternFromString("untyped_storage");
  PyObject* nbytes = PyUnicode_InternFromString("nbytes");
  PyObject* storage_offset = PyUnicode_InternFromString("storage_offset");
  PyObject* level = PyUnicode_InternFromString("_current_level");
  PyObject* is_conj = PyUnicode_InternFromString("is_conj");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_cuda = PyUnicode_InternFromString("is_cuda");
  PyObject* has_names = PyUnicode_InternFromString("has_names");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* is_inference = PyUnicode_InternFromString("is_inference");
  PyObject* random = PyUnicode_InternFromString("random_");
  PyObject* device = PyUnicode_InternFromString("device");
  PyObject* type = PyUnicode_InternFromString("type");
};
const Names& names() {
  static const Names interned;
  return interned;
}

py::object steal_or_throw(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

py::object call(PyObject* function, PyObject* argument = nullptr) {
  return steal_or_throw(argument == nullptr ? PyObject_CallNoArgs(function)
                                            : PyObject_CallOneArg(function, argument));
}

py::object call_method(PyObject* object, PyObject* name) {
  return steal_or_throw(PyObject_CallMethodNoArgs(object, name));
}

bool is_true(PyObject* object, PyObject* attribute) {
  return steal_or_throw(PyObject_GetAttr(object, attribute)).ptr() == Py_True;
}

int64_t as_integer(const py::object& number) {
  const int64_t value = PyLong_AsLongLong(number.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

uint64_t bits_of_keys(const py::object& keys) {
  const py::object number = call_method(keys.ptr(), names().raw_repr);
  const uint64_t bits = PyLong_AsUnsignedLongLong(number.ptr());
  if (bits == ~uint64_t{0} && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return bits;
}

const dlpack::Exchange* find_dlpack(const py::object& tensor_type) {
  const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  auto* header =
      static_cast<dlpack::Header*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (header == nullptr) throw py::error_already_set();
  while (header != nullptr && header->major != 1) header = header->previous;
  if (header == nullptr) {
    throw py::import_error(
        "paraminit_ext: expected a torch with the exchange API of DLPack 1, "
        "got another version. Use a newer paraminit_ext.");
  }
  return reinterpret_cast<const dlpack::Exchange*>(header);
}

// A dtype: its names in Python and in C++, and its DLPack type code and bits.
struct DtypeInfo {
  Dtype type;
  const char* python;
  const char* name;
  uint8_t code, bits;
};
constexpr DtypeInfo kDtypes[] = {
    {Dtype::kFloat32, "float32", "Float", dlpack::kFloat, 32},
    {Dtype::kBFloat16, "bfloat16", "BFloat16", dlpack::kBFloat, 16},
    {Dtype::kFloat16, "float16", "Half", dlpack::kFloat, 16},
    {Dtype::kFloat64, "float64", "Double", dlpack::kFloat, 64},
    {Dtype::kComplex64, "complex64", "ComplexFloat", dlpack::kComplex, 64},
    {Dtype::kComplex128, "complex128", "ComplexDouble", dlpack::kComplex, 128},
    {Dtype::kComplex32, "complex32", "ComplexHalf", dlpack::kComplex, 32},
    {Dtype::kInt64, "int64", "Long", dlpack::kInt, 64}};
constexpr DtypeInfo kOther{Dtype::kOther, "", "another dtype", 0, 0};

const DtypeInfo& dtype_of(const dlpack::Tensor& t) {
  for (const DtypeInfo& dtype : kDtypes) {
    if (dtype.code == t.type_code && dtype.bits == t.type_bits && t.type_lanes == 1) return dtype;
  }
  return kOther;
}

Device device_of(const dlpack::Tensor& t) {
  switch (t.device_type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:  // pinned memory
      return {DeviceKind::kCpu, 0};
    case dlpack::kCuda:
      return {DeviceKind::kCuda, t.device_index};
    default:
      return {DeviceKind::kOther, t.device_index};
  }
}

// Switches inference mode off. A tensor that is made in inference mode cannot be written outside.
class NormalMode {
 public:
  NormalMode() : mode_(py::handle(torch.inference)(false)) { mode_.attr("__enter__")(); }
  ~NormalMode() {
    // Keeps an exception that is on its way, and cannot throw one.
    const py::error_scope current;
    const py::object none = py::none();
    PyObject* const left =
        PyObject_CallMethod(mode_.ptr(), "__exit__", "OOO", none.ptr(), none.ptr(), none.ptr());
    left == nullptr ? PyErr_Clear() : Py_DECREF(left);
  }
  NormalMode(const NormalMode&) = delete;
  NormalMode& operator=(const NormalMode&) = delete;

 private:
  py::object mode_;
};

// A tensor for the two words of a draw. It is used by one draw at a time, and reused later.
// Requires the GIL.
class DrawBuffer {
 public:
  DrawBuffer() {
    if (free().empty()) {
      const NormalMode mode;
      py::object buffer = py::handle(torch.empty)(2, py::arg("dtype") = py::handle(torch.int64),
                                                  py::arg("device") = "cpu");
      free().reserve(++count());  // so that the destructor cannot throw
      tensor_ = buffer.release().ptr();
    } else {
      tensor_ = free().back();
      free().pop_back();
    }
  }
  ~DrawBuffer() { free().push_back(tensor_); }
  DrawBuffer(const DrawBuffer&) = delete;
  DrawBuffer& operator=(const DrawBuffer&) = delete;
  PyObject* tensor() const { return tensor_; }

 private:
  static std::vector<PyObject*>& free() {
    static std::vector<PyObject*> tensors;
    return tensors;
  }
  static size_t& count() {
    static size_t buffers = 0;
    return buffers;
  }
  PyObject* tensor_;
};

}  // namespace

void load_torch_functions() {
  const py::module_ module = py::module_::import("torch");
  const py::object c = module.attr("_C");
  torch.dlpack = find_dlpack(module.attr("Tensor"));
  const auto keep = [](py::object object) { return object.release().ptr(); };
  torch.tensor_keys = keep(c.attr("_dispatch_keys"));
  torch.included_keys = keep(c.attr("_dispatch_tls_local_include_set"));
  torch.inference_mode = keep(module.attr("is_inference_mode_enabled"));
  torch.profiler = keep(c.attr("_autograd").attr("_profiler_enabled"));
  torch.forward_ad = keep(py::module_::import("torch.autograd.forward_ad"));
  torch.increment_version = keep(c.attr("_increment_version"));
  torch.empty = keep(module.attr("empty"));
  torch.int64 = keep(module.attr("int64"));
  torch.generator_type = keep(module.attr("Generator"));
  torch.tensor_type = keep(module.attr("Tensor"));
  torch.parameter_type = keep(module.attr("nn").attr("Parameter"));
  torch.inference = keep(module.attr("inference_mode"));
  torch.precision = keep(c.attr("_get_fp32_precision_getter"));
  torch.has_names = py::hasattr(module.attr("Tensor"), "has_names");
  for (const DtypeInfo& dtype : kDtypes) {
    torch.dtypes.emplace_back(keep(module.attr(dtype.python)), dtype.type);
  }

  // The values of dispatch keys differ between torch versions, but their names do not.
  const py::object key_type = c.attr("DispatchKey"), set_type = c.attr("DispatchKeySet");
  const auto bits = [&](const py::object& key) { return bits_of_keys(set_type(key)); };
  const auto named = [&](const char* name) { return bits(key_type.attr(name)); };
  torch.backends = named("Dense") - 1;
  torch.cpu = named("CPU") & torch.backends;
  torch.cuda = named("CUDA") & torch.backends;
  const uint64_t inplace = named("ADInplaceOrView");
  uint64_t autocast = 0, autograd = 0;
  for (const auto& [name, key] : py::dict(key_type.attr("__members__"))) {
    const auto text = name.cast<std::string>();
    const auto dispatch_key = py::reinterpret_borrow<py::object>(key);
    if (text.starts_with("Autograd")) autograd |= bits(dispatch_key) & ~torch.backends;
    if (text.starts_with("Autocast")) autocast |= bits(dispatch_key) & ~torch.backends;
  }
  const uint64_t always = autograd | autocast | inplace | torch.backends;
  torch.transparent_to_tensors = always | named("Dense");
  torch.transparent_to_calls = always | named("BackendSelect");
}

bool is_exact_tensor(PyObject* object) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == torch.tensor_type || type == torch.parameter_type;
}

bool products_may_round(DeviceKind device) {
  const py::gil_scoped_acquire lock;
  const char* const backend = device == DeviceKind::kCuda ? "cuda" : "mkldnn";
  const auto precision = py::handle(torch.precision)(backend, "matmul").cast<std::string>();
  return precision == "tf32" || precision == "bf16";
}

bool dispatch_is_plain() {
  return (bits_of_keys(call(torch.included_keys)) & ~torch.transparent_to_calls) == 0;
}

bool no_call_observers() {
  return call(torch.profiler).ptr() == Py_False &&
         as_integer(steal_or_throw(PyObject_GetAttr(torch.forward_ad, names().level))) < 0;
}

bool describe(PyObject* tensor, Array* out) {
  // On other devices, usually meta, torch raises an error with a stack trace, which takes a
  // millisecond.
  if (!is_true(tensor, names().is_cpu) && !is_true(tensor, names().is_cuda)) return false;
  dlpack::Tensor t{};
  if (torch.dlpack->describe(tensor, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  const auto dims = static_cast<size_t>(t.dims);
  const DtypeInfo& dtype = dtype_of(t);
  *out = {static_cast<char*>(t.data) + t.byte_offset,
          dtype.type,
          dtype.name,
          t.type_bits * t.type_lanes / 8,
          device_of(t),
          Span(t.shape, dims),
          Span(t.strides, dims)};
  return true;
}

bool is_wrapped(PyObject* tensor) {
  if (dispatch_is_plain()) return false;
  const uint64_t keys = bits_of_keys(call(torch.tensor_keys, tensor));
  return (keys & ~torch.transparent_to_tensors) != 0;
}

bool describe_plain(PyObject* tensor, Array* out) {
  if (is_exact_tensor(tensor) && describe(tensor, out) && out->numel() != 0) {
    // A tensor of torch's own classes that has memory is plain, with the exceptions tested here. A
    // tensor that wraps or represents another one has a storage whose address is null.
    out->storage_offset = as_integer(call_method(tensor, names().storage_offset));
    const auto address = reinterpret_cast<uintptr_t>(out->data);
    return has_kernels(out->device) &&
           address != static_cast<uintptr_t>(out->storage_offset * out->element_bytes) &&
           call_method(tensor, names().is_neg).ptr() != Py_True &&
           !(is_complex(out->type) && call_method(tensor, names().is_conj).ptr() == Py_True) &&
           !(torch.has_names && call_method(tensor, names().has_names).ptr() == Py_True);
  }
  const uint64_t keys = bits_of_keys(call(torch.tensor_keys, tensor));
  const uint64_t backend = keys & torch.backends;
  if ((keys & ~torch.transparent_to_tensors) != 0 ||
      !(backend == torch.cpu || (backend == torch.cuda && cuda_backend() != nullptr))) {
    return false;
  }
  return describe(tensor, out);
}

void describe_storage(PyObject* tensor, Array* array) {
  // On other devices, a storage may be an opaque handle with a meaningless size.
  if (array->device.kind == DeviceKind::kOther) return;
  const py::object storage = call_method(tensor, names().storage);
  array->storage_bytes = as_integer(call_method(storage.ptr(), names().nbytes));
  if (array->storage_offset >= 0) return;
  array->storage_offset = as_integer(call_method(tensor, names().storage_offset));
}

bool has_own_elements(PyObject* tensor, Array* array) {
  if (overlaps_itself(array->sizes, array->strides)) return false;
  describe_storage(tensor, array);
  return !storage_too_small(*array);
}

bool is_inference(PyObject* tensor) {
  return call_method(tensor, names().is_inference).ptr() == Py_True;
}

bool is_inference_mode() { return call(torch.inference_mode).ptr() == Py_True; }

bool overlaps_itself(const py::handle& tensor) {
  std::vector<int64_t> sizes, strides;
  for (const py::handle size : py::object(tensor.attr("shape"))) {
    sizes.push_back(size.cast<int64_t>());
  }
  for (const py::handle stride : tensor.attr("stride")()) {
    strides.push_back(stride.cast<int64_t>());
  }
  return overlaps_itself(Span(sizes), Span(strides));
}

Dtype dtype_of(const py::handle& dtype) {
  for (const auto& [object, type] : torch.dtypes) {
    if (object == dtype.ptr()) return type;
  }
  return Dtype::kOther;
}

void mark_written(PyObject* tensors) { call(torch.increment_version, tensors); }

bool is_cpu_generator(PyObject* object) {
  if (PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(torch.generator_type)) == 0) {
    return false;
  }
  const py::object device = steal_or_throw(PyObject_GetAttr(object, names().device));
  const py::object type = steal_or_throw(PyObject_GetAttr(device.ptr(), names().type));
  return PyUnicode_CompareWithASCIIString(type.ptr(), "cpu") == 0;
}

Key draw(PyObject* generator) {
  // Over the whole range of int64, random_() writes the generator's next two 64-bit outputs.
  static PyObject* const least = PyLong_FromLongLong(INT64_MIN);
  static PyObject* const keyword_names = Py_BuildValue("(s)", "generator");
  const DrawBuffer buffer;
  PyObject* const arguments[] = {buffer.tensor(), least, Py_None, generator};
  steal_or_throw(PyObject_VectorcallMethod(names().random, arguments, 3, keyword_names));
  Array drawn{};
  if (!describe(buffer.tensor(), &drawn))
    throw std::runtime_error("paraminit_ext: expected the words of a draw, got no memory.");
  const auto* const numbers = static_cast<const uint64_t*>(drawn.data);
  return {numbers[0], numbers[1]};
}

}  // namespace paraminit
