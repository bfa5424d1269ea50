"""The key of a fill, and how a generator becomes one.

This is the only module with hidden state: a ``torch.Generator``, given or torch's default, is advanced here,
once a fill and by the same amount whatever the tensor's size. Everything after it is a pure function of the
key.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import FrozenInstanceError
from typing import NoReturn, TypeAlias, final

import torch
from torch import Tensor

from paraminit_ext import _C
from paraminit_ext.draws import default_cuda_generator, draw, draw_several, to_signed, words_at
from paraminit_ext.ops import DRAW_KEY as _draw_key
from paraminit_ext.ops import FOLD_IN as _fold_in

_TWO_64 = 1 << 64
_HAS_CUDA = _C.has_cuda()


def _checked_u64(what: str, value: object) -> int:
    """An int, or what stands for one as an index does: a NumPy integer, a tensor of no dimensions."""
    if type(value) is not int:
        kind = type(value).__name__
        try:
            if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
                raise TypeError
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"paraminit_ext.Key: expected an int for {what}, got {kind}. Pass a plain int."
            ) from None
    if not 0 <= value < _TWO_64:
        raise ValueError(
            f"paraminit_ext.Key: expected 0 <= {what} < 2**64, got {value}. Reduce it modulo 2**64."
        )
    return value


def _to_unsigned(value: int) -> int:
    return value % _TWO_64


def _number_of_text(text: str) -> int:
    """What a text stands for in :meth:`Key.fold_in`, as an int64: a constant of a graph that is traced."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


# What torch.compiler.assume_constant_result does, which imports all of torch._dynamo for it.
_number_of_text._dynamo_marked_constant = True  # type: ignore[attr-defined]


@final
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

    # As int64 of the same bits: torch.compile makes symbols of an argument's ints, and knows no larger ones.
    __slots__ = ("_offset", "_seed")
    __match_args__ = ("seed", "offset")
    _seed: int
    _offset: int

    def __init__(self, seed: int, offset: int = 0) -> None:
        object.__setattr__(self, "_seed", to_signed(_checked_u64("seed", seed)))
        object.__setattr__(self, "_offset", to_signed(_checked_u64("offset", offset)))

    @property
    def seed(self) -> int:
        """Which Philox key."""
        return _to_unsigned(self._seed)

    @property
    def offset(self) -> int:
        """The first 128-bit counter."""
        return _to_unsigned(self._offset)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"paraminit_ext.Key: cannot assign to {name!r}. Make another key.")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"paraminit_ext.Key: cannot delete {name!r}. Make another key.")

    def __eq__(self, other: object) -> bool:
        if type(other) is not Key:
            return NotImplemented
        return self._seed == other._seed and self._offset == other._offset

    def __hash__(self) -> int:
        return hash((self._seed, self._offset))

    def __repr__(self) -> str:
        return f"Key(seed={self.seed}, offset={self.offset})"

    def __reduce__(self) -> tuple[type[Key], tuple[int, int]]:
        return Key, (self.seed, self.offset)

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
        if torch.compiler.is_compiling():
            folded: Key = TracedKey(self._words(None)).fold_in(data)  # type: ignore[assignment]
            return folded
        number = _to_unsigned(_number_of_text(data)) if isinstance(data, str) else _checked_u64("data", data)
        return Key(*words_at(self.seed, _to_unsigned(self._offset + number)))

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
        return self._words(device).view(torch.uint64)

    def _words(self, device: torch.device | str | None) -> Tensor:
        return torch.tensor([self._seed, self._offset], dtype=torch.int64, device=device)

    @staticmethod
    def from_tensor(tensor: Tensor) -> Key:
        """Return the key that a tensor of two uint64 holds: the inverse of :meth:`to_tensor`.

        Args:
            tensor: ``[seed, offset]``, of shape (2,) and dtype uint64, or int64 of the same bits, on any
                device that holds data

        Raises:
            TypeError: ``tensor`` is not a tensor of one of these dtypes.
            ValueError: ``tensor`` has another shape, or lies on meta.

        Examples:
            >>> from paraminit_ext import Key
            >>> Key.from_tensor(Key(7, 9).to_tensor())
            Key(seed=7, offset=9)
        """
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.uint64, torch.int64):
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"paraminit_ext.Key.from_tensor: expected a tensor of torch.uint64, got {got}. "
                "Pass what Key.to_tensor() returned."
            )
        if tensor.shape != (2,) or tensor.is_meta:
            raise ValueError(
                "paraminit_ext.Key.from_tensor: expected [seed, offset] on a device that holds data, "
                f"got shape {tuple(tensor.shape)} on {tensor.device}. Pass what Key.to_tensor() returned."
            )
        seed, offset = map(_to_unsigned, tensor.tolist())
        return Key(seed, offset)


