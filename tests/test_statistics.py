"""Every fill that draws follows its law, values and keys are independent, and planted faults are found.

The checks and their null laws are in prove/checks.py, the laws of the fills in prove/laws.py. Each check
gives p-values, and a p-value below 1e-6 is an alarm. This file counts all p-values. A correct package fails
here with probability at most that number times 1e-6, which the last test bounds. Keys are fixed, so a test
that passes once always passes.

A check that finds nothing would pass as well. So each check also runs on samples with a planted fault, which
are no larger than its usual samples, and must raise an alarm. It also runs on samples of another generator,
and its p-values must not be smaller than chance makes them.

`make prove` runs the same checks on more values, and other checks that need minutes.
"""

from __future__ import annotations

import itertools
import math
import os
import string
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import subprocesses
from fills import DTYPES
from paraminit_ext import Key, init
from test_numbers import WORDS, apply, uniform_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # prove is not installed

from prove import checks, counts, laws
from prove.checks import ALARM, FALSE_ALARM, Scores
from prove.laws import CASES, Array, Law, Sample, draw
from prove.raw_words import Words, first_words, interleaved, words

KEY = Key(0x0DD5_A6A1_57)
SIZE = 1 << 22
SHAPE = (4096, 1024)

# ----------------------------------------------------------------------------------------
# Alarms, counted
# ----------------------------------------------------------------------------------------

# The upper limit for p-values of fills, without planted faults and calibrations. With twice as many a false
# alarm would still be unlikely.
P_VALUES = 5000
counted = 0


def assert_no_alarm(scores: Scores) -> None:
    """Fail if a p-value is an alarm, and count all p-values."""
    global counted
    counted += len(scores)
    alarms = {name: p for name, p in scores.items() if not p >= ALARM}
    assert not alarms, alarms


def raises_alarm(scores: Scores) -> bool:
    return any(p < ALARM for p in scores.values())


# ----------------------------------------------------------------------------------------
# Each function and dtype against its law, and against stock
# ----------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


every_case = pytest.mark.parametrize("name", CASES)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@lru_cache(maxsize=2)
def stock(name: str, dtype: torch.dtype) -> Sample:
    """Return as many values of torch.nn.init; a sixteenth of truncated normals, which take 1 s a million."""
    rows, columns = SHAPE
    if name.startswith("trunc_normal_"):
        rows //= 16
    tensor = CASES[name].stock(torch.empty(rows, columns, dtype=dtype), seeded(0x5700C))
    return Sample(tensor, CASES[name].law(*SHAPE))


def can_be_compared(name: str) -> bool:
    """Return whether stock has the function and its values are known to follow the law.

    Before torch 2.12 stock's truncated normals do not. Stock refuses infinite bounds that cut off much.
    """
    if name.startswith("trunc_normal_"):
        return TORCH >= (2, 12) and "tail" not in name
    return CASES[name].has_stock


def against_law_and_stock(name: str, dtype: torch.dtype) -> Scores:
    sample = draw(name, dtype, *SHAPE)
    scores = checks.marginal(sample)
    if can_be_compared(name):
        # In 16-bit dtypes stock draws uniforms from 8 or 11 bits and loses tails of bfloat16 normals. Its
        # float32 values, rounded once and clamped to the bounds, have the intended law.
        theirs = stock(name, torch.float64 if dtype == torch.float64 else torch.float32)
        if sample.histogram is not None:
            values = theirs.law.cells(dtype).values
            theirs = Sample(theirs.tensor.to(dtype).clamp(values[0], values[-1]), theirs.law)
        scores |= checks.two_samples(sample, theirs)
    return {f"{dtype}, {check}": p for check, p in scores.items()}


