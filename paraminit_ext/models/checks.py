"""The checks of an audit: of one tensor, of fills that missed one, of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paraminit_ext.geometry import loaded
from paraminit_ext.models import seen
from paraminit_ext.models.finding import Finding, Looked
from paraminit_ext.models.law import Law, law_of, law_of_fill
from paraminit_ext.models.layout import bits
from paraminit_ext.models.look import Statistics, is_readable
from paraminit_ext.models.names import local_tensor, named_modules
from paraminit_ext.models.replicas import differing_replicas

# No initialisation gives parameters beyond this.
_LARGEST = 1e6
# Integers of an index that points to nothing.
_LARGEST_INTEGER = 1 << 40
# How far a deviation may be off, and how many standard errors: chance alone is off by so many in no model.
_TOLERANCE = 0.2
_ERRORS = 6.0


def law_asked(one: Looked) -> Law | None:
    """What was asked for, where that is one fill of the whole tensor."""
    if one.dtype is None or not one.dtype.is_floating_point:
        return None
    if one.entry is not None and one.plan is not None:
        entry = one.plan.resolved(one.entry)
        return law_of_fill(entry) if len(entry.steps) == 1 and entry.shape == one.shape else None
    fill = _last_fill(one)
    return fill and law_of(fill.name, fill.arguments, one.shape)


def _last_fill(one: Looked) -> seen.SeenFill | None:
    """The fill of the whole tensor that nothing was written after, as far as that was seen."""
    memory = one.memory
    if memory is None or not memory.fills or memory.is_changed or one.tensor is None:
        return None
    fill = memory.fills[-1]
    covers = fill.extent == seen.extent_of(one.tensor)
    return fill if covers else None


# ----------------------------------------------------------------------------------------
# One tensor
# ----------------------------------------------------------------------------------------


def of_one(one: Looked) -> Iterator[Finding]:
    if one.tensor is not None and local_tensor(one.tensor).is_meta:
        yield one.finding(
            "meta", "it is on meta and has no values", "Call materialize_module, or to_empty and fill it."
        )
        return
    partitioned = _partitioned(one)
    if partitioned is not None:
        yield partitioned
        return
    unwritten = _unwritten(one)
    if unwritten is not None:
        yield unwritten
        return
    if one.read is None or not one.read.numel:
        return
    yield from _junk(one, one.read)
    yield from _against_law(one, one.read)
    yield from _tied_twice(one)


def _partitioned(one: Looked) -> Finding | None:
    tensor = one.tensor
    if tensor is None or not one.is_parameter:
        return None
    if 0 in one.shape:
        if hasattr(tensor, "ds_id"):
            return one.finding(
                "partitioned",
                "ZeRO has partitioned it away, so that a fill of it does nothing",
                "Fill it in `with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):`.",
            )
        return one.finding("partitioned", f"its shape is {one.shape}", "Give it elements, or remove it.")
    if not is_readable(tensor) and type(local_tensor(tensor)) in (Tensor, nn.Parameter):
        return one.finding(
            "partitioned", "its memory was taken away", "Look at it before it is sharded, or summon it."
        )
    return None


def _unwritten(one: Looked) -> Finding | None:
    tensor, memory = one.tensor, one.memory
    remedy = f"Fill it: init.normal_(module.{one.name}, std=...), or init.zeros_."
    if tensor is None or seen.version_of(tensor):
        return None
    if memory is not None and (memory.is_empty or memory.is_left):
        storage = local_tensor(tensor).untyped_storage()
        if memory.sample is not None and memory.sample != seen.sample_of(storage):
            return None
        if memory.is_empty:
            return one.finding("unwritten", "it was allocated and never written", remedy)
        if memory.is_left and _looks_left(one, memory):
            return one.finding("unwritten", "nothing wrote it under keyed(), nor before", remedy)
    if one.entry is not None and one.plan is not None and one.entry.kind != "attribute":
        entry = one.plan.resolved(one.entry)
        if not entry.steps and memory is None:
            return one.finding("unwritten", "the model's code allocates it and never writes it", remedy)
    if one.kind == "non-persistent buffer" and memory is None and one.is_floating and one.entry is None:
        read = one.read
        if read is not None and read.numel > 1 and read.zeros == read.numel:
            return one.finding(
                "unwritten",
                "it is all zeros, as to_empty() leaves it, and no checkpoint has it",
                "Compute it anew after to_empty, or build the model by deferred_init and materialise it.",
            )
    return None


def _looks_left(one: Looked, memory: seen.Memory) -> bool:
    """Whether what nothing wrote in place holds what memory holds, and no values that it was made with."""
    read = one.read
    if read is None or not read.numel:
        return False
    is_one_number = read.least == read.greatest != 0 and read.finite == read.numel > 1
    if memory.is_of_unwritten:
        return not is_one_number
    return any(_junk(one, read))


def _junk(one: Looked, read: Statistics) -> Iterator[Finding]:
    remedy = "Fill it again, and look for what wrote it since."
    if one.kind == "non-persistent buffer":
        remedy = "No checkpoint has it: compute it anew after to_empty, or materialise it from a plan."
    total = f"of {read.numel} elements"
    if read.nans:
        yield one.finding("nan", f"{int(read.nans)} {total} are NaN", remedy)
    # Masks of buffers are -inf beside zeros.
    is_mask = not one.is_parameter and not read.nans and read.least == read.greatest == 0
    is_all = not one.is_parameter and not read.finite
    if read.infinities and not is_mask and not is_all:
        yield one.finding("inf", f"{int(read.infinities)} {total} are infinite", remedy)
    if not read.finite:
        return
    largest = max(abs(read.least), abs(read.greatest))
    if not one.is_floating:
        if not one.is_parameter and largest > _LARGEST_INTEGER:
            yield one.finding("junk", f"an integer of it is {largest:.3g}, which indexes nothing", remedy)
        return
    if one.is_parameter and largest > min(_LARGEST, _half_of_range(one.dtype)):
        yield one.finding("junk", f"a number of it is {largest:.3g}", remedy)
    # Of 16 bits with five of exponent a small deviation has subnormals by rights.
    share = read.subnormals / read.numel
    is_wide = one.dtype != torch.float16 and one.dtype != torch.complex32 and _bits(one.dtype) > 8
    if is_wide and read.subnormals and (one.is_parameter or share > 0.1) and not _is_tiny(one.law):
        yield one.finding("junk", f"{int(read.subnormals)} {total} are subnormal", remedy)


def _bits(dtype: torch.dtype | None) -> int:
    return 0 if dtype is None else dtype.itemsize * 8


def _half_of_range(dtype: torch.dtype | None) -> float:
    return torch.finfo(dtype).max / 2 if dtype is not None and dtype.is_floating_point else math.inf


def _is_tiny(law: Law | None) -> bool:
    return law is not None and max(abs(law.mean), law.std) < 1e-30


def _against_law(one: Looked, read: Statistics) -> Iterator[Finding]:
    law, std = one.law, read.std
    if law is None or std is None or read.finite < 2 or not math.isfinite(std):
        return
    remedy = "Look for what wrote it since, or for what it was filled by instead."
    if not law.is_constant and read.least == read.greatest:
        yield one.finding("constant", f"it is {read.least:.4g} throughout, asked was {law}", remedy)
        return
    fill = _last_fill(one)
    if fill is not None and fill.shape != one.shape and law_of(fill.name, fill.arguments, fill.shape) != law:
        yield one.finding(
            "shard",
            f"{fill.name} took the fan of a part of shape {fill.shape} for that of {one.shape}",
            "Pass the DTensor itself, or paraminit_ext.shard(local, global_shape, shard_offset).",
        )
        return
    if _is_off(law, std, read):
        factor = (std / law.std) ** 2 if law.std else math.inf
        ranks = round(factor)
        hint = ""
        if ranks > 1 and abs(factor / ranks - 1) < 0.03 and law.name not in ("normal_", "trunc_normal_"):
            hint = f", as if the fan were that of one of {ranks} shards"
        yield one.finding("law", f"its std is {std:.4g}, asked was {law}{hint}", remedy)
        return
    error = law.std / math.sqrt(read.finite)
    apart = abs(read.mean - law.mean)
    if apart > max(_TOLERANCE * law.std, _ERRORS * error) and apart > _rounding(one.dtype) * abs(law.mean):
        yield one.finding("law", f"its mean is {read.mean:.4g}, asked was {law}", remedy)
        return
    slack = _rounding(one.dtype) * max(abs(bound) for bound in (law.low, law.high))
    if math.isfinite(slack) and (read.least < law.low - slack or read.greatest > law.high + slack):
        yield one.finding(
            "law",
            f"it goes from {read.least:.4g} to {read.greatest:.4g}, asked was {law} within "
            f"[{law.low:.4g}, {law.high:.4g}]",
            remedy,
        )


def _is_off(law: Law, std: float, read: Statistics) -> bool:
    """Whether a deviation is too far off, and further than chance takes it."""
    if law.is_constant:
        return std > 0 and std > 1e-3 * abs(law.mean)
    # The fourth moment over the squared second: of a normal 3, of a uniform less, of a sparse fill more.
    kurtosis = 3 / law.parameters[1] if law.fill == "sparse_" else 3.0
    error = math.sqrt((kurtosis - 1) / (4 * read.finite))
    return abs(std / law.std - 1) > max(_TOLERANCE, _ERRORS * error)


def _rounding(dtype: torch.dtype | None) -> float:
    return 0.0 if dtype is None else torch.finfo(dtype).eps


def _tied_twice(one: Looked) -> Iterator[Finding]:
    memory = one.memory
    if memory is None or memory.tied_at is None or len(one.names) < 2 or one.tensor is None:
        return
    whole = seen.extent_of(one.tensor)
    fills = [fill for fill in memory.fills if fill.order > memory.tied_at and fill.extent == whole]
    laws = [law_of(fill.name, fill.arguments, one.shape) for fill in fills[-2:]]
    if len(laws) == 2 and laws[0] != laws[1] and None not in laws:
        yield Finding(
            "tied twice",
            tuple(one.names),
            f"{laws[0]} ({fills[-2].line}), then {laws[1]} ({fills[-1].line})",
            "Fill a tied tensor once, under the name whose law is meant.",
        )


# ----------------------------------------------------------------------------------------
# Fills that reached something else
# ----------------------------------------------------------------------------------------

_MISSED_REMEDY = "Fill the parameter itself under torch.no_grad(); of a parametrisation, its originals."


def missed(looked: Sequence[Looked]) -> Iterator[Finding]:
    """Of copies, and of what was computed, one finding a line of code."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in looked:
        memory, tensor = one.memory, one.tensor
        if memory is None or tensor is None:
            continue
        missed = memory.missed
        written = max([memory.changed_at, *(fill.order for fill in memory.fills)])
        if missed and missed.order > written and missed.version == seen.version_of(tensor):
            found.setdefault((missed.name, missed.line), []).append(one.name)
    for (name, line), names in found.items():
        yield Finding(
            "missed", tuple(names), f"{name} at {line} filled a copy, which was dropped", _MISSED_REMEDY
        )


