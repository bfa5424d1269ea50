// Statistics of contiguous elements: in blocks of vectors if every element is finite, otherwise
// element by element. Positions alone determine the order of summation, so every instruction set
// gives the same bits. Uses the compiler's vector extension with PARAMINIT_WIDTH bytes. The
// translation unit of each instruction set includes this file once, in its target region.
#pragma once

#include <cstring>

#include "statistics.h"

namespace paraminit::PARAMINIT_ISA {

// Numbers in a block. A complex element consists of two numbers.
constexpr int64_t kBlock = 8192;
// Number of partial sums of the even numbers, and of the odd numbers. They are separate because
// they are the real and imaginary parts of complex elements.
constexpr int kLanes = 16;

typedef float F32 __attribute__((vector_size(PARAMINIT_WIDTH)));
typedef float HalfF32 __attribute__((vector_size(PARAMINIT_WIDTH / 2)));
typedef double F64 __attribute__((vector_size(PARAMINIT_WIDTH)));
typedef int16_t I16 __attribute__((vector_size(PARAMINIT_WIDTH)));
typedef int32_t I32 __attribute__((vector_size(PARAMINIT_WIDTH)));
typedef int64_t I64 __attribute__((vector_size(PARAMINIT_WIDTH)));

template <class V>
PARAMINIT_FN V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <class To, class From>
PARAMINIT_FN To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// --- element by element ----------------------------------------------------------------------

template <class T, int parts>
static Statistics read_elements(const T* x, int64_t count) {
  Statistics s = empty_statistics();
  double k[2] = {}, sums[2] = {}, squares = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    double v[2] = {};
    for (int p = 0; p < parts; ++p) v[p] = number(x[i * parts + p]);
    const NumberKind kind = kind_of<T>(v);
    s.nans += kind == NumberKind::kNan;
    s.infinities += kind == NumberKind::kInfinite;
    if (kind == NumberKind::kNan || kind == NumberKind::kInfinite) continue;
    if (s.finite == 0) std::memcpy(k, v, sizeof(k));
    s.finite += 1;
    s.zeros += kind == NumberKind::kZero;
    s.subnormals += kind == NumberKind::kSubnormal;
    for (int p = 0; p < parts; ++p) {
      const double delta = v[p] - k[p];
      sums[p] += delta;
      squares += delta * delta;
      if (v[p] < s.least) s.least = v[p];
      if (v[p] > s.greatest) s.greatest = v[p];
    }
  }
  if (s.finite > 0) set_moments(s, k, sums, squares);
  return s;
}

// --- blocks ----------------------------------------------------------------------------------

// The reduced results of the vectors of a block. `tiny` counts zeros and subnormals.
struct Totals {
  double sums[2][kLanes];  // of even numbers and of odd numbers
  double squares[2][kLanes];
  double least, greatest;
  int64_t zeros, tiny;
};

template <class V, int n>
PARAMINIT_FN int64_t sum_of(const V (&v)[n]) {
  int64_t sum = 0;
  for (int i = 0; i < n; ++i) {
    for (size_t l = 0; l < sizeof(V) / sizeof(v[i][0]); ++l) sum += v[i][l];
  }
  return sum;
}

template <class V, int n>
PARAMINIT_FN auto least_of(const V (&v)[n]) {
  auto least = v[0][0];
  for (int i = 0; i < n; ++i) {
    for (size_t l = 0; l < sizeof(V) / sizeof(v[i][0]); ++l)
      least = v[i][l] < least ? v[i][l] : least;
  }
  return least;
}

template <class V, int n>
PARAMINIT_FN auto greatest_of(const V (&v)[n]) {
  auto greatest = v[0][0];
  for (int i = 0; i < n; ++i) {
    for (size_t l = 0; l < sizeof(V) / sizeof(v[i][0]); ++l) {
      greatest = v[i][l] > greatest ? v[i][l] : greatest;
    }
  }
  return greatest;
}

