// Fills of Python's tensors without the dispatcher, which costs a small fill several times its
// work.
#pragma once

#include <vector>

#include "objects.h"

namespace paraminit {

// Fills a plain tensor, or the part of one at `start`, at the key that `source` is (a Key, or two
// words as int64) or that is drawn from it (a generator of the CPU; None: torch's default one), and
// moves the tensor's version. False, with nothing drawn or written, where anything else than the
// kernel may have a say, or refuses something.
bool fill_plain(const py::handle& name, const py::handle& tensor, const py::handle& parameters,
                const py::handle& source, const py::handle& whole, const py::handle& start);

// For each entry of a fill of many the first one that differs from it in nothing that the checks of
// a fill look at: the same function and arguments, and tensors of the same dtype, shape and kind of
// device that nothing else could be said about. -1 for an entry that has to be looked at by itself.
std::vector<int64_t> first_alike(const py::list& entries);

// The calls of a fill of many. `draw(source, tensor, count)` gives the words of that many draws
// from a generator, or from the default one of the tensor's device.
void fill_many_plain(const py::list& fills, const py::list& calls, const py::list& which,
                     const py::dict& places, const py::function& draw);

// The type of the keys, which only Python knows.
void set_key_type(const py::handle& type);

}  // namespace paraminit
