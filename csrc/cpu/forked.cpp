// See forked.h. A thread that the child has started owns no pool of threads, so OpenMP makes it one
// of living ones. torch's own functions do hang there, unless torch.set_num_threads(1) was called.
#include "forked.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <thread>

#include "threads.h"

namespace paraminit {
namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
thread_local bool started_here = false;

}  // namespace

void run_with_threads(const std::function<void()>& work) {
  if (!forked || started_here || thread_pool().count() == 1) return work();
  std::exception_ptr error;
  std::thread([&] {
    started_here = true;
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
}

}  // namespace paraminit
