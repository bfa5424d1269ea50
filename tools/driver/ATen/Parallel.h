// What csrc/cpu/ asks of torch, on std::thread: a sanitizer sees these threads, and knows nothing
// of an OpenMP runtime that was not built for it. Work is cut as torch cuts it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace at {

inline int num_threads = 4;
inline int get_num_threads() { return num_threads; }

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t all = end - begin;
  if (all <= 0) return;
  const int64_t threads = std::min<int64_t>(num_threads, (all + grain - 1) / grain);
  const int64_t chunk = (all + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t from = begin + chunk; from < end; from += chunk) {
    others.emplace_back([&f, from, to = std::min(end, from + chunk)] { f(from, to); });
  }
  f(begin, std::min(end, begin + chunk));
  for (std::thread& other : others) other.join();
}

}  // namespace at
