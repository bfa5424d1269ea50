// See fill_many.h. Entries that may overlap in memory are never in flight at the same time.
#include "fill_many.h"

#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <optional>

#include "../cpu/capability.h"
#include "../cpu/fork.h"
#include "../cpu/fill_many.h"
#include "../stream/errors.h"
#include "../stream/many_request.h"
#include "../stream/overlap.h"
#include "fills.h"

namespace paraminit {
namespace {

// The address range [begin, end) that contains all elements.
struct Extent {
  uintptr_t begin, end;
};

Extent extent_of(const Array& array) {
  const auto data = reinterpret_cast<uintptr_t>(array.data);
  int64_t last = 0;  // torch has no negative strides
  for (size_t d = 0; d < array.sizes.size(); ++d) last += (array.sizes[d] - 1) * array.strides[d];
  return {data, data + static_cast<uintptr_t>((last + 1) * array.element_bytes)};
}

// A set of extents that do not overlap.
class Extents {
 public:
  // Adds the extent. Returns false and adds nothing if it overlaps an extent in the set.
  bool add(Extent extent) {
    const auto next = ends_.lower_bound(extent.begin);
    if (next != ends_.end() && next->first < extent.end) return false;
    if (next != ends_.begin() && std::prev(next)->second > extent.begin) return false;
    ends_.emplace_hint(next, extent.begin, extent.end);
    return true;
  }
  void clear() { ends_.clear(); }

 private:
  std::map<uintptr_t, uintptr_t> ends_;
};

// The data that all entries of one fill share.
struct Common {
  Dtype type;
  std::optional<FillRequest> request;  // nullopt: a constant fill
  uint64_t value[2] = {};
  int64_t size;  // bytes per element
};

Common common_of(const ManyFill& fill, const Array& self) {
  Common common{self.type, std::nullopt, {}, self.element_bytes};
  if (fill.name.empty()) {
    if (fill.value.size() != static_cast<size_t>(self.element_bytes)) {
      refuse<ValueError>("fill_many", "expected one value of ", self.element_bytes,
                         " bytes, got one of ", fill.value.size(), ".");
    }
    std::memcpy(common.value, fill.value.data(), fill.value.size());
    return common;
  }
  const DefaultFloatMode mode;
  with_law(fill.name, fill.parameters, [&](const auto& law) {
    if constexpr (requires { law.plan(ElementType{}, false); }) {
      check_fill(law, self, {});
      const ElementType type = *real_type(self.type);
      const Plan plan = law.plan(type, is_complex(self.type));
      common.size = element_size(type);
      if (plan.is_constant) {
        common.value[0] = bits_of(type, plan.value);
      } else {
        common.request = plan.request;
      }
    } else {
      refuse<ValueError>("fill_many", "expected an elementwise fill, got ", fill.name, ".");
    }
  });
  return common;
}

// Collects fills that do not overlap, and launches them together.
class Wave {
 public:
  void add(const ManyItem& item, const Array& self) {
    const Extent extent = extent_of(self);
    if (!extents_.add(extent)) {
      launch();
      extents_.add(extent);
    }
    const int device = self.device.kind == DeviceKind::kCpu ? kHost : self.device.index;
    items_[device].push_back(item);
  }
  void launch() {
    for (auto& of_device : items_) {  // no structured binding: Clang before 16 cannot capture it
      std::vector<ManyItem>& items = of_device.second;
      if (items.empty()) continue;
      if (of_device.first != kHost) {
        cuda_backend()->fill_many(items, of_device.first);
      } else {
        run_with_threads([&items] { fill_many_cpu(items); });
      }
      items.clear();
    }
    extents_.clear();
  }

 private:
  static constexpr int kHost = -1;
  std::map<int, std::vector<ManyItem>> items_;  // by CUDA device index, or kHost
  Extents extents_;
};

}  // namespace

void fill_many(const std::vector<ManyFill>& fills, const std::vector<ManyEntry>& entries) {
  std::vector<std::optional<Common>> commons(fills.size());
  std::vector<ManyItem> items;
  std::deque<Geometry> geometries;
  items.reserve(entries.size());
  for (const ManyEntry& entry : entries) {
    const Array& self = entry.self;
    const ShardPosition place{entry.global_shape, entry.shard_offset};
    std::optional<Common>& common = commons.at(entry.fill);
    if (!common.has_value()) common = common_of(fills[entry.fill], self);
    if (!has_kernels(self.device) || self.type != common->type || common->size < 2 ||
        common->size > 8) {
      refuse<ValueError>("fill_many", "expected a plain tensor of elements of 2 to 8 bytes, got ",
                         self.type_name, ".");
    }
    check_storage("fill_many", self);
    ManyItem item{};
    item.request = common->request.has_value() ? &*common->request : nullptr;
    item.key = entry.key;
    std::copy_n(common->value, 2, item.value);
    item.size = common->size;
    item.data = self.data;
    item.numel = self.numel() * (self.element_bytes / common->size);
    const bool contiguous = is_contiguous(self.sizes, self.strides);
    if (item.numel != 0 && !(contiguous && entry.global_shape.empty())) {
      check_shard("fill_many", self, place);
      if (!contiguous && overlaps_itself(self.sizes, self.strides)) {
        refuse<std::runtime_error>("fill_many",
                                   "expected a tensor whose elements do not share memory, got "
                                   "shape ",
                                   self.sizes, " with strides ", self.strides, ".");
      }
      // A complex number is one element if `size` is its whole size. Otherwise its real and
      // imaginary parts are separate elements.
      Array elements = self;
      if (common->size == self.element_bytes) elements.type = Dtype::kOther;
      geometries.push_back(geometry_of(elements, place));
      item.geometry = &geometries.back();
    }
    items.push_back(item);
  }
  Wave wave;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (items[i].numel != 0) wave.add(items[i], entries[i].self);
  }
  wave.launch();
}

}  // namespace paraminit
