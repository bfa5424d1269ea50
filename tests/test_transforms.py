"""Every function under what torch puts around it: compilation, fake tensors, functorch, inference mode."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fills import KEY, RANDOM, every_random, same
from paraminit_ext import Key, init, shard

CONSTANT: dict[str, tuple[Any, ...]] = {
    "constant_": (0.3,),
    "ones_": (),
    "zeros_": (),
    "eye_": (),
    "dirac_": (2,),
    "delta_orthogonal_": (),
}
every_function = pytest.mark.parametrize(
    ("name", "arguments"), [*RANDOM.items(), *CONSTANT.items()], ids=[*RANDOM, *CONSTANT]
)


def shape_for(name: str) -> tuple[int, ...]:
    return (6, 4, 3) if name in ("dirac_", "delta_orthogonal_") else (6, 4)


def filler(name: str, arguments: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """The function with its arguments, at a key where it takes one."""
    function: Callable[..., Tensor] = getattr(init, name)
    keywords = {"generator": KEY} if name in RANDOM or name == "delta_orthogonal_" else {}
    return lambda tensor: function(tensor, *arguments, **keywords)


@every_function
def test_a_compiled_function_is_one_graph_and_gives_the_eager_values(
    name: str, arguments: tuple[Any, ...]
) -> None:
    torch._dynamo.reset()
    fill = filler(name, arguments)

    # A view of what is filled is read after it: functionalisation may not lose that they share memory.
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(w: Tensor) -> tuple[Tensor, Tensor]:
        base = w * 0.0
        view = base[1:]
        fill(base)
        return base, view + 1.0

    got, view = step(torch.ones(shape_for(name)))
    expected = fill(torch.empty(shape_for(name)))
    assert same(got, expected)
    assert same(view, expected[1:] + 1.0)


def test_a_compiled_fill_of_a_view_changes_the_base_alone_there() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(w: Tensor) -> Tensor:
        init.normal_(w.t()[1:3], generator=KEY)
        init.uniform_(shard(w[4:], (100, 5), (50, 0)), generator=KEY)
        return w

    expected = torch.zeros(6, 5)
    init.normal_(expected.t()[1:3], generator=KEY)
    init.uniform_(shard(expected[4:], (100, 5), (50, 0)), generator=KEY)
    given = torch.zeros(6, 5)
    assert same(step(given), expected)
    assert same(given, expected)


def test_an_exported_module_fills_as_it_did() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + init.normal_(torch.empty_like(x), generator=KEY)

    x = torch.ones(3, 5)
    exported = torch.export.export(Noisy(), (x,)).module()
    assert same(exported(x), Noisy()(x))


@every_function
def test_a_fake_tensor_is_checked_and_stays_fake(name: str, arguments: tuple[Any, ...]) -> None:
    fill = filler(name, arguments)
    with FakeTensorMode():
        tensor = torch.empty(shape_for(name), dtype=torch.bfloat16)
        assert fill(tensor) is tensor
        assert isinstance(tensor, FakeTensor)
        parameter = nn.Parameter(torch.empty(shape_for(name)))
        assert fill(parameter) is parameter
        if name in RANDOM:
            with pytest.raises(NotImplementedError, match=f"^paraminit_ext.{name}: expected [^\n]*int32"):
                fill(torch.empty(shape_for(name), dtype=torch.int32))


@every_function
@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_changes_no_value(name: str, arguments: tuple[Any, ...], inside: bool) -> None:
    fill = filler(name, arguments)
    expected = fill(torch.empty(shape_for(name)))
    normal = torch.empty(shape_for(name))
    with torch.inference_mode():
        tensor = torch.empty(shape_for(name)) if inside else normal
        assert tensor.is_inference() == inside
        assert fill(tensor) is tensor
        assert same(tensor, expected)


@every_random
def test_a_batched_tensor_is_refused_in_one_line_and_draws_nothing(
    name: str, arguments: tuple[Any, ...]
) -> None:
    function: Callable[..., Tensor] = getattr(init, name)
    function(torch.empty(6, 4), *arguments)  # what was accepted is remembered, and may not let this one pass
    batch, state = torch.zeros(3, 6, 4), torch.get_rng_state()
    message = (
        f"paraminit_ext.{name}: expected a tensor outside torch.vmap, got a batched one. "
        "Fill the whole batch before vmap, or its tensors one by one."
    )
    for generator in (None, KEY):
        for randomness in ("error", "different", "same"):
            fill = functools.partial(function, sparsity=0.5) if name == "sparse_" else function
            with pytest.raises(RuntimeError) as caught:
                torch.vmap(functools.partial(fill, generator=generator), randomness=randomness)(batch)
            assert str(caught.value) == message
    assert torch.equal(torch.get_rng_state(), state)
    assert not batch.any()


def test_the_operators_refuse_a_batch_by_themselves() -> None:
    batch, keys = torch.zeros(3, 4), torch.stack([key.to_tensor() for key in KEY.split(3)])
    operator = torch.ops.paraminit_ext.normal_.key
    with pytest.raises(
        RuntimeError, match="^paraminit_ext.normal_: expected a tensor outside torch.vmap, got "
    ):
        torch.vmap(lambda w, key: operator(w, 0.0, 1.0, key, (), ()))(batch, keys)
    assert not batch.any()


def test_what_is_not_batched_is_filled_under_vmap() -> None:
    expected = init.normal_(torch.empty(4), generator=KEY)
    got = torch.vmap(lambda x: x + init.normal_(torch.empty(4), generator=KEY))(torch.zeros(3, 4))
    assert all(same(row, expected) for row in got)
    assert torch.equal(torch.vmap(init.eye_)(torch.empty(3, 2, 4)), torch.eye(2, 4).expand(3, 2, 4))


def test_a_fill_is_a_constant_to_derivatives() -> None:
    noise = init.normal_(torch.empty(4), generator=KEY)

    def weigh(x: Tensor) -> Tensor:
        return (init.normal_(torch.empty_like(x), generator=KEY) * x).sum()

    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(torch.func.grad(weigh)(x), noise)


def test_functional_call_fills_the_parameters_that_it_is_given() -> None:
    class Reset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 4))

        def forward(self) -> Tensor:
            return init.xavier_uniform_(self.weight, generator=KEY) * 2.0

    module, given = Reset(), torch.zeros(6, 4)
    expected = init.xavier_uniform_(torch.empty(6, 4), generator=KEY)
    assert same(torch.func.functional_call(module, {"weight": given}, ()), expected * 2.0)
    assert same(given, expected)
    assert not module.weight.any()


def test_torchs_functionalize_refuses_operators_of_others_and_writes_nothing() -> None:
    # torch.compile and torch.export functionalise in Python, and any operator; this knows torch's alone.
    given = torch.zeros(4)
    with pytest.raises(RuntimeError, match="paraminit_ext::normal_"):
        torch.func.functionalize(lambda x: init.normal_(x, generator=KEY))(given)
    assert not given.any()


def test_a_copy_of_a_filled_module_is_filled_alike() -> None:
    model = nn.TransformerEncoderLayer(8, 2)
    twin = copy.deepcopy(model)
    for one in (model, twin):
        for name, parameter in one.named_parameters():
            if parameter.dim() > 1:
                init.xavier_uniform_(parameter, generator=Key(1).fold_in(name))
    assert all(same(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
