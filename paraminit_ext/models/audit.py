"""``audit()``: find tensors that look uninitialised or differ from the requested initialisation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from paraminit_ext.key import Key
from paraminit_ext.models import checks, storage_log
from paraminit_ext.models.checkpoint_reader import read_checkpoint
from paraminit_ext.models.checks import flat_elements
from paraminit_ext.models.finding import Audit, AuditedTensor, Finding
from paraminit_ext.models.layout import bits, unravel_index
from paraminit_ext.models.names import NamedTensor, check_key, local_tensor, named_tensors
from paraminit_ext.models.plan import Entry, InitPlan, plan_and_path
from paraminit_ext.models.summary import read_all, read_stored
from paraminit_ext.models.write import parts, write


def audit(
    module_or_path: nn.Module | str | os.PathLike[str], plan: InitPlan | None = None, key: Key | None = None
) -> Audit:
    r"""Find tensors of a module or a checkpoint that look uninitialised or differ from the requested values.

    The requested distribution of a tensor is known if :func:`.deferred_init` made the module, if
    :class:`patch` or :class:`keyed` saw the fill, or if you pass a plan. With a plan, every tensor is also
    compared with the values of the plan, bit for bit.

    The values of some tensors cannot be read, for example those of fake, sparse and nested tensors. Such a
    tensor is not compared with the plan, and the result names it as not read.

    A checkpoint does not say which of its tensors are parameters. Unless a plan says it, they are checked as
    parameters, except that a mask of zeros and infinities is no finding.

    If a tensor is sharded or replicated over a mesh, all ranks of the mesh must call this function.

    The findings are sorted by kind, the worst kind first:

    ============= ======================================================================================
    kind          finding
    ============= ======================================================================================
    meta          The tensor is on the meta device.
    unwritten     The tensor was allocated and never written: it was made by ``torch.empty`` or
                  ``to_empty`` under ``patch`` or ``keyed``, it is a parameter that existed when ``keyed``
                  was entered, or the plan has no steps for it. Also a non-persistent floating-point
                  buffer that is all zeros.
    partitioned   The parameter has no elements, or its storage was freed.
    nan, inf      A parameter or buffer holds NaN, a parameter holds infinity, or a buffer holds infinity
                  and finite numbers other than zero.
    junk          A parameter holds numbers beyond 1e6 (float16: 32752) or subnormal numbers, or a buffer
                  holds an integer beyond 2^40.
    differs       The tensor differs from the plan, or only one of the two has it. The finding names the
                  first different element.
    constant      All elements are equal, but random numbers were requested.
    missed        A fill wrote a copy, as in ``init.normal_(w.float())``, or wrote the computed value of a
                  parametrisation.
    shard         The fan was computed from the local part of a sharded tensor.
    law           The standard deviation is more than 20 % off the requested one, the mean is off by more
                  than 20 % of it, or a value is out of bounds.
    replicas      Ranks that hold the same elements have different values for them.
    tied twice    A tied tensor was filled under several of its names, by different laws.
    equal         Random matrices are equal but not tied.
    ============= ======================================================================================

    Args:
        module_or_path: a module, a directory of safetensors files, the index file in such a directory, or
            one safetensors file
        plan: the expected initialisation of every tensor. If transformers renames tensors when it saves the
            model, as for a ViT, use ``paraminit-ext diff config.json checkpoint/`` instead.
        key: the key of the model, which replaces the plan's own key

    Raises:
        TypeError: an argument has the wrong type.
        OSError: the path cannot be read.
        ValueError: the path is not a checkpoint, or the checkpoint is damaged.

    Returns:
        An :class:`.Audit`, which iterates over the findings. Each finding has a kind, the names of the
        tensors, a reason and a remedy.

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
    check_key("audit", key)
    if plan is not None and not isinstance(plan, InitPlan):
        raise TypeError(
            f"paraminit_ext.audit: expected a paraminit_ext.InitPlan or None for plan, got "
            f"{type(plan).__name__}. Pass InitPlan.load(path), or InitPlan.of(module)."
        )
    if isinstance(module_or_path, nn.Module):
        tensors = _tensors_of_module(module_or_path, plan)
        module_findings = [
            *checks.missed_in_parametrisations(module_or_path),
            *checks.replicas(module_or_path),
        ]
    elif isinstance(module_or_path, str | os.PathLike):
        tensors, module_findings = _tensors_of_files(module_or_path, plan), []
    else:
        raise TypeError(
            f"paraminit_ext.audit: expected a torch.nn.Module or a path, got {type(module_or_path).__name__}."
            " Pass a model, or a directory of safetensors files."
        )
    findings = [finding for tensor in tensors for finding in checks.check_tensor(tensor)]
    findings += [*module_findings, *checks.missed(tensors), *checks.equal(tensors)]
    if plan is not None:
        findings += _compare_with_plan(tensors, plan, key, isinstance(module_or_path, nn.Module))
    unread = (audited.name for audited in tensors if not audited.is_read)
    return Audit(findings, len(tensors), unread, plan is not None)


