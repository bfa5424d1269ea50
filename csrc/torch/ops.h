// What the module for Python asks of the operators. No header of torch.
#pragma once

#include <string>

#include "array.h"

namespace paraminit {

// The kind of Python error that the last refusal of an operator in this thread is ("ValueError"),
// asked once: torch hands on what was said, and not what kind it was.
const char* take_refusal();

// For tests: the fill of that name by way of pieces, of an array that does not need it.
void fill_staged(const std::string& name, std::span<const double> parameters, const Array& self,
                 Key key, const Place& place, int64_t bytes);

}  // namespace paraminit
