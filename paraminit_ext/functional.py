"""Support for the transforms of ``torch.func``.

Under ``torch.vmap`` a draw gives one key for the whole batch, or with ``randomness="different"`` one key for
each member. A fill of a batched tensor fills each member with its key. Under ``torch.func.grad`` and similar
transforms, a tensor that the function has captured must not be written. Errors are raised before any draw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard

from paraminit_ext.ops import FILLS


def refuse_transformed(name: str, tensor: Tensor, random: bool) -> None:
    """Raise if an active transform forbids filling ``tensor``, as it forbids torch's own fills.

    Args:
        name: the function that was called, for the messages
        tensor: the tensor to fill
        random: whether the fill draws its key; a fill with a :class:`~paraminit_ext.Key` does not

    Raises:
        RuntimeError: if the fill is random under ``randomness="error"``, or random and of an unbatched tensor
            under ``randomness="different"``, or if the differentiated function has captured the tensor.
    """
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return
    from torch._functorch.pyfunctorch import coerce_cinterpreter

    # From the innermost transform outwards: each transform wraps the tensors that the function may change.
    for raw_interpreter in reversed(functorch.get_interpreter_stack() or []):
        interpreter: Any = coerce_cinterpreter(raw_interpreter)
        wrapped = functorch.maybe_get_level(tensor) == interpreter.level()
        kind = interpreter.key()
        if kind == functorch.TransformType.Vmap and random:
            _refuse_randomness(name, interpreter.randomness(), wrapped)
        elif kind in (functorch.TransformType.Grad, functorch.TransformType.Jvp) and not wrapped:
            raise RuntimeError(
                f"paraminit_ext.{name}: expected a tensor made inside the function that is differentiated "
                "(torch.func.grad, vjp, jvp), got one that it has captured. Fill it outside, or pass it as "
                "an argument."
            )
        if wrapped:
            tensor = functorch.get_unwrapped(tensor)


def _refuse_randomness(name: str, randomness: str, batched: bool) -> None:
    if randomness == "error":
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a Key under torch.vmap with randomness='error', got a random "
            "fill. Use randomness='same' or 'different'."
        )
    if randomness == "different" and not batched:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a batched tensor under torch.vmap with randomness='different', "
            "got one that all members share. Fill a tensor that depends on the mapped argument, or use "
            "randomness='same'."
        )


# ----------------------------------------------------------------------------------------
# The rules of vmap, which the dispatcher calls while the transform is still active
# ----------------------------------------------------------------------------------------


def _outside_this_vmap() -> _ExcludeDispatchKeyGuard:
    """Return a context manager in which operators go to the outer transforms."""
    keys = DispatchKeySet(DispatchKey.FuncTorchBatched) | DispatchKeySet(DispatchKey.FuncTorchVmapMode)
    return _ExcludeDispatchKeyGuard(keys)


def _interpreter() -> Any:
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    return retrieve_current_functorch_interpreter()


def _members(value: Any, level: int, size: int) -> tuple[Any, ...] | None:
    """Return the slice of an argument for each member of the batch, or None if all members share it."""
    if not isinstance(value, Tensor):
        return None
    plain, dim = torch._C._functorch._unwrap_batched(value, level)
    if dim is None:
        return None
    with _outside_this_vmap():
        return tuple(plain.select(dim, member) for member in range(size))


def _fill_batched(op: Any) -> Any:
    """Return a kernel that fills each member with its own key.

    If all members share one key, the kernel fills one member and copies it to the others.
    """

    def kernel(tensor: Tensor, *arguments: Any) -> None:
        interpreter = _interpreter()
        level, size = interpreter.level(), interpreter.batch_size()
        tensors = _members(tensor, level, size)
        batched = [_members(argument, level, size) for argument in arguments]
        if tensors is None:
            raise RuntimeError(
                f"paraminit_ext.{op._schema.name.partition('::')[2]}: expected a batched tensor for a batch "
                "of keys under torch.vmap, got one that all members share. Fill a batched one, or use one "
                "key."
            )
        with _outside_this_vmap():
            if all(values is None for values in batched):
                op(tensors[0], *arguments)
                for other in tensors[1:]:
                    other.copy_(tensors[0])
                return
            for member, slice_ in enumerate(tensors):
                own = (
                    values[member] if values else shared
                    for values, shared in zip(batched, arguments, strict=True)
                )
                op(slice_, *own)

    return kernel


def _draw_batched(*, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Take one draw. With ``randomness="different"``, return ``fold_in(b)`` of its key for member b."""
    interpreter = _interpreter()
    randomness = interpreter.randomness()
    if randomness == "error":
        _refuse_randomness("draw_key", randomness, False)
    with _outside_this_vmap():
        key: Tensor = torch.ops.paraminit_ext.draw_key.default(device=device, generator=generator)
        if randomness == "same":
            return key
        fold_in = torch.ops.paraminit_ext.fold_in.default
        keys = torch.stack([fold_in(key, member) for member in range(interpreter.batch_size())])
    return torch._C._functorch._add_batch_dim(keys, 0, interpreter.level())


def _fold_in_batched(key: Tensor, data: int) -> Tensor:
    interpreter = _interpreter()
    keys = _members(key, interpreter.level(), interpreter.batch_size())
    assert keys is not None  # no other argument can be batched
    with _outside_this_vmap():
        folded = torch.stack(
            [torch.ops.paraminit_ext.fold_in.default(member_key, data) for member_key in keys]
        )
    return torch._C._functorch._add_batch_dim(folded, 0, interpreter.level())


_rules = torch.library.Library("paraminit_ext", "FRAGMENT")
for _name in FILLS:
    _packet = getattr(torch.ops.paraminit_ext, _name)
    _rules.impl(_name, _fill_batched(_packet.default), "FuncTorchBatched")
    _rules.impl(f"{_name}.key", _fill_batched(_packet.key), "FuncTorchBatched")
_rules.impl("draw_key", _draw_batched, "FuncTorchVmapMode")
_rules.impl("fold_in", _fold_in_batched, "FuncTorchBatched")
