// Hands torch's own threads to the fills, so that torch.set_num_threads() is theirs as well.
#include "../cpu/threads.h"

#include <torch/csrc/stable/ops.h>

namespace paraminit {
namespace {

int64_t count() { return torch::stable::get_num_threads(); }

void run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, 1,
                              [&](int64_t first, int64_t last) { body(context, first, last); });
}

[[maybe_unused]] const bool handed_in = [] {
  set_thread_pool({count, run});
  return true;
}();

}  // namespace
}  // namespace paraminit
