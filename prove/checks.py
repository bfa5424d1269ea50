"""Statistics, each with the law that it has under its claim: functions from data to p-values by name.

A p-value here is the chance, under the claim, of what was seen or worse. Each function says which law that
is, and whether it is exact, on the safe side (the chance is at most what is said) or a limit. What a fill of
32-bit words may differ from its ideal law (`Law.error`) is taken off first, so that no size of sample turns a
rounding into an alarm. Two-sided p-values are twice the smaller side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import integrate, special, stats

from prove.laws import VALUE_ERROR, Array, Counts, Histogram, Moments, Sample, merged
from prove.words import Words, reversed_bits

Scores = dict[str, float]

# The chance that one p-value raises an alarm though its claim holds. What is certain about a whole run is the
# number of its p-values times this (Bonferroni), whatever the dependence between them.
ALARM = 1e-6
# What that may come to in a run.
FALSE_ALARM = 0.005


def two_sided(lower: float, upper: float) -> float:
    return min(1.0, 2 * min(float(lower), float(upper)))


def normal_score(z: float) -> float:
    return two_sided(special.ndtr(z), special.ndtr(-z))


def binomial_score(count: int, trials: int, p: float, error: float = 0.0) -> float:
    """Exact. With an error of p, on the safe side: the tails are monotone in p."""
    lower = special.betainc(trials - count, count + 1, 1 - max(p - error, 0.0)) if count < trials else 1.0
    upper = special.betainc(count, trials - count + 1, min(p + error, 1.0)) if count > 0 else 1.0
    return two_sided(lower, upper)


def poisson_score(count: int, mean: float) -> float:
    return two_sided(special.gammaincc(count + 1, mean), special.gammainc(count, mean) if count > 0 else 1.0)


def distance_score(distance: float, n: int) -> float:
    """Of the greatest distance between the distribution functions of n values and of their law: Kolmogorov's.

    The exact law, or its expansion for great n to far beyond what is needed. scipy has neither for 2^32
    values; the limit law is on the safe side of it there, and as near as 1/sqrt(n).
    """
    if n > 2**28:
        return float(special.kolmogorov(math.sqrt(n) * max(distance, 0.0)))
    return float(stats.kstwo.sf(max(distance, 0.0), n))


def chi_square_score(statistic: float, degrees: float, offset: float = 0.0) -> float:
    """Counts that are too even are no chance either. `offset` is the noncentrality that is allowed."""
    central = special.chdtrc(degrees, statistic)
    upper = stats.ncx2.sf(statistic, degrees, offset) if offset > 0 else central
    return two_sided(special.chdtr(degrees, statistic), upper)


def chi_square(counts: Counts, probabilities: Array | float, error: float = 0.0) -> float:
    """Pearson's statistic of counts, against chi-square of one degree less.

    A limit, and a close one: the callers expect hundreds of values in each bin. `error` bounds the error of
    the distribution function at each bin's ends. A true law that near turns chi-square into a noncentral one,
    of at most n sum (2 error)^2 / p, and that law, the greater one, gives the p-value.
    """
    n = int(counts.sum())
    p = np.broadcast_to(np.asarray(probabilities, np.float64), counts.shape)
    statistic = float((np.square(counts - n * p) / (n * p)).sum())
    return chi_square_score(statistic, len(counts) - 1, n * float((4 * error * error / p).sum()))


def no_smaller_than_chance(values: list[float]) -> float:
    """Of p-values: below p no more often than p, by the greatest excess of their distribution function."""
    return float(stats.ks_1samp(values, stats.uniform.cdf, alternative="greater").pvalue)


# ----------------------------------------------------------------------------------------
# One sample against its law
# ----------------------------------------------------------------------------------------


def kolmogorov(sample: Sample) -> Scores:
    """The greatest distance between the distribution functions, less the law's error: on the safe side."""
    u, n = sample.sorted_u, sample.size
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - u).max(), (u - steps[:-1]).max())
    return {"kolmogorov": distance_score(distance - sample.error, n)}