// Copies the even and the odd elements of the vectors to to[0] and to[1]. Missing elements are
// zero.
template <int n>
PARAMINIT_FN void split_even_odd(const F64 (&from)[n], double (&to)[2][kLanes]) {
  double flat[2 * kLanes] = {};
  static_assert(sizeof(from) <= sizeof(flat));
  std::memcpy(flat, from, sizeof(from));
  for (int l = 0; l < kLanes; ++l) {
    to[0][l] = flat[2 * l];
    to[1][l] = flat[2 * l + 1];
  }
}

template <int doubles, class V, class Count, int vectors>
PARAMINIT_FN Totals totals(const F64 (&sums)[doubles], const F64 (&squares)[doubles],
                           const V (&least)[vectors], const V (&greatest)[vectors],
                           const Count (&zeros)[vectors], const Count (&tiny)[vectors]) {
  Totals t;
  split_even_odd(sums, t.sums);
  split_even_odd(squares, t.squares);
  t.least = least_of(least);
  t.greatest = greatest_of(greatest);
  t.zeros = sum_of(zeros);
  t.tiny = sum_of(tiny);
  return t;
}

// Returns a vector of k[0], k[1], k[0], k[1], ...
PARAMINIT_FN F64 alternating(const double (&k)[2]) {
  F64 v{};
  for (size_t l = 0; l < sizeof(F64) / sizeof(double); ++l) v[l] = k[l % 2];
  return v;
}

PARAMINIT_FN F64 widen(const float* from) {
#if defined(__AVX512F__) && PARAMINIT_WIDTH == 64
  // GCC compiles the conversion below to four instructions.
  return _mm512_cvtps_pd(_mm256_loadu_ps(from));
#else
  return __builtin_convertvector(load<HalfF32>(from), F64);
#endif
}

// These functions compute the totals of a block. They return false if an element is known not to be
// finite; the totals are then meaningless. The caller must also check the squares for overflow.
static bool read_block(const float* x, int64_t count, const double (&k)[2], Totals& t) {
  constexpr int step = 16, singles = step * 4 / PARAMINIT_WIDTH, doubles = 2 * singles;
  const F64 shift = alternating(k);
  F64 sums[doubles] = {}, squares[doubles] = {};
  F32 least[singles], greatest[singles];
  I32 zeros[singles] = {}, tiny[singles] = {};
  for (int i = 0; i < singles; ++i) {
    least[i] = F32{} + __builtin_inff();
    greatest[i] = -least[i];
  }
  for (const float* const end = x + count; x < end; x += step) {
    for (int i = 0; i < singles; ++i) {
      const F32 v = load<F32>(x + i * (PARAMINIT_WIDTH / 4));
      least[i] = v < least[i] ? v : least[i];
      greatest[i] = v > greatest[i] ? v : greatest[i];
      const I32 magnitude = as<I32>(v) & 0x7FFFFFFF;
      zeros[i] -= magnitude == 0;
      tiny[i] -= magnitude < 0x00800000;
    }
    for (int i = 0; i < doubles; ++i) {
      const F64 delta = widen(x + i * (PARAMINIT_WIDTH / 8)) - shift;
      sums[i] += delta;
      squares[i] += delta * delta;
    }
  }
  t = totals(sums, squares, least, greatest, zeros, tiny);
  return true;
}

static bool read_block(const double* x, int64_t count, const double (&k)[2], Totals& t) {
  constexpr int step = 8, vectors = step * 8 / PARAMINIT_WIDTH;
  const F64 shift = alternating(k);
  F64 sums[vectors] = {}, squares[vectors] = {}, least[vectors], greatest[vectors];
  I64 zeros[vectors] = {}, tiny[vectors] = {};
  for (int i = 0; i < vectors; ++i) {
    least[i] = F64{} + __builtin_huge_val();
    greatest[i] = -least[i];
  }
  for (const double* const end = x + count; x < end; x += step) {
    for (int i = 0; i < vectors; ++i) {
      const F64 v = load<F64>(x + i * (PARAMINIT_WIDTH / 8));
      least[i] = v < least[i] ? v : least[i];
      greatest[i] = v > greatest[i] ? v : greatest[i];
      const I64 magnitude = as<I64>(v) & 0x7FFFFFFFFFFFFFFF;
      zeros[i] -= magnitude == 0;
      tiny[i] -= magnitude < 0x0010000000000000;
      const F64 delta = v - shift;
      sums[i] += delta;
      squares[i] += delta * delta;
    }
  }
  t = totals(sums, squares, least, greatest, zeros, tiny);
  return true;
}