def _tensors_of_module(module: nn.Module, plan: InitPlan | None) -> list[AuditedTensor]:
    by_id: dict[int, AuditedTensor] = {}
    for named in named_tensors(module):
        if nn.parameter.is_lazy(named.tensor):
            continue
        audited = by_id.get(id(named.tensor))
        if audited is None:
            audited = _audited_tensor(named, plan)
            by_id[id(named.tensor)] = audited
        audited.names.append(named.name)
    unique = [audited.tensor for audited in by_id.values() if audited.tensor is not None]
    for audited, statistics in zip(by_id.values(), read_all(unique), strict=True):
        audited.statistics = statistics
    return list(by_id.values())


def _audited_tensor(named: NamedTensor, plan: InitPlan | None) -> AuditedTensor:
    tensor = named.tensor
    # A strided nested tensor has no shape. No check reads it.
    shape = () if tensor.is_nested else tuple(tensor.shape)
    audited = AuditedTensor(named.name, named.kind, shape, tensor.dtype, tensor)
    local = local_tensor(tensor)
    audited.memory = None if local.is_meta else storage_log.record_of(local)
    recording = plan_and_path(named.owner)
    if plan is not None:
        audited.plan, audited.entry = plan, plan.entries.get(named.name)
    elif recording is not None:
        audited.plan, path = recording
        audited.entry = audited.plan.entries.get(f"{path}.{named.attribute}" if path else named.attribute)
    audited.law = checks.requested_law(audited)
    return audited


def _tensors_of_files(path: str | os.PathLike[str], plan: InitPlan | None) -> list[AuditedTensor]:
    tensors = []
    for in_file in read_checkpoint(path).values():
        audited = AuditedTensor(
            in_file.name, "stored", in_file.shape, in_file.dtype, file=in_file, names=[in_file.name]
        )
        if plan is not None:
            audited.plan, audited.entry = plan, plan.entries.get(in_file.name)
            audited.law = checks.requested_law(audited)
        audited.statistics = read_stored(in_file)
        tensors.append(audited)
    return tensors


# ----------------------------------------------------------------------------------------
# Comparison with a plan
# ----------------------------------------------------------------------------------------


def _compare_with_plan(
    tensors: Sequence[AuditedTensor], plan: InitPlan, key: Key | None, is_module: bool
) -> Iterator[Finding]:
    remedy = "Apply the plan: plan.apply(module)." if is_module else "Write the checkpoint again."
    known = {name for audited in tensors for name in audited.names}
    for audited in tensors:
        if audited.entry is None:
            if audited.kind != "non-persistent buffer":
                yield audited.finding(
                    "differs", "the plan has no entry for it", "Record the plan from this model."
                )
            continue
        if not audited.is_read:
            continue
        entry = plan.resolved(audited.entry)
        if entry.shape != audited.shape:
            reason = f"its shape is {audited.shape}, but the plan expects {entry.shape}"
            yield audited.finding("differs", reason, "Record the plan from this model.")
        elif entry.steps:
            difference = _first_difference(audited, plan, entry, key)
            if difference is not None:
                yield audited.finding("differs", difference, remedy)
    for entry in plan:
        left_out = (
            entry.tie
            or entry.kind == "attribute"
            or (entry.kind == "non-persistent buffer" and not is_module)
        )
        if entry.name not in known and not left_out:
            yield Finding("differs", (entry.name,), "the plan has an entry for it, but it is missing", remedy)


@torch.no_grad()
def _first_difference(audited: AuditedTensor, plan: InitPlan, entry: Entry, key: Key | None) -> str | None:
    """Describe how the tensor differs from the plan, bit for bit. Return None if it does not differ."""
    assert audited.dtype is not None
    if audited.tensor is not None and local_tensor(audited.tensor) is not audited.tensor:
        expected = torch.empty_like(audited.tensor)
        write(plan, [(entry, expected)], key)
        pieces: Iterable[Tensor] = [local_tensor(expected).reshape(-1)]
        where = "in the local tensor "
    else:
        device = "cpu" if audited.tensor is None else audited.tensor.device
        pieces, where = parts(plan, entry, audited.dtype, key, device), ""
    elements, begin, count, first_text = flat_elements(audited), 0, 0, ""
    for piece in pieces:
        actual = elements(begin, begin + piece.numel())
        different = bits(piece) != bits(actual)
        if different.dim() > 1:
            different = different.any(-1)
        wrong = int(different.sum())
        if wrong and not count:
            place = int(different.to(torch.uint8).argmax())
            index = unravel_index(begin + place, audited.shape) if not where else (begin + place,)
            first_text = (
                f"first {where}at {list(index)}: expected {piece[place].item()}, got {actual[place].item()}"
            )
        count += wrong
        begin += piece.numel()
    return f"{count} of {begin} elements differ, {first_text}" if count else None
