"""sparse_ and orthogonal_ follow their laws, and each statistic rejects planted faults.

One function computes a statistic for the fill and for a planted fault of the same sample size. Both results
are compared with the same critical value, which comes from the law of the statistic under the claim. It is
the exact law if one is named, otherwise the limit law; samples have thousands of elements. Keys are fixed, so
a test that passes once always passes.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import special, stats

from paraminit_ext import Key, init

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# The probability that a test fails although its claim holds. A test with m comparisons makes each of them at
# level ALARM / m (Bonferroni), which is valid for any dependence between them.
ALARM = 1e-6
KEY = Key(0x5EED_0F_1A35)


# ----------------------------------------------------------------------------------------
# sparse_: which rows are zero
# ----------------------------------------------------------------------------------------


@cache
def zero_pattern(rows: int, columns: int, zeros: int, replicate: int = 0) -> Mask:
    """Return where a sparse fill is zero. Kept values are not zero, because the normal fill has no zeros."""
    tensor = torch.empty(rows, columns)
    init.sparse_(tensor, zeros / rows, generator=KEY.fold_in("rows").fold_in(replicate))
    pattern: Mask = (tensor == 0).numpy()
    assert (pattern.sum(0) == zeros).all()
    return pattern


def smallest(scores: npt.NDArray[Any], zeros: int) -> Mask:
    """Mark the ``zeros`` smallest scores of each column; of equal scores the lower row comes first."""
    pattern = np.zeros(scores.shape, bool)
    np.put_along_axis(pattern, np.argsort(scores, axis=0, kind="stable")[:zeros], True, axis=0)
    return pattern


def drawn(rows: int, columns: int, seed: int) -> Array:
    """Return uniform scores from NumPy's generator, which is independent of the package."""
    return np.random.default_rng(seed).random((rows, columns))


def subset_chi_square(pattern: Mask) -> float:
    """Return the chi-square of the counts of the C(rows, zeros) possible columns against equal counts."""
    rows, zeros = len(pattern), int(pattern[:, 0].sum())
    names = [sum(1 << row for row in subset) for subset in itertools.combinations(range(rows), zeros)]
    counts = np.bincount((1 << np.arange(rows)) @ pattern, minlength=1 << rows)[names]
    return float(stats.chisquare(counts).statistic)


SUBSETS = (8, 200_000, 3)
SUBSET_CRITICAL = stats.chi2.isf(ALARM, math.comb(8, 3) - 1)


def test_every_three_of_eight_rows_are_equally_likely() -> None:
    assert subset_chi_square(zero_pattern(*SUBSETS)) < SUBSET_CRITICAL


@pytest.mark.parametrize("fault", ["words of 6 bits", "naive shuffle", "runs", "every second of 5 bits"])
def test_the_chi_square_of_subsets_rejects_an_unfair_choice(fault: str) -> None:
    rows, columns, zeros = SUBSETS
    scores = drawn(rows, columns, 1)
    if fault == "words of 6 bits":  # of equal words the lower row comes first
        pattern = smallest(np.floor(scores * 64), zeros)
    elif fault == "naive shuffle":  # swaps each place with a random place, in 8^8 equally likely ways
        order = np.tile(np.arange(rows)[:, None], columns)
        for row, other in enumerate((scores * rows).astype(np.int64)):
            every = np.arange(columns)
            order[row], order[other, every] = order[other, every], order[row].copy()
        pattern = np.zeros((rows, columns), bool)
        np.put_along_axis(pattern, order[:zeros], True, axis=0)
    elif fault == "runs":  # one column in twenty has consecutive zeros; rows stay equally likely
        pattern = smallest(scores, zeros)
        start = (scores[:1, ::20] * rows).astype(np.int64)
        pattern[:, ::20] = (np.arange(rows)[:, None] - start) % rows < zeros
    else:  # words of 5 bits, in every second column only
        scores[:, ::2] = np.floor(scores[:, ::2] * 32)
        pattern = smallest(scores, zeros)
    assert subset_chi_square(pattern) > SUBSET_CRITICAL


