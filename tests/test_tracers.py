"""Every function under every tracer: torch.compile, torch.export, make_fx, aot_function, torch.jit."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fills import KEY, RANDOM, every_function, every_random, filler, same, shape_for
from paraminit_ext import Key, fill_many, init, shard


@every_function
def test_a_compiled_function_is_one_graph_and_gives_the_eager_values(
    name: str, arguments: tuple[Any, ...]
) -> None:
    torch._dynamo.reset()
    fill = filler(name, arguments)

    # Read a view of the tensor after the fill: functionalisation must preserve the shared memory.
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


def test_a_compiled_fill_of_a_view_changes_only_that_part_of_the_base() -> None:
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


# ----------------------------------------------------------------------------------------
# Draws in a graph: each run draws anew, as stock's does
# ----------------------------------------------------------------------------------------


def by_make_fx(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    made: Callable[[Tensor], Tensor] = make_fx(function)(x)
    return made


def by_make_fx_with_symbols(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    made: Callable[[Tensor], Tensor] = make_fx(function, tracing_mode="symbolic")(x)
    return made


def by_aot_function(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    from functorch.compile import aot_function, nop  # type: ignore[import-untyped]

    made: Callable[[Tensor], Tensor] = aot_function(function, fw_compiler=nop)
    return made


def by_jit_trace(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    made: Callable[[Tensor], Tensor] = torch.jit.trace(function, (x,), check_trace=False)
    return made


def by_compile(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def by_export(strict: bool) -> Callable[..., Callable[[Tensor], Tensor]]:
    def tracer(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        class Holder(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return function(x)

        saved = io.BytesIO()
        torch.export.save(torch.export.export(Holder(), (x,), strict=strict), saved)
        saved.seek(0)
        made: Callable[[Tensor], Tensor] = torch.export.load(saved).module()
        return made

    return tracer


TRACERS = {
    "make_fx": by_make_fx,
    "make_fx, symbolic": by_make_fx_with_symbols,
    "aot_function": by_aot_function,
    "jit.trace": by_jit_trace,
    "compile": by_compile,
    "export, strict": by_export(True),
    "export": by_export(False),
}
traced = pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS.keys())
# torch.jit is deprecated, even if inductor uses it. It also warns of each size that Python reads, as it does
# for stock's fans.
quiet = pytest.mark.filterwarnings(
    "ignore:.torch.jit.* is deprecated",
    "ignore::torch.jit.TracerWarning",
    "ignore:The given buffer is not writable",  # from torch.export.load
)


def noise(module: Any, name: str, arguments: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    function = getattr(module, name)
    return lambda x: x + function(torch.empty_like(x), *arguments)


@quiet
@traced
@every_random
def test_a_traced_fill_draws_anew_at_each_run_as_stocks_does(
    name: str, arguments: tuple[Any, ...], tracer: Callable[..., Callable[[Tensor], Tensor]]
) -> None:
    x = torch.zeros(6, 4)
    run = tracer(noise(init, name, arguments), x)
    torch.manual_seed(5)
    got = [run(x) for _ in range(3)]
    torch.manual_seed(5)
    expected = [noise(init, name, arguments)(x) for _ in range(3)]
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    assert not same(got[0], got[1])
    if name == "normal_":
        stock = tracer(noise(nn.init, name, arguments), x)
        assert not torch.equal(stock(x), stock(x))


@quiet
@traced
@every_random
def test_a_traced_fill_at_a_key_has_the_values_of_the_key(
    name: str, arguments: tuple[Any, ...], tracer: Callable[..., Callable[[Tensor], Tensor]]
) -> None:
    fill, x = filler(name, arguments), torch.zeros(6, 4)
    state = torch.get_rng_state()
    run = tracer(lambda x: x + fill(torch.empty_like(x)), x)
    assert all(same(run(x), fill(torch.empty(6, 4))) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)


@quiet
@traced
def test_a_traced_list_of_fills_and_a_shard_draw_anew(
    tracer: Callable[..., Callable[[Tensor], Tensor]],
) -> None:
    def function(x: Tensor) -> Tensor:
        a, b = torch.empty_like(x), torch.empty_like(x)
        fill_many([(a, "normal_", {"std": 2.0}), (b, "zeros_"), (b[0], "uniform_")])
        part = init.xavier_normal_(shard(torch.empty_like(x), (600, 4), (6, 0)))
        return x + a + b + part

    x = torch.zeros(6, 4)
    run = tracer(function, x)
    torch.manual_seed(5)
    got = [run(x) for _ in range(2)]
    torch.manual_seed(5)
    assert all(same(a, function(x)) for a in got)


def test_a_traced_graph_holds_only_the_draw_and_the_fill() -> None:
    graph: Any = by_make_fx(noise(init, "kaiming_normal_", ()), torch.zeros(6, 4))
    called = [str(node.target) for node in graph.graph.nodes if "paraminit_ext" in str(node.target)]
    assert called == ["paraminit_ext.draw_key.default", "paraminit_ext.normal_.key"]


def test_a_generator_under_a_tracer_is_the_one_that_is_drawn_from() -> None:
    generator = torch.Generator()

    def run(module: Any) -> Callable[[Tensor], Tensor]:
        return by_make_fx(
            lambda x: x + module.normal_(torch.empty_like(x), generator=generator), torch.zeros(5)
        )

    try:
        run(nn.init)
    except NotImplementedError:  # torch 2.11 cannot put a generator into a graph
        with pytest.raises(NotImplementedError):
            run(init)
        return
    traced, state = run(init), torch.get_rng_state()
    generator.manual_seed(8)
    got = [traced(torch.zeros(5)) for _ in range(2)]
    generator.manual_seed(8)
    assert all(same(a, init.normal_(torch.empty(5), generator=generator)) for a in got)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mode_that_only_watches_changes_no_value() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(2)
    with FlopCounterMode(display=False):
        got = init.normal_(torch.empty(50))
    torch.manual_seed(2)
    assert same(got, init.normal_(torch.empty(50)))


def test_a_fake_fill_draws_nothing() -> None:
    state = torch.get_rng_state()
    with FakeTensorMode():
        init.normal_(torch.empty(6, 4))
        nn.init.normal_(torch.empty(6, 4))
    assert torch.equal(torch.get_rng_state(), state)


# ----------------------------------------------------------------------------------------
# Keys in compiled functions
# ----------------------------------------------------------------------------------------

# Some have words of 2^63 and more. These are more keys than torch recompiles for.
KEYS = [Key(5), Key(2**63 + 5, 2**64 - 1), Key(7, 2**63), *(Key(2**64 - 1 - n, n) for n in range(12))]


@quiet
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_key_may_be_an_argument_of_a_compiled_function(backend: str) -> None:
    torch._dynamo.reset()

    def fill(w: Tensor, key: Key) -> Tensor:
        a, b = key.fold_in("layers.0").fold_in(3).split(2)
        init.normal_(w, generator=key)
        return (
            w + init.uniform_(torch.empty(6, 5), generator=a) + init.normal_(torch.empty(6, 5), generator=b)
        )

    compiled = torch.compile(fill, fullgraph=True, backend=backend)
    for key in KEYS:
        assert same(compiled(torch.empty(6, 5), key), fill(torch.empty(6, 5), key)), key


def test_a_loop_over_parameters_with_keys_by_name_compiles_whole() -> None:
    torch._dynamo.reset()
    root = Key(2**64 - 42)
    model = nn.TransformerEncoderLayer(16, 4)

    def reset() -> None:
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                init.xavier_uniform_(parameter, generator=root.fold_in(name))

    reset()
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
    torch.compile(reset, fullgraph=True, backend="aot_eager")()
    assert all(same(a, b) for a, b in zip(model.parameters(), expected, strict=True))


def test_a_key_that_a_compiled_function_derived_serves_outside() -> None:
    torch._dynamo.reset()
    derive = torch.compile(lambda key: key.fold_in("a").to_tensor(), fullgraph=True, backend="aot_eager")
    assert Key.from_tensor(derive(Key(2**63))) == Key(2**63).fold_in("a")
    derived: Any = torch.compile(lambda key: key.fold_in("a"), backend="aot_eager")(Key(2**63))
    expected = init.normal_(torch.empty(9), generator=Key(2**63).fold_in("a"))
    assert same(init.normal_(torch.empty(9), generator=derived), expected)
    (listed,) = fill_many([(torch.empty(9), "normal_", {}, derived)])
    assert same(listed, expected)


@quiet
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_what_a_checkpoint_recomputes_has_the_forwards_values(backend: str) -> None:
    from torch.utils.checkpoint import checkpoint

    torch._dynamo.reset()

    def block(x: Tensor) -> Tensor:
        return (x * init.normal_(torch.empty_like(x))).square()

    def step(x: Tensor) -> Tensor:
        loss: Tensor = checkpoint(block, x, use_reentrant=False).sum()
        return loss

    found = []
    for run in (step, torch.compile(step, backend=backend)):
        x = torch.ones(40, requires_grad=True)
        torch.manual_seed(0)
        run(x).backward()
        assert x.grad is not None
        found.append(x.grad)
    torch.manual_seed(0)
    factor = init.normal_(torch.empty(40))
    # d/dx (x f)^2 = 2 x f^2, with the f of the forward: two products, each rounded once.
    for gradient in found:
        assert torch.allclose(gradient, 2 * factor * factor, rtol=2**-22, atol=0.0)


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_number_that_is_refused_in_a_compiled_function_gives_the_reason(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    fill = getattr(init, name)
    compiled = torch.compile(lambda w, number: fill(w, number), backend="eager", dynamic=dynamic)
    bad = math.nan if name == "kaiming_uniform_" else -1.0
    tensor = torch.zeros(4, 4)
    with pytest.raises((RuntimeError, ValueError), match="expected a") as caught:
        compiled(tensor, bad)
    assert "InternalTorchDynamoError" not in type(caught.value).__name__
    assert not tensor.any()
