"""``python -m paraminit_ext verify``: check on this machine that the build writes the correct values.

The command checks known answers, golden values, every instruction set, the GPU on request, and a short set of
statistical tests. It needs only torch. Keys are fixed, so that every run on a build gives the same result.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import paraminit_ext
from paraminit_ext import _C, draws, init
from paraminit_ext.geometry import Shard, shard
from paraminit_ext.key import Key

_GOLDEN = Path(__file__).with_name("golden.json")
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_KEY = Key(0x243F6A8885A308D3, 2**64 - 20_000)  # counters wrap inside a fill of 2^17 elements


@dataclass(frozen=True)
class Check:
    """One line of the table: the name of the check, its finding, and whether the finding is right."""

    name: str
    found: str
    right: bool


# --- equality ---------------------------------------------------------------------------------


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of the values in logical order, on the CPU. Their equality distinguishes -0 from +0."""
    real = _real(tensor).cpu().contiguous()
    return real.view(_INTEGERS[real.element_size()])


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(_bits(a), _bits(b))


def _sha256(tensor: Tensor) -> str:
    bits = _bits(tensor)
    return hashlib.sha256(ctypes.string_at(bits.data_ptr(), bits.numel() * bits.element_size())).hexdigest()


def _summarise(name: str, wrong: Sequence[str], total: int, what: str) -> Check:
    """Return the line for `total` comparisons, of which those named in `wrong` failed."""
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return Check(name, f"{len(wrong)} of {total} {what} differ: {wrong[0]}{more}", False)
    return Check(name, f"{total} {what}", True)


# --- known answers and golden values ----------------------------------------------------------

# The known answers of Random123 for Philox4x32-10: counter, key, words.
_KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def _known_answers() -> Check:
    wrong = []
    for counter, key, words in _KNOWN_ANSWERS:
        c, k, w = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
        if list(_C.philox((c[0], c[1], c[2], c[3]), (k[0], k[1]))) != w:
            wrong.append(f"counter {counter}")
    return _summarise("known answers of Random123", wrong, len(_KNOWN_ANSWERS), "answers")


def _golden_keys(golden: dict[str, Any]) -> Check:
    wrong = []
    for entry in golden["keys"]:
        made = getattr(Key(*entry["of"]), entry["call"])(*entry["arguments"])
        if [[k.seed, k.offset] for k in ([made] if isinstance(made, Key) else made)] != entry["gives"]:
            wrong.append(f"{entry['call']}({entry['arguments'][0]!r}) of Key{tuple(entry['of'])}")
    for entry in golden["generators"]:
        drawn = draws.draw(torch.Generator().manual_seed(entry["seed"]))
        if [n % 2**64 for n in drawn] != entry["gives"]:
            wrong.append(f"a CPU generator of seed {entry['seed']}")
    return _summarise("golden keys", wrong, len(golden["keys"]) + len(golden["generators"]), "keys")


def _golden_fills(golden: dict[str, Any], device: str, name: str) -> Check:
    wrong, total = [], 0
    for entry in golden["fills"]:
        for dtype, hashes in entry["sha256"].items():
            for shape, expected in hashes.items():
                sizes = [int(n) for n in shape.split("x")]
                tensor = torch.empty(sizes, dtype=getattr(torch, dtype), device=device)
                getattr(init, entry["function"])(tensor, *entry["arguments"], generator=Key(*golden["key"]))
                total += 1
                if _sha256(tensor) != expected:
                    arguments = ", ".join(map(str, entry["arguments"]))
                    wrong.append(f"{entry['function']}({arguments}) in {dtype}, shape {shape}")
    return _summarise(name, wrong, total, "tensors")


# --- equal values on every instruction set, thread count, layout, shard and device ------------

Fill = Callable[[Tensor | Shard, Key], Tensor]
_FILLS: dict[str, Fill] = {
    "uniform": lambda t, k: init.uniform_(t, -0.3, 0.55, generator=k),
    "normal": lambda t, k: init.normal_(t, 0.5, 2.0, generator=k),
    "trunc_normal, interior": lambda t, k: init.trunc_normal_(t, generator=k),
    "trunc_normal, two-sided": lambda t, k: init.trunc_normal_(t, 0.1, 1.0, -3.0, 4.0, generator=k),
    "trunc_normal, one-sided": lambda t, k: init.trunc_normal_(t, 0.0, 1.0, 1.75, math.inf, generator=k),
}


