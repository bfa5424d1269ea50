"""What a fill takes from a ``torch.Generator``: two 64-bit words, whatever the tensor's size.

Of the CPU's generator they are its next two outputs; of a CUDA generator the key that its seed and offset
make, and four steps of its offset (docs/stream.md). Others are asked for two int64 over their whole range.
"""

from __future__ import annotations

import threading
from importlib import import_module
from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor

from paraminit_ext import _C, _build_info

_TWO_64 = 1 << 64
_LOW_32 = (1 << 32) - 1
# Steps of a CUDA generator's offset for one draw: one counter of Philox makes four numbers.
_STEPS = 4
# Where torch has no one call for it, a CUDA generator's offset is read and written in two. Another thread's
# random function of torch between them is not held off.
_of_cuda = threading.Lock()


def draw(generator: torch.Generator) -> tuple[int, int]:
    """Take one draw; returns its two words as int64.

    Examples:
        >>> import torch
        >>> from paraminit_ext.draws import draw
        >>> g = torch.Generator().manual_seed(7)
        >>> first, second = draw(g), draw(g)
        >>> first == second
        False
    """
    seed, offset = draw_several(generator, 1)[0].tolist()
    return seed, offset


def draw_several(generator: torch.Generator, count: int) -> Tensor:
    """Take ``count`` draws one after the other; returns their words, int64 of shape (count, 2) on the CPU."""
    if generator.device.type == "cuda":
        _, seed, place, *_ = _set_apart(generator, False, count)
        # Key(seed, place / 4).fold_in(0) of each.
        keys = [words_at(seed, place // _STEPS + n) for n in range(count)]
        signed = [tuple(map(to_signed, key)) for key in keys]
        return torch.tensor(signed, dtype=torch.int64, device="cpu").view(-1, 2)
    words = torch.empty(count, 2, dtype=torch.int64, device=generator.device)
    return words.random_(-(2**63), None, generator=generator).cpu()


def draw_on_device(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Take one draw; returns its words, int64 of shape (2,) on ``device``, where nothing waits for them.

    Under the capture of a graph every replay draws anew.

    Raises:
        RuntimeError: under capture, where this torch does not show what its generator sets apart.
    """
    if device.type == "meta":
        return torch.empty(2, dtype=torch.int64, device=device)
    if device.type != "cuda" or not _C.has_cuda():
        source = torch.default_generator if generator is None else generator
        return draw_several(source, 1)[0].to(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    source = default_cuda_generator(index) if generator is None else generator
    with torch.cuda.device(index):
        key = torch.empty(2, dtype=torch.int64, device=torch.device("cuda", index))
        _C.write_drawn_key(key, *_set_apart(source, _C.is_capturing(index), 1))
    return key


def default_cuda_generator(index: int) -> torch.Generator:
    torch.cuda.init()  # which makes them
    return torch.cuda.default_generators[index]


# Whether the stream is being captured, seed and offset where it is not, and where they will lie when the
# graph is replayed, with the place of this draw in the graph.
_State: TypeAlias = tuple[bool, int, int, int, int, int]


def _set_apart(generator: torch.Generator, capturing: bool, count: int) -> _State:
    """Move a CUDA generator on by so many draws.

    Raises:
        RuntimeError: under capture, where this torch does not show what its generator sets apart.
    """
    steps = _STEPS * count
    if hasattr(generator, "philox_state"):  # torch 2.15
        seed, offset, place = generator.philox_state(steps)
        if capturing:
            return True, 0, 0, seed.data_ptr(), offset.data_ptr(), int(place)
        return False, int(seed) % _TWO_64, int(offset) % _TWO_64, 0, 0, 0
    # A build from source has it for the torch that was there.
    if torch.__version__ == _build_info.TORCH_VERSION and find_spec("paraminit_ext._capture") is not None:
        state: _State = import_module("paraminit_ext._capture").philox_state(generator, steps)
        return state
    if capturing:
        raise RuntimeError(
            "paraminit_ext: expected torch 2.15 or a build from source for a draw under graph capture, got "
            f"torch {torch.__version__} without one. Pass a paraminit_ext.Key as generator."
        )
    with _of_cuda:
        before = generator.get_offset()
        generator.set_offset(before + steps)
        return False, generator.initial_seed() % _TWO_64, before, 0, 0, 0


def words_at(seed: int, counter: int) -> tuple[int, int]:
    """The four words of a counter under a Philox key, as two u64: what keys are folded to."""
    words = _C.philox((counter & _LOW_32, counter >> 32, 0, 0), (seed & _LOW_32, seed >> 32))
    return words[0] | words[1] << 32, words[2] | words[3] << 32


def to_signed(value: int) -> int:
    """A u64 as the int64 of the same bits, which is how it travels through an op's schema."""
    return value - _TWO_64 if value >= _TWO_64 >> 1 else value
