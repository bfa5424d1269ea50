"""What the transforms of ``torch.func`` have to be told of the fills.

Under ``torch.vmap`` the members of a batch differ by their keys: a draw gives one key for all, or with
``randomness="different"`` a key for each, and a fill of a batched tensor fills each member at its own.
Under ``torch.func.grad`` and its kin a tensor that the function has captured may not be written. What is
refused is refused before anything is drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard

from paraminit_ext.ops import FILLS


def refuse_transformed(name: str, tensor: Tensor, random: bool) -> None:
    """Raise where a transform at work refuses to have ``tensor`` filled, as it refuses torch's own fill.

    Args:
        name: the function that was called, for the messages
        tensor: what is to be filled
        random: whether the fill draws, which one at a :class:`~paraminit_ext.Key` does not

    Raises:
        RuntimeError: a random fill under ``randomness="error"``, or of an unbatched tensor under
            ``randomness="different"``; a tensor that the differentiated function has captured.
    """
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return
    from torch._functorch.pyfunctorch import coerce_cinterpreter

    # From the innermost transform outwards: each has wrapped what it lets the function change.
    for found in reversed(functorch.get_interpreter_stack() or []):
        interpreter: Any = coerce_cinterpreter(found)
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
# The rules of vmap, which the dispatcher calls with the transform still at work
# ----------------------------------------------------------------------------------------


def _below() -> _ExcludeDispatchKeyGuard:
    """Inside it, operators belong to the transforms further out."""
    keys = DispatchKeySet(DispatchKey.FuncTorchBatched) | DispatchKeySet(DispatchKey.FuncTorchVmapMode)
    return _ExcludeDispatchKeyGuard(keys)


def _interpreter() -> Any:
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    return retrieve_current_functorch_interpreter()


def _members(value: Any, level: int, size: int) -> tuple[Any, ...] | None:
    """What each member has of an argument, or None where all have the same."""
    if not isinstance(value, Tensor):
        return None
    plain, dim = torch._C._functorch._unwrap_batched(value, level)
    if dim is None:
        return None
    with _below():
        return tuple(plain.select(dim, member) for member in range(size))


def _fill_batched(op: Any) -> Any:
    """The fill of every member: at its key, or, where they have one key, once and copied."""

    def kernel(tensor: Tensor, *arguments: Any) -> None:
        interpreter = _interpreter()
        level, size = interpreter.level(), interpreter.batch_size()
        tensors = _members(tensor, level, size)
        of_each = [_members(argument, level, size) for argument in arguments]
        if tensors is None:
            raise RuntimeError(
                f"paraminit_ext.{op._schema.name.partition('::')[2]}: expected a batched tensor for a batch "
                "of keys under torch.vmap, got one that all members share. Fill a batched one, or use one "
                "key."
            )
        with _below():
            if all(of is None for of in of_each):
                op(tensors[0], *arguments)
                for other in tensors[1:]:
                    other.copy_(tensors[0])
                return
            for member, held in enumerate(tensors):
                own = (of[member] if of else plain for of, plain in zip(of_each, arguments, strict=True))
                op(held, *own)

    return kernel


def _draw_batched(*, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """One draw; with ``randomness="different"`` member b has that key's ``fold_in(b)``."""
    interpreter = _interpreter()
    randomness = interpreter.randomness()
    if randomness == "error":
        _refuse_randomness("draw_key", randomness, False)
    with _below():
        key: Tensor = torch.ops.paraminit_ext.draw_key.default(device=device, generator=generator)
        if randomness == "same":
            return key
        fold_in = torch.ops.paraminit_ext.fold_in.default
        keys = torch.stack([fold_in(key, member) for member in range(interpreter.batch_size())])
    return torch._C._functorch._add_batch_dim(keys, 0, interpreter.level())


def _fold_in_batched(key: Tensor, data: int) -> Tensor:
    interpreter = _interpreter()
    keys = _members(key, interpreter.level(), interpreter.batch_size())
    assert keys is not None  # nothing else is batched here
    with _below():
        folded = torch.stack([torch.ops.paraminit_ext.fold_in.default(one, data) for one in keys])
    return torch._C._functorch._add_batch_dim(folded, 0, interpreter.level())


_rules = torch.library.Library("paraminit_ext", "FRAGMENT")
for _name in FILLS:
    _packet = getattr(torch.ops.paraminit_ext, _name)
    _rules.impl(_name, _fill_batched(_packet.default), "FuncTorchBatched")
    _rules.impl(f"{_name}.key", _fill_batched(_packet.key), "FuncTorchBatched")
_rules.impl("draw_key", _draw_batched, "FuncTorchVmapMode")
_rules.impl("fold_in", _fold_in_batched, "FuncTorchBatched")
