// See threads.h. Until a pool is set, work runs on the calling thread.
#include "threads.h"

namespace paraminit {
namespace {

ThreadPool pool{[] { return int64_t{1}; }, [](int64_t n, void (*body)(void*, int64_t, int64_t),
                                              void* context) { body(context, 0, n); }};

}  // namespace

void set_thread_pool(const ThreadPool& new_pool) { pool = new_pool; }
const ThreadPool& thread_pool() { return pool; }

}  // namespace paraminit
