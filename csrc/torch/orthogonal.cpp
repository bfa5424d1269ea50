// Computes Q = H_0 H_1 ... H_{m-1} D from the Householder reflectors H_k = I - v_k v_k' of the
// columns of a Gaussian matrix (Stewart 1980, "The efficient generation of random orthogonal
// matrices"). Panels of b columns are processed from last to first. The b reflectors of a panel are
// I - V T V' (Schreiber and Van Loan 1989). T^-1 is the upper triangle of V'V with its diagonal
// halved (Puglisi 1992). Only matrix products are needed, no LAPACK.
#include "orthogonal.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "../cpu/capability.h"
#include "../stream/overlap.h"
#include "fills.h"
#include "tensors.h"

namespace paraminit {
namespace {

ProductsMayRound products_may_round = [](DeviceKind) { return true; };

// --- torch operators -------------------------------------------------------------------------

Tensor zeros(std::initializer_list<int64_t> sizes, const Tensor& like) {
  Tensor result = empty(sizes, like.scalar_type(), device_of(like));
  return torch::stable::zero_(result);
}

Tensor scalar_tensor(double value, const Tensor& like) {
  return torch::stable::fill_(empty({}, like.scalar_type(), device_of(like)), value);
}

Tensor matrix_of(const Tensor& memory, int64_t first, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return torch::stable::view(narrowed(memory, 0, first, rows * columns), {sizes, 2});
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }
Tensor diagonal(const Tensor& matrix) {
  return call("aten::diagonal", "", matrix, int64_t{0}, int64_t{0}, int64_t{1});
}
// The out= overloads, because autocast does not change their dtype.
void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  call("aten::mm", "out", a, b, out);
}
void bmm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  call("aten::bmm", "out", a, b, out);
}
void square_out(const Tensor& out, const Tensor& a) { call("aten::mul", "out", a, a, out); }
void scale(const Tensor& a, const Tensor& factor) { call("aten::mul_", "Tensor", a, factor); }
Tensor times(const Tensor& a, const Tensor& b) { return call("aten::mul", "Tensor", a, b); }
Tensor plus(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  return call("aten::where", "self", condition, a, b);
}
Tensor sum_of_rows(const Tensor& matrix) {
  const int64_t dim = 0;
  return torch::stable::sum(matrix, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
}
Tensor is_zero(const Tensor& a) { return call("aten::eq", "Tensor", a, scalar_tensor(0.0, a)); }

// out -= a b. The stable dispatcher cannot pass the Scalar arguments that addmm needs.
void subtract_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.is_cpu()) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, -1.0));
  } else {
    cuda_backend()->subtract_product(out.get(), a.get(), b.get());
  }
}

// --- Householder reflectors ------------------------------------------------------------------

// Up to this size, plain loops take less time than the overhead of a panel.
constexpr int64_t kSmallNumel = 100 * 100;

// Diagonal blocks up to this size are inverted in loops, which are faster than calls of products.
constexpr int64_t kLoopBlock = 32;

// On the CPU, panels of matrices up to this size are narrow, and their reflectors are computed in
// loops: there a call of a torch operator takes longer than its work.
constexpr int64_t kNarrowNumel = 512 * 512;
constexpr int64_t kNarrowPanel = 64;

bool has_narrow_panels(const Tensor& q) { return q.is_cpu() && q.numel() <= kNarrowNumel; }

// Wide enough that matrix products run at full speed. Narrow enough that the extra cost of V'V and
// T, a fraction width / columns of the work, is negligible.
int64_t panel_width(const Tensor& q) {
  const int64_t columns = q.size(1);
  if (has_narrow_panels(q)) return std::min(columns, kNarrowPanel);
  return std::min<int64_t>(columns, columns >= 1536 ? 192 : 128);
}

// Inverts an upper triangular U. Row i of the inverse is (e_i - sum_{k > i} U_ik row_k) / U_ii.
template <class T>
void invert_in_loops(const T* upper, T* inverse, int64_t n, int64_t stride) {
  for (int64_t i = n - 1; i >= 0; --i) {
    T* const row = inverse + i * stride;
    for (int64_t k = i + 1; k < n; ++k) {
      const T factor = upper[i * stride + k];
      for (int64_t j = k; j < n; ++j) row[j] -= factor * inverse[k * stride + j];
    }
    row[i] = 1;
    for (int64_t j = i; j < n; ++j) row[j] /= upper[i * stride + i];
  }
}

