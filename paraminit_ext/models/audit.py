"""``audit()``: what of a module or a checkpoint looks uninitialised, or is not what was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from paraminit_ext.key import Key
from paraminit_ext.models import checks, seen
from paraminit_ext.models.checks import flat_elements
from paraminit_ext.models.finding import Audit, Finding, Looked
from paraminit_ext.models.layout import bits, index_at
from paraminit_ext.models.look import is_readable, read_all, read_stored
from paraminit_ext.models.names import Named, local_tensor, named_tensors, refuse_key
from paraminit_ext.models.plan import Entry, InitPlan, recorded
from paraminit_ext.models.stored import stored
from paraminit_ext.models.write import parts, write


def audit(
    module_or_path: nn.Module | str | os.PathLike[str], plan: InitPlan | None = None, key: Key | None = None
) -> Audit:
    r"""Find what of a module looks uninitialised, or is not what was asked for; worst first.

    What was asked for is known of a module that :func:`deferred_init` made, of the fills that :class:`patch`
    and :class:`keyed` saw, and of a plan that is given. With a plan every tensor is also compared with what
    the plan says, bit for bit. Where a tensor is sharded or replicated, all ranks of its mesh call together.

    ============= ======================================================================================
    kind          finding
    ============= ======================================================================================
    meta          a tensor on meta
    unwritten     allocated, and never written since: by ``torch.empty`` or ``to_empty`` under ``patch`` or
                  ``keyed``, a parameter that ``keyed`` found and nothing wrote, one that a plan leaves out,
                  a floating-point buffer that no checkpoint has and that is all zeros
    partitioned   a parameter of no elements, or whose memory was taken away
    nan, inf      in a parameter; NaN in a buffer as well, inf there beside other numbers
    junk          numbers beyond 1e6, or subnormal ones, in a parameter; an index beyond 2^40
    differs       from the plan, and where first; a tensor of one of the two alone
    constant      one number throughout, where random ones were asked for
    missed        ``init.normal_(w.float())``: a fill of a copy, or of what a parametrisation computes
    shard         a fan taken from a part of a sharded tensor
    law           a deviation or a mean more than 20 % off what was asked for, or a value out of bounds
    replicas      ranks that hold the same elements hold other numbers
    tied twice    a tied tensor, filled under each of its names, by different laws
    equal         random matrices that are equal, and not tied
    ============= ======================================================================================

    Args:
        module_or_path: a module; or a directory of safetensors files, an index in it, or one such file
        plan: what every tensor is to be. A checkpoint in which transformers has renamed tensors, as it does
            those of a ViT, is compared by ``paraminit-ext diff config.json checkpoint/``
        key: the key of the model, in place of the plan's own

    Raises:
        TypeError: an argument of another type.
        OSError: the path cannot be read.
        ValueError: there is no checkpoint, or a damaged one.

    Returns:
        an :class:`Audit`: an iterable of findings, each with its kind, the names, the reason and the remedy

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, audit, init, patch
        >>> with patch(key=Key(1)):
        ...     layer = torch.nn.Linear(64, 64)
        ...     layer.scale = torch.nn.Parameter(torch.empty(64))
        ...     _ = init.normal_(layer.weight.double())
        >>> [(finding.kind, finding.names[0]) for finding in audit(layer)]
        [('unwritten', 'scale'), ('missed', 'weight')]
    """
    refuse_key("audit", key)
    if plan is not None and not isinstance(plan, InitPlan):
        raise TypeError(
            f"paraminit_ext.audit: expected a paraminit_ext.InitPlan or None for plan, got "
            f"{type(plan).__name__}. Pass InitPlan.load(path), or InitPlan.of(module)."
        )
    if isinstance(module_or_path, nn.Module):
        looked = _look_at_module(module_or_path, plan)
        more = [*checks.missed_by_shape(module_or_path), *checks.replicas(module_or_path)]
    elif isinstance(module_or_path, str | os.PathLike):
        looked, more = _look_at_files(module_or_path, plan), []
    else:
        raise TypeError(
            f"paraminit_ext.audit: expected a torch.nn.Module or a path, got {type(module_or_path).__name__}."
            " Pass a model, or a directory of safetensors files."
        )
    findings = [finding for one in looked for finding in checks.of_one(one)]
    findings += [*more, *checks.missed(looked), *checks.equal(looked)]
    if plan is not None:
        findings += _proof(looked, plan, key, isinstance(module_or_path, nn.Module))
    return Audit(findings, len(looked), plan is not None)


def _look_at_module(module: nn.Module, plan: InitPlan | None) -> list[Looked]:
    looked: dict[int, Looked] = {}
    for one in named_tensors(module):
        if nn.parameter.is_lazy(one.tensor):
            continue
        found = looked.get(id(one.tensor))
        if found is None:
            found = _of_module(one, plan)
            looked[id(one.tensor)] = found
        found.names.append(one.name)
    tensors = [one.tensor for one in looked.values() if one.tensor is not None]
    for found, read in zip(looked.values(), read_all(tensors), strict=True):
        found.read = read
    return list(looked.values())


def _of_module(one: Named, plan: InitPlan | None) -> Looked:
    tensor = one.tensor
    found = Looked(one.name, one.kind, tuple(tensor.shape), tensor.dtype, tensor)
    local = local_tensor(tensor)
    found.memory = None if local.is_meta else seen.memory_of(local)
    own = recorded(one.owner)
    if plan is not None:
        found.plan, found.entry = plan, plan.entries.get(one.name)
    elif own is not None:
        found.plan, path = own
        found.entry = found.plan.entries.get(f"{path}.{one.attribute}" if path else one.attribute)
    found.law = checks.law_asked(found)
    return found


def _look_at_files(path: str | os.PathLike[str], plan: InitPlan | None) -> list[Looked]:
    looked = []
    for one in stored(path).values():
        found = Looked(one.name, "stored", one.shape, one.dtype, file=one, names=[one.name])
        if plan is not None:
            found.plan, found.entry = plan, plan.entries.get(one.name)
            found.law = checks.law_asked(found)
        found.read = read_stored(one)
        looked.append(found)
    return looked


# ----------------------------------------------------------------------------------------
# Against a plan
# ----------------------------------------------------------------------------------------


def _proof(looked: Sequence[Looked], plan: InitPlan, key: Key | None, is_module: bool) -> Iterator[Finding]:
    remedy = "Apply the plan: plan.apply(module)." if is_module else "Write the checkpoint again."
    known = {name for one in looked for name in one.names}
    for one in looked:
        if one.entry is None:
            if one.kind != "non-persistent buffer":
                yield one.finding("differs", "the plan does not have it", "Record the plan from this model.")
            continue
        if one.tensor is not None and not is_readable(one.tensor):
            continue
        entry = plan.resolved(one.entry)
        if entry.shape != one.shape:
            reason = f"its shape is {one.shape}, that of the plan {entry.shape}"
            yield one.finding("differs", reason, "Record the plan from this model.")
        elif entry.steps:
            difference = _first_difference(one, plan, entry, key)
            if difference is not None:
                yield one.finding("differs", difference, remedy)
    for entry in plan:
        left_out = entry.tie or entry.kind == "attribute" or (entry.kind[:3] == "non" and not is_module)
        if entry.name not in known and not left_out:
            yield Finding("differs", (entry.name,), "the plan has it, and it is not there", remedy)


@torch.no_grad()
def _first_difference(one: Looked, plan: InitPlan, entry: Entry, key: Key | None) -> str | None:
    """Where the tensor is not, bit for bit, what the plan says; None if it is."""
    assert one.dtype is not None
    if one.tensor is not None and local_tensor(one.tensor) is not one.tensor:
        expected = torch.empty_like(one.tensor)
        write(plan, [(entry, expected)], key)
        pieces: Iterable[Tensor] = [local_tensor(expected).reshape(-1)]
        where = "of the part held here "
    else:
        device = "cpu" if one.tensor is None else one.tensor.device
        pieces, where = parts(plan, entry, one.dtype, key, device), ""
    got, begin, count, said = flat_elements(one), 0, 0, ""
    for piece in pieces:
        here = got(begin, begin + piece.numel())
        different = bits(piece) != bits(here)
        if different.dim() > 1:
            different = different.any(-1)
        wrong = int(different.sum())
        if wrong and not count:
            place = int(different.to(torch.uint8).argmax())
            index = index_at(begin + place, one.shape) if not where else (begin + place,)
            said = (
                f"first {where}at {list(index)}: {piece[place].item()} expected, {here[place].item()} there"
            )
        count += wrong
        begin += piece.numel()
    return f"{count} of {begin} elements differ, {said}" if count else None
