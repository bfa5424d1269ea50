"""The parameters of a Llama-shaped model and of a ViT, and how each is initialised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from paraminit_ext.cli.demo_model import PRESETS, Llama, Recipe, fill_calls, recipes

__all__ = ["FAMILIES", "PRESETS", "VITS", "Entry", "Llama", "Recipe", "Vit", "fill_calls", "recipes"]

# A parameter to fill: its name, its shape, its recipe.
Entry = tuple[str, tuple[int, ...], Recipe]


def llama_entries(preset: str) -> list[Entry]:
    """Return the parameters of the Llama-shaped model of a preset."""
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
    """Return the parameters of a ViT, with the initialisation that timm's VisionTransformer uses.

    Matrices and position embeddings are truncated normals with std 0.02 and bounds -2 and 2, which are 100
    standard deviations out. The patch convolution keeps the initialisation of `nn.Conv2d`.
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

    def linear(name: str, outputs: int, inputs: int) -> list[Entry]:
        return [(f"{name}.weight", (outputs, inputs), matrix), (f"{name}.bias", (outputs,), zeros)]

    for layer in range(shape.layers):
        block = f"blocks.{layer}"
        entries += norm(f"{block}.norm1") + linear(f"{block}.attn.qkv", 3 * width, width)
        entries += linear(f"{block}.attn.proj", width, width) + norm(f"{block}.norm2")
        entries += linear(f"{block}.mlp.fc1", 4 * width, width) + linear(f"{block}.mlp.fc2", width, 4 * width)
    return entries + norm("norm") + linear("head", shape.classes, width)


# For each family, functions that list the parameters of its presets, from the largest to the smallest.
FAMILIES: dict[str, dict[str, Callable[[], list[Entry]]]] = {
    "llama": {preset: partial(llama_entries, preset) for preset in PRESETS},
    "vit": {preset: partial(vit_entries, preset) for preset in VITS},
}
