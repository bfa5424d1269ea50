// Describes Python tensors as arrays, and queries the state of tensors and of the current thread.
// Uses torch's Python interface and DLPack. Must not include torch headers.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "../torch/array.h"

namespace paraminit {

namespace py = pybind11;

// Looks up the torch functions that are used here. Called once, at import.
void load_torch_functions();

// Returns whether the type of the object is exactly torch.Tensor or torch.nn.Parameter.
bool is_exact_tensor(PyObject* object);
// Returns whether torch may round the operands of float32 matrix products. Acquires the GIL,
// because kernels call this function without it.
bool products_may_round(DeviceKind device);

// Returns whether a call of an operator in this thread goes straight to its kernel: no mode,
// transform or trace is active that must see the call.
bool dispatch_is_plain();
// Returns whether no profiler and no level of forward-mode differentiation is active. Both must see
// every call.
bool no_call_observers();

// Whether a transform, such as torch.vmap, is active and has wrapped the tensor. It then has no
// storage to describe, and torch's refusal would record a stack trace, which takes a millisecond.
bool is_wrapped(PyObject* tensor);

// Describes a tensor that is plain memory on a device with kernels, so that the dispatcher would
// send it straight to the kernel. It may be an inference tensor. Returns false for other tensors,
// without a Python error.
bool describe_plain(PyObject* tensor, Array* out);

// Describes any dense tensor that has memory. Returns false for other tensors, without a Python
// error.
bool describe(PyObject* tensor, Array* out);
// Adds the size of the tensor's storage and the offset in it, which DLPack does not provide.
void describe_storage(PyObject* tensor, Array* array);

// Returns whether each element of a plain tensor has its own memory inside the storage. Also calls
// describe_storage, unless elements overlap.
bool has_own_elements(PyObject* tensor, Array* array);
// Return whether the tensor is an inference tensor, and whether this thread is in inference mode,
// where inference tensors may be written.
bool is_inference(PyObject* tensor);
bool is_inference_mode();

bool overlaps_itself(const py::handle& tensor);
Dtype dtype_of(const py::handle& dtype);

// Increments the version counters of a list or tuple of tensors that are written without torch's
// own functions. Raises a Python error if one is an inference tensor and inference mode is off.
void mark_written(PyObject* tensors);

// Draws a key (two words) from a CPU generator, or from torch's default CPU generator if None.
Key draw(PyObject* generator);
bool is_cpu_generator(PyObject* object);

}  // namespace paraminit
