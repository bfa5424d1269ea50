"""Parameters of a Llama-shaped model and of a ViT, and how each is initialised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from paraminit_ext.cli.llama import PRESETS, Llama, Recipe, fill_calls, recipes

__all__ = ["FAMILIES", "PRESETS", "VITS", "Entry", "Llama", "Recipe", "Vit", "fill_calls", "recipes"]

# A parameter to be filled, and how: its name, its shape, its recipe.
Entry = tuple[str, tuple[int, ...], Recipe]


def llama_entries(preset: str) -> list[Entry]:
    """The parameters of the Llama-shaped model of that preset."""
    with torch.device("meta"):
        model = Llama(PRESETS[preset])
    return [(name, tuple(parameter.shape), recipe) for name, parameter, recipe in recipes(model)]


@dataclass(frozen=True)
class Vit:
    """The sizes of a vision transformer: square images in square patches, a class token."""

    width: int
    layers: int
    image: int = 224
    patch: int = 16
    classes: int = 1000


VITS = {
    "l": Vit(width=1024, layers=24),
    "b": Vit(width=768, layers=12),
    "ti": Vit(width=192, layers=12),
    "toy": Vit(width=16, layers=2, image=16, patch=8, classes=10),
}


def vit_entries(preset: str) -> list[Entry]:
    """The parameters of a ViT and the calls that timm's VisionTransformer makes for them.

    Matrices and position embeddings are truncated normals of std 0.02 whose bounds, at -2 and 2, lie 100
    deviations out; the patch convolution keeps what `nn.Conv2d` gives it.
    """
    shape = VITS[preset]
    width, patches = shape.width, (shape.image // shape.patch) ** 2
    matrix = Recipe("matrices, trunc_normal_", "trunc_normal_", (0.0, 0.02, -2.0, 2.0))
    zeros, ones = Recipe("biases, zeros_", "zeros_"), Recipe("norms, ones_", "ones_")
    fan_in = 3 * shape.patch**2
    bound = fan_in**-0.5
    entries: list[Entry] = [
        ("cls_token", (1, 1, width), Recipe("class token, normal_", "normal_", (0.0, 1e-6))),
        ("pos_embed", (1, patches + 1, width), matrix),
        (
            "patch_embed.proj.weight",
            (width, 3, shape.patch, shape.patch),
            Recipe("patches, kaiming_uniform_", "kaiming_uniform_", (5**0.5,)),
        ),
        ("patch_embed.proj.bias", (width,), Recipe("patches, uniform_", "uniform_", (-bound, bound))),
    ]

    def norm(name: str) -> list[Entry]:
        return [(f"{name}.weight", (width,), ones), (f"{name}.bias", (width,), zeros)]

    def linear(name: str, to: int, of: int) -> list[Entry]:
        return [(f"{name}.weight", (to, of), matrix), (f"{name}.bias", (to,), zeros)]

    for layer in range(shape.layers):
        block = f"blocks.{layer}"
        entries += norm(f"{block}.norm1") + linear(f"{block}.attn.qkv", 3 * width, width)
        entries += linear(f"{block}.attn.proj", width, width) + norm(f"{block}.norm2")
        entries += linear(f"{block}.mlp.fc1", 4 * width, width) + linear(f"{block}.mlp.fc2", width, 4 * width)
    return entries + norm("norm") + linear("head", shape.classes, width)


# By family, how to list the parameters of each preset, from the largest on.
FAMILIES: dict[str, dict[str, Callable[[], list[Entry]]]] = {
    "llama": {preset: partial(llama_entries, preset) for preset in PRESETS},
    "vit": {preset: partial(vit_entries, preset) for preset in VITS},
}
