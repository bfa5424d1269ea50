"""What a checkpoint holds: tensors, named as transformers would save them, and where their values are from.

Nothing is written here, and only those values are made that are asked for.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import math
import re
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paraminit_ext.geometry import loaded
from paraminit_ext.key import Key
from paraminit_ext.models.deferred import mark_of, state_of
from paraminit_ext.models.layout import Geometry, contiguous_stride
from paraminit_ext.models.names import Kind, Named, local_tensor, named_tensors, unwrapped
from paraminit_ext.models.pieces import is_in_pieces
from paraminit_ext.models.plan import Entry, InitPlan, recorded
from paraminit_ext.models.write import parts_of_range

# Elements of a part, which one thread makes while another writes the last one: 0.9 of the time of parts of
# half that size, and two of them stay in a cache.
_PART = 1 << 19
_SAVED: tuple[Kind, ...] = ("parameter", "buffer")


@dataclass(frozen=True, slots=True)
class Source:
    """Where values come from.

    Args:
        plan: whose entry it is
        entry: the one that has the steps
        dtypes: what the values are converted to, one after the other; the first is the entry's own
    """

    plan: InitPlan
    entry: Entry
    dtypes: tuple[torch.dtype, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[-1]

    def parts(self, key: Key | None, begin: int, end: int) -> Iterator[Tensor]:
        """The elements from ``begin`` to ``end`` in row-major order; see :func:`write.parts`."""
        filled = self.dtypes[:2][-1]
        for part in parts_of_range(self.plan, self.entry, filled, begin, end, key, elements=_PART):
            for dtype in self.dtypes[2:]:
                part = part.to(dtype)
            yield part

    def whole(self, key: Key | None) -> Tensor:
        made = torch.empty(math.prod(self.entry.shape), dtype=self.dtype, device="cpu")
        done = 0
        for part in self.parts(key, 0, made.numel()):
            made[done : done + part.numel()] = part
            done += part.numel()
        return made.view(self.entry.shape)

    def definition(self, key: Key | None) -> str:
        """A text that is the same for the same values: all that they hang on."""
        entry = self.entry
        keys = [draw.resolve(key or self.plan.key) for draw in entry.draws]
        named = (dict(step.arguments)["value"] for step in entry.steps if step.do == "value")
        values = [hashlib.sha256(memory(self.plan.values[name])).hexdigest() for name in named]
        return repr((entry.shape, self.dtypes, entry.steps, entry.layout, keys, values))


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor of a checkpoint.

    Args:
        name: its name there
        shape: its sizes
        dtype: its dtype there
        sources: what its values come from, by the names that the model has for it
        begin: of the one source, the element in row-major order with which it begins
        reversal: what gives its values where they are no such range
        storage: what those have in common that transformers puts into one file, and counts once
        storage_bytes: the size of that
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: Mapping[str, Source]
    storage: Hashable
    storage_bytes: int
    begin: int = 0
    reversal: Reversal | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_in_parts(self) -> bool:
        """Whether no more than parts of it are ever there."""
        return self.reversal is None and all(is_in_pieces(one.entry) for one in self.sources.values())

    def parts(self, key: Key | None) -> Iterator[Tensor]:
        """The values, flat, part by part."""
        if self.reversal is not None:
            yield self.reversal.value(self.name, self.sources, key).flatten()
            return
        (source,) = self.sources.values()
        yield from source.parts(key, self.begin, self.begin + math.prod(self.shape))

    def definition(self, key: Key | None) -> str:
        of = {name: source.definition(key) for name, source in self.sources.items()}
        return repr((self.name, self.shape, self.dtype, self.begin, self.reversal is not None, of))


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of a checkpoint in the order in which they are put into files; how many are parameters."""

    tensors: list[Saved]
    parameters: int


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without NumPy, which torch does without too."""
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


# ----------------------------------------------------------------------------------------
# Of a plan, of a module
# ----------------------------------------------------------------------------------------


def contents_of_plan(plan: InitPlan, dtype: torch.dtype | None) -> Contents:
    """What a plan says of parameters and persistent buffers; of tied ones the first."""
    first: dict[str, Source] = {}
    seen: set[str] = set()
    parameters = 0
    for entry in plan:
        source = plan.resolved(entry)
        if entry.kind in _SAVED and source.name not in seen:
            seen.add(source.name)
            first[entry.name] = Source(plan, source, _dtypes([source.dtype], entry.kind, dtype))
            parameters += math.prod(entry.shape) if entry.kind == "parameter" else 0
    return Contents(_as_they_are(first), parameters)


def contents_of_module(module: nn.Module, dtype: torch.dtype | None) -> Contents:
    """The same of a module that deferred_init made, as it is now: its names, ties and dtypes.

    Raises:
        ValueError: it has no plan, or a tensor that is not the plan's.
    """
    inner = unwrapped(module)
    if recorded(inner) is None:
        _refuse(f"a module that deferred_init made, got a {type(inner).__name__} without a plan", _REMEDY)
    # By where a tensor lies, which is the same for tied ones.
    sources: dict[Hashable, Source] = {}
    names: dict[Hashable, list[str]] = {}
    parameters = 0
    for one in named_tensors(inner):
        if one.kind not in _SAVED:
            continue
        local = local_tensor(one.tensor)
        place = local.untyped_storage()._cdata, Geometry.of(local)
        if place not in sources:
            sources[place] = _source(one, dtype)
            parameters += one.tensor.numel() if one.kind == "parameter" else 0
        names.setdefault(place, []).append(one.name)
    if not is_pretrained(inner):
        return Contents(_as_they_are({of[0]: sources[place] for place, of in names.items()}), parameters)
    tied = _tied_names(inner)
    ignored = set(inner._keys_to_ignore_on_save or ())
    kept = {_kept(of, tied): sources[place] for place, of in names.items()}
    named = [one.name for one in named_tensors(inner) if one.name in kept and one.name not in ignored]
    return Contents(Reversal(inner).saved({name: kept[name] for name in named}), parameters)


_REMEDY = "Build it by deferred_init, or save what has values by save_pretrained or torch.save."


def _refuse(what: str, remedy: str) -> NoReturn:
    raise ValueError(f"paraminit_ext.save_initialized: expected {what}. {remedy}")


def _source(one: Named, dtype: torch.dtype | None) -> Source:
    """Where the values of a module's tensor come from."""
    mark = mark_of(one)
    found = recorded(one.owner)
    if mark is not None:
        plan, name, dtypes = mark.plan, mark.name, mark.dtypes
        if mark.state != state_of(local_tensor(one.tensor)):
            _refuse(
                f"{one.name} as it was recorded, got it written or given other memory since, which is lost",
                "Do that inside deferred_init.",
            )
    elif found is not None:
        (plan, path), dtypes = found, []
        name = f"{path}.{one.attribute}" if path else one.attribute
    if (mark is None and found is None) or name not in plan.entries:
        _refuse(f"tensors that deferred_init made, got {one.name} without a plan", _REMEDY)
    entry = plan.entries[name]
    if tuple(one.tensor.shape) != entry.shape:
        _refuse(
            f"shape {entry.shape} for {one.name}, got {tuple(one.tensor.shape)}",
            "Change it inside deferred_init.",
        )
    source = plan.resolved(entry)
    return Source(plan, source, _dtypes([source.dtype, *dtypes, one.tensor.dtype], entry.kind, dtype))


