// Statistics for every CPU of the architecture.
#include <cstring>

#include "statistics.h"

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#define PARAMINIT_WIDTH 16
#include "statistics_kernel.h"
