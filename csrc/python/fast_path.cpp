// See fast_path.h.
#include "fast_path.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "../stream/errors.h"
#include "../stream/overlap.h"
#include "../torch/fills.h"
#include "../torch/fill_many.h"

namespace paraminit {
namespace {

// Fills of at least this many elements release the GIL.
constexpr int64_t kLongFill = int64_t{1} << 14;

PyTypeObject* key_type = nullptr;

bool is_key(PyObject* object) { return Py_TYPE(object) == key_type; }

// Converts a Python Key, which stores its seed and offset as int64.
Key to_key(PyObject* key) {
  static PyObject* const seed = PyUnicode_InternFromString("_seed");
  static PyObject* const offset = PyUnicode_InternFromString("_offset");
  const auto word = [&](PyObject* name) {
    const auto number = py::reinterpret_steal<py::object>(PyObject_GetAttr(key, name));
    const int64_t value = number ? PyLong_AsLongLong(number.ptr()) : -1;
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return static_cast<uint64_t>(value);
  };
  const uint64_t first = word(seed);
  return {first, word(offset)};
}

// A Python tuple of at most kMost numbers.
template <class T, size_t kMost>
class Numbers {
 public:
  // Returns false if the object is not such a tuple.
  bool read(PyObject* tuple) {
    if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) > Py_ssize_t{kMost}) return false;
    count_ = static_cast<size_t>(PyTuple_GET_SIZE(tuple));
    for (size_t i = 0; i < count_; ++i) {
      PyObject* const item = PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i));
      if constexpr (std::is_same_v<T, double>) {
        numbers_[i] = PyFloat_AsDouble(item);
      } else {
        numbers_[i] = PyLong_AsLongLong(item);
      }
      if (numbers_[i] == T{-1} && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        return false;
      }
    }
    return true;
  }
  std::span<const T> span() const { return {numbers_.data(), count_}; }

 private:
  std::array<T, kMost> numbers_;
  size_t count_ = 0;
};

// Fills of matrices always release the GIL. A shard may take as long as the whole matrix, and an
// orthogonal fill calls Python, possibly from another thread.
template <class Law>
constexpr bool kOfMatrices = std::is_same_v<Law, Sparse> || std::is_same_v<Law, Orthogonal>;

template <class Law, class Work>
void without_gil(int64_t numel, const Work& work) {
  if (!kOfMatrices<Law> && numel < kLongFill) return work();
  const py::gil_scoped_release no_gil;
  work();
}

// Returns whether two arguments of calls are interchangeable: the same object, or numbers or
// strings of the same type and value. Zeros of different sign are not.
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

}  // namespace

void set_key_type(const py::handle& type) {
  key_type = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
}

namespace {

// The common part of fill_plain and fill_plain_with_key. `get_key` is called after all other
// checks, because it may draw.
template <class GetKey>
bool fill_plain_impl(const py::handle& name, const py::handle& tensor, const py::handle& parameters,
                     const py::handle& whole, const py::handle& start, const GetKey& get_key) {
  Array array{};
  Numbers<double, 4> numbers;
  Numbers<int64_t, kMaxDims> sizes, offsets;
  const char* const text = PyUnicode_AsUTF8(name.ptr());
  if (text == nullptr || !numbers.read(parameters.ptr()) || !sizes.read(whole.ptr()) ||
      !offsets.read(start.ptr()) || !dispatch_is_plain() || !no_call_observers() ||
      !describe_plain(tensor.ptr(), &array) || !has_own_elements(tensor.ptr(), &array) ||
      array.numel() == 0 || (is_inference(tensor.ptr()) && !is_inference_mode())) {
    PyErr_Clear();
    return false;
  }
  const ShardPosition place{sizes.span(), offsets.span()};
  return with_law(text, numbers.span(), [&](const auto& law) {
    try {
      check_fill(law, array, place);
    } catch (const std::exception&) {
      return false;
    }
    Key key{};
    if (!get_key(array.device, &key)) return false;
    mark_written(py::make_tuple(tensor).ptr());
    without_gil<std::decay_t<decltype(law)>>(array.numel(),
                                             [&] { fill(law, array, {key}, place); });
    return true;
  });
}

}  // namespace

bool fill_plain(const py::handle& name, const py::handle& tensor, const py::handle& parameters,
                const py::handle& source, const py::handle& whole, const py::handle& start) {
  return fill_plain_impl(name, tensor, parameters, whole, start, [&](Device device, Key* key) {
    if (is_key(source.ptr())) {
      *key = to_key(source.ptr());
    } else if (source.is_none() ? device.kind == DeviceKind::kCpu
                                : is_cpu_generator(source.ptr())) {
      *key = draw(source.ptr());
    } else {
      return false;
    }
    return true;
  });
}

bool fill_plain_with_key(const py::handle& name, const py::handle& tensor,
                         const py::handle& parameters, std::pair<int64_t, int64_t> key,
                         const py::handle& whole, const py::handle& start) {
  return fill_plain_impl(name, tensor, parameters, whole, start, [&](Device, Key* out) {
    *out = {static_cast<uint64_t>(key.first), static_cast<uint64_t>(key.second)};
    return true;
  });
}

