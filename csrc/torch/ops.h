// The functions of the operators that the Python module uses. Must not include torch headers.
#pragma once

#include <string>

#include "array.h"

namespace paraminit {

// Returns the Python exception type, such as "ValueError", of the last error that an operator
// raised in this thread, and clears it. torch passes on only the message of an error.
const char* take_error_type();

// For tests: fills an array through a staging buffer of at most `bytes` bytes, although its device
// has kernels.
void fill_staged(const std::string& name, std::span<const double> parameters, const Array& self,
                 Key key, const ShardPosition& place, int64_t bytes);

}  // namespace paraminit
