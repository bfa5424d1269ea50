// See staging.h.
#include "staging.h"

#include <ATen/ATen.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

#include "forked.h"

namespace paraminit {
namespace {

using at::IntArrayRef;
using at::Tensor;
using Sizes = c10::SmallVector<int64_t, 8>;

Tensor host_buffer(const char* op, const Tensor& self, int64_t numel) {
  try {
    return at::empty({numel}, at::TensorOptions().dtype(self.scalar_type()).device(at::kCPU));
  } catch (const c10::Error&) {
    TORCH_CHECK(false, "paraminit_ext.", op, ": expected ", numel * self.element_size(),
                " bytes of host memory to fill a tensor on ", self.device(),
                " by way of, got none. Free some.");
  }
}

// The box that is cut out of the tensor again and again, of at most `most` elements.
Sizes box_sizes(IntArrayRef sizes, int64_t most, bool columns) {
  Sizes box(sizes.size(), 1);
  int64_t room = std::max<int64_t>(1, most);
  for (size_t n = 0; n < sizes.size(); ++n) {
    const size_t d = columns ? n : sizes.size() - 1 - n;
    box[d] = std::min(sizes[d], room);
    if (box[d] < sizes[d]) break;
    room /= box[d];
  }
  return box;
}

}  // namespace

void fill_by_pieces(const char* op, const Tensor& self, IntArrayRef whole, IntArrayRef start,
                    int64_t most_bytes, bool columns, const PieceFill& fill) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const IntArrayRef sizes = self.sizes();
  const size_t dims = sizes.size();
  const Sizes box = box_sizes(sizes, most_bytes / self.element_size(), columns);
  const Tensor buffer = host_buffer(op, self, c10::multiply_integers(box));
  Sizes begin(dims, 0), size(dims), place(dims);
  while (true) {
    Tensor view = self;
    for (size_t d = 0; d < dims; ++d) {
      size[d] = std::min(box[d], sizes[d] - begin[d]);
      place[d] = (start.empty() ? 0 : start[d]) + begin[d];
      if (size[d] != sizes[d]) view = view.narrow(static_cast<int64_t>(d), begin[d], size[d]);
    }
    const Tensor piece = buffer.narrow(0, 0, c10::multiply_integers(size)).view(size);
    run_with_threads([&] { fill(piece, whole.empty() ? sizes : whole, place); });
    view.copy_(piece);
    size_t d = dims;
    while (d > 0 && begin[d - 1] + box[d - 1] >= sizes[d - 1]) begin[--d] = 0;
    if (d == 0) return;
    begin[d - 1] += box[d - 1];
  }
}

}  // namespace paraminit
