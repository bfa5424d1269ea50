// Python's tensors as arrays, and what torch says about them and about a call made now, by its
// Python interface and DLPack's. No header of torch.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "../torch/array.h"

namespace paraminit {

namespace py = pybind11;

// Looks up what is asked of torch; called once, at import.
void look_up_torch();

// Of torch's own class, or its Parameter.
bool is_tensor(PyObject* object);
// Whether the factors of float32 matrix products may be rounded; asked by kernels, which run
// without Python's lock.
bool products_may_round(DeviceKind device);

// Whether a call of an operator in this thread reaches its kernel and nothing in between: no mode,
// transform or trace that would have to see it.
bool calls_are_plain();
// Whether besides nobody watches single calls, neither a profiler nor forward-mode differentiation.
bool calls_are_unwatched();

// A Python tensor that is plain memory on a device with kernels here: what the dispatcher would
// send to its kernel with nothing in between. False where it is not, with no Python error set. It
// may be an inference tensor.
bool describe_plain(PyObject* tensor, Array* out);

// Any dense tensor that has memory; false, with no Python error set, for others.
bool describe(PyObject* tensor, Array* out);
// Adds what the tensor's storage holds, which DLPack does not say.
void describe_storage(PyObject* tensor, Array* array);

// Whether the elements of a plain tensor have memory of their own each; describes its storage.
bool has_own_elements(PyObject* tensor, Array* array);
// Whether it is an inference tensor, and whether one may be written here and now.
bool is_inference(PyObject* tensor);
bool is_inference_mode();

bool overlaps_itself(const py::handle& tensor);
Dtype dtype_of(const py::handle& dtype);

// Moves the versions of a list or tuple of tensors that torch's own functions do not write; a
// Python error where one of them is an inference tensor, outside inference mode.
void mark_written(PyObject* tensors);

// Two words from a generator of the CPU, or with None from torch's default one: one draw.
Key draw(PyObject* generator);
bool is_cpu_generator(PyObject* object);

}  // namespace paraminit
