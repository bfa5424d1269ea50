// Hands torch's own threads to the fills, so that torch.set_num_threads() is theirs as well.
#include "../cpu/threads.h"

#include <ATen/Parallel.h>
#if defined(__clang__) && defined(_OPENMP)
#include <omp.h>
#endif

namespace paraminit {
namespace {

[[maybe_unused]] const bool handed_in = [] {
  set_thread_pool({[] { return int64_t{at::get_num_threads()}; },
                   [](int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
#if defined(__clang__) && defined(_OPENMP)
                     // Clang's OpenMP runtime is not the one that torch's wheels bring: it has a
                     // number of threads of its own.
                     omp_set_num_threads(at::get_num_threads());
#endif
                     at::parallel_for(
                         0, n, 1, [&](int64_t first, int64_t last) { body(context, first, last); });
                   }});
  return true;
}();

}  // namespace
}  // namespace paraminit
