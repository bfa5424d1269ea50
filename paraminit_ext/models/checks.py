"""The checks of an audit: of single tensors, of fills that wrote something else, and of several tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paraminit_ext import _C
from paraminit_ext.geometry import class_if_imported, is_plain
from paraminit_ext.models import storage_log
from paraminit_ext.models.finding import AuditedTensor, Finding
from paraminit_ext.models.law import Law, law_of, law_of_fill
from paraminit_ext.models.layout import bits
from paraminit_ext.models.names import local_tensor, named_modules
from paraminit_ext.models.replicas import differing_replicas
from paraminit_ext.models.summary import Statistics

# No initialisation produces parameters beyond this magnitude.
_LARGEST = 1e6
# A larger integer in a buffer cannot be a valid index.
_LARGEST_INTEGER = 1 << 40
# Allowed relative error of a standard deviation, and allowed number of standard errors. Chance alone exceeds
# this number in no model.
_TOLERANCE = 0.2
_ERRORS = 6.0


def requested_law(audited: AuditedTensor) -> Law | None:
    """Return the requested law, if it comes from a single fill of the whole tensor."""
    if audited.dtype is None or not audited.dtype.is_floating_point:
        return None
    if audited.entry is not None and audited.plan is not None:
        entry = audited.plan.resolved(audited.entry)
        return law_of_fill(entry) if len(entry.steps) == 1 and entry.shape == audited.shape else None
    fill = _last_fill(audited)
    return fill and law_of(fill.name, fill.arguments, audited.shape)


def _last_fill(audited: AuditedTensor) -> storage_log.SeenFill | None:
    """Return the last recorded fill if it covers the whole tensor and no later write was recorded."""
    memory = audited.memory
    if memory is None or not memory.fills or memory.is_changed or audited.tensor is None:
        return None
    fill = memory.fills[-1]
    covers = fill.extent == storage_log.extent_of(audited.tensor)
    return fill if covers else None


# ----------------------------------------------------------------------------------------
# One tensor
# ----------------------------------------------------------------------------------------


def check_tensor(audited: AuditedTensor) -> Iterator[Finding]:
    """Yield the findings about one tensor."""
    if audited.tensor is not None and local_tensor(audited.tensor).is_meta:
        yield audited.finding(
            "meta",
            "it is on the meta device and has no values",
            "Call materialize_module, or call to_empty and fill it.",
        )
        return
    partitioned = _partitioned(audited)
    if partitioned is not None:
        yield partitioned
        return
    unwritten = _unwritten(audited)
    if unwritten is not None:
        yield unwritten
        return
    if audited.statistics is None or not audited.statistics.numel:
        return
    yield from _junk_findings(audited, audited.statistics)
    yield from _law_findings(audited, audited.statistics)
    yield from _tied_twice(audited)


def _partitioned(audited: AuditedTensor) -> Finding | None:
    tensor = audited.tensor
    if tensor is None or not audited.is_parameter:
        return None
    if 0 in audited.shape:
        if hasattr(tensor, "ds_id"):
            return audited.finding(
                "partitioned",
                "ZeRO has partitioned it, so that a fill has no effect",
                "Fill it in `with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):`.",
            )
        return audited.finding(
            "partitioned",
            f"it has no elements: its shape is {audited.shape}",
            "Give it elements, or remove it.",
        )
    local = local_tensor(tensor)
    if is_plain(local) and storage_log.has_storage(local) and _C.storage_too_small(local):
        return audited.finding(
            "partitioned",
            "its storage was freed",
            "Audit it before it is sharded, or gather its full parameters first.",
        )
    return None


def _unwritten(audited: AuditedTensor) -> Finding | None:
    tensor, memory = audited.tensor, audited.memory
    remedy = f"Fill it: init.normal_(module.{audited.name}, std=...), or init.zeros_."
    # Nothing can be written to a tensor without elements.
    if tensor is None or 0 in audited.shape or storage_log.version_of(tensor):
        return None
    if memory is not None and (memory.is_empty or memory.is_unwritten_parameter):
        storage = local_tensor(tensor).untyped_storage()
        if memory.sample is not None and memory.sample != storage_log.sample_of(storage):
            return None
        if memory.is_empty:
            return audited.finding("unwritten", "it was allocated and never written", remedy)
        if memory.is_unwritten_parameter and _looks_unwritten(audited, memory):
            return audited.finding("unwritten", "nothing wrote it under keyed() or before", remedy)
    if audited.entry is not None and audited.plan is not None and audited.entry.kind != "attribute":
        entry = audited.plan.resolved(audited.entry)
        if not entry.steps and memory is None:
            return audited.finding("unwritten", "the model's code allocates it and never writes it", remedy)
    if (
        audited.kind == "non-persistent buffer"
        and memory is None
        and audited.is_floating
        and audited.entry is None
    ):
        statistics = audited.statistics
        if statistics is not None and statistics.numel > 1 and statistics.zeros == statistics.numel:
            return audited.finding(
                "unwritten",
                "it is all zeros, as after to_empty(), and checkpoints do not contain it",
                "Compute it again after to_empty, or build the model with deferred_init and materialise it.",
            )
    return None


def _looks_unwritten(audited: AuditedTensor, memory: storage_log.StorageRecord) -> bool:
    """Return whether a parameter without recorded writes looks unwritten.

    Code can also construct a parameter from finished values, which needs no write in place.
    """
    statistics = audited.statistics
    if statistics is None or not statistics.numel:
        return False
    is_one_number = statistics.least == statistics.greatest != 0 and statistics.finite == statistics.numel > 1
    if memory.module_was_unwritten:
        return not is_one_number
    return any(_junk_findings(audited, statistics))


def _junk_findings(audited: AuditedTensor, statistics: Statistics) -> Iterator[Finding]:
    remedy = "Fill it again, and find the code that overwrote it."
    if audited.kind == "non-persistent buffer":
        remedy = (
            "Checkpoints do not contain it: compute it again after to_empty, or materialise it from a plan."
        )
    of_elements = f"of {statistics.numel} elements"
    if statistics.nans:
        yield audited.finding("nan", f"{int(statistics.nans)} {of_elements} are NaN", remedy)
    # A mask in a buffer holds zeros and -inf. Without a plan, a tensor of a checkpoint may be a buffer.
    may_be_buffer = not audited.is_parameter or (audited.kind == "stored" and audited.entry is None)
    is_mask = may_be_buffer and not statistics.nans and statistics.least == statistics.greatest == 0
    is_all = not audited.is_parameter and not statistics.finite
    if statistics.infinities and not is_mask and not is_all:
        yield audited.finding("inf", f"{int(statistics.infinities)} {of_elements} are infinite", remedy)
    if not statistics.finite:
        return
    largest = max(abs(statistics.least), abs(statistics.greatest))
    if not audited.is_floating:
        if not audited.is_parameter and largest > _LARGEST_INTEGER:
            yield audited.finding(
                "junk", f"it holds the integer {largest:.3g}, which is too large for an index", remedy
            )
        return
    if audited.is_parameter and largest > min(_LARGEST, _half_of_range(audited.dtype)):
        yield audited.finding("junk", f"it holds a number of magnitude {largest:.3g}", remedy)
    # float16 has five exponent bits, so that a small standard deviation produces valid subnormals.
    subnormal_share = statistics.subnormals / statistics.numel
    has_wide_exponent = (
        audited.dtype != torch.float16 and audited.dtype != torch.complex32 and _bits(audited.dtype) > 8
    )
    if (
        has_wide_exponent
        and statistics.subnormals
        and (audited.is_parameter or subnormal_share > 0.1)
        and not _is_tiny(audited.law)
    ):
        yield audited.finding("junk", f"{int(statistics.subnormals)} {of_elements} are subnormal", remedy)


def _bits(dtype: torch.dtype | None) -> int:
    return 0 if dtype is None else dtype.itemsize * 8


def _half_of_range(dtype: torch.dtype | None) -> float:
    # Weights of 8 bits are quantised with a scale that uses the whole range of the dtype.
    if dtype is None or not dtype.is_floating_point or _bits(dtype) <= 8:
        return math.inf
    return torch.finfo(dtype).max / 2


def _is_tiny(law: Law | None) -> bool:
    return law is not None and max(abs(law.mean), law.std) < 1e-30


def _law_findings(audited: AuditedTensor, statistics: Statistics) -> Iterator[Finding]:
    law, std = audited.law, statistics.std
    if law is None or std is None or statistics.finite < 2 or not math.isfinite(std):
        return
    remedy = "Find the code that overwrote it or filled it with another law."
    if not law.is_constant and statistics.least == statistics.greatest:
        yield audited.finding(
            "constant", f"all its elements are {statistics.least:.4g}, expected {law}", remedy
        )
        return
    fill = _last_fill(audited)
    if (
        fill is not None
        and fill.shape != audited.shape
        and law_of(fill.name, fill.arguments, fill.shape) != law
    ):
        yield audited.finding(
            "shard",
            f"{fill.name} computed the fan from a part of shape {fill.shape}, expected {audited.shape}",
            "Pass the DTensor itself, or paraminit_ext.shard(local, global_shape, shard_offset).",
        )
        return
    if _is_off(law, std, statistics):
        yield audited.finding(
            "law", f"its std is {std:.4g}, expected {law}{_shard_hint(law, std, audited.shape)}", remedy
        )
        return
    error = law.std / math.sqrt(statistics.finite)
    difference = abs(statistics.mean - law.mean)
    if difference > max(_TOLERANCE * law.std, _ERRORS * error) and difference > _rounding(
        audited.dtype
    ) * abs(law.mean):
        yield audited.finding("law", f"its mean is {statistics.mean:.4g}, expected {law}", remedy)
        return
    slack = _rounding(audited.dtype) * max(abs(bound) for bound in (law.low, law.high))
    if math.isfinite(slack) and (
        statistics.least < law.low - slack or statistics.greatest > law.high + slack
    ):
        yield audited.finding(
            "law",
            f"its values range from {statistics.least:.4g} to {statistics.greatest:.4g}, "
            f"expected {law} within [{law.low:.4g}, {law.high:.4g}]",
            remedy,
        )


# Any larger factor is within 3 % of an integer, so it hints at nothing.
_MOST_RANKS = 16


def _shard_hint(law: Law, std: float, shape: tuple[int, ...]) -> str:
    """Return a hint that the fan was that of a shard, if the deviation fits a number of equal shards."""
    if law.is_constant or law.name in ("normal_", "trunc_normal_"):
        return ""
    factor = (std / law.std) ** 2
    for ranks in range(2, _MOST_RANKS + 1):
        if abs(factor / ranks - 1) < 0.03 and any(size % ranks == 0 for size in shape):
            return f"; the fan seems to be that of one of {ranks} shards"
    return ""


def _is_off(law: Law, std: float, statistics: Statistics) -> bool:
    """Return whether a standard deviation is off by more than the tolerance and more than by chance."""
    if law.is_constant:
        return std > 0 and std > 1e-3 * abs(law.mean)
    error = math.sqrt((_largest_kurtosis(law) - 1) / (4 * statistics.finite))
    return abs(std / law.std - 1) > max(_TOLERANCE, _ERRORS * error)


def _largest_kurtosis(law: Law) -> float:
    if law.fill == "sparse_":
        return 3 / law.parameters[1]
    if law.fill == "trunc_normal_":
        mean, _, low, high = law.parameters
        if not low <= mean <= high:
            return 9.0  # a tail is between a uniform and an exponential law, whose kurtosis is 9
    return 3.0  # of a normal law; that of a uniform law is smaller


def _rounding(dtype: torch.dtype | None) -> float:
    return 0.0 if dtype is None else torch.finfo(dtype).eps


def _tied_twice(audited: AuditedTensor) -> Iterator[Finding]:
    memory = audited.memory
    if memory is None or memory.tied_at is None or len(audited.names) < 2 or audited.tensor is None:
        return
    whole = storage_log.extent_of(audited.tensor)
    fills = [fill for fill in memory.fills if fill.order > memory.tied_at and fill.extent == whole]
    laws = [law_of(fill.name, fill.arguments, audited.shape) for fill in fills[-2:]]
    if len(laws) == 2 and laws[0] != laws[1] and None not in laws:
        yield Finding(
            "tied twice",
            tuple(audited.names),
            f"it was filled by {laws[0]} ({fills[-2].line}), then by {laws[1]} ({fills[-1].line})",
            "Fill a tied tensor once, under the name whose law is intended.",
        )


# ----------------------------------------------------------------------------------------
# Fills that wrote something else
# ----------------------------------------------------------------------------------------

_MISSED_REMEDY = (
    "Fill the parameter itself under torch.no_grad(), or the original tensors of the parametrisation."
)


def missed(tensors: Sequence[AuditedTensor]) -> Iterator[Finding]:
    """Yield one finding for each line of code that filled a copy of a tensor or a value computed from it."""
    names_of_call: dict[tuple[str, str], list[str]] = {}
    for audited in tensors:
        memory, tensor = audited.memory, audited.tensor
        if memory is None or tensor is None:
            continue
        missed = memory.missed
        written = max([memory.other_write_at, *(fill.order for fill in memory.fills)])
        if missed and missed.order > written and missed.version == storage_log.version_of(tensor):
            names_of_call.setdefault((missed.name, missed.line), []).append(audited.name)
    for (name, line), names in names_of_call.items():
        yield Finding(
            "missed",
            tuple(names),
            f"{name} at {line} filled a copy and not the tensor itself",
            _MISSED_REMEDY,
        )


def missed_in_parametrisations(module: nn.Module) -> Iterator[Finding]:
    """Yield findings about fills of parametrised tensors that were computed while grad mode was off.

    Such a tensor has no autograd graph, so only its shape connects it to the parametrisation.
    """
    kind = class_if_imported("torch.nn.utils.parametrize", "ParametrizationList")
    if kind is None:
        return
    discarded = [one.fill for one in storage_log.temporaries if one.ref.expired()]
    for path, inner in named_modules(module):
        if not isinstance(inner, kind):
            continue
        originals = list(inner.parameters(recurse=False))
        shapes = {tuple(original.shape) for original in originals}
        orders = [
            memory.registered_at for one in originals if (memory := storage_log.record_of(local_tensor(one)))
        ]
        first_seen = min((order for order in orders if order is not None), default=None)
        if first_seen is None:
            continue
        for fill in [fill for fill in discarded if fill.shape in shapes and fill.order > first_seen][-1:]:
            # layer.parametrizations.weight holds the originals from which layer.weight is computed.
            yield Finding(
                "missed",
                (path.replace("parametrizations.", ""),),
                f"{fill.name} at {fill.line} filled the output of a parametrisation, which was discarded",
                _MISSED_REMEDY,
            )


# ----------------------------------------------------------------------------------------
# Several tensors
# ----------------------------------------------------------------------------------------

# Number of sampled elements of a tensor, and the share of unique values above which they count as random.
# bfloat16 has about 2,000 values within three standard deviations.
_SAMPLED = 4096
_UNIQUE = 0.1


def equal(tensors: Sequence[AuditedTensor]) -> Iterator[Finding]:
    """Yield findings about equal random matrices. Equal tables, such as rotary frequencies, are valid."""
    groups: dict[Any, list[AuditedTensor]] = {}
    for audited in tensors:
        statistics = audited.statistics
        if (
            audited.is_parameter
            and audited.is_floating
            and len(audited.shape) > 1
            and statistics is not None
            and statistics.squares
        ):
            groups.setdefault((audited.shape, audited.dtype, statistics), []).append(audited)
    for group in groups.values():
        if len(group) < 2 or not _is_random(group[0]):
            continue
        duplicates = [audited for audited in group[1:] if _holds_the_same(group[0], audited)]
        if duplicates:
            yield Finding(
                "equal",
                tuple(audited.name for audited in (group[0], *duplicates)),
                "they hold the same random numbers but are not tied",
                "Initialise each separately (a copied layer keeps the numbers of its original), or tie them.",
            )


def flat_elements(audited: AuditedTensor) -> Callable[[int, int], Tensor]:
    """Return a function that returns the elements from ``begin`` to ``end`` of the stored or local tensor."""
    if audited.file is not None:
        return audited.file.elements
    assert audited.tensor is not None
    flat = local_tensor(audited.tensor).detach().reshape(-1)
    return lambda begin, end: flat[begin:end]


def _is_random(audited: AuditedTensor) -> bool:
    count = min(_SAMPLED, math.prod(audited.shape))
    values = flat_elements(audited)(0, count)
    return len(torch.unique(bits(values))) > _UNIQUE * len(values)


_PIECE = 1 << 18


def _holds_the_same(audited: AuditedTensor, other: AuditedTensor) -> bool:
    first, second, numel = flat_elements(audited), flat_elements(other), _local_numel(audited)
    if numel != _local_numel(other):
        return False
    return all(
        torch.equal(bits(first(begin, begin + _PIECE)), bits(second(begin, begin + _PIECE)))
        for begin in range(0, numel - numel % _PIECE, _PIECE)
    ) and torch.equal(bits(first(numel - numel % _PIECE, numel)), bits(second(numel - numel % _PIECE, numel)))


def _local_numel(audited: AuditedTensor) -> int:
    return local_tensor(audited.tensor).numel() if audited.tensor is not None else math.prod(audited.shape)


def replicas(module: nn.Module) -> Iterator[Finding]:
    """Yield a finding for each tensor that differs between ranks that must hold the same elements."""
    for name in differing_replicas(module):
        yield Finding(
            "replicas",
            (name,),
            "ranks that must hold the same elements of it hold different values",
            "Fill it with the same key on all ranks, or broadcast it.",
        )
