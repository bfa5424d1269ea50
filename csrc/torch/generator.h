// The one draw that a fill takes from a torch.Generator: two 64-bit words, which are its key.
#pragma once

#include <ATen/core/Generator.h>

#include "../stream/request.h"

namespace paraminit {

// Holds the generator's lock for the two words and no longer.
Key draw(at::Generator generator);

}  // namespace paraminit