def missed_by_shape(module: nn.Module) -> Iterator[Finding]:
    """Of parametrised tensors, which are computed where grad mode is off: known by their shapes alone."""
    kind = loaded("torch.nn.utils.parametrize", "ParametrizationList")
    if kind is None:
        return
    gone = [one.fill for one in seen.temporaries if one.ref.expired()]
    for path, inner in named_modules(module):
        if not isinstance(inner, kind):
            continue
        originals = list(inner.parameters(recurse=False))
        shapes = {tuple(original.shape) for original in originals}
        known = [memory.known_at for one in originals if (memory := seen.memory_of(local_tensor(one)))]
        since = min((order for order in known if order is not None), default=None)
        if since is None:
            continue
        for fill in [fill for fill in gone if fill.shape in shapes and fill.order > since][-1:]:
            # layer.parametrizations.weight holds what layer.weight is computed from.
            yield Finding(
                "missed",
                (path.replace("parametrizations.", ""),),
                f"{fill.name} at {fill.line} filled what the parametrisation computes, which was dropped",
                _MISSED_REMEDY,
            )


# ----------------------------------------------------------------------------------------
# Several tensors
# ----------------------------------------------------------------------------------------

# Elements of a tensor that are looked at, and the share of them that are unique in random numbers: of
# bfloat16 there are some 2,000 within three deviations.
_LOOKED_AT = 4096
_UNIQUE = 0.1