def _dtypes(dtypes: list[torch.dtype], kind: Kind, last: torch.dtype | None) -> tuple[torch.dtype, ...]:
    """The conversions: as ``materialize_module`` does them."""
    if last is not None and dtypes[-1].is_floating_point and kind in _SAVED:
        dtypes.append(last)
    return tuple(dtype for dtype, before in zip(dtypes, [None, *dtypes], strict=False) if dtype != before)


def _as_they_are(sources: Mapping[str, Source]) -> list[Saved]:
    return [
        Saved(
            name,
            source.entry.shape,
            source.dtype,
            {name: source},
            storage=name,
            storage_bytes=math.prod(source.entry.shape) * source.dtype.itemsize,
        )
        for name, source in sources.items()
    ]


# ----------------------------------------------------------------------------------------
# Of a model of transformers
# ----------------------------------------------------------------------------------------


def is_pretrained(module: nn.Module) -> TypeGuard[Any]:
    """Whether it is a model of transformers."""
    kind = loaded("transformers.modeling_utils", "PreTrainedModel")
    return kind is not None and isinstance(module, kind)


def _tied_names(model: Any) -> list[str]:
    """Names of tied tensors that the model's classes leave out; transformers takes them as patterns."""
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in getattr(module, "_tied_weights_keys", None) or ()
    ]


def _kept(names: list[str], tied: list[str]) -> str:
    """Of several names of a tensor the one that transformers saves; the first, if it knows of no tie."""
    known = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in tied)]
    left_out = set(known[: len(names) - 1])
    return next(name for name in names if name not in left_out)


