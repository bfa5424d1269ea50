// Registers torch's thread pool for the fills, so that torch.set_num_threads() applies to them.
#include "../cpu/threads.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

namespace paraminit {
namespace {

int64_t count() { return torch::stable::get_num_threads(); }

// Rethrows the first exception of a part with its type, which torch's parallel_for would lose.
void run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  std::exception_ptr error;
  std::atomic_flag failed;
  torch::stable::parallel_for(0, n, 1, [&](int64_t first, int64_t last) {
    try {
      body(context, first, last);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

[[maybe_unused]] const bool registered = [] {
  set_thread_pool({count, run});
  return true;
}();

}  // namespace
}  // namespace paraminit
