"""Other generators, timed in the same rounds as ours if they are installed.

Each peer does what it does best. NumPy, JAX and CuPy draw from the standard distribution, without a pass for
mean and std. JAX returns a new array. The others fill the same tensor as ours. NumPy runs on one thread. A
peer has no time in a row whose distribution or dtype it lacks.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import Recipe
from benchmarks.timing import Call, SelfTimed, wall_seconds

# Returns the call that fills the tensor (or makes one) by the recipe, or None if the peer cannot.
Prepare = Callable[[Recipe, Tensor], Call | None]


@dataclass(frozen=True)
class Peer:
    """The fill of another library. `missing` says why it cannot run here, or is empty."""

    name: str
    missing: str
    prepare: Prepare


def missing(module: str) -> str:
    return "" if importlib.util.find_spec(module) is not None else f"{module} is not installed"


def compiled(recipe: Recipe, tensor: Tensor) -> Call:
    """Prepare the stock function under torch.compile."""
    torch.compiler.reset()  # compilations of earlier rows would count towards the recompile limit
    function: Callable[[Tensor], Tensor] = torch.compile(lambda given: recipe.apply(nn.init, given))
    function(tensor)  # compiles
    return lambda: function(tensor)


def func_random(recipe: Recipe, tensor: Tensor) -> Call | None:
    """Prepare torch.func._random. It is experimental, so its names are looked up only here."""
    module: Any = importlib.import_module("torch.func._random")
    key = torch.tensor([0, 0], dtype=torch.uint64, device=tensor.device)
    if recipe.function == "uniform_":
        low, high = recipe.arguments
        return lambda: module.uniform_(key, tensor, low=low, high=high)
    if recipe.function == "normal_":
        mean, std = recipe.arguments
        return lambda: module.normal_(key, tensor, mean=mean, std=std)
    return None


def numpy_generator(algorithm: str) -> Prepare:
    """Return a function that prepares numpy.random.Generator to write into the tensor's memory."""

    def prepare(recipe: Recipe, tensor: Tensor) -> Call | None:
        if tensor.dtype not in (torch.float32, torch.float64):
            return None
        random: Any = importlib.import_module("numpy.random")
        generator = random.Generator(getattr(random, algorithm)(0))
        out = tensor.numpy()
        if recipe.function == "uniform_":
            return lambda: generator.random(out=out, dtype=out.dtype)
        if recipe.function == "normal_":
            return lambda: generator.standard_normal(out=out, dtype=out.dtype)
        return None

    return prepare


def jax_random(recipe: Recipe, tensor: Tensor) -> Call | None:
    """Prepare jax.random under jit, with JAX's default generator."""
    # Otherwise JAX preallocates most of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax: Any = importlib.import_module("jax")
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    draws: dict[str, Callable[[Any], Any]] = {
        "uniform_": lambda key: jax.random.uniform(key, shape, dtype),
        "normal_": lambda key: jax.random.normal(key, shape, dtype),
    }
    if recipe.function == "trunc_normal_":
        mean, std, a, b = recipe.arguments
        low, high = (a - mean) / std, (b - mean) / std
        draws["trunc_normal_"] = lambda key: jax.random.truncated_normal(key, low, high, shape, dtype)
    if recipe.function not in draws:
        return None
    jax_device = jax.devices("gpu" if tensor.is_cuda else "cpu")[0]
    wide = jax.enable_x64(True) if dtype == "float64" else nullcontext()
    with jax.default_device(jax_device), wide:
        key = jax.random.key(0)
        function = jax.jit(draws[recipe.function]).lower(key).compile()
    call = lambda: function(key).block_until_ready()  # noqa: E731
    # JAX has its own stream, which torch's events do not time.
    return SelfTimed(lambda: wall_seconds(call)) if tensor.is_cuda else call


def cupy_generator(recipe: Recipe, tensor: Tensor) -> Call | None:
    """Prepare cupy.random.Generator with Philox to write into the tensor's memory, on torch's stream."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return None
    cupy: Any = importlib.import_module("cupy")
    generator = cupy.random.Generator(cupy.random.Philox4x3210(0))
    out = cupy.from_dlpack(tensor)
    # Without a size, CuPy draws one number and copies it to all of `out`.
    draws = {"uniform_": generator.random, "normal_": generator.standard_normal}
    if recipe.function not in draws:
        return None
    draw = draws[recipe.function]
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(tensor.device).cuda_stream)

    def call() -> None:
        with stream:
            draw(size=out.shape, out=out, dtype=out.dtype)

    return call


def triton_random(recipe: Recipe, tensor: Tensor) -> Call | None:
    """Prepare a kernel that calls Triton's tl.rand or tl.randn and applies std and mean."""
    kernels: ModuleType = importlib.import_module("benchmarks.triton_kernels")
    if tensor.dtype is torch.float64 or recipe.function not in ("uniform_", "normal_"):
        return None
    call: Call = getattr(kernels, recipe.function.rstrip("_"))(tensor, *recipe.arguments)
    return call


def peers(device: torch.device) -> Iterator[Peer]:
    """Yield all peers for the device, in the order of their columns."""
    yield Peer("torch.compile", "", compiled)
    release = tuple(map(int, torch.__version__.split(".")[:2]))
    unsupported = "" if release >= (2, 15) else f"needs torch >= 2.15, this is {torch.__version__}"
    yield Peer("torch.func._random", unsupported, func_random)
    if device.type == "cpu":
        yield Peer("NumPy SFC64", missing("numpy"), numpy_generator("SFC64"))
        yield Peer("NumPy Philox", missing("numpy"), numpy_generator("Philox"))
    yield Peer("JAX", missing("jax"), jax_random)
    if device.type == "cuda":
        yield Peer("CuPy", missing("cupy"), cupy_generator)
        yield Peer("Triton", missing("triton"), triton_random)
