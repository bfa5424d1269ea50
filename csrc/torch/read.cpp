// See read.h.
#include "read.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "checks.h"
#include "../cpu/statistics.h"
#include "fills.h"
#include "forked.h"
#ifdef PARAMINIT_WITH_CUDA
#include "cuda.h"
#endif

namespace paraminit {
namespace {

using at::Tensor;

// Elements of a piece that is converted or gathered.
constexpr int64_t kPiece = int64_t{1} << 20;

// The type that the kernels read a dtype as, of its parts if it is complex; none where it has to be
// converted first.
std::optional<ElementType> read_as(at::ScalarType type) {
  return find_element_type(c10::isComplexType(type) ? c10::toRealValueType(type) : type);
}

// A dtype that has every value of another one, or the nearest of a 64-bit integer.
at::ScalarType wider(at::ScalarType type) {
  const bool fits = c10::isFloatingType(type) || c10::elementSize(type) < 4;
  return fits ? at::kFloat : at::kDouble;
}

// Calls read(data, count, type) for runs of all elements, each of them held until the next.
template <class Read>
void for_each_run(const Tensor& self, const Read& read) {
  const auto type = read_as(self.scalar_type());
  const bool is_run = self.is_non_overlapping_and_dense() && type.has_value() && has_kernels(self);
  if (is_run) return read(self, *type);
  if (self.numel() > kPiece) {
    const auto sizes = self.sizes();
    const int64_t d = std::max_element(sizes.begin(), sizes.end()) - sizes.begin();
    const int64_t half = sizes[d] / 2;
    for_each_run(self.narrow(d, 0, half), read);
    for_each_run(self.narrow(d, half, sizes[d] - half), read);
    return;
  }
  Tensor piece = type.has_value() ? self : self.to(wider(self.scalar_type()));
  if (!has_kernels(piece)) piece = piece.cpu();
  piece = piece.contiguous();
  read(piece, *read_as(piece.scalar_type()));
}

Tensor as_tensor(const Statistics& s) {
  const Tensor out = at::empty({kStatistics}, at::TensorOptions().dtype(at::kDouble));
  store(s, out.mutable_data_ptr<double>());
  return out;
}

// What each byte stands for in a dtype of 8 bits.
Tensor numbers_of_bytes(at::ScalarType type) {
  return at::arange(256, at::TensorOptions().dtype(at::kByte)).view(type).to(at::kFloat);
}

Statistics statistics_of_bytes(const Tensor& bytes) {
  const Tensor numbers = numbers_of_bytes(bytes.scalar_type());
  float table[256];
  std::memcpy(table, numbers.const_data_ptr(), sizeof(table));
  return statistics_of_bytes_cpu(table, bytes.const_data_ptr(), bytes.numel());
}

Tensor statistics_on_cpu(const Tensor& self) {
  Statistics whole = no_statistics();
  if (self.element_size() == 1 && self.is_cpu() && self.is_non_overlapping_and_dense()) {
    run_with_threads([&] { whole = statistics_of_bytes(self); });
    return as_tensor(whole);
  }
  for_each_run(self, [&](const Tensor& run, ElementType type) {
    run_with_threads([&] {
      whole =
          merged(whole, statistics_cpu(type, run.is_complex(), run.const_data_ptr(), run.numel()));
    });
  });
  return as_tensor(whole);
}

#ifdef PARAMINIT_WITH_CUDA
Tensor statistics_on_cuda(const Tensor& self) {
  const auto units_of = [](const Tensor& run) {
    return (run.numel() + kStatisticsUnit - 1) / kStatisticsUnit;
  };
  std::vector<Tensor> found;
  for_each_run(self, [&](const Tensor& run, ElementType type) {
    constexpr int64_t size = sizeof(Statistics) / sizeof(double);
    found.push_back(
        at::empty({units_of(run), size},
                  self.options().dtype(at::kDouble).memory_format(at::MemoryFormat::Contiguous)));
    statistics_cuda(type, run.is_complex(), run.const_data_ptr(), run.numel(),
                    static_cast<Statistics*>(found.back().mutable_data_ptr()), self.device());
  });
  const Tensor units = found.size() == 1 ? found.front() : at::cat(found);
  const Tensor out = at::empty({kStatistics}, units.options());
  merge_cuda(static_cast<const Statistics*>(units.const_data_ptr()), units.size(0),
             out.mutable_data_ptr<double>(), self.device());
  return out;
}
#endif

}  // namespace

Tensor statistics(const Tensor& self) {
  check_layout("statistics", self);
  check_storage("statistics", self);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
#ifdef PARAMINIT_WITH_CUDA
  if (self.is_cuda() && self.numel() > 0) return statistics_on_cuda(self);
#endif
  if (self.numel() > 0) return statistics_on_cpu(self);
  return as_tensor(no_statistics());
}

}  // namespace paraminit