def row_chi_square(pattern: Mask) -> float:
    """Return the chi-square of the number of zeros in each row.

    A column has exactly k zeros among R rows. Its indicators have variance p (1 - p), with p = k/R, and
    correlation -1/(R - 1). Their covariance is p (1 - p) R/(R - 1) times the projection orthogonal to the
    constants, so this sum has the chi-square law with R - 1 degrees of freedom.
    """
    rows, columns = pattern.shape
    p = float(pattern[:, 0].mean())
    counts = pattern.sum(1)
    return float(((counts - columns * p) ** 2).sum() / (columns * p * (1 - p) * rows / (rows - 1)))


def pair_chi_square(pattern: Mask) -> float:
    """Return the chi-square of the columns in which two rows are both zero, without the rows' own effect.

    The indicators of the pairs have the covariance P2 I + P3 A1 + P4 A2 - P2^2 J. Pm is the probability that
    m given rows are zero. A1 joins pairs with one row in common, A2 joins pairs with none. Subtracting the
    sum over the partners of each row leaves a space of dimension R (R - 3)/2, the last of the Johnson scheme.
    On it A1 has the eigenvalue -2 and A2 = J - I - A1 has the eigenvalue 1, so the counts projected to this
    space have variance P2 - 2 P3 + P4 per column in each direction.
    """
    rows, columns = pattern.shape
    zeros = int(pattern[:, 0].sum())
    p2, p3, p4 = (math.perm(zeros, m) / math.perm(rows, m) for m in (2, 3, 4))
    # float32 products are exact: counts are below 2^24.
    both_zero = (pattern.astype(np.float32) @ pattern.T.astype(np.float32)).astype(np.float64)
    np.fill_diagonal(both_zero, 0.0)
    both_zero[~np.eye(rows, dtype=bool)] -= columns * p2
    # Subtract e_i + e_j off the diagonal so that every row of the symmetric matrix sums to zero.
    sums = both_zero.sum(1)
    effect = (sums - sums.sum() / (2 * (rows - 1))) / (rows - 2)
    both_zero -= effect[:, None] + effect
    np.fill_diagonal(both_zero, 0.0)
    assert np.abs(both_zero.sum(1)).max() < 1e-6 * columns  # rounding errors only
    return float((both_zero**2).sum() / 2 / (columns * (p2 - 2 * p3 + p4)))


