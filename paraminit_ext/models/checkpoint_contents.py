"""The contents of a checkpoint: its tensors, named as transformers saves them, and their sources.

This module writes nothing, and it makes values only when a caller iterates over them.
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

from paraminit_ext.geometry import class_if_imported
from paraminit_ext.key import Key
from paraminit_ext.models.deferred import mark_of
from paraminit_ext.models.layout import Geometry, contiguous_stride, dtype_name
from paraminit_ext.models.names import Kind, NamedTensor, local_tensor, named_tensors, unwrapped
from paraminit_ext.models.pieces import can_run_in_pieces
from paraminit_ext.models.plan import Entry, InitPlan, plan_and_path
from paraminit_ext.models.write import parts_of_range

# The number of elements of a part. One thread makes a part while another writes the last one. Parts of this
# size take 0.9 of the time of parts of half the size, and two of them stay in a cache.
_PART = 1 << 19
_SAVED_KINDS: tuple[Kind, ...] = ("parameter", "buffer")


@dataclass(frozen=True, slots=True)
class Source:
    """The source of the values of a tensor: an entry of a plan, and conversions.

    Args:
        plan: the plan of the entry
        entry: the entry that has the steps
        dtypes: the dtypes to which the values are converted in turn, starting with the dtype of the entry
    """

    plan: InitPlan
    entry: Entry
    dtypes: tuple[torch.dtype, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[-1]

    def parts(self, key: Key | None, begin: int, end: int) -> Iterator[Tensor]:
        """Yield the elements from ``begin`` to ``end`` in row-major order; see :func:`write.parts`."""
        fill_dtype = self.dtypes[:2][-1]
        for part in parts_of_range(self.plan, self.entry, fill_dtype, begin, end, key, elements=_PART):
            for dtype in self.dtypes[2:]:
                part = part.to(dtype)
            yield part

    def whole(self, key: Key | None) -> Tensor:
        """Return the whole tensor."""
        whole = torch.empty(math.prod(self.entry.shape), dtype=self.dtype, device="cpu")
        done = 0
        for part in self.parts(key, 0, whole.numel()):
            whole[done : done + part.numel()] = part
            done += part.numel()
        return whole.view(self.entry.shape)

    def definition(self, key: Key | None) -> str:
        """Return a text that identifies the values: everything on which they depend."""
        entry = self.entry
        keys = [draw.resolve(key or self.plan.key) for draw in entry.draws]
        value_names = (dict(step.arguments)["value"] for step in entry.steps if step.do == "value")
        digests = [hashlib.sha256(memory(self.plan.values[name])).hexdigest() for name in value_names]
        return repr((entry.shape, self.dtypes, entry.steps, entry.layout, keys, digests))


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of a checkpoint.

    Args:
        name: the name in the checkpoint
        shape: the shape
        dtype: the dtype in the checkpoint
        sources: the sources of the values, by the names of the model's tensors
        storage: an identifier of the storage. transformers puts the tensors of one storage into one file, and
            counts the storage once.
        storage_bytes: the size of that storage
        begin: the first element in the single source, in row-major order
        reversal: makes the values if they are not a range of a single source
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
        """Whether at most a few parts of the tensor are in memory at a time."""
        return self.reversal is None and all(
            can_run_in_pieces(source.entry) for source in self.sources.values()
        )

    def parts(self, key: Key | None) -> Iterator[Tensor]:
        """Yield the values in flat parts."""
        if self.reversal is not None:
            yield self.reversal.value(self.name, self.sources, key).flatten()
            return
        (source,) = self.sources.values()
        yield from source.parts(key, self.begin, self.begin + math.prod(self.shape))

    def definition(self, key: Key | None) -> str:
        sources = {name: source.definition(key) for name, source in self.sources.items()}
        return repr((self.name, self.shape, self.dtype, self.begin, self.reversal is not None, sources))


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of a checkpoint in the order of its files, and the number of elements of parameters."""

    tensors: list[SavedTensor]
    parameters: int


