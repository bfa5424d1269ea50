"""Statistical checks: functions that take data and return p-values by name.

A p-value is the probability, under the null hypothesis, of a statistic at least as extreme as the observed
one. Each docstring names the null distribution, and says whether it is exact, conservative (the probability
is at most the p-value) or asymptotic. The allowed difference between a fill and its ideal law (`Law.error`)
is subtracted first, so that rounding raises no alarm at any sample size. Two-sided p-values are twice the
smaller tail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import integrate, special, stats

from prove.laws import VALUE_ERROR, Array, Counts, Histogram, Moments, Sample, merged
from prove.raw_words import Words, reversed_bits

Scores = dict[str, float]

# A p-value below this is an alarm. The probability of a false alarm in a run is at most the number of its
# p-values times this (Bonferroni), however the p-values depend on each other.
ALARM = 1e-6
# The largest allowed value of that bound for one run.
FALSE_ALARM = 0.005


def two_sided(lower: float, upper: float) -> float:
    return min(1.0, 2 * min(float(lower), float(upper)))


def normal_score(z: float) -> float:
    return two_sided(special.ndtr(z), special.ndtr(-z))


def binomial_score(count: int, trials: int, p: float, error: float = 0.0) -> float:
    """Return the exact binomial p-value. If `error` bounds the error of p, the p-value is conservative."""
    lower = special.betainc(trials - count, count + 1, 1 - max(p - error, 0.0)) if count < trials else 1.0
    upper = special.betainc(count, trials - count + 1, min(p + error, 1.0)) if count > 0 else 1.0
    return two_sided(lower, upper)


def poisson_score(count: int, mean: float) -> float:
    return two_sided(special.gammaincc(count + 1, mean), special.gammainc(count, mean) if count > 0 else 1.0)


def distance_score(distance: float, n: int) -> float:
    """Return Kolmogorov's p-value of the greatest distance between n values and their law.

    `distance` is between the distribution functions. scipy computes the exact null distribution, or an
    expansion for large n that is more precise than needed, but neither for 2^32 values. There the asymptotic
    distribution is conservative, and close to the order of 1/sqrt(n).
    """
    if n > 2**28:
        return float(special.kolmogorov(math.sqrt(n) * max(distance, 0.0)))
    return float(stats.kstwo.sf(max(distance, 0.0), n))


def chi_square_score(statistic: float, degrees: float, offset: float = 0.0) -> float:
    """Return the chi-square p-value. Two-sided, because counts can also be too even.

    `offset` is the allowed noncentrality.
    """
    central = special.chdtrc(degrees, statistic)
    upper = stats.ncx2.sf(statistic, degrees, offset) if offset > 0 else central
    return two_sided(special.chdtr(degrees, statistic), upper)


def chi_square(counts: Counts, probabilities: Array | float, error: float = 0.0) -> float:
    """Return the p-value of Pearson's statistic: chi-square with one degree less than there are bins.

    Asymptotic, but close, because callers expect hundreds of values in each bin. `error` bounds the error of
    the distribution function at the ends of each bin. Within that error, the statistic is noncentral
    chi-square with noncentrality at most n sum (2 error)^2 / p. The upper tail uses this distribution.
    """
    n = int(counts.sum())
    p = np.broadcast_to(np.asarray(probabilities, np.float64), counts.shape)
    statistic = float((np.square(counts - n * p) / (n * p)).sum())
    return chi_square_score(statistic, len(counts) - 1, n * float((4 * error * error / p).sum()))


def no_smaller_than_chance(values: list[float]) -> float:
    """Check that p-values are below p with probability at most p, for all p: one-sided Kolmogorov."""
    return float(stats.ks_1samp(values, stats.uniform.cdf, alternative="greater").pvalue)


# ----------------------------------------------------------------------------------------
# One sample against its law
# ----------------------------------------------------------------------------------------


def kolmogorov(sample: Sample) -> Scores:
    """Check the greatest distance between the distribution functions, less the law's error. Conservative."""
    u, n = sample.sorted_u, sample.size
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - u).max(), (u - steps[:-1]).max())
    return {"kolmogorov": distance_score(distance - sample.error, n)}


