"""Fills that bypass the dispatcher: only if nothing else handles the call, and with the same effects."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import subprocesses
from paraminit_ext import _C, Key, init, shard

KEY = Key(2024, 7)


class PassThrough(TorchDispatchMode):
    """A mode that passes every call on unchanged."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def in_vmap() -> Iterator[None]:
    level = torch._C._functorch._vmap_increment_nesting(3, "different")
    try:
        assert level >= 1
        yield
    finally:
        torch._C._functorch._vmap_decrement_nesting()


@contextmanager
def profiled() -> Iterator[None]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True):
        yield


def freed() -> Tensor:
    tensor = torch.zeros(4)
    tensor.untyped_storage().resize_(8)
    return tensor


def made_in_inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(4)


def functional(tensor: Tensor) -> Tensor:
    torch._enable_functionalization(reapply_views=True)
    try:
        wrapped: Tensor = torch._to_functional_tensor(tensor)
        return wrapped
    finally:
        torch._disable_functionalization()


def plain() -> Tensor:
    return torch.zeros(4)


def fast_fill(tensor: Tensor, source: object = None, parameters: tuple[float, ...] = (0.0, 1.0)) -> bool:
    """Try the fast path and return whether it filled the tensor."""
    return _C.fill("normal_", tensor, parameters, source, (), ())


# Calls that the fast path must decline: the tensor, the context of the call, and its arguments.
DECLINED: dict[
    str, tuple[Callable[[], Tensor], Callable[[], AbstractContextManager[Any]], dict[str, Any]]
] = {
    "a dispatch mode": (plain, PassThrough, {}),
    "vmap": (plain, in_vmap, {}),
    "a profiler": (plain, profiled, {}),
    "forward-mode differentiation": (plain, forward_ad.dual_level, {}),
    "a conjugate view": (lambda: torch.zeros(4, dtype=torch.complex64).conj(), nullcontext, {}),
    "a negative view": (lambda: torch.zeros(4, dtype=torch.complex64).conj().imag, nullcontext, {}),
    "an inference tensor": (made_in_inference, nullcontext, {}),
    "a storage that is too short": (freed, nullcontext, {}),
    "elements that share memory": (lambda: torch.zeros(1).expand(4), nullcontext, {}),
    "an integer dtype": (lambda: torch.zeros(4, dtype=torch.int32), nullcontext, {}),
    "no elements": (lambda: torch.zeros(0), nullcontext, {}),
    "an invalid parameter": (plain, nullcontext, {"parameters": (0.0, -1.0)}),
    "an invalid source": (plain, nullcontext, {"source": "a text"}),
    "a tuple that is no key": (plain, nullcontext, {"source": (1, 2)}),
    "zeros without memory": (lambda: torch._efficientzerotensor(3, 3)[1:], nullcontext, {}),
    "a wrapper of functionalization": (lambda: functional(torch.zeros(5))[2:], nullcontext, {}),
    "a sparse tensor": (lambda: torch.eye(3).to_sparse(), nullcontext, {}),
    "a meta tensor": (lambda: torch.zeros(4, device="meta"), nullcontext, {}),
    "a nested tensor": (
        lambda: torch.nested.as_nested_tensor([plain(), plain()], layout=torch.strided),
        nullcontext,
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", DECLINED)
def test_a_declined_fill_draws_and_writes_nothing(name: str) -> None:
    make, context, arguments = DECLINED[name]
    tensor = make()
    before = torch.get_rng_state()
    with context():
        assert not fast_fill(tensor, **arguments)
    assert torch.equal(torch.get_rng_state(), before)
    if not (tensor.is_sparse or tensor.is_meta or tensor.is_nested or name == "a storage that is too short"):
        assert not tensor.any()
    if not tensor.is_inference():
        assert tensor._version == make()._version


def test_a_plain_tensor_is_filled_as_the_operator_does() -> None:
    tensor, expected = torch.zeros(5, 7), torch.zeros(5, 7)
    assert fast_fill(tensor, KEY)
    torch.ops.paraminit_ext.normal_(expected, 0.0, 1.0, KEY.seed, KEY.offset, (), ())
    assert torch.equal(tensor, expected)


def test_a_draw_is_the_next_two_words_of_the_generator() -> None:
    ours, torchs = (torch.Generator().manual_seed(7) for _ in range(2))
    tensor = torch.zeros(9)
    assert fast_fill(tensor, ours)
    seed, offset = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=torchs).tolist()
    expected = init.normal_(torch.zeros(9), generator=Key(seed % 2**64, offset % 2**64))
    assert torch.equal(tensor, expected)
    assert torch.equal(ours.get_state(), torchs.get_state())


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "sparse_", "orthogonal_"])
@pytest.mark.parametrize("source", [None, KEY], ids=["drawn", "a key"])
def test_a_fill_moves_the_version_by_one(name: str, source: Key | None) -> None:
    arguments = (0.3,) if name == "sparse_" else ()
    for tensor in (torch.zeros(200, 120), torch.nn.Parameter(torch.zeros(6, 4)), torch.zeros(8, 3)[::2]):
        before = tensor._version
        getattr(init, name)(tensor, *arguments, generator=source)
        assert tensor._version == before + 1


def test_a_profiler_sees_a_fill_and_a_fill_of_many() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        init.normal_(torch.zeros(4), generator=KEY)
        import paraminit_ext

        paraminit_ext.fill_many([(torch.zeros(4), "uniform_", {}, KEY)])
    names = {event.name for event in profile.events()}
    assert {"paraminit_ext::normal_", "paraminit_ext::fill_many"} <= names