def equal(looked: Sequence[Looked]) -> Iterator[Finding]:
    """Random matrices that hold the same numbers. Equal tables (rotary frequencies) are as they should be."""
    groups: dict[Any, list[Looked]] = {}
    for one in looked:
        read = one.read
        if one.is_parameter and one.is_floating and len(one.shape) > 1 and read is not None and read.squares:
            groups.setdefault((one.shape, one.dtype, read), []).append(one)
    for group in groups.values():
        if len(group) < 2 or not _is_random(group[0]):
            continue
        same = [one for one in group[1:] if _holds_the_same(group[0], one)]
        if same:
            yield Finding(
                "equal",
                tuple(one.name for one in (group[0], *same)),
                "they hold the same random numbers and are not tied",
                "Draw each anew (a copied layer keeps the numbers of the first), or tie them.",
            )


def flat_elements(one: Looked) -> Callable[[int, int], Tensor]:
    """What gives a range of the elements held here."""
    if one.file is not None:
        return one.file.elements
    assert one.tensor is not None
    flat = local_tensor(one.tensor).detach().reshape(-1)
    return lambda begin, end: flat[begin:end]


def _is_random(one: Looked) -> bool:
    count = min(_LOOKED_AT, math.prod(one.shape))
    values = flat_elements(one)(0, count)
    return len(torch.unique(bits(values))) > _UNIQUE * len(values)


_PIECE = 1 << 18


def _holds_the_same(one: Looked, other: Looked) -> bool:
    first, second, total = flat_elements(one), flat_elements(other), _held(one)
    if total != _held(other):
        return False
    return all(
        torch.equal(bits(first(begin, begin + _PIECE)), bits(second(begin, begin + _PIECE)))
        for begin in range(0, total - total % _PIECE, _PIECE)
    ) and torch.equal(bits(first(total - total % _PIECE, total)), bits(second(total - total % _PIECE, total)))


def _held(one: Looked) -> int:
    return local_tensor(one.tensor).numel() if one.tensor is not None else math.prod(one.shape)


def replicas(module: nn.Module) -> Iterator[Finding]:
    for name in differing_replicas(module):
        yield Finding(
            "replicas",
            (name,),
            "ranks that hold the same elements of it hold other numbers",
            "Fill it from one key on all ranks, or broadcast it.",
        )
