"""The operators as torch sees them: schemas, dispatch, autograd, modes, memory, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import paraminit_ext
import subprocesses
from paraminit_ext import Key, init, reference

ops = torch.ops.paraminit_ext
SEED, OFFSET = 1234567, 89
FILLS: list[tuple[str, tuple[float, ...]]] = [
    ("uniform_", (-1.0, 2.0)),
    ("normal_", (0.5, 0.02)),
    ("trunc_normal_", (0.0, 1.0, -2.0, 2.0)),
    ("sparse_", (0.02, 2)),
    ("orthogonal_", (1.5,)),
    ("words_", ()),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def empty(name: str, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64 if name == "words_" else torch.float32)


def call(name: str, tensor: Tensor, parameters: tuple[float, ...], **place: tuple[int, ...]) -> Tensor:
    whole, start = place.get("whole", ()), place.get("start", ())
    getattr(ops, name).default(tensor, *parameters, SEED, OFFSET, whole, start)
    return tensor


@pytest.mark.parametrize(("name", "parameters"), FILLS)
@pytest.mark.parametrize("overload", ["default", "key"])
def test_opcheck_accepts_every_fill(name: str, parameters: tuple[float, ...], overload: str) -> None:
    key = (SEED, OFFSET) if overload == "default" else (Key(SEED, OFFSET).to_tensor(),)
    op = getattr(getattr(ops, name), overload)
    result = torch.library.opcheck(op, (empty(name, 5, 7), *parameters, *key, (), ()))
    assert set(result.values()) == {"SUCCESS"}


VARIANTS: dict[str, Callable[[], Tensor]] = {
    "float64": lambda: torch.empty(5, 7, dtype=torch.float64),
    "bfloat16": lambda: torch.empty(5, 7, dtype=torch.bfloat16),
    "complex": lambda: torch.empty(5, 7, dtype=torch.complex64),
    "conjugate": lambda: torch.empty(5, 7, dtype=torch.complex64).conj(),
    "view": lambda: torch.empty(9, 12).t()[3:10:2, 1:6],
    "empty": lambda: torch.empty(5, 0),
}


@pytest.mark.parametrize(("name", "parameters"), [f for f in FILLS if f[0] != "words_"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
def test_opcheck_accepts_every_kind_of_tensor(name: str, parameters: tuple[float, ...], variant: str) -> None:
    tensor = VARIANTS[variant]()
    if tensor.is_complex() and name in ("trunc_normal_", "orthogonal_"):
        with pytest.raises(NotImplementedError, match=f"^paraminit_ext.{name}: expected"):
            call(name, tensor, parameters)
        return
    op = getattr(ops, name).default
    result = torch.library.opcheck(op, (tensor, *parameters, SEED, OFFSET, (), ()))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("name", "parameters"), FILLS)
def test_opcheck_accepts_a_shard(name: str, parameters: tuple[float, ...]) -> None:
    key, whole, start = Key(SEED, OFFSET).to_tensor(), (50, 2**33), (6, 2**32)
    if name in ("sparse_", "orthogonal_"):
        whole, start = (50, 20), (6, 7)  # these ops work on the whole matrix
    op = getattr(ops, name).key
    result = torch.library.opcheck(op, (empty(name, 5, 7), *parameters, key, whole, start))
    assert set(result.values()) == {"SUCCESS"}


def test_opcheck_accepts_the_key_ops() -> None:
    result = torch.library.opcheck(ops.fold_in.default, (Key(SEED, OFFSET).to_tensor(), 5))
    assert set(result.values()) == {"SUCCESS"}
    tests = ("test_schema", "test_faketensor")
    result = torch.library.opcheck(
        ops.draw_key.default, (), {"device": torch.device("cpu")}, test_utils=tests
    )
    assert set(result.values()) == {"SUCCESS"}
    result = torch.library.opcheck(ops.draw_key.like, (torch.empty(3),), test_utils=tests)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("name", "parameters"), FILLS)
def test_a_key_tensor_gives_what_the_integers_give(name: str, parameters: tuple[float, ...]) -> None:
    expected = call(name, empty(name, 9, 11), parameters)
    got = empty(name, 9, 11)
    getattr(ops, name).key(got, *parameters, Key(SEED, OFFSET).to_tensor(), (), ())
    assert torch.equal(got, expected)
    getattr(ops, name).key(got, *parameters, Key(SEED, OFFSET + 1).to_tensor(), (), ())
    assert not torch.equal(got, expected)
    getattr(ops, name).key(got, *parameters, Key(SEED, OFFSET).to_tensor().view(torch.int64), (), ())
    assert torch.equal(got, expected)


def test_fold_in_on_a_tensor_is_that_of_a_key() -> None:
    for data in (0, 1, 2**40, -1):  # an op takes u64 as two's complement
        folded = ops.fold_in.default(Key(SEED, 2**64 - 3).to_tensor(), data)
        assert Key.from_tensor(folded) == Key(SEED, 2**64 - 3).fold_in(data % 2**64)


def test_a_key_whose_memory_was_freed_is_refused() -> None:
    key = Key(SEED, OFFSET).to_tensor()
    key.untyped_storage().resize_(0)
    tensor = torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"^paraminit_ext\.normal_: expected storage"):
        ops.normal_.key(tensor, 0.0, 1.0, key, (), ())
    with pytest.raises(RuntimeError, match=r"^paraminit_ext\.fold_in: expected storage"):
        ops.fold_in.default(key, 1)
    assert not tensor.any()


def test_draw_key_takes_the_draw_of_a_fill() -> None:
    torch.manual_seed(3)
    key = Key.from_tensor(ops.draw_key.default(device=torch.device("cpu")))
    torch.manual_seed(3)
    assert torch.equal(init.normal_(torch.empty(50)), init.normal_(torch.empty(50), generator=key))
    generator = torch.Generator().manual_seed(3)
    assert Key.from_tensor(ops.draw_key.default(device=torch.device("cpu"), generator=generator)) == key


@pytest.mark.parametrize(("name", "parameters"), FILLS)
def test_the_version_counter_moves_by_one(name: str, parameters: tuple[float, ...]) -> None:
    tensor = empty(name, 4, 4)
    before = tensor._version
    call(name, tensor, parameters)
    assert tensor._version == before + 1


def test_a_tensor_that_requires_grad_is_refused_under_grad_mode() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError, match="requires grad|require grad"):
        call("normal_", parameter, (0.0, 1.0))
    assert not parameter.any()
    with torch.no_grad():
        call("normal_", parameter, (0.0, 1.0))
    assert parameter.all()
    assert parameter.is_leaf


def test_backward_through_a_tensor_that_was_filled_over_is_an_error() -> None:
    x = torch.ones(4, requires_grad=True)
    saved = torch.ones(4)
    y = (x * saved).sum()
    init.normal_(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_inference_tensors_are_filled_in_inference_mode_only() -> None:
    with torch.inference_mode():
        tensor = call("normal_", torch.zeros(4), (0.0, 1.0))
        assert tensor.all()
    before = tensor.clone()
    with pytest.raises(RuntimeError, match="inference"):
        call("normal_", tensor, (0.0, 1.0))
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(("name", "parameters"), FILLS)
def test_meta_tensors_are_checked_and_left(name: str, parameters: tuple[float, ...]) -> None:
    call(name, empty(name, 3, 4).to("meta"), parameters)
    with pytest.raises(NotImplementedError, match=name):
        call(name, torch.empty(3, dtype=torch.int32, device="meta"), parameters)


@pytest.mark.parametrize("name", ["normal_", "uniform_", "trunc_normal_"])
def test_a_compiled_function_that_fills_draws_anew_at_each_call(name: str) -> None:
    torch._dynamo.reset()
    fill: Callable[..., Tensor] = getattr(init, name)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(w: Tensor) -> Tensor:
        return fill(w) * 2.0

    torch.manual_seed(11)
    compiled = [
        step(torch.empty(6, 5)) for _ in range(12)
    ]  # more than the eight recompilations that torch allows
    torch.manual_seed(11)
    eager = [fill(torch.empty(6, 5)) * 2.0 for _ in range(12)]
    assert all(torch.equal(c, e) for c, e in zip(compiled, eager, strict=True))
    assert not torch.equal(compiled[0], compiled[1])


def test_symbolic_shapes_trace() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def fill(w: Tensor) -> Tensor:
        return init.normal_(w, generator=Key(5))

    for rows in (3, 8, 21):
        assert torch.equal(fill(torch.empty(rows, 4)), init.normal_(torch.empty(rows, 4), generator=Key(5)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_and_negative_views_are_filled_as_they_read(dtype: torch.dtype) -> None:
    expected = init.normal_(torch.empty(5, 3, dtype=dtype), generator=Key(2))
    assert torch.equal(init.normal_(torch.empty(5, 3, dtype=dtype).conj(), generator=Key(2)), expected)
    imaginary = torch.zeros(5, 3, dtype=dtype).conj().imag
    assert imaginary.is_neg()
    real = init.normal_(torch.empty(5, 3, dtype=expected.real.dtype), generator=Key(2))
    assert torch.equal(init.normal_(imaginary, generator=Key(2)), real)


@pytest.mark.parametrize(
    ("shape", "strides", "overlaps"),
    [
        ((4, 4), (0, 1), True),
        ((3, 3), (1, 1), True),  # a sliding window
        ((2, 2), (2, 3), False),  # interleaved, no two elements at one address
        ((3, 3), (2, 3), False),
        ((4, 3), (2, 3), True),  # 3 * 2 = 2 * 3
        ((3, 4, 5), (20, 5, 1), False),
        ((3, 4, 5), (19, 5, 1), True),
        ((1, 7), (0, 1), False),
    ],
)
def test_overlap_is_decided_exactly(shape: tuple[int, ...], strides: tuple[int, ...], overlaps: bool) -> None:
    base = torch.zeros(100)
    view = base.as_strided(shape, strides)
    addresses = [
        sum(i * s for i, s in zip(index, strides, strict=True))
        for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist()
    ]
    assert overlaps == (len(set(addresses)) < len(addresses))
    if overlaps:
        with pytest.raises(RuntimeError, match="memory"):
            call("normal_", view, (0.0, 1.0))
        assert not base.any()
    else:
        expected = call("normal_", torch.empty(shape), (0.0, 1.0))
        assert torch.equal(call("normal_", view, (0.0, 1.0)), expected)


@pytest.mark.parametrize(("name", "parameters"), FILLS)
@pytest.mark.parametrize(
    ("whole", "start"),
    [
        ((4, 4, 1), (0, 0, 0)),
        ((4,), (0,)),
        ((3, 4), (0, 0)),
        ((8, 8), (5, 0)),
        ((8, 8), (-1, 0)),
        ((2**40, 2**40), (0, 0)),
        ((8, 8), ()),
    ],
)
def test_a_shard_that_does_not_fit_is_refused(
    name: str, parameters: tuple[float, ...], whole: tuple[int, ...], start: tuple[int, ...]
) -> None:
    tensor = empty(name, 4, 4).zero_()
    with pytest.raises(ValueError, match=f"paraminit_ext.{name}: expected") as caught:
        call(name, tensor, parameters, whole=whole, start=start)
    assert "\n" not in str(caught.value)
    assert not tensor.any()


@pytest.mark.parametrize(
    "key",
    [
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2),
        torch.zeros(3, dtype=torch.int64).view(torch.uint64),
        torch.zeros(2, dtype=torch.int64, device="meta").view(torch.uint64),
    ],
)
def test_a_key_of_another_form_is_refused(key: Tensor) -> None:
    tensor = torch.zeros(4)
    with pytest.raises((ValueError, RuntimeError)):
        ops.normal_.key(tensor, 0.0, 1.0, key, (), ())
    assert not tensor.any()


def test_words_are_those_of_philox(cpu_capability: str) -> None:
    got = call("words_", torch.empty(37, 3, dtype=torch.int64), ()).flatten().tolist()
    for i, word in enumerate(got):
        words = paraminit_ext._C.philox((OFFSET + i // 4, 0, 0, 0), (SEED, 0))
        assert word == words[i % 4]


@pytest.mark.parametrize("wrap", [2**32, 2**64])
def test_the_counter_may_wrap_anywhere_in_a_block(wrap: int, cpu_capability: str) -> None:
    # Two blocks of the widest vectors, plus one group.
    before, after = 97, 200
    expected = [w for n in range(-before, after) for w in reference.words(Key(SEED, (wrap + n) % 2**64), 0)]
    for back in range(before + 1):
        got = torch.empty(4 * after, dtype=torch.int64)
        ops.words_.key(got, Key(SEED, (wrap - back) % 2**64).to_tensor(), (), ())
        first = 4 * (before - back)
        assert got.tolist() == expected[first : first + 4 * after], back


def test_a_fill_releases_the_interpreter_lock() -> None:
    tensor = torch.empty(1 << 27, dtype=torch.bfloat16)
    state = {"filling": False, "turns": 0}
    done = threading.Event()

    def fill() -> None:
        state["filling"] = True
        init.normal_(tensor)
        state["filling"] = False
        done.set()

    thread = threading.Thread(target=fill)
    thread.start()
    while not done.is_set():
        state["turns"] += state["filling"]
    thread.join()
    # If the fill held the lock, this thread could run only between two bytecodes of the other thread.
    assert state["turns"] > 100


def test_a_draw_that_waits_for_its_generator_releases_the_interpreter_lock() -> None:
    generator = torch.Generator()
    tensor = torch.empty(1 << 26)
    tensor.fill_(1.0)  # fault in the pages
    waited = []

    def wait() -> None:
        begin = time.perf_counter()
        init.normal_(torch.empty(4), generator=generator)
        waited.append(time.perf_counter() - begin)

    # torch's own fill holds the generator's lock until it ends.
    holder = threading.Thread(target=lambda: tensor.normal_(generator=generator))
    waiter = threading.Thread(target=wait)
    holder.start()
    time.sleep(0.02)
    longest, last = 0.0, time.perf_counter()
    waiter.start()
    while waiter.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    holder.join()
    # If the draw held the interpreter lock, this thread would stand still for the whole wait.
    assert longest < waited[0] / 2


def thread_times() -> dict[str, int]:
    """Return the CPU time of each thread of this process in nanoseconds."""
    return {
        task.name: int((task / "schedstat").read_text().split()[0])
        for task in Path("/proc/self/task").iterdir()
    }


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs /proc/self/schedstat")
def test_a_fill_runs_on_torchs_own_threads() -> None:
    threads = torch.get_num_threads()
    try:
        tensor = torch.empty(1 << 27, dtype=torch.bfloat16)
        for count in (2, 1):
            torch.set_num_threads(count)
            init.normal_(tensor.fill_(1.0))  # start the threads
            time.sleep(0.3)  # idle threads of some runtimes spin for a while
            before = thread_times()
            init.normal_(tensor)
            after = thread_times()
            assert set(after) <= set(before), "the fill started threads of its own"
            spent = sorted((after[name] - before[name] for name in after), reverse=True)
            # With two threads each does half of the work. No other thread does more than a hundredth of it.
            busy = sum(time > spent[0] / 4 for time in spent)
            assert busy == count
    finally:
        torch.set_num_threads(threads)
    maps = Path("/proc/self/maps").read_text().split()
    assert len({word for word in maps if "libgomp" in word}) == 1


PEAK = """
import resource, sys, torch
from paraminit_ext import Key, init

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10

tensors = [torch.ones(64 << 20, dtype=torch.bfloat16), torch.ones(4096, 4096).t()]
for t in tensors:
    init.normal_(t[:64])  # create threads and stacks, load code
    init.trunc_normal_(t[:64])
before = peak()
for t in tensors:
    init.normal_(t, generator=Key(1)), init.uniform_(t), init.trunc_normal_(t)
print(peak() - before)
"""


def test_a_fill_takes_no_memory() -> None:
    (taken,) = subprocesses.lines(PEAK)
    # The larger fills touch new pages of code and stack. A copy of a tensor would take 64 MiB or more.
    assert int(taken) <= 1 << 20
