"""``deferred_init``: a module on meta that knows how its tensors get their values; and its way to them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paraminit_ext.key import Key
from paraminit_ext.models.fills import is_recording
from paraminit_ext.models.layout import Geometry, contiguous_stride, exchange
from paraminit_ext.models.names import (
    Named,
    local_tensor,
    mesh_of,
    named_attributes,
    named_modules,
    named_tensors,
    refuse_key,
)
from paraminit_ext.models.plan import Entry, InitPlan, recorded, remember
from paraminit_ext.models.record import At, Drawn, Program
from paraminit_ext.models.recorder import Recorder
from paraminit_ext.models.steps import Draw
from paraminit_ext.models.write import make, refuse_other_recordings, write

_Module = TypeVar("_Module", bound=nn.Module)

# The attribute of a tensor that waits.
_MARK = "_paraminit_waiting"


# ----------------------------------------------------------------------------------------
# Recording
# ----------------------------------------------------------------------------------------


def deferred_init(
    module_fn: Callable[..., _Module], *args: Any, key: Key | None = None, **kwargs: Any
) -> _Module:
    r"""Build a module on meta and record how each of its tensors gets its values.

    The model's code runs once, with all its tensors on meta. What it does to parameters and buffers becomes
    the module's :class:`InitPlan`: fills, arithmetic, copies, slices set to zero, ties. The module takes
    ``.to``, ``.cuda``, ``.half`` and the like as a built one does; :func:`materialize_module` then makes its
    tensors, straight into the dtype and on the device that these asked for.

    Args:
        module_fn: makes the module: a class, or any function
        args: its arguments
        key: the numbers of each parameter come from ``key.fold_in(name)``, as under :class:`keyed` (further
            random values that flow into the same parameter: ``key.fold_in(name).fold_in("#1")`` and so on).
            With None each fill takes its draw from torch's generator now, in the order of the program, so
            that the values are those of the module built under :class:`patch` from the same seed.
        kwargs: its arguments by name

    Raises:
        TypeError: ``key`` is neither a :class:`Key` nor None, or ``module_fn`` returns no module.
        RuntimeError: code that cannot be recorded, with its file and line: a value that hangs on random
            numbers read back, a result whose shape hangs on values, more than 1 MiB of random values that
            are no fill.

    Returns:
        What ``module_fn`` returned, on meta.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, deferred_init, materialize_module
        >>> model = deferred_init(torch.nn.Linear, 3, 4, key=Key(1))
        >>> model.weight.device
        device(type='meta')
        >>> materialize_module(model.half()).weight.dtype
        torch.float16
    """
    refuse_key("deferred_init", key)
    if is_recording():
        if key is not None:
            raise RuntimeError(
                "paraminit_ext.deferred_init: expected no key inside another deferred_init, got one. The "
                "outer one's names and key decide."
            )
        return module_fn(*args, **kwargs)
    recorder = Recorder(key)
    with recorder:
        module = module_fn(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"paraminit_ext.deferred_init: expected a function that returns a torch.nn.Module, got one that "
            f"returns {type(module).__name__}. Return the module."
        )
    named = [one for one in _tensors_of(module) if _is_recorded(one, recorder)]
    plan = _plan(named, recorder)
    for one in named:
        vars(one.tensor).setdefault(_MARK, _Waiting(plan, one.name, state_of(one.tensor)))
    for path, inner in named_modules(module):
        remember(inner, plan, path)
        # nn.Module's methods look it up on the instance: `.to()`, `.cuda()`, `.half()` come by here.
        vars(inner)["_apply"] = _Apply(inner, plan, path)
    return module


def _tensors_of(module: nn.Module) -> list[Named]:
    return [*named_tensors(module), *named_attributes(module)]


def _is_recorded(one: Named, recorder: Recorder) -> bool:
    """Whether the plan has the tensor; one that has values by now is put on meta.

    One that the code itself put on meta stays there, as it does where the module is built directly.
    """
    if nn.parameter.is_lazy(one.tensor):
        return False
    if one.kind == "attribute" and not recorder.record.knows(one.tensor):
        return False
    if not one.tensor.is_meta:
        exchange(one.tensor, recorder.on_meta(one.tensor))
    recorder.adopt(one.tensor)
    if recorder.record.is_on_meta_itself(one.tensor):
        vars(one.tensor)[_MARK] = None
        return False
    if one.tensor.is_conj() or one.tensor.is_neg():
        raise RuntimeError(
            f"paraminit_ext.deferred_init: expected code that can be recorded, got {one.name}, a conjugate "
            "or negative view. Resolve it in the model's code (resolve_conj, resolve_neg)."
        )
    return True


def _plan(named: list[Named], recorder: Recorder) -> InitPlan:
    record = recorder.record
    entries: dict[str, Entry] = {}
    names: dict[At, str] = {}
    # Which tensors lie in each storage; mostly one does.
    together: dict[int, dict[At, str]] = {}
    for one in named:
        at = record.at(one.tensor)
        together.setdefault(at.storage, {}).setdefault(at, one.name)
    values: dict[int, str] = {}
    assigned: dict[Drawn, Draw] = {}
    for one in named:
        at = record.at(one.tensor)
        device = record.storages[at.storage].device
        # torch's default device is what it is where the module is materialised.
        asked = None if device in (None, torch.get_default_device()) else str(device)
        shape = tuple(one.tensor.shape)
        tie = names.setdefault(at, one.name)
        if tie != one.name:
            entries[one.name] = Entry(one.name, one.kind, one.tensor.dtype, shape, tie=tie, device=asked)
            continue
        shared = together[at.storage]
        first = next(iter(shared.values()))
        # The first of them has the steps of all: the others may be views of its storage.
        program = Program(record, at, values, tuple(shared) if first == one.name else (at,), len(shared) > 1)
        draws = _draws(one.name, at, program.draws, assigned)
        entries[one.name] = Entry(
            one.name,
            one.kind,
            one.tensor.dtype,
            shape,
            steps=tuple(program.steps),
            draws=draws,
            layout=program.layout,
            storage=first if first != one.name else None,
            device=asked,
        )
    kept = {name: record.log[index].value for index, name in values.items()}
    return InitPlan(entries, recorder.key, kept)  # type: ignore[arg-type]


def _draws(
    name: str, own: At, drawn: Iterable[tuple[Drawn, At]], assigned: dict[Drawn, Draw]
) -> tuple[Draw, ...]:
    """The draws of one tensor's fills; one that another tensor's values come from too is that one's."""
    draws: list[Draw] = []
    further = 0
    for one, at in drawn:
        place: int | str | None = None
        if at.storage == own.storage and _is_proper_view(at, own):
            place = (at.extent[0] - own.extent[0]) // at.geometry.dtype.itemsize
        else:
            place = f"#{further}" if further else None
            further += 1
        draws.append(assigned.setdefault(one, Draw(name, place, one.key, one.fixed)))
    return tuple(draws)


