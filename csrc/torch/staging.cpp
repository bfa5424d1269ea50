// See staging.h.
#include "staging.h"

#include <algorithm>

#include "../stream/errors.h"

namespace paraminit {
namespace {

using Sizes = std::vector<int64_t>;

int64_t product(const Sizes& sizes) {
  int64_t numel = 1;
  for (const int64_t size : sizes) numel *= size;
  return numel;
}

// Returns the size of the boxes that the tensor is divided into, of at most `most` elements each.
Sizes box_sizes(Span sizes, int64_t most, bool columns) {
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

void fill_by_pieces(const char* op, const Tensor& self, const Array& array,
                    const ShardPosition& place, int64_t most_bytes, bool columns,
                    const PieceFill& fill) {
  const Span sizes = array.sizes;
  const size_t dims = sizes.size();
  const Sizes box = box_sizes(sizes, most_bytes / array.element_bytes, columns);
  const Tensor buffer = empty({product(box)}, scalar_type_of(array.type), {DeviceKind::kCpu, 0});
  Sizes begin(dims, 0), size(dims), start(dims);
  while (true) {
    Tensor view = self;
    for (size_t d = 0; d < dims; ++d) {
      size[d] = std::min(box[d], sizes[d] - begin[d]);
      start[d] = (place.shard_offset.empty() ? 0 : place.shard_offset[d]) + begin[d];
      if (size[d] != sizes[d]) view = narrowed(view, static_cast<int64_t>(d), begin[d], size[d]);
    }
    const Tensor piece =
        torch::stable::view(narrowed(buffer, 0, 0, product(size)), reference_to(size));
    fill(array_of(op, piece), {place.global_shape.empty() ? sizes : place.global_shape, start});
    copy(view, piece);
    size_t d = dims;
    while (d > 0 && begin[d - 1] + box[d - 1] >= sizes[d - 1]) begin[--d] = 0;
    if (d == 0) return;
    begin[d - 1] += box[d - 1];
  }
}

}  // namespace paraminit