class Reversal:
    """The way from a model's tensors to those of its checkpoints, which may have other names and shapes.

    transformers renames, splits and joins tensors when it saves a model. Its own code does so here: once on
    meta, to see what comes of what. A tensor of a checkpoint that is a range of one of the model's, as the
    weight of an expert is, is then made by itself; any other is made by that code from whole tensors.

    Args:
        model: the model of transformers
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # What was made last: the tensors that come of the same ones follow each other.
        self._made: tuple[Hashable, dict[str, Tensor]] = None, {}

    def _revert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        reverted: dict[str, Tensor] = revert_weight_conversion(self._model, tensors)
        return reverted

    def saved(self, sources: Mapping[str, Source]) -> list[Saved]:
        """The tensors of a checkpoint of these tensors of the model, in transformers' order."""
        meta = {
            name: torch.empty(source.entry.shape, dtype=source.dtype, device="meta")
            for name, source in sources.items()
        }
        origin = _Origin(meta)
        with origin:
            reverted = self._revert(dict(meta))
        found: list[Saved] = []
        for name, tensor in reverted.items():
            storage = tensor.untyped_storage()
            place = origin.range_of(tensor)
            names = sorted(origin.names_of(tensor)) if place is None else [place[0]]
            found.append(
                Saved(
                    name,
                    tuple(tensor.shape),
                    tensor.dtype,
                    {name: sources[name] for name in names},
                    storage._cdata,
                    storage.nbytes(),
                    begin=place[1] if place else 0,
                    reversal=None if place else self,
                )
            )
        return found

    def value(self, name: str, sources: Mapping[str, Source], key: Key | None) -> Tensor:
        """The tensor of the checkpoint, which comes of these whole ones of the model."""
        of = tuple(sources), key
        if self._made[0] != of:
            self._made = None, {}
            self._made = of, self._revert({name: source.whole(key) for name, source in sources.items()})
        if name not in self._made[1]:
            raise NotImplementedError(
                f"paraminit_ext.save_initialized: expected {name} to come of {', '.join(sources)} alone, got "
                "another conversion of transformers. Materialise the model and call save_pretrained."
            )
        return self._made[1][name]


class _Origin(TorchDispatchMode):
    """Sees what tensors on meta are made of: which ones, and of copies what was copied.

    Args:
        tensors: by name, what there is in the beginning
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = {tensor.untyped_storage()._cdata: name for name, tensor in tensors.items()}
        self._names = {storage: {name} for storage, name in self._whole.items()}
        self._copied: dict[int, Tensor] = {}
        # No storage may take the place of another.
        self._held: list[Tensor] = list(tensors.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        names = {name for one in given for name in self.names_of(one)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()._cdata
                # A copy may keep an order of elements that is not row-major.
                is_copy = func is torch.ops.aten.clone.default and tensor.is_contiguous()
                if is_copy and storage not in self._names:
                    self._copied[storage] = given[0]
                self._names.setdefault(storage, names)
                self._held.append(tensor)
        return made

    def names_of(self, tensor: Tensor) -> set[str]:
        """Which of the tensors of the beginning it comes of."""
        return self._names.get(tensor.untyped_storage()._cdata, set())

    def range_of(self, tensor: Tensor) -> tuple[str, int] | None:
        """The one of which it is a range in row-major order, and where that begins; None if it is none."""
        begin, numel = int(tensor.storage_offset()), tensor.numel()
        if not tensor.is_contiguous():
            return None
        while (storage := tensor.untyped_storage()._cdata) not in self._whole:
            copied = self._copied.get(storage)
            if copied is None:
                return None
            tensor, inner = copied, _contiguous_length(copied)
            if begin // inner != (begin + max(numel, 1) - 1) // inner:
                return None
            lengths = contiguous_stride(tensor.shape)
            begin = int(tensor.storage_offset()) + sum(
                begin // length % size * stride
                for length, size, stride in zip(lengths, tensor.shape, tensor.stride(), strict=True)
            )
        return self._whole[storage], begin


def _contiguous_length(tensor: Tensor) -> int:
    """How many elements, in row-major order, lie side by side in its storage."""
    reach = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if size != 1 and stride != reach:
            break
        reach *= size
    return max(reach, 1)


def config_files(model: Any, dtype: torch.dtype | None, own: bool) -> dict[str, bytes]:
    """The files that transformers writes beside a model's tensors, by name; the model is left as it is.

    Args:
        model: the model of transformers
        dtype: what its tensors are converted to
        own: whether its own ``config.json`` is among them
    """
    with tempfile.TemporaryDirectory() as folder:
        if own:
            config = copy.deepcopy(model.config)
            config.dtype = str(dtype or model.dtype).removeprefix("torch.")
            config.architectures = [type(model).__name__.removeprefix("FSDP")]
            config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
