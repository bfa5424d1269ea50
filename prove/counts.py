"""Counts of the values of long fills: 65,536 counters for more values than fit in memory, shard by shard."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from paraminit_ext import Key, shard
from prove import checks, laws
from prove.checks import Scores
from prove.laws import CASES, Counts, Histogram, Law

KEY = Key(0x10_46_5A_3F_1E)


def count_part(name: str, dtype: torch.dtype, total: int, chunk: int, start: int) -> Counts:
    """Fill the shard that begins at `start`, and count its values by their high 16 bits."""
    part = shard(torch.empty(min(chunk, total - start), dtype=dtype), (total,), (start,))
    values = CASES[name].fill(part, KEY.fold_in(f"{name}, {dtype}"))
    words = values.element_size() // 2
    high = values.view(torch.int16).numpy().view(np.uint16)[words - 1 :: words]
    return np.bincount(high, minlength=65536)


def count(name: str, dtype: torch.dtype, total: int, chunk: int = 1 << 24) -> Counts:
    counts = np.zeros(65536, np.int64)
    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(partial(count_part, name, dtype, total, chunk), range(0, total, chunk)):
            counts += part
    return counts


def histogram(counts: Counts, law: Law, dtype: torch.dtype) -> Histogram:
    cells = law.cells(dtype) if dtype == torch.bfloat16 else laws.high_halves(law)
    return Histogram(law, cells, cells.counts(counts), law.error(dtype))


def of_counts(h: Histogram) -> Scores:
    """Run all checks of counts.

    Chi-square uses wide cells, because in narrow cells the allowance for rounding would hide any fault.
    """
    scores = checks.counted_kolmogorov(h) | checks.every_value(h, 2.0**-7) | checks.counted_moments(h)
    return scores | checks.counted_tails(h, (2.0**-8, 2.0**-14, 2.0**-20, 2.0**-26))
