// Statistics for AVX-512. Only code after the pragma is compiled for it.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "statistics.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#endif

#define PARAMINIT_ISA avx512
#define PARAMINIT_FN static inline __attribute__((always_inline))
#define PARAMINIT_WIDTH 64
#include "statistics_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
