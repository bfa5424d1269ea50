// The fills in plain C++, for CPUs without a vector lane and as the reference in tests.
#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "../stream/lane_scalar.h"
#include "column_kernel.h"
#include "fill_kernel.h"
