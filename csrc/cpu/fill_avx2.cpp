// The fills for AVX2. Only code after the pragma is compiled for it. Standard headers must come
// before the pragma: otherwise the linker could choose their inline functions compiled for AVX2 for
// all CPUs.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernel_table.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define PARAMINIT_ISA avx2
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "lane_avx2.h"
#include "column_kernel.h"
#include "fill_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
