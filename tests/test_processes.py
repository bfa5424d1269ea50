"""Fills in a process with other threads, forks, signals, floating-point modes, or too little memory."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import paraminit_ext
import subprocesses
from fills import same
from paraminit_ext import Key, init

KEY = Key(0x1234567890ABCDEF, 2**64 - 1000)
# Each fill is large enough for several threads and takes its own path through the code.
FILLS: dict[str, Callable[[Key | torch.Generator], Tensor]] = {
    "uniform_": lambda g: init.uniform_(torch.empty(700, 300), -0.3, 0.55, generator=g),
    "normal_": lambda g: init.normal_(torch.empty(300, 700).t(), 0.1, 0.7, generator=g),
    "trunc_normal_": lambda g: init.trunc_normal_(torch.empty(200_000, dtype=torch.bfloat16), generator=g),
    "float64": lambda g: init.normal_(torch.empty(200_000, dtype=torch.float64), generator=g),
    "sparse_": lambda g: init.sparse_(torch.empty(500, 300), 0.3, generator=g),
    "orthogonal_": lambda g: init.orthogonal_(torch.empty(200, 300), generator=g),
}


# ----------------------------------------------------------------------------------------
# Threads
# ----------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_fills_at_the_same_time_are_those_one_after_the_other(pool: ThreadPoolExecutor) -> None:
    # Without orthogonal_: it sums in an order that depends on the number of threads, a per-thread setting.
    jobs = [
        (fill, KEY.fold_in(i)) for i in range(12) for name, fill in FILLS.items() if name != "orthogonal_"
    ]
    expected = [fill(key) for fill, key in jobs]
    got = list(pool.map(lambda job: job[0](job[1]), jobs))
    assert all(same(g, e) for g, e in zip(got, expected, strict=True))


def test_each_of_many_threads_takes_a_whole_draw_from_one_generator(pool: ThreadPoolExecutor) -> None:
    def fill(generator: torch.Generator) -> bytes:
        return init.normal_(torch.empty(64), generator=generator).numpy().tobytes()

    count = 4000
    shared, serial = (torch.Generator().manual_seed(7) for _ in range(2))
    got = list(pool.map(lambda _: fill(shared), range(count)))
    expected = [fill(serial) for _ in range(count)]
    # Any thread may take any draw. A draw mixed from two draws, or a draw taken twice, is not expected.
    assert sorted(got) == sorted(expected)
    assert torch.equal(shared.get_state(), serial.get_state())


def test_a_change_of_the_instruction_set_during_a_fill_changes_no_value(pool: ThreadPoolExecutor) -> None:
    names = paraminit_ext.available_cpu_capabilities()
    before = paraminit_ext.cpu_capability()
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for name in names:
                paraminit_ext.set_cpu_capability(name)

    expected = {name: fill(KEY) for name, fill in FILLS.items()}
    changing = pool.submit(change)
    try:
        assert all(same(FILLS[name](KEY), expected[name]) for _ in range(3) for name in FILLS)
    finally:
        done.set()
        changing.result()
        paraminit_ext.set_cpu_capability(before)


HASH = """
import hashlib, torch
from paraminit_ext import Key, init
torch.set_num_threads(3)
fills = (init.normal_(torch.empty(700, 300), generator=Key(1)),
         init.uniform_(torch.empty(300, 700).t(), generator=Key(1)),
         init.sparse_(torch.empty(500, 300), 0.3, generator=Key(1)))
print(hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in fills)).hexdigest())
"""


def test_a_cap_on_threads_changes_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        exec(HASH, {})
    finally:
        torch.set_num_threads(before)
    here = capsys.readouterr().out.splitlines()
    # The OpenMP runtime gives fewer threads than torch requests, down to one.
    assert subprocesses.lines(HASH, OMP_THREAD_LIMIT="2") == here
    assert subprocesses.lines(HASH, OMP_THREAD_LIMIT="1") == here


# ----------------------------------------------------------------------------------------
# Forks
# ----------------------------------------------------------------------------------------

# The child compares with NumPy, because torch's own functions hang there. Fills must not hang.
FORK = """
import os, signal, sys, time, torch
from paraminit_ext import Key, init
torch.set_num_threads(4)
n = 300_000
fills = (lambda: init.normal_(torch.empty(n), generator=Key(1)),
         lambda: init.uniform_(torch.empty(700, 300).t(), generator=Key(1)),
         lambda: init.trunc_normal_(torch.empty(n, dtype=torch.float64), generator=Key(1)),
         lambda: init.normal_(torch.empty(n), 3.0, 0.0, generator=Key(1)),
         lambda: init.sparse_(torch.empty(500, 300), 0.3, generator=Key(1)),
         lambda: init.orthogonal_(torch.empty(300, 200), generator=Key(1)),
         lambda: init.orthogonal_(torch.empty(300, 200, dtype=torch.float64), generator=Key(1)))
