// See many.h. An item takes as many places as its units have elements, so that a thread's share of
// the places is its share of the work.
#include "many.h"

#include <cstring>

#include "../stream/constants.h"
#include "fill.h"
#include "units.h"

namespace paraminit {
namespace {

// The values of one item.
class Values {
 public:
  Values(const ManyItem& item, const Geometry& g) : request_(*item.request) {
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

// One value, again and again.
class Copies {
 public:
  explicit Copies(const ManyItem& item) : item_(item) {}
  void operator()(uint64_t, int64_t count, void* out) const {
    with_bits(item_.size, [&](auto bits) {
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

// Units [begin, end) of the item, in places.
void fill_places(const ManyItem& item, int64_t begin, int64_t end) {
  with_geometry(item, [&](const Geometry& g) {
    const auto run = [&](const auto& units) {
      const int64_t of_a_unit = units.unit_elements();
      units((begin + of_a_unit - 1) / of_a_unit, (end + of_a_unit - 1) / of_a_unit);
    };
    if (item.request != nullptr) {
      with_units(Values(item, g), item.size, g, item.data, run);
    } else {
      with_units(Copies(item), item.size, g, item.data, run);
    }
  });
}

int64_t count_places(const ManyItem& item) {
  int64_t places = 0;
  with_geometry(item, [&](const Geometry& g) {
    if (item.request != nullptr && is_large(item.size, g)) {
      ask_for_huge_pages(item.data, static_cast<size_t>(g.numel() * item.size));
    }
    with_units(Copies(item), item.size, g, item.data,
               [&](const auto& units) { places = units.units() * units.unit_elements(); });
  });
  return places;
}

}  // namespace

void fill_many_cpu(const std::vector<ManyItem>& items) {
  std::vector<int64_t> first{0};
  first.reserve(items.size() + 1);
  for (const ManyItem& item : items) first.push_back(first.back() + count_places(item));
  run_on_threads(first.back(), 1, [&](int64_t begin, int64_t end) {
    auto i = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), begin) -
                                 first.begin() - 1);
    for (; i < items.size() && first[i] < end; ++i) {
      fill_places(items[i], std::max(begin, first[i]) - first[i],
                  std::min(end, first[i + 1]) - first[i]);
    }
  });
}

}  // namespace paraminit
