// A fill on the CPU.
#pragma once

#include <cstddef>

#include "../stream/geometry.h"
#include "../stream/request.h"
#include "run_function.h"

namespace paraminit {

// From here on a fill is not going to be read from a cache. Its stores pass by them, which saves
// reading each line before it is overwritten; and where its pages are new, they are asked for by
// the 2 MiB rather than the 4 KiB.
constexpr int64_t kLargeFill = int64_t(8) << 20;
bool is_large(int64_t element_size, const Geometry& geometry);

// Of the instruction set that is chosen now, for runs as long as these.
using FillFunction = decltype(RunFunctions::fill);
FillFunction fill_function(const FillRequest& request, const Geometry& geometry);

void fill_cpu(const FillRequest& request, const Geometry& geometry, void* data);

// Before new pages are touched.
void ask_for_huge_pages(void* data, size_t bytes);

// The distribution of the request applied to given words, four a group: for tests.
void apply_cpu(const FillRequest& request, const uint32_t* words, int64_t groups, void* out);

}  // namespace paraminit