Entries::Entries(py::list entries)
    : entries_(std::move(entries)), first_(entries_.size(), -1), arrays_(entries_.size()) {
  // Entries of further kinds of calls are checked one by one.
  constexpr size_t kKinds = 64;
  struct Kind {
    PyObject *name, *arguments;
    size_t first;
  };
  std::vector<Kind> kinds;
  for (size_t i = 0; i < first_.size(); ++i) {
    PyObject* const entry = PyList_GET_ITEM(entries_.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != 4) continue;
    PyObject* const tensor = PyTuple_GET_ITEM(entry, 0);
    PyObject* const name = PyTuple_GET_ITEM(entry, 1);
    PyObject* const arguments = PyTuple_GET_ITEM(entry, 2);
    PyObject* const source = PyTuple_GET_ITEM(entry, 3);
    Array& array = arrays_[i];
    if (!is_exact_tensor(tensor) || !PyUnicode_CheckExact(name) || !PyDict_CheckExact(arguments) ||
        (source != Py_None && !is_key(source)) || !describe_plain(tensor, &array) ||
        array.numel() == 0 || !is_contiguous(array.sizes, array.strides) ||
        // kOther may be any of several dtypes, which cannot be told apart here.
        array.type == Dtype::kOther || !has_own_elements(tensor, &array) || is_inference(tensor)) {
      continue;
    }
    const auto alike = [&](const Kind& kind) {
      const Array& other = arrays_[kind.first];
      return array.type == other.type && array.device.kind == other.device.kind &&
             std::equal(array.sizes.begin(), array.sizes.end(), other.sizes.begin(),
                        other.sizes.end()) &&
             same_value(name, kind.name) && same_arguments(arguments, kind.arguments);
    };
    const auto kind = std::find_if(kinds.rbegin(), kinds.rend(), alike);
    first_[i] = static_cast<int64_t>(kind != kinds.rend() ? kind->first : i);
    if (kind == kinds.rend() && kinds.size() < kKinds) kinds.push_back({name, arguments, i});
  }
}

void fill_many_plain(const py::list& fills, const py::list& calls, const py::list& which,
                     const py::dict& places, const Entries& described, const py::list& indices,
                     const py::function& default_generator, const py::function& draw) {
  std::vector<ManyFill> many_fills;
  for (const py::handle fill : fills) {
    const auto pair = fill.cast<py::tuple>();
    ManyFill& many_fill = many_fills.emplace_back();
    Array value{};
    if (PyTuple_CheckExact(pair[1].ptr())) {
      many_fill.name = pair[0].cast<std::string>();
      many_fill.parameters = pair[1].cast<std::vector<double>>();
    } else if (describe(pair[1].ptr(), &value) && value.device.kind == DeviceKind::kCpu) {
      const auto* const bytes = static_cast<const char*>(value.data);
      many_fill.value.assign(bytes, bytes + value.element_bytes);
    } else {
      throw ValueError("paraminit_ext.fill_many: expected one value on the CPU, got none.");
    }
  }
  std::vector<ManyEntry> entries(calls.size());
  py::list written(calls.size());
  // A generator, and the entries that draw from it in order.
  struct Draws {
    py::object source;
    std::vector<size_t> entries;
  };
  std::vector<Draws> draws;
  // The default generator that was looked up last, and its device.
  Device default_device{DeviceKind::kOther, -1};
  py::object default_source;
  for (size_t i = 0; i < entries.size(); ++i) {
    ManyEntry& entry = entries[i];
    PyObject* const call = PyList_GET_ITEM(calls.ptr(), static_cast<Py_ssize_t>(i));
    PyObject* const tensor = PyTuple_GET_ITEM(call, 0);
    PyObject* const index = PyList_GET_ITEM(indices.ptr(), static_cast<Py_ssize_t>(i));
    const int64_t described_index = PyLong_AsLongLong(index);
    if (described_index >= 0) {
      entry.self = described.array(static_cast<size_t>(described_index));
    } else if (describe_plain(tensor, &entry.self)) {
      describe_storage(tensor, &entry.self);
    } else {
      throw ValueError("paraminit_ext.fill_many: expected plain tensors, got another kind.");
    }
    entry.fill = PyLong_AsSize_t(PyList_GET_ITEM(which.ptr(), static_cast<Py_ssize_t>(i)));
    PyList_SET_ITEM(written.ptr(), static_cast<Py_ssize_t>(i), Py_NewRef(tensor));
    PyObject* const source = PyTuple_GET_ITEM(call, 3);
    if (source == Py_False || many_fills.at(entry.fill).name.empty()) continue;
    if (is_key(source)) {
      entry.key = to_key(source);
      continue;
    }
    if (source == Py_None && !(default_device == entry.self.device)) {
      default_device = entry.self.device;
      default_source = default_generator(py::handle(tensor));
    }
    const auto generator =
        source == Py_None ? default_source : py::reinterpret_borrow<py::object>(source);
    auto found = std::find_if(draws.begin(), draws.end(),
                              [&](const Draws& d) { return d.source.is(generator); });
    if (found == draws.end()) found = draws.insert(found, {generator, {}});
    found->entries.push_back(i);
  }
  for (const auto& [index, place] : places) {
    ManyEntry& entry = entries.at(index.cast<size_t>());
    std::tie(entry.global_shape, entry.shard_offset) =
        place.cast<std::pair<std::vector<int64_t>, std::vector<int64_t>>>();
  }
  for (const Draws& d : draws) {
    const py::object drawn = draw(d.source, d.entries.size());
    Array words{};
    if (!describe(drawn.ptr(), &words) || words.numel() != 2 * int64_t(d.entries.size())) {
      throw ValueError("paraminit_ext.fill_many: expected two words per draw, got another number.");
    }
    const auto* number = static_cast<const uint64_t*>(words.data);
    for (const size_t i : d.entries) {
      entries[i].key = {number[0], number[1]};
      number += 2;
    }
  }
  mark_written(written.ptr());
  const py::gil_scoped_release no_gil;
  fill_many(many_fills, entries);
}

}  // namespace paraminit
