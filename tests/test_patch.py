"""``patch`` makes existing code use this package's fills, in this thread only, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_ as captured_trunc_normal_
from torch.overrides import TorchFunctionMode

import paraminit_ext
from module_equality import differences, patched, seeded
from paraminit_ext import Key, init, install, patch, uninstall
from paraminit_ext.models import init_hooks

# `from` is a Python keyword, so these arguments are passed as a dict.
FROM_TO: Any = {"from": -1, "to": 2}
# Each way in which code fills a tensor, and the call of this package that patch() turns it into.
FILLS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "init.uniform_": (lambda t: nn.init.uniform_(t, -1, 3), lambda t: init.uniform_(t, -1, 3)),
    "init.normal_": (lambda t: nn.init.normal_(t, 1.0, 0.5), lambda t: init.normal_(t, 1.0, 0.5)),
    "init.trunc_normal_": (
        lambda t: nn.init.trunc_normal_(t, std=2.0),
        lambda t: init.trunc_normal_(t, std=2.0),
    ),
    "captured": (captured_trunc_normal_, init.trunc_normal_),
    "init.constant_": (lambda t: nn.init.constant_(t, 0.25), lambda t: init.constant_(t, 0.25)),
    "init.ones_": (nn.init.ones_, init.ones_),
    "init.zeros_": (nn.init.zeros_, init.zeros_),
    "init.eye_": (nn.init.eye_, init.eye_),
    "init.xavier_uniform_": (
        lambda t: nn.init.xavier_uniform_(t, 0.3),
        lambda t: init.xavier_uniform_(t, 0.3),
    ),
    "init.xavier_normal_": (lambda t: nn.init.xavier_normal_(t, 0.3), lambda t: init.xavier_normal_(t, 0.3)),
    "init.kaiming_uniform_": (
        lambda t: nn.init.kaiming_uniform_(t, 2),
        lambda t: init.kaiming_uniform_(t, 2),
    ),
    "init.kaiming_normal_": (
        lambda t: nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
        lambda t: init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
    ),
    "init.orthogonal_": (lambda t: nn.init.orthogonal_(t, gain=2), lambda t: init.orthogonal_(t, gain=2)),
    "init.sparse_": (lambda t: nn.init.sparse_(t, 0.25), lambda t: init.sparse_(t, 0.25)),
    "partial": (functools.partial(nn.init.normal_, std=0.1), lambda t: init.normal_(t, std=0.1)),
    "keywords": (
        lambda t: nn.init.normal_(tensor=t, std=0.1, mean=2.0),
        lambda t: init.normal_(t, 2.0, 0.1),
    ),
    "_no_grad_uniform_": (
        lambda t: nn.init._no_grad_uniform_(t, -1.0, 1.0),
        lambda t: init.uniform_(t, -1.0, 1.0),
    ),
    "_no_grad_normal_": (
        lambda t: nn.init._no_grad_normal_(t, 0.0, 2.0),
        lambda t: init.normal_(t, 0.0, 2.0),
    ),
    "_no_grad_trunc_normal_": (
        lambda t: nn.init._no_grad_trunc_normal_(t, 0.0, 1.0, -1.0, 1.5),
        lambda t: init.trunc_normal_(t, 0.0, 1.0, -1.0, 1.5),
    ),
    "_no_grad_fill_": (lambda t: nn.init._no_grad_fill_(t, 2.0), lambda t: init.constant_(t, 2.0)),
    "Tensor.normal_": (lambda t: t.normal_(1, 0.5), lambda t: init.normal_(t, 1, 0.5)),
    "Tensor.uniform_": (lambda t: t.uniform_(-1), lambda t: init.uniform_(t, -1)),
    "Tensor.uniform_ by name": (
        lambda t: t.uniform_(**FROM_TO),
        lambda t: init.uniform_(t, -1, 2),
    ),
    "Tensor.data": (lambda t: t.data.normal_(std=0.1), lambda t: init.normal_(t, std=0.1)),
    "a view": (lambda t: t[1:3].normal_(), lambda t: init.normal_(t[1:3])),
    "chunks": (
        lambda t: [nn.init.xavier_uniform_(part) for part in t.chunk(2)],
        lambda t: [init.xavier_uniform_(part) for part in t.chunk(2)],
    ),
    "this package's": (lambda t: init.lecun_normal_(t), init.lecun_normal_),
}


@pytest.fixture(autouse=True)
def torch_is_restored() -> Iterator[None]:
    """Check after each test that torch is as it was before."""
    names = [name for name in dir(nn.init) if name.endswith("_")]
    before = {
        name: (getattr(nn.init, name), getattr(nn.init, name).__code__)
        for name in names
        if callable(getattr(nn.init, name))
    }
    yield
    assert before == {name: (getattr(nn.init, name), getattr(nn.init, name).__code__) for name in before}
    assert "normal_" not in vars(Tensor)
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fill_is_ours(name: str, dtype: torch.dtype) -> None:
    theirs, ours = FILLS[name]
    with torch.no_grad():
        got, expected = torch.zeros(8, 6, dtype=dtype), torch.zeros(8, 6, dtype=dtype)
        patched(lambda: theirs(got))
        seeded(lambda: ours(expected))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", FILLS)
def test_a_fill_is_ours_after_install(name: str) -> None:
    theirs, ours = FILLS[name]
    got, expected = torch.zeros(8, 6), torch.zeros(8, 6)
    install()
    try:
        seeded(lambda: theirs(got))
    finally:
        uninstall()
    seeded(lambda: ours(expected))
    assert torch.equal(got, expected)


def test_dirac_is_ours_too() -> None:
    with patch():
        assert torch.equal(nn.init.dirac_(torch.empty(6, 2, 3), 3), init.dirac_(torch.empty(6, 2, 3), 3))


class Made(nn.Module):
    """A module with a parameter made by a factory, and with a forward that draws."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(make() * 0.5)

    def forward(self) -> tuple[Tensor, ...]:
        return torch.randn(4), torch.rand(4), torch.empty(4).normal_(), torch.empty(4).uniform_()