def memory(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor. This works without NumPy, which torch does not require."""
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


# ----------------------------------------------------------------------------------------
# Contents of a plan and of a module
# ----------------------------------------------------------------------------------------


def contents_of_plan(plan: InitPlan, dtype: torch.dtype | None) -> Contents:
    """Return the parameters and persistent buffers of a plan, and only the first of tied tensors."""
    sources: dict[str, Source] = {}
    seen: set[str] = set()
    parameters = 0
    for entry in plan:
        source = plan.resolved(entry)
        if entry.kind in _SAVED_KINDS and source.name not in seen:
            seen.add(source.name)
            sources[entry.name] = Source(plan, source, _dtypes([source.dtype], entry.kind, dtype))
            parameters += math.prod(entry.shape) if entry.kind == "parameter" else 0
    return Contents(_saved_unchanged(sources), parameters)


def contents_of_module(module: nn.Module, dtype: torch.dtype | None) -> Contents:
    """Return the contents of a module that deferred_init made, with its current names, ties and dtypes.

    Raises:
        ValueError: the module has no plan, or one of its tensors does not match the plan.
    """
    inner = unwrapped(module)
    if plan_and_path(inner) is None:
        _refuse(
            f"a module that deferred_init made, got a {type(inner).__name__} without a plan", _BUILD_REMEDY
        )
    # By location in memory, which tied tensors share.
    sources: dict[Hashable, Source] = {}
    names: dict[Hashable, list[str]] = {}
    parameters = 0
    for named in named_tensors(inner):
        if named.kind not in _SAVED_KINDS:
            continue
        local = local_tensor(named.tensor)
        location = local.untyped_storage()._cdata, Geometry.of(local)
        if location not in sources:
            sources[location] = _source_of(named, dtype)
            parameters += named.tensor.numel() if named.kind == "parameter" else 0
        names.setdefault(location, []).append(named.name)
    if not is_pretrained(inner):
        return Contents(
            _saved_unchanged({tied_names[0]: sources[location] for location, tied_names in names.items()}),
            parameters,
        )
    tied_patterns = _tied_names(inner)
    ignored = set(inner._keys_to_ignore_on_save or ())
    by_saved_name = {
        _saved_name(tied_names, tied_patterns): sources[location] for location, tied_names in names.items()
    }
    saved_names = [
        named.name
        for named in named_tensors(inner)
        if named.name in by_saved_name and named.name not in ignored
    ]
    return Contents(Reversal(inner).saved({name: by_saved_name[name] for name in saved_names}), parameters)


_BUILD_REMEDY = "Build it with deferred_init, or save a module with values by save_pretrained or torch.save."


def _refuse(what: str, remedy: str) -> NoReturn:
    raise ValueError(f"paraminit_ext.save_initialized: expected {what}. {remedy}")


def _source_of(named: NamedTensor, dtype: torch.dtype | None) -> Source:
    """Return the source of the values of a module's tensor."""
    mark = mark_of(named)
    recording = plan_and_path(named.owner)
    if mark is not None:
        plan, name, dtypes = mark.plan, mark.name, mark.dtypes
        if mark.is_changed(named.tensor):
            _refuse(
                f"{named.name} as it was recorded, got a tensor that was written or given another storage "
                "since",
                "Change it inside deferred_init.",
            )
    elif recording is not None:
        (plan, path), dtypes = recording, []
        name = f"{path}.{named.attribute}" if path else named.attribute
    if (mark is None and recording is None) or name not in plan.entries:
        _refuse(f"tensors that deferred_init made, got {named.name} without a plan", _BUILD_REMEDY)
    entry = plan.entries[name]
    if tuple(named.tensor.shape) != entry.shape:
        _refuse(
            f"shape {entry.shape} for {named.name}, got {tuple(named.tensor.shape)}",
            "Change it inside deferred_init.",
        )
    source = plan.resolved(entry)
    return Source(plan, source, _dtypes([source.dtype, *dtypes, named.tensor.dtype], entry.kind, dtype))


def _dtypes(dtypes: list[torch.dtype], kind: Kind, last: torch.dtype | None) -> tuple[torch.dtype, ...]:
    """Return the distinct conversions in turn, as ``materialize_module`` does them."""
    if last is not None and dtypes[-1].is_floating_point and kind in _SAVED_KINDS:
        dtypes.append(last)
    return tuple(dtype for dtype, before in zip(dtypes, [None, *dtypes], strict=False) if dtype != before)


def _saved_unchanged(sources: Mapping[str, Source]) -> list[SavedTensor]:
    return [
        SavedTensor(
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
# Models of transformers
# ----------------------------------------------------------------------------------------


def is_pretrained(module: nn.Module) -> TypeGuard[Any]:
    """Return whether the module is a model of transformers."""
    kind = class_if_imported("transformers.modeling_utils", "PreTrainedModel")
    return kind is not None and isinstance(module, kind)


def _tied_names(model: Any) -> list[str]:
    """Return the patterns of tied names that the model's classes omit from checkpoints."""
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in getattr(module, "_tied_weights_keys", None) or ()
    ]


def _saved_name(names: list[str], tied_patterns: list[str]) -> str:
    """Return the name that transformers saves for a tensor: the first name that it does not omit as tied."""
    omittable = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in tied_patterns)]
    omitted = set(omittable[: len(names) - 1])
    return next(name for name in names if name not in omitted)