def anderson_darling_sf(statistic: float) -> float:
    """The upper tail of the limit law of A^2 (Anderson and Darling 1954, equation 4.4).

    Its series alternates: the terms are of the size of exp(z / 8), so that it is good to 1e-13 up to z = 20,
    where the tail is 4e-10. Beyond, that stands for what is smaller.
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
    """The mean square distance, weighted by the inverse of its variance: more of it is tails.

    The limit law, which differs from that of n values by O(1/n). sqrt(A^2 / n) is a distance between the two
    functions, so an error of the law adds at most its own length, whose square is below
    error^2 (2 ln(1 / error) + 2).
    """
    u, n = sample.sorted_u, sample.size
    # A value at an end of a grid stands for the middle of its first or last half step.
    half = 2.0**-33 if sample.error else 2.0**-53
    u = np.clip(u, half, 1 - half)
    weights = 2 * np.arange(1, n + 1, dtype=np.float64) - 1
    statistic = -n - float(weights @ np.log(u * (1 - u[::-1]))) / n
    allowed = 0.0
    if sample.error:
        allowed = sample.error * math.sqrt(n * (2 * math.log(1 / sample.error) + 2))
    return {"anderson": anderson_darling_sf(max(math.sqrt(max(statistic, 0.0)) - allowed, 0.0) ** 2)}


def equiprobable(sample: Sample) -> Scores:
    """Counts in 1000 bins of equal probability (fewer in a small sample): chi-square.

    Not a power of two, which a coarse grid would fill evenly.
    """
    bins = min(1000, sample.size // 64)
    counts = np.diff(
        np.searchsorted(sample.sorted_u, np.arange(1, bins) / bins), prepend=0, append=sample.size
    )
    return {"chi-square": chi_square(counts, 1 / bins, sample.error)}


def moment_scores(sums: Iterable[float], size: int, law: Moments, error: float) -> Scores:
    """Moments 1 to 4 of standardised values, from sums of their powers.

    The mean of y^k has exactly the mean m_k and the variance (m_2k - m_k^2) / n. It is normal in the limit;
    its skewness at this n is taken off by the first term of Cornish and Fisher's expansion, so that what is
    left is of the order 1/n. Values that are off by `error` (1 + |y|) move it by at most that times E k
    |y|^(k-1) (1 + |y|), which is taken off too.
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


# Far enough for a heap or a lack to show, near enough to expect some: at 2^22 values 2^14, 2^8 and 8 of them.
TAILS = (2.0**-8, 2.0**-14, 2.0**-19)


def tails(sample: Sample) -> Scores:
    """How many values lie in the lowest and in the highest share of the law: binomial, exactly."""
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
    assert histogram is not None, "a sample of a 16-bit dtype is counted, others are not"
    return histogram


def counted_kolmogorov(sample: Sample | Histogram) -> Scores:
    """The greatest distance between the distribution functions at the ends of cells.

    On the safe side: it is the greatest distance of a uniform sample at some places only.
    """
    h = counted(sample)
    distance = float(np.abs(np.cumsum(h.counts) / h.size - h.cells.below[1:]).max())
    return {"kolmogorov of values": distance_score(distance - h.error, h.size)}


def every_value(sample: Sample | Histogram, least: float = 2.0**-13) -> Scores:
    """Pearson's statistic of the counts; neighbours that are rarer than `least` are taken together."""
    h = counted(sample)
    starts, probabilities = h.cells.merged(max(least, 256 / h.size))
    counts = np.add.reduceat(h.counts, starts)
    return {"chi-square of values": chi_square(counts, probabilities, h.error)}


def counted_moments(sample: Sample | Histogram) -> Scores:
    """Moments of the values that stand for the cells, by the law that they have: see `moment_scores`."""
    h = counted(sample)
    return weighted_moments(h.cells.standard, h.counts.astype(np.float64), h.size, h.cells.moments, h.error)


def counted_tails(sample: Sample | Histogram, shares: Iterable[float] = TAILS) -> Scores:
    """How many values lie in the cells of the lowest and of the highest share, about: binomial, exactly."""
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
    """All of one sample's checks against its law."""
    scores = moments(sample)
    for check in (kolmogorov, anderson_darling, equiprobable, tails):
        scores |= check(sample)
    if sample.histogram is not None:
        scores |= counted_kolmogorov(sample) | every_value(sample)
    return scores


def two_samples(one: Sample, other: Sample) -> Scores:
    """The greatest distance between two samples, at 2^16 places or at every value of a 16-bit dtype.

    Two samples of N and M differ as one of N M / (N + M) differs from its law, in the limit; fewer places are
    on the safe side, and the law that spaces them enters no claim.
    """
    if one.histogram is not None and other.histogram is not None:
        functions = [np.cumsum(s.counts) / s.size for s in (one.histogram, other.histogram)]
    else:
        codes = [np.minimum(s.u * 65536, 65535).astype(np.int64) for s in (one, other)]
        functions = [np.cumsum(np.bincount(c, minlength=65536)) / len(c) for c in codes]
    distance = float(np.abs(functions[0] - functions[1]).max())
    size = one.size * other.size // (one.size + other.size)
    return {"two samples": distance_score(distance - one.error, size)}


# ----------------------------------------------------------------------------------------
# Dependence within one sample
# ----------------------------------------------------------------------------------------


def lagged(scores: Scores, name: str, one: Array, other: Array, lags: Iterable[int]) -> None:
    for lag in lags:
        total = float(one[:-lag] @ other[lag:])
        scores[f"{name} at {lag}"] = normal_score(total / math.sqrt(len(one) - lag))


def serial(sample: Sample, lags: Iterable[int] = range(1, 65)) -> Scores:
    """Correlations between values, between their squares, and of values with squares, at each lag.

    With y standardised by the law, sum y_i y_(i+k) has mean 0 and variance n - k exactly: its terms are
    uncorrelated. Normal in the limit. The error of the law squared is far below 1/sqrt(n).
    """
    y = sample.y
    third, fourth = sample.law.moments.power[3:5]
    # y^2 - 1 less its part along y: uncorrelated with y, so that each line below asks something of its own.
    size = (np.square(y) - 1 - third * y) / math.sqrt(fourth - 1 - third**2)
    scores: Scores = {}
    lags = list(lags)
    lagged(scores, "values", y, y, lags)
    lagged(scores, "squares", size, size, lags)
    lagged(scores, "values before squares", y, size, lags[:8])
    lagged(scores, "squares before values", size, y, lags[:8])
    return scores


