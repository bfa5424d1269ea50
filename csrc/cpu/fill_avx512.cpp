// The fills for one instruction set. Only what follows the pragma may use it: standard headers come
// first, or their inline functions would reach the linker compiled for a CPU that others lack.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "run_function.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
// GCC 12's own header starts _mm512_undefined_epi32() from itself.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#endif

#define PARAMINIT_ISA avx512
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "lane_avx512.h"
#include "columns.h"
#include "run.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
