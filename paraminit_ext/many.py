"""``fill_many``: a list of calls of :mod:`paraminit_ext.init` done as one.

Each entry is checked as its own call would check it, by the function that it names. Then elementwise fills
and constants that stand next to each other in the list go to the kernels together; what is more than that (a
matrix, a tensor of another library) is called in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from paraminit_ext import _C, calls, init
from paraminit_ext.draws import draw_several
from paraminit_ext.geometry import Part, Shard, locate, mark_written, refuse_unbacked, refuse_unfillable
from paraminit_ext.key import Key, TracedKey, generator_of, refuse_generator

Source: TypeAlias = torch.Generator | Key | None
Arguments: TypeAlias = Mapping[str, Any]
Entry: TypeAlias = (
    tuple[Tensor | Shard, str]
    | tuple[Tensor | Shard, str, Arguments]
    | tuple[Tensor | Shard, str, Arguments, Source]
)

DRAWING = frozenset(
    {
        "delta_orthogonal_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "lecun_normal_",
        "lecun_uniform_",
        "normal_",
        "orthogonal_",
        "sparse_",
        "trunc_normal_",
        "uniform_",
        "variance_scaling_",
        "xavier_normal_",
        "xavier_uniform_",
    }
)
_CONSTANT = frozenset({"constant_", "ones_", "zeros_"})
_CHECKS: dict[str, Callable[..., Part]] = {"eye_": init._check_eye, "dirac_": init._check_dirac}
NAMES = sorted(DRAWING | _CONSTANT | _CHECKS.keys())
# The functions without what honours __torch_function__.
_PLAIN: dict[str, Callable[..., Tensor]] = {name: inspect.unwrap(getattr(init, name)) for name in NAMES}
_ELEMENTWISE = frozenset({"normal_", "trunc_normal_", "uniform_"})

# What a refused call raises: the same type is raised again, with the entry's index.
_ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError, OverflowError)


def fill_many(entries: Iterable[Entry]) -> list[Tensor]:
    r"""Fill many tensors at once: what the same calls one after the other do, in one.

    Each entry is ``(tensor, name, arguments, key)``: a tensor or a shard, the name of a function of
    :mod:`paraminit_ext.init`, its other arguments by name, and where its numbers come from; the last two may
    be left out. Values, draws and warnings are those of ``init.<name>(tensor, **arguments, generator=key)``,
    entry by entry. On the CPU small tensors share the threads, and on CUDA each distribution and dtype is one
    launch (and one more for each tensor that is strided or not aligned to 16 bytes).

    Args:
        entries: the calls. A key may be a :class:`Key`, a generator, or None, torch's default one, which is
            drawn from in the order of the list; a function that draws nothing leaves its key unused. A tensor
            may come more than once, and tensors may share memory: the last entry is what stays.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError: what the function of an
            entry raises, with the index of that entry; nothing has then been written or drawn. Only an entry
            whose tensor overrides torch's functions, and all entries under a mode or a transform of torch's
            or the capture of a CUDA graph, are not looked at before their turn: these are single calls.

    Returns:
        What the calls return, in order.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, fill_many
        >>> layer, key = torch.nn.Linear(4, 3), Key(2024)
        >>> filled = fill_many(
        ...     [
        ...         (layer.weight, "normal_", {"std": 0.02}, key.fold_in("weight")),
        ...         (layer.bias, "zeros_"),
        ...     ]
        ... )
        >>> filled[0] is layer.weight
        True
    """
    listed = list(entries)
    if torch.compiler.is_compiling() or not _calls_are_plain():
        return [_call(*_parts(index, entry)) for index, entry in enumerate(listed)]
    return _Calls(listed).run()


def _calls_are_plain() -> bool:
    """Whether nothing that torch has between a call and the kernels wants to see each call."""
    if not _C.calls_are_plain() or (torch.cuda.is_initialized() and _C.is_capturing(-1)):
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    # A default device is a mode too, and means nothing to a fill.
    return all(type(mode) is DeviceContext for mode in modes)


def _parts(index: int, entry: Any) -> tuple[Any, str, Arguments, Source]:
    """The four parts of an entry of two to four."""
    if not isinstance(entry, Sequence) or not 2 <= len(entry) <= 4:
        got = f"{len(entry)} parts" if isinstance(entry, Sequence) else type(entry).__name__
        raise TypeError(
            f"paraminit_ext.fill_many: entry {index}: expected (tensor, name, arguments, key), of which the "
            f"last two may be left out, got {got}. Pass one tuple a call."
        )
    tensor, name = entry[:2]
    arguments = entry[2] if len(entry) > 2 else {}
    if not isinstance(name, str) or name not in _PLAIN:
        raise ValueError(
            f"paraminit_ext.fill_many: entry {index}: expected the name of a function, got {name!r}. Use one "
            f"of {', '.join(NAMES)}."
        )
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"paraminit_ext.fill_many: entry {index}: expected a dict of arguments by name, got "
            f"{type(arguments).__name__}. Pass {{}} for none."
        )
    source = entry[3] if len(entry) > 3 else None
    if type(source) is TracedKey and not torch.compiler.is_compiling():
        source = source.known()
    return tensor, name, arguments, source


def resolve_fill(tensor: Tensor, name: str, arguments: Arguments) -> tuple[str, tuple[float, ...]] | None:
    """The fill that a function of :mod:`paraminit_ext.init` comes down to, with its numbers in their order.

    None where the function writes nothing. Nothing is drawn or written here.
    """
    held = calls.Held()
    _PLAIN[name](tensor, **arguments, generator=held)
    return None if held.fill is None else (held.fill, held.parameters)


def _call(tensor: Any, name: str, arguments: Arguments, source: Source) -> Tensor:
    """The single call."""
    function: Callable[..., Tensor] = getattr(init, name)
    if name in DRAWING:
        return function(tensor, **arguments, generator=source)
    return function(tensor, **arguments)


class _Batch:
    """Fills that go to the kernels together: calls of local tensors, which fill each is, its place."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, str, Arguments, Source | Literal[False]]] = []  # False: no draw
        self.which: list[int] = []
        self.indices: list[int] = []  # which entries of the list they are, or -1
        self.wrapped: list[tuple[Tensor, Tensor]] = []  # DTensors, whose local ones are in the calls
        self.places: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}


