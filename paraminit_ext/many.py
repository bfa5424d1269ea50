"""``fill_many``: a list of calls of :mod:`paraminit_ext.init`, run as one call.

The function that an entry names checks the entry. Consecutive element-wise fills and constants then go to the
kernels together. Any other entry (a matrix, a tensor subclass) is a single call at its place in the list.
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

from paraminit_ext import _C, dispatch, init
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

DRAWING_FUNCTIONS = frozenset(
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
FUNCTION_NAMES = sorted(DRAWING_FUNCTIONS | _CONSTANT | _CHECKS.keys())
# The functions without the decorator that honours __torch_function__.
_PLAIN: dict[str, Callable[..., Tensor]] = {
    name: inspect.unwrap(getattr(init, name)) for name in FUNCTION_NAMES
}
_ELEMENTWISE = frozenset({"normal_", "trunc_normal_", "uniform_"})

# The types of errors that a refused call raises. The same type is raised again, with the entry's index.
_ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError, OverflowError)


def fill_many(entries: Iterable[Entry]) -> list[Tensor]:
    r"""Fill many tensors in one call, with the results of the same calls made one after the other.

    Each entry is a tuple ``(tensor, name, arguments, key)``: a tensor or a shard, the name of a function of
    :mod:`paraminit_ext.init`, a dict of its other arguments, and its key or generator. The last two may be
    left out. Values, draws and warnings are the same as those of ``init.<name>(tensor, **arguments,
    generator=key)``, entry by entry. On the CPU, small tensors share the threads. On CUDA, each distribution
    and dtype takes one launch, and each tensor that is strided or not aligned to 16 bytes takes one more.

    Args:
        entries: the calls. A key may be a :class:`~paraminit_ext.Key`, a generator, or None for torch's
            default generator. Draws from generators follow the order of the list. Functions that draw nothing
            ignore their key. A tensor may occur more than once, and tensors may share memory; the last entry
            wins.

    Returns:
        The tensors that the calls return, in order.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError, OverflowError: the error
            that the function of an entry raises, with the index of that entry. Nothing has then been written
            or drawn.
            Some entries are single calls and are checked only when their turn comes: an entry whose tensor
            overrides torch functions, and every entry while a torch mode, a torch transform or the capture of
            a CUDA graph is active.

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
        return [_call(*_unpack_entry(index, entry)) for index, entry in enumerate(listed)]
    return _Calls(listed).run()


def _calls_are_plain() -> bool:
    """Return whether no mode, transform or graph capture needs to see each call."""
    if not _C.dispatch_is_plain() or (torch.cuda.is_initialized() and _C.is_capturing(-1)):
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    # A default device is a mode too, but it does not affect fills.
    return all(type(mode) is DeviceContext for mode in modes)


def _unpack_entry(index: int, entry: Any) -> tuple[Any, str, Arguments, Source]:
    """Return tensor, name, arguments and source of an entry, with defaults for those left out."""
    if not isinstance(entry, Sequence) or not 2 <= len(entry) <= 4:
        got = f"{len(entry)} parts" if isinstance(entry, Sequence) else type(entry).__name__
        raise TypeError(
            f"paraminit_ext.fill_many: entry {index}: expected (tensor, name[, arguments[, key]]), got "
            f"{got}. Pass one tuple for each call."
        )
    tensor, name = entry[:2]
    arguments = entry[2] if len(entry) > 2 else {}
    if not isinstance(name, str) or name not in _PLAIN:
        raise ValueError(
            f"paraminit_ext.fill_many: entry {index}: expected the name of a function, got {name!r}. Use one "
            f"of {', '.join(FUNCTION_NAMES)}."
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
    """Return the operator and the parameters of the fill that ``init.<name>`` would do.

    Return None if the function would write nothing. This function does not draw or write.
    """
    pending = dispatch.PendingFill()
    _PLAIN[name](tensor, **arguments, generator=pending)
    return None if pending.fill is None else (pending.fill, pending.parameters)


def _call(tensor: Any, name: str, arguments: Arguments, source: Source) -> Tensor:
    """Make one call of a function of :mod:`paraminit_ext.init`."""
    function: Callable[..., Tensor] = getattr(init, name)
    if name in DRAWING_FUNCTIONS:
        return function(tensor, **arguments, generator=source)
    return function(tensor, **arguments)


class _Batch:
    """Consecutive fills that go to the kernels together."""

    def __init__(self) -> None:
        # Local tensor, two unused items, source. A source of False takes no draw.
        self.calls: list[tuple[Tensor, str, Arguments, Source | Literal[False]]] = []
        self.fill_indices: list[int] = []  # for each call, its index in _Calls.fills
        self.entry_indices: list[int] = []  # for each call, its index in _Calls.entries, or -1
        self.dtensors: list[tuple[Tensor, Tensor]] = []  # DTensors with their local tensors
        # Global shape and shard offset, by the index of the call.
        self.shards: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}


