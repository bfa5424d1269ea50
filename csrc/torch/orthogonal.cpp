// Q = H_0 H_1 ... H_{m-1} D from the reflectors H_k = I - v_k v_k' of a Gaussian matrix's columns
// (Stewart 1980, "The efficient generation of random orthogonal matrices"). From the last panel of
// columns to the first, b reflectors at once are I - V T V' (Schreiber and Van Loan 1989), where
// T^-1 is the upper triangle of V'V with half its diagonal (Puglisi 1992): products, no LAPACK.
#include "orthogonal.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace paraminit {
namespace {

using at::Tensor;

// Below this a panel's overhead is more than the whole product in plain loops.
constexpr int64_t kSmallNumel = 100 * 100;

// Blocks of a triangle that are inverted in loops, where these are quicker than a product's call.
constexpr int64_t kLoopBlock = 32;

// Whether this process lets the factors of float32 products be rounded: by oneDNN on the CPU, or by
// cuBLASLt where that is the preferred library, which no guard of a thread holds off. The setting
// is the whole process's, so it is not touched: such a matrix is made in double.
bool products_may_round(const Tensor& q) {
  if (q.scalar_type() != at::kFloat) return false;
  at::Context& context = at::globalContext();
  if (q.is_cuda()) {
    return context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
               at::Float32Precision::TF32 &&
           context.blasPreferredBackend() == at::BlasBackend::Cublaslt;
  }
  if (!q.is_cpu()) return false;
  const auto precision =
      context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
  return precision == at::Float32Precision::BF16 || precision == at::Float32Precision::TF32;
}

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
  Tensor inverse;
  int64_t half = 1;
  if (upper.is_cpu()) {
    inverse = at::zeros_like(upper);
    half = std::min(n, kLoopBlock);
    AT_DISPATCH_FLOATING_TYPES(upper.scalar_type(), "inverse_upper", [&] {
      for (int64_t begin = 0; begin < n * (n + 1); begin += half * (n + 1)) {
        invert_in_loops(upper.const_data_ptr<scalar_t>() + begin,
                        inverse.mutable_data_ptr<scalar_t>() + begin, half, n);
      }
    });
  } else {
    inverse = at::diag_embed(upper.diagonal().reciprocal());
  }
  for (; half < n; half *= 2) {
    // Block (row, column) of each pair.
    const auto block = [&](const Tensor& m, int64_t row, int64_t column) {
      return m.as_strided({n / (2 * half), half, half}, {2 * half * (n + 1), n, 1},
                          half * (row * n + column));
    };
    const Tensor right = at::bmm(block(upper, 0, 1), block(inverse, 1, 1));
    block(inverse, 0, 1).copy_(at::bmm(block(inverse, 0, 0), right).neg_());
  }
  return inverse;
}

// The columns of `v`, lower trapezoidal, become their own reflectors of length sqrt 2; returns the
// diagonal of D for them. `scratch` is of its shape. A column of zeros has no direction to reflect
// along and stays.
Tensor make_reflectors(const Tensor& v, Tensor scratch) {
  v.narrow(0, 0, v.size(1)).tril_();
  // A reduction over rows is quick for sums, and slow for norms.
  at::mul_out(scratch, v, v);
  const Tensor norms = scratch.sum(0).sqrt_();
  const Tensor heads = v.diagonal();
  const Tensor signs = at::where(heads.lt(0), at::scalar_tensor(-1.0, v.options()),
                                 at::scalar_tensor(1.0, v.options()));
  // |g + sign(g_0) |g| e_1|^2 = 2 |g| (|g| + |g_0|)
  const Tensor scales = at::rsqrt(norms * (norms + heads.abs()));
  heads.addcmul_(signs, norms);
  v.mul_(scales.masked_fill_(norms.eq(0), 0.0));
  return signs.neg_();
}

void multiply_by_panels(const Tensor& q) {
  const int64_t rows = q.size(0), columns = q.size(1), width = panel_width(q);
  const at::TensorOptions options = q.options();
  const Tensor panel = at::empty({rows * width}, options);
  // Half of the columns at a time, so that both products of a step take one panel's memory, which
  // squares need before them. New memory for each would be new pages each time.
  const int64_t step = std::max(width, (columns + 1) / 2);
  const Tensor scratch = at::empty({std::max(2 * step, rows) * width}, options);
  const auto scratch_matrix = [&](int64_t first, int64_t height, int64_t n) {
    return scratch.narrow(0, first, height * n).view({height, n});
  };
  for (int64_t begin = (columns - 1) / width * width; begin >= 0; begin -= width) {
    const int64_t b = std::min(width, columns - begin), m = rows - begin;
    const Tensor block = q.narrow(1, begin, b);
    const Tensor v = panel.narrow(0, 0, m * b).view({m, b});
    v.copy_(block.narrow(0, begin, m));
    const Tensor signs = make_reflectors(v, scratch_matrix(0, m, b));

    int64_t padded = 1;
    while (padded < b) padded *= 2;
    Tensor upper = at::eye(padded, options);
    {
      Tensor corner = upper.narrow(0, 0, b).narrow(1, 0, b);
      at::mm_out(corner, v.t(), v);
      corner.triu_();
      // Halves of squared lengths near 2, from sums in pairs: a product adds up in one place, which
      // in a column of a million rows loses the tail. A reflector of length 0 is the identity.
      Tensor squares = scratch_matrix(0, m, b);
      at::mul_out(squares, v, v);
      const Tensor halves = squares.sum(0).mul_(0.5);
      corner.diagonal().copy_(halves.masked_fill_(halves.eq(0), 1.0));
    }
    const Tensor t = inverse_upper(upper).narrow(0, 0, b).narrow(1, 0, b);

    // Before this step the panel's columns of Q are those of D, so that V'D is V's top rows,
    // scaled; the columns after them hold the product of the later reflectors.
    block.zero_();
    block.narrow(0, begin, b).diagonal().copy_(signs);
    for (int64_t c = begin; c < columns; c += step) {
      const int64_t n = std::min(step, columns - c), known = c == begin ? b : 0;
      Tensor part = q.narrow(0, begin, m).narrow(1, c, n);
      const Tensor w = scratch_matrix(0, b, n);
      Tensor tw = scratch_matrix(width * step, b, n);
      if (known != 0) w.narrow(1, 0, b).copy_(v.narrow(0, 0, b).t()).mul_(signs);
      if (n > known) {
        Tensor rest = w.narrow(1, known, n - known);
        at::mm_out(rest, v.t(), part.narrow(1, known, n - known));
      }
      at::mm_out(tw, t, w);
      part.addmm_(v, tw, 1, -1);
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
  const Tensor work = at::empty({rows, columns}, q.options().dtype(at::kDouble)).copy_(q);
  double* const a = work.mutable_data_ptr<double>();
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
  q.copy_(work);
}

}  // namespace

void make_orthonormal(const Tensor& q) {
  if (q.is_cpu() && q.numel() <= kSmallNumel) {
    multiply_in_loops(q);
    return;
  }
  const at::NoTF32Guard no_tf32;  // of this thread, for cuBLAS
  if (products_may_round(q)) {
    const Tensor work = q.to(at::kDouble);
    multiply_by_panels(work);
    q.copy_(work);
  } else {
    multiply_by_panels(q);
  }
}

}  // namespace paraminit
