"""Fills on a GPU: the CPU's bits, on any stream, in any layout, past 2^32 elements, and under capture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from conftest import GPU_SHARE
from fills import DTYPES, FILLS, KEY, LAYOUTS, Fill, bits, filled, same, typed
from paraminit_ext import Key, fill_many, init, shard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning"),
]
SHAPES = [
    (1,),
    (3,),
    (4,),
    (5,),
    (7,),
    (8,),
    (9,),
    (17, 13),
    (64, 64),
    (129, 257),
    (1 << 20,),
    ((1 << 22) + 3,),
]


def on_cuda(tensor: Tensor) -> Tensor:
    """Return a tensor of the same layout on the GPU, filled with -7."""
    strided = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return strided.fill_(-7.0)


@pytest.mark.first
@typed
def test_every_family_of_kernels_writes_the_cpus_bits(dtype: torch.dtype) -> None:
    shape = (1 << 20) + 77  # tiles, packets and a tail
    for name, fill in FILLS.items():
        expected = fill(torch.empty(shape, dtype=dtype), KEY)
        assert same(fill(on_cuda(expected), KEY).cpu(), expected), name
        strided = on_cuda(LAYOUTS["every third"](dtype))
        assert same(fill(strided, KEY).cpu(), fill(torch.empty(130, 67, dtype=dtype), KEY)), name
    matrix = torch.empty(3000, 70, dtype=dtype)
    for sparsity in (0.3, 0.99):
        expected = init.sparse_(matrix, sparsity, generator=KEY).clone()
        assert same(init.sparse_(on_cuda(matrix), sparsity, generator=KEY).cpu(), expected)
    for name in ("normal_", "uniform_", "trunc_normal_", "ones_"):
        tensors = [torch.empty(n, 33, dtype=dtype) for n in (1, 5, 64, 900)]
        there = list(map(on_cuda, tensors))
        for listed in (tensors, there):
            fill_many([(tensor, name, {}, KEY.fold_in(n)) for n, tensor in enumerate(listed)])
        assert all(same(a.cpu(), b) for a, b in zip(there, tensors, strict=True)), name


@pytest.mark.first
@typed
def test_a_key_in_the_gpus_memory_gives_the_bits_of_the_same_key_by_value(dtype: torch.dtype) -> None:
    ops = torch.ops.paraminit_ext
    key = KEY.to_tensor().to("cuda")
    for numel in (1000, (1 << 20) + 77):
        for name, parameters in (
            ("uniform_", (-0.3, 0.55)),
            ("normal_", (0.0, 0.02)),
            ("trunc_normal_", (0.0, 1.0, -2.0, 2.0)),
            ("trunc_normal_", (0.1, 1.0, -3.0, 4.0)),
            ("trunc_normal_", (0.0, 1.0, 1.75, 9.0)),
        ):
            tensor = torch.empty(numel, dtype=dtype, device="cuda")
            getattr(ops, name).key(tensor, *parameters, key, [], [])
            expected = torch.empty(numel, dtype=dtype)
            getattr(init, name)(expected, *parameters, generator=KEY)
            assert same(tensor.cpu(), expected), (name, parameters)


@pytest.mark.first
def test_raw_words_on_the_gpu_are_the_cpus() -> None:
    words, expected = torch.empty(37, 101, dtype=torch.int64, device="cuda"), torch.empty(37, 101).long()
    for tensor in (words, expected):
        torch.ops.paraminit_ext.words_.default(tensor, 77, -5, [], [])
    assert torch.equal(words.cpu(), expected)


@typed
@filled
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_a_cuda_fill_is_the_cpus(fill: Fill, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    expected = fill(torch.empty(shape, dtype=dtype), KEY)
    assert same(fill(on_cuda(expected), KEY).cpu(), expected)


@typed
@filled
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_strided_cuda_fill_is_the_cpus(
    fill: Fill, dtype: torch.dtype, layout: Callable[[torch.dtype], Tensor]
) -> None:
    assert same(fill(on_cuda(layout(dtype)), KEY).cpu(), fill(torch.empty(130, 67, dtype=dtype), KEY))


def test_small_fills_of_every_kind_for_the_sanitizer() -> None:
    # `make gpu` runs this test under compute-sanitizer, where each launch is slow.
    for dtype in DTYPES:
        for fill in FILLS.values():
            for layout in ("every third", "transposed"):
                tensor = on_cuda(LAYOUTS[layout](dtype))
                assert same(fill(tensor, KEY).cpu(), fill(torch.empty(130, 67, dtype=dtype), KEY))
        expected = init.sparse_(torch.empty(33, 17, dtype=dtype), 0.3, generator=KEY)
        assert same(init.sparse_(on_cuda(expected), 0.3, generator=KEY).cpu(), expected)
    # Long lists: the kernel counts digits in shared memory, between barriers.
    expected = init.sparse_(torch.empty(100_000, 3), 0.5, generator=KEY)
    assert same(init.sparse_(on_cuda(expected), 0.5, generator=KEY).cpu(), expected)


@typed
@filled
def test_offsets_and_lengths_leave_the_rest_alone(fill: Fill, dtype: torch.dtype) -> None:
    whole = fill(torch.empty(600, dtype=dtype), KEY)
    for length in (1, 2, 5, 31, 32, 255, 256, 257, 511, 600):
        for place in range(9):
            backing = torch.full((length + 20,), -7.0, dtype=dtype, device="cuda")
            fill(backing[place : place + length], KEY)
            assert same(backing[place : place + length].cpu(), whole[:length])
            assert (backing[:place] == -7.0).all()
            assert (backing[place + length :] == -7.0).all()


@filled
def test_cuda_shards_are_the_parts_of_the_cpus_whole(fill: Fill) -> None:
    for dtype in DTYPES:
        whole = fill(torch.empty(37, 131, dtype=dtype), KEY)
        for (r0, r1), (c0, c1) in (
            ((0, 5), (0, 131)),
            ((5, 37), (0, 131)),
            ((0, 37), (1, 64)),
            ((0, 37), (130, 131)),
        ):
            part = torch.empty(r1 - r0, c1 - c0, dtype=dtype, device="cuda")
            fill(shard(part, (37, 131), (r0, c0)), KEY)
            assert same(part.cpu(), whole[r0:r1, c0:c1])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=lambda d: str(d)[6:])
def test_a_complex_cuda_fill_is_the_cpus(dtype: torch.dtype) -> None:
    expected = init.normal_(torch.empty(33, 5, dtype=dtype), 0.25, 2.0, generator=KEY)
    got = init.normal_(torch.empty(33, 5, dtype=dtype, device="cuda"), 0.25, 2.0, generator=KEY)
    assert same(torch.view_as_real(got.cpu()), torch.view_as_real(expected))


SPARSE_DTYPES = [*DTYPES, torch.complex64, torch.complex128]
SPARSE_CASES = [
    ((5, 3), 0.5),
    ((129, 57), 0.3),
    ((64, 256), 0.1),  # whole packets
    ((1000, 1), 0.01),
    ((3, 5000), 0.4),
    ((100_000, 16), 0.5),  # lists that are too long to compare all pairs
    ((300, 7), 0.0),
    ((300, 7), 1.0),
    ((300, 7), 0.997),  # one element of a column stays
]


@pytest.mark.parametrize("dtype", SPARSE_DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("shape", "sparsity"), SPARSE_CASES, ids=str)
def test_a_sparse_cuda_fill_is_the_cpus(shape: tuple[int, int], sparsity: float, dtype: torch.dtype) -> None:
    expected = init.sparse_(torch.empty(shape, dtype=dtype), sparsity, generator=KEY)
    for layout in (torch.empty(shape, dtype=dtype), torch.empty(shape[::-1], dtype=dtype).t()):
        assert torch.equal(init.sparse_(on_cuda(layout), sparsity, generator=KEY).cpu(), expected)
    rows, columns = shape[0] // 2, shape[1] // 3
    part = torch.empty(shape[0] - rows, shape[1] - columns, dtype=dtype, device="cuda")
    init.sparse_(shard(part, shape, (rows, columns)), sparsity, generator=KEY)
    assert torch.equal(part.cpu(), expected[rows:, columns:])


def test_a_sparse_cuda_fill_of_many_panels_is_the_cpus() -> None:
    # With 16 rows, each column has a list of 16 words, so 2^20 columns exceed one panel of 64 MiB.
    expected = init.sparse_(torch.empty(16, 1 << 20), 0.3, generator=KEY)
    assert same(init.sparse_(torch.empty(16, 1 << 20, device="cuda"), 0.3, generator=KEY).cpu(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (96, 64), (64, 96), (130, 130), (700, 300), (2048, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_an_orthogonal_cuda_matrix_is_the_cpus_to_rounding(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    allowed = torch.backends.cuda.matmul.allow_tf32
    expected = init.orthogonal_(torch.empty(shape, dtype=dtype), generator=KEY)
    # Both come from the same Gaussian bits. By the contract, each is within 8 u sqrt(n) of the exact matrix.
    limit = 2 * 8 * torch.finfo(dtype).eps / 2 * max(shape) ** 0.5
    library = torch.backends.cuda.preferred_blas_library()
    try:
        for tf32, preferred in ((False, library), (True, "cublas"), (True, "cublaslt")):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.backends.cuda.preferred_blas_library(preferred)
            got = init.orthogonal_(torch.empty(shape, dtype=dtype, device="cuda"), generator=KEY).cpu()
            assert float((got - expected).abs().max()) <= limit
            assert torch.backends.cuda.matmul.allow_tf32 == tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cuda.preferred_blas_library(library)


def test_subnormal_values_survive_the_conversion_to_16_bits() -> None:
    for dtype, std in ((torch.bfloat16, 1e-39), (torch.float16, 1e-7), (torch.float32, 1e-42)):
        expected = init.normal_(torch.empty(100_000, dtype=dtype), 0.0, std, generator=KEY)
        assert expected.any()
        assert same(
            init.normal_(torch.empty(100_000, dtype=dtype, device="cuda"), 0.0, std, generator=KEY).cpu(),
            expected,
        )


@pytest.mark.large
@typed
def test_a_tensor_past_2_to_the_32_elements_is_right_at_both_ends(dtype: torch.dtype) -> None:
    numel = 2**32 + 1001
    free, total = torch.cuda.mem_get_info()
    if min(free, GPU_SHARE * total) < numel * dtype.itemsize + (1 << 28):
        pytest.skip("needs the memory of one tensor of 2^32 elements on the GPU")
    tensor = torch.empty(numel, dtype=dtype, device="cuda")
    init.normal_(tensor, generator=KEY)
    for place in (0, 2**31 - 50, 2**32 - 50, numel - 100):
        expected = torch.empty(100, dtype=dtype)
        init.normal_(shard(expected, (numel,), (place,)), generator=KEY)
        assert same(tensor[place : place + 100].cpu(), expected)


@pytest.mark.first
@pytest.mark.gpu_alone
def test_the_draw_of_a_cuda_generator_is_the_contracts() -> None:
    generator = torch.Generator("cuda").manual_seed(77)
    generator.set_offset(40)
    key = Key(77, 10).fold_in(0)
    expected = init.normal_(torch.empty(100), generator=key)
    assert same(init.normal_(torch.empty(100, device="cuda"), generator=generator).cpu(), expected)
    assert generator.get_offset() == 44
    torch.cuda.manual_seed(77)
    first = init.normal_(torch.empty(100, device="cuda")).cpu()
    assert same(first, init.normal_(torch.empty(100), generator=Key(77).fold_in(0)))


def test_one_cpu_generator_gives_the_same_weights_on_either_device() -> None:
    cpu = init.normal_(torch.empty(100), generator=torch.Generator().manual_seed(5))
    assert same(
        init.normal_(torch.empty(100, device="cuda"), generator=torch.Generator().manual_seed(5)).cpu(), cpu
    )


@pytest.mark.first
@pytest.mark.gpu_alone
def test_each_replay_of_a_graph_draws_anew_as_eager_calls_do() -> None:
    tensor = torch.empty(1000, device="cuda")
    init.normal_(tensor)  # loads the kernels
    torch.cuda.manual_seed(5)
    eager = [init.normal_(torch.empty(1000, device="cuda")).clone() for _ in range(4)]
    torch.cuda.manual_seed(5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        init.normal_(tensor)
    for expected in eager:
        graph.replay()
        assert same(tensor, expected)


@pytest.mark.gpu_alone
def test_a_key_under_capture_repeats() -> None:
    tensor = torch.empty(1000, device="cuda")
    expected = init.normal_(torch.empty(1000, device="cuda"), generator=KEY)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        init.normal_(tensor, generator=KEY)
    for _ in range(2):
        tensor.zero_()
        graph.replay()
        assert same(tensor, expected)


# The first call of the process is under capture, which then loads the kernels and queries their occupancy.
CAPTURED_FIRST = """
import torch
from paraminit_ext import Key, init
tensor = torch.zeros(1 << 20, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    init.{name}(tensor, generator={generator})
graph.replay()
assert tensor.std() > 0.1
"""


@pytest.mark.first
@pytest.mark.gpu_alone
@pytest.mark.parametrize("name", ["uniform_", "normal_"])
@pytest.mark.parametrize("generator", ["None", "Key(1)"])
def test_the_first_fill_of_a_process_can_be_captured(name: str, generator: str) -> None:
    code = CAPTURED_FIRST.format(name=name, generator=generator)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Threads that start their first fills at the same time, each on its own stream.
FIRST_IN_THREADS = """
import threading, torch
from paraminit_ext import Key, init
expected = init.normal_(torch.empty(1 << 16), generator=Key(1))
barrier, results = threading.Barrier(8), []
def fill():
    stream = torch.cuda.Stream()
    barrier.wait()
    with torch.cuda.stream(stream):
        tensor = init.normal_(torch.empty(1 << 16, device="cuda"), generator=Key(1))
    stream.synchronize()
    results.append(torch.equal(tensor.cpu(), expected))
threads = [threading.Thread(target=fill) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert results == [True] * 8, results
"""


@pytest.mark.gpu_alone
def test_the_first_fills_of_several_threads_are_right() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IN_THREADS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.first
def test_a_fill_runs_on_the_current_stream() -> None:
    tensor = torch.empty(1 << 24, device="cuda")
    expected = init.normal_(torch.empty(1 << 24, device="cuda"), generator=KEY)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # a fill on another stream would overtake this
        tensor.zero_()
        init.normal_(tensor, generator=KEY)
    side.synchronize()
    assert same(tensor, expected)


@pytest.mark.gpu_alone
def test_a_fill_does_not_wait_for_the_device() -> None:
    tensor = torch.empty(1000, device="cuda")
    init.normal_(tensor)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    init.normal_(tensor)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


@pytest.mark.gpu_alone
def test_a_compiled_function_fills_on_the_gpu() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(w: Tensor) -> Tensor:
        return init.normal_(w) * 2.0

    torch.cuda.manual_seed(11)
    compiled = [step(torch.empty(6, 5, device="cuda")) for _ in range(10)]
    torch.cuda.manual_seed(11)
    eager = [init.normal_(torch.empty(6, 5, device="cuda")) * 2.0 for _ in range(10)]
    assert all(same(c, e) for c, e in zip(compiled, eager, strict=True))


def test_the_comparison_can_fail() -> None:
    a = init.normal_(torch.empty(100, device="cuda"), generator=KEY)
    b = init.normal_(torch.empty(100), generator=Key(KEY.seed, KEY.offset + 1))
    assert not torch.equal(bits(a.cpu()), bits(b))


def test_the_tensors_device_decides_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    expected = init.normal_(torch.empty(100), generator=KEY)
    with torch.cuda.device(0):
        assert same(init.normal_(torch.empty(100, device="cuda:1"), generator=KEY).cpu(), expected)
        assert torch.cuda.current_device() == 0