def _fills(dtypes: Sequence[torch.dtype] = _DTYPES) -> Iterator[tuple[str, Fill, torch.dtype]]:
    for name, fill in _FILLS.items():
        for dtype in dtypes:
            yield f"{name}, {str(dtype)[6:]}", fill, dtype


def _instruction_sets_agree(numel: int) -> Check:
    names = paraminit_ext.available_cpu_capabilities()
    wrong, total, previous = [], 0, paraminit_ext.cpu_capability()
    try:
        for name, fill, dtype in _fills():
            values = []
            for capability in names:
                paraminit_ext.set_cpu_capability(capability)
                values.append(fill(torch.empty(numel, dtype=dtype), _KEY))
            total += 1
            wrong += [
                f"{name} on {n}" for n, v in zip(names, values, strict=True) if not _same(v, values[-1])
            ]
    finally:
        paraminit_ext.set_cpu_capability(previous)
    return _summarise(f"instruction sets agree: {', '.join(names)}", wrong, total, f"fills of {numel}")


def _threads_agree(numel: int) -> Check:
    wrong, total, previous = [], 0, torch.get_num_threads()
    try:
        for name, fill, dtype in _fills():
            values = []
            for threads in (1, previous, previous + 1):
                torch.set_num_threads(threads)
                values.append(fill(torch.empty(numel, dtype=dtype), _KEY))
            total += 1
            if not all(_same(values[0], other) for other in values[1:]):
                wrong.append(name)
    finally:
        torch.set_num_threads(previous)
    return _summarise(f"1, {previous} and {previous + 1} threads agree", wrong, total, f"fills of {numel}")


def _layouts_and_shards_agree(device: str) -> Check:
    wrong, total = [], 0
    for name, fill, dtype in _fills():
        whole = fill(torch.empty(331, 257, dtype=dtype, device=device), _KEY)
        transposed = fill(torch.empty(257, 331, dtype=dtype, device=device).t(), _KEY)
        part = torch.empty(100, 77, dtype=dtype, device=device)
        fill(shard(part, (331, 257), (13, 129)), _KEY)
        total += 2
        if not _same(transposed, whole):
            wrong.append(f"{name}, transposed")
        if not _same(part, whole[13:113, 129:206]):
            wrong.append(f"{name}, shard")
    return _summarise("a transposed matrix and a shard match the whole", wrong, total, "tensors")


def _narrow_is_wide_rounded(numel: int, device: str) -> Check:
    wrong, total = [], 0
    fills: dict[str, Fill] = {
        "uniform": lambda t, k: init.uniform_(t, -0.25, 0.5, generator=k),
        "normal": _FILLS["normal"],
    }
    for name, fill in fills.items():
        wide = fill(torch.empty(numel, device=device), _KEY)
        for dtype in (torch.float16, torch.bfloat16):
            total += 1
            narrow, rounded = fill(torch.empty(numel, dtype=dtype, device=device), _KEY), wide.to(dtype)
            # A uniform value that would round to the upper bound becomes the largest value below the bound.
            inside = rounded != 0.5 if name == "uniform" else torch.ones_like(rounded, dtype=torch.bool)
            if not _same(narrow[inside], rounded[inside]):
                wrong.append(f"{name}, {str(dtype)[6:]}")
    return _summarise("16-bit values are float32 values, rounded once", wrong, total, f"fills of {numel}")


def _cuda_is_the_cpus(numel: int) -> Check:
    wrong, total = [], 0
    for name, fill, dtype in _fills():
        total += 1
        if not _same(
            fill(torch.empty(numel, dtype=dtype, device="cuda"), _KEY),
            fill(torch.empty(numel, dtype=dtype), _KEY),
        ):
            wrong.append(name)
    return _summarise("CUDA writes the CPU's bits", wrong, total, f"fills of {numel}")


# --- statistics -------------------------------------------------------------------------------

# The probability that a correct build fails the whole set of tests, divided equally among the tests.
ALARM = 1e-6


