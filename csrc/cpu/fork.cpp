// See fork.h. A thread started by the child has no OpenMP thread pool yet, so OpenMP creates a new
// one for it. torch's own functions hang in such a child, unless torch.set_num_threads(1) was
// called.
#include "fork.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <thread>

#include "threads.h"

namespace paraminit {
namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
thread_local bool is_helper_thread = false;

}  // namespace

void run_with_threads(const std::function<void()>& work) {
  if (!forked || is_helper_thread || thread_pool().count() == 1) return work();
  std::exception_ptr error;
  std::thread([&] {
    is_helper_thread = true;
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
}

}  // namespace paraminit