// Converts the two 16-bit numbers in each 32-bit word to floats.
PARAMINIT_FN void unpack(const BFloat16*, I32 words, F32& even, F32& odd) {
  even = as<F32>(words << 16);
  odd = as<F32>(words & static_cast<int32_t>(0xFFFF0000u));
}
PARAMINIT_FN void unpack(const Half*, I32 words, F32& even, F32& odd) {
  // Move exponent and fraction to their place in a float and keep the sign. Multiply by 2^112
  // because the exponent biases differ by 112.
  constexpr auto mask = static_cast<int32_t>(0x8FFFE000u);
  even = as<F32>(((words << 16) >> 3) & mask) * 0x1p112f;
  odd = as<F32>((words >> 3) & mask) * 0x1p112f;
}

PARAMINIT_FN int16_t infinity(const BFloat16*) { return 0x7F80; }
PARAMINIT_FN int16_t infinity(const Half*) { return 0x7C00; }
PARAMINIT_FN int16_t least_normal(const BFloat16*) { return 0x0080; }
PARAMINIT_FN int16_t least_normal(const Half*) { return 0x0400; }

// Maps the bits of 16-bit numbers to integers in the same order as the numbers. Its own inverse.
template <class V>
PARAMINIT_FN V to_ordered(V bits) {
  return bits ^ ((bits >> 15) & static_cast<int16_t>(0x7FFF));
}

// 16-bit numbers are summed in float32, at most kRun per partial sum. Each is rounded at most kRun
// + 1 times with a relative error of 2^-24, in total less than 10^-6.
template <class T>
static bool read_block(const T* x, int64_t count, const double (&k)[2], Totals& t) {
  constexpr int kRun = 8;
  constexpr int words = kLanes * 4 / PARAMINIT_WIDTH;  // vectors of 2 * kLanes numbers
  const F32 shift_even = F32{} + static_cast<float>(k[0]);
  const F32 shift_odd = F32{} + static_cast<float>(k[1]);
  const I16 normal = I16{} + least_normal(x);
  t = {};
  I16 least[words], greatest[words], zeros[words] = {}, tiny[words] = {};
  for (int i = 0; i < words; ++i) {
    least[i] = I16{} + static_cast<int16_t>(0x7FFF);
    greatest[i] = I16{} + static_cast<int16_t>(-0x8000);
  }
  for (const T* const end = x + count; x < end;) {
    F32 sums[2][words] = {}, squares[2][words] = {};
    for (int row = 0; row < kRun && x < end; ++row, x += 2 * kLanes) {
      for (int i = 0; i < words; ++i) {
        const I16 bits = load<I16>(x + i * (PARAMINIT_WIDTH / 2));
        const I16 magnitude = bits & static_cast<int16_t>(0x7FFF), order = to_ordered(bits);
        least[i] = order < least[i] ? order : least[i];
        greatest[i] = order > greatest[i] ? order : greatest[i];
        zeros[i] -= magnitude == 0;
        tiny[i] -= magnitude < normal;
        F32 even, odd;
        unpack(x, as<I32>(bits), even, odd);
        even -= shift_even;
        odd -= shift_odd;
        sums[0][i] += even;
        sums[1][i] += odd;
        squares[0][i] += even * even;
        squares[1][i] += odd * odd;
      }
    }
    for (int p = 0; p < 2; ++p) {
      float run_sums[kLanes], run_squares[kLanes];
      std::memcpy(run_sums, sums[p], sizeof(run_sums));
      std::memcpy(run_squares, squares[p], sizeof(run_squares));
      for (int l = 0; l < kLanes; ++l) {
        t.sums[p][l] += run_sums[l];
        t.squares[p][l] += run_squares[l];
      }
    }
  }
  const int16_t low = least_of(least), high = greatest_of(greatest);
  t.least = number(as<T>(to_ordered(low)));
  t.greatest = number(as<T>(to_ordered(high)));
  t.zeros = sum_of(zeros);
  t.tiny = sum_of(tiny);
  return high < infinity(x) && low > ~infinity(x);
}

