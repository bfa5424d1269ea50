// What a fill raises, by the kind of error that Python is to see, and the one line that it says.
// Knows no torch.
#pragma once

#include <cstdint>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>

namespace paraminit {

// A parameter, a shape or a place that cannot be: Python's ValueError.
class ValueError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A dtype or a layout that has no fill: Python's NotImplementedError.
class NotImplementedError : public std::logic_error {
  using std::logic_error::logic_error;
};

// torch's OutOfMemoryError.
class OutOfMemoryError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// As in [2, 3].
inline std::ostream& operator<<(std::ostream& out, std::span<const int64_t> numbers) {
  out << '[';
  for (size_t i = 0; i < numbers.size(); ++i) out << (i == 0 ? "" : ", ") << numbers[i];
  return out << ']';
}

// What is said, from its parts one after the other; "paraminit_ext.<op>: " comes before them.
template <class Error, class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "paraminit_ext." << op << ": ";
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace paraminit
