// Where OpenMP has threads in a process that may be the child of a fork. Knows no torch.
#pragma once

#include <functional>

namespace paraminit {

// Runs `work` here, or in the child of a fork on a thread of its own: OpenMP's threads do not
// survive a fork, and a parallel region of the thread that had them would wait for them forever.
void run_with_threads(const std::function<void()>& work);

}  // namespace paraminit