def chi_square_tail(x: float, degrees: int) -> float:
    """Return the probability that a chi-square variable with ``degrees`` degrees of freedom exceeds ``x``.

    This is the regularised upper incomplete gamma function.
    """
    a, x = degrees / 2.0, x / 2.0
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1.0 / a
        n = 0
        while term > total * 1e-17:
            n += 1
            term *= x / (a + n)
            total += term
        return max(0.0, 1.0 - scale * total)
    # Lentz's continued fraction.
    b = x + 1.0 - a
    c, d = 1e300, 1.0 / b
    h = d
    for n in range(1, 100_000):
        step = -n * (n - a)
        b += 2.0
        d = 1.0 / (step * d + b)
        c = b + step / c
        h *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return scale * h


def binomial_tails(count: int, n: int, p: float) -> float:
    """Return the two-sided p-value of ``count`` under a binomial distribution.

    This is twice the smaller of the probabilities of at most and of at least ``count``, clamped to 1.
    """

    def probability(k: int) -> float:
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))

    # Terms decrease away from the mean, so sum the tail on the side of `count` until they are negligible.
    step = 1 if count > n * p else -1
    total, k = 0.0, count
    while 0 <= k <= n:
        term = probability(k)
        total += term
        if term <= total * 1e-17:
            break
        k += step
    return min(1.0, 2.0 * total)