seen = [fill().numpy() for fill in fills]  # OpenMP has threads from here on

def child(depth):
    for _ in range(20):
        for fill, expected in zip(fills, seen):
            # orthogonal_ may sum in another order; the others may not differ in a bit.
            assert abs(fill().numpy() - expected).max() <= (1e-6 if fill in fills[-2:] else 0.0)
    assert torch.get_num_threads() == 4
    try:
        init.uniform_(torch.empty(n), 1.0, 0.0)
    except RuntimeError as error:
        assert str(error).startswith("paraminit_ext.uniform_: expected"), error
    else:
        raise AssertionError("not refused")
    tasks = len(os.listdir("/proc/self/task"))
    assert tasks <= 8, tasks  # threads of the last fill may still be ending
    if depth:
        parent(depth - 1)

def parent(depth):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends a child that hangs
        try:
            child(depth)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child at depth {depth} ended with {status}"

parent(1)

# In the same place torch's own function waits for threads that no longer exist.
torch.ones(1 << 20).add_(1)
pid = os.fork()
if pid == 0:
    signal.alarm(2)
    torch.ones(1 << 20).add_(1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert all((fill().numpy() == expected).all() for fill, expected in zip(fills, seen))
print("sound")
"""


def test_fills_after_a_fork_do_not_hang_and_are_the_parents() -> None:
    # The first line shows that this test can fail: a plain parallel region hangs until the alarm.
    assert subprocesses.lines(FORK) == [str(-signal.SIGALRM), "sound"]


LOADER = """
import torch
from paraminit_ext import Key, init

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, i):
        return init.normal_(torch.empty(200_000), generator=Key(i))

if __name__ == "__main__":
    expected = [Data()[i] for i in range(6)]
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
    print("sound")
"""


def test_the_workers_of_a_data_loader_fill() -> None:
    assert subprocesses.lines(LOADER)[-1] == "sound"


# ----------------------------------------------------------------------------------------
# Signals
# ----------------------------------------------------------------------------------------

INTERRUPT = """
import os, signal, threading, time, torch
from paraminit_ext import Key, init

# A shell makes its background jobs ignore SIGINT, and their children inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)
expected = init.trunc_normal_(torch.empty(1 << 24, dtype=torch.bfloat16), generator=Key(1))
tensor = torch.zeros_like(expected)
sent = []

def interrupt():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.02, interrupt).start()
start = time.monotonic()
try:
    init.trunc_normal_(tensor, generator=Key(1))
    time.sleep(1)
except KeyboardInterrupt:
    print(start < sent[0], time.monotonic() - sent[0])
assert torch.equal(tensor, expected)
assert torch.equal(init.trunc_normal_(tensor.zero_(), generator=Key(1)), expected)
"""


def test_an_interrupt_during_a_fill_is_raised_after_it_and_the_tensor_is_whole() -> None:
    # The scalar path takes tens of nanoseconds per element, so the fill is far from done after 20 ms.
    (line,) = subprocesses.lines(INTERRUPT, PARAMINIT_CPU_CAPABILITY="baseline")
    started, waited = line.split()
    assert started == "True"
    assert float(waited) > 0.02, "the interrupt came when the fill was over"


# ----------------------------------------------------------------------------------------
# The floating-point unit's modes
# ----------------------------------------------------------------------------------------

# The rounding modes of <fenv.h>, on x86-64 and on aarch64.
ROUNDINGS = {"x86_64": (0x400, 0x800, 0xC00), "aarch64": (0x400000, 0x800000, 0xC00000)}


def in_a_new_thread(call: Callable[[], None]) -> None:
    """Run the call in a new thread. Its OpenMP threads start later and inherit its floating-point modes."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.skipif(os.uname().machine not in ROUNDINGS, reason="needs x86-64 or aarch64")
