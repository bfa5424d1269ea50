"""The key of a fill, and how a generator becomes one.

This is the only module with hidden state: a ``torch.Generator``, given or torch's default, is advanced here,
once a fill and by the same amount whatever the tensor's size. Everything after it is a pure function of the
key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from paraminit_ext import _C

_TWO_64 = 1 << 64
_LOW_32 = (1 << 32) - 1
_HAS_CUDA = _C.has_cuda()

_draw_key = torch.ops.paraminit_ext.draw_key.default


def _checked_u64(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"paraminit_ext.Key: expected an int for {what}, got {type(value).__name__}. Pass a plain int."
        )
    if not 0 <= value < _TWO_64:
        raise ValueError(
            f"paraminit_ext.Key: expected 0 <= {what} < 2**64, got {value}. Reduce it modulo 2**64."
        )
    return value


def _to_signed(value: int) -> int:
    """A u64 as the int64 of the same bits, which is how it travels through an op's schema."""
    return value - _TWO_64 if value >= _TWO_64 >> 1 else value


@dataclass(frozen=True, slots=True)
class Key:
    """The place in the stream from which a fill takes its words.

    Equal keys give equal tensors, on every device and however the tensor is sharded. Number things by
    :meth:`fold_in`, never by adding to ``offset``: neighbouring offsets share all but one of their counters.

    Args:
        seed: which Philox key, ``0 <= seed < 2**64``
        offset: the first 128-bit counter, ``0 <= offset < 2**64``

    Raises:
        TypeError: one of them is not an int (a bool is none).
        ValueError: one of them is outside [0, 2**64).

    Source: `Parallel random numbers: as easy as 1, 2, 3` - Salmon, J. et al. (2011): Philox4x32-10.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, init
        >>> key = Key(2024).fold_in("layers.0.weight")
        >>> a, b = (init.normal_(torch.empty(3, 5), generator=key) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """

    seed: int
    offset: int = 0

    def __post_init__(self) -> None:
        _checked_u64("seed", self.seed)
        _checked_u64("offset", self.offset)

    def fold_in(self, data: int | str) -> Key:
        """Return the key of ``data`` under this one: the four words of counter ``offset + data``.

        Args:
            data: an int in [0, 2**64), or a text (a parameter's name, say), which stands for the first 8
                bytes of its SHA-256, little-endian

        Raises:
            TypeError: ``data`` is neither an int nor a str.
            ValueError: ``data`` is outside [0, 2**64).

        Examples:
            >>> from paraminit_ext import Key
            >>> hex(Key(0).fold_in(0).seed)
            '0xe169c58d6627e8d5'
        """
        if isinstance(data, str):
            data = int.from_bytes(hashlib.sha256(data.encode()).digest()[:8], "little")
        counter = (self.offset + _checked_u64("data", data)) % _TWO_64
        words = _C.philox((counter & _LOW_32, counter >> 32, 0, 0), (self.seed & _LOW_32, self.seed >> 32))
        return Key(words[0] | words[1] << 32, words[2] | words[3] << 32)

    def split(self, n: int) -> tuple[Key, ...]:
        """Return ``n`` keys, ``fold_in(0)`` to ``fold_in(n - 1)``.

        Args:
            n: how many, not negative

        Raises:
            TypeError: ``n`` is not an int.
            ValueError: ``n`` is negative.

        Examples:
            >>> from paraminit_ext import Key
            >>> Key(7).split(2) == (Key(7).fold_in(0), Key(7).fold_in(1))
            True
        """
        return tuple(self.fold_in(i) for i in range(_checked_u64("n", n)))

    def to_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """Return ``[seed, offset]`` as a tensor of two uint64.

        Args:
            device: where it lies (default: torch's current default device)

        Examples:
            >>> from paraminit_ext import Key
            >>> Key(7, 9).to_tensor()
            tensor([7, 9], dtype=torch.uint64)
        """
        # Through int64: an int of 2**63 or more does not survive being traced.
        signed = [_to_signed(self.seed), _to_signed(self.offset)]
        return torch.tensor(signed, dtype=torch.int64, device=device).view(torch.uint64)

    @staticmethod
    def from_tensor(tensor: Tensor) -> Key:
        """Return the key that a tensor of two uint64 holds: the inverse of :meth:`to_tensor`.

        Args:
            tensor: ``[seed, offset]``, of shape (2,) and dtype uint64, on any device that holds data

        Raises:
            TypeError: ``tensor`` is not a tensor of dtype uint64.
            ValueError: ``tensor`` has another shape, or lies on meta.

        Examples:
            >>> from paraminit_ext import Key
            >>> Key.from_tensor(Key(7, 9).to_tensor())
            Key(seed=7, offset=9)
        """
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint64:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"paraminit_ext.Key.from_tensor: expected a tensor of torch.uint64, got {got}. "
                "An int64 tensor of the same bits becomes one by .view(torch.uint64)."
            )
        if tensor.shape != (2,) or tensor.is_meta:
            raise ValueError(
                "paraminit_ext.Key.from_tensor: expected [seed, offset] on a device that holds data, "
                f"got shape {tuple(tensor.shape)} on {tensor.device}. Pass what Key.to_tensor() returned."
            )
        seed, offset = tensor.tolist()
        return Key(seed, offset)