// Returns the inverse of an upper triangular matrix. Its size must be a power of two. Each step
// combines the inverses of two neighbouring diagonal blocks, for all pairs of blocks at once.
Tensor inverse_upper(const Tensor& upper) {
  const int64_t n = upper.size(0);
  Tensor inverse = zeros({n, n}, upper);
  int64_t half = 1;
  if (upper.is_cpu()) {
    half = std::min(n, kLoopBlock);
    const auto invert = [&](auto type) {
      using T = decltype(type);
      const auto* from = static_cast<const T*>(upper.const_data_ptr());
      auto* to = static_cast<T*>(inverse.mutable_data_ptr());
      for (int64_t begin = 0; begin < n * (n + 1); begin += half * (n + 1)) {
        invert_in_loops(from + begin, to + begin, half, n);
      }
    };
    upper.scalar_type() == ScalarType::Double ? invert(0.0) : invert(0.0f);
  } else {
    copy(diagonal(inverse), call("aten::reciprocal", "", diagonal(upper)));
  }
  for (; half < n; half *= 2) {
    // Block (row, column) of the 2 x 2 blocks of each pair, as a batch of matrices.
    const auto block = [&](const Tensor& m, int64_t row, int64_t column) {
      const std::vector<int64_t> sizes{n / (2 * half), half, half};
      const std::vector<int64_t> strides{2 * half * (n + 1), n, 1};
      return call("aten::as_strided", "", m, sizes, strides,
                  std::optional<int64_t>(half * (row * n + column)));
    };
    const Tensor right = zeros({n / (2 * half), half, half}, upper);
    bmm_out(right, block(upper, 0, 1), block(inverse, 1, 1));
    bmm_out(block(inverse, 0, 1), block(inverse, 0, 0), right);
    call("aten::neg_", "", block(inverse, 0, 1));
  }
  return inverse;
}

// Replaces each column of `v`, below and on the diagonal, by its reflector, scaled to length
// sqrt 2. Returns the corresponding diagonal of D. `scratch` has the shape of `v`. A column of
// zeros has no reflector and stays zero.
Tensor make_reflectors(const Tensor& v, const Tensor& scratch) {
  call("aten::tril_", "", narrowed(v, 0, 0, v.size(1)), int64_t{0});
  // torch reduces over rows fast for sums, but slowly for norms.
  square_out(scratch, v);
  const Tensor norms = call("aten::sqrt", "", sum_of_rows(scratch));
  const Tensor heads = diagonal(v);
  const Tensor zero = scalar_tensor(0.0, v), one = scalar_tensor(1.0, v);
  const Tensor negative = call("aten::neg", "", one);
  const Tensor below = call("aten::lt", "Tensor", heads, zero);
  const Tensor signs = where(below, negative, one);
  // |g + sign(g_0) |g| e_1|^2 = 2 |g| (|g| + |g_0|)
  const Tensor squares = times(norms, plus(norms, call("aten::abs", "", heads)));
  const Tensor scales = where(is_zero(norms), zero, call("aten::rsqrt", "", squares));
  copy(heads, plus(heads, times(signs, norms)));
  scale(v, scales);
  return where(below, one, negative);
}

// The reflectors V of a panel, the matrix T of their product, and the diagonal of D.
struct BlockReflector {
  Tensor t, signs;
};

// Replaces `v` by V. `scratch` has at least the size of `v`.
BlockReflector make_block_reflector(const Tensor& v, const Tensor& scratch) {
  const int64_t m = v.size(0), b = v.size(1);
  const Tensor signs = make_reflectors(v, matrix_of(scratch, 0, m, b));
  int64_t padded = 1;
  while (padded < b) padded *= 2;
  const Tensor upper = zeros({padded, padded}, v), one = scalar_tensor(1.0, v);
  copy(diagonal(upper), one);
  const Tensor corner = narrowed(narrowed(upper, 0, 0, b), 1, 0, b);
  mm_out(corner, transposed(v), v);
  call("aten::triu_", "", corner, int64_t{0});
  // The diagonal is half of each squared length, which is near 2. It comes from torch's pairwise
  // sum: a matrix product uses one accumulator, which loses low-order bits of a column of a million
  // rows. A reflector of length 0 is the identity.
  const Tensor squares = matrix_of(scratch, 0, m, b);
  square_out(squares, v);
  const Tensor halves = times(sum_of_rows(squares), scalar_tensor(0.5, v));
  copy(diagonal(corner), where(is_zero(halves), one, halves));
  return {narrowed(narrowed(inverse_upper(upper), 0, 0, b), 1, 0, b), signs};
}

