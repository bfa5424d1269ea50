from collections.abc import Callable
from typing import Any, Literal

from torch import Generator, Tensor, dtype

from paraminit_ext.key import Key

def build_info() -> dict[str, str]: ...
def cpu_capability() -> str: ...
def set_cpu_capability(name: str) -> None: ...
def available_cpu_capabilities() -> list[str]: ...

# For tests: the processors that the control groups under this root pay for, or 0.
def read_cpu_quota(root: str) -> int: ...
def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]: ...

# Loads the library of the CUDA kernels; returns why it cannot be, or "".
def load_cuda(path: str) -> str: ...
def has_cuda() -> bool: ...

# Whether the current stream of that CUDA device, or of any for -1, is being captured.
def is_capturing(device_index: int) -> bool: ...

# The key of a draw, made on a CUDA tensor's device: of these numbers, or of what will lie at these addresses.
def write_drawn_key(
    key: Tensor,
    captured: bool,
    seed: int,
    offset: int,
    seed_there: int,
    offset_there: int,
    offset_in_graph: int,
) -> None: ...

# Fills a plain tensor, or the part of one; False, with nothing drawn or written, where anything else than the
# kernel may have a say, or refuses something.
def fill(
    name: str,
    tensor: Tensor,
    parameters: tuple[float, ...],
    source: Any,
    whole: tuple[int, ...],
    start: tuple[int, ...],
) -> bool: ...

# The same at a key of these words, as int64.
def fill_at(
    name: str,
    tensor: Tensor,
    parameters: tuple[float, ...],
    key: tuple[int, int],
    whole: tuple[int, ...],
    start: tuple[int, ...],
) -> bool: ...
def set_key_type(key_type: type[Key]) -> None: ...

# The kind of Python error that the last refusal of an operator in this thread is, asked once.
def take_refusal() -> str: ...
def overlaps_itself(tensor: Tensor) -> bool: ...

# Whether an operator called now reaches its kernel with nothing in between; whether the tensor is plain
# memory on a device with kernels.
def calls_are_plain() -> bool: ...
def is_plain(tensor: Tensor) -> bool: ...

# Whether every element of a plain tensor can be written on its own, here and now; whether a tensor's storage
# ends before its elements do.
def is_fillable(tensor: Tensor) -> bool: ...
def lacks_storage(tensor: Tensor) -> bool: ...

# Raises what the fill of that name raises for these parameters.
def check_parameters(name: str, parameters: tuple[float, ...], dtype: dtype) -> None: ...

# The entries of fill_many, and for each the index of the first one that has all that is checked in common
# with it, itself perhaps; -1 for one that has to be looked at.
class Entries:
    def __init__(self, entries: list[Any]) -> None: ...
    def first_alike(self) -> list[int]: ...

# Calls are (local tensor, _, _, source), where a source of False takes no draw; `which` counts in `fills`;
# `places` has the shape of the whole and the offset of the calls that are for parts; `indices` says which of
# the entries they are, or -1;
# `draw(generator, count)` gives the words of that many draws.
def fill_many(
    fills: list[tuple[str, tuple[float, ...] | Tensor]],
    calls: list[tuple[Any, Any, Any, Generator | Key | Literal[False] | None]],
    which: list[int],
    places: dict[int, tuple[tuple[int, ...], tuple[int, ...]]],
    entries: Entries,
    indices: list[int],
    default_generator: Callable[[Tensor], Generator | None],
    draw: Callable[[Generator, int], Tensor],
) -> None: ...

# For tests: the zeros of a sparse fill of ones, by windows of another width (standard deviations).
def sparse_ones(matrix: Tensor, zeros: int, key: tuple[int, int], spread: float) -> None: ...

# For tests: a fill by way of pieces of at most so many bytes, as on a device without kernels.
def fill_staged(
    name: str,
    parameters: list[float],
    tensor: Tensor,
    key: tuple[int, int],
    whole: tuple[int, ...],
    start: tuple[int, ...],
    bytes: int,  # noqa: A002
) -> None: ...

# For tests of the numbers: what a fill's constants are made of, and a distribution on given words (int32,
# four a group).
def upper_tail(x: float) -> float: ...
def minus_two_log_upper_tail(x: float) -> float: ...
def apply_distribution(name: str, parameters: list[float], words: Tensor, dtype: dtype) -> Tensor: ...