def test_a_draw_in_inference_mode_leaves_later_ones_as_they_are() -> None:
    torch.manual_seed(3)
    expected = [init.normal_(torch.zeros(3)) for _ in range(2)]
    code = (
        "import torch; from paraminit_ext import init; torch.manual_seed(3)\n"
        "with torch.inference_mode(): print(init.normal_(torch.empty(3)).tolist())\n"
        "print(init.normal_(torch.empty(3)).tolist())"
    )
    assert subprocesses.lines(code) == [str(tensor.tolist()) for tensor in expected]


@pytest.mark.parametrize("generator", [(1, 2), (5,), (), (True, False)])
def test_a_tuple_is_no_generator(generator: Any) -> None:
    for fill in (init.normal_, init.xavier_uniform_, init.orthogonal_):
        with pytest.raises(TypeError, match=r"expected a torch.Generator, a paraminit_ext.Key or None"):
            fill(torch.zeros(3, 3), generator=generator)


def test_the_default_generator_and_none_are_the_same_source() -> None:
    import paraminit_ext

    sources = [None, torch.default_generator, None, torch.Generator().manual_seed(5), torch.default_generator]
    torch.manual_seed(11)
    single = [init.normal_(torch.zeros(6), generator=source) for source in sources[:3]]
    single += [init.normal_(torch.zeros(6), generator=torch.Generator().manual_seed(5))]
    single += [init.normal_(torch.zeros(6), generator=sources[4])]
    torch.manual_seed(11)
    many = paraminit_ext.fill_many([(torch.zeros(6), "normal_", {}, source) for source in sources])
    assert all(torch.equal(a, b) for a, b in zip(many, single, strict=True))


FORKED = """
import os, torch
from paraminit_ext import Key, init
torch.set_num_threads(2)
init.normal_(torch.empty(1 << 20), generator=Key(1))
child = os.fork()
if child == 0:
    init.orthogonal_(torch.empty(110, 110), generator=Key(1))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_matrix_is_made_in_the_child_of_a_fork() -> None:
    assert subprocesses.lines(FORKED) == ["7"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_dimensions_of_size_one_do_not_count(dtype: torch.dtype) -> None:
    few = init.normal_(torch.empty(3, 5, dtype=dtype), generator=KEY)
    many = init.normal_(torch.empty((1,) * 35 + (3,) + (1,) * 35 + (5,), dtype=dtype), generator=KEY)
    assert torch.equal(many.view(3, 5), few)
    strided = torch.empty((1,) * 40 + (5, 3) + (1,) * 40, dtype=dtype).transpose(40, 41)
    assert torch.equal(init.normal_(strided, generator=KEY).reshape(3, 5), few)
    rows = torch.empty((1,) * 70 + (2, 5), dtype=dtype)
    part = shard(rows, (1,) * 70 + (3, 5), (0,) * 70 + (1, 0))
    assert torch.equal(init.normal_(part, generator=KEY).view(2, 5), few[1:])


def test_statistics_do_not_copy_a_lazy_clone() -> None:
    tensor = torch._lazy_clone(torch.ones(8))
    torch.ops.paraminit_ext.statistics(tensor)
    is_shared: Any = vars(torch._C)["_is_cow_tensor"]
    assert is_shared(tensor)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_statistics_of_a_tensor_without_numbers_are_refused() -> None:
    data = torch.zeros(8, dtype=torch.uint8)
    quantized = torch._make_per_tensor_quantized_tensor(data, 1.0, 0)
    for tensor in (quantized, data.view(torch.bits8)):
        with pytest.raises(NotImplementedError, match="statistics: expected a tensor of numbers"):
            torch.ops.paraminit_ext.statistics(tensor)


def test_a_conjugate_view_that_overlaps_is_refused() -> None:
    tensor = torch.zeros(40, dtype=torch.complex64).as_strided((3, 3), (2, 2)).conj()
    with pytest.raises(RuntimeError, match="do not share memory"):
        torch.ops.paraminit_ext.normal_(tensor, 0.0, 1.0, 1, 0, (), ())
    assert not tensor.any()


def test_a_key_of_three_words_is_refused_on_meta() -> None:
    tensor, key = torch.empty(4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="expected a contiguous key of two uint64 or int64"):
        torch.ops.paraminit_ext.normal_.key(tensor, 0.0, 1.0, key, (), ())


def test_a_subclass_without_overrides_takes_the_fast_path() -> None:
    class Named(torch.nn.Parameter):
        pass

    assert fast_fill(Named(torch.zeros(3)), KEY)


def test_an_earlier_refusal_does_not_change_the_type_of_a_later_error() -> None:
    ops = torch.ops.paraminit_ext
    with torch.inference_mode(), pytest.raises((ValueError, RuntimeError), match="expected a shard"):
        ops.normal_(torch.zeros(4), 0.0, 1.0, 1, 2, (2,), (0,))
    with pytest.raises(NotImplementedError, match="expected a tensor of"):
        ops.normal_(torch.zeros(4, dtype=torch.int32, device="meta"), 0.0, 1.0, 1, 2, (), ())


def test_a_tensor_without_memory_costs_no_error_of_torch() -> None:
    # A refusal by torch's DLPack records a stack trace for a millisecond. These calls take a microsecond.
    # Recording a model makes them for each of its tensors, and a fill under torch.vmap makes them too.
    def fastest(tensor: Tensor) -> float:
        looks = (partial(look, tensor) for look in (_C.storage_too_small, _C.is_fillable))
        return max(min(timeit.repeat(look, number=1, repeat=30)) for look in looks)

    wrapped: list[float] = []

    def look(member: Tensor) -> Tensor:
        wrapped.append(fastest(member))
        return member

    torch.vmap(look)(torch.empty(8, 8))
    assert max(fastest(torch.empty(8, 8, device="meta")), *wrapped) < 1e-4