def normal_tails(z: float) -> float:
    """Return the probability that a standard normal variable is at least as far from 0 as ``z``."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def _uniformity(u: Tensor) -> dict[str, float]:
    """Return p-values of a sample that has been transformed to the uniform law on [0, 1)."""
    n = u.numel()
    bins, side = 1024, 32
    cells = (u * bins).long().clamp_(0, bins - 1)
    counts = torch.bincount(cells, minlength=bins).double()
    chi = float(((counts - n / bins) ** 2).sum()) / (n / bins)
    p = {f"chi-square, {bins} bins": chi_square_tail(chi, bins - 1)}
    # Massart (1990): for every n, the distribution functions differ by more than d with probability at most
    # 2 exp(-2 n d^2).
    ordered = u.sort().values
    steps = torch.arange(n, dtype=torch.float64, device=u.device)
    distance = max(float((ordered - steps / n).max()), float(((steps + 1) / n - ordered).max()))
    p["Kolmogorov-Smirnov"] = min(1.0, 2.0 * math.exp(-2.0 * n * distance * distance))
    p["mean"] = normal_tails(float(u.mean() - 0.5) * math.sqrt(12.0 * n))
    for start in (0, 1):
        pairs = (u[start : start + (n - start) // 2 * 2].reshape(-1, 2) * side).long().clamp_(0, side - 1)
        cell_counts = torch.bincount(pairs[:, 0] * side + pairs[:, 1], minlength=side * side).double()
        expected = len(pairs) / side**2
        chi = float(((cell_counts - expected) ** 2).sum()) / expected
        p[f"pairs from {start}, {side} x {side} bins"] = chi_square_tail(chi, side * side - 1)
    centred = u - 0.5
    for lag in (1, 2, 3, 4, 8, 64):
        product = float(centred[:-lag] @ centred[lag:])
        p[f"correlation at lag {lag}"] = normal_tails(product * 12.0 / math.sqrt(n - lag))
    return p


def _tail_counts(z: Tensor) -> dict[str, float]:
    """Return p-values of the numbers of standard normal values beyond 3, 4 and 5 standard deviations."""
    n = z.numel()
    size = z.abs()
    return {
        f"values beyond {t} std": binomial_tails(int((size > t).sum()), n, math.erfc(t / math.sqrt(2.0)))
        for t in (3, 4, 5)
    }


def _normal_upper_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2.0))


def p_values(law: str, sample: Tensor) -> dict[str, float]:
    """Return p-values of a sample under a law of :data:`LAWS`, by the name of the test."""
    x = sample.double()
    if law == "uniform on [-1, 3)":
        return _uniformity((x + 1.0) / 4.0)
    if law == "normal, mean 2, std 1/2":
        z = (x - 2.0) / 0.5
        return _uniformity(torch.special.ndtr(z)) | _tail_counts(z)
    if law == "truncated normal on [-2, 2]":
        tail = _normal_upper_tail(2.0)
        return _uniformity((torch.special.ndtr(x) - tail) / (1.0 - 2.0 * tail))
    # One-sided truncation to [2, inf).
    return _uniformity(1.0 - torch.special.ndtr(-x) / _normal_upper_tail(2.0))


LAWS: dict[str, Callable[[Tensor, Key], Tensor]] = {
    "uniform on [-1, 3)": lambda t, k: init.uniform_(t, -1.0, 3.0, generator=k),
    "normal, mean 2, std 1/2": lambda t, k: init.normal_(t, 2.0, 0.5, generator=k),
    "truncated normal on [-2, 2]": lambda t, k: init.trunc_normal_(t, generator=k),
    "truncated normal from 2 on": lambda t, k: init.trunc_normal_(t, 0.0, 1.0, 2.0, math.inf, generator=k),
}


def _statistics(numel: int, device: str) -> Iterator[Check]:
    results: list[tuple[str, dict[str, float]]] = []
    for n, (law, fill) in enumerate(LAWS.items()):
        for dtype in (torch.float32, torch.float64):
            sample = fill(torch.empty(numel, dtype=dtype, device=device), _KEY.fold_in(n))
            results.append((f"{law}, {str(dtype)[6:]}", p_values(law, sample)))
    total = sum(len(p) for _, p in results)
    for name, p in results:
        low = [test for test, value in p.items() if not value >= ALARM / total]
        least = min(p, key=lambda test: p[test])
        what = f"FAIL: {', '.join(low)}; least" if low else f"{len(p)} tests of {numel} values, least"
        yield Check(
            f"law of {name}", f"{what} p = {p[least]:.2g} ({least}), alarm at {ALARM / total:.1g}", not low
        )


# --- the command ------------------------------------------------------------------------------


def checks(device: str, quick: bool) -> Iterator[Check]:
    """Run the checks one by one, and yield each line of the table."""
    golden = json.loads(_GOLDEN.read_text())
    version, built = golden["stream_version"], _C.build_info()["stream_version"]
    yield Check(
        "stream version",
        f"{paraminit_ext.STREAM_VERSION}, binary {built}, golden values {version}",
        str(version) == str(paraminit_ext.STREAM_VERSION) == built,
    )
    yield _known_answers()
    yield _golden_keys(golden)
    previous = paraminit_ext.cpu_capability()
    try:
        for capability in paraminit_ext.available_cpu_capabilities():
            paraminit_ext.set_cpu_capability(capability)
            yield _golden_fills(golden, "cpu", f"golden values on {capability}")
    finally:
        paraminit_ext.set_cpu_capability(previous)
    numel = (1 << 18 if quick else 1 << 22) + 77
    yield _instruction_sets_agree(numel)
    yield _threads_agree(numel)
    if device == "cuda":
        yield _golden_fills(golden, "cuda", "golden values on CUDA")
        yield _cuda_is_the_cpus((1 << 22 if quick else 1 << 26) + 77)
    yield _layouts_and_shards_agree(device)
    yield _narrow_is_wide_rounded(numel, device)
    yield from _statistics(1 << 20 if quick else 1 << 24, device)


def refusal(device: str) -> str | None:
    """Return one line that says why this device cannot be verified, or None if it can."""
    if device == "cpu":
        return None
    if not _C.has_cuda():
        return "expected a build with CUDA kernels, got one without. Rebuild it with FORCE_CUDA=1."
    if not torch.cuda.is_available():
        return "expected a GPU that torch can use, got none. Run it without --device cuda."
    return None


def verify(device: str, quick: bool) -> int:
    """Print the table. Return 0 if every line is right, 1 if one is wrong, 2 if the device is unavailable."""
    reason = refusal(device)
    if reason is not None:
        print(f"paraminit_ext verify --device {device}: {reason}", file=sys.stderr)
        return 2
    start = time.monotonic()
    wrong: list[str] = []
    total = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mean is more than 2 std", category=UserWarning)
        for check in checks(device, quick):
            total += 1
            print(f"{'right' if check.right else 'WRONG':<6} {check.name:<52} {check.found}", flush=True)
            if not check.right:
                wrong.append(check.name)
    took = f"({time.monotonic() - start:.0f} s)"
    if wrong:
        print(f"paraminit_ext verify: {len(wrong)} of {total} checks FAILED {took}: {'; '.join(wrong)}")
        return 1
    print(f"paraminit_ext verify: all {total} checks are right {took}")
    return 0