def anderson_darling_sf(statistic: float) -> float:
    """Return the upper tail of the asymptotic law of A^2 (Anderson and Darling 1954, equation 4.4).

    The series alternates, and its terms are of the order of exp(z / 8). So the result is accurate to 1e-13 up
    to z = 20, where the tail is 4e-10. For greater statistics, return the tail at 20.
    """
    z = min(max(statistic, 0.02), 20.0)
    total = 0.0
    for j in range(40):
        rate = (4 * j + 1) ** 2 * math.pi**2 / (8 * z)
        if rate > 60:
            break

        def integrand(w: float, rate: float = rate) -> float:
            return math.exp(z / (8 * (w * w + 1)) - rate * (1 + w * w))

        total += (
            special.binom(-0.5, j) * (4 * j + 1) * integrate.quad(integrand, 0, math.inf, epsabs=1e-15)[0]
        )
    return float(min(1.0, 1.0 - math.sqrt(2 * math.pi) / z * total))


def anderson_darling(sample: Sample) -> Scores:
    """Check the mean squared distance, weighted by its inverse variance so that the tails count more.

    Asymptotic: the law of n values differs by O(1/n). sqrt(A^2 / n) is a norm of the difference between the
    two distribution functions. So an error of the law adds at most its own norm, whose square is below
    error^2 (2 ln(1 / error) + 2).
    """
    u, n = sample.sorted_u, sample.size
    # A value at an end of a grid represents the middle of the first or last half step.
    half = 2.0**-33 if sample.error else 2.0**-53
    u = np.clip(u, half, 1 - half)
    weights = 2 * np.arange(1, n + 1, dtype=np.float64) - 1
    statistic = -n - float(weights @ np.log(u * (1 - u[::-1]))) / n
    allowed = 0.0
    if sample.error:
        allowed = sample.error * math.sqrt(n * (2 * math.log(1 / sample.error) + 2))
    return {"anderson": anderson_darling_sf(max(math.sqrt(max(statistic, 0.0)) - allowed, 0.0) ** 2)}


