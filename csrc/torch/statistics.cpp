// See statistics.h.
#include "statistics.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "../cpu/capability.h"
#include "../cpu/fork.h"
#include "../cpu/statistics.h"
#include "../stream/errors.h"
#include "../stream/overlap.h"
#include "fills.h"

namespace paraminit {
namespace {

// Largest piece that is converted or made contiguous at a time, in elements.
constexpr int64_t kPiece = int64_t{1} << 20;

// Returns whether torch can convert the elements to floating point. This excludes quantized dtypes
// and dtypes of raw bits.
bool holds_numbers(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
    case ScalarType::UInt16:
    case ScalarType::UInt32:
    case ScalarType::UInt64:
    case ScalarType::Bool:
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::ComplexHalf:
    case ScalarType::ComplexFloat:
    case ScalarType::ComplexDouble:
    case ScalarType::Float8_e5m2:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2fnuz:
    case ScalarType::Float8_e4m3fnuz:
    case ScalarType::Float8_e8m0fnu:
      return true;
    default:
      return false;
  }
}

// Returns a dtype that represents every value of the array exactly, except that 64-bit integers are
// rounded to double.
ScalarType wider(const Array& array) {
  return array.element_bytes < 4 ? ScalarType::Float : ScalarType::Double;
}

// Calls read(run, type) for runs of consecutive elements that together cover the tensor. The memory
// of a run is only valid during its call, or on CUDA for later work on the current stream.
template <class Read>
void for_each_run(const Tensor& self, const Read& read) {
  const Array array = array_of("statistics", self, Use::kRead);
  const auto type = real_type(array.type);
  if (type.has_value() && has_kernels(array.device) && is_dense(array.sizes, array.strides)) {
    return read(array, *type);
  }
  if (array.numel() > kPiece) {
    const auto longest = std::max_element(array.sizes.begin(), array.sizes.end());
    const int64_t d = longest - array.sizes.begin(), half = *longest / 2, rest = *longest - half;
    for_each_run(narrowed(self, d, 0, half), read);
    for_each_run(narrowed(self, d, half, rest), read);
    return;
  }
  Tensor piece = self;
  if (!type.has_value()) piece = torch::stable::to(piece, wider(array));
  if (!has_kernels(array.device)) {
    piece = torch::stable::to(piece, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  }
  piece = torch::stable::contiguous(piece);
  const Array run = array_of("statistics", piece, Use::kRead);
  read(run, *real_type(run.type));
}

Tensor as_tensor(const Statistics& s) {
  const Tensor out = empty({kStatistics}, ScalarType::Double, {DeviceKind::kCpu, 0});
  store(s, static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

// Returns the number that each of the 256 byte values represents in an 8-bit dtype.
Tensor numbers_of_bytes(ScalarType type) {
  const Tensor bytes = empty({256}, ScalarType::Byte, {DeviceKind::kCpu, 0});
  auto* const data = static_cast<uint8_t*>(bytes.mutable_data_ptr());
  for (int n = 0; n < 256; ++n) data[n] = static_cast<uint8_t>(n);
  return torch::stable::to(call("aten::view", "dtype", bytes, type), ScalarType::Float);
}

Statistics statistics_of_bytes(const Tensor& bytes) {
  const Tensor numbers = numbers_of_bytes(bytes.scalar_type());
  float table[256];
  std::memcpy(table, numbers.const_data_ptr(), sizeof(table));
  return statistics_of_bytes_cpu(table, bytes.const_data_ptr(), bytes.numel());
}

Tensor statistics_on_cpu(const Tensor& self, const Array& array) {
  const DefaultFloatMode mode;
  Statistics whole = empty_statistics();
  if (array.element_bytes == 1 && array.device.kind == DeviceKind::kCpu &&
      is_dense(array.sizes, array.strides)) {
    run_with_threads([&] { whole = statistics_of_bytes(self); });
    return as_tensor(whole);
  }
  for_each_run(self, [&](const Array& run, ElementType type) {
    run_with_threads([&] {
      whole = merged(whole, statistics_cpu(type, is_complex(run.type), run.data, run.numel()));
    });
  });
  return as_tensor(whole);
}

Tensor statistics_on_cuda(const Tensor& self, Device device) {
  std::vector<Tensor> unit_statistics;
  int64_t count = 0;
  for_each_run(self, [&](const Array& run, ElementType type) {
    constexpr int64_t size = sizeof(Statistics) / sizeof(double);
    const int64_t units = (run.numel() + kStatisticsUnit - 1) / kStatisticsUnit;
    count += units;
    unit_statistics.push_back(empty({units, size}, ScalarType::Double, device));
    cuda_backend()->statistics(type, is_complex(run.type), run.data, run.numel(),
                               static_cast<Statistics*>(unit_statistics.back().mutable_data_ptr()),
                               device.index);
  });
  const Tensor units = unit_statistics.size() == 1
                           ? unit_statistics.front()
                           : call("aten::cat", "", unit_statistics, int64_t{0});
  const Tensor out = empty({kStatistics}, ScalarType::Double, device);
  cuda_backend()->merge(static_cast<const Statistics*>(units.const_data_ptr()), count,
                        static_cast<double*>(out.mutable_data_ptr()), device.index);
  return out;
}

}  // namespace

Tensor statistics(const Tensor& self) {
  const Array array = array_of("statistics", self, Use::kRead);
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(self.get(), &type));
  if (!holds_numbers(static_cast<ScalarType>(type))) {
    refuse<NotImplementedError>("statistics", "expected a tensor of numbers, got ", array.type_name,
                                ". Convert it.");
  }
  check_storage("statistics", array);
  if (array.numel() == 0) return as_tensor(empty_statistics());
  if (array.device.kind == DeviceKind::kCuda && has_kernels(array.device)) {
    return statistics_on_cuda(self, array.device);
  }
  return statistics_on_cpu(self, array);
}

}  // namespace paraminit