def filled(name: str, *arguments: float) -> Tensor:
    result: Tensor = getattr(init, name)(torch.empty(5, 4), *arguments)
    return result


FACTORIES: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "randn": (lambda: torch.randn(5, 4), lambda: filled("normal_")),
    "randn of a size": (lambda: torch.randn(size=(5, 4), dtype=torch.float32), lambda: filled("normal_")),
    "rand": (lambda: torch.rand((5, 4)), lambda: filled("uniform_")),
    "randn_like": (lambda: torch.randn_like(torch.empty(5, 4)), lambda: filled("normal_")),
    "rand_like": (lambda: torch.rand_like(torch.empty(5, 4)), lambda: filled("uniform_")),
    "normal": (lambda: torch.normal(1.0, 2.0, (5, 4)), lambda: filled("normal_", 1.0, 2.0)),
    "normal of tensors": (
        lambda: torch.normal(torch.ones(5, 1), torch.full((4,), 2.0)),
        lambda: filled("normal_").mul_(2.0).add_(1.0),
    ),
    "new_empty": (lambda: torch.ones(1).new_empty(5, 4).normal_(), lambda: filled("normal_")),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_is_ours_where_a_module_is_built(name: str) -> None:
    theirs, ours = FACTORIES[name]
    assert torch.equal(patched(lambda: Made(theirs)).weight, seeded(ours) * 0.5)
    install()
    try:
        assert torch.equal(seeded(lambda: Made(theirs)).weight, seeded(ours) * 0.5)
    finally:
        uninstall()


def test_what_a_forward_draws_is_stocks() -> None:
    module = Made(lambda: torch.zeros(1))
    assert all(map(torch.equal, patched(module), seeded(module)))


class Recurrent(nn.Module):
    def init_hidden(self) -> Tensor:
        return torch.randn(4)

    def forward(self) -> Tensor:
        return self.init_hidden()


