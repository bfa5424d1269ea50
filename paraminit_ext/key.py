"""The key of a fill, and how a generator gives a key.

A fill advances a ``torch.Generator`` (the caller's or torch's default one) once, by the same amount whatever
the tensor's size; :mod:`paraminit_ext.draws` does this. Everything else is a pure function of the key.
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


def _checked_u64(what: str, value: object, name: str = "Key", also: str = "") -> int:
    """Return ``value`` (an int, a NumPy integer or a zero-dimensional tensor) as an int in [0, 2**64).

    Errors name the function ``name``, and what it accepts ``also``.
    """
    if type(value) is not int:
        kind = type(value).__name__
        try:
            if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
                raise TypeError
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"paraminit_ext.{name}: expected an int{also} for {what}, got {kind}. Pass a plain int."
            ) from None
    if not 0 <= value < _TWO_64:
        raise ValueError(
            f"paraminit_ext.{name}: expected 0 <= {what} < 2**64, got {value}. Reduce it modulo 2**64."
        )
    return value


def _checked_count(n: object) -> int:
    """Return the number of keys that :meth:`Key.split` is asked for."""
    if isinstance(n, int) and n < 0:
        raise ValueError(f"paraminit_ext.Key.split: expected n >= 0, got {n}. Pass the number of keys.")
    return _checked_u64("n", n, "Key.split")


def _to_unsigned(value: int) -> int:
    return value % _TWO_64


def _number_of_text(text: str) -> int:
    """Return the int64 that a text stands for in :meth:`Key.fold_in`. Traced graphs hold it as a constant."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


# The effect of torch.compiler.assume_constant_result, which would import all of torch._dynamo.
_number_of_text._dynamo_marked_constant = True  # type: ignore[attr-defined]


