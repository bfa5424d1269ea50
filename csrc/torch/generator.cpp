// See generator.h.
#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#ifdef PARAMINIT_WITH_CUDA
#include "cuda.h"
#endif

namespace paraminit {

Key draw(at::Generator generator) {
#ifdef PARAMINIT_WITH_CUDA
  if (generator.device().is_cuda()) return draw_cuda(generator);
#endif
  auto* cpu = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard<std::mutex> lock(cpu->mutex_);
  const uint64_t seed = cpu->random64();
  return {seed, cpu->random64()};
}

}  // namespace paraminit
