"""``deferred_init`` and ``materialize_module``: record a module on meta, then create its tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paraminit_ext.key import Key
from paraminit_ext.models.fill_calls import is_recording
from paraminit_ext.models.layout import Geometry, contiguous_stride, swap_data
from paraminit_ext.models.names import (
    NamedSpan,
    NamedTensor,
    check_key,
    local_tensor,
    mesh_of,
    name_and_place,
    named_attributes,
    named_modules,
    named_tensors,
)
from paraminit_ext.models.plan import Entry, InitPlan, plan_and_path, remember
from paraminit_ext.models.record import Program, Record, RecordedDraw, TensorRef, is_meta_device
from paraminit_ext.models.recorder import Recorder
from paraminit_ext.models.steps import Draw
from paraminit_ext.models.write import check_same_recordings, make, write

_Module = TypeVar("_Module", bound=nn.Module)

# The attribute that marks a tensor as not yet materialised.
_MARK = "_paraminit_waiting"


# ----------------------------------------------------------------------------------------
# Recording
# ----------------------------------------------------------------------------------------


def deferred_init(
    module_fn: Callable[..., _Module], *args: Any, key: Key | None = None, **kwargs: Any
) -> _Module:
    r"""Build a module on the meta device and record how its tensors are initialised.

    The model's code runs once, with all its tensors on the meta device. Its operations on parameters and
    buffers become the module's :class:`InitPlan`: fills, arithmetic, copies, zeroed slices and ties.

    The module supports ``.to``, ``.cuda``, ``.half`` and similar conversions, like any other module.
    :func:`.materialize_module` then creates each tensor directly in the converted dtype and on the converted
    device.

    A default device of meta that was set outside of this call is ignored: the tensors of a module that is
    built inside ``with torch.device("meta")`` get a device when they are materialised. A tensor that the
    model's code itself puts on meta stays there.

    Args:
        module_fn: a class or a function that returns the module
        args: the positional arguments of ``module_fn``
        key: the key of the model. The numbers of each parameter come from ``key.fold_in(name)``, as under
            :class:`keyed`. A fill of another named tensor whose values flow into the parameter uses the name
            of that tensor. Further random values that flow into the parameter use
            ``key.fold_in(name).fold_in("#1")`` and so on. If None (the default), each fill takes its draw
            from torch's generator while it is recorded, in the order of the program. The values are then
            the same as those of a module that is built under :class:`patch` from the same seed.
        kwargs: the keyword arguments of ``module_fn``

    Raises:
        TypeError: ``key`` is neither a :class:`Key` nor None, or ``module_fn`` does not return a module.
        RuntimeError: the code cannot be recorded, because it reads back a value that depends on random
            numbers, because the shape of a result depends on values, or because more than 1 MiB of random
            values do not come from a fill. The message names the file and the line. Also if
            ``torch.autocast`` is active.

    Returns:
        The module that ``module_fn`` returned, on the meta device.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, deferred_init, materialize_module
        >>> model = deferred_init(torch.nn.Linear, 3, 4, key=Key(1))
        >>> model.weight.device
        device(type='meta')
        >>> materialize_module(model.half()).weight.dtype
        torch.float16
    """
    check_key("deferred_init", key)
    if is_recording():
        if key is not None:
            raise RuntimeError(
                "paraminit_ext.deferred_init: expected no key inside another deferred_init, got one. Pass "
                "the key to the outer deferred_init."
            )
        return module_fn(*args, **kwargs)
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise RuntimeError(
                f"paraminit_ext.deferred_init: expected no autocast, got autocast on {device}. Enter "
                "torch.autocast after the model is built."
            )
    recorder = Recorder(key)
    with _without_meta_as_default():
        default = torch.get_default_device()
        with recorder:
            module = module_fn(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"paraminit_ext.deferred_init: expected a function that returns a torch.nn.Module, got one that "
            f"returns {type(module).__name__}. Return the module."
        )
    tensors = [named for named in _all_tensors(module) if _add_to_record(named, recorder)]
    plan = _make_plan(tensors, recorder, default)
    for named in tensors:
        vars(named.tensor).setdefault(_MARK, _Pending(plan, named.name, state_of(named.tensor)))
    for path, inner in named_modules(module):
        remember(inner, plan, path)
        # nn.Module's methods look up _apply on the instance, so .to(), .cuda() and .half() call this.
        vars(inner)["_apply"] = _RecordingApply(inner, plan, path)
    return module


@contextmanager
def _without_meta_as_default() -> Iterator[None]:
    """Replace a default device of meta by the CPU inside. Tensors on meta have no values to record."""
    if is_meta_device(torch.get_default_device()):
        with torch.device("cpu"):
            yield
    else:
        yield


def _all_tensors(module: nn.Module) -> list[NamedTensor]:
    return [*named_tensors(module), *named_attributes(module)]


def _add_to_record(named: NamedTensor, recorder: Recorder) -> bool:
    """Add the tensor to the record and return whether the plan holds it. A tensor with data moves to meta.

    A tensor that the model's code itself put on meta stays there, as in a module that is built directly.
    """
    if nn.parameter.is_lazy(named.tensor):
        return False
    if named.kind == "attribute" and not recorder.record.knows(named.tensor):
        return False
    if not named.tensor.is_meta:
        swap_data(named.tensor, recorder.on_meta(named.tensor))
    recorder.adopt(named.tensor)
    if recorder.record.is_on_meta_itself(named.tensor):
        vars(named.tensor)[_MARK] = None
        return False
    if named.tensor.is_conj() or named.tensor.is_neg():
        raise RuntimeError(
            f"paraminit_ext.deferred_init: expected code that can be recorded, got {named.name}, a conjugate "
            "or negative view. Resolve it in the model's code (resolve_conj, resolve_neg)."
        )
    return True


def _make_plan(tensors: list[NamedTensor], recorder: Recorder, default: torch.device) -> InitPlan:
    """Return the plan of the tensors. ``default`` was the default device during the recording."""
    record = recorder.record
    # The tensors in each storage, usually one, under their first names.
    by_storage: dict[int, dict[TensorRef, str]] = {}
    for named in tensors:
        at = record.at(named.tensor)
        by_storage.setdefault(at.storage, {}).setdefault(at, named.name)
    values: dict[int, str] = {}
    programs: dict[str, tuple[TensorRef, Program]] = {}
    for named in tensors:
        at = record.at(named.tensor)
        same_storage = by_storage[at.storage]
        if same_storage[at] == named.name:
            # The first tensor of a storage has the steps of all, because the others may become views of it.
            is_first = next(iter(same_storage.values())) == named.name
            wanted = tuple(same_storage) if is_first else (at,)
            programs[named.name] = at, Program(record, at, values, wanted, len(same_storage) > 1)
    draws = _named_draws(programs, _Finder(record, tensors))
    entries: dict[str, Entry] = {}
    for named in tensors:
        at = record.at(named.tensor)
        device = record.storages[at.storage].device
        # None stands for the default device when the module is materialised.
        requested_device = None if device in (None, default) else str(device)
        shape = tuple(named.tensor.shape)
        same_storage = by_storage[at.storage]
        tie, first = same_storage[at], next(iter(same_storage.values()))
        if tie != named.name:
            entries[named.name] = Entry(
                named.name, named.kind, named.tensor.dtype, shape, tie=tie, device=requested_device
            )
            continue
        _, program = programs[named.name]
        entries[named.name] = Entry(
            named.name,
            named.kind,
            named.tensor.dtype,
            shape,
            steps=tuple(program.steps),
            draws=draws[named.name],
            layout=program.layout,
            storage=first if first != named.name else None,
            device=requested_device,
        )
    recorded_values = {name: record.log[index].value for index, name in values.items()}
    return InitPlan(entries, recorder.key, recorded_values)  # type: ignore[arg-type]


class _Finder:
    """Finds the name and place of a recorded fill, by the rule of :class:`keyed`.

    ``keyed`` knows no tensors in attributes. They have a say only where no other tensor encloses the fill.
    """

    def __init__(self, record: Record, tensors: Iterable[NamedTensor]) -> None:
        self._registered: dict[int, list[NamedSpan]] = {}
        self._attributes: dict[int, list[NamedSpan]] = {}
        for named in tensors:
            at = record.at(named.tensor)
            spans = self._attributes if named.kind == "attribute" else self._registered
            spans.setdefault(at.storage, []).append(_span(named.name, at))

    def __call__(self, at: TensorRef) -> tuple[str, int | None] | None:
        for spans in (self._registered, self._attributes):
            found = name_and_place(at.geometry, at.nbytes, spans.get(at.storage, ()))
            if found is not None:
                return found
        return None


def _span(name: str, at: TensorRef) -> NamedSpan:
    return NamedSpan(name, *at.extent, at.nbytes)


def _named_draws(
    programs: Mapping[str, tuple[TensorRef, Program]], find: _Finder
) -> dict[str, tuple[Draw, ...]]:
    """Return the draws of each tensor's fills.

    A fill of a named tensor or of a part of it takes the key that it takes under :class:`keyed`, whichever
    tensor its values flow into. All other random values take further keys of the first tensor that they flow
    into. So does a second fill of a whole tensor if the values of both flow into one tensor, because they
    would be equal otherwise. If no fill of the whole tensor takes its own key, other values do.
    """
    claimed = {find(at) for _, program in programs.values() for _, at in program.draws}
    assigned: dict[RecordedDraw, Draw] = {}
    result: dict[str, tuple[Draw, ...]] = {}
    for name, (whole, program) in programs.items():
        draws: list[Draw] = []
        is_claimed = (name, None) in claimed
        further = int(is_claimed)
        for draw, at in program.draws:
            if draw not in assigned:
                found = find(at)
                if found is None or (found[1] is None and found in [(one.name, one.place) for one in draws]):
                    assigned[draw] = Draw(name, f"#{further}" if further else None, draw.key, draw.fixed)
                else:
                    assigned[draw] = Draw(*found, draw.key, draw.fixed)
            draws.append(assigned[draw])
            is_own = is_claimed and (draws[-1].name, draws[-1].place) == (name, None)
            if not is_own and not _is_part(at, whole):
                further += 1
        result[name] = tuple(draws)
    return result


def _is_part(at: TensorRef, whole: TensorRef) -> bool:
    """Return whether a fill writes a proper part of the tensor."""
    if at.storage != whole.storage:
        return False
    found = name_and_place(at.geometry, at.nbytes, [_span("", whole)])
    return found is not None and found[1] is not None


# ----------------------------------------------------------------------------------------
# Between recording and materialising
# ----------------------------------------------------------------------------------------


def state_of(tensor: Tensor) -> tuple[int, int]:
    """Return the version and storage of a tensor on meta. They change when it is written or replaced."""
    return (0 if tensor.is_inference() else tensor._version), tensor.untyped_storage()._cdata


@dataclass
class _Pending:
    """The pending initialisation of a tensor on meta: its plan, its recorded state and later conversions."""

    plan: InitPlan
    name: str
    # None after unpickling, which makes another storage, so that earlier changes are unknown.
    state: tuple[int, int] | None
    device: torch.device | None = None
    dtypes: list[torch.dtype] = field(default_factory=list)
    # Identifies the deep copy that made the tensor, because copies share no memory with their originals.
    copied: object = None

    def is_changed(self, tensor: Tensor) -> bool:
        """Return whether the tensor was written or replaced since it was recorded or converted."""
        return self.state is not None and self.state != state_of(local_tensor(tensor))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "state": None}


class _RecordingApply:
    """Replaces the ``_apply`` method of a deferred module, to remember conversions of tensors on meta.

    Args:
        module: the module whose method this replaces
        plan: the plan of the whole model
        path: the path of the module in that model
    """

    def __init__(self, module: nn.Module, plan: InitPlan, path: str) -> None:
        self.module = module
        self.recorded = plan, path

    def __call__(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        conversion = fn if isinstance(fn, _MarkedConversion) else _MarkedConversion(fn)
        before = {place: vars(tensor).get(_MARK) for place, tensor in self.own_tensors()}
        module: nn.Module = type(self.module)._apply(self.module, conversion, *args, **kwargs)
        for place, tensor in self.own_tensors():
            mark: _Pending | None = vars(tensor).get(_MARK) or before.get(place)
            if mark is not None and tensor.is_meta and local_tensor(tensor) is tensor:
                mark.state = state_of(tensor)
                vars(tensor)[_MARK] = mark
        return module

    def own_tensors(self) -> list[tuple[str, Tensor]]:
        items = (*self.module._parameters.items(), *self.module._buffers.items())
        return [(place, tensor) for place, tensor in items if tensor is not None]

    def __deepcopy__(self, memo: dict[Any, Any]) -> _RecordingApply:
        copied = _RecordingApply(copy.deepcopy(self.module, memo), *self.recorded)
        copy_id = memo.setdefault(_MARK, object())
        for _, tensor in self.own_tensors():
            mark: _Pending | None = vars(tensor).get(_MARK)
            if mark is not None:
                # torch does not copy the attributes of parameters.
                twin: Tensor = copy.deepcopy(tensor, memo)
                twin_mark = replace(
                    mark, state=state_of(twin), dtypes=list(mark.dtypes), copied=(mark.copied, copy_id)
                )
                vars(twin)[_MARK] = twin_mark
        return copied


class _MarkedConversion:
    """A conversion of tensors that preserves the pending initialisation of tensors on meta."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self._fn = fn

    def __call__(self, tensor: Tensor) -> Tensor:
        pending: _Pending | None = vars(tensor).get(_MARK) if tensor.is_meta else None
        if pending is None:
            return self._fn(tensor)
        try:
            converted = self._fn(tensor)
        except NotImplementedError:
            # A meta tensor has no data to copy. The result for an empty tensor shows the dtype and device.
            probe = self._fn(torch.empty((0,) * tensor.dim(), dtype=tensor.dtype, device="cpu"))
            converted = torch.empty_like(tensor, dtype=probe.dtype)
            pending.device = probe.device
        if converted.is_meta:
            if converted.dtype != (pending.dtypes[-1] if pending.dtypes else tensor.dtype):
                pending.dtypes.append(converted.dtype)
            if converted is not tensor:
                pending.state = state_of(converted)
                vars(converted)[_MARK] = pending
        return converted


