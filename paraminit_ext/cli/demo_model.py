"""The model of the command `demo`: a Llama of plain `torch.nn` modules, and its initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from paraminit_ext import Key, init


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int


PRESETS = {
    "8b": Shape(vocabulary=128256, width=4096, layers=32, heads=32, kv_heads=8, hidden=14336),
    "1b": Shape(vocabulary=32000, width=2048, layers=22, heads=32, kv_heads=4, hidden=5632),
    "small": Shape(vocabulary=32000, width=1024, layers=8, heads=16, kv_heads=4, hidden=2816),
    "tiny": Shape(vocabulary=1024, width=64, layers=2, heads=4, kv_heads=2, hidden=176),
}


def rotate(x: Tensor) -> Tensor:
    """Apply the rotary position embedding to x[batch, head, position, channel], with pairs (c, c + half)."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=torch.float32), frequency).to(
        x.dtype
    )
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], dim=-1)


class Attention(nn.Module):
    """Causal attention in which several query heads share one key and value head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.channels = shape.heads, shape.kv_heads, shape.width // shape.heads
        self.q = nn.Linear(shape.width, shape.heads * self.channels, bias=False)
        self.k = nn.Linear(shape.width, shape.kv_heads * self.channels, bias=False)
        self.v = nn.Linear(shape.width, shape.kv_heads * self.channels, bias=False)
        self.out = nn.Linear(shape.heads * self.channels, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor, heads: int) -> Tensor:
            return cast(Tensor, y.unflatten(-1, (heads, self.channels)).transpose(-3, -2))

        q, k = rotate(split(self.q(x), self.heads)), rotate(split(self.k(x), self.kv_heads))
        v = split(self.v(x), self.kv_heads)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return cast(Tensor, self.out(y.transpose(-3, -2).flatten(-2)))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(functional.silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """One layer: attention and feed-forward, each on a normalised residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.width)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return cast(Tensor, x + self.feed_forward(self.feed_forward_norm(x)))


class Llama(nn.Module):
    """A model from tokens to logits. The head is not tied to the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.norm(x)))


@dataclass(frozen=True)
class Recipe:
    """The initialisation of a parameter: its kind in tables, a function of `nn.init`, and the arguments."""

    kind: str
    function: str
    arguments: tuple[float, ...] = ()

    def apply(self, module: ModuleType, tensor: Tensor, **keywords: Any) -> Tensor:
        """Call the function of `module`, which is `torch.nn.init` or `paraminit_ext.init`."""
        return cast(Tensor, getattr(module, self.function)(tensor, *self.arguments, **keywords))

    @property
    def random(self) -> bool:
        return self.function not in ("ones_", "zeros_")


def recipes(model: Llama) -> Iterator[tuple[str, nn.Parameter, Recipe]]:
    """Yield each parameter with its recipe. The last matrix of each branch is scaled down by depth."""
    std = 0.02
    last = std / math.sqrt(2 * model.shape.layers)
    head = model.shape.width**-0.5
    for name, parameter in model.named_parameters():
        if "norm" in name:
            yield name, parameter, Recipe("norms, ones_", "ones_")
        elif name == "embedding.weight":
            yield name, parameter, Recipe("embedding, normal_", "normal_", (0.0, std))
        elif name == "head.weight":
            yield (
                name,
                parameter,
                Recipe("head, trunc_normal_", "trunc_normal_", (0.0, head, -3 * head, 3 * head)),
            )
        else:
            kind = "attention, normal_" if ".attention." in name else "feed-forward, normal_"
            scale = last if name.endswith(("out.weight", "down.weight")) else std
            yield name, parameter, Recipe(kind, "normal_", (0.0, scale))


def fill_calls(group: Sequence[tuple[str, Tensor, Recipe]], key: Key) -> dict[str, Callable[[], object]]:
    """Return the calls to time on a list of parameters. Ours comes last, so that its values are checked."""

    def plain() -> None:
        for _, parameter, _ in group:
            parameter.fill_(1.0)

    def stock() -> None:
        for _, parameter, recipe in group:
            recipe.apply(nn.init, parameter)

    def ours() -> None:
        for name, parameter, recipe in group:
            if recipe.random:  # each parameter has its own key, so its values do not depend on the others
                recipe.apply(init, parameter, generator=key.fold_in(name))
            else:
                recipe.apply(init, parameter)

    return {"fill": plain, "stock": stock, "ours": ours}