// Computes the statistics of a block with `parts` numbers per element from differences from k.
// Returns false if the vector code cannot determine them.
template <class T, int parts>
PARAMINIT_FN bool read_block_from(const T* x, int64_t count, const double (&k)[2], Statistics& s,
                                  double& squares) {
  Totals t;
  const bool is_finite = read_block(x, count * parts, k, t);
  double sums[2] = {};
  squares = 0.0;
  for (int l = 0; l < kLanes; ++l) {
    sums[0] += t.sums[0][l];
    sums[1] += t.sums[1][l];
    squares += t.squares[0][l] + t.squares[1][l];
  }
  // The vector code does not determine whether both parts of a complex element are zero or tiny.
  const bool counts_known = parts == 1 || t.tiny == 0;
  // Squares of 16-bit numbers are computed in float32. One below 2^-126 is rounded by at most
  // 2^-150, which is at most 2^-30 of this limit.
  const bool underflows = sizeof(T) == 2 && t.least != t.greatest &&
                          squares < static_cast<double>(count * parts) * 0x1p-120;
  if (!is_finite || !counts_known || underflows || !(squares < __builtin_huge_val())) return false;
  s = empty_statistics();
  s.finite = count;
  s.zeros = t.zeros;
  s.subnormals = t.tiny - t.zeros;
  s.least = t.least;
  s.greatest = t.greatest;
  const double both[2] = {parts == 1 ? sums[0] + sums[1] : sums[0], parts == 1 ? 0.0 : sums[1]};
  const double from[2] = {k[0], parts == 1 ? 0.0 : k[1]};
  set_moments(s, from, both, squares);
  return true;
}

template <class T, int parts>
static Statistics block(const T* x, int64_t count) {
  const double first[2] = {number(x[0]), number(x[parts - 1])};
  Statistics s;
  double squares;
  if (!read_block_from<T, parts>(x, count, first, s, squares)) {
    return read_elements<T, parts>(x, count);
  }
  // The first element is far from the mean, so subtracting the squares cancels. Repeat with the
  // mean.
  if (s.squares * 16.0 < squares) {
    double mean[2] = {s.mean, parts == 1 ? s.mean : s.mean_imag};
    if constexpr (sizeof(T) == 2) {  // the differences are computed in float32
      for (double& m : mean) m = static_cast<float>(m);
    }
    if (!read_block_from<T, parts>(x, count, mean, s, squares)) {
      return read_elements<T, parts>(x, count);
    }
  }
  return s;
}

template <class T, int parts>
static Statistics read_run(const void* data, int64_t count) {
  const T* x = static_cast<const T*>(data);
  Statistics whole = empty_statistics();
  while (count > 0) {
    const int64_t length = count < kBlock / parts ? count : kBlock / parts;
    // A multiple of the step size of every read_block().
    const int64_t vector_length = length / (2 * kLanes) * (2 * kLanes);
    if (vector_length > 0) whole = merged(whole, block<T, parts>(x, vector_length));
    if (vector_length < length) {
      whole =
          merged(whole, read_elements<T, parts>(x + vector_length * parts, length - vector_length));
    }
    x += length * parts;
    count -= length;
  }
  return whole;
}

template <class T>
static StatisticsFunction of_type(bool is_complex) {
  return is_complex ? read_run<T, 2> : read_run<T, 1>;
}

StatisticsFunction statistics_function(ElementType type, bool is_complex) {
  switch (type) {
    case ElementType::kFloat64:
      return of_type<double>(is_complex);
    case ElementType::kFloat16:
      return of_type<Half>(is_complex);
    case ElementType::kBFloat16:
      return of_type<BFloat16>(is_complex);
    default:
      return of_type<float>(is_complex);
  }
}

}  // namespace paraminit::PARAMINIT_ISA
