// See fill_many.h. All items share one range of slots. Each unit of an item has one slot per
// element, so that equal numbers of slots are about equal amounts of work.
#include "fill_many.h"

#include <cstring>

#include "../stream/constants.h"
#include "fill.h"
#include "parallel.h"

namespace paraminit {
namespace {

// Writes the values of an item with a request.
class ValueWriter {
 public:
  ValueWriter(const ManyItem& item, const Geometry& g) : request_(*item.request) {
    request_.keys = make_key_schedule(item.key);
    request_.streaming = is_large(item.size, g);
    fill_ = fill_function(request_, g);
  }
  void operator()(uint64_t index, int64_t count, void* out) const {
    fill_(request_, index, count, out);
  }

 private:
  FillRequest request_;
  FillFunction fill_;
};

// Writes the value of an item without a request.
class ConstantWriter {
 public:
  explicit ConstantWriter(const ManyItem& item) : item_(item) {}
  void operator()(uint64_t, int64_t count, void* out) const {
    with_uint_of_size(item_.size, [&](auto bits) {
      std::memcpy(&bits, item_.value, sizeof(bits));
      std::fill_n(static_cast<decltype(bits)*>(out), count, bits);
    });
  }

 private:
  const ManyItem& item_;
};

template <class F>
void with_geometry(const ManyItem& item, F&& f) {
  if (item.geometry != nullptr) {
    f(*item.geometry);
  } else {
    f(flat_geometry(item.numel));
  }
}

// Fills the units whose first slot is in [begin, end). Slots count from the start of the item.
void fill_slots(const ManyItem& item, int64_t begin, int64_t end) {
  with_geometry(item, [&](const Geometry& g) {
    const auto fill_units = [&](const auto& units) {
      const int64_t slots_per_unit = units.unit_elements();
      units((begin + slots_per_unit - 1) / slots_per_unit,
            (end + slots_per_unit - 1) / slots_per_unit);
    };
    if (item.request != nullptr) {
      with_units(ValueWriter(item, g), item.size, g, item.data, fill_units);
    } else {
      with_units(ConstantWriter(item), item.size, g, item.data, fill_units);
    }
  });
}

int64_t count_slots(const ManyItem& item) {
  int64_t slots = 0;
  with_geometry(item, [&](const Geometry& g) {
    if (item.request != nullptr && is_large(item.size, g)) {
      ask_for_huge_pages(item.data, static_cast<size_t>(g.numel() * item.size));
    }
    with_units(ConstantWriter(item), item.size, g, item.data,
               [&](const auto& units) { slots = units.units() * units.unit_elements(); });
  });
  return slots;
}

}  // namespace

void fill_many_cpu(const std::vector<ManyItem>& items) {
  std::vector<int64_t> first_slot{0};  // first slot of each item, then the number of slots
  first_slot.reserve(items.size() + 1);
  for (const ManyItem& item : items) first_slot.push_back(first_slot.back() + count_slots(item));
  run_on_threads(first_slot.back(), 1, [&](int64_t begin, int64_t end) {
    auto i = static_cast<size_t>(std::upper_bound(first_slot.begin(), first_slot.end(), begin) -
                                 first_slot.begin() - 1);
    for (; i < items.size() && first_slot[i] < end; ++i) {
      fill_slots(items[i], std::max(begin, first_slot[i]) - first_slot[i],
                 std::min(end, first_slot[i + 1]) - first_slot[i]);
    }
  });
}

}  // namespace paraminit
