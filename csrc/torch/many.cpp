// See many.h. Entries whose memory may overlap are never in flight together.
#include "many.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <optional>

#include "checks.h"
#include "../cpu/many.h"
#include "fills.h"
#include "forked.h"
#include "../stream/many_request.h"
#include "overlap.h"
#ifdef PARAMINIT_WITH_CUDA
#include "many_cuda.h"
#endif

namespace paraminit {
namespace {

using at::Tensor;

// The addresses from the first element's byte on to beyond the last one's.
struct Span {
  uintptr_t begin, end;
};

Span span_of(const Tensor& t) {
  const auto data = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  int64_t last = 0;  // torch has no negative strides
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return {data, data + static_cast<uintptr_t>((last + 1) * t.element_size())};
}

// Spans that do not overlap.
class Spans {
 public:
  // False, with nothing added, where the span overlaps one that is there.
  bool add(Span span) {
    const auto next = ends_.lower_bound(span.begin);
    if (next != ends_.end() && next->first < span.end) return false;
    if (next != ends_.begin() && std::prev(next)->second > span.begin) return false;
    ends_.emplace_hint(next, span.begin, span.end);
    return true;
  }
  void clear() { ends_.clear(); }

 private:
  std::map<uintptr_t, uintptr_t> ends_;
};

// What the entries of one fill have in common.
struct Common {
  at::ScalarType type;
  std::optional<FillRequest> request;  // none: a constant
  uint64_t value[2] = {};
  int64_t size;
};

Common common_of(const ManyFill& fill, const Tensor& self) {
  Common common{self.scalar_type(), std::nullopt, {}, self.element_size()};
  Tensor value = fill.value;
  if (!value.defined()) {
    const Plan plan = plan_of(fill.name, fill.parameters, self);
    const at::ScalarType real = c10::toRealValueType(self.scalar_type());
    common.size = static_cast<int64_t>(c10::elementSize(real));
    if (!plan.is_constant) {
      common.request = plan.request;
      return common;
    }
    value = at::empty({}, at::TensorOptions().dtype(real)).fill_(plan.value);
  }
  TORCH_CHECK_VALUE(value.is_cpu() && value.dim() == 0 && value.element_size() == common.size &&
                        (!fill.value.defined() || value.scalar_type() == common.type),
                    "paraminit_ext.fill_many: expected one value of ", common.type, ", got one of ",
                    value.scalar_type(), ".");
  std::memcpy(common.value, value.const_data_ptr(), static_cast<size_t>(common.size));
  return common;
}

// Whether a call passes by these keys alone, and autograd's and autocast's, which let fills
// through.
bool nothing_but(c10::DispatchKeySet keys, std::initializer_list<c10::DispatchKey> usual) {
  const c10::DispatchKeySet rest = keys - c10::DispatchKeySet(usual) -
                                   c10::autograd_dispatch_keyset - c10::autocast_dispatch_keyset;
  // A backend's own bit may be left.
  return rest.highestFunctionalityKey() == c10::DispatchKey::Undefined;
}

// Fills that are being put together, none of which overlaps another.
class Wave {
 public:
  void add(const ManyItem& item, const Tensor& self, Span span) {
    if (!spans_.add(span)) {
      launch();
      spans_.add(span);
    }
    items_[self.device()].push_back(item);
  }
  void launch() {
    for (auto& of_device : items_) {  // no structured binding: Clang before 16 captures none
      std::vector<ManyItem>& items = of_device.second;
      if (items.empty()) continue;
#ifdef PARAMINIT_WITH_CUDA
      if (of_device.first.is_cuda()) {
        fill_many_cuda(items, of_device.first);
        items.clear();
        continue;
      }
#endif
      run_with_threads([&items] { fill_many_cpu(items); });
      items.clear();
    }
    spans_.clear();
  }

 private:
  struct Earlier {
    bool operator()(at::Device a, at::Device b) const {
      return std::pair(a.type(), a.index()) < std::pair(b.type(), b.index());
    }
  };
  std::map<at::Device, std::vector<ManyItem>, Earlier> items_;
  Spans spans_;
};

}  // namespace

bool calls_are_plain() {
  return nothing_but(c10::impl::tls_local_dispatch_key_set().included_,
                     {c10::DispatchKey::BackendSelect, c10::DispatchKey::ADInplaceOrView});
}

bool is_plain(const Tensor& tensor) {
  return has_kernels(tensor) && tensor.layout() == at::kStrided &&
         !tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides() &&
         nothing_but(tensor.key_set(), {c10::DispatchKey::CPU, c10::DispatchKey::CUDA,
                                        c10::DispatchKey::ADInplaceOrView});
}

bool is_fillable(const Tensor& tensor) {
  return is_plain(tensor) && (!tensor.is_inference() || c10::InferenceMode::is_enabled()) &&
         (tensor.is_contiguous() || !overlaps_itself(tensor)) && !lacks_storage(tensor);
}

void fill_many(const std::vector<ManyFill>& fills, const std::vector<ManyEntry>& entries) {
  RECORD_FUNCTION("paraminit_ext::fill_many", c10::ArrayRef<c10::IValue>{});
  std::vector<std::optional<Common>> commons(fills.size());
  std::vector<ManyItem> items;
  std::deque<Geometry> geometries;
  items.reserve(entries.size());
  for (const ManyEntry& entry : entries) {
    const Tensor& self = entry.self;
    std::optional<Common>& common = commons.at(entry.fill);
    if (!common.has_value()) common = common_of(fills[entry.fill], self);
    TORCH_CHECK_VALUE(is_plain(self) && self.scalar_type() == common->type && common->size > 1 &&
                          common->size <= 8,
                      "paraminit_ext.fill_many: expected a plain tensor of ", common->type,
                      ", got ", self.toString(), ".");
    check_storage("fill_many", self);
    ManyItem item{};
    item.request = common->request.has_value() ? &*common->request : nullptr;
    item.key = entry.key;
    std::copy_n(common->value, 2, item.value);
    item.size = common->size;
    item.numel = self.numel() * (self.element_size() / common->size);
    if (item.numel != 0 && !(self.is_contiguous() && entry.whole.empty())) {
      const bool parts = common->size != self.element_size();
      geometries.push_back(geometry_for("fill_many", self, parts, entry.whole, entry.start));
      item.geometry = &geometries.back();
    }
    items.push_back(item);
  }
  Wave wave;
  for (size_t i = 0; i < entries.size(); ++i) {
    const Tensor& self = entries[i].self;
    if (items[i].numel != 0) {
      items[i].data = self.mutable_data_ptr();
      wave.add(items[i], self, span_of(self));
    }
    self.unsafeGetTensorImpl()->bump_version();
  }
  wave.launch();
}

}  // namespace paraminit