# What a fill is handed: two u64 as int64, or while a graph is traced or captured a uint64[2] on the device.
FillKey: TypeAlias = tuple[int, int] | Tensor


def refuse_generator(name: str, generator: object, device: torch.device) -> None:
    """Raise unless ``generator`` can give the key of a fill on ``device``; it is not advanced.

    Args:
        name: the function that was called, for the message
        generator: what the caller passed
        device: the device of the tensor; meta accepts every generator, since it draws from none

    Raises:
        TypeError: neither a torch.Generator, nor a Key, nor None.
        RuntimeError: a generator of another kind of device.
    """
    if generator is None or isinstance(generator, Key):
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"paraminit_ext.{name}: expected a torch.Generator, a paraminit_ext.Key or None for generator, "
            f"got {type(generator).__name__}. For a fixed seed pass paraminit_ext.Key(seed)."
        )
    kind = generator.device.type
    if kind not in ("cpu", device.type) and device.type != "meta":
        kinds = "cpu" if device.type == "cpu" else f"{device.type} or cpu"
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a generator of {kinds} for a "
            f"tensor on {device}, got one of {generator.device}. A CPU generator serves every device."
        )


def take_key(name: str, generator: torch.Generator | Key | None, device: torch.device) -> FillKey:
    """Turn what the caller passed into the key of one fill on ``device``, taking one draw from a generator.

    Args:
        name: the function that was called, for the messages
        generator: a generator of the tensor's device, a CPU generator, a key, or None for the default
            generator
        device: the device of the tensor

    Raises:
        TypeError, RuntimeError: as :func:`refuse_generator`.
    """
    if torch.compiler.is_compiling():
        return _take_traced_key(name, generator, device)
    if generator is None:
        if device.type != "cuda" or not _HAS_CUDA:
            return _C.draw_default("cpu", -1)
        if _C.is_capturing(device.index):
            return _draw_on_device(device, None)
        return _C.draw_default("cuda", device.index)
    refuse_generator(name, generator, device)
    if isinstance(generator, Key):
        return _to_signed(generator.seed), _to_signed(generator.offset)
    kind = generator.device.type
    if kind == "cuda" and not _HAS_CUDA:
        return _draw_by_state(generator)
    if kind == "cuda" and _C.is_capturing(device.index):
        return _draw_on_device(device, generator)
    if kind in ("cpu", "cuda"):
        return _C.draw(generator)
    seed, offset = _draw_two_integers(generator).tolist()
    return seed, offset


def _take_traced_key(name: str, generator: torch.Generator | Key | None, device: torch.device) -> Tensor:
    """Take the key as a tensor of the graph: plain ints would be guarded on, and compiled anew for every key.

    A torch.Generator does not trace. Handing it to an operator, as here, breaks the graph just there, and
    what comes back is a tensor.
    """
    if isinstance(generator, Key):
        return generator.to_tensor(device)
    refuse_generator(name, generator, device)
    if generator is not None and generator.device.type == "cuda" and not _HAS_CUDA:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a Key or a CPU generator in a compiled function under a build "
            "without CUDA kernels, got a CUDA generator. Give one of those, or build with FORCE_CUDA=1."
        )
    if generator is None or generator.device.type == "cuda":
        return _draw_on_device(device, generator)
    return _draw_two_integers(generator).view(torch.uint64).to(device)


def _draw_on_device(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw inside the graph, so that each run of a compiled or captured one draws anew."""
    key: Tensor = _draw_key(device) if generator is None else _draw_key(device, generator)
    return key


def _draw_by_state(generator: torch.Generator) -> tuple[int, int]:
    """The draw from a CUDA generator where no kernels were built: its state is the host's to read."""
    place = generator.get_offset()
    generator.set_offset(place + 4)
    key = Key(generator.initial_seed() % _TWO_64, place // 4).fold_in(0)
    return _to_signed(key.seed), _to_signed(key.offset)


def _draw_two_integers(generator: torch.Generator) -> Tensor:
    """The draw from a generator that torch alone can advance: two int64 over their whole range."""
    drawn = torch.empty(2, dtype=torch.int64, device=generator.device)
    return drawn.random_(-(2**63), None, generator=generator)
