// Hands torch's own threads to the fills, so that torch.set_num_threads() is theirs as well.
#include "../cpu/threads.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

namespace paraminit {
namespace {

int64_t count() { return torch::stable::get_num_threads(); }

// What a part throws is thrown here: torch's function would make of it an error without a kind.
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

[[maybe_unused]] const bool handed_in = [] {
  set_thread_pool({count, run});
  return true;
}();

}  // namespace
}  // namespace paraminit
