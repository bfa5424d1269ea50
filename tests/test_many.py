"""`fill_many` gives the values of single calls in order, and checks every entry before it writes."""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import paraminit_ext
from fills import DTYPES, KEY, same
from paraminit_ext import _C, Key, fill_many, init, many, shard

# Every fill function, with valid arguments for a matrix (for a convolution weight if in CONVOLUTIONS).
CALLS: dict[str, list[dict[str, Any]]] = {
    "uniform_": [{}, {"a": -0.3, "b": 0.55}, {"a": 1.0, "b": 1.0078125}, {"a": 0.5, "b": 0.5}],
    "normal_": [{}, {"std": 0.02}, {"mean": 3.0, "std": 2.0}, {"mean": -0.0, "std": 0.0}],
    "trunc_normal_": [
        {},
        {"mean": 0.1, "a": -3.0, "b": 4.0},
        {"a": 1.75, "b": math.inf},
        {"a": -20, "b": 20},
    ],
    "xavier_uniform_": [{}, {"gain": 2.0}],
    "xavier_normal_": [{}],
    "kaiming_uniform_": [{"a": 5**0.5}, {"mode": "fan_out", "nonlinearity": "relu"}],
    "kaiming_normal_": [{}],
    "variance_scaling_": [{}, {"scale": 2.0, "mode": "fan_avg", "distribution": "truncated_normal"}],
    "lecun_normal_": [{}],
    "lecun_uniform_": [{}],
    "orthogonal_": [{}],
    "sparse_": [{"sparsity": 0.3}],
    "constant_": [{"val": 0.3}, {"val": -0.0}, {"val": 2}],
    "ones_": [{}],
    "zeros_": [{}],
    "eye_": [{}],
    "dirac_": [{}, {"groups": 3}],
    "delta_orthogonal_": [{"gain": 2.0}],
}
DRAW_NOTHING = frozenset(
    {"constant_", "ones_", "zeros_", "eye_", "dirac_"}
)  # functions that draw no random numbers
CONVOLUTIONS = frozenset({"dirac_", "delta_orthogonal_"})


def one_by_one(entries: list[Any]) -> list[Any]:
    """Fill the entries by single calls in order; this defines the result of fill_many."""
    results = []
    for tensor, name, arguments, source in entries:
        keywords = {} if name in DRAW_NOTHING else {"generator": source}
        results.append(getattr(init, name)(tensor, **arguments, **keywords))
    return results


