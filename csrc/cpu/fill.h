// Fills on the CPU.
#pragma once

#include <cstddef>

#include "../stream/geometry.h"
#include "../stream/request.h"
#include "kernel_table.h"

namespace paraminit {

// From this size in bytes, a tensor is not expected to be read from a cache. A fill then uses
// non-temporal stores, which do not read a cache line before overwriting it, and requests huge
// pages of 2 MiB for new pages.
constexpr int64_t kLargeFill = int64_t(8) << 20;
bool is_large(int64_t element_size, const Geometry& geometry);

// Returns the fill function of the selected instruction set, or of the baseline for short runs.
using FillFunction = decltype(FillKernels::fill);
FillFunction fill_function(const FillRequest& request, const Geometry& geometry);

void fill_cpu(const FillRequest& request, const Geometry& geometry, void* data);

// Must be called before the pages are first touched to have an effect.
void ask_for_huge_pages(void* data, size_t bytes);

// Applies the request's distribution to the given words, four per group. For tests.
void apply_cpu(const FillRequest& request, const uint32_t* words, int64_t groups, void* out);

}  // namespace paraminit
