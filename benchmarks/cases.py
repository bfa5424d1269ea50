"""The timed cases of each group, for given options."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks import fresh_memory, machine
from benchmarks.models import FAMILIES, Entry, Recipe, fill_calls
from benchmarks.peers import Peer
from benchmarks.rows import DTYPES, Case, Trial
from benchmarks.timing import Call, SelfTimed
from paraminit_ext import Key, fill_many, init

# The first argument of a recipe is its name in tables.
FILLS = {
    "uniform": Recipe("`uniform_`", "uniform_", (-1.0, 1.0)),
    "normal": Recipe("`normal_`", "normal_", (0.0, 0.02)),
    "trunc_normal": Recipe("`trunc_normal_` at 2 std", "trunc_normal_", (0.0, 0.02, -0.04, 0.04)),
    "trunc_normal_far": Recipe("`trunc_normal_`, far bounds", "trunc_normal_", (0.0, 0.02, -2.0, 2.0)),
    "trunc_normal_band": Recipe("`trunc_normal_` on 0.1 to 0.5 std", "trunc_normal_", (0.0, 1.0, 0.1, 0.5)),
    "xavier_uniform": Recipe("`xavier_uniform_`", "xavier_uniform_"),
    "kaiming_normal": Recipe("`kaiming_normal_`", "kaiming_normal_"),
}
MATRIX_FILLS = ("xavier_uniform", "kaiming_normal")

FRESH_EXPONENT, QUICK_FRESH_EXPONENT = 30, 25
# Smaller blocks come from the allocator's free lists, whose pages are not new.
LEAST_FRESH_EXPONENT = 24
PEAK_EXPONENT, QUICK_PEAK_EXPONENT = 26, 24
MANY = 1000
MANY_SHAPES = ((8, 8), (64, 64))
SMALL_SHAPES = ((8, 8), (64, 64), (256, 256), (1024, 1024))
ORTHOGONAL_SHAPES = (*((n, n) for n in (64, 128, 256, 512, 1024, 2048, 4096)), (8192, 1024))
CUDA_ORTHOGONAL_SHAPES = (*ORTHOGONAL_SHAPES, (8192, 8192), (16384, 16384))
SPARSE_SHAPES = {
    "square": ((64, 64), (1024, 1024), (8192, 8192)),
    "tall": ((256, 16), (1 << 16, 16), (1_000_000, 16)),
    "wide": ((16, 256), (16, 1 << 12), (16, 1_000_000)),
}


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    device: torch.device
    dtypes: tuple[str, ...] = ()  # empty: the default dtypes of each group
    exponent: int | None = None  # tensors have at most 2 to this power elements; None: as many as fit
    quick: bool = False
    peers: tuple[Peer, ...] = ()
    say: Callable[[str], object] = print  # prints one line about a case that is left out

    @property
    def limit(self) -> int:
        """The greatest number of elements of a tensor."""
        if self.exponent is not None:
            return 1 << self.exponent
        return 1 << 22 if self.quick else 1 << 62

    @property
    def budget(self) -> float:
        """Seconds. A longer call is timed once, which is enough to show that it is slow."""
        return 0.2 if self.quick else 2.0

    @property
    def fill_numel(self) -> int:
        large = 1 << (30 if self.device.type == "cuda" else 26)
        return min(large, self.limit) if self.exponent is None else self.limit

    def dtypes_or(self, *default: str) -> tuple[str, ...]:
        return self.dtypes or default

    def fits(self, size: int) -> bool:
        """Return whether the device has room for `size` bytes now."""
        return size + machine.MARGIN <= machine.available_memory(self.device)

    def name(self, case: str, *, threads: int = 0, **parameters: object) -> str:
        """Return the name of a row: group/case[device, ..., threads]."""
        pairs: dict[str, object] = {"device": self.device.type, **parameters}
        if self.device.type == "cpu":
            pairs["threads"] = threads or torch.get_num_threads()
        return f"{case}[{','.join(f'{key}={value}' for key, value in pairs.items())}]"


def count(numel: int) -> str:
    """Return a number of elements as text: a power of two as 2^n."""
    return f"2^{numel.bit_length() - 1}" if numel & (numel - 1) == 0 else str(numel)


def in_one_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def size_of(dtype: str, numel: int) -> int:
    return DTYPES[dtype].itemsize * numel


def three_ways(recipe: Recipe, tensor: Tensor) -> dict[str, Call]:
    """Return the calls of a plain fill, stock and ours. The plain fill comes first, to touch every page."""

    def call(module: ModuleType) -> Call:
        return partial(getattr(module, recipe.function), tensor, *recipe.arguments)

    return {"fill": partial(tensor.fill_, 1.0), "stock": call(nn.init), "ours": call(init)}


# ----------------------------------------------------------------------------------------
# Fills: large, small, over threads and sizes
# ----------------------------------------------------------------------------------------


def with_peers(options: Options, recipe: Recipe, tensor: Tensor) -> dict[str, Call]:
    """Return the calls of `three_ways`, and of the peers that have this distribution and dtype."""
    calls = three_ways(recipe, tensor)
    for peer in options.peers:
        if peer.missing:
            continue
        try:
            call = peer.prepare(recipe, tensor)
            if call is not None:
                call()  # some peers compile in their first call
        except Exception as error:  # an error of another library must not end the run
            options.say(f"{peer.name} is left out of a row: {in_one_line(error)}")
            continue
        if call is not None:
            calls[peer.name] = call
    return calls


def fill_cases(options: Options) -> Iterator[Case]:
    """Yield each distribution on one large tensor, also by other generators."""
    numel = options.fill_numel
    for case, recipe in FILLS.items():
        defaults = ("fp32",) if case in MATRIX_FILLS else tuple(DTYPES)
        for dtype in options.dtypes_or(*defaults):
            if not options.fits(size_of(dtype, numel)):
                options.say(f"fill/{case}, {dtype}, is left out: {count(numel)} elements do not fit")
                continue

            def prepare(case: str = case, recipe: Recipe = recipe, dtype: str = dtype) -> Trial:
                rows = 1 << (numel.bit_length() // 2) if case in MATRIX_FILLS else 1
                tensor = torch.empty(numel, dtype=DTYPES[dtype], device=options.device)
                return Trial(with_peers(options, recipe, tensor.view(rows, -1).squeeze(0)))

            name = options.name(f"fill/{case}", dtype=dtype, numel=count(numel))
            yield Case(name, numel, size_of(dtype, numel), prepare)


def small_cases(options: Options) -> Iterator[Case]:
    """Yield fills of small tensors, where the overhead of a call from Python matters most."""
    for dtype in options.dtypes_or("fp32"):
        for case in ("normal", "trunc_normal", "kaiming_normal"):
            recipe = FILLS[case]
            for shape in SMALL_SHAPES:
                numel = shape[0] * shape[1]
                if numel > min(options.limit, 1 << 16 if options.quick else 1 << 20):
                    continue

                def prepare(
                    recipe: Recipe = recipe, shape: tuple[int, int] = shape, dtype: str = dtype
                ) -> Trial:
                    tensor = torch.empty(shape, dtype=DTYPES[dtype], device=options.device)
                    keyed = partial(
                        getattr(init, recipe.function), tensor, *recipe.arguments, generator=Key(1)
                    )
                    return Trial(three_ways(recipe, tensor) | {"ours, with a Key": keyed})

                text = "x".join(map(str, shape))
                name = options.name(f"small/{case}", dtype=dtype, shape=text)
                yield Case(name, numel, size_of(dtype, numel), prepare)

        def prepare_many(dtype: str = dtype) -> Trial:
            tensors = torch.empty(1000, 64, 64, dtype=DTYPES[dtype], device=options.device).unbind()
            recipe = FILLS["normal"]
            entries = [(f"layers.{index}", tensor, recipe) for index, tensor in enumerate(tensors)]
            return Trial(fill_calls(entries, Key(1)))

        numel = 1000 * 64 * 64
        name = options.name("small/normal_of_1000", dtype=dtype, shape="64x64")
        yield Case(name, numel, size_of(dtype, numel), prepare_many)


def many_cases(options: Options) -> Iterator[Case]:
    """Yield a thousand small tensors filled by one call, and by one call for each."""
    for dtype in options.dtypes_or("fp32"):
        for case in ("normal", "trunc_normal"):
            for shape in MANY_SHAPES:

                def prepare(case: str = case, shape: tuple[int, int] = shape, dtype: str = dtype) -> Trial:
                    recipe = FILLS[case]
                    stacked = torch.empty(MANY, *shape, dtype=DTYPES[dtype], device=options.device)
                    tensors = stacked.unbind()
                    names = list(inspect.signature(getattr(init, recipe.function)).parameters)[1:]
                    arguments = dict(zip(names, recipe.arguments, strict=False))
                    entries = [(tensor, recipe.function, arguments, None) for tensor in tensors]

                    def one_by_one(module: ModuleType) -> Call:
                        function = getattr(module, recipe.function)
                        return lambda: [function(tensor, *recipe.arguments) for tensor in tensors]

                    return Trial(
                        {
                            "fill": lambda: [tensor.fill_(1.0) for tensor in tensors],
                            "stock": one_by_one(nn.init),
                            "ours, one by one": one_by_one(init),
                            "ours": partial(fill_many, entries),
                        }
                    )

                numel = MANY * shape[0] * shape[1]
                name = options.name(f"many/{case}", dtype=dtype, shape="x".join(map(str, shape)))
                yield Case(name, numel, size_of(dtype, numel), prepare)


def thread_counts() -> list[int]:
    """Return thread counts: every count up to 8, then powers of two, and all threads."""
    total = torch.get_num_threads()
    counts = {*range(1, min(8, total) + 1), total}
    counts |= {1 << power for power in range(total.bit_length())}
    return sorted(counts)


def scaling_cases(options: Options) -> Iterator[Case]:
    """Yield a fill on 1 to all threads, and on all threads from 2^10 elements to the memory's limit."""
    on_cpu = options.device.type == "cpu"
    for dtype in options.dtypes_or("fp32"):
        for case in ("normal", "uniform"):
            numel = options.fill_numel
            points = [(numel, threads) for threads in thread_counts()] if on_cpu else [(numel, 0)]
            exponent = 10
            while 1 << exponent <= options.limit and options.fits(size_of(dtype, 1 << exponent)):
                points.append((1 << exponent, torch.get_num_threads() if on_cpu else 0))
                exponent += 2

            for numel, threads in dict.fromkeys(points):

                def prepare(case: str = case, dtype: str = dtype, numel: int = numel) -> Trial:
                    tensor = torch.empty(numel, dtype=DTYPES[dtype], device=options.device)
                    return Trial(three_ways(FILLS[case], tensor))

                name = options.name(f"scaling/{case}", dtype=dtype, numel=count(numel), threads=threads)
                yield Case(name, numel, size_of(dtype, numel), prepare, threads)


