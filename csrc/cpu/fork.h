// OpenMP in a process that may be a fork child. Does not depend on torch.
#pragma once

#include <functional>

namespace paraminit {

// Runs `work` on the calling thread, or, in the child of a fork, on a new thread. OpenMP's threads
// do not survive a fork, and a parallel region of the forking thread would wait for them forever.
void run_with_threads(const std::function<void()>& work);

}  // namespace paraminit
