"""Raw words of keys in several orders, for checks or, on standard output, for a battery of tests.

python -m prove.raw_words "one key" 7 | dieharder -a -g 200
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from paraminit_ext import Key

Words = npt.NDArray[np.uint32]

CHUNK = 1 << 20


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def words(key: Key, count: int, start: int = 0) -> Words:
    """Return `count` words, starting at the group `start`."""
    tensor = torch.empty(count, dtype=torch.int64)
    torch.ops.paraminit_ext.words_.default(
        tensor, _signed(key.seed), _signed(key.offset), (2**62,), (4 * start,)
    )
    return tensor.numpy().astype(np.uint32)


def first_words(keys: Iterable[Key]) -> Words:
    """Return the first group of each key."""
    return np.concatenate([words(key, 4) for key in keys])


def interleaved(streams: Iterable[Words]) -> Words:
    """Return one word of each stream in turn."""
    return np.stack(list(streams), axis=1).ravel()


def reversed_bits(values: Words) -> Words:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        low, s = np.uint32(mask), np.uint32(shift)
        values = ((values >> s) & low) | ((values & low) << s)
    return values


# ----------------------------------------------------------------------------------------
# Endless streams by name: each function takes a key and the number of a chunk, and returns that chunk
# ----------------------------------------------------------------------------------------


def one_key(key: Key, chunk: int) -> Words:
    return words(key, CHUNK, chunk * CHUNK // 4)


def eight_keys(key: Key, chunk: int) -> Words:
    return interleaved(words(part, CHUNK // 8, chunk * CHUNK // 32) for part in key.split(8))


def many_keys(key: Key, chunk: int) -> Words:
    """Return the first 64 groups of each of the keys that `fold_in` derives from consecutive numbers."""
    count = CHUNK // 256
    return np.concatenate([words(key.fold_in(chunk * count + i), 256) for i in range(count)])


def bits_reversed(key: Key, chunk: int) -> Words:
    """Return words with reversed bits, so that tests of high bits apply to low bits."""
    return reversed_bits(one_key(key, chunk))


def each_group_twice(key: Key, chunk: int) -> Words:
    """Planted fault: each counter is used twice."""
    groups = words(key, CHUNK // 2, chunk * CHUNK // 8).reshape(-1, 4)
    return groups.repeat(2, axis=0).ravel()


def lane_of_a_counter(key: Key, chunk: int) -> Words:
    """Planted fault: one lane is a multiple of the counter."""
    groups = one_key(key, chunk).reshape(-1, 4)
    count = np.arange(len(groups), dtype=np.uint64) + np.uint64(chunk * len(groups))
    groups[:, 1] = (count * np.uint64(2654435761)).astype(np.uint32)
    return groups.ravel()


def bit_too_rare(key: Key, chunk: int) -> Words:
    """Planted fault: the lowest bit of a lane is cleared in one of four groups."""
    groups = one_key(key, chunk).reshape(-1, 4)
    groups[::4, 2] &= np.uint32(0xFFFFFFFE)
    return groups.ravel()


STREAMS: dict[str, Callable[[Key, int], Words]] = {
    "one key": one_key,
    "eight keys in turn": eight_keys,
    "many keys": many_keys,
    "bits reversed": bits_reversed,
}
FAULTS: dict[str, Callable[[Key, int], Words]] = {
    "each group twice": each_group_twice,
    "lane of a counter": lane_of_a_counter,
    "bit too rare": bit_too_rare,
}


def chunks(name: str, key: Key) -> Iterator[Words]:
    make = (STREAMS | FAULTS)[name]
    chunk = 0
    while True:
        yield make(key, chunk)
        chunk += 1


def main() -> None:
    """Write the named stream, at the key derived from a text, until the reader closes the pipe."""
    name, text = sys.argv[1:]
    torch.set_num_threads(1)
    try:
        for chunk in chunks(name, Key(0xBA77E21).fold_in(text)):
            sys.stdout.buffer.write(chunk.tobytes())
    except BrokenPipeError:
        # Python writes the rest of the buffer at exit. Send it to devnull, because the pipe is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