@final
class Key:
    """Key of a fill: the position in the random stream from which the fill takes its words.

    Equal keys give equal tensors, on every device and for every sharding. To number layers, parameters or
    runs, use :meth:`fold_in`. Do not add to ``offset``: fills at neighbouring offsets share all counters
    except one.

    Args:
        seed: the Philox key, ``0 <= seed < 2**64``
        offset: the first 128-bit counter, ``0 <= offset < 2**64``

    Raises:
        TypeError: if ``seed`` or ``offset`` is not an int (a bool is not accepted).
        ValueError: if ``seed`` or ``offset`` is outside [0, 2**64).

    Source: `Parallel random numbers: as easy as 1, 2, 3` - Salmon, J. et al. (2011): Philox4x32-10.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, init
        >>> key = Key(2024).fold_in("layers.0.weight")
        >>> a, b = (init.normal_(torch.empty(3, 5), generator=key) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """

    # Stored as int64 with the same bits: torch.compile turns ints into symbols, which hold no larger numbers.
    __slots__ = ("_offset", "_seed")
    __match_args__ = ("seed", "offset")
    _seed: int
    _offset: int

    def __init__(self, seed: int, offset: int = 0) -> None:
        object.__setattr__(self, "_seed", to_signed(_checked_u64("seed", seed)))
        object.__setattr__(self, "_offset", to_signed(_checked_u64("offset", offset)))

    @property
    def seed(self) -> int:
        """The Philox key."""
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
        """Return a new key derived from this key and ``data``.

        The new key consists of the four words of counter ``offset + data``.

        Args:
            data: an int in [0, 2**64), or a text such as a parameter's name, which stands for the first 8
                bytes of its SHA-256, little-endian

        Raises:
            TypeError: if ``data`` is neither an int nor a str.
            ValueError: if ``data`` is outside [0, 2**64).

        Examples:
            >>> from paraminit_ext import Key
            >>> hex(Key(0).fold_in(0).seed)
            '0xe169c58d6627e8d5'
        """
        if torch.compiler.is_compiling():
            folded: Key = TracedKey(self._words(None)).fold_in(data)  # type: ignore[assignment]
            return folded
        number = (
            _to_unsigned(_number_of_text(data))
            if isinstance(data, str)
            else _checked_u64("data", data, "Key.fold_in", " or a str")
        )
        return Key(*words_at(self.seed, _to_unsigned(self._offset + number)))

    def split(self, n: int) -> tuple[Key, ...]:
        """Return ``n`` keys, ``fold_in(0)`` to ``fold_in(n - 1)``.

        Args:
            n: the number of keys, not negative

        Raises:
            TypeError: if ``n`` is not an int.
            ValueError: if ``n`` is negative.

        Examples:
            >>> from paraminit_ext import Key
            >>> Key(7).split(2) == (Key(7).fold_in(0), Key(7).fold_in(1))
            True
        """
        return tuple(self.fold_in(i) for i in range(_checked_count(n)))

    def to_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """Return ``[seed, offset]`` as a tensor of two uint64.

        Args:
            device: the device of the tensor (default: torch's current default device)

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
        """Return the key that a tensor of two uint64 holds. This is the inverse of :meth:`to_tensor`.

        Args:
            tensor: ``[seed, offset]``, of shape (2,) and dtype uint64 (or int64 with the same bits), on any
                device except meta

        Raises:
            TypeError: if ``tensor`` is not a tensor of one of these dtypes.
            ValueError: if ``tensor`` has another shape or is on meta.

        Examples:
            >>> from paraminit_ext import Key
            >>> Key.from_tensor(Key(7, 9).to_tensor())
            Key(seed=7, offset=9)
        """
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.uint64, torch.int64):
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"paraminit_ext.Key.from_tensor: expected a tensor of torch.uint64, got {got}. "
                "Pass the result of Key.to_tensor()."
            )
        if tensor.shape != (2,) or tensor.is_meta:
            raise ValueError(
                "paraminit_ext.Key.from_tensor: expected [seed, offset] on a device that holds data, "
                f"got shape {tuple(tensor.shape)} on {tensor.device}. Pass the result of Key.to_tensor()."
            )
        seed, offset = map(_to_unsigned, tensor.tolist())
        return Key(seed, offset)


class TracedKey:
    """A key inside a compiled function: its words are an int64 tensor of the graph.

    It has the methods that the compiled function may call on a :class:`Key`. Outside the function,
    :meth:`known` converts it to a :class:`Key`.
    """

    __slots__ = ("words",)

    def __init__(self, words: Tensor) -> None:
        self.words = words

    def fold_in(self, data: int | str) -> TracedKey:
        number = (
            _number_of_text(data)
            if isinstance(data, str)
            else to_signed(_checked_u64("data", data, "Key.fold_in", " or a str"))
        )
        return TracedKey(_fold_in(self.words, number))

    def split(self, n: int) -> tuple[TracedKey, ...]:
        return tuple(self.fold_in(i) for i in range(_checked_count(n)))

    def to_tensor(self, device: torch.device | str | None = None) -> Tensor:
        return self._words(device).view(torch.uint64)

    def _words(self, device: torch.device | str | None) -> Tensor:
        return self.words if device is None else self.words.to(device)

    def known(self) -> Key:
        return Key.from_tensor(self.words)


# The key as a fill receives it: two u64 as int64, or a tensor of them in a traced or captured graph.
FillKey: TypeAlias = tuple[int, int] | Tensor

_C.set_key_type(Key)


def refuse_generator(name: str, generator: object, device: torch.device) -> None:
    """Raise unless ``generator`` can give the key of a fill on ``device``. The generator does not advance.

    Args:
        name: the function that was called, for the message
        generator: the generator argument of the caller
        device: the device of the tensor; meta accepts every generator, because it draws from none

    Raises:
        TypeError: if ``generator`` is not a torch.Generator, a Key or None.
        RuntimeError: if the generator belongs to another kind of device.
    """
    if generator is None or isinstance(generator, Key | TracedKey):
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"paraminit_ext.{name}: expected a torch.Generator, a paraminit_ext.Key or None for generator, "
            f"got {type(generator).__name__}. Pass paraminit_ext.Key(seed) for a fixed seed."
        )
    kind = generator.device.type
    if kind not in ("cpu", device.type) and device.type != "meta":
        kinds = "cpu" if device.type == "cpu" else f"{device.type} or cpu"
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a generator of {kinds} for a tensor on {device}, got one of "
            f"{generator.device}. Pass a CPU generator, which serves every device."
        )


def generator_of(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """Return the generator from which a fill on ``device`` draws.

    Return None while a CUDA graph is captured, because the generator's state is then only on the device.
    """
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
    """Return the key of one fill on ``device``, with one draw if ``generator`` is not a key.

    Args:
        name: the function that was called, for the messages
        generator: a generator of the tensor's device, a CPU generator, a key, or None for the default
            generator
        device: the device of the tensor
        plain: whether an operator call reaches its kernel directly. Otherwise the draw is an operator call
            too, so that a tracer records it and each run of the traced graph takes a new draw.

    Raises:
        TypeError, RuntimeError: as in :func:`refuse_generator`.
    """
    if torch.compiler.is_compiling():
        return _take_traced_key(name, generator, device)
    if isinstance(generator, TracedKey):  # a compiled function returned it
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
    """Return the key as a tensor of the graph, because plain ints would cause a recompilation for every key.

    A torch.Generator cannot be traced. Passing it to an operator breaks the graph only at this call, and the
    operator returns a tensor.
    """
    if isinstance(generator, Key | TracedKey):
        return generator._words(device)
    refuse_generator(name, generator, device)
    if generator is not None and generator.device.type == "cuda" and not _HAS_CUDA:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a Key or a CPU generator in a compiled function under a build "
            "without CUDA kernels, got a CUDA generator. Pass a Key or a CPU generator, or build with "
            "FORCE_CUDA=1."
        )
    if generator is None or generator.device.type == "cuda":
        return _draw_on_device(device, generator)
    return draw_several(generator, 1)[0].to(device)


def _draw_on_device(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw inside the graph, so that each run of a compiled or captured graph takes a new draw."""
    key: Tensor = _draw_key(device=device, generator=generator)
    return key


def _draw_as_operator(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Take the same draw as a plain fill, through the dispatcher."""
    if generator is None or generator.device.type == device.type == "cuda":
        return _draw_on_device(device, generator)
    if generator.device.type == "cpu":
        return _draw_on_device(generator.device, generator).to(device)
    return draw_several(generator, 1)[0].to(device)