# ----------------------------------------------------------------------------------------
# Materialising
# ----------------------------------------------------------------------------------------


def materialize_module(
    module: _Module,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    filter: Callable[[str], bool] | None = None,  # noqa: A002
) -> _Module:
    r"""Materialise the tensors of a module that :func:`.deferred_init` made, in place, with their values.

    The tensor objects stay the same, so that optimizers, ties and other references see the materialised
    tensors. ``requires_grad``, hooks and attributes are kept. Tensors that already have values are left
    unchanged.

    Args:
        module: the module or one of its submodules, sharded or not
        device: the device of the materialised tensors. By default, this is the device that the model's code
            or a later ``.to`` requested. If none was requested, it is the device of the mesh for a module on
            a mesh, and torch's default device otherwise. FSDP's ``CPUOffloadPolicy`` requires ``"cpu"``.
        dtype: the dtype to which floating-point parameters and persistent buffers are converted.
            Non-persistent buffers keep their own dtype, as in transformers.
        filter: a function that receives the name of each tensor in ``module`` and returns whether to
            materialise it (default: all tensors)

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a tensor on the meta device has no plan, has another shape than its plan, or was written
            after it was recorded. Or the target device is meta. No tensor is changed.
        RuntimeError: the plan has no key, and the ranks of a mesh recorded different draws.

    Returns:
        ``module``.

    Examples:
        >>> import torch
        >>> from paraminit_ext import deferred_init, materialize_module
        >>> model = deferred_init(torch.nn.TransformerEncoderLayer, 64, 4)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> _ = materialize_module(model, filter=lambda name: "linear1" in name)
        >>> _ = materialize_module(model, dtype=torch.bfloat16)
        >>> model.norm1.weight.dtype, model.linear1.weight.dtype
        (torch.bfloat16, torch.float32)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"paraminit_ext.materialize_module: expected a torch.nn.Module, got {type(module).__name__}. "
            "Pass the module that deferred_init returned."
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"paraminit_ext.materialize_module: expected a floating-point dtype, got {dtype}. Pass "
            "torch.bfloat16, for example."
        )
    if is_recording():
        return module
    pending: dict[int, tuple[Tensor, _Pending]] = {}
    for named in _all_tensors(module):
        tensor = named.tensor
        if not tensor.is_meta or id(tensor) in pending or (filter is not None and not filter(named.name)):
            continue
        if nn.parameter.is_lazy(tensor):
            continue
        mark = mark_of(named)
        if mark is None:
            if named.kind == "attribute" or _MARK in vars(tensor):
                continue
            raise ValueError(
                f"paraminit_ext.materialize_module: expected tensors that deferred_init made, got "
                f"{named.name} on meta without a plan. Build the module with deferred_init, or call to_empty "
                "and fill it."
            )
        pending[id(tensor)] = tensor, mark
    meshes = (mesh for tensor, _ in pending.values() if (mesh := mesh_of(tensor)))
    default = next((torch.device(mesh.device_type) for mesh in meshes), torch.get_default_device())
    requested_device = None if device is None else torch.device(device)
    distributed = _materialize("materialize_module", list(pending.values()), requested_device, dtype, default)
    if distributed:
        # The module's own method keeps the parameter objects and gives FSDP the new local tensors.
        apply: Callable[..., nn.Module] = type(module)._apply
        apply(module, lambda tensor: distributed.pop(id(tensor), tensor))
    for _, inner in named_modules(module):
        if isinstance(inner, nn.RNNBase):
            inner.flatten_parameters()
        replacement = vars(inner).get("_apply")
        if isinstance(replacement, _RecordingApply) and not any(
            tensor.is_meta for _, tensor in replacement.own_tensors()
        ):
            del vars(inner)["_apply"]
    return module


def mark_of(named: NamedTensor) -> _Pending | None:
    """Return the pending initialisation of a tensor, if any. An unmarked DTensor is looked up by name."""
    mark: _Pending | None = vars(named.tensor).get(_MARK)
    if mark is None and local_tensor(named.tensor) is not named.tensor:
        recording = plan_and_path(named.owner)
        if recording is not None:
            plan, path = recording
            name = f"{path}.{named.attribute}" if path else named.attribute
            if name in plan.entries:
                return _Pending(plan, name, state_of(local_tensor(named.tensor)))
    return mark


def materialize_tensor(tensor: Tensor) -> Tensor:
    r"""Materialise one tensor of a module that :func:`.deferred_init` made, in place, with its values.

    Args:
        tensor: a parameter or buffer. A tensor that already has values is left unchanged.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        ValueError: ``tensor`` is on the meta device and :func:`.deferred_init` did not make it, or it was
            written after it was recorded. Or the target device is meta.

    Returns:
        ``tensor``.

    Examples:
        >>> import torch
        >>> from paraminit_ext import deferred_init, materialize_tensor
        >>> model = deferred_init(torch.nn.Linear, 3, 4)
        >>> materialize_tensor(model.bias).device
        device(type='cpu')
        >>> model.weight.device
        device(type='meta')
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"paraminit_ext.materialize_tensor: expected a torch.Tensor, got {type(tensor).__name__}. Pass a "
            "parameter of a module that deferred_init made."
        )
    if tensor.is_meta:
        mark: _Pending | None = vars(tensor).get(_MARK)
        if mark is None:
            raise ValueError(
                "paraminit_ext.materialize_tensor: expected a tensor that deferred_init made, got one on "
                "meta without a plan. Pass the module to materialize_module."
            )
        _materialize("materialize_tensor", [(tensor, mark)], None, None, torch.get_default_device())
    return tensor


