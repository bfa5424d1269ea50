// A pool of std::thread for csrc/cpu/. Sanitizers can track these threads, but not those of an
// OpenMP runtime that was built without the sanitizer. Divides work as torch does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "../../csrc/cpu/threads.h"

namespace driver {

inline int64_t num_threads = 4;

inline void run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  if (n <= 0) return;
  const int64_t threads = std::min(num_threads, n);
  const int64_t chunk = (n + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t first = chunk; first < n; first += chunk) {
    others.emplace_back(body, context, first, std::min(n, first + chunk));
  }
  body(context, 0, std::min(n, chunk));
  for (std::thread& other : others) other.join();
}

// Must be called before any fill.
inline void use_threads() {
  paraminit::set_thread_pool({[] { return num_threads; }, run});
}

}  // namespace driver