// The same in loops, with sums in double.
template <class T>
BlockReflector make_narrow_block_reflector(const Tensor& v) {
  const int64_t m = v.size(0), b = v.size(1);
  const BlockReflector made{zeros({b, b}, v), empty({b}, v.scalar_type(), device_of(v))};
  T* const values = static_cast<T*>(v.mutable_data_ptr());
  T* const signs = static_cast<T*>(made.signs.mutable_data_ptr());
  double squares[kNarrowPanel] = {};
  const auto add_squares = [&] {
    std::fill(squares, squares + b, 0.0);
    for (int64_t i = 0; i < m; ++i) {
      const T* const row = values + i * b;
      for (int64_t j = 0; j < b; ++j) squares[j] += double{row[j]} * double{row[j]};
    }
  };
  for (int64_t i = 0; i < b; ++i) std::fill(values + i * b + i + 1, values + (i + 1) * b, T{0});
  add_squares();
  T scales[kNarrowPanel];
  for (int64_t j = 0; j < b; ++j) {
    const double norm = std::sqrt(squares[j]), head = values[j * b + j];
    signs[j] = head < 0 ? T{1} : T{-1};
    values[j * b + j] = static_cast<T>(head + (head < 0 ? -norm : norm));
    // |g + sign(g_0) |g| e_1|^2 = 2 |g| (|g| + |g_0|)
    scales[j] = norm == 0 ? T{0} : static_cast<T>(1.0 / std::sqrt(norm * (norm + std::abs(head))));
  }
  for (int64_t i = 0; i < m; ++i) {
    T* const row = values + i * b;
    for (int64_t j = 0; j < b; ++j) row[j] *= scales[j];
  }
  add_squares();
  const Tensor upper = empty({b, b}, v.scalar_type(), device_of(v));
  mm_out(upper, transposed(v), v);
  T* const corner = static_cast<T*>(upper.mutable_data_ptr());
  // A reflector of length 0 is the identity.
  for (int64_t j = 0; j < b; ++j) {
    corner[j * b + j] = squares[j] == 0 ? T{1} : static_cast<T>(0.5 * squares[j]);
  }
  invert_in_loops(corner, static_cast<T*>(made.t.mutable_data_ptr()), b, b);
  return made;
}

void multiply_by_panels(const Tensor& q) {
  const int64_t rows = q.size(0), columns = q.size(1), width = panel_width(q);
  const Tensor panel = empty({rows * width}, q.scalar_type(), device_of(q));
  // Each update covers half of the columns, so that both of its products fit into the scratch
  // memory that the squares use earlier. New memory for each product would cause new page faults.
  const int64_t step = std::max(width, (columns + 1) / 2);
  const Tensor scratch = empty({std::max(2 * step, rows) * width}, q.scalar_type(), device_of(q));
  for (int64_t begin = (columns - 1) / width * width; begin >= 0; begin -= width) {
    const int64_t b = std::min(width, columns - begin), m = rows - begin;
    Tensor block = narrowed(q, 1, begin, b);
    const Tensor v = matrix_of(panel, 0, m, b);
    copy(v, narrowed(block, 0, begin, m));
    const auto [t, signs] = !has_narrow_panels(q) ? make_block_reflector(v, scratch)
                            : q.scalar_type() == ScalarType::Double
                                ? make_narrow_block_reflector<double>(v)
                                : make_narrow_block_reflector<float>(v);

    // Set the panel's own columns to those of D. Their product with V' is then the transpose of V's
    // top rows, scaled by `signs`. The columns to the right already hold the product of the later
    // reflectors.
    torch::stable::zero_(block);
    copy(diagonal(narrowed(block, 0, begin, b)), signs);
    for (int64_t c = begin; c < columns; c += step) {
      const int64_t n = std::min(step, columns - c), known_columns = c == begin ? b : 0;
      const Tensor part = narrowed(narrowed(q, 0, begin, m), 1, c, n);
      const Tensor w = matrix_of(scratch, 0, b, n);
      const Tensor tw = matrix_of(scratch, width * step, b, n);
      if (known_columns != 0) {
        const Tensor top = narrowed(w, 1, 0, b);
        copy(top, transposed(narrowed(v, 0, 0, b)));
        scale(top, signs);
      }
      if (n > known_columns) {
        mm_out(narrowed(w, 1, known_columns, n - known_columns), transposed(v),
               narrowed(part, 1, known_columns, n - known_columns));
      }
      mm_out(tw, t, w);
      subtract_product(part, v, tw);
    }
  }
}

// A -= scale v (v' A), for rows and columns k and above.
void apply_reflector(const double* __restrict v, double scale, int64_t rows, int64_t columns,
                     int64_t k, double* __restrict a, double* __restrict product) {
  std::fill(product + k, product + columns, 0.0);
  int64_t i = k;
  // Four rows at a time, so that `product` is loaded and stored a quarter as often.
  for (; i + 4 <= rows; i += 4) {
    const double* const r = a + i * columns;
    for (int64_t j = k; j < columns; ++j) {
      product[j] += v[i] * r[j] + v[i + 1] * r[columns + j] + v[i + 2] * r[2 * columns + j] +
                    v[i + 3] * r[3 * columns + j];
    }
  }
  for (; i < rows; ++i) {
    for (int64_t j = k; j < columns; ++j) product[j] += v[i] * a[i * columns + j];
  }
  for (i = k; i < rows; ++i) {
    const double factor = v[i] * scale;
    for (int64_t j = k; j < columns; ++j) a[i * columns + j] -= factor * product[j];
  }
}