PAIRS = (64, 50_000, 16)
# One test, two comparisons.
ROW_CRITICAL = stats.chi2.isf(ALARM / 2, 63)
PAIR_CRITICAL = stats.chi2.isf(ALARM / 2, 64 * 61 // 2)


def test_each_of_64_rows_and_each_pair_of_them_is_zero_equally_often() -> None:
    pattern = zero_pattern(*PAIRS)
    assert row_chi_square(pattern) < ROW_CRITICAL
    assert pair_chi_square(pattern) < PAIR_CRITICAL


def test_the_chi_square_of_rows_rejects_a_row_that_is_chosen_a_little_more_often() -> None:
    rows, columns, zeros = PAIRS
    scores = drawn(rows, columns, 2)
    fair = smallest(scores, zeros)
    scores[5] *= 0.93
    scores[6] /= 0.93
    tilted = smallest(scores, zeros)
    assert row_chi_square(fair) < ROW_CRITICAL < row_chi_square(tilted)


def test_the_chi_square_of_pairs_rejects_partners_that_the_rows_alone_do_not_show() -> None:
    rows, columns, zeros = PAIRS
    pattern = smallest(drawn(rows, columns, 3), zeros)
    assert pair_chi_square(pattern) < PAIR_CRITICAL
    # In one column in fifty rows 2i and 2i + 1 are zero together. Each row is still zero equally often.
    pattern[:, ::50] = np.repeat(smallest(drawn(rows // 2, -(-columns // 50), 4), zeros // 2), 2, axis=0)
    assert row_chi_square(pattern) < ROW_CRITICAL
    assert pair_chi_square(pattern) > PAIR_CRITICAL


LAGS = (1, 2, 3, 4, 8, 64)
NEIGHBOURS = (6, 400_000, 3)
NEIGHBOUR_CRITICAL = stats.chi2.isf(ALARM / len(LAGS), (math.comb(6, 3) - 1) ** 2)


def lag_chi_square(pattern: Mask, lag: int) -> float:
    """Return the chi-square of the table of a column's 20 patterns against those of the column ``lag`` later.

    No column is in two pairs, so the pairs are independent. The margins are those of the table itself.
    """
    rows, columns = pattern.shape
    names = np.unique((1 << np.arange(rows)) @ pattern, return_inverse=True)[1]
    first = np.arange(columns - lag)
    first = first[first // lag % 2 == 0]
    kinds = names.max() + 1
    table = np.bincount(names[first] * kinds + names[first + lag], minlength=kinds**2).reshape(kinds, kinds)
    return float(stats.chi2_contingency(table, correction=False).statistic)


@pytest.mark.parametrize("columns", [400_000, 399_999])
def test_the_pattern_of_a_column_says_nothing_about_its_neighbours(columns: int) -> None:
    pattern = zero_pattern(6, columns, 3)
    for lag in LAGS:
        assert lag_chi_square(pattern, lag) < NEIGHBOUR_CRITICAL


@pytest.mark.parametrize("lag", LAGS)
def test_the_contingency_rejects_columns_that_share_their_pattern(lag: int) -> None:
    rows, columns, zeros = NEIGHBOURS
    pattern = smallest(drawn(rows, columns, 5), zeros)
    assert lag_chi_square(pattern, lag) < NEIGHBOUR_CRITICAL
    # One or two columns in fifty are copies of the column ``lag`` before.
    copies = np.arange(lag, columns, 50)
    copies = copies[copies // lag % 2 == 1]
    for place in range(4):
        targets = copies + place
        targets = targets[(targets < columns) & (targets // lag % 2 == 1)]
        pattern[:, targets] = pattern[:, targets - lag]
    assert lag_chi_square(pattern, lag) > NEIGHBOUR_CRITICAL


def test_fills_at_sibling_keys_have_independent_patterns() -> None:
    # Interleave the columns of two fills, so that lag 1 leads from one fill to the other.
    side = np.stack([zero_pattern(6, 100_000, 3, replicate) for replicate in (1, 2)], axis=2)
    assert lag_chi_square(side.reshape(6, -1), 1) < NEIGHBOUR_CRITICAL


# ----------------------------------------------------------------------------------------
# sparse_: independence of the values
# ----------------------------------------------------------------------------------------

VALUES = (128, 8192, 48)
STD = 0.37


@cache
def values_and_pattern() -> tuple[Array, Mask]:
    """Return a normal fill in units of its std, and where sparse_ with the same key writes zeros."""
    rows, columns, zeros = VALUES
    key = KEY.fold_in("values")
    whole = init.normal_(torch.empty(rows, columns), 0.0, STD, generator=key)
    sparse = init.sparse_(torch.empty(rows, columns), zeros / rows, std=STD, generator=key)
    kept = sparse != 0
    assert torch.equal(sparse[kept], whole[kept])
    return whole.double().numpy() / STD, ~kept.numpy()


def dependence(z: Array, pattern: Mask) -> dict[str, float]:
    """Return p-values that are uniform, by exact laws, if the pattern is independent of the values."""
    zeroed, kept = z[pattern], z[~pattern]

    def two_sided(below: float, above: float) -> float:
        return float(2 * min(below, above))

    energy = stats.f(zeroed.size, kept.size)
    ratio = np.square(zeroed).mean() / np.square(kept).mean()
    gap = (zeroed.mean() - kept.mean()) / math.sqrt(1 / zeroed.size + 1 / kept.size)
    # One radius and one angle make a pair of values. Test the radii of pairs with only the first zeroed.
    even, odd = z[:, ::2], z[:, 1::2]
    first_zeroed = pattern[:, ::2] & ~pattern[:, 1::2]
    radius = stats.chi2(2 * int(first_zeroed.sum()))
    squares = float((np.square(even) + np.square(odd))[first_zeroed].sum())
    return {
        "law of the kept": float(stats.kstest(kept, stats.norm.cdf).pvalue),
        "law of the zeroed": float(stats.kstest(zeroed, stats.norm.cdf).pvalue),
        "size": two_sided(energy.cdf(ratio), energy.sf(ratio)),
        "sign": two_sided(stats.norm.cdf(gap), stats.norm.sf(gap)),
        "radius where one of two is zeroed": two_sided(radius.cdf(squares), radius.sf(squares)),
    }


def test_what_is_zeroed_does_not_depend_on_the_values() -> None:
    z, pattern = values_and_pattern()
    p_values = dependence(z, pattern)
    assert min(p_values.values()) > ALARM / len(p_values), p_values


@pytest.mark.parametrize("fault", ["the values' own words", "the smallest values", "a weak pull"])
def test_the_tests_of_independence_reject_a_pattern_made_of_the_values(fault: str) -> None:
    z = values_and_pattern()[0]
    rows, columns, zeros = VALUES
    key = KEY.fold_in("values")
    if fault == "the values' own words":  # the key is not folded, so the values' own words rank them
        words = torch.empty(rows, columns, dtype=torch.int64)
        torch.ops.paraminit_ext.words_.default(words, *as_signed(key), (), ())
        planted = smallest(words.numpy(), zeros)
    elif fault == "the smallest values":
        planted = smallest(np.abs(z), zeros)
    else:
        planted = smallest(drawn(rows, columns, 6) + 0.02 * np.abs(z), zeros)
    p_values = dependence(z, planted)
    assert min(p_values.values()) < ALARM / len(p_values)


def as_signed(key: Key) -> tuple[int, int]:
    """Return seed and offset as an op takes them: two int64 of the same bits."""
    seed, offset = np.array([key.seed, key.offset], np.uint64).view(np.int64).tolist()
    return int(seed), int(offset)


# ----------------------------------------------------------------------------------------
# orthogonal_: samples, and samples with faults
# ----------------------------------------------------------------------------------------

# The number of matrices in a sample. They are independent, because each has its own key.
COUNT = 4000
SQUARES = [(2, 2), (3, 3), (9, 9)]
SHAPES = [*SQUARES, (12, 5), (5, 12)]
shaped = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
# For 2 x 2 matrices "short walk" and "one reflector" are no faults: they give Haar matrices.
faulted = pytest.mark.parametrize(
    ("shape", "fault"),
    [
        (shape, fault)
        for shape in SHAPES
        for fault in ("no sign fix", "heavy tails", "short walk", "one reflector")
        if shape != (2, 2) or fault in ("no sign fix", "heavy tails")
    ],
    ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v)),
)


@cache
def sample(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Array:
    """Return COUNT matrices, each from its own key."""
    tensors = torch.empty(COUNT, rows, columns, dtype=dtype)
    threads = torch.get_num_threads()
    # Use one thread: with such small matrices, two threads on a busy machine mostly wait for each other.
    torch.set_num_threads(1)
    try:
        for tensor, key in zip(tensors, KEY.fold_in(f"{rows}x{columns}").split(COUNT), strict=True):
            init.orthogonal_(tensor, generator=key)
    finally:
        torch.set_num_threads(threads)
    matrices: Array = tensors.double().numpy()
    return matrices


def qr_sample(gaussian: Array, fix: bool = True) -> Array:
    """Return orthonormal columns from LAPACK's QR. They are Haar only if Q takes R's signs."""
    q, r = np.linalg.qr(gaussian)
    if fix:
        q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    return np.asarray(q, np.float64)


def faulty(fault: str, rows: int, columns: int) -> Array:
    """Return COUNT orthogonal matrices that are not Haar, as a plausible mistake would make them."""
    tall, wide = max(rows, columns), min(rows, columns)
    rng = np.random.default_rng(7)
    g = rng.standard_normal((COUNT, tall, wide))
    if fault == "no sign fix":
        q = qr_sample(g, fix=False)
    elif fault == "heavy tails":  # QR of entries that are not Gaussian
        q = qr_sample(g**5)
    elif fault == "no last sign":  # omits the reflector of length 1 of a square matrix
        q = qr_sample(g)
        q[:, :, -1] *= np.sign(np.linalg.det(q))[:, None]
    elif fault == "one sign":  # one sign for all columns instead of one per column
        q = qr_sample(g)
        q *= np.sign(q[:, :1, :]) * np.sign(q[:, :1, :1])
    elif fault == "short walk":  # too few plane rotations
        q = np.tile(np.eye(tall), (COUNT, 1, 1))
        for _ in range(2 * tall):
            i, j = rng.choice(tall, 2, replace=False)
            angle = rng.uniform(0, 2 * math.pi, (COUNT, 1))
            a, b = q[:, i].copy(), q[:, j].copy()
            q[:, i] = np.cos(angle) * a - np.sin(angle) * b
            q[:, j] = np.sin(angle) * a + np.cos(angle) * b
        q = q[:, :, :wide] * rng.choice([-1.0, 1.0], (COUNT, 1, wide))
    elif fault == "one reflector":  # only the first reflector, with correct signs
        v = g[:, :, :1]
        q = np.eye(tall)[:, :wide] - 2 * v * v[:, :wide].transpose(0, 2, 1) / (v**2).sum(1, keepdims=True)
        q = q * rng.choice([-1.0, 1.0], (COUNT, 1, wide))
    elif fault == "paired keys":  # every second matrix is the negative of the one before it
        q = qr_sample(g)
        q[1::2] = -q[::2]
    else:
        raise ValueError(fault)
    return q if rows >= columns else q.transpose(0, 2, 1)


# ----------------------------------------------------------------------------------------
# orthogonal_: entries
# ----------------------------------------------------------------------------------------


def entry_cdf(x: Array, n: int) -> Array:
    """Return the CDF of a coordinate of a uniform unit vector in n dimensions; x^2 is Beta(1/2, (n-1)/2)."""
    # Rounding, in the fill or in a product with a rotation, may push a square past 1.
    squares = np.minimum(np.square(x), 1.0)
    cdf: Array = (1 + np.sign(x) * special.betainc(0.5, (n - 1) / 2, squares)) / 2
    return cdf


def ks(uniforms: Array) -> float:
    """Return the greatest Kolmogorov-Smirnov distance from the uniform law of the samples along axis 0."""
    count = len(uniforms)
    steps = np.arange(count + 1).reshape(-1, *(1,) * (uniforms.ndim - 1)) / count
    ascending = np.sort(uniforms, axis=0)
    return float(max((steps[1:] - ascending).max(), (ascending - steps[:-1]).max()))


@cache
def ks_critical(count: int, comparisons: int = 1) -> float:
    """Return the value that ks exceeds with probability at most ALARM, by the exact law of one distance."""
    return float(stats.kstwo.isf(ALARM / comparisons, count))


def entries_ks(q: Array) -> float:
    return ks(entry_cdf(q, max(q.shape[1:])))


def entries_critical(q: Array) -> float:
    return ks_critical(len(q), math.prod(q.shape[1:]))


@shaped
def test_every_entry_is_a_coordinate_of_a_uniform_unit_vector(shape: tuple[int, int]) -> None:
    q = sample(*shape)
    assert entries_ks(q) < entries_critical(q)


def test_every_entry_in_float64_is_a_coordinate_of_a_uniform_unit_vector() -> None:
    q = sample(4, 4, torch.float64)
    assert entries_ks(q) < entries_critical(q)


@faulted
def test_the_test_of_entries_rejects_a_planted_fault(shape: tuple[int, int], fault: str) -> None:
    q = faulty(fault, *shape)
    assert entries_ks(q) > entries_critical(q)


def mean_chi_square(q: Array) -> float:
    """Return the chi-square of the means of all entries, which are uncorrelated with exact variance 1/n."""
    return float(np.square(q.sum(0)).sum() * max(q.shape[1:]) / len(q))


def mean_critical(q: Array) -> float:
    return float(stats.chi2.isf(ALARM, math.prod(q.shape[1:])))


@shaped
def test_the_mean_of_every_entry_is_zero(shape: tuple[int, int]) -> None:
    q = sample(*shape)
    assert mean_chi_square(q) < mean_critical(q)


@shaped
def test_the_test_of_means_rejects_missing_signs(shape: tuple[int, int]) -> None:
    q = faulty("no sign fix", *shape)
    assert mean_chi_square(q) > mean_critical(q)


def joint_uniforms(q: Array) -> Array:
    """Return the CDF at sums of squares of two and of three entries of a row or column.

    The sum of squares of k coordinates of a uniform unit vector in n dimensions is Beta(k/2, (n-k)/2).
    """
    n = max(q.shape[1:])
    sums = []
    for k in range(2, min(n, 4)):
        for line in (q[:, :, 0], q[:, :, -1], q[:, 0, :], q[:, -1, :]):
            for part in (line[:, :k], line[:, -k:]):
                squares = np.minimum(np.square(part).sum(1), 1.0)
                sums.append(special.betainc(k / 2, (n - k) / 2, squares))
    return np.stack(sums, axis=1)


several = pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda s: "x".join(map(str, s)))


@several
def test_two_and_three_entries_of_a_line_have_their_joint_size(shape: tuple[int, int]) -> None:
    uniforms = joint_uniforms(sample(*shape))
    assert ks(uniforms) < ks_critical(*uniforms.shape)


@pytest.mark.parametrize("fault", ["heavy tails", "short walk", "one reflector"])
@several
def test_the_test_of_joint_sizes_rejects_a_planted_fault(shape: tuple[int, int], fault: str) -> None:
    uniforms = joint_uniforms(faulty(fault, *shape))
    assert ks(uniforms) > ks_critical(*uniforms.shape)


# ----------------------------------------------------------------------------------------
# orthogonal_: signs and determinants
# ----------------------------------------------------------------------------------------


def positives(q: Array) -> int:
    """Return the number of positive determinants; each is 1 or -1 up to rounding."""
    determinants = np.linalg.det(q)
    assert np.abs(np.abs(determinants) - 1).max() < 1e-4
    return int((determinants > 0).sum())


def is_fair(successes: int, trials: int = COUNT) -> bool:
    """Return whether a binomial count of probability 1/2 is within its exact two-sided limits."""
    low, high = (int(f(ALARM / 2, trials, 0.5)) for f in (stats.binom.ppf, stats.binom.isf))
    return low <= successes <= high


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_determinant_is_positive_half_of_the_time(n: int) -> None:
    assert is_fair(positives(sample(n, n)))


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("fault", ["no sign fix", "no last sign"])
def test_the_test_of_determinants_rejects_a_fixed_sign(n: int, fault: str) -> None:
    # A product of n - 1 reflectors always has the determinant (-1)^(n - 1).
    assert not is_fair(positives(faulty(fault, n, n)))


def sign_chi_square(q: Array) -> float:
    """Return the chi-square of the signs of the first row, the first column and, for n = 3, the determinant.

    Changing signs of rows and columns preserves the Haar law and takes any signs of the first row and column
    to any others, so all 2^(2n - 1) are equally likely. The matrices of O(n) that fix the first row and the
    first column map each such class to itself. For n >= 3 some of them have determinant -1, so the
    determinant is one more fair sign. For n = 2 it follows from the other signs.
    """
    n = q.shape[2]
    signs = [*(q[:, 0, j] > 0 for j in range(n)), *(q[:, i, 0] > 0 for i in range(1, q.shape[1]))]
    if n == 3:
        signs.append(np.linalg.det(q) > 0)
    names = (1 << np.arange(len(signs))) @ np.array(signs)
    return float(stats.chisquare(np.bincount(names, minlength=1 << len(signs))).statistic)


@pytest.mark.parametrize(("n", "signs"), [(2, 3), (3, 6)])
def test_signs_are_independent(n: int, signs: int) -> None:
    assert sign_chi_square(sample(n, n)) < stats.chi2.isf(ALARM, 2**signs - 1)


@pytest.mark.parametrize(("n", "signs"), [(2, 3), (3, 6)])
@pytest.mark.parametrize("fault", ["no sign fix", "one sign", "no last sign"])
def test_the_test_of_signs_rejects_a_planted_fault(n: int, signs: int, fault: str) -> None:
    assert sign_chi_square(faulty(fault, n, n)) > stats.chi2.isf(ALARM, 2**signs - 1)


# ----------------------------------------------------------------------------------------
# orthogonal_: eigenvalues
# ----------------------------------------------------------------------------------------


def trace_scores(q: Array) -> dict[str, float]:
    """Return p-values of the first two moments of tr Q, tr Q^2 and tr Q^3 and of their products.

    Diaconis and Shahshahani (1994): over O(n), T_j = tr Q^j - [j even] has the joint moments of independent
    normals of variance j. This is exact up to a total degree in Q's entries of 2n, because the pairings that
    span the invariants of the orthogonal group are then linearly independent. At n = 9 the degree is
    18 >= 6 * 3. So T_j has the first six moments of its normal, and a sum of T_j^2 has the mean, the variance
    and the third moment of j times a chi-square. The products have mean 0 and variance j k.
    """
    count, n = len(q), q.shape[1]
    assert n >= 9
    powers = [q, q @ q, q @ q @ q]
    t = {j: np.trace(p, axis1=1, axis2=2) - (j % 2 == 0) for j, p in enumerate(powers, 1)}
    chi = stats.chi2(count)
    scores = {}
    for j in (1, 2, 3):
        scores[f"mean {j}"] = 2 * stats.norm.sf(abs(t[j].sum()) / math.sqrt(count * j))
        energy = np.square(t[j]).sum() / j
        scores[f"variance {j}"] = 2 * min(chi.cdf(energy), chi.sf(energy))
    for j, k in ((1, 2), (1, 3), (2, 3)):
        scores[f"product {j} {k}"] = 2 * stats.norm.sf(abs((t[j] * t[k]).sum()) / math.sqrt(count * j * k))
    return {name: float(p) for name, p in scores.items()}


def test_traces_of_powers_have_the_moments_of_independent_normals() -> None:
    scores = trace_scores(sample(9, 9))
    assert min(scores.values()) > ALARM / len(scores), scores


@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        ("no sign fix", ("mean 1", "mean 2")),
        ("short walk", ("variance 1",)),
        ("one reflector", ("mean 2", "variance 1", "variance 2", "variance 3")),
    ],
)
def test_the_test_of_traces_rejects_a_planted_fault(fault: str, seen_by: tuple[str, ...]) -> None:
    scores = trace_scores(faulty(fault, 9, 9))
    for name in seen_by:
        assert scores[name] < ALARM / len(scores), scores


def angles(q: Array) -> Array:
    """Return the four eigenvalue angles in (0, pi) of each 9 x 9 matrix, in ascending order.

    The ninth eigenvalue is the determinant, 1 or -1.
    """
    turns = np.sort(np.abs(np.angle(np.linalg.eigvals(q))), axis=1)
    last = np.where(np.linalg.det(q) > 0, 0, 8)
    turns[np.arange(len(q)), last] = np.nan
    return np.sort(turns, axis=1)[:, :8:2]


def angle_statistics(q: Array) -> dict[str, Array]:
    """Return statistics with one number per matrix, so that the numbers of a sample are independent."""
    turns, det = angles(q), np.linalg.det(q) > 0
    gaps = np.diff(turns, axis=1)
    # Measure from the real eigenvalue, which repels the others. -Q has the angles pi - theta and the opposite
    # determinant.
    from_real = np.where(det, turns[:, 0], math.pi - turns[:, -1])
    from_other = np.where(det, math.pi - turns[:, -1], turns[:, 0])
    return {
        "first angle": turns[:, 0],
        "last angle": turns[:, -1],
        "smallest gap": gaps.min(1),
        "greatest gap": gaps.max(1),
        "from the real eigenvalue": from_real,
        "from its opposite": from_other,
    }


@cache
def scipy_angles() -> dict[str, Array]:
    return angle_statistics(stats.ortho_group.rvs(9, 20_000, random_state=np.random.default_rng(8)))


def angle_distances(q: Array) -> dict[str, float]:
    ours, theirs = angle_statistics(q), scipy_angles()
    return {name: float(stats.ks_2samp(ours[name], theirs[name]).statistic) for name in ours}


# Two samples of sizes N and M differ like one sample of size N M / (N + M) from its law.
ANGLE_CRITICAL = stats.kstwobign.isf(ALARM / 6) / math.sqrt(COUNT * 20_000 / (COUNT + 20_000))


def test_eigenvalues_are_spaced_as_those_of_scipys_ortho_group() -> None:
    distances = angle_distances(sample(9, 9))
    assert max(distances.values()) < ANGLE_CRITICAL, distances


@pytest.mark.parametrize("fault", ["no sign fix", "short walk", "one reflector"])
def test_the_test_of_eigenvalues_rejects_a_planted_fault(fault: str) -> None:
    distances = angle_distances(faulty(fault, 9, 9))
    assert max(distances.values()) > ANGLE_CRITICAL, distances


def rotation_cdf(angle: Array) -> Array:
    """Return the CDF of the angle of a Haar rotation of space; its density is (1 - cos) / pi on [0, pi]."""
    cdf: Array = (angle - np.sin(angle)) / math.pi
    return cdf


def rotation_angle(q: Array) -> Array:
    """Return the angle of det(Q) Q, a rotation with trace 1 + 2 cos(angle)."""
    trace = np.trace(q, axis1=1, axis2=2) * np.sign(np.linalg.det(q))
    angle: Array = np.arccos(np.clip((trace - 1) / 2, -1, 1))
    return angle


def test_the_angle_of_a_rotation_of_space_has_the_density_of_haar() -> None:
    assert ks(rotation_cdf(rotation_angle(sample(3, 3)))) < ks_critical(COUNT)


@pytest.mark.parametrize("fault", ["no sign fix", "heavy tails", "one reflector"])
def test_the_test_of_rotation_angles_rejects_a_planted_fault(fault: str) -> None:
    assert ks(rotation_cdf(rotation_angle(faulty(fault, 3, 3)))) > ks_critical(COUNT)


def plane_excess(q: Array) -> float:
    """Return the worse distance of the first column's angle from uniform, for rotations and for reflections.

    Each distance is divided by its critical value, because the two halves differ in size.
    """
    angle = np.arctan2(q[:, 1, 0], q[:, 0, 0]) / (2 * math.pi) + 0.5
    turned = np.linalg.det(q) > 0
    return max(ks(angle[half]) / ks_critical(int(half.sum()), 2) for half in (turned, ~turned))


def test_rotations_and_reflections_of_the_plane_have_uniform_angles() -> None:
    assert plane_excess(sample(2, 2)) < 1


@pytest.mark.parametrize("fault", ["heavy tails", "one sign"])
def test_the_test_of_the_plane_rejects_a_planted_fault(fault: str) -> None:
    assert plane_excess(faulty(fault, 2, 2)) > 1


# ----------------------------------------------------------------------------------------
# orthogonal_: invariance
# ----------------------------------------------------------------------------------------


def fixed_rotations(n: int) -> list[Array]:
    """Return two rotations: one mixes all coordinates equally, the other mixes them at random."""
    level = np.eye(n) - 2.0 / n
    level[:, 0] *= -1
    mixed = stats.special_ortho_group.rvs(n, random_state=np.random.default_rng(9))
    return [level, np.asarray(mixed, np.float64)]


def rotated_ks(q: Array) -> float:
    """Return the greatest KS distance of an entry of A Q or Q A over the fixed rotations A."""
    rows, columns = q.shape[1:]
    left, right = fixed_rotations(rows), fixed_rotations(columns)
    return max(entries_ks(turned) for a, b in zip(left, right, strict=True) for turned in (a @ q, q @ b))


def rotated_critical(q: Array) -> float:
    return ks_critical(len(q), 4 * math.prod(q.shape[1:]))


@shaped
def test_a_fixed_rotation_from_either_side_changes_no_law(shape: tuple[int, int]) -> None:
    q = sample(*shape)
    assert rotated_ks(q) < rotated_critical(q)


@faulted
def test_the_test_of_invariance_rejects_a_planted_fault(shape: tuple[int, int], fault: str) -> None:
    q = faulty(fault, *shape)
    assert rotated_ks(q) > rotated_critical(q)


@shaped
def test_the_test_of_invariance_rejects_what_no_single_entry_shows(shape: tuple[int, int]) -> None:
    # All entries of the first row share one sign. Each entry by itself has the right law.
    q = faulty("one sign", *shape)
    assert entries_ks(q) < entries_critical(q)
    assert rotated_ks(q) > rotated_critical(q)


def consecutive_chi_square(q: Array) -> float:
    """Return the sum of squares of tr(P' Q) over consecutive matrices P, Q.

    If P and Q are independent and Haar, P' Q is Haar too, so the sum is nearly chi-square (see trace_scores).
    """
    t = np.einsum("kij,kij->k", q[::2], q[1::2])
    return float(np.square(t).sum())


def test_matrices_of_neighbouring_keys_are_independent() -> None:
    chi = stats.chi2(COUNT // 2)
    assert chi.ppf(ALARM / 2) < consecutive_chi_square(sample(9, 9)) < chi.isf(ALARM / 2)


def test_the_test_of_neighbouring_keys_rejects_matrices_in_pairs() -> None:
    assert consecutive_chi_square(faulty("paired keys", 9, 9)) > stats.chi2.isf(ALARM / 2, COUNT // 2)