@pytest.mark.parametrize("direction", range(3))
def test_another_rounding_mode_changes_no_value_on_any_thread(direction: int, cpu_capability: str) -> None:
    libm: Any = ctypes.CDLL("libm.so.6")
    mode = ROUNDINGS[os.uname().machine][direction]
    expected = {name: fill(KEY) for name, fill in FILLS.items() if name != "orthogonal_"}
    values = torch.linspace(-1.0, 1.0, 200_000)
    nearest = values * 0.1

    def fill_all() -> None:
        assert libm.fesetround(mode) == 0
        products = values * 0.1  # the first parallel region of this thread: its threads inherit the mode
        got = {name: FILLS[name](KEY) for name in expected}
        assert libm.fegetround() == mode
        assert libm.fesetround(0) == 0
        assert all(same(got[name], expected[name]) for name in expected)
        parts = zip(products.chunk(4), nearest.chunk(4), strict=True)
        assert all(not torch.equal(a, b) for a, b in parts), "the mode was not set"

    in_a_new_thread(fill_all)


def test_flushing_of_subnormals_on_every_thread_changes_no_value(cpu_capability: str) -> None:
    def tiny() -> Tensor:
        return init.normal_(torch.empty(200_000), 0.0, 1e-39, generator=KEY)

    expected, subnormal = tiny(), torch.full((200_000,), 1e-39)

    def fill() -> None:
        assert torch.set_flush_denormal(True)
        flushed = subnormal * 0.5
        got = tiny()
        assert torch.set_flush_denormal(False)
        assert same(got, expected)
        assert not flushed.any(), "the mode was not set"

    in_a_new_thread(fill)


# ----------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------

# Allow one more megabyte of address space in each turn, until the fill succeeds.
STARVE = """
import resource, torch
from paraminit_ext import Key, init

# Use up the free heap that the import of torch left, so that larger blocks come from the system.
ballast = [torch.empty(15000) for _ in range(2000)]

def starve(name, dtype, shape, *arguments):
    def fill(tensor, extra=None):
        if extra is not None:
            taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + extra, resource.RLIM_INFINITY))
        try:
            return getattr(init, name)(tensor, *arguments, generator=Key(1))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    fill(torch.empty(300, 300, dtype=dtype))  # create threads and their stacks
    tensor, refused, extra = torch.full(shape, -7.0, dtype=dtype), 0, 0
    while True:
        try:
            fill(tensor, extra)
            break
        except RuntimeError as error:
            print(name, type(error).__name__, repr(str(error)))
            refused, extra = refused + 1, extra + (1 << 20)
    again = fill(torch.empty(shape, dtype=dtype))
    # Products may be summed in another order if memory lies at another address.
    assert (tensor.double() - again.double()).abs().max() <= (1e-2 if name == "orthogonal_" else 0.0)
    assert 0 < refused < 100, (name, refused)

starve("orthogonal_", torch.bfloat16, (1024, 1024))
starve("orthogonal_", torch.float32, (2048, 1024))
starve("sparse_", torch.float32, (4096, 1024), 0.3)
"""


def test_a_fill_that_finds_no_memory_says_so_in_one_line_and_the_process_goes_on() -> None:
    says = {
        "sparse_": (
            "OutOfMemoryError",
            "paraminit_ext.sparse_: expected memory for temporary lists, got none.",
        ),
        "orthogonal_": (
            "OutOfMemoryError",
            "paraminit_ext: expected memory for a temporary tensor of shape",
        ),
    }
    # With a fixed threshold malloc returns each large block when it is freed, so no block is reused. A second
    # arena would serve from the 64 MiB that it reserves, which count as taken.
    for line in subprocesses.lines(STARVE, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_ARENA_MAX="1"):
        name, error, message = line.split(" ", 2)
        assert error == says[name][0]
        assert says[name][1] in message
        assert "\\n" not in message