# ----------------------------------------------------------------------------------------
# Whole models, fresh memory
# ----------------------------------------------------------------------------------------


def model_cases(options: Options) -> Iterator[Case]:
    """Yield the parameters of whole models: of each family the largest preset that fits, on CUDA two presets.

    The CPU leaves out presets of 8 billion parameters, for which stock would take minutes.
    """
    limit = 1 << 28 if options.quick and options.exponent is None else options.limit
    on_cpu = options.device.type == "cpu"
    for dtype in options.dtypes_or("fp32"):
        for family, presets in FAMILIES.items():
            sizes = {
                preset: (entries, sum(torch.Size(shape).numel() for _, shape, _ in entries))
                for preset, entries in ((preset, list_entries()) for preset, list_entries in presets.items())
                if not (on_cpu and preset == "8b")
            }
            fitting = [
                preset
                for preset, (_, numel) in sizes.items()
                if numel <= limit and options.fits(size_of(dtype, numel))
            ] or [list(sizes)[-1]]
            for preset in fitting[: 1 if on_cpu else 2]:
                entries, numel = sizes[preset]

                def prepare(entries: list[Entry] = entries, dtype: str = dtype) -> Trial:
                    parameters = [
                        (name, torch.empty(shape, dtype=DTYPES[dtype], device=options.device), recipe)
                        for name, shape, recipe in entries
                    ]
                    return Trial(fill_calls(parameters, Key(1)))

                name = options.name(f"model/{family}_{preset}", dtype=dtype, numel=count(numel))
                budget = None if options.quick else math.inf
                yield Case(name, numel, size_of(dtype, numel), prepare, budget=budget)


