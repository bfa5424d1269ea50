// Fills Python tensors without torch's dispatcher, which takes several times as long as a small
// fill.
#pragma once

#include <vector>

#include "python_tensor.h"

namespace paraminit {

// Fills a plain tensor or a shard, and increments the tensor's version counter. `source` is a Key,
// or a CPU generator (None: torch's default one) from which the key is drawn. Returns false,
// without a draw or a write, if the call must go through the dispatcher or if a check fails.
bool fill_plain(const py::handle& name, const py::handle& tensor, const py::handle& parameters,
                const py::handle& source, const py::handle& whole, const py::handle& start);
// Like fill_plain, with the key given as (seed, offset).
bool fill_plain_with_key(const py::handle& name, const py::handle& tensor,
                         const py::handle& parameters, std::pair<int64_t, int64_t> key,
                         const py::handle& whole, const py::handle& start);

// The entries of a fill of many, with the descriptions of their tensors.
class Entries {
 public:
  explicit Entries(py::list entries);

  // Returns the index of each entry's first equivalent: an entry with the same function and
  // arguments, and with a plain tensor of the same dtype, shape and device type. The checks of one
  // of them are valid for all. The index is -1 if the entry must be checked by itself.
  const std::vector<int64_t>& first_equivalent() const { return first_; }
  // Returns the array of an entry whose first_equivalent() is not -1. Valid as long as only fills
  // have run since the construction.
  const Array& array(size_t index) const { return arrays_.at(index); }

 private:
  py::list entries_;  // keeps the tensors of the arrays alive
  std::vector<int64_t> first_;
  std::vector<Array> arrays_;
};

// Runs the calls of a fill of many. `indices` holds the index of each call's tensor in `described`,
// or -1 if the tensor must be described again. `default_generator(tensor)` returns the default
// generator of the tensor's device. `draw(generator, count)` returns the words of `count` draws.
void fill_many_plain(const py::list& fills, const py::list& calls, const py::list& which,
                     const py::dict& places, const Entries& described, const py::list& indices,
                     const py::function& default_generator, const py::function& draw);

// Registers the Python class of keys.
void set_key_type(const py::handle& type);

}  // namespace paraminit
