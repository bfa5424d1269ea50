// The fills for AVX-512. Only code after the pragma is compiled for it. Standard headers must come
// before the pragma: otherwise the linker could choose their inline functions compiled for AVX-512
// for all CPUs.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernel_table.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
// In GCC 12's header, _mm512_undefined_epi32() initialises a variable with itself.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#endif

#define PARAMINIT_ISA avx512
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "lane_avx512.h"
#include "column_kernel.h"
#include "fill_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