class Reversal:
    """Maps the tensors of a model to those of its checkpoint, which may have other names and shapes.

    transformers renames, splits and joins tensors when it saves a model. This class runs that code once on
    meta tensors, to find the sources of each saved tensor. If a saved tensor is a range of a single source,
    such as the weight of an expert, it is made separately. Otherwise that code makes it from whole tensors.

    Args:
        model: the model of transformers
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # The last result. Saved tensors with the same sources follow each other.
        self._made: tuple[Hashable, dict[str, Tensor]] = None, {}

    def _revert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        reverted: dict[str, Tensor] = revert_weight_conversion(self._model, tensors)
        return reverted

    def saved(self, sources: Mapping[str, Source]) -> list[SavedTensor]:
        """Return the tensors that transformers saves for these tensors of the model, in its order."""
        meta = {
            name: torch.empty(source.entry.shape, dtype=source.dtype, device="meta")
            for name, source in sources.items()
        }
        origin = _OriginTracker(meta)
        with origin:
            reverted = self._revert(dict(meta))
        saved: list[SavedTensor] = []
        for name, tensor in reverted.items():
            storage = tensor.untyped_storage()
            range_start = origin.range_of(tensor)
            source_names = sorted(origin.names_of(tensor)) if range_start is None else [range_start[0]]
            saved.append(
                SavedTensor(
                    name,
                    tuple(tensor.shape),
                    tensor.dtype,
                    {name: sources[name] for name in source_names},
                    storage._cdata,
                    storage.nbytes(),
                    begin=range_start[1] if range_start else 0,
                    reversal=None if range_start else self,
                )
            )
        return saved

    def value(self, name: str, sources: Mapping[str, Source], key: Key | None) -> Tensor:
        """Return the tensor of the checkpoint that is made from these whole tensors of the model."""
        arguments = tuple(sources), key
        if self._made[0] != arguments:
            self._made = None, {}
            self._made = (
                arguments,
                self._revert({name: source.whole(key) for name, source in sources.items()}),
            )
        if name not in self._made[1]:
            raise NotImplementedError(
                f"paraminit_ext.save_initialized: expected {name} to depend only on {', '.join(sources)}, "
                "got another conversion of transformers. Materialise the model and call save_pretrained."
            )
        return self._made[1][name]


class _OriginTracker(TorchDispatchMode):
    """Tracks the sources of tensors on meta, and the original of each copy.

    Args:
        tensors: the initial tensors, by name
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = {tensor.untyped_storage()._cdata: name for name, tensor in tensors.items()}
        self._names = {storage: {name} for storage, name in self._whole.items()}
        self._copied: dict[int, Tensor] = {}
        # Held, so that no new storage can get the address of an old one.
        self._held: list[Tensor] = list(tensors.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        names = {name for value in inputs for name in self.names_of(value)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()._cdata
                # Only a contiguous copy has its elements in row-major order.
                is_copy = func is torch.ops.aten.clone.default and tensor.is_contiguous()
                if is_copy and storage not in self._names:
                    self._copied[storage] = inputs[0]
                self._names.setdefault(storage, names)
                self._held.append(tensor)
        return result

    def names_of(self, tensor: Tensor) -> set[str]:
        """Return the names of the initial tensors on which the tensor depends."""
        return self._names.get(tensor.untyped_storage()._cdata, set())

    def range_of(self, tensor: Tensor) -> tuple[str, int] | None:
        """Return the initial tensor of which this is a row-major range, and its first element, or None."""
        begin, numel = int(tensor.storage_offset()), tensor.numel()
        if not tensor.is_contiguous():
            return None
        while (storage := tensor.untyped_storage()._cdata) not in self._whole:
            copied = self._copied.get(storage)
            if copied is None:
                return None
            tensor, run = copied, _contiguous_length(copied)
            if begin // run != (begin + max(numel, 1) - 1) // run:
                return None
            lengths = contiguous_stride(tensor.shape)
            begin = int(tensor.storage_offset()) + sum(
                begin // length % size * stride
                for length, size, stride in zip(lengths, tensor.shape, tensor.stride(), strict=True)
            )
        return self._whole[storage], begin


def _contiguous_length(tensor: Tensor) -> int:
    """Return the number of elements that are contiguous in the storage, in row-major order."""
    length = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if size != 1 and stride != length:
            break
        length *= size
    return max(length, 1)


def config_files(model: Any, dtype: torch.dtype | None, own: bool) -> dict[str, bytes]:
    """Return the configuration files that transformers writes for a model, by name.

    Args:
        model: the model of transformers, which is not changed
        dtype: the dtype to which the tensors of the model are converted, if any
        own: whether to include the model's own ``config.json``
    """
    with tempfile.TemporaryDirectory() as folder:
        if own:
            config = copy.deepcopy(model.config)
            config.dtype = dtype_name(dtype or model.dtype)
            config.architectures = [type(model).__name__.removeprefix("FSDP")]
            config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