// Computes the same as multiply_by_panels, one reflector at a time and in double.
void multiply_in_loops(const Tensor& q) {
  const int64_t rows = q.size(0), columns = q.size(1);
  const Tensor work = empty({rows, columns}, ScalarType::Double, device_of(q));
  copy(work, q);
  auto* const a = static_cast<double*>(work.mutable_data_ptr());
  std::vector<double> v(static_cast<size_t>(rows)), product(static_cast<size_t>(columns));
  for (int64_t k = columns - 1; k >= 0; --k) {
    double square = 0;
    for (int64_t i = k; i < rows; ++i) {
      v[i] = a[i * columns + k];
      square += v[i] * v[i];
      a[i * columns + k] = 0;
    }
    for (int64_t i = 0; i < k; ++i) a[i * columns + k] = 0;
    const double norm = std::sqrt(square), head = v[k];
    a[k * columns + k] = head < 0 ? 1.0 : -1.0;
    if (norm == 0) continue;
    v[k] += head < 0 ? -norm : norm;
    const double scale = 1.0 / (norm * (norm + std::abs(head)));
    apply_reflector(v.data(), scale, rows, columns, k, a, product.data());
  }
  copy(q, work);
}

// Replaces the standard normals in `q` by orthonormal columns. `q` is float32 or float64 and has at
// least as many rows as columns.
void make_orthonormal(const Tensor& q) {
  if (q.is_cpu() && q.numel() <= kSmallNumel) {
    multiply_in_loops(q);
  } else if (q.scalar_type() == ScalarType::Float && products_may_round(device_of(q).kind)) {
    // Compute in double, because the setting is global to the process and must not be changed.
    const Tensor work = torch::stable::to(q, ScalarType::Double);
    multiply_by_panels(work);
    copy(q, work);
  } else {
    multiply_by_panels(q);
  }
}

// Returns `self` as a matrix if the products can run in place: its dtype must be `type`, and its
// rows or its columns must each be contiguous.
std::optional<Tensor> matrix_in_place(const Array& self, Dtype type, int64_t rows,
                                      int64_t columns) {
  if (self.type != type) return std::nullopt;
  const int64_t sizes[] = {rows, columns};
  if (is_contiguous(self.sizes, self.strides)) {
    const int64_t strides[] = {columns, 1};
    Array matrix = self;
    matrix.sizes = sizes;
    matrix.strides = strides;
    return tensor_of(matrix);
  }
  if (self.sizes.size() != 2) return std::nullopt;
  const bool by_rows = self.strides[1] == 1 && self.strides[0] >= columns;
  const bool by_columns = self.strides[0] == 1 && self.strides[1] >= rows;
  return by_rows || by_columns ? std::optional<Tensor>(tensor_of(self)) : std::nullopt;
}

}  // namespace

void set_products_may_round(ProductsMayRound function) { products_may_round = function; }

void fill_orthogonal(const Orthogonal& law, const Array& self, KeySource key,
                     const ShardPosition& place) {
  const DefaultFloatMode mode;
  const Span shape = place.global_shape.empty() ? self.sizes : place.global_shape;
  const int64_t rows = shape[0];
  int64_t columns = 1;
  for (size_t d = 1; d < shape.size(); ++d) columns *= shape[d];
  const Dtype type = self.type == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  std::optional<Tensor> in_place;
  if (std::equal(shape.begin(), shape.end(), self.sizes.begin())) {
    in_place = matrix_in_place(self, type, rows, columns);
  }
  const Tensor matrix =
      in_place.has_value() ? *in_place : empty({rows, columns}, scalar_type_of(type), self.device);
  const Tensor tall = rows >= columns ? matrix : transposed(matrix);
  fill(Normal{0.0, 1.0}, array_of(Orthogonal::name, tall), key, {});
  make_orthonormal(tall);
  if (law.gain != 1.0) scale(matrix, scalar_tensor(law.gain, matrix));
  if (in_place.has_value()) return;
  Tensor part = torch::stable::view(matrix, reference_to(shape));
  for (size_t d = 0; d < shape.size(); ++d) {
    part = narrowed(part, static_cast<int64_t>(d),
                    place.shard_offset.empty() ? 0 : place.shard_offset[d], self.sizes[d]);
  }
  copy(tensor_of(self), part);
}

}  // namespace paraminit
