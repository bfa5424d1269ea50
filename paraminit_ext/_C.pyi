from collections.abc import Callable
from typing import Any, Literal

from torch import Generator, Tensor, dtype

from paraminit_ext.key import Key

def build_info() -> dict[str, str]: ...
def cpu_capability() -> str: ...
def set_cpu_capability(name: str) -> None: ...
def available_cpu_capabilities() -> list[str]: ...

# For tests: the CPU quota of the control groups under this root, in processors, or 0 if there is none.
def read_cpu_quota(root: str) -> int: ...
def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]: ...

# Loads the library of the CUDA kernels. Returns the reason if it cannot be loaded, otherwise "".
def load_cuda(path: str) -> str: ...
def has_cuda() -> bool: ...

# Returns whether the current stream of that CUDA device (-1: of any CUDA device) is being captured.
def is_capturing(device_index: int) -> bool: ...

# Writes the key of a draw to a CUDA tensor. If `captured` is False, the draw uses `seed` and `offset`.
# Otherwise it uses the values that are at the addresses `seed_address` and `offset_address` at replay, and
# `offset_in_graph`.
def write_drawn_key(
    key: Tensor,
    captured: bool,
    seed: int,
    offset: int,
    seed_address: int,
    offset_address: int,
    offset_in_graph: int,
) -> None: ...

# Fills a plain tensor, or a part of a global one, without the dispatcher. Returns False, with nothing drawn
# or written, if a check fails or anything in torch besides the kernel must see the call.
def fill(
    name: str,
    tensor: Tensor,
    parameters: tuple[float, ...],
    source: Any,
    whole: tuple[int, ...],
    start: tuple[int, ...],
) -> bool: ...

# The same with a key given as two int64.
def fill_with_key(
    name: str,
    tensor: Tensor,
    parameters: tuple[float, ...],
    key: tuple[int, int],
    whole: tuple[int, ...],
    start: tuple[int, ...],
) -> bool: ...
def set_key_type(key_type: type[Key]) -> None: ...

# Returns the name of the Python error type of this thread's last operator error, and resets it.
def take_error_type() -> str: ...
def overlaps_itself(tensor: Tensor) -> bool: ...

# dispatch_is_plain: whether an operator call now reaches its kernel directly, without a mode or a transform.
# is_plain: whether the tensor is plain memory on a device with kernels.
def dispatch_is_plain() -> bool: ...
def is_plain(tensor: Tensor) -> bool: ...

# is_fillable: whether the tensor is plain and every element of it can be written independently now.
# storage_too_small: whether the tensor's storage ends before its last element.
def is_fillable(tensor: Tensor) -> bool: ...
def storage_too_small(tensor: Tensor) -> bool: ...

# Raises the error that the fill `name` raises for these parameters.
def check_parameters(name: str, parameters: tuple[float, ...], dtype: dtype) -> None: ...

# The entries of fill_many. `first_equivalent` returns, for each entry, the index of the first entry (possibly
# itself) that is the same in everything that is checked, or -1 if the entry must be checked separately.
class Entries:
    def __init__(self, entries: list[Any]) -> None: ...
    def first_equivalent(self) -> list[int]: ...

# Each call is (local tensor, _, _, source); a source of False takes no draw. For each call, `which` has the
# index of its fill in `fills`, and `indices` the index of its entry in `entries`, or -1. `places` has the
# global shape and the shard offset of calls for shards, by the index of the call. `draw(generator, count)`
# returns the words of that many draws.
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

# For tests: a sparse fill of ones, with thresholds searched in windows of another width (`spread`, in
# standard deviations).
def sparse_ones(matrix: Tensor, zeros: int, key: tuple[int, int], spread: float) -> None: ...

# For tests: a fill in staged pieces of at most `bytes` bytes, as on a device without kernels.
def fill_staged(
    name: str,
    parameters: list[float],
    tensor: Tensor,
    key: tuple[int, int],
    whole: tuple[int, ...],
    start: tuple[int, ...],
    bytes: int,  # noqa: A002
) -> None: ...

# For numerical tests: functions from which the constants of a fill are computed, and a distribution applied
# to given words (int32, four for each group).
def upper_tail(x: float) -> float: ...
def minus_two_log_upper_tail(x: float) -> float: ...
def apply_distribution(name: str, parameters: list[float], words: Tensor, dtype: dtype) -> Tensor: ...
