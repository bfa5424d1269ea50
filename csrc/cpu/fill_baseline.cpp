// The fills in plain C++: for CPUs without a vector lane here, and the arbiter in tests.
#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "../stream/lane_scalar.h"
#include "columns.h"
#include "run.h"
