// The threads that work is spread over: a pool that the outside hands in, torch's own in the
// package. Knows no torch.
#pragma once

#include <cstdint>

namespace paraminit {

struct ThreadPool {
  // How many threads a piece of work may have, this one included.
  int64_t (*count)();
  // Calls body(context, first, last) for parts of [0, n), each once, on at most n threads; returns
  // when all are done.
  void (*run)(int64_t n, void (*body)(void* context, int64_t first, int64_t last), void* context);
};

// Set once, before any fill.
void set_thread_pool(const ThreadPool& pool);
const ThreadPool& thread_pool();

// The same for a callable of (first, last).
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