class TracedKey:
    """A key that a compiled function has derived: its words are a tensor of the graph, as int64.

    It has what is called on a :class:`Key` inside the function; outside, :meth:`known` makes one of it.
    """

    __slots__ = ("words",)

    def __init__(self, words: Tensor) -> None:
        self.words = words

    def fold_in(self, data: int | str) -> TracedKey:
        number = _number_of_text(data) if isinstance(data, str) else to_signed(_checked_u64("data", data))
        return TracedKey(_fold_in(self.words, number))

    def split(self, n: int) -> tuple[TracedKey, ...]:
        return tuple(self.fold_in(i) for i in range(_checked_u64("n", n)))

    def to_tensor(self, device: torch.device | str | None = None) -> Tensor:
        return self._words(device).view(torch.uint64)

    def _words(self, device: torch.device | str | None) -> Tensor:
        return self.words if device is None else self.words.to(device)

    def known(self) -> Key:
        return Key.from_tensor(self.words)


# What a fill is handed: two u64 as int64, or in a graph that is traced or captured a tensor of them.
FillKey: TypeAlias = tuple[int, int] | Tensor

_C.set_key_type(Key)


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
    if generator is None or isinstance(generator, Key | TracedKey):
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


def generator_of(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """The generator from which a fill on ``device`` draws; None where its state is the device's alone."""
    if device.type == "cuda" and _HAS_CUDA and _C.is_capturing(device.index):
        return None
    if generator is not None:
        return generator
    if device.type != "cuda" or not _HAS_CUDA:
        return torch.default_generator
    return default_cuda_generator(device.index)


def take_key(
    name: str, generator: torch.Generator | Key | TracedKey | None, device: torch.device, plain: bool
) -> FillKey:
    """Turn what the caller passed into the key of one fill on ``device``, taking one draw from a generator.

    Args:
        name: the function that was called, for the messages
        generator: a generator of the tensor's device, a CPU generator, a key, or None for the default
            generator
        device: the device of the tensor
        plain: whether an operator reaches its kernel with nothing in between. Else the draw is one itself: a
            tracer that sees it draws anew at each run of what it has traced.

    Raises:
        TypeError, RuntimeError: as :func:`refuse_generator`.
    """
    if torch.compiler.is_compiling():
        return _take_traced_key(name, generator, device)
    if isinstance(generator, TracedKey):  # one that a compiled function has returned
        generator = generator.known()
    if not plain and not isinstance(generator, Key):
        refuse_generator(name, generator, device)
        return _draw_as_operator(device, generator)
    if generator is None:
        default = generator_of(None, device)
        return _draw_on_device(device, None) if default is None else draw(default)
    refuse_generator(name, generator, device)
    if isinstance(generator, Key):
        return generator._seed, generator._offset
    if generator.device.type == "cuda" and _C.is_capturing(device.index):
        return _draw_on_device(device, generator)
    return draw(generator)


def _take_traced_key(
    name: str, generator: torch.Generator | Key | TracedKey | None, device: torch.device
) -> Tensor:
    """Take the key as a tensor of the graph: plain ints would be guarded on, and compiled anew for every key.

    A torch.Generator does not trace. Handing it to an operator, as here, breaks the graph just there, and
    what comes back is a tensor.
    """
    if isinstance(generator, Key | TracedKey):
        return generator._words(device)
    refuse_generator(name, generator, device)
    if generator is not None and generator.device.type == "cuda" and not _HAS_CUDA:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a Key or a CPU generator in a compiled function under a build "
            "without CUDA kernels, got a CUDA generator. Give one of those, or build with FORCE_CUDA=1."
        )
    if generator is None or generator.device.type == "cuda":
        return _draw_on_device(device, generator)
    return draw_several(generator, 1)[0].to(device)


def _draw_on_device(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw inside the graph, so that each run of a compiled or captured one draws anew."""
    key: Tensor = _draw_key(device=device, generator=generator)
    return key


def _draw_as_operator(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """The same draw as a plain fill's, through the dispatcher."""
    if generator is None or generator.device.type == device.type == "cuda":
        return _draw_on_device(device, generator)
    if generator.device.type == "cpu":
        return _draw_on_device(generator.device, generator).to(device)
    return draw_several(generator, 1)[0].to(device)