@every_case
def test_a_fill_of_each_dtype_follows_its_law_and_differs_from_stocks_by_chance(name: str) -> None:
    # NumPy's functions release the interpreter lock, so two threads take half of the time of one.
    with ThreadPoolExecutor(2) as pool:
        for scores in pool.map(partial(against_law_and_stock, name), DTYPES):
            assert_no_alarm(scores)


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-3.0, 4.0), (1.75, math.inf)], ids=str)
def test_a_truncated_normal_has_its_distribution_function_at_every_word(bounds: tuple[float, float]) -> None:
    values = apply("trunc_normal_", [0.0, 1.0, *bounds], WORDS, torch.float32)[: WORDS.size]
    law = laws.truncated(0, 1, *bounds)
    assert np.abs(law.cdf(values) - uniform_of(WORDS)[0]).max() <= law.error(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_shards_of_a_long_fill_are_counted_as_its_law_has_them(dtype: torch.dtype) -> None:
    # `make prove` counts 2^32 values in the same way.
    patterns = counts.count("normal_", dtype, SIZE, SIZE // 4)
    law = CASES["normal_"].law(1, 1)
    assert_no_alarm(counts.of_counts(counts.histogram(patterns, law, dtype)))
    shifted = laws.normal(law.mean + 0.01 * law.std, law.std)
    for check in (checks.counted_kolmogorov, checks.every_value, checks.counted_moments):
        assert raises_alarm(check(counts.histogram(patterns, shifted, dtype)))


# ----------------------------------------------------------------------------------------
# Dependence within a fill
# ----------------------------------------------------------------------------------------

# One sample of each path from words to values. The values of 16-bit dtypes are these values, rounded.
DEPENDENT = [
    ("uniform_", torch.float32),
    ("normal_", torch.float32),
    ("trunc_normal_ at 2 std", torch.float32),
    ("uniform_", torch.float64),
    ("normal_", torch.float64),
]


@pytest.mark.parametrize(("name", "dtype"), DEPENDENT, ids=lambda v: str(v).removeprefix("torch."))
def test_values_of_a_fill_are_independent(name: str, dtype: torch.dtype) -> None:
    sample = draw(name, dtype, *SHAPE)
    assert_no_alarm(checks.serial(sample) | checks.tuples(sample))


def square(sample: Sample) -> Array:
    side = math.isqrt(sample.size)
    return sample.y.reshape(side, side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_rows_and_columns_of_a_matrix_are_independent(dtype: torch.dtype) -> None:
    assert_no_alarm(checks.rows_and_columns(square(draw("normal_", dtype, 2048, 2048))))


# ----------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------


STREAMS: dict[str, Callable[[], Words]] = {
    "one key": lambda: words(KEY, SIZE),
    "across the wrap of the counter": lambda: words(Key(3, 2**64 - 2**17), 1 << 20),
    "across 2^32 groups": lambda: words(KEY, 1 << 20, 2**32 - 2**17),
    "eight keys in turn": lambda: interleaved(words(key, 1 << 17) for key in KEY.split(8)),
    "neighbouring seeds": lambda: first_words(map(Key, range(1 << 16))),
    "many numbers folded in": lambda: first_words(KEY.split(1 << 16)),
    "many texts folded in": lambda: first_words(KEY.fold_in(f"layers.{i}.weight") for i in range(1 << 16)),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_words_are_fair_and_independent(stream: str) -> None:
    assert_no_alarm(checks.of_words(STREAMS[stream]()))


def test_words_are_written_to_a_pipe_as_they_are_tested() -> None:
    command = [sys.executable, "-m", "prove.raw_words", "eight keys in turn", "7"]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=subprocesses.PACKAGE_ROOT,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        written = writer.stdout.read(1 << 20)
        writer.stdout.close()
        complaint = writer.stderr.read()
    expected = interleaved(words(key, 1 << 15) for key in Key(0xBA77E21).fold_in("7").split(8))
    assert written == expected.tobytes()
    assert complaint == b""
    assert writer.returncode == 0


def test_what_dieharder_prints_is_read() -> None:
    battery = pytest.importorskip("prove.dieharder", reason="needs requirements/bench.txt")
    printed = (
        "        test_name   |ntup| tsamples |psamples|  p-value |Assessment\n"
        "#=============================================================#\n"
        "          sts_serial|   1|    100000|     100|0.46471954|  PASSED  \n"
        "diehard_count_1s_str|   0|    256000|     100|0.00000000|  FAILED  \n"
    )
    expected = [("sts_serial", "1", "0.46471954"), ("diehard_count_1s_str", "0", "0.00000000")]
    assert battery.RESULT.findall(printed) == expected


# ----------------------------------------------------------------------------------------
# Keys and fills
# ----------------------------------------------------------------------------------------

NAME = "layers.0.weight"
Derive = Callable[[int, int, str], Key]  # takes a seed, an offset and a text


def derive(seed: int, offset: int, text: str) -> Key:
    """Return the key of a parameter, derived as a user derives it."""
    return Key(seed, offset).fold_in(text)


def one_bit_apart(derive: Derive) -> Iterator[tuple[str, Key]]:
    """Yield a key, and all keys with a seed, offset or text that differs in one bit."""
    seed, offset = 0x0123_4567_89AB_CDEF, 0x0F1E_2D3C_4B5A_6978
    yield "itself", derive(seed, offset, NAME)
    for bit in range(64):
        yield f"seed bit {bit}", derive(seed ^ 1 << bit, offset, NAME)
        yield f"offset bit {bit}", derive(seed, offset ^ 1 << bit, NAME)
    for place, bit in itertools.product(range(len(NAME)), range(7)):
        letter = chr(ord(NAME[place]) ^ 1 << bit)
        if letter in string.printable:
            yield f"text {place} {letter!r}", derive(seed, offset, NAME[:place] + letter + NAME[place + 1 :])


def neighbouring_keys(derive: Derive, count: int = 1 << 14) -> Scores:
    """Compare the words and normals of each key with those of the first key, place by place."""
    keys = dict(one_bit_apart(derive))
    streams = {name: words(key, count) for name, key in keys.items()}
    fills = {name: init.normal_(torch.empty(count), generator=key).double() for name, key in keys.items()}
    scores = {}
    for name in [name for name in keys if name != "itself"]:
        scores[f"words, {name}"] = checks.differing_bits(streams["itself"], streams[name])
        z = float(fills["itself"] @ fills[name]) / math.sqrt(count)
        scores[f"normals, {name}"] = checks.normal_score(z)
    first = np.stack([stream[:2] for stream in streams.values()])
    scores["repeated"] = checks.repeated(first.view(np.uint64).ravel())
    return scores


def direct(seed: int, offset: int, text: str) -> Key:
    """Return the key itself, so that the rounds of Philox see its bits directly."""
    return Key(seed, offset) if text == NAME else Key(seed, offset).fold_in(text)


@pytest.mark.parametrize("derivation", [derive, direct])
def test_keys_that_differ_in_one_bit_have_independent_values(derivation: Derive) -> None:
    assert_no_alarm(neighbouring_keys(derivation))


def first_values(generators: Iterable[torch.Generator | Key]) -> Sample:
    """Return the first value of a small fill from each generator."""
    values = [init.uniform_(torch.empty(1), generator=generator) for generator in generators]
    return Sample(torch.cat(values), laws.uniform(0, 1))


FIRST: dict[str, Callable[[], Sample]] = {
    "one generator": lambda: first_values(itertools.repeat(seeded(0), 1 << 14)),
    "generators of seeds in a row": lambda: first_values(map(seeded, range(1 << 14))),
    "keys of seeds in a row": lambda: first_values(map(Key, range(1 << 14))),
    "keys of offsets in a row": lambda: first_values(Key(0, 2**40 * i) for i in range(1 << 14)),
    "splits": lambda: first_values(KEY.split(1 << 14)),
}


@pytest.mark.parametrize("source", FIRST)
def test_first_values_of_fills_follow_the_law_and_are_independent(source: str) -> None:
    sample = FIRST[source]()
    assert_no_alarm(checks.marginal(sample) | checks.serial(sample, range(1, 9)))


def fills_in_a_row(generators: Iterable[torch.Generator | Key]) -> Array:
    """Return fills of 2048 normals each as the rows of a matrix."""
    return np.stack([init.normal_(torch.empty(2048), generator=g).double().numpy() for g in generators])


ROWS: dict[str, Callable[[], Array]] = {
    "one generator": lambda: fills_in_a_row(itertools.repeat(seeded(1), 512)),
    "generators of seeds in a row": lambda: fills_in_a_row(map(seeded, range(512))),
    "keys of seeds in a row": lambda: fills_in_a_row(map(Key, range(512))),
    "names": lambda: fills_in_a_row(KEY.fold_in(f"layers.{i}.weight") for i in range(512)),
}


@pytest.mark.parametrize("source", ROWS)
def test_fills_in_a_row_are_independent(source: str) -> None:
    assert_no_alarm(checks.rows_and_columns(ROWS[source]()))


# ----------------------------------------------------------------------------------------
# Planted faults
# ----------------------------------------------------------------------------------------


@cache
def plain(kind: str) -> Array:
    """Return float32 values without a fault, as doubles; the faults are planted in these values."""
    tensor = torch.empty(SHAPE)
    key = KEY.fold_in("faults")
    filled = init.normal_(tensor, generator=key) if kind == "normal" else init.uniform_(tensor, generator=key)
    values: Array = filled.double().numpy().ravel()
    return values


FEW = 1 << 20


def few(kind: str) -> Array:
    """Return the first quarter of the plain values, enough for faults that need no large sample."""
    return plain(kind)[:FEW]


PLAIN_LAWS = {"normal": laws.normal(0, 1), "uniform": laws.uniform(0, 1)}


def faulty(kind: str, values: Array, dtype: torch.dtype = torch.float32) -> Sample:
    return Sample(torch.from_numpy(values).to(dtype), PLAIN_LAWS[kind])


def shifted() -> Sample:
    """The mean is off by a hundredth of a standard deviation."""
    return faulty("normal", plain("normal") + 0.01)


def scaled() -> Sample:
    """The standard deviation is off by 4 in 1000 (2^26 values would show 1 in 1000)."""
    return faulty("normal", plain("normal") * 1.004)


def seven_bits() -> Sample:
    """Uniforms have 7 bits, in the middle of their steps so that the mean is right."""
    return faulty("uniform", (np.floor(few("uniform") * 128) + 0.5) / 128)


def eight_bits_in_bfloat16() -> Sample:
    """Uniforms have 8 bits; bfloat16 represents each of them."""
    return faulty("uniform", np.floor(few("uniform") * 256) / 256, torch.bfloat16)


def cut_bits() -> Sample:
    """bfloat16 values are truncated by 16 bits instead of rounded."""
    bits = plain("normal").astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return faulty("normal", bits.view(np.float32).astype(np.float64), torch.bfloat16)


def rounded_twice() -> Sample:
    """float16 values are first rounded to bfloat16."""
    coarse = torch.from_numpy(few("normal")).bfloat16().double().numpy()
    return faulty("normal", coarse, torch.float16)


def clamped() -> Sample:
    """Values beyond 3 standard deviations are clamped."""
    return faulty("normal", np.clip(few("normal"), -3, 3))


def clamped_in_bfloat16() -> Sample:
    return faulty("normal", np.clip(few("normal"), -3, 3), torch.bfloat16)


def heaped() -> Sample:
    """One of every 2^15 values is the lower bound."""
    values = few("uniform").copy()
    values[:: 1 << 15] = 0.0
    return faulty("uniform", values)


def lost_tails() -> Sample:
    """The radius comes from a uniform of 8 bits, as in bfloat16, so no |z| exceeds 3.6."""
    u = (np.floor(few("uniform") * 256) + 0.5) / 256
    radius = np.sqrt(-2 * np.log(u[::2]))
    angle = 2 * np.pi * few("uniform")[1::2]
    return faulty("normal", np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel())


def each_counter_twice() -> Sample:
    """Each group of four appears twice in a row."""
    return faulty("normal", np.repeat(few("normal").reshape(-1, 4)[: FEW // 8], 2, axis=0).ravel())


def counter_of_six_bits() -> Sample:
    """The same 64 groups repeat, so that counts are far too uneven."""
    return faulty("normal", np.tile(few("normal")[:256], FEW // 256))


def swapped_lanes() -> Sample:
    """The second pair of a group uses the words of the first, with radius and angle exchanged."""
    w = (few("uniform").reshape(-1, 4)[:, :2] + 2.0**-25).repeat(2, axis=0).reshape(-1, 2, 2)
    w[:, 1] = w[:, 1, ::-1]
    radius, angle = np.sqrt(-2 * np.log(w[:, :, 0])), 2 * np.pi * w[:, :, 1]
    return faulty("normal", np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).ravel())


def one_lane_for_two() -> Sample:
    """Lane 3 repeats lane 1."""
    values = few("normal").reshape(-1, 4).copy()
    values[:, 3] = values[:, 1]
    return faulty("normal", values.ravel())


def common_radius() -> Sample:
    """Both pairs of a group have the same radius: values are uncorrelated, their sizes are not."""
    z = few("normal").reshape(-1, 2, 2)
    size = np.sqrt(np.square(z).sum(2, keepdims=True))
    return faulty("normal", (z / size * size[:, :1]).ravel())


def even_counts() -> Sample:
    """A lattice in random order has counts more even than chance."""
    order = np.random.default_rng(5).permutation(FEW)
    return faulty("uniform", (order + 0.5) / FEW)


def serial(sample: Sample) -> Scores:
    return checks.serial(sample, range(1, 9))


FAULTS: dict[Callable[[], Sample], tuple[Callable[[Sample], Scores], ...]] = {
    shifted: (checks.kolmogorov, checks.anderson_darling, checks.equiprobable, checks.moments),
    scaled: (checks.anderson_darling, checks.moments),
    seven_bits: (checks.kolmogorov, checks.anderson_darling, checks.equiprobable, checks.tails),
    eight_bits_in_bfloat16: (checks.every_value, checks.counted_kolmogorov, checks.kolmogorov),
    cut_bits: (checks.every_value, checks.moments, checks.counted_moments, checks.equiprobable),
    rounded_twice: (checks.every_value,),
    clamped: (checks.tails, checks.moments),
    clamped_in_bfloat16: (checks.counted_tails,),
    heaped: (checks.tails,),
    lost_tails: (checks.tails,),
    each_counter_twice: (serial, checks.tuples),
    counter_of_six_bits: (checks.kolmogorov, checks.anderson_darling, checks.equiprobable, checks.tuples),
    swapped_lanes: (serial, checks.tuples),
    one_lane_for_two: (serial, checks.tuples),
    common_radius: (serial, checks.tuples),
    even_counts: (checks.equiprobable,),
}
PLANTED = [(fault, check) for fault, found_by in FAULTS.items() for check in found_by]


@lru_cache(maxsize=1)
def planted(fault: Callable[[], Sample]) -> Sample:
    return fault()


@pytest.mark.parametrize(("fault", "check"), PLANTED, ids=lambda f: f.__name__)
def test_a_check_of_a_sample_rejects_a_planted_fault(
    fault: Callable[[], Sample], check: Callable[[Sample], Scores]
) -> None:
    assert raises_alarm(check(planted(fault)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_the_check_of_two_samples_rejects_a_planted_fault(dtype: torch.dtype) -> None:
    right = faulty("normal", plain("normal"), dtype)
    wrong = Sample(torch.from_numpy(stock("normal_", torch.float32).y + 0.01).to(dtype), right.law)
    assert raises_alarm(checks.two_samples(right, wrong))


SIDE = 2048


def one_pair_of_rows(matrix: Array) -> None:
    matrix[77] = math.sqrt(1 - 0.2**2) * matrix[77] + 0.2 * matrix[1900]


def each_row_near_the_last(matrix: Array) -> None:
    matrix[1:] = math.sqrt(1 - 0.01**2) * matrix[1:] + 0.01 * matrix[:-1]


def one_direction(matrix: Array) -> None:
    """All rows take 4 in 1000 of their variance from the first row."""
    matrix[1:] = math.sqrt(1 - 4e-3) * matrix[1:] + math.sqrt(4e-3) * matrix[0]


def rows_of_equal_length(matrix: Array) -> None:
    matrix *= math.sqrt(SIDE) / np.linalg.norm(matrix, axis=1)[:, None]


def a_row_again(matrix: Array) -> None:
    matrix[1024] = matrix[3]


LINES: dict[Callable[[Array], None], tuple[str, ...]] = {
    one_pair_of_rows: ("nearest rows",),
    a_row_again: ("nearest rows",),
    each_row_near_the_last: ("neighbouring rows",),
    one_direction: ("sums of columns", "angles between rows", "angles between columns"),
    rows_of_equal_length: ("lengths of rows",),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("fault", LINES, ids=lambda f: f.__name__)
def test_the_check_of_rows_and_columns_rejects_a_planted_fault(
    fault: Callable[[Array], None], turned: bool
) -> None:
    matrix = plain("normal").reshape(SIDE, SIDE).copy()
    fault(matrix)
    scores = checks.rows_and_columns(matrix.T if turned else matrix)
    exchanged = {"rows": "columns", "columns": "rows"}
    for name in LINES[fault]:
        if turned:
            name = " ".join(exchanged.get(part, part) for part in name.split())
        assert scores[name] < ALARM, scores


def stuck_bit(stream: Words) -> None:
    """One bit of one lane is set in one of 64 groups."""
    stream[2::256] |= np.uint32(1 << 11)


def counter_of_sixteen_bits(stream: Words) -> None:
    stream[1 << 18 :] = np.tile(stream[: 1 << 18], 15)


def one_group_again(stream: Words) -> None:
    stream[4000:4004] = stream[-4:]


def each_group_twice(stream: Words) -> None:
    stream.reshape(-1, 2, 4)[:, 1] = stream.reshape(-1, 2, 4)[:, 0]


def a_word_from_the_last(stream: Words) -> None:
    """The four low bits of a lane repeat in another lane of the next group."""
    groups = stream.reshape(-1, 4)
    groups[1:, 3] = groups[1:, 3] & np.uint32(0xFFFFFFF0) | groups[:-1, 0] & np.uint32(0xF)


def low_bits_of_a_counter(stream: Words) -> None:
    """One lane is a linear counter modulo 2^32, whose low bits have short periods."""
    lane = stream.reshape(-1, 4)[:, 1]
    lane[:] = (np.arange(len(lane), dtype=np.uint64) * 2654435761 + 12345).astype(np.uint32)


WORD_FAULTS: dict[Callable[[Words], None], Callable[[Words], Scores]] = {
    stuck_bit: checks.bits_of_words,
    counter_of_sixteen_bits: checks.groups_of_words,
    one_group_again: checks.groups_of_words,
    each_group_twice: checks.later_words,
    a_word_from_the_last: checks.later_words,
    low_bits_of_a_counter: checks.birthday_spacings,
}


@pytest.mark.parametrize("fault", WORD_FAULTS, ids=lambda f: f.__name__)
def test_a_check_of_words_rejects_a_planted_fault(fault: Callable[[Words], None]) -> None:
    stream = words(KEY, SIZE)
    fault(stream)
    assert raises_alarm(WORD_FAULTS[fault](stream))


def test_the_check_of_words_rejects_streams_that_overlap() -> None:
    # Add the numbers to the offset, which the documentation advises against.
    streams = (words(Key(KEY.seed, i), SIZE // 8) for i in range(8))
    assert raises_alarm(checks.groups_of_words(interleaved(streams)))


def seeds_of_32_bits(seed: int, offset: int, text: str) -> Key:
    return derive(seed % 2**32, offset, text)


def offsets_of_32_bits(seed: int, offset: int, text: str) -> Key:
    return derive(seed, offset % 2**32, text)


def texts_by_their_sum(seed: int, offset: int, text: str) -> Key:
    """Two texts collide if their letters have the same sum."""
    return Key(seed, offset).fold_in(sum(map(ord, text)))


def seed_and_offset_mixed(seed: int, offset: int, text: str) -> Key:
    """Seed and offset become one number, so a bit of the seed and the same bit of the offset give one key."""
    return Key(seed ^ offset).fold_in(text)


def texts_as_offsets(seed: int, offset: int, text: str) -> Key:
    """Other texts add only their length to the offset, so texts of one length share a stream."""
    return Key(seed, offset).fold_in(0) if text == NAME else Key(seed, offset + len(text))


@pytest.mark.parametrize(
    "fault",
    [seeds_of_32_bits, offsets_of_32_bits, texts_by_their_sum, seed_and_offset_mixed, texts_as_offsets],
)
def test_the_check_of_keys_rejects_keys_that_collide(fault: Derive) -> None:
    assert raises_alarm(neighbouring_keys(fault, 1 << 10))


def test_the_check_of_fills_in_a_row_rejects_a_draw_that_advances_by_one_group() -> None:
    assert raises_alarm(checks.rows_and_columns(fills_in_a_row(Key(0, i) for i in range(512))))


def test_the_check_of_first_values_rejects_a_draw_that_serves_two_fills() -> None:
    sample = first_values(key for key in KEY.split(1 << 13) for _ in range(2))
    assert raises_alarm(checks.serial(sample, range(1, 9)))


def test_the_check_of_first_values_rejects_seeds_that_are_scaled_and_not_mixed() -> None:
    values = torch.arange(1 << 14, dtype=torch.float64) * 0.6180339887498949 % 1
    assert raises_alarm(checks.marginal(Sample(values.float(), laws.uniform(0, 1))))


# ----------------------------------------------------------------------------------------
# The checks themselves
# ----------------------------------------------------------------------------------------

REPLICATES = 100


def of_another_generator(law: Law, dtype: torch.dtype, size: int, seed: int) -> Sample:
    u = np.random.default_rng(seed).random(size)
    values = law.quantile(u) if dtype == torch.float64 else law.cells(dtype).at(u)
    return Sample(torch.from_numpy(values).to(dtype), law)


def never_too_small(replicate: Callable[[int], Scores]) -> None:
    """Assert that each p-value is below p no more often than p, as far as the replicates show."""
    seen = [replicate(seed) for seed in range(REPLICATES)]
    too_often = {name: checks.no_smaller_than_chance([scores[name] for scores in seen]) for name in seen[0]}
    assert min(too_often.values()) > ALARM, too_often


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_ on both sides"])
def test_p_values_against_a_law_are_no_smaller_than_chance_has_them(name: str, dtype: torch.dtype) -> None:
    law = CASES[name].law(1, 1)
    never_too_small(lambda seed: checks.marginal(of_another_generator(law, dtype, 1 << 12, seed)))


def test_p_values_of_dependence_are_no_smaller_than_chance_has_them() -> None:
    def replicate(seed: int) -> Scores:
        sample = of_another_generator(laws.normal(0, 1), torch.float64, 6144, seed)
        return checks.serial(sample, range(1, 5)) | checks.tuples(sample)

    never_too_small(replicate)


def test_p_values_of_rows_and_columns_are_no_smaller_than_chance_has_them() -> None:
    never_too_small(
        lambda seed: checks.rows_and_columns(np.random.default_rng(seed).standard_normal((128, 96)))
    )


def test_p_values_of_two_samples_are_no_smaller_than_chance_has_them() -> None:
    law = laws.normal(0, 1)
    never_too_small(
        lambda seed: checks.two_samples(
            of_another_generator(law, torch.float64, 4096, seed),
            of_another_generator(law, torch.float64, 1024, REPLICATES + seed),
        )
    )


def test_the_law_of_anderson_and_darling_has_its_mean_and_second_moment() -> None:
    # E A^2 = 1 and Var A^2 = 2 (pi^2 - 9) / 3, because A^2 is a weighted sum of chi-squares.
    z, weights = np.polynomial.legendre.leggauss(200)
    z, weights = 10 * (z + 1), 10 * weights
    tail = np.array([checks.anderson_darling_sf(float(at)) for at in z])
    assert weights @ tail == pytest.approx(1, abs=1e-7)
    assert weights @ (2 * z * tail) - 1 == pytest.approx(2 * (math.pi**2 - 9) / 3, abs=1e-6)


def test_the_law_of_the_greatest_distance_goes_over_into_its_limit() -> None:
    exact, limit = (checks.distance_score(2.5 / math.sqrt(2**28), 2**28 + more) for more in (0, 1))
    assert exact <= limit
    assert limit == pytest.approx(exact, rel=2**-12)
    assert checks.distance_score(2.5 / 2**16, 2**32) == pytest.approx(limit, rel=2**-12)


def test_a_false_alarm_is_unlikely_in_the_whole_of_this_file() -> None:
    assert counted <= P_VALUES
    assert P_VALUES * ALARM <= FALSE_ALARM
