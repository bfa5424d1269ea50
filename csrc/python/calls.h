// Fills of Python's tensors without the dispatcher, which costs a small fill several times its
// work.
#pragma once

#include <vector>

#include "objects.h"

namespace paraminit {

// Fills a plain tensor, or the part of one at `start`, at the key that `source` is or that is drawn
// from it (a generator of the CPU; None: torch's default one), and moves the tensor's version.
// False, with nothing drawn or written, where anything else than the kernel may have a say, or
// refuses something.
bool fill_plain(const py::handle& name, const py::handle& tensor, const py::handle& parameters,
                const py::handle& source, const py::handle& whole, const py::handle& start);
// The same at a key of these words.
bool fill_plain_at(const py::handle& name, const py::handle& tensor, const py::handle& parameters,
                   std::pair<int64_t, int64_t> key, const py::handle& whole,
                   const py::handle& start);

// The entries of a fill of many, and what was seen of their tensors.
class Entries {
 public:
  explicit Entries(py::list entries);

  // For each the first entry that differs from it in nothing that the checks of a fill look at: the
  // same function and arguments, and tensors of the same dtype, shape and kind of device that
  // nothing else could be said about. -1 for an entry that has to be looked at by itself.
  const std::vector<int64_t>& first_alike() const { return first_; }
  // Of an entry that is like another one, as long as nothing but fills has run since.
  const Array& array(size_t index) const { return arrays_.at(index); }

 private:
  py::list entries_;  // keeps alive what the arrays describe
  std::vector<int64_t> first_;
  std::vector<Array> arrays_;
};

// The calls of a fill of many; an index of -1 for one whose tensor has to be described anew.
// `default_generator(tensor)` is the one for a tensor's device, and `draw(generator, count)` gives
// the words of that many draws.
void fill_many_plain(const py::list& fills, const py::list& calls, const py::list& which,
                     const py::dict& places, const Entries& looked, const py::list& indices,
                     const py::function& default_generator, const py::function& draw);

// The type of the keys, which only Python knows.
void set_key_type(const py::handle& type);

}  // namespace paraminit
