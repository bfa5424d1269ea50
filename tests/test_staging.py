"""The CPU fills tensors on devices without kernels piece by piece, with the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import subprocesses
from fills import DTYPES, KEY, LAYOUTS, same
from paraminit_ext import _C, Key

OPS: dict[str, list[float]] = {
    "uniform_": [-0.3, 0.55],
    "normal_": [0.5, 0.02],
    "trunc_normal_": [0.0, 1.0, -2.0, 2.0],
    "sparse_": [0.02, 31],
    "words_": [],
}
WHOLE, START = (150, 90), (7, 11)  # a tensor of 130 x 67 is a shard of this whole
every_op = pytest.mark.parametrize(("name", "parameters"), OPS.items(), ids=OPS.keys())


def direct(
    name: str, parameters: list[float], tensor: Tensor, whole: tuple[int, ...], start: tuple[int, ...]
) -> Tensor:
    signed = [word - 2**64 if word >= 2**63 else word for word in (KEY.seed, KEY.offset)]
    numbers = [parameters[0], int(parameters[1])] if name == "sparse_" else parameters
    getattr(torch.ops.paraminit_ext, name).default(tensor, *numbers, *signed, whole, start)
    return tensor


@every_op
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("size", [40_000, 3000, 64])  # bytes of a piece
@pytest.mark.parametrize("part", [False, True], ids=["whole", "shard"])
def test_pieces_make_the_same_tensor(
    name: str, parameters: list[float], layout: str, size: int, part: bool
) -> None:
    if name == "sparse_":
        size = max(size, 3000)  # each piece counts a column's words again
    whole, start = (WHOLE, START) if part else ((), ())
    for dtype in [torch.int64] if name == "words_" else DTYPES:
        make: Callable[[torch.dtype], Tensor] = LAYOUTS.get(layout, lambda d: torch.empty(130, 67, dtype=d))
        expected = direct(name, parameters, torch.empty(130, 67, dtype=dtype), whole, start)
        tensor = make(dtype).fill_(7)
        _C.fill_staged(name, parameters, tensor, (KEY.seed, KEY.offset), whole, start, size)
        equal = torch.equal(tensor, expected) if name == "words_" else same(tensor, expected)
        assert equal, dtype


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=lambda d: str(d)[6:])
def test_pieces_of_any_shape_and_complex_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = direct("normal_", [0.5, 2.0], torch.empty(shape, dtype=dtype), (), ())
    for size in (1, 8, 24, 100, 4096):
        tensor = torch.zeros(shape, dtype=dtype)
        _C.fill_staged("normal_", [0.5, 2.0], tensor, (KEY.seed, KEY.offset), (), (), size)
        assert torch.equal(tensor, expected)


def test_a_piece_at_another_place_would_be_seen() -> None:
    expected = direct("normal_", [0.5, 2.0], torch.empty(40, 8), (), ())
    tensor = torch.empty(40, 8)
    _C.fill_staged("normal_", [0.5, 2.0], tensor, (KEY.seed, KEY.offset), (41, 8), (1, 0), 64)
    assert not torch.equal(tensor, expected)


# A device that stores its elements in CPU tensors and implements only a few operators, such as copies.
DEVICE = """
import sys, warnings
import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
import paraminit_ext
from paraminit_ext import Key, fill_many, init, shard

_setup_privateuseone_for_python_backend("abacus")
library = torch.library.Library("aten", "IMPL")
held = {}

def made(size, storage):
    tensor = torch._C._acc.create_empty_tensor(tuple(size), storage.dtype)
    held[tensor.untyped_storage()._cdata] = (tensor, storage)  # copies of the object share this address
    return tensor

def storage(tensor):
    return tensor if tensor.device.type == "cpu" else held[tensor.untyped_storage()._cdata][1]

def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return made(size, torch.empty(size, dtype=dtype or torch.float32, device="cpu"))

def strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return made(size, torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

def copied(source, to, non_blocking=False):
    storage(to).copy_(storage(source))
    return to

def sliced(tensor, dim=0, start=None, end=None, step=1):
    view = torch.ops.aten.slice(storage(tensor), dim, start, end, step)
    return made(view.shape, view)

def zeroed(tensor):
    storage(tensor).zero_()
    return tensor

for name, function in {"empty.memory_format": empty, "empty_strided": strided, "_copy_from": copied,
                       "slice.Tensor": sliced, "zero_": zeroed}.items():
    library.impl(name, function, "PrivateUse1")

warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    key = Key(5)
    for name, arguments in (("normal_", ()), ("uniform_", ()), ("trunc_normal_", ()), ("sparse_", (0.5,)),
                            ("xavier_normal_", ())):
        expected = getattr(init, name)(torch.empty(30, 7), *arguments, generator=key)
        there = torch.empty(30, 7, device="abacus")
        assert getattr(init, name)(there, *arguments, generator=key) is there
        assert torch.equal(storage(there), expected), name

    big = torch.empty((64 << 20) // 4 + 5, device="abacus")  # more than one piece
    init.normal_(big, generator=key)
    assert torch.equal(storage(big), init.normal_(torch.empty(big.shape), generator=key))

    torch.manual_seed(3)
    expected = [init.normal_(torch.empty(4, 5)), init.uniform_(torch.empty(4, 5))]
    torch.manual_seed(3)
    there = [torch.empty(4, 5, device="abacus") for _ in range(2)]
    fill_many([(there[0], "normal_", {}, None), (there[1], "uniform_", {}, None)])
    assert all(torch.equal(storage(t), e) for t, e in zip(there, expected))

    part = torch.empty(3, 5, device="abacus")
    init.normal_(shard(part, (9, 5), (4, 0)), generator=key)
    assert torch.equal(storage(part), init.normal_(torch.empty(9, 5), generator=key)[4:7])

ours = [w for w in caught if "paraminit_ext" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in caught]
assert "no kernels for abacus" in str(ours[0].message) and ours[0].filename == "<string>"
try:
    init.normal_(torch.empty(3, device="abacus"), std=-1.0)
except RuntimeError as error:
    assert "std >= 0" in str(error)
else:
    raise AssertionError("a negative std was accepted")
print("filled")
"""


@pytest.mark.skipif(
    not hasattr(torch._C, "_acc") or not hasattr(torch._C._acc, "create_empty_tensor"),
    reason="needs a torch that supports devices written in Python",
)
def test_a_device_without_kernels_is_filled_with_one_warning() -> None:
    assert subprocesses.lines(DEVICE) == ["filled"]


def test_a_cuda_generator_without_kernels_gives_the_draw_of_one_with_them() -> None:
    from paraminit_ext.draws import draw, draw_several

    class State:
        """The methods of a CUDA generator that a draw uses. Only a torch with CUDA makes the real one."""

        offset = 40
        device = torch.device("cuda")

        def initial_seed(self) -> int:
            return 77

        def get_offset(self) -> int:
            return self.offset

        def set_offset(self, offset: int) -> None:
            self.offset = offset

    state: Any = State()
    seed, offset = draw(state)
    assert Key(seed % 2**64, offset % 2**64) == Key(77, 10).fold_in(0)
    assert state.offset == 44
    # Several draws at once equal the same draws one by one.
    several = [[n % 2**64 for n in row] for row in draw_several(state, 3).tolist()]
    assert [Key(*row) for row in several] == [Key(77, place).fold_in(0) for place in (11, 12, 13)]
    assert state.offset == 56
