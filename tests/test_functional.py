"""Fills under the transforms of torch.func: vmap, grad, vjp, jvp and functional_call, compared with stock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fills import KEY, every_random, same
from paraminit_ext import Key, fill_many, init

# The first jvp of a process compiles decompositions with torch.jit, which is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")

RANDOMNESS = ("error", "different", "same")


def function_of(
    module: Any, name: str, arguments: tuple[Any, ...], **keywords: Any
) -> Callable[[Tensor], Tensor]:
    function = getattr(module, name)
    return lambda tensor: function(tensor, *arguments, **keywords)


def outcome(function: Callable[[Tensor], Tensor], batch: Tensor, randomness: str) -> str:
    """Map a fill that is not zero. Return "refused", or whether its members are "alike" or "different"."""
    try:
        got = torch.vmap(function, randomness=randomness)(batch)
    except RuntimeError:
        return "refused"
    assert got.shape[0] == len(batch)
    assert got.any()
    return "alike" if all(same(member, got[0]) for member in got) else "different"


# ----------------------------------------------------------------------------------------
# vmap
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("randomness", RANDOMNESS)
@pytest.mark.parametrize("batched", [True, False])
@every_random
def test_vmap_gives_what_it_gives_stock_in_each_mode(
    name: str, arguments: tuple[Any, ...], batched: bool, randomness: str
) -> None:
    def mapped(module: Any) -> Callable[[Tensor], Tensor]:
        fill = function_of(module, name, arguments)
        return lambda x: fill(x.clone() if batched else torch.empty(6, 4)) + 0.0

    batch, state = torch.zeros(3, 6, 4), torch.get_rng_state()
    got = outcome(mapped(init), batch, randomness)
    expected = {"error": "refused", "same": "alike", "different": "different" if batched else "refused"}
    assert got == expected[randomness]
    assert torch.equal(torch.get_rng_state(), state) == (got == "refused")
    if name in ("uniform_", "normal_", "kaiming_uniform_", "xavier_normal_"):
        assert outcome(mapped(nn.init), batch, randomness) == got


@every_random
def test_members_have_the_keys_that_the_stream_says(name: str, arguments: tuple[Any, ...]) -> None:
    fill = function_of(init, name, arguments)
    batch = torch.zeros(3, 6, 4)

    def at(key: Key) -> Tensor:
        return function_of(init, name, arguments, generator=key)(torch.empty(6, 4))

    for source in (None, torch.Generator().manual_seed(9)):
        drawing = fill if source is None else function_of(init, name, arguments, generator=source)

        def drawn(source: Any = source) -> Key:
            return Key.from_tensor(
                torch.ops.paraminit_ext.draw_key.default(device=torch.device("cpu"), generator=source)
            )

        def seed(source: Any = source) -> None:
            (torch if source is None else source).manual_seed(9)

        def fill_each(x: Tensor, drawing: Any = drawing) -> Tensor:
            filled: Tensor = drawing(x.clone())
            return filled

        for randomness in ("same", "different"):
            seed()
            key = drawn()
            after = drawn()
            seed()
            got = torch.vmap(fill_each, randomness=randomness)(batch)
            assert drawn() == after, "one draw for the batch"
            keys = [key.fold_in(member) if randomness == "different" else key for member in range(3)]
            assert all(same(member, at(key)) for member, key in zip(got, keys, strict=True))


@pytest.mark.parametrize("randomness", RANDOMNESS)
@every_random
def test_a_key_draws_nothing_and_gives_each_member_its_values(
    name: str, arguments: tuple[Any, ...], randomness: str
) -> None:
    fill = function_of(init, name, arguments, generator=KEY)
    expected, state = fill(torch.empty(6, 4)), torch.get_rng_state()
    for dim in (0, 1, 2):
        batch = torch.zeros(6, 4).unsqueeze(dim).repeat_interleave(3, dim)
        got = torch.vmap(lambda x: fill(x.clone()), in_dims=dim, randomness=randomness)(batch)
        assert all(same(member, expected) for member in got)
        given = torch.vmap(fill, in_dims=dim, out_dims=dim, randomness=randomness)(batch)
        assert all(same(member, expected) for member in batch.unbind(dim)), "the batch itself is filled"
        assert same(given, batch)
    shared = torch.vmap(lambda x: x + fill(torch.empty(6, 4)), randomness=randomness)(torch.zeros(3, 6, 4))
    assert all(same(member, expected) for member in shared)
    assert torch.equal(torch.get_rng_state(), state)


def test_nested_maps_fold_in_the_outer_member_first() -> None:
    torch.manual_seed(1)
    key = Key.from_tensor(torch.ops.paraminit_ext.draw_key.default(device=torch.device("cpu")))

    def nested(outer: str, inner: str) -> Tensor:
        torch.manual_seed(1)
        inside = torch.vmap(lambda x: init.normal_(x.clone()), randomness=inner)
        return torch.vmap(inside, randomness=outer)(torch.zeros(2, 3, 5))

    def at(key: Key) -> Tensor:
        return init.normal_(torch.empty(5), generator=key)

    for a in range(2):
        for b in range(3):
            assert same(nested("different", "different")[a, b], at(key.fold_in(a).fold_in(b)))
            assert same(nested("different", "same")[a, b], at(key.fold_in(a)))
            assert same(nested("same", "different")[a, b], at(key.fold_in(b)))
            assert same(nested("same", "same")[a, b], at(key))


def test_a_list_of_fills_and_a_convolutions_kernel_are_mapped() -> None:
    def members(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.clone(), x.clone()
        fill_many([(a, "normal_"), (b, "ones_")])
        return a, b

    a, b = torch.vmap(members, randomness="different")(torch.zeros(3, 50))
    assert not same(a[0], a[1])
    assert (b == 1).all()
    kernels = torch.vmap(lambda x: init.delta_orthogonal_(x.clone()), randomness="different")(
        torch.zeros(2, 6, 4, 3)
    )
    assert not same(kernels[0], kernels[1])
    for kernel in kernels:
        # Each of the two factors is within 8 u sqrt(n) of an orthogonal matrix.
        product = kernel[:, :, 1].T @ kernel[:, :, 1]
        assert float((product - torch.eye(4)).abs().max()) <= 2 * 8 * 2**-24 * 6**0.5 + 2**-20


def test_an_ensemble_of_modules_is_initialised_as_each_would_be() -> None:
    models = [nn.Linear(4, 3) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    keys = torch.stack([key.to_tensor() for key in KEY.split(3)])
    ops = torch.ops.paraminit_ext

    def fill(weight: Tensor, key: Tensor) -> Tensor:
        ops.normal_.key(weight, 0.0, 1.0, key, (), ())
        return weight

    torch.vmap(fill)(stacked["weight"].detach(), keys)
    for weight, key in zip(stacked["weight"], KEY.split(3), strict=True):
        assert same(weight, init.normal_(torch.empty(3, 4), generator=key))


def test_a_batch_of_keys_for_one_tensor_is_refused_and_nothing_written() -> None:
    shared, keys = torch.zeros(4), torch.stack([key.to_tensor() for key in KEY.split(3)])
    operator = torch.ops.paraminit_ext.normal_.key
    with pytest.raises(
        RuntimeError, match="^paraminit_ext.normal_: expected a batched tensor for a batch of keys"
    ):
        torch.vmap(lambda key: operator(shared, 0.0, 1.0, key, (), ()))(keys)
    assert not shared.any()


def test_keys_are_folded_in_a_batch() -> None:
    keys = torch.stack([key.to_tensor() for key in KEY.split(3)])
    folded = torch.vmap(lambda key: torch.ops.paraminit_ext.fold_in(key, 7))(keys)
    assert [Key.from_tensor(key) for key in folded] == [key.fold_in(7) for key in KEY.split(3)]


@pytest.mark.parametrize("randomness", ["error", "different"])
def test_a_refusal_under_vmap_is_one_line_with_a_remedy(randomness: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.vmap(lambda _: init.kaiming_uniform_(torch.empty(4, 3)), randomness=randomness)(torch.arange(2))
    message = str(caught.value)
    assert message.startswith("paraminit_ext.kaiming_uniform_: expected ")
    assert "\n" not in message
    assert "randomness='same'" in message


def test_constants_are_mapped_as_torchs_own() -> None:
    assert torch.equal(torch.vmap(init.eye_)(torch.empty(3, 2, 4)), torch.eye(2, 4).expand(3, 2, 4))


# ----------------------------------------------------------------------------------------
# grad, vjp, jvp
# ----------------------------------------------------------------------------------------


def test_a_fill_is_a_constant_to_derivatives() -> None:
    noise = init.normal_(torch.empty(4), generator=KEY)

    def weigh(x: Tensor) -> Tensor:
        return (init.normal_(torch.empty_like(x), generator=KEY) * x).sum()

    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(torch.func.grad(weigh)(x), noise)
    assert torch.equal(torch.func.jvp(weigh, (x,), (torch.ones(4),))[1], noise.sum())


@pytest.mark.parametrize("generator", [None, KEY], ids=["drawn", "key"])
@every_random
def test_the_tangent_of_a_filled_tensor_is_zero_as_with_stock(
    name: str, arguments: tuple[Any, ...], generator: Key | None
) -> None:
    def tangent(fill: Callable[[Tensor], Tensor], view: bool) -> Tensor:
        def f(x: Tensor) -> Tensor:
            y = x.clone()
            fill(y[:6] if view else y)
            return y

        x = torch.ones(8 if view else 6, 4)
        result: Tensor = torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]
        return result

    ours = function_of(init, name, arguments, generator=generator)
    for view in (False, True):
        got = tangent(ours, view)
        assert not got[:6].any()
        assert (got[6:] == 1).all()
        if hasattr(nn.init, name) and name not in ("orthogonal_", "sparse_"):
            assert torch.equal(tangent(function_of(nn.init, name, arguments), view), got)


def test_dual_tensors_lose_their_tangent_where_they_are_filled() -> None:
    import torch.autograd.forward_ad as forward

    with forward.dual_level():
        for fill in (init.normal_, nn.init.normal_):
            dual = forward.make_dual(torch.zeros(4), torch.ones(4)) * 1.0
            fill(dual)
            tangent = forward.unpack_dual(dual).tangent
            assert tangent is None or not tangent.any()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "grad of vmap": lambda f, x: torch.func.grad(
        lambda y: torch.vmap(f, randomness="same")(y.expand(2, *x.shape)).sum()
    )(x),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(f), randomness="same")(torch.stack([x, x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@every_random
def test_a_captured_tensor_is_not_written_as_stock_does_not(
    name: str, arguments: tuple[Any, ...], transform: Callable[..., Any]
) -> None:
    for module in (init, nn.init):
        if not hasattr(module, name):
            continue
        captured, x = torch.full((6, 4), 7.0), torch.ones(6, 4)
        fill = function_of(module, name, arguments)

        def weigh(y: Tensor, fill: Any = fill, captured: Tensor = captured) -> Tensor:
            fill(captured)
            return (y * captured).sum()

        state = torch.get_rng_state()
        with pytest.raises(RuntimeError):
            transform(weigh, x)
        assert (captured == 7).all()
        if module is init:
            assert torch.equal(torch.get_rng_state(), state)


def test_a_captured_tensor_in_a_list_or_at_a_key_is_not_written_either() -> None:
    captured = torch.zeros(4)
    fills: tuple[Callable[[], Any], ...] = (
        lambda: init.normal_(captured, generator=KEY),
        lambda: fill_many([(captured, "normal_")]),
        lambda: init.constant_(captured, 3.0),
    )
    for fill in fills:
        with pytest.raises(RuntimeError):
            torch.func.grad(lambda x, fill=fill: (fill(), (x * captured).sum())[1])(torch.ones(4))
        assert not captured.any()


def test_per_sample_gradients_through_noise_of_each_sample() -> None:
    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (w * init.normal_(x.clone()) * x).sum()

    w, batch = torch.ones(4), torch.ones(3, 4)
    torch.manual_seed(6)
    key = Key.from_tensor(torch.ops.paraminit_ext.draw_key.default(device=torch.device("cpu")))
    torch.manual_seed(6)
    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(w, batch)
    for member, gradient in enumerate(got):
        assert same(gradient, init.normal_(torch.empty(4), generator=key.fold_in(member)))


# ----------------------------------------------------------------------------------------
# Other transforms
# ----------------------------------------------------------------------------------------


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
    # torch.compile and torch.export functionalise any operator, in Python. This transform knows only torch's
    # own operators.
    given = torch.zeros(4)
    with pytest.raises(RuntimeError, match="paraminit_ext::normal_"):
        torch.func.functionalize(lambda x: init.normal_(x, generator=KEY))(given)
    assert not given.any()