def test_a_state_that_a_forward_begins_with_is_stocks() -> None:
    assert torch.equal(patched(Recurrent()), seeded(Recurrent()))
    # Outside a forward, a method with such a name counts as initialisation.
    assert torch.equal(patched(Recurrent().init_hidden), seeded(lambda: init.normal_(torch.empty(4))))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(9),
        lambda: torch.rand(9),
        lambda: torch.randperm(9),
        lambda: torch.randint(9, (9,)),
        lambda: torch.empty(9).bernoulli_(0.5),
        lambda: torch.empty(9).exponential_(),
        lambda: torch.empty(9, dtype=torch.int32).random_(),
        lambda: nn.functional.dropout(torch.ones(9)),
        lambda: torch.randn(9, out=torch.empty(9)),
        lambda: torch.multinomial(torch.ones(9), 4),
    ],
)
def test_values_that_are_no_parameters_are_stocks(draw: Callable[[], Tensor]) -> None:
    assert torch.equal(patched(draw), seeded(draw))


class Unknown(Tensor):
    """A tensor subclass that this package does not know."""


class Plain(nn.Parameter):
    """A parameter subclass that overrides nothing."""


def test_a_parameter_subclass_that_overrides_nothing_is_ours() -> None:
    got = patched(lambda: nn.init.normal_(Plain(torch.empty(9))))
    assert type(got) is Plain
    assert torch.equal(got, seeded(lambda: init.normal_(torch.empty(9))))


def test_a_subclass_that_is_not_known_is_stocks() -> None:
    def fill() -> Tensor:
        return nn.init.normal_(torch.empty(9).as_subclass(Unknown)).as_subclass(Tensor)

    assert torch.equal(patched(fill), seeded(fill))


def test_a_leaf_that_requires_grad_is_refused_by_the_method_as_stock_refuses_it() -> None:
    leaf = nn.Parameter(torch.zeros(3))
    with patch(), pytest.raises(RuntimeError, match="leaf Variable"):
        leaf.normal_()
    with patch(), pytest.raises(TypeError):
        nn.init.normal_(torch.zeros(3), nonsense=1)  # type: ignore[call-arg]
    assert not leaf.any()


def test_a_dtype_that_our_fill_does_not_support_is_left_to_stock() -> None:
    refusals = []
    for context in (patch(), contextlib.nullcontext()):
        with context, pytest.raises(RuntimeError) as refused:
            nn.init.trunc_normal_(torch.empty(4, 4, dtype=torch.complex64))
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(
    ("mean", "std"),
    [(torch.zeros(3), -1.0), (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0])), (0.0, -1.0), (0.0, math.nan)],
)
def test_torch_normal_refuses_what_stock_refuses(mean: Any, std: Any) -> None:
    size = () if isinstance(mean, Tensor) else ((3,),)
    refusals = []
    for context in (patch(), contextlib.nullcontext()):
        with context, pytest.raises(RuntimeError, match="normal expects") as refused:
            Made(lambda: torch.normal(mean, std, *size))
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


