// Registers the operators: their schemas and their kernels for every device type. Everything around
// the kernels (autograd, version counters, meta tensors, draws of keys) is in paraminit_ext/ops.py.
#include "ops.h"

#include <cstring>

#include "../stream/errors.h"
#include "fills.h"
#include "statistics.h"
#include "staging.h"
#include "tensors.h"

namespace paraminit {
namespace {

using Integers = std::vector<int64_t>;

// --- errors ----------------------------------------------------------------------------------

// The Python exception type of the last error in this thread; "" if there was none.
thread_local const char* last_error = "";

// Runs a kernel, and stores the type of its exception in `last_error`.
template <class Work>
auto recording_error(const Work& work) {
  last_error = "";
  try {
    return work();
  } catch (const ValueError&) {
    last_error = "ValueError";
    throw;
  } catch (const NotImplementedError&) {
    last_error = "NotImplementedError";
    throw;
  } catch (const OutOfMemoryError&) {
    last_error = "OutOfMemoryError";
    throw;
  } catch (const std::exception&) {
    last_error = "RuntimeError";
    throw;
  }
}

// --- keys ------------------------------------------------------------------------------------

const uint64_t* key_data(const Tensor& key) {
  return static_cast<const uint64_t*>(key.const_data_ptr());
}

Tensor on_host(const Tensor& tensor) {
  return torch::stable::to(tensor, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

void check_key(const char* op, const Tensor& key, const Device* device) {
  const Array array = array_of(op, key, Use::kRead);
  const bool valid_type =
      array.type == Dtype::kInt64 || std::strcmp(array.type_name, "UInt64") == 0;
  if (!valid_type || array.sizes.size() != 1 || array.sizes[0] != 2 || array.strides[0] != 1) {
    refuse<ValueError>(op, "expected a contiguous key of two uint64 or int64, got ",
                       array.type_name, " of shape ", array.sizes, ". Use Key.to_tensor().");
  }
  check_storage(op, array);
  if (device != nullptr && array.device != *device) {
    refuse<ValueError>(op,
                       "expected a key on the tensor's device, got one on another. Use "
                       "key.to(tensor.device).");
  }
}

KeySource source_of(const Tensor& key, Device device) {
  if (has_kernels(device)) return {{}, key_data(key)};
  const Tensor copy = on_host(key);
  return {{key_data(copy)[0], key_data(copy)[1]}, nullptr};
}

Tensor fold_in_tensor(const Tensor& key, int64_t data) {
  return recording_error([&] {
    check_key("fold_in", key, nullptr);
    const Device device = device_of(key);
    const auto number = static_cast<uint64_t>(data);
    if (device.kind == DeviceKind::kCuda && has_kernels(device)) {
      const Tensor folded = torch::stable::empty_like(key);
      cuda_backend()->fold_in(key_data(key), number,
                              static_cast<uint64_t*>(folded.mutable_data_ptr()), device.index);
      return folded;
    }
    const Tensor host_key = on_host(key);
    const Key parent{key_data(host_key)[0], key_data(host_key)[1]};
    const Key child = fold_in(parent, number);
    const Tensor folded = torch::stable::empty_like(host_key);
    std::memcpy(folded.mutable_data_ptr(), &child, sizeof(child));
    return device.kind == DeviceKind::kCpu ? folded : torch::stable::to(folded, key.device());
  });
}

// --- fills -----------------------------------------------------------------------------------

template <class Law>
void fill_through_host(const Law& law, const Tensor& self, const Array& array, KeySource key,
                       const ShardPosition& place, int64_t bytes) {
  // A sparse fill uses pieces of whole columns if they fit, because every piece ranks all words of
  // its columns again.
  const bool columns = std::is_same_v<Law, Sparse>;
  fill_by_pieces(Law::name, self, array, place, bytes, columns,
                 [&](const Array& piece, const ShardPosition& of) { fill(law, piece, key, of); });
}

// Uses a single piece, because an orthogonal fill computes the whole matrix for every piece.
void fill_through_host(const Orthogonal& law, const Tensor& self, const Array& array, KeySource key,
                       const ShardPosition& place, int64_t) {
  fill_by_pieces(Orthogonal::name, self, array, place, array.numel() * array.element_bytes, false,
                 [&](const Array& piece, const ShardPosition& of) { fill(law, piece, key, of); });
}

template <class Law>
void run(const Law& law, const Tensor& self, Key value, const Tensor* key,
         const ShardPosition& place) {
  recording_error([&] {
    const Array array = array_of(Law::name, self);
    check_fill(law, array, place);
    if (key != nullptr) check_key(Law::name, *key, &array.device);
    if (array.numel() == 0) return;
    const KeySource source = key != nullptr ? source_of(*key, array.device) : KeySource{value};
    if (!has_kernels(array.device)) {
      fill_through_host(law, self, array, source, place, kStagingBytes);
    } else {
      fill(law, array, source, place);
    }
  });
}

// The two kernels of the fill operator of a law. They take the key by value, or as a tensor on the
// device.
template <class Law, class... Parameters>
struct Kernels {
  static void by_value(Tensor self, Parameters... parameters, int64_t seed, int64_t offset,
                       Integers whole, Integers start) {
    const Key key{static_cast<uint64_t>(seed), static_cast<uint64_t>(offset)};
    run(Law{parameters...}, self, key, nullptr, {whole, start});
  }
  static void by_key(Tensor self, Parameters... parameters, Tensor key, Integers whole,
                     Integers start) {
    run(Law{parameters...}, self, {}, &key, {whole, start});
  }
  static void add_to(torch::stable::detail::StableLibrary& m) {
    const std::string name = Law::name;
    m.impl(name.c_str(), TORCH_BOX(&by_value));
    m.impl((name + ".key").c_str(), TORCH_BOX(&by_key));
  }
};

Tensor statistics_kernel(Tensor self) {
  return recording_error([&] { return statistics(self); });
}
Tensor fold_in_kernel(Tensor key, int64_t data) { return fold_in_tensor(key, data); }

void add_kernels(torch::stable::detail::StableLibrary& m) {
  Kernels<Uniform, double, double>::add_to(m);
  Kernels<Normal, double, double>::add_to(m);
  Kernels<TruncNormal, double, double, double, double>::add_to(m);
  Kernels<Sparse, double, int64_t>::add_to(m);
  Kernels<Orthogonal, double>::add_to(m);
  Kernels<RawWords>::add_to(m);
  m.impl("fold_in", TORCH_BOX(&fold_in_kernel));
  m.impl("statistics", TORCH_BOX(&statistics_kernel));
}

// Defines the two overloads of a fill: the key by value, and the key as a tensor.
void define_fill(torch::stable::detail::StableLibrary& m, const std::string& name,
                 const std::string& parameters) {
  const std::string self = "(Tensor(a!) self, " + parameters;
  const std::string place = "SymInt[] global_shape, SymInt[] shard_offset) -> ()";
  m.def((name + self + "int seed, int offset, " + place).c_str());
  m.def((name + ".key" + self + "Tensor key, " + place).c_str());
}

}  // namespace

const char* take_error_type() { return std::exchange(last_error, ""); }

void fill_staged(const std::string& name, std::span<const double> parameters, const Array& self,
                 Key key, const ShardPosition& place, int64_t bytes) {
  with_law(name, parameters, [&](const auto& law) {
    check_fill(law, self, place);
    if (self.numel() == 0) return;
    fill_through_host(law, tensor_of(self), self, {key}, place, bytes);
  });
}

STABLE_TORCH_LIBRARY(paraminit_ext, m) {
  define_fill(m, Uniform::name, "float a, float b, ");
  define_fill(m, Normal::name, "float mean, float std, ");
  define_fill(m, TruncNormal::name, "float mean, float std, float a, float b, ");
  define_fill(m, Sparse::name, "float std, SymInt zeros, ");
  define_fill(m, Orthogonal::name, "float gain, ");
  define_fill(m, RawWords::name, "");
  m.def("fold_in(Tensor key, int data) -> Tensor");
  m.def("statistics(Tensor self) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(paraminit_ext, CPU, m) { add_kernels(m); }
STABLE_TORCH_LIBRARY_IMPL(paraminit_ext, CUDA, m) { add_kernels(m); }

// All other devices, which are filled through host memory.
STABLE_TORCH_LIBRARY_IMPL(paraminit_ext, CompositeExplicitAutograd, m) { add_kernels(m); }

}  // namespace paraminit
