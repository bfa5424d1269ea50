// Q = H_0 H_1 ... H_{m-1} D from the reflectors H_k = I - v_k v_k' of a Gaussian matrix's columns
// (Stewart 1980, "The efficient generation of random orthogonal matrices"). From the last panel of
// columns to the first, b reflectors at once are I - V T V' (Schreiber and Van Loan 1989), where
// T^-1 is the upper triangle of V'V with half its diagonal (Puglisi 1992): products, no LAPACK.
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

ProductsMayRound ask = [](DeviceKind) { return true; };

// --- operators of torch ----------------------------------------------------------------------

Tensor zeros(std::initializer_list<int64_t> sizes, const Tensor& like) {
  Tensor made = empty(sizes, like.scalar_type(), device_of(like));
  return torch::stable::zero_(made);
}

Tensor number(double value, const Tensor& like) {
  return torch::stable::fill_(empty({}, like.scalar_type(), device_of(like)), value);
}

Tensor matrix_of(const Tensor& memory, int64_t first, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return torch::stable::view(part_of(memory, 0, first, rows * columns), {sizes, 2});
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }
Tensor diagonal(const Tensor& matrix) {
  return call("aten::diagonal", "", matrix, int64_t{0}, int64_t{0}, int64_t{1});
}
// With `out` given, which autocast leaves alone.
void product(const Tensor& out, const Tensor& a, const Tensor& b) {
  call("aten::mm", "out", a, b, out);
}
void products(const Tensor& out, const Tensor& a, const Tensor& b) {
  call("aten::bmm", "out", a, b, out);
}
void squared(const Tensor& out, const Tensor& a) { call("aten::mul", "out", a, a, out); }
void scale(const Tensor& a, const Tensor& by) { call("aten::mul_", "Tensor", a, by); }
Tensor times(const Tensor& a, const Tensor& b) { return call("aten::mul", "Tensor", a, b); }
Tensor plus(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  return call("aten::where", "self", condition, a, b);
}
Tensor sum_of_rows(const Tensor& matrix) {
  const int64_t dim = 0;
  return torch::stable::sum(matrix, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
}
Tensor is_zero(const Tensor& a) { return call("aten::eq", "Tensor", a, number(0.0, a)); }

// out -= a b, which the stable dispatcher has no numbers for.
void subtract_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.is_cpu()) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, -1.0));
  } else {
    cuda_backend()->subtract_product(out.get(), a.get(), b.get());
  }
}

// --- Householder reflectors ------------------------------------------------------------------

// Below this a panel's overhead is more than the whole product in plain loops.
constexpr int64_t kSmallNumel = 100 * 100;

// Blocks of a triangle that are inverted in loops, where these are quicker than a product's call.
constexpr int64_t kLoopBlock = 32;

// Wide enough for products to run at their full speed, narrow enough that V'V and T, which cost a
// share of width / columns on top, do not count.
int64_t panel_width(const Tensor& q) {
  const int64_t columns = q.size(1);
  return std::min<int64_t>(columns, columns >= 1536 ? 192 : 128);
}

// Row i of the inverse of an upper triangle U: (e_i - sum_{k > i} U_ik row_k) / U_ii.
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

// The inverse of an upper triangle whose size is a power of two: from the inverses of two
// neighbouring diagonal blocks to that of both, all pairs at once.
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
    // Block (row, column) of each pair.
    const auto block = [&](const Tensor& m, int64_t row, int64_t column) {
      const std::vector<int64_t> sizes{n / (2 * half), half, half};
      const std::vector<int64_t> strides{2 * half * (n + 1), n, 1};
      return call("aten::as_strided", "", m, sizes, strides,
                  std::optional<int64_t>(half * (row * n + column)));
    };
    const Tensor right = zeros({n / (2 * half), half, half}, upper);
    products(right, block(upper, 0, 1), block(inverse, 1, 1));
    products(block(inverse, 0, 1), block(inverse, 0, 0), right);
    call("aten::neg_", "", block(inverse, 0, 1));
  }
  return inverse;
}