TRANSFORMED: dict[str, Callable[[], Tensor]] = {
    "vmap of to": lambda: torch.vmap(lambda x: x.to(torch.float64))(torch.ones(3)),
    "vmap of empty_like": lambda: torch.vmap(lambda x: torch.empty_like(x).zero_())(torch.ones(3)),
    "grad": lambda: torch.func.grad(lambda x: x.clone().mul_(3).sum())(torch.ones(3)),
    "jacrev": lambda: torch.func.jacrev(lambda x: x.clone().relu_())(torch.ones(3)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("installed", [True, False])
def test_transforms_of_torch_func_work_inside(name: str, installed: bool) -> None:
    expected = TRANSFORMED[name]()
    if not installed:
        assert torch.equal(patched(TRANSFORMED[name]), expected)
        return
    install()
    try:
        assert torch.equal(TRANSFORMED[name](), expected)
    finally:
        uninstall()


@pytest.mark.parametrize("installed", [True, False])
def test_a_fill_under_vmap_and_grad_is_ours(installed: bool) -> None:
    def fill() -> tuple[Tensor, Tensor]:
        batch = torch.vmap(lambda x: nn.init.normal_(x.clone()), randomness="same")(torch.zeros(2, 3))
        gradient = torch.func.grad(lambda x: (x * nn.init.normal_(x.clone())).sum())(torch.zeros(3))
        return batch, gradient

    if installed:
        install()
    try:
        batch, gradient = seeded(fill) if installed else patched(fill)
    finally:
        uninstall()
    ours = seeded(lambda: [init.normal_(torch.empty(3)) for _ in range(2)])
    assert torch.equal(batch, ours[0].expand(2, 3))
    assert torch.equal(gradient, ours[1])


# --- numbers of draws, keys and generators ----------------------------------------------------


def test_the_nth_fill_that_draws_uses_the_nth_number_of_the_key() -> None:
    key = Key(3)
    with patch(key=key):
        first = nn.init.normal_(torch.empty(4))
        nn.init.zeros_(torch.empty(4))
        nn.init.normal_(torch.empty(0))
        nn.init.normal_(torch.empty(4, device="meta"))
        second = torch.empty(4).uniform_()
        third = init.normal_(torch.empty(4))
    assert torch.equal(first, init.normal_(torch.empty(4), generator=key.fold_in(0)))
    assert torch.equal(second, init.uniform_(torch.empty(4), generator=key.fold_in(1)))
    assert torch.equal(third, init.normal_(torch.empty(4), generator=key.fold_in(2)))


def test_a_generator_that_the_code_passes_is_kept() -> None:
    with patch(key=Key(3)):
        given = nn.init.normal_(torch.empty(4), generator=torch.Generator().manual_seed(1))
        fixed = init.normal_(torch.empty(4), generator=Key(8))
        first = nn.init.normal_(torch.empty(4))
    assert torch.equal(given, init.normal_(torch.empty(4), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(fixed, init.normal_(torch.empty(4), generator=Key(8)))
    assert torch.equal(first, init.normal_(torch.empty(4), generator=Key(3).fold_in(0)))


def test_each_call_of_a_decorated_function_begins_anew() -> None:
    @patch(key=Key(3))
    def build() -> nn.Module:
        return nn.Linear(4, 5)

    assert not differences(build(), build())


def test_generators_and_coroutines_are_not_decorated() -> None:
    def several() -> Iterator[Tensor]:
        yield torch.empty(3).normal_()

    async def later() -> None:
        pass

    for function in (several, later):
        with pytest.raises(
            TypeError, match=r"expected a plain function to decorate, got .* Enter patch\(\) inside"
        ):
            patch()(function)


def test_a_class_is_not_decorated() -> None:
    with pytest.raises(
        TypeError, match=r"expected a function to decorate, got the class Made\. Decorate its __init__\."
    ):
        patch()(Made)


def test_contexts_nest_and_the_same_one_may_be_entered_twice() -> None:
    context = patch(key=Key(1))
    with context, context, patch():
        inner = nn.init.normal_(torch.empty(4))
    assert torch.equal(inner, init.normal_(torch.empty(4), generator=Key(1).fold_in(0)))


@pytest.mark.parametrize("function", [patch, install])
def test_what_is_no_key_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"expected a paraminit_ext\.Key or None for key, got int\. For"):
        function(key=3)


# --- threads, modes and tools -----------------------------------------------------------------


def in_a_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_other_threads_are_stocks_under_patch_and_ours_after_install() -> None:
    def fill() -> list[Tensor]:
        g = torch.Generator().manual_seed(5)
        return [
            nn.init.xavier_normal_(torch.empty(9, 9), generator=g),
            nn.init.trunc_normal_(torch.empty(9, 9), generator=g),
            torch.empty(9).normal_(generator=g),
        ]

    stocks = fill()
    with patch():
        ours = fill()
        assert all(map(torch.equal, in_a_thread(fill), stocks))
    assert not any(map(torch.equal, ours, stocks))
    install()
    try:
        assert all(map(torch.equal, in_a_thread(fill), ours))
        assert all(map(torch.equal, fill(), ours))
    finally:
        uninstall()
    assert all(map(torch.equal, fill(), stocks))


def test_two_threads_enter_and_leave_as_they_like() -> None:
    faults: list[str] = []
    expected = init.trunc_normal_(torch.empty(99), generator=Key(1).fold_in(0))

    def work() -> None:
        for _ in range(300):
            with patch(key=Key(1)):
                if not torch.equal(nn.init.trunc_normal_(torch.empty(99)), expected):
                    faults.append("not ours inside")
            own = torch.Generator().manual_seed(1)
            if torch.equal(nn.init.trunc_normal_(torch.empty(99), generator=own), expected):
                faults.append("ours outside")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_an_exception_leaves_nothing_behind() -> None:
    with pytest.raises(KeyError), patch():  # noqa: PT012
        nn.init.normal_(torch.empty(3))
        raise KeyError


def test_a_function_whose_code_is_exchanged_keeps_its_signature_and_its_source() -> None:
    signature, source = inspect.signature(nn.init.trunc_normal_), inspect.getsource(nn.init.trunc_normal_)
    with patch():
        assert inspect.signature(nn.init.trunc_normal_) == signature
        assert inspect.getsource(nn.init.trunc_normal_) == source


def test_a_warning_names_the_line_of_the_callers() -> None:
    with patch(), pytest.warns(UserWarning, match="zero-element") as caught:
        nn.init.kaiming_uniform_(torch.empty(0, 3))
    assert caught[0].filename == __file__


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_modes_of_others_see_the_calls_from_either_side() -> None:
    expected = seeded(lambda: init.trunc_normal_(torch.empty(9)))
    with Counting() as outer, patch():
        assert torch.equal(seeded(lambda: nn.init.trunc_normal_(torch.empty(9))), expected)
    with patch(), Counting() as inner:
        assert torch.equal(seeded(lambda: nn.init.trunc_normal_(torch.empty(9))), expected)
    assert init.trunc_normal_ in outer.seen
    assert nn.init.trunc_normal_ in inner.seen


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)
        self.linear = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.randn(4, 3) * 0.1)
        nn.init.trunc_normal_(self.linear.weight)


@pytest.mark.parametrize("first", [True, False])
def test_a_meta_device_makes_nothing_and_draws_nothing(first: bool) -> None:
    state = torch.get_rng_state()
    with patch() if first else torch.device("meta"), torch.device("meta") if first else patch():
        module = Several()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("first", [True, False])
def test_fake_tensors_stay_fake(first: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with patch() if first else FakeTensorMode(), FakeTensorMode() if first else patch():
        module = Several()
    assert all(isinstance(parameter.data, FakeTensor) for parameter in module.parameters())


def test_skip_init_makes_parameters_without_values() -> None:
    with patch():
        layer = nn.utils.skip_init(nn.Linear, 3, 4)
    assert layer.weight.shape == (4, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_function_is_what_it_is_outside() -> None:
    layer, x = nn.Linear(3, 3), torch.ones(2, 3)
    compiled = torch.compile(lambda x: layer(x.clone()).sin(), fullgraph=True, backend="aot_eager")
    with patch():
        inside = compiled(x)
    assert torch.equal(inside, compiled(x))
    assert torch.equal(inside, layer(x).sin())


def test_a_module_may_be_copied_and_moved_inside() -> None:
    with patch():
        module = Several()
        twin = copy.deepcopy(module).double().float()
    assert not differences(module, twin)


def test_a_lazy_module_is_filled_when_it_sees_its_input() -> None:
    def build() -> Tensor:
        layer = nn.LazyLinear(5)
        layer(torch.ones(2, 3))
        return layer.weight

    expected = seeded(lambda: init.kaiming_uniform_(torch.empty(5, 3), a=5**0.5))
    assert torch.equal(patched(build), expected)


def test_a_module_that_is_first_imported_inside_is_patched_and_restored(tmp_path: Any) -> None:
    (tmp_path / "timm" / "layers").mkdir(parents=True)
    for folder in ("timm", "timm/layers"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "timm" / "layers" / "weight_init.py").write_text(
        textwrap.dedent(
            """
            import torch
            def _trunc_normal_(tensor, mean, std, a, b):
                raise AssertionError("stock's own code runs")
            def trunc_normal_(tensor, mean=0., std=1., a=-2., b=2.):
                with torch.no_grad():
                    return _trunc_normal_(tensor, mean, std, a, b)
            def trunc_normal_tf_(tensor, mean=0., std=1., a=-2., b=2.):
                with torch.no_grad():
                    _trunc_normal_(tensor, 0, 1.0, a, b)
                    tensor.mul_(std).add_(mean)
                return tensor
            """
        )
    )
    (tmp_path / "captures.py").write_text("from torch.nn.init import trunc_normal_, orthogonal_ as o\n")
    program = """
import sys, torch
import paraminit_ext as P
from paraminit_ext import Key, init
key = Key(1)
with P.patch(key=key):
    import captures
    from timm.layers.weight_init import trunc_normal_, trunc_normal_tf_
    import timm.layers.weight_init as module
    made = [captures.trunc_normal_(torch.empty(9, 9)), captures.o(torch.empty(9, 9)),
            trunc_normal_(torch.empty(9), std=.5), trunc_normal_tf_(torch.empty(9), mean=1., std=.5)]
ours = [init.trunc_normal_(torch.empty(9, 9), generator=key.fold_in(0)),
        init.orthogonal_(torch.empty(9, 9), generator=key.fold_in(1)),
        init.trunc_normal_(torch.empty(9), std=.5, generator=key.fold_in(2)),
        init.trunc_normal_(torch.empty(9), mean=1., std=.5, a=0., b=2., generator=key.fold_in(3))]
assert all(map(torch.equal, made, ours))
assert module.__loader__ is module.__spec__.loader and "stock" not in type(module.__loader__).__module__
assert not any("paraminit" in type(finder).__module__ for finder in sys.meta_path)
try:
    trunc_normal_(torch.empty(9))
except AssertionError:
    print("as it was")
with P.patch(key=key):  # the module is imported already
    again = init.trunc_normal_(torch.empty(9), generator=key.fold_in(0))
    assert torch.equal(trunc_normal_(torch.empty(9)), again)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(paraminit_ext.__path__[0]).parent}"},
    )
    assert done.stdout == "as it was\n", done.stderr


def test_a_call_that_is_no_fill_costs_little_more() -> None:
    """The cost is below 1 us on a quiet machine. The limit is 10 us, which a stack walk per call exceeds."""
    x = torch.ones(1)
    outside = min(timeit.repeat(lambda: x.add(x), number=2000, repeat=5)) / 2000
    with patch():
        inside = min(timeit.repeat(lambda: x.add(x), number=2000, repeat=5)) / 2000
    assert inside - outside < 10e-6


def test_install_twice_begins_anew_and_uninstall_twice_does_nothing() -> None:
    install(key=Key(1))
    nn.init.normal_(torch.empty(3))
    install(key=Key(1))
    try:
        again = nn.init.normal_(torch.empty(3))
        assert not torch.equal(torch.empty(3).normal_(), again)
        with patch(key=Key(2)):
            inner = torch.empty(3).normal_()
        with torch.device("meta"):
            assert torch.randn(3).is_meta
    finally:
        uninstall()
        uninstall()
    assert torch.equal(again, init.normal_(torch.empty(3), generator=Key(1).fold_in(0)))
    assert torch.equal(inner, init.normal_(torch.empty(3), generator=Key(2).fold_in(0)))
    assert init_hooks._holders == 0


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.rand_like(x) + torch.randn_like(x) + torch.randn(3) + torch.rand(3) + x.normal_()


def drawn_by_script() -> Tensor:
    # TorchScript compiles each class once, so each state of the process needs one of its own.
    class Own(Noisy):
        pass

    scripted = torch.jit.script(Own())
    drawn: Tensor = seeded(lambda: scripted(torch.zeros(3)))
    return drawn


# TorchScript is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_compiles_draws_after_install_and_after_uninstall() -> None:
    expected = seeded(lambda: Noisy()(torch.zeros(3)))
    assert torch.equal(drawn_by_script(), expected)
    install()
    try:
        assert torch.equal(drawn_by_script(), expected)
    finally:
        uninstall()
    assert torch.equal(drawn_by_script(), expected)


def test_functions_are_pickled_after_install() -> None:
    functions = [torch.randn, torch.rand, torch.normal, torch.randn_like, Tensor.normal_, Tensor.uniform_]
    install()
    try:
        current = [torch.randn, torch.rand, torch.normal, torch.randn_like, Tensor.normal_, Tensor.uniform_]
        stored = pickle.dumps(current)
        assert pickle.loads(stored) == current
    finally:
        uninstall()
    # A process without install() gets torch's own functions.
    assert pickle.loads(stored) == functions
    assert not set(map(id, current)) & set(torch.jit._builtins._get_builtin_table())