def fresh_cases(options: Options) -> Iterator[Case]:
    """Yield fills of a new large tensor, with allocation and page faults; then peaks of memory."""
    if options.device.type != "cpu":
        options.say("fresh-memory is left out: it measures the CPU's pages")
        return
    threads = torch.get_num_threads()
    for dtype in options.dtypes_or("fp32"):
        exponent = QUICK_FRESH_EXPONENT if options.quick else FRESH_EXPONENT
        if options.exponent is not None:
            exponent = max(LEAST_FRESH_EXPONENT, min(exponent, options.exponent))
        while exponent > LEAST_FRESH_EXPONENT and not options.fits(size_of(dtype, 1 << exponent)):
            exponent -= 1
        numel = 1 << exponent
        recipe = FILLS["normal"]

        def prepare(recipe: Recipe = recipe, numel: int = numel, dtype: str = dtype) -> Trial:
            small_pages = fresh_memory.process({"PARAMINIT_HUGEPAGES": "0"})
            arguments = (recipe, numel, dtype, threads)
            calls: Mapping[str, Call] = {
                name: SelfTimed(partial(fresh_memory.fresh_seconds, name, *arguments))
                for name in ("fill", "stock", "ours")
            }
            with_small_pages: Callable[[], float] = lambda: small_pages.submit(  # noqa: E731
                fresh_memory.fresh_seconds, "ours", *arguments
            ).result()

            def close() -> dict[str, float]:
                small_pages.shutdown()
                return {}

            return Trial({**calls, "ours, PARAMINIT_HUGEPAGES=0": SelfTimed(with_small_pages)}, close)

        name = options.name("fresh-memory/normal", dtype=dtype, numel=count(numel))
        yield Case(name, numel, size_of(dtype, numel), prepare, budget=None if options.quick else 20.0)

        numel = min(numel, 1 << (QUICK_PEAK_EXPONENT if options.quick else PEAK_EXPONENT))
        for case in ("normal", "trunc_normal"):

            def prepare_peak(case: str = case, numel: int = numel, dtype: str = dtype) -> Trial:
                def peaks() -> dict[str, float]:
                    bytes_over: dict[str, float] = {}
                    for name in ("fill", "stock", "ours"):
                        with fresh_memory.process() as process:
                            arguments = (name, FILLS[case], numel, dtype, threads)
                            bytes_over[name] = process.submit(fresh_memory.peak_over, *arguments).result()
                    return bytes_over

                return Trial({}, peaks)

            name = options.name(f"fresh-memory/{case}_peak", dtype=dtype, numel=count(numel))
            yield Case(name, numel, size_of(dtype, numel), prepare_peak)


