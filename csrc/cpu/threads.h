// The thread pool of fills. The caller provides it; in the package it is torch's own. Does not
// depend on torch.
#pragma once

#include <cstdint>

namespace paraminit {

struct ThreadPool {
  // Returns the maximum number of threads for a parallel region, including the calling thread.
  int64_t (*count)();
  // Divides [0, n) into parts and calls body(context, first, last) once for each, on at most n
  // threads. Returns when all calls have returned.
  void (*run)(int64_t n, void (*body)(void* context, int64_t first, int64_t last), void* context);
};

// Must be called at most once, before any fill.
void set_thread_pool(const ThreadPool& pool);
const ThreadPool& thread_pool();

// Runs a callable with parameters (first, last) on the thread pool.
template <class Body>
void run_on_pool(int64_t n, const Body& body) {
  thread_pool().run(
      n,
      [](void* context, int64_t first, int64_t last) {
        (*static_cast<const Body*>(context))(first, last);
      },
      const_cast<Body*>(&body));
}

}  // namespace paraminit
