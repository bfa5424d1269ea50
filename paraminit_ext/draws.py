"""Draws: the two 64-bit words that each fill takes from a ``torch.Generator``, whatever the tensor's size.

A CPU generator gives its next two outputs. A CUDA generator gives a key made from its seed and offset, and
its offset advances by four (docs/stream.md). Any other generator gives two int64 over their whole range.
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
# How far one draw advances the offset of a CUDA generator: one Philox counter makes four numbers.
_OFFSET_STEPS = 4
# Without `philox_state`, a CUDA generator's offset is read and written in two calls. This lock does not
# exclude torch's own random functions in other threads.
_cuda_offset_lock = threading.Lock()


def draw(generator: torch.Generator) -> tuple[int, int]:
    """Take one draw and return its two words as int64.

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
    """Take ``count`` draws in order and return their words, int64 of shape (count, 2) on the CPU."""
    if generator.device.type == "cuda":
        _, seed, offset, *_ = _reserve(generator, False, count)
        # Draw n is Key(seed, offset / 4 + n).fold_in(0).
        keys = [words_at(seed, offset // _OFFSET_STEPS + n) for n in range(count)]
        signed = [tuple(map(to_signed, key)) for key in keys]
        return torch.tensor(signed, dtype=torch.int64, device="cpu").view(-1, 2)
    words = torch.empty(count, 2, dtype=torch.int64, device=generator.device)
    return words.random_(-(2**63), None, generator=generator).cpu()


def draw_on_device(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Take one draw and return its words, int64 of shape (2,) on ``device``.

    On CUDA the host does not wait for the device. If the stream is being captured, every replay of the graph
    takes a new draw.

    Raises:
        RuntimeError: if the stream is being captured and this torch does not expose the generator's state.
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
        _C.write_drawn_key(key, *_reserve(source, _C.is_capturing(index), 1))
    return key


def default_cuda_generator(index: int) -> torch.Generator:
    torch.cuda.init()  # creates the default generators
    return torch.cuda.default_generators[index]


# (captured, seed, offset, address of the seed, address of the offset, offset within the graph). The seed and
# the offset are used outside capture. The other three are used under capture, when the values are read at
# replay.
_State: TypeAlias = tuple[bool, int, int, int, int, int]


def _reserve(generator: torch.Generator, capturing: bool, count: int) -> _State:
    """Advance a CUDA generator by ``count`` draws and return its state before them.

    Raises:
        RuntimeError: if the stream is being captured and this torch does not expose the generator's state.
    """
    steps = _OFFSET_STEPS * count
    if hasattr(generator, "philox_state"):  # torch 2.15
        seed, offset, offset_in_graph = generator.philox_state(steps)
        if capturing:
            return True, 0, 0, seed.data_ptr(), offset.data_ptr(), int(offset_in_graph)
        return False, int(seed) % _TWO_64, int(offset) % _TWO_64, 0, 0, 0
    # A build from source provides this module for the torch that it was built with.
    if torch.__version__ == _build_info.TORCH_VERSION and find_spec("paraminit_ext._capture") is not None:
        state: _State = import_module("paraminit_ext._capture").philox_state(generator, steps)
        return state
    if capturing:
        raise RuntimeError(
            "paraminit_ext: expected torch 2.15 or a build from source for a draw under graph capture, got "
            f"torch {torch.__version__} without such a build. Pass a paraminit_ext.Key as generator."
        )
    with _cuda_offset_lock:
        before = generator.get_offset()
        generator.set_offset(before + steps)
        return False, generator.initial_seed() % _TWO_64, before, 0, 0, 0


def words_at(seed: int, counter: int) -> tuple[int, int]:
    """Return the four words of a counter under a Philox key, as two u64. ``Key.fold_in`` uses them."""
    words = _C.philox((counter & _LOW_32, counter >> 32, 0, 0), (seed & _LOW_32, seed >> 32))
    return words[0] | words[1] << 32, words[2] | words[3] << 32


def to_signed(value: int) -> int:
    """Return the int64 with the bits of a u64. Operator schemas have no u64."""
    return value - _TWO_64 if value >= _TWO_64 >> 1 else value