def tensor_of_layout(layout: int, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Return a tensor of sevens: a parameter, a strided view, a shard or a plain tensor."""
    full: Callable[..., Tensor] = lambda *s: torch.full(s, 7, dtype=dtype)  # noqa: E731
    if layout == 0:
        return nn.Parameter(full(*shape), requires_grad=dtype.is_floating_point or dtype.is_complex)
    if layout == 1:
        return full(*shape[::-1]).permute(*reversed(range(len(shape))))
    if layout == 2:
        return full(shape[0], *shape[1:-1], shape[-1] + 3)[..., 1:-2]
    if layout == 3:
        return shard(full(*shape), (shape[0] + 6, *shape[1:]), (3, *(0 for _ in shape[1:])))
    if layout == 4:
        begin = tuple(1 for _ in shape)
        return shard(full(*shape), tuple(n + 3 for n in shape), begin)
    return full(*shape)


def random_entry(rng: random.Random) -> Any:
    name = rng.choice(sorted(CALLS))
    dtypes = [*DTYPES, torch.complex64]
    if name in ("trunc_normal_", "orthogonal_", "delta_orthogonal_", "lecun_normal_", "variance_scaling_"):
        dtypes = DTYPES
    elif name in DRAW_NOTHING:
        dtypes = [*dtypes, torch.int32, torch.bool, torch.complex128]
    shape = rng.choice([(9, 3, 5), (9, 4, 3)] if name in CONVOLUTIONS else [(6, 5), (33, 40), (1, 3), (8, 2)])
    tensor = tensor_of_layout(rng.randrange(8), shape, rng.choice(dtypes))
    source = rng.choice([None, None, None, Key(rng.randrange(2**64), 5), torch.Generator().manual_seed(3)])
    return tensor, name, rng.choice(CALLS[name]), source


def local(tensor: Any) -> Tensor:
    return tensor.local if isinstance(tensor, paraminit_ext.Shard) else tensor


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return same(a, b) if a.dtype.is_floating_point else torch.equal(a, b)


pytestmark = pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")


@pytest.mark.parametrize("seed", range(6))
def test_the_values_and_draws_are_those_of_the_single_calls(cpu_capability: str, seed: int) -> None:
    rng = random.Random(seed)
    listed = [random_entry(rng) for _ in range(60)]
    listed += [(*entry[:3], None) for entry in copy.deepcopy(listed[:20])]  # repeat some kinds
    expected = copy.deepcopy(listed)
    before = [[local(entry[0])._version for entry in entries] for entries in (listed, expected)]
    torch.manual_seed(seed)
    returned = fill_many(listed)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    one_by_one(expected)
    assert torch.equal(state, torch.get_rng_state())
    increments = [
        [local(entry[0])._version - version for entry, version in zip(entries, versions, strict=True)]
        for entries, versions in zip((listed, expected), before, strict=True)
    ]
    assert increments[0] == increments[1]
    for got, want, result in zip(listed, expected, returned, strict=True):
        assert result is local(got[0])
        assert bitwise_equal(local(got[0]), local(want[0])), (got[1:], local(got[0]).stride())
        if isinstance(got[3], torch.Generator):
            assert torch.equal(got[3].get_state(), want[3].get_state())


def test_every_function_that_fills_has_a_place() -> None:
    assert set(many.FUNCTION_NAMES) == {name for name in init.__all__ if name.endswith("_")} == set(CALLS)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tensors_of_all_sizes_do_not_depend_on_the_threads(threads: int) -> None:
    shapes = [(3,), (4096,), (70000,), (1,), (65, 1000), (2**21 + 3,), (0, 4), (7, 7)]
    entries: list[Any] = [
        (torch.empty(shape), "normal_", {}, KEY.fold_in(i)) for i, shape in enumerate(shapes)
    ]
    entries.append((torch.empty(700, 130).t(), "uniform_", {}, KEY))
    entries.append((torch.empty(9, 5000)[:, ::3], "ones_", {}, None))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        fill_many(entries)
    finally:
        torch.set_num_threads(before)
    expected = [(torch.empty_like(entry[0]), *entry[1:]) for entry in entries]
    one_by_one(expected)
    assert all(same(a[0], b[0]) for a, b in zip(entries, expected, strict=True))


def test_an_entry_may_omit_its_last_fields() -> None:
    torch.manual_seed(1)
    a, b, c = fill_many(
        [(torch.empty(5), "normal_"), (torch.empty(5), "normal_", {"std": 0.5}), (torch.empty(2), "ones_")]
    )
    torch.manual_seed(1)
    assert same(a, init.normal_(torch.empty(5)))
    assert same(b, init.normal_(torch.empty(5), std=0.5))
    assert c.tolist() == [1.0, 1.0]
    assert fill_many([]) == []
    assert fill_many((torch.zeros(2), "ones_") for _ in range(2))[1].tolist() == [1.0, 1.0]


# --- memory that entries share ---------------------------------------------------------------

SHARED: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "the same tensor twice": lambda base: [base, base],
    "slices that overlap": lambda base: [base[:6], base[4:], base[2:9]],
    "interleaved columns": lambda base: [base[:, ::2], base[:, 1::2], base[:, :3], base.t()],
    "the transpose": lambda base: [base.t(), base],
    "one element before and after the whole": lambda base: [base[3:4, 2:3], base, base[3:4, 2:3]],
}


@pytest.mark.parametrize("views", SHARED.values(), ids=SHARED.keys())
@pytest.mark.parametrize(
    "names", list(itertools.permutations(["normal_", "uniform_", "ones_"], 3)), ids="-".join
)
def test_shared_memory_keeps_what_comes_last(
    views: Callable[[Tensor], list[Tensor]], names: tuple[str, ...]
) -> None:
    bases = [torch.zeros(10, 8), torch.zeros(10, 8)]
    for base, call in zip(bases, (fill_many, one_by_one), strict=True):
        parts = views(base)
        call([(part, names[i % 3], {}, Key(i)) for i, part in enumerate(parts)])
    assert same(*bases)


def test_a_matrix_in_the_list_takes_its_turn() -> None:
    bases = [torch.zeros(8, 8), torch.zeros(8, 8)]
    for base, call in zip(bases, (fill_many, one_by_one), strict=True):
        torch.manual_seed(3)
        call(
            [
                (base, "normal_", {}, None),
                (base[2:6], "orthogonal_", {}, None),
                (base[4:], "normal_", {}, None),
                (base[:1, :4], "zeros_", {}, None),
                (base[:, 7:], "sparse_", {"sparsity": 0.5}, None),
            ]
        )
    assert same(*bases)


# --- what is refused -------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[], Any], str, Any, Any, type[Exception]]] = {
    "std": (lambda: torch.zeros(4), "normal_", {"std": -1.0}, None, RuntimeError),
    "bounds": (lambda: torch.zeros(4), "trunc_normal_", {"a": 3.0, "b": 2.0}, None, ValueError),
    "dtype": (lambda: torch.zeros(4, dtype=torch.int32), "normal_", {}, None, NotImplementedError),
    "dimensions": (lambda: torch.zeros(4), "xavier_normal_", {}, None, ValueError),
    "argument": (lambda: torch.zeros(4), "normal_", {"sigma": 1.0}, None, TypeError),
    "value": (lambda: torch.zeros(4, dtype=torch.int8), "constant_", {"val": 1000}, None, RuntimeError),
    "no value": (lambda: torch.zeros(4), "constant_", {}, None, TypeError),
    "key": (lambda: torch.zeros(4), "normal_", {}, 5, TypeError),
    "overlap": (lambda: torch.zeros(1, 6).expand(4, 6), "normal_", {}, None, RuntimeError),
    "a value of 16 bits": (
        lambda: torch.zeros(4, dtype=torch.float16), "constant_", {"val": 1e6}, None, RuntimeError
    ),
    "sparse": (lambda: torch.zeros(3, 4), "sparse_", {"sparsity": 2.0}, None, ValueError),
    "gain": (lambda: torch.zeros(3, 4), "orthogonal_", {"gain": math.inf}, None, ValueError),
    "eye": (lambda: torch.zeros(3), "eye_", {}, None, ValueError),
    "dirac": (lambda: torch.zeros(4, 4, 3), "dirac_", {"groups": 3}, None, ValueError),
    "delta": (lambda: torch.zeros(3, 4, 3), "delta_orthogonal_", {}, None, ValueError),
    "no tensor": (lambda: [1.0], "normal_", {}, None, TypeError),
    "no function": (lambda: torch.zeros(4), "norm_", {}, None, ValueError),
    "an alias": (lambda: torch.zeros(4), "normal", {}, None, ValueError),
    "no arguments": (lambda: torch.zeros(4), "normal_", [], None, TypeError),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("place", [0, 2, 5])
def test_an_error_names_its_entry_and_leaves_everything(bad: tuple[Any, ...], place: int) -> None:
    make, name, arguments, source, error = bad
    entries: list[Any] = [(torch.zeros(4, 4), "normal_", {}, None) for _ in range(3)]
    entries += [(torch.zeros(4, 4), "orthogonal_", {}, None), (torch.zeros(4, 4), "ones_", {}, None)]
    tensor = make()
    entries.insert(place, (tensor, name, arguments, source))
    state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        fill_many(entries)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"paraminit_ext.fill_many: entry {place}")
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state), "a refused call drew numbers"
    assert not any(entry[0].any() for entry in entries if isinstance(entry[0], Tensor))
    assert all(entry[0]._version == 0 for i, entry in enumerate(entries) if i != place)


@pytest.mark.parametrize("entry", [(), (torch.zeros(2),), (torch.zeros(2), "ones_", {}, None, 1), 3, None])
def test_an_entry_of_another_form_is_refused(entry: Any) -> None:
    first = torch.zeros(3)
    with pytest.raises(TypeError, match=r"^paraminit_ext\.fill_many: entry 1: expected .*, got "):
        fill_many([(first, "ones_"), entry])
    assert not first.any()


def test_inference_tensors_are_refused_outside_inference_mode_only() -> None:
    for name in ("normal_", "ones_", "orthogonal_"):
        with torch.inference_mode():
            tensor = torch.zeros(4, 4)
            fill_many([(tensor, name, {}, None)])
            assert tensor.any()
        before = tensor.clone()
        plain = torch.zeros(4)
        with pytest.raises(RuntimeError, match="entry 1"):
            fill_many([(plain, "ones_", {}, None), (tensor, name, {}, None)])
        assert torch.equal(tensor, before)
        assert not plain.any()


# --- warnings, versions, modes ---------------------------------------------------------------


def warnings_of(call: Callable[[], object]) -> list[tuple[type[Warning], str, str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.category, str(w.message), w.filename) for w in caught]


def test_warnings_are_those_of_the_single_calls_at_the_callers_line() -> None:
    tail = {"a": 3.0, "b": 4.0}
    entries: list[Any] = [(torch.empty(4, 4), "trunc_normal_", tail, None) for _ in range(3)]
    entries += [
        (torch.empty(4, 4), "trunc_normal_", {}, None),
        (torch.empty(0, 4), "kaiming_normal_", {}, None),
    ]
    entries += [(torch.empty(4, 4, device="meta"), "trunc_normal_", tail, None)]
    ours = warnings_of(lambda: fill_many(entries))
    assert ours == warnings_of(lambda: one_by_one(entries))
    assert len(ours) == 4
    assert {filename for _, _, filename in ours} == {__file__}


def test_the_sign_of_a_zero_is_an_argument() -> None:
    a, b, c = torch.empty(3), torch.empty(3), torch.empty(3)
    fill_many(
        [
            (a, "constant_", {"val": 0.0}, None),
            (b, "constant_", {"val": -0.0}, None),
            (c, "constant_", {"val": 0}, None),
        ]
    )
    assert [bool(torch.signbit(t).any()) for t in (a, b, c)] == [False, True, False]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of fills in each call of _C.fill_many."""
    sizes: list[int] = []
    real = _C.fill_many

    def counting(*arguments: Any) -> None:
        sizes.append(len(arguments[1]))
        real(*arguments)

    monkeypatch.setattr(_C, "fill_many", counting)
    return sizes


def test_fills_side_by_side_are_one_call_into_the_kernels(batches: list[int]) -> None:
    entries: list[Any] = [
        (torch.empty(3, 3), name, {}, None) for name in ("normal_", "ones_", "xavier_normal_") * 3
    ]
    fill_many(entries)
    with torch.device("meta"):  # a default device is also a function mode
        fill_many(entries)
    assert batches == [9, 9]


def test_a_function_mode_sees_the_single_calls(batches: list[int]) -> None:
    seen: list[Any] = []

    class Log(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    mode: Any = Log
    with mode():
        fill_many([(torch.empty(3), "normal_", {}, None), (torch.empty(3), "ones_", {}, None)])
    assert [f for f in seen if f in (init.normal_, init.ones_)] == [init.normal_, init.ones_]
    assert not batches


def test_a_dispatch_mode_sees_the_single_calls(batches: list[int]) -> None:
    seen: list[str] = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    tensors = [torch.empty(3), torch.empty(3)]
    mode: Any = Log
    with mode():
        fill_many([(t, "normal_", {}, Key(1)) for t in tensors])
    assert seen.count("paraminit_ext.normal_.default") == 2
    assert not batches
    assert same(tensors[0], init.normal_(torch.empty(3), generator=Key(1)))


def test_a_tensor_that_overrides_functions_is_called_in_its_place() -> None:
    seen: list[Any] = []

    class Mine(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__module__", "") == "paraminit_ext.init":
                seen.append((func, (kwargs or {})["tensor"]))
                return "answered"
            return Tensor.__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    mine = torch.zeros(3).as_subclass(Mine)
    results: list[Any] = fill_many([(torch.empty(2), "ones_", {}, None), (mine, "normal_", {}, None)])
    assert results[1] == "answered"
    assert seen[0][0] is init.normal_
    assert seen[0][1] is mine


def test_meta_and_fake_tensors_draw_as_the_single_calls_do() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake: Any = FakeTensorMode
    for make in (
        lambda: torch.empty(4, 6, device="meta"),
        lambda: fake().from_tensor(torch.empty(4, 6)),
    ):
        states = []
        for call in (fill_many, one_by_one):
            torch.manual_seed(4)
            tensor = make()
            after = torch.empty(4)
            call([(tensor, "normal_", {}, None), (after, "normal_", {}, None), (tensor, "zeros_", {}, None)])
            states.append((torch.get_rng_state(), after))
        assert torch.equal(states[0][0], states[1][0])
        assert same(states[0][1], states[1][1])


def test_conjugate_views_are_filled_as_they_read() -> None:
    a, b = torch.zeros(5, dtype=torch.complex64), torch.zeros(5, dtype=torch.complex64)
    fill_many([(a.conj(), "normal_", {}, KEY), (a.conj()[:2], "constant_", {"val": 1 + 2j}, None)])
    init.normal_(b.conj(), generator=KEY)
    init.constant_(b.conj()[:2], 1 + 2j)  # type: ignore[arg-type]
    assert bitwise_equal(a, b)


def test_a_compiled_function_fills_many() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(a: Tensor, b: Tensor) -> Tensor:
        fill_many([(a, "normal_", {"std": 0.5}, None), (b, "kaiming_uniform_", {}, None)])
        return a + b

    def eager(a: Tensor, b: Tensor) -> Tensor:
        return init.normal_(a, std=0.5) + init.kaiming_uniform_(b)

    torch.manual_seed(1)
    compiled = [step(torch.empty(3, 4), torch.empty(3, 4)) for _ in range(3)]
    torch.manual_seed(1)
    assert all(same(c, eager(torch.empty(3, 4), torch.empty(3, 4))) for c in compiled)


def test_backward_through_a_tensor_that_was_filled_over_is_an_error() -> None:
    for name in ("normal_", "ones_"):
        x, saved = torch.ones(4, requires_grad=True), torch.ones(4)
        y = (x * saved).sum()
        fill_many([(saved, name, {}, None)])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs /proc/self/schedstat")
def test_small_tensors_share_the_threads() -> None:
    def times() -> dict[str, int]:
        tasks = Path("/proc/self/task").iterdir()
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}

    # Each tensor is too small to be split over threads.
    entries: list[Any] = [(torch.empty(64, 64, dtype=torch.float64), "normal_", {}, KEY) for _ in range(3000)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        busy = []
        for call in (fill_many, one_by_one):
            call(entries)
            time.sleep(0.3)  # idle threads of some runtimes spin for a while
            before = times()
            call(entries)
            spent = sorted((time_ - before.get(name, 0) for name, time_ in times().items()), reverse=True)
            busy.append(sum(part > spent[0] / 8 for part in spent))
    finally:
        torch.set_num_threads(threads)
    assert busy == [2, 1]


# --- on a GPU --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6))
def test_on_cuda_the_values_and_draws_are_those_of_the_single_calls(seed: int) -> None:
    def to_cuda(entry: Any) -> Any:
        target, name, arguments, source = entry
        moved: Any = local(target).detach().to("cuda")
        if isinstance(target, paraminit_ext.Shard):
            moved = shard(moved, target.global_shape, target.shard_offset)
        if name in ("orthogonal_", "delta_orthogonal_"):
            name, arguments = ("normal_", {}) if name == "orthogonal_" else ("zeros_", {})
        return moved, name, arguments, source

    rng = random.Random(seed)
    listed = [to_cuda(random_entry(rng)) for _ in range(100)]
    shapes = [(1 << 20,), (70003,), (5,), (4096, 33)]
    listed += [
        (torch.empty(shape, dtype=dtype, device="cuda"), name, {}, None)
        for shape in shapes
        for dtype in DTYPES
        for name in ("normal_", "uniform_", "trunc_normal_", "ones_")
    ]
    base = torch.zeros(40001, device="cuda")
    listed += [
        (base[place : place + 9973], "normal_", {}, Key(place)) for place in (0, 9973, 9974, 19949, 30001)
    ]
    listed += [
        (base, "ones_", {}, None),
        (base[1:20001], "uniform_", {}, None),
        (base[3:], "constant_", {"val": 0.3}, None),
    ]
    listed.append((torch.empty(100), "normal_", {}, None))  # one on the CPU
    expected = copy.deepcopy(listed)
    torch.cuda.manual_seed(seed)
    torch.manual_seed(seed)
    fill_many(listed)
    states = torch.cuda.get_rng_state(), torch.get_rng_state()
    torch.cuda.manual_seed(seed)
    torch.manual_seed(seed)
    one_by_one(expected)
    assert torch.equal(states[0], torch.cuda.get_rng_state())
    assert torch.equal(states[1], torch.get_rng_state())
    for got, want in zip(listed, expected, strict=True):
        assert bitwise_equal(local(got[0]), local(want[0])), (got[1:], local(got[0]).stride())


@pytest.mark.gpu
@pytest.mark.gpu_alone
def test_on_cuda_each_pair_of_distribution_and_dtype_is_one_launch() -> None:
    entries: list[Any] = [
        (torch.empty(3 + n, 17, dtype=dtype, device="cuda"), name, {}, None)
        for n in range(50)
        for name in ("normal_", "uniform_", "zeros_")
        for dtype in (torch.float32, torch.bfloat16)
    ]
    fill_many(entries)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        fill_many(entries)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if "many_" in event.name and "kernel" in event.name]
    assert len(kernels) == 6


@pytest.mark.gpu
@pytest.mark.gpu_alone
def test_under_capture_each_replay_draws_anew() -> None:
    tensors = [torch.empty(100, device="cuda") for _ in range(3)]
    entries: list[Any] = [(t, "normal_", {}, None) for t in tensors]
    fill_many(entries)
    torch.cuda.manual_seed(5)
    eager = []
    for _ in range(3):
        fill_many(entries)
        eager.append([t.clone() for t in tensors])
    torch.cuda.manual_seed(5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fill_many(entries)
    for expected in eager:
        graph.replay()
        assert all(same(t, e) for t, e in zip(tensors, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.gpu_alone
def test_on_cuda_many_fills_do_not_wait_for_the_device() -> None:
    entries: list[Any] = [(torch.empty(64, 64, device="cuda"), "normal_", {}, None) for _ in range(100)]
    fill_many(entries)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    fill_many(entries)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    expected = copy.deepcopy(entries)
    torch.cuda.manual_seed(1)
    for _ in range(3):  # a call reuses the memory of the previous call's descriptions
        fill_many(entries)
    torch.cuda.manual_seed(1)
    for _ in range(3):
        one_by_one(expected)
    assert all(same(a[0], b[0]) for a, b in zip(entries, expected, strict=True))
