"""What a GPU writes: the CPU's bits, on any stream, in any layout, past 2^32 elements, under capture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fills import DTYPES, FILLS, KEY, LAYOUTS, Fill, bits, filled, same, typed
from paraminit_ext import Key, init, shard

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
    """An empty tensor of the same layout on the GPU, poisoned."""
    strided = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return strided.fill_(-7.0)


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
    # `make gpu` runs this one under compute-sanitizer, where each launch takes long.
    for dtype in DTYPES:
        for fill in FILLS.values():
            for layout in ("every third", "transposed"):
                tensor = on_cuda(LAYOUTS[layout](dtype))
                assert same(fill(tensor, KEY).cpu(), fill(torch.empty(130, 67, dtype=dtype), KEY))
        expected = init.sparse_(torch.empty(33, 17, dtype=dtype), 0.3, generator=KEY)
        assert same(init.sparse_(on_cuda(expected), 0.3, generator=KEY).cpu(), expected)


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
    ((100_000, 16), 0.5),  # lists too long to compare all pairs
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
    # 16 rows make lists of 16 words a column: 2^20 columns are more than one panel of 64 MiB.
    expected = init.sparse_(torch.empty(16, 1 << 20), 0.3, generator=KEY)
    assert same(init.sparse_(torch.empty(16, 1 << 20, device="cuda"), 0.3, generator=KEY).cpu(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (96, 64), (64, 96), (130, 130), (700, 300), (2048, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_an_orthogonal_cuda_matrix_is_the_cpus_to_rounding(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    allowed = torch.backends.cuda.matmul.allow_tf32
    expected = init.orthogonal_(torch.empty(shape, dtype=dtype), generator=KEY)
    # The same Gaussian bits; each is within 8 u sqrt(n) of the exact matrix, as the contract has it.
    limit = 2 * 8 * torch.finfo(dtype).eps / 2 * max(shape) ** 0.5
    try:
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            got = init.orthogonal_(torch.empty(shape, dtype=dtype, device="cuda"), generator=KEY).cpu()
            assert float((got - expected).abs().max()) <= limit
            assert torch.backends.cuda.matmul.allow_tf32 == tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def test_subnormal_values_survive_the_conversion_to_16_bits() -> None:
    for dtype, std in ((torch.bfloat16, 1e-39), (torch.float16, 1e-7), (torch.float32, 1e-42)):
        expected = init.normal_(torch.empty(100_000, dtype=dtype), 0.0, std, generator=KEY)
        assert expected.any()
        assert same(
            init.normal_(torch.empty(100_000, dtype=dtype, device="cuda"), 0.0, std, generator=KEY).cpu(),
            expected,
        )


@typed
def test_a_tensor_past_2_to_the_32_elements_is_right_at_both_ends(dtype: torch.dtype) -> None:
    numel = 2**32 + 1001
    if torch.cuda.mem_get_info()[0] < numel * torch.empty((), dtype=dtype).element_size() + (1 << 30):
        pytest.skip("needs the memory of one tensor of 2^32 elements on the GPU")
    tensor = torch.empty(numel, dtype=dtype, device="cuda")
    init.normal_(tensor, generator=KEY)
    for place in (0, 2**31 - 50, 2**32 - 50, numel - 100):
        expected = torch.empty(100, dtype=dtype)
        init.normal_(shard(expected, (numel,), (place,)), generator=KEY)
        assert same(tensor[place : place + 100].cpu(), expected)


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


def test_each_replay_of_a_graph_draws_anew_as_eager_calls_do() -> None:
    tensor = torch.empty(1000, device="cuda")
    init.normal_(tensor)  # kernels are loaded
    torch.cuda.manual_seed(5)
    eager = [init.normal_(torch.empty(1000, device="cuda")).clone() for _ in range(4)]
    torch.cuda.manual_seed(5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        init.normal_(tensor)
    for expected in eager:
        graph.replay()
        assert same(tensor, expected)


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


def test_a_fill_does_not_wait_for_the_device() -> None:
    tensor = torch.empty(1000, device="cuda")
    init.normal_(tensor)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    init.normal_(tensor)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


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
