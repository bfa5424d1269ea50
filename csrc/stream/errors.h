// The exceptions of a fill, one class per Python exception type, and the format of their messages.
// Does not depend on torch.
#pragma once

#include <charconv>
#include <cstdint>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>

namespace paraminit {

// Python's ValueError: an invalid parameter, shape or shard offset.
class ValueError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Python's NotImplementedError: a dtype or layout without a fill.
class NotImplementedError : public std::logic_error {
  using std::logic_error::logic_error;
};

// torch's OutOfMemoryError.
class OutOfMemoryError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Prints numbers in the format [2, 3].
inline std::ostream& operator<<(std::ostream& out, std::span<const int64_t> numbers) {
  out << '[';
  for (size_t i = 0; i < numbers.size(); ++i) out << (i == 0 ? "" : ", ") << numbers[i];
  return out << ']';
}

template <class Part>
void print(std::ostream& out, const Part& part) {
  out << part;
}

// Prints the shortest text that reads back as the same number. Six digits could show a refused
// number as one that is allowed.
inline void print(std::ostream& out, double number) {
  char text[32];
  out.write(text, std::to_chars(text, text + sizeof(text), number).ptr - text);
}

// Throws Error with the message "paraminit_ext.<op>: " followed by the parts.
template <class Error, class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "paraminit_ext." << op << ": ";
  (print(text, parts), ...);
  throw Error(text.str());
}

}  // namespace paraminit