// The columns of `v`, lower trapezoidal, become their own reflectors of length sqrt 2; returns the
// diagonal of D for them. `scratch` is of its shape. A column of zeros has no direction to reflect
// along and stays.
Tensor make_reflectors(const Tensor& v, const Tensor& scratch) {
  call("aten::tril_", "", part_of(v, 0, 0, v.size(1)), int64_t{0});
  // A reduction over rows is quick for sums, and slow for norms.
  squared(scratch, v);
  const Tensor norms = call("aten::sqrt", "", sum_of_rows(scratch));
  const Tensor heads = diagonal(v);
  const Tensor zero = number(0.0, v), one = number(1.0, v);
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

void multiply_by_panels(const Tensor& q) {
  const int64_t rows = q.size(0), columns = q.size(1), width = panel_width(q);
  const Tensor panel = empty({rows * width}, q.scalar_type(), device_of(q));
  // Half of the columns at a time, so that both products of a step take one panel's memory, which
  // squares need before them. New memory for each would be new pages each time.
  const int64_t step = std::max(width, (columns + 1) / 2);
  const Tensor scratch = empty({std::max(2 * step, rows) * width}, q.scalar_type(), device_of(q));
  for (int64_t begin = (columns - 1) / width * width; begin >= 0; begin -= width) {
    const int64_t b = std::min(width, columns - begin), m = rows - begin;
    Tensor block = part_of(q, 1, begin, b);
    const Tensor v = matrix_of(panel, 0, m, b);
    copy(v, part_of(block, 0, begin, m));
    const Tensor signs = make_reflectors(v, matrix_of(scratch, 0, m, b));

    int64_t padded = 1;
    while (padded < b) padded *= 2;
    const Tensor upper = zeros({padded, padded}, q), one = number(1.0, q);
    copy(diagonal(upper), one);
    {
      const Tensor corner = part_of(part_of(upper, 0, 0, b), 1, 0, b);
      product(corner, transposed(v), v);
      call("aten::triu_", "", corner, int64_t{0});
      // Halves of squared lengths near 2, from sums in pairs: a product adds up in one place, which
      // in a column of a million rows loses the tail. A reflector of length 0 is the identity.
      const Tensor squares = matrix_of(scratch, 0, m, b);
      squared(squares, v);
      const Tensor halves = times(sum_of_rows(squares), number(0.5, q));
      copy(diagonal(corner), where(is_zero(halves), one, halves));
    }
    const Tensor t = part_of(part_of(inverse_upper(upper), 0, 0, b), 1, 0, b);

    // Before this step the panel's columns of Q are those of D, so that V'D is V's top rows,
    // scaled; the columns after them hold the product of the later reflectors.
    torch::stable::zero_(block);
    copy(diagonal(part_of(block, 0, begin, b)), signs);
    for (int64_t c = begin; c < columns; c += step) {
      const int64_t n = std::min(step, columns - c), known = c == begin ? b : 0;
      const Tensor part = part_of(part_of(q, 0, begin, m), 1, c, n);
      const Tensor w = matrix_of(scratch, 0, b, n);
      const Tensor tw = matrix_of(scratch, width * step, b, n);
      if (known != 0) {
        const Tensor top = part_of(w, 1, 0, b);
        copy(top, transposed(part_of(v, 0, 0, b)));
        scale(top, signs);
      }
      if (n > known) {
        product(part_of(w, 1, known, n - known), transposed(v), part_of(part, 1, known, n - known));
      }
      product(tw, t, w);
      subtract_product(part, v, tw);
    }
  }
}

// A -= scale v (v' A) on rows and columns from k on.
void apply_reflector(const double* __restrict v, double scale, int64_t rows, int64_t columns,
                     int64_t k, double* __restrict a, double* __restrict product) {
  std::fill(product + k, product + columns, 0.0);
  int64_t i = k;
  // Four rows at a time: the sums pass through memory a quarter as often.
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

// The same one reflector at a time, in double.
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

// `q`, at least as tall as it is wide and float32 or float64, holds standard normals on entry and
// orthonormal columns on return.
void make_orthonormal(const Tensor& q) {
  if (q.is_cpu() && q.numel() <= kSmallNumel) {
    multiply_in_loops(q);
  } else if (q.scalar_type() == ScalarType::Float && ask(device_of(q).kind)) {
    // The setting is the whole process's, so it is not touched: such a matrix is made in double.
    const Tensor work = torch::stable::to(q, ScalarType::Double);
    multiply_by_panels(work);
    copy(q, work);
  } else {
    multiply_by_panels(q);
  }
}

// The matrix that `self` is, where the products can work in it: of their precision, its rows or its
// columns in one piece each.
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

void set_products_may_round(ProductsMayRound given) { ask = given; }

void fill_orthogonal(const Orthogonal& law, const Array& self, KeySource key, const Place& place) {
  const DefaultFloatMode mode;
  const Span shape = place.whole.empty() ? self.sizes : place.whole;
  const int64_t rows = shape[0];
  int64_t columns = 1;
  for (size_t d = 1; d < shape.size(); ++d) columns *= shape[d];
  const Dtype type = self.type == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  std::optional<Tensor> here;
  if (std::equal(shape.begin(), shape.end(), self.sizes.begin())) {
    here = matrix_in_place(self, type, rows, columns);
  }
  const Tensor matrix =
      here.has_value() ? *here : empty({rows, columns}, scalar_type_of(type), self.device);
  const Tensor tall = rows >= columns ? matrix : transposed(matrix);
  fill(Normal{0.0, 1.0}, array_of(Orthogonal::name, tall), key, {});
  make_orthonormal(tall);
  if (law.gain != 1.0) scale(matrix, number(law.gain, matrix));
  if (here.has_value()) return;
  Tensor part = torch::stable::view(matrix, reference_to(shape));
  for (size_t d = 0; d < shape.size(); ++d) {
    part = part_of(part, static_cast<int64_t>(d), place.start.empty() ? 0 : place.start[d],
                   self.sizes[d]);
  }
  copy(tensor_of(self), part);
}

}  // namespace paraminit