class _Calls:
    """The entries of one call of `fill_many`. The constructor checks them, and `run` does the fills."""

    def __init__(self, listed: list[Any]) -> None:
        self.results: list[Any] = []
        self.fills: list[tuple[str, tuple[float, ...] | Tensor]] = []
        self.steps: list[_Batch | tuple[int, Callable[[], Tensor]]] = []
        self.batch = _Batch()
        # Entries that are alike share a fill, stored by the index of the first of them.
        fill_of_first: dict[int, int] = {}
        self.entries = _C.Entries(listed)
        for index, (entry, first) in enumerate(zip(listed, self.entries.first_equivalent(), strict=True)):
            fill = fill_of_first.get(first)
            if fill is not None:
                self.batch.calls.append(entry)
                self.batch.fill_indices.append(fill)
                # A single call before this entry may change its tensor, so the tensor is described again.
                self.batch.entry_indices.append(-1 if self.steps else index)
                self.results.append(entry[0])
                continue
            fill = self._check(index, *_unpack_entry(index, entry))
            if first == index and fill is not None:
                fill_of_first[index] = fill
        self.steps.append(self.batch)

    def _add(self, given: Tensor, local: Tensor, source: Source | Literal[False], fill: Any) -> int:
        self.batch.calls.append((local, "", {}, source))
        if given is not local:
            self.batch.dtensors.append((given, local))
        self.batch.fill_indices.append(len(self.fills))
        self.batch.entry_indices.append(-1)
        self.fills.append(fill)
        self.results.append(given)
        return len(self.fills) - 1

    def _append_single_call(self, call: Callable[[], Tensor]) -> None:
        """Append a call that runs on its own, after all entries before it."""
        self.steps += [self.batch, (len(self.results), call)]
        self.results.append(None)
        self.batch = _Batch()

    def _check(self, index: int, tensor: Any, name: str, arguments: Arguments, source: Source) -> int | None:
        """Check one entry and append it. Return the index of its fill if later entries may share it."""
        try:
            carrier = tensor.local if type(tensor) is Shard else tensor
            if isinstance(carrier, Tensor) and _overrides(type(carrier)):
                self._append_single_call(partial(_call, tensor, name, arguments, source))
                return None
            if name in _CHECKS:
                _CHECKS[name](tensor, **arguments)
                self._append_single_call(partial(_call, tensor, name, arguments, None))
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
        pending = dispatch.PendingFill()
        given = _PLAIN[name](tensor, **arguments, generator=pending)
        if pending.fill is None:
            self.results.append(given)
            return None
        part = pending.part
        refuse_generator(name, source, part.local.device)
        if part.draws:
            dispatch.refuse_unequal_generators(name, part, source)
        if pending.fill not in _ELEMENTWISE or part.box_views or not _C.is_plain(part.local):
            self._append_single_call(
                partial(dispatch.fill_checked, name, pending.fill, part, source, pending.parameters)
            )
            return None
        draws: Source | Literal[False] = source if part.draws else False
        fill = self._add(given, part.local, draws, (pending.fill, pending.parameters))
        if part.global_shape:
            self.batch.shards[len(self.batch.calls) - 1] = part.global_shape, part.shard_offset
        # Every entry that warns is checked separately, so that each of them warns.
        warns = pending.fill == "trunc_normal_" and init._in_a_tail(*pending.parameters)
        return None if warns else fill

    def _check_constant(self, tensor: Any, name: str, arguments: Arguments) -> int | None:
        bound = inspect.signature(_PLAIN[name]).bind(tensor, **arguments).arguments
        number = bound["val"] if name == "constant_" else float(name == "ones_")
        part = locate(name, tensor)
        local = part.local
        strided = local.layout is torch.strided
        overlaps = strided and _C.overlaps_itself(local)
        # Elements may share memory here, because all of them get the same value.
        if strided and not overlaps:
            refuse_unfillable(name, local, frozenset(), kernel=False)
        refuse_unbacked(name, local)
        # torch refuses a value that overflows the dtype, except for a single element on the CPU.
        count = 1 if local.is_cpu and local.numel() == 1 else 2
        value = torch.empty(count, dtype=local.dtype, device="cpu").fill_(number)[0]
        if overlaps or local.element_size() not in (2, 4, 8) or not _C.is_plain(local):
            self._append_single_call(partial(_call, tensor, name, arguments, None))
            return None
        return self._add(part.given, local, None, (name, value))

    def run(self) -> list[Tensor]:
        for step in self.steps:
            if isinstance(step, _Batch):
                with _profiler_range():
                    _C.fill_many(
                        self.fills,
                        step.calls,
                        step.fill_indices,
                        step.shards,
                        self.entries,
                        step.entry_indices,
                        _default_generator,
                        draw_several,
                    )
                for given, local in step.dtensors:
                    mark_written(given, local)
            else:
                index, call = step
                self.results[index] = call()
        return self.results


def _default_generator(tensor: Tensor) -> torch.Generator | None:
    return generator_of(None, tensor.device)


def _profiler_range() -> AbstractContextManager[Any]:
    if torch._C._autograd._profiler_enabled():
        return torch.profiler.record_function("paraminit_ext::fill_many")
    return nullcontext()


def _overrides(kind: type[Tensor]) -> bool:
    """Return whether tensors of this class override torch functions."""
    if kind is Tensor:
        return False
    return kind.__torch_function__ is not torch._C._disabled_torch_function_impl