class _Calls:
    """The entries of one call: checked as it is made, done by `run`."""

    def __init__(self, listed: list[Any]) -> None:
        self.results: list[Any] = []
        self.fills: list[tuple[str, tuple[float, ...] | Tensor]] = []
        self.steps: list[_Batch | tuple[int, Callable[[], Tensor]]] = []
        self.batch = _Batch()
        # The fill of an entry's kind, by the index of its first entry.
        known: dict[int, int] = {}
        self.looked = _C.Entries(listed)
        for index, (entry, first) in enumerate(zip(listed, self.looked.first_alike(), strict=True)):
            fill = known.get(first)
            if fill is not None:
                self.batch.calls.append(entry)
                self.batch.which.append(fill)
                # After a call of another kind, which may do anything, it is looked at again.
                self.batch.indices.append(-1 if self.steps else index)
                self.results.append(entry[0])
                continue
            fill = self._check(index, *_parts(index, entry))
            if first == index and fill is not None:
                known[index] = fill
        self.steps.append(self.batch)

    def _add(self, given: Tensor, local: Tensor, source: Source | Literal[False], fill: Any) -> int:
        self.batch.calls.append((local, "", {}, source))
        if given is not local:
            self.batch.wrapped.append((given, local))
        self.batch.which.append(len(self.fills))
        self.batch.indices.append(-1)
        self.fills.append(fill)
        self.results.append(given)
        return len(self.fills) - 1

    def _then(self, call: Callable[[], Tensor]) -> None:
        """Make this call after all that stands before it."""
        self.steps += [self.batch, (len(self.results), call)]
        self.results.append(None)
        self.batch = _Batch()

    def _check(self, index: int, tensor: Any, name: str, arguments: Arguments, source: Source) -> int | None:
        """Check one entry and append it; its fill, where that may stand for other entries like it."""
        try:
            carrier = tensor.local if type(tensor) is Shard else tensor
            if isinstance(carrier, Tensor) and _overrides(type(carrier)):
                self._then(partial(_call, tensor, name, arguments, source))
                return None
            if name in _CHECKS:
                _CHECKS[name](tensor, **arguments)
                self._then(partial(_call, tensor, name, arguments, None))
                return None
            if name in _CONSTANT:
                return self._check_constant(tensor, name, arguments)
            return self._check_drawing(tensor, name, arguments, source)
        except _ERRORS as error:
            if type(error) not in _ERRORS:
                raise
            message = f"paraminit_ext.fill_many: entry {index} ({name}): {error}"
            raise type(error)(message) from None

    def _check_drawing(self, tensor: Any, name: str, arguments: Arguments, source: Source) -> int | None:
        held = calls.Held()
        given = _PLAIN[name](tensor, **arguments, generator=held)
        if held.fill is None:
            self.results.append(given)
            return None
        part = held.part
        refuse_generator(name, source, part.local.device)
        if part.draws:
            calls.refuse_other_draws(name, part, source)
        if held.fill not in _ELEMENTWISE or part.several or not _C.is_plain(part.local):
            self._then(partial(calls.finish, name, held.fill, part, source, held.parameters))
            return None
        draws: Source | Literal[False] = source if part.draws else False
        fill = self._add(given, part.local, draws, (held.fill, held.parameters))
        if part.global_shape:
            self.batch.places[len(self.batch.calls) - 1] = part.global_shape, part.shard_offset
        # An entry that warns stands for no other, which is to warn as well.
        warns = held.fill == "trunc_normal_" and init._in_a_tail(*held.parameters)
        return None if warns else fill

    def _check_constant(self, tensor: Any, name: str, arguments: Arguments) -> int | None:
        bound = inspect.signature(_PLAIN[name]).bind(tensor, **arguments).arguments
        number = bound["val"] if name == "constant_" else float(name == "ones_")
        part = locate(name, tensor)
        local = part.local
        strided = local.layout is torch.strided
        overlaps = strided and _C.overlaps_itself(local)
        # Elements that share memory are no fault here: torch writes one value to them, however often.
        if strided and not overlaps:
            refuse_unfillable(name, local, frozenset(), kernel=False)
        refuse_unbacked(name, local)
        # torch lets a lone element on the CPU overflow, which it refuses of more.
        count = 1 if local.is_cpu and local.numel() == 1 else 2
        value = torch.empty(count, dtype=local.dtype, device="cpu").fill_(number)[0]
        if overlaps or local.element_size() not in (2, 4, 8) or not _C.is_plain(local):
            self._then(partial(_call, tensor, name, arguments, None))
            return None
        return self._add(part.given, local, None, (name, value))

    def run(self) -> list[Tensor]:
        for step in self.steps:
            if isinstance(step, _Batch):
                with _seen_by_a_profiler():
                    _C.fill_many(
                        self.fills,
                        step.calls,
                        step.which,
                        step.places,
                        self.looked,
                        step.indices,
                        _default_generator,
                        draw_several,
                    )
                for given, local in step.wrapped:
                    mark_written(given, local)
            else:
                index, call = step
                self.results[index] = call()
        return self.results


def _default_generator(tensor: Tensor) -> torch.Generator | None:
    return generator_of(None, tensor.device)


def _seen_by_a_profiler() -> AbstractContextManager[Any]:
    if torch._C._autograd._profiler_enabled():
        return torch.profiler.record_function("paraminit_ext::fill_many")
    return nullcontext()


def _overrides(kind: type[Tensor]) -> bool:
    """Whether tensors of this class have a word to say before torch's functions do."""
    if kind is Tensor:
        return False
    return kind.__torch_function__ is not torch._C._disabled_torch_function_impl