def _is_proper_view(at: At, of: At) -> bool:
    """Whether a fill is of a part of the tensor: by the rule of :class:`paraminit_ext.models.names.Names`."""
    (begin, end), (start, stop) = at.extent, of.extent
    inside = start <= begin and end <= stop
    covers = at.is_dense and (begin, end) == (start, stop)
    return inside and not covers and math.prod(at.geometry.size) != math.prod(of.geometry.size)


# ----------------------------------------------------------------------------------------
# Between recording and materialising
# ----------------------------------------------------------------------------------------


def state_of(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor on meta is written, or given another storage."""
    return (0 if tensor.is_inference() else tensor._version), tensor.untyped_storage()._cdata


@dataclass
class _Waiting:
    """What a tensor on meta waits for, as it was then, and what it was converted to since."""

    plan: InitPlan
    name: str
    state: tuple[int, int]
    device: torch.device | None = None
    dtypes: list[torch.dtype] = field(default_factory=list)
    # Which copies it came by: copies share no memory with what they are copies of.
    copied: object = None


class _Apply:
    """In place of a deferred module's ``_apply``: conversions, on meta, are remembered.

    Args:
        module: whose method it is
        plan: the plan of the whole
        path: the module's place in it
    """

    def __init__(self, module: nn.Module, plan: InitPlan, path: str) -> None:
        self.module = module
        self.recorded = plan, path

    def __call__(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        given = fn if isinstance(fn, _Carried) else _Carried(fn)
        before = {place: vars(tensor).get(_MARK) for place, tensor in self.own_tensors()}
        module: nn.Module = type(self.module)._apply(self.module, given, *args, **kwargs)
        for place, tensor in self.own_tensors():
            mark: _Waiting | None = vars(tensor).get(_MARK) or before.get(place)
            if mark is not None and tensor.is_meta and local_tensor(tensor) is tensor:
                mark.state = state_of(tensor)
                vars(tensor)[_MARK] = mark
        return module

    def own_tensors(self) -> list[tuple[str, Tensor]]:
        held = (*self.module._parameters.items(), *self.module._buffers.items())
        return [(place, tensor) for place, tensor in held if tensor is not None]

    def __deepcopy__(self, memo: dict[Any, Any]) -> _Apply:
        copied = _Apply(copy.deepcopy(self.module, memo), *self.recorded)
        group = memo.setdefault(_MARK, object())
        for _, tensor in self.own_tensors():
            mark: _Waiting | None = vars(tensor).get(_MARK)
            if mark is not None:
                # torch copies no attributes of parameters.
                twin: Tensor = copy.deepcopy(tensor, memo)
                twin_mark = replace(
                    mark, state=state_of(twin), dtypes=list(mark.dtypes), copied=(mark.copied, group)
                )
                vars(twin)[_MARK] = twin_mark
        return copied


class _Carried:
    """A conversion of tensors that takes those on meta along."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self._fn = fn

    def __call__(self, tensor: Tensor) -> Tensor:
        waiting: _Waiting | None = vars(tensor).get(_MARK) if tensor.is_meta else None
        if waiting is None:
            return self._fn(tensor)
        try:
            made = self._fn(tensor)
        except NotImplementedError:
            # There is no way from meta to a device with data; a tensor of no elements shows what was meant.
            probe = self._fn(torch.empty((0,) * tensor.dim(), dtype=tensor.dtype, device="cpu"))
            made = torch.empty_like(tensor, dtype=probe.dtype)
            waiting.device = probe.device
        if made.is_meta:
            if made.dtype != (waiting.dtypes[-1] if waiting.dtypes else tensor.dtype):
                waiting.dtypes.append(made.dtype)
            if made is not tensor:
                waiting.state = state_of(made)
                vars(made)[_MARK] = waiting
        return made


# ----------------------------------------------------------------------------------------
# Materialising
# ----------------------------------------------------------------------------------------


def materialize_module(
    module: _Module,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    filter: Callable[[str], bool] | None = None,  # noqa: A002
) -> _Module:
    r"""Give the tensors of a module that :func:`deferred_init` made their values, in place.

    The objects stay the same, so that optimizers, ties and other references see the real tensors;
    ``requires_grad``, hooks and attributes stay. What has values already is left.

    Args:
        module: the module, or a part of it, sharded or not
        device: where the tensors are made (default: where the model's code, or a later ``.to``, asked for;
            else the device of the mesh, of a module that is on one, or torch's default one). FSDP's
            ``CPUOffloadPolicy`` wants ``"cpu"``.
        dtype: what floating-point parameters and persistent buffers are converted to; non-persistent ones
            keep their own dtype, as in transformers
        filter: which tensors: called with the name of each in ``module`` (default: all)

    Raises:
        TypeError: an argument of another type.
        ValueError: a tensor on meta that no plan is known for, or that has another shape than its plan.
        RuntimeError: without a key, ranks of a mesh that recorded other draws.

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
            "Pass what deferred_init returned."
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"paraminit_ext.materialize_module: expected a floating-point dtype, got {dtype}. Pass "
            "torch.bfloat16, for example."
        )
    if is_recording():
        return module
    waiting: dict[int, tuple[Tensor, _Waiting]] = {}
    for one in _tensors_of(module):
        tensor = one.tensor
        if not tensor.is_meta or id(tensor) in waiting or (filter is not None and not filter(one.name)):
            continue
        if nn.parameter.is_lazy(tensor):
            continue
        mark = mark_of(one)
        if mark is None:
            if one.kind == "attribute" or _MARK in vars(tensor):
                continue
            raise ValueError(
                f"paraminit_ext.materialize_module: expected tensors that deferred_init made, got {one.name} "
                "on meta without a plan. Build the module by deferred_init, or call to_empty and fill it."
            )
        waiting[id(tensor)] = tensor, mark
    meshes = (mesh for tensor, _ in waiting.values() if (mesh := mesh_of(tensor)))
    default = next((torch.device(mesh.device_type) for mesh in meshes), torch.get_default_device())
    asked = None if device is None else torch.device(device)
    distributed = _materialize(list(waiting.values()), asked, dtype, default)
    if distributed:
        # By the module's own method, which keeps the objects and tells FSDP of their new local tensors.
        apply: Callable[..., nn.Module] = type(module)._apply
        apply(module, lambda tensor: distributed.pop(id(tensor), tensor))
    for _, inner in named_modules(module):
        if isinstance(inner, nn.RNNBase):
            inner.flatten_parameters()
        instead = vars(inner).get("_apply")
        if isinstance(instead, _Apply) and not any(tensor.is_meta for _, tensor in instead.own_tensors()):
            del vars(inner)["_apply"]
    return module


def mark_of(one: Named) -> _Waiting | None:
    """What the tensor waits for: by itself, or, for a DTensor made of one that waited, by its place."""
    mark: _Waiting | None = vars(one.tensor).get(_MARK)
    if mark is None and local_tensor(one.tensor) is not one.tensor:
        found = recorded(one.owner)
        if found is not None:
            plan, path = found
            name = f"{path}.{one.attribute}" if path else one.attribute
            if name in plan.entries:
                return _Waiting(plan, name, state_of(local_tensor(one.tensor)))
    return mark


def materialize_tensor(tensor: Tensor) -> Tensor:
    r"""Give one tensor of a module that :func:`deferred_init` made its values, in place.

    Args:
        tensor: a parameter or buffer; one that has values is left

    Raises:
        TypeError: not a tensor.
        ValueError: a tensor on meta that :func:`deferred_init` did not make.

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
        mark: _Waiting | None = vars(tensor).get(_MARK)
        if mark is None:
            raise ValueError(
                "paraminit_ext.materialize_tensor: expected a tensor that deferred_init made, got one on "
                "meta without a plan. Pass the module to materialize_module."
            )
        _materialize([(tensor, mark)], None, None, torch.get_default_device())
    return tensor


@torch.no_grad()
def _materialize(
    waiting: list[tuple[Tensor, _Waiting]],
    device: torch.device | None,
    dtype: torch.dtype | None,
    default: torch.device,
) -> dict[int, Tensor]:
    """Make what the tensors wait for; DTensors are returned by the id of the one that waits.

    Args:
        waiting: the tensors, and what each waits for
        device: where they are made; None for where the model's code asked for, or ``default``
        dtype: what parameters and persistent buffers are converted to
        default: where they are made if nothing asked for a device
    """
    made: list[Tensor] = []
    # By plan, copy, device and name: what is made, and in the plan's own dtype.
    shared: dict[tuple[Any, ...], Tensor] = {}
    # By plan, what its fills are to write.
    targets: dict[int, tuple[InitPlan, list[tuple[Entry, Tensor]]]] = {}
    later: list[tuple[int, torch.dtype]] = []
    for tensor, mark in waiting:
        entry = mark.plan.entries[mark.name]
        if mark.state != state_of(local_tensor(tensor)):
            raise ValueError(
                f"paraminit_ext.materialize_module: expected {mark.name} as it was recorded, got it written "
                "or given other memory since, which is lost. Do that inside deferred_init, or afterwards."
            )
        if tuple(tensor.shape) != entry.shape:
            raise ValueError(
                f"paraminit_ext.materialize_module: expected shape {entry.shape} for {mark.name}, got "
                f"{tuple(tensor.shape)}. Materialise a module before its tensors are exchanged."
            )
        kind, source = entry.kind, mark.plan.resolved(entry)
        dtypes = [source.dtype, *mark.dtypes, tensor.dtype]
        if dtype is not None and tensor.is_floating_point() and kind in ("parameter", "buffer"):
            dtypes.append(dtype)
        dtypes = [one for one, _ in itertools.groupby(dtypes)]
        where = device or mark.device or (torch.device(entry.device) if entry.device else default)
        # What lies in one memory where the module is built directly, and is converted to nothing.
        is_local = local_tensor(tensor) is tensor
        together = len(dtypes) == 1 and is_local
        group = id(mark.plan), mark.copied, torch.empty(0, device=where).device
        found = shared.get((group, source.name)) if together else None
        base = shared.get((group, source.storage)) if together and source.storage else None
        if found is not None:
            made.append(found)
            continue
        if base is not None:
            assert source.layout is not None
            made.append(source.layout.view(base))
            continue
        # A fill rounds to the first dtype that it is converted to by itself.
        filled = dtypes[:2][-1]
        if not is_local:
            new = torch.empty_like(tensor, dtype=filled, device=where)
        elif source.is_allocated_first:
            new = _empty(tensor, filled, where)
        else:
            new = make(mark.plan, source, where, None)
            if together:
                shared[group, source.name] = new
            made.append(_converted(new, dtypes[1:]))
            continue
        if together:
            shared[group, source.name] = new
        targets.setdefault(id(mark.plan), (mark.plan, []))[1].append((source, new))
        later += [(len(made), one) for one in dtypes[2:]]
        made.append(new)
    for plan, pairs in targets.values():
        if plan.key is None:
            refuse_other_recordings("materialize_module", pairs)
    for plan, pairs in targets.values():
        write(plan, pairs, None)
    for place, one in later:
        made[place] = made[place].to(one)
    distributed: dict[int, Tensor] = {}
    for (tensor, _), new in zip(waiting, made, strict=True):
        vars(tensor).pop(_MARK, None)
        if local_tensor(tensor) is tensor:
            exchange(tensor, new)
        else:
            distributed[id(tensor)] = new
    return distributed


def _empty(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new tensor that lies as the one on meta does, which may have been given a memory format."""
    shape, stride = tuple(tensor.shape), tensor.stride()
    if stride == contiguous_stride(shape) or not Geometry.of(tensor).is_dense:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _converted(tensor: Tensor, dtypes: Iterable[torch.dtype]) -> Tensor:
    for dtype in dtypes:
        tensor = tensor.to(dtype)
    return tensor
