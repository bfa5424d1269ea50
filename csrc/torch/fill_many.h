// Fills many arrays in one call. The result is the same as if the entries were filled one after
// another by separate fills. Must not include torch headers.
#pragma once

#include <string>
#include <vector>

#include "array.h"

namespace paraminit {

// A fill that several entries may share: an element-wise fill with its parameters. If `name` is
// empty, every element is set to `value`, given by its bytes.
struct ManyFill {
  std::string name;
  std::vector<double> parameters;
  std::vector<char> value;
};

struct ManyEntry {
  Array self;
  size_t fill;
  Key key;
  std::vector<int64_t> global_shape, shard_offset;  // as in ShardPosition
};

// Checks all entries before it writes to any of them.
void fill_many(const std::vector<ManyFill>& fills, const std::vector<ManyEntry>& entries);

}  // namespace paraminit
