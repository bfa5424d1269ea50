// Fills of many arrays in one call: each entry's values are those of its own fill, and the result
// is that of the entries one after the other. No header of torch.
#pragma once

#include <string>
#include <vector>

#include "array.h"

namespace paraminit {

// What entries may share: an elementwise fill with its parameters, or with no name one value for
// every element, by its bits.
struct ManyFill {
  std::string name;
  std::vector<double> parameters;
  std::vector<char> value;
};

struct ManyEntry {
  Array self;
  size_t fill;
  Key key;
  std::vector<int64_t> whole, start;  // empty: the tensor is the whole
};

// Everything is checked before anything is written.
void fill_many(const std::vector<ManyFill>& fills, const std::vector<ManyEntry>& entries);

}  // namespace paraminit