# ----------------------------------------------------------------------------------------
# Matrices
# ----------------------------------------------------------------------------------------


def orthogonality_error(matrix: Tensor) -> float:
    """Return max |Q'Q - I|, or max |QQ' - I| for a wide matrix, computed in float64."""
    q = matrix.double() if matrix.shape[0] >= matrix.shape[1] else matrix.double().t()
    product = q.t() @ q
    product.diagonal().sub_(1.0)
    return float(product.abs_().max())


def orthogonal_cases(options: Options) -> Iterator[Case]:
    """Yield square and tall orthogonal matrices, with their error of orthogonality."""
    for dtype in options.dtypes_or("fp32"):
        shapes = CUDA_ORTHOGONAL_SHAPES if options.device.type == "cuda" else ORTHOGONAL_SHAPES
        for rows, columns in shapes:
            numel = rows * columns
            if numel > (min(options.limit, 1 << 20) if options.quick else options.limit):
                continue

            def prepare(rows: int = rows, columns: int = columns, dtype: str = dtype) -> Trial:
                tensor = torch.empty(rows, columns, dtype=DTYPES[dtype], device=options.device)
                calls = three_ways(Recipe("", "orthogonal_"), tensor)
                if DTYPES[dtype].itemsize == 2:  # the QR of stock supports no 16-bit dtype
                    del calls["stock"]

                def errors() -> dict[str, float]:
                    by_name: dict[str, float] = {}
                    for name in ("stock", "ours"):
                        if name in calls:
                            calls[name]()
                            by_name[name] = orthogonality_error(tensor)
                    return by_name

                return Trial(calls, errors)

            case = "square" if rows == columns else "tall"
            name = options.name(f"orthogonal/{case}", dtype=dtype, shape=f"{rows}x{columns}")
            yield Case(name, numel, size_of(dtype, numel), prepare)


def sparse_cases(options: Options) -> Iterator[Case]:
    """Yield square, tall and wide sparse matrices, and the square ones also at extreme sparsities."""
    for dtype in options.dtypes_or("fp32"):
        for case, shapes in SPARSE_SHAPES.items():
            fitting = [shape for shape in shapes if shape[0] * shape[1] <= options.limit]
            if not fitting:
                continue
            rows, columns = fitting[-1]
            # The last one leaves one nonzero element in each column: ceil(sparsity * rows) is rows - 1.
            extremes = (0.0, 1.0, (rows - 1.5) / rows) if case == "square" else ()
            for sparsity in (0.1, *extremes):

                def prepare(
                    rows: int = rows, columns: int = columns, sparsity: float = sparsity, dtype: str = dtype
                ) -> Trial:
                    tensor = torch.empty(rows, columns, dtype=DTYPES[dtype], device=options.device)
                    return Trial(three_ways(Recipe("", "sparse_", (sparsity,)), tensor))

                name = options.name(
                    f"sparse/{case}", dtype=dtype, shape=f"{rows}x{columns}", sparsity=f"{sparsity:.6g}"
                )
                yield Case(name, rows * columns, size_of(dtype, rows * columns), prepare)


GROUPS: dict[str, Callable[[Options], Iterator[Case]]] = {
    "fill": fill_cases,
    "model": model_cases,
    "fresh-memory": fresh_cases,
    "small": small_cases,
    "many": many_cases,
    "scaling": scaling_cases,
    "orthogonal": orthogonal_cases,
    "sparse": sparse_cases,
}