def joint(columns: list[Array], bins: int, error: float) -> float:
    """Counts in a cube of equal cells, of columns that are said to be uniform and independent: chi-square."""
    code = np.zeros(len(columns[0]), np.int64)
    for u in columns:
        code = code * bins + np.minimum(u * bins, bins - 1).astype(np.int64)
    cells = bins ** len(columns)
    # Each side of a cell is off by up to 2 errors, in the share 1/bins^(d-1) of the others.
    slack = error * len(columns) / bins ** (len(columns) - 1)
    return chi_square(np.bincount(code, minlength=cells), 1 / cells, slack)


def tuples(sample: Sample) -> Scores:
    """Adjacent pairs and triples, and pairs and triples of lanes in a group of four: chi-square.

    No value is in two tuples of one count, so that Pearson's statistic has its law. (Lane 3 stands before
    lane 0 of the next group, so each pair of lanes is a lag as well.)
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
    """Rows of a matrix of independent standard normals, as vectors: sums, lengths, and angles between them.

    The squares of the sums add up to a chi-square, exactly. The squared lengths are chi-square themselves;
    their scatter has the mean and the variance used here exactly and is normal in the limit. The cosine of
    two rows has a square of law Beta(1/2, (c - 1)/2), exactly; the greatest of all has at most its chance
    times the number of pairs. Cosines of different pairs are uncorrelated, and so are their squares: the sums
    over neighbours, and over all pairs, have the means and variances used here exactly and are normal in the
    limit.
    """
    rows, columns = matrix.shape
    sums, lengths = matrix.sum(1), np.square(matrix).sum(1)
    unit = (matrix / np.sqrt(lengths)[:, None]).astype(np.float32)
    gram = unit @ unit.T
    upper = np.triu_indices(rows, 1)
    cosines = gram[upper].astype(np.float64)
    # Rounding takes the cosine of two equal rows a little beyond 1 with some libraries' products.
    apart = max(0.0, 1 - float(np.square(cosines).max()))
    farthest = float(special.betainc((columns - 1) / 2, 0.5, apart))
    squares = float(np.square(cosines).sum())
    deviation = math.sqrt(len(cosines) * 2 * (columns - 1) / (columns**2 * (columns + 2)))
    scatter = float(np.square(lengths - columns).sum()) / (2 * columns)
    neighbours = float(gram.diagonal(1).astype(np.float64).sum())
    return {
        f"sums of {name}": chi_square_score(float(np.square(sums).sum()) / columns, rows),
        f"lengths of {name}": normal_score((scatter - rows) / math.sqrt(rows * (2 + 12 / columns))),
        f"nearest {name}": min(1.0, len(cosines) * farthest),
        f"angles between {name}": normal_score((squares - len(cosines) / columns) / deviation),
        f"neighbouring {name}": normal_score(neighbours * math.sqrt(columns / (rows - 1))),
    }


def rows_and_columns(matrix: Array) -> Scores:
    return lines(matrix, "rows") | lines(np.ascontiguousarray(matrix.T), "columns")


# ----------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------


def bits_of_words(words: Words) -> Scores:
    """Each bit is fair, each byte of each lane even, the number of ones binomial: exact, and chi-square."""
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


def differing_bits(one: Words, other: Words) -> float:
    """How many bits differ: binomial, exactly, also of a stream against itself some words later."""
    return binomial_score(int(np.bitwise_count(one ^ other).sum()), 32 * len(one), 0.5)


def later_words(words: Words) -> Scores:
    return {f"bits at {lag}": differing_bits(words[:-lag], words[lag:]) for lag in range(1, 65)}


def repeated(names: npt.NDArray[np.uint64], bits: int = 64) -> float:
    """How many of values that are uniform on 2^bits are not new: Poisson, of mean n^2 / 2^(bits + 1).

    On the safe side above where that mean is far below 1 (the chance of any is at most the mean), and a limit
    elsewhere, where n^3 / 2^(2 bits) is small.
    """
    n = len(names)
    return poisson_score(n - len(np.unique(names)), n * (n - 1) / 2.0 ** (bits + 1))


def groups_of_words(words: Words) -> Scores:
    """No group of four words comes again: of its first two and of its last two words."""
    halves = words.view(np.uint64).reshape(-1, 2)
    return {f"{half} halves of groups": repeated(halves[:, i]) for i, half in enumerate(("first", "second"))}


def birthday_spacings(words: Words) -> Scores:
    """Equal gaps between 2^12 birthdays in a year of 2^32 days: Poisson of mean 4 (Marsaglia 1985).

    Of 16 years together, within the range in which the sum is Poisson too (L'Ecuyer and Simard 2001: N n^3 at
    most k^(5/4)). Of the words, and of their bits in reverse order, where the low bits decide.
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
    """All checks of raw words."""
    return bits_of_words(words) | later_words(words) | groups_of_words(words) | birthday_spacings(words)
