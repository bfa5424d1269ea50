// The statistics of a run for every processor of the architecture.
#include <cstring>

#include "statistics.h"

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#define PARAMINIT_WIDTH 16
#include "statistics_run.h"