def equiprobable(sample: Sample) -> Scores:
    """Check the counts in 1000 bins of equal probability (fewer for a small sample) with chi-square.

    The number of bins is not a power of two, because a coarse grid would fill such bins evenly.
    """
    bins = min(1000, sample.size // 64)
    counts = np.diff(
        np.searchsorted(sample.sorted_u, np.arange(1, bins) / bins), prepend=0, append=sample.size
    )
    return {"chi-square": chi_square(counts, 1 / bins, sample.error)}


def moment_scores(sums: Iterable[float], size: int, law: Moments, error: float) -> Scores:
    """Check moments 1 to 4 of standardised values, given the sums of their powers.

    The mean of y^k has exactly the mean m_k and the variance (m_2k - m_k^2) / n. It is asymptotically normal.
    The first term of the Cornish-Fisher expansion corrects for its skewness, which leaves an error of the
    order 1/n. Values with an error of up to `error` (1 + |y|) shift the mean by at most
    `error` E k |y|^(k-1) (1 + |y|). This shift is subtracted too.
    """
    scores = {}
    for k, total in enumerate(sums, 1):
        m1, m2, m3 = (law.power[j * k] for j in (1, 2, 3))
        deviation = math.sqrt((m2 - m1 * m1) / size)
        skewness = (m3 - 3 * m1 * m2 + 2 * m1**3) / (m2 - m1 * m1) ** 1.5 / math.sqrt(size)
        allowed = error * k * (law.absolute[k - 1] + law.absolute[k])
        excess = total / size - m1
        z = math.copysign(max(abs(excess) - allowed, 0.0), excess) / deviation
        scores[f"moment {k}"] = normal_score(z - skewness * (min(z * z, 49.0) - 1) / 6)
    return scores


def weighted_moments(y: Array, weights: Array, size: int, law: Moments, error: float) -> Scores:
    sums = []
    for _ in range(4):
        weights = weights * y
        sums.append(float(weights.sum()))
    return moment_scores(sums, size, law, VALUE_ERROR if error else 0.0)


def moments(sample: Sample) -> Scores:
    if sample.histogram is not None:
        return counted_moments(sample)
    return weighted_moments(sample.y, np.ones(1), sample.size, sample.law.moments, sample.error)


# Probabilities of the checked tails: extreme enough to show an excess or a lack of values, but with expected
# counts of 2^14, 2^8 and 8 in 2^22 values.
TAILS = (2.0**-8, 2.0**-14, 2.0**-19)


def tails(sample: Sample) -> Scores:
    """Check how many values lie in the lower and upper tails of the law. Exact binomial."""
    scores = {}
    for share in TAILS:
        low = int(np.searchsorted(sample.sorted_u, share, side="left"))
        high = sample.size - int(np.searchsorted(sample.sorted_u, 1 - share, side="right"))
        error = sample.law.tail_error(share, sample.error)
        scores[f"lowest {share:.0e}"] = binomial_score(low, sample.size, share, error)
        scores[f"highest {share:.0e}"] = binomial_score(high, sample.size, share, error)
    return scores


# ----------------------------------------------------------------------------------------
# Counts of every value, or of cells of values, against their exact probabilities
# ----------------------------------------------------------------------------------------


def counted(sample: Sample | Histogram) -> Histogram:
    histogram = sample.histogram if isinstance(sample, Sample) else sample
    assert histogram is not None, "expected a sample of a 16-bit dtype"
    return histogram


def counted_kolmogorov(sample: Sample | Histogram) -> Scores:
    """Check the greatest distance between the distribution functions at the ends of cells.

    Conservative: the distance is Kolmogorov's, but at some points only.
    """
    h = counted(sample)
    distance = float(np.abs(np.cumsum(h.counts) / h.size - h.cells.below[1:]).max())
    return {"kolmogorov of values": distance_score(distance - h.error, h.size)}


def every_value(sample: Sample | Histogram, least: float = 2.0**-13) -> Scores:
    """Check the counts of cells with chi-square. Neighbouring cells rarer than `least` are merged."""
    h = counted(sample)
    starts, probabilities = h.cells.merged(max(least, 256 / h.size))
    counts = np.add.reduceat(h.counts, starts)
    return {"chi-square of values": chi_square(counts, probabilities, h.error)}


def counted_moments(sample: Sample | Histogram) -> Scores:
    """Check the moments of the cells' values by their discrete law, see `moment_scores`."""
    h = counted(sample)
    return weighted_moments(h.cells.standard, h.counts.astype(np.float64), h.size, h.cells.moments, h.error)


def counted_tails(sample: Sample | Histogram, shares: Iterable[float] = TAILS) -> Scores:
    """Check how many values lie in the cells that are approximately the tails. Exact binomial."""
    h = counted(sample)
    scores = {}
    for share in shares:
        low = max(int(np.searchsorted(h.cells.below, share)), 1)
        high = min(int(np.searchsorted(h.cells.below, 1 - share)), len(h.counts) - 1)
        for name, part in (("lowest", slice(0, low)), ("highest", slice(high, None))):
            p = float(h.cells.probabilities[part].sum())
            count, error = int(h.counts[part].sum()), h.law.tail_error(p, h.error)
            scores[f"{name} {share:.0e}"] = binomial_score(count, h.size, p, error)
    return scores


def marginal(sample: Sample) -> Scores:
    """Run all checks of one sample against its law."""
    scores = moments(sample)
    for check in (kolmogorov, anderson_darling, equiprobable, tails):
        scores |= check(sample)
    if sample.histogram is not None:
        scores |= counted_kolmogorov(sample) | every_value(sample)
    return scores


def two_samples(first: Sample, second: Sample) -> Scores:
    """Check the greatest distance between two samples at 2^16 points, or at every value of a 16-bit dtype.

    Asymptotically, samples of N and M values differ as one sample of N M / (N + M) values differs from its
    law. Comparing at some points only is conservative. The law only spaces the points: the check does not
    assume that the samples follow it.
    """
    if first.histogram is not None and second.histogram is not None:
        functions = [np.cumsum(s.counts) / s.size for s in (first.histogram, second.histogram)]
    else:
        codes = [np.minimum(s.u * 65536, 65535).astype(np.int64) for s in (first, second)]
        functions = [np.cumsum(np.bincount(c, minlength=65536)) / len(c) for c in codes]
    distance = float(np.abs(functions[0] - functions[1]).max())
    size = first.size * second.size // (first.size + second.size)
    return {"two samples": distance_score(distance - first.error, size)}


# ----------------------------------------------------------------------------------------
# Dependence within one sample
# ----------------------------------------------------------------------------------------


def lagged(scores: Scores, name: str, earlier: Array, later: Array, lags: Iterable[int]) -> None:
    """Add the p-value of the correlation between `earlier` and `later` at each lag."""
    for lag in lags:
        total = float(earlier[:-lag] @ later[lag:])
        scores[f"{name} at {lag}"] = normal_score(total / math.sqrt(len(earlier) - lag))


def serial(sample: Sample, lags: Iterable[int] = range(1, 65)) -> Scores:
    """Check the correlations of values, of their squares, and of values with squares, at each lag.

    For y standardised by the law, sum y_i y_(i+k) has exactly mean 0 and variance n - k, because its terms
    are uncorrelated. It is asymptotically normal. The square of the law's error is far below 1/sqrt(n).
    """
    y = sample.y
    third, fourth = sample.law.moments.power[3:5]
    # y^2 - 1 minus its projection on y: uncorrelated with y, so that each call below checks something new.
    squares = (np.square(y) - 1 - third * y) / math.sqrt(fourth - 1 - third**2)
    scores: Scores = {}
    lags = list(lags)
    lagged(scores, "values", y, y, lags)
    lagged(scores, "squares", squares, squares, lags)
    lagged(scores, "values before squares", y, squares, lags[:8])
    lagged(scores, "squares before values", squares, y, lags[:8])
    return scores


def joint(columns: list[Array], bins: int, error: float) -> float:
    """Return the chi-square p-value of the counts of independent uniform columns in a cube of equal cells."""
    code = np.zeros(len(columns[0]), np.int64)
    for u in columns:
        code = code * bins + np.minimum(u * bins, bins - 1).astype(np.int64)
    cells = bins ** len(columns)
    # In each of d dimensions a cell's width is off by up to 2 `error`, times 1/bins^(d-1) for the others.
    slack = error * len(columns) / bins ** (len(columns) - 1)
    return chi_square(np.bincount(code, minlength=cells), 1 / cells, slack)


def tuples(sample: Sample) -> Scores:
    """Check adjacent pairs and triples, and pairs and triples of lanes in a group of four, with chi-square.

    No value is in two tuples of the same count, so that Pearson's statistic has its law. (Lane 3 precedes
    lane 0 of the next group, so each pair of lanes is also a lag.)
    """
    u = sample.u[: sample.size // 12 * 12]
    narrow, wide = (16, 32) if sample.size >= 2**20 else (4, 8)
    pairs, triples, groups = u.reshape(-1, 2), u.reshape(-1, 3), u.reshape(-1, 4)
    scores = {
        "pairs": joint([pairs[:, 0], pairs[:, 1]], wide, sample.error),
        "pairs across": joint([pairs[:-1, 1], pairs[1:, 0]], wide, sample.error),
        "triples": joint([triples[:, 0], triples[:, 1], triples[:, 2]], narrow, sample.error),
    }
    for lanes in (*itertools.combinations(range(4), 2), *itertools.combinations(range(4), 3)):
        name = "lanes " + " ".join(map(str, lanes))
        bins = wide if len(lanes) == 2 else narrow
        scores[name] = joint([groups[:, lane] for lane in lanes], bins, sample.error)
    for lane in range(4):
        scores[f"lane {lane}, next group"] = joint(
            [groups[:-1:2, lane], groups[1::2, lane]], wide, sample.error
        )
    return scores


def lines(matrix: Array, name: str) -> Scores:
    """Check the rows of a matrix of independent standard normals: their sums, lengths and angles.

    The sum of the squared row sums is exactly chi-square, after scaling. The squared lengths are chi-square;
    their scatter has exactly the mean and variance used here, and is asymptotically normal. The squared
    cosine of two rows of c elements is exactly Beta(1/2, (c - 1)/2). The p-value of the greatest one is at
    most that of one pair times the number of pairs. Cosines of different pairs are uncorrelated, and so are
    their squares. So their sums over neighbours, and over all pairs, have exactly the means and variances
    used here, and are asymptotically normal.
    """
    rows, columns = matrix.shape
    sums, lengths = matrix.sum(1), np.square(matrix).sum(1)
    unit = (matrix / np.sqrt(lengths)[:, None]).astype(np.float32)
    gram = unit @ unit.T
    upper = np.triu_indices(rows, 1)
    cosines = gram[upper].astype(np.float64)
    # The matrix products of some libraries round the cosine of two equal rows to slightly more than 1.
    sine_squared = max(0.0, 1 - float(np.square(cosines).max()))
    nearest = float(special.betainc((columns - 1) / 2, 0.5, sine_squared))
    squares = float(np.square(cosines).sum())
    deviation = math.sqrt(len(cosines) * 2 * (columns - 1) / (columns**2 * (columns + 2)))
    scatter = float(np.square(lengths - columns).sum()) / (2 * columns)
    neighbours = float(gram.diagonal(1).astype(np.float64).sum())
    return {
        f"sums of {name}": chi_square_score(float(np.square(sums).sum()) / columns, rows),
        f"lengths of {name}": normal_score((scatter - rows) / math.sqrt(rows * (2 + 12 / columns))),
        f"nearest {name}": min(1.0, len(cosines) * nearest),
        f"angles between {name}": normal_score((squares - len(cosines) / columns) / deviation),
        f"neighbouring {name}": normal_score(neighbours * math.sqrt(columns / (rows - 1))),
    }


def rows_and_columns(matrix: Array) -> Scores:
    return lines(matrix, "rows") | lines(np.ascontiguousarray(matrix.T), "columns")


# ----------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------


def bits_of_words(words: Words) -> Scores:
    """Check with chi-square that bits are fair, bytes of each lane uniform, the ones of a word binomial."""
    groups = words.reshape(-1, 4)
    n = len(groups)
    ones = np.array([((groups >> np.uint32(bit)) & np.uint32(1)).sum(0) for bit in range(32)], np.float64)
    scores = {"bits": chi_square_score(float(np.square(2 * ones - n).sum()) / n, 128)}
    octets = groups.view(np.uint8).reshape(n, 16)
    for place in range(16):
        counts = np.bincount(octets[:, place], minlength=256)
        scores[f"byte {place}"] = chi_square(counts, 1 / 256)
    weights = np.bincount(np.bitwise_count(words), minlength=33)
    law = stats.binom.pmf(np.arange(33), 32, 0.5)
    starts = merged(law, 256 / len(words))
    scores["ones in a word"] = chi_square(np.add.reduceat(weights, starts), np.add.reduceat(law, starts))
    return scores


def differing_bits(first: Words, second: Words) -> float:
    """Check how many bits differ. Exact binomial, also for a stream and the same stream some words later."""
    return binomial_score(int(np.bitwise_count(first ^ second).sum()), 32 * len(first), 0.5)


def later_words(words: Words) -> Scores:
    return {f"bits at {lag}": differing_bits(words[:-lag], words[lag:]) for lag in range(1, 65)}


def repeated(names: npt.NDArray[np.uint64], bits: int = 64) -> float:
    """Check how many values, uniform on 2^bits, repeat earlier ones: Poisson with mean n^2 / 2^(bits + 1).

    If the mean is far below 1, the upper tail is conservative, because the probability of any repetition is
    at most the mean. Otherwise the law is asymptotic, and close if n^3 / 2^(2 bits) is small.
    """
    n = len(names)
    return poisson_score(n - len(np.unique(names)), n * (n - 1) / 2.0 ** (bits + 1))


def groups_of_words(words: Words) -> Scores:
    """Check that no group of four words repeats, by its first two words and by its last two words."""
    halves = words.view(np.uint64).reshape(-1, 2)
    return {f"{half} halves of groups": repeated(halves[:, i]) for i, half in enumerate(("first", "second"))}


def birthday_spacings(words: Words) -> Scores:
    """Check the equal gaps between 2^12 birthdays in a year of 2^32 days: Poisson, mean 4 (Marsaglia 1985).

    The counts of 16 years are added. Their sum is Poisson too in this range (L'Ecuyer and Simard 2001: N n^3
    at most k^(5/4)). Words with reversed bits are also checked, because there the low bits decide.
    """
    scores = {}
    for lane in range(4):
        years = words.reshape(-1, 4)[: 2**16, lane].reshape(16, -1)
        for name, days in (("words", years), ("reversed words", reversed_bits(years))):
            gaps = np.sort(np.diff(np.sort(days, axis=1), axis=1), axis=1)
            equal = int((gaps[:, 1:] == gaps[:, :-1]).sum())
            scores[f"birthdays of {name}, lane {lane}"] = poisson_score(equal, 16 * 4096.0**3 / 2.0**34)
    return scores


def of_words(words: Words) -> Scores:
    """Run all checks of raw words."""
    return bits_of_words(words) | later_words(words) | groups_of_words(words) | birthday_spacings(words)