@torch.no_grad()
def _materialize(
    function: str,
    pending: list[tuple[Tensor, _Pending]],
    device: torch.device | None,
    dtype: torch.dtype | None,
    default: torch.device,
) -> dict[int, Tensor]:
    """Materialise plain tensors in place. Return new DTensors by the ids of the tensors that they replace.

    Args:
        function: the function that the user called, for messages
        pending: the tensors and the pending initialisation of each
        device: the target device, or None for the device that the model's code requested
        dtype: the dtype to which parameters and persistent buffers are converted
        default: the target device if neither ``device`` nor the model's code requests one
    """
    new_tensors: list[Tensor] = []
    # New tensors in the plan's own dtype, by plan, copy, device and name.
    shareable: dict[tuple[Any, ...], Tensor] = {}
    # The tensors that each plan writes, by the id of the plan.
    targets: dict[int, tuple[InitPlan, list[tuple[Entry, Tensor]]]] = {}
    later_conversions: list[tuple[int, torch.dtype]] = []
    for tensor, mark in pending:
        entry = mark.plan.entries[mark.name]
        if mark.is_changed(tensor):
            raise ValueError(
                f"paraminit_ext.{function}: expected {mark.name} as it was recorded, got a tensor "
                "that was written or given another storage since. Change it inside deferred_init, or after "
                "materialize_module."
            )
        if tuple(tensor.shape) != entry.shape:
            raise ValueError(
                f"paraminit_ext.{function}: expected shape {entry.shape} for {mark.name}, got "
                f"{tuple(tensor.shape)}. Materialise the module before you replace its tensors."
            )
        kind, source = entry.kind, mark.plan.resolved(entry)
        dtypes = [source.dtype, *mark.dtypes, tensor.dtype]
        if dtype is not None and tensor.is_floating_point() and kind in ("parameter", "buffer"):
            dtypes.append(dtype)
        dtypes = [distinct for distinct, _ in itertools.groupby(dtypes)]
        target_device = device or mark.device or (torch.device(entry.device) if entry.device else default)
        if target_device.type == "meta":
            remedy = "Pass device=, or leave" if function == "materialize_module" else "Leave"
            raise ValueError(
                f"paraminit_ext.{function}: expected a device that holds data, got meta. {remedy} the "
                "torch.device context."
            )
        # Tensors that share a storage in a directly built module share one here, unless converted.
        is_local = local_tensor(tensor) is tensor
        may_share = len(dtypes) == 1 and is_local
        group = id(mark.plan), mark.copied, torch.empty(0, device=target_device).device
        existing = shareable.get((group, source.name)) if may_share else None
        base = shareable.get((group, source.storage)) if may_share and source.storage else None
        if existing is not None:
            new_tensors.append(existing)
            continue
        if base is not None:
            assert source.layout is not None
            new_tensors.append(source.layout.view(base))
            continue
        # The fill itself does the first conversion.
        fill_dtype = dtypes[:2][-1]
        if not is_local:
            new = torch.empty_like(tensor, dtype=fill_dtype, device=target_device)
        elif source.is_allocated_first:
            new = _allocate(tensor, fill_dtype, target_device)
        else:
            new = make(mark.plan, source, target_device, None)
            if may_share:
                shareable[group, source.name] = new
            new_tensors.append(_converted(new, dtypes[1:]))
            continue
        if may_share:
            shareable[group, source.name] = new
        targets.setdefault(id(mark.plan), (mark.plan, []))[1].append((source, new))
        later_conversions += [(len(new_tensors), later_dtype) for later_dtype in dtypes[2:]]
        new_tensors.append(new)
    for plan, pairs in targets.values():
        if plan.key is None:
            check_same_recordings("materialize_module", pairs)
    for plan, pairs in targets.values():
        write(plan, pairs, None)
    for place, later_dtype in later_conversions:
        new_tensors[place] = new_tensors[place].to(later_dtype)
    distributed: dict[int, Tensor] = {}
    for (tensor, _), new in zip(pending, new_tensors, strict=True):
        vars(tensor).pop(_MARK, None)
        if local_tensor(tensor) is tensor:
            swap_data(tensor, new)
        else:
            distributed[id(tensor)] = new
    return distributed


def _allocate(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty tensor with the strides of the tensor on meta, which may have a memory format."""
    shape, stride = tuple(tensor.shape), tensor.stride()
    if stride == contiguous_stride(shape) or not Geometry.of(tensor).is_dense:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _converted(tensor: Tensor, dtypes: Iterable[torch.dtype]) -> Tensor:
    for dtype in dtypes:
        tensor = tensor.to(dtype)
    return tensor
