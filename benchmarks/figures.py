"""`python -m benchmarks.figures`: draw the figures of whole models in docs/figures by `paraminit_ext.plot`.

The same versions of transformers and matplotlib give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from paraminit_ext import Key, deferred_init, materialize_module
from paraminit_ext.models.plot import plot


def llama() -> nn.Module:
    """Build a Llama of 8 layers with transformers."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8000,
    )
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


def resnet() -> nn.Module:
    """Build a ResNet-18 with transformers."""
    import transformers

    config = transformers.ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], num_labels=1000
    )
    model: nn.Module = transformers.ResNetForImageClassification(config)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"llama": llama, "resnet": resnet}


def main(
    folder: Annotated[Path, typer.Option(help="the folder for figures")] = Path("docs/figures"),
) -> None:
    """Draw the values of whole models with the densities that the models' code requests."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name, build in MODELS.items():
        model = materialize_module(deferred_init(build, key=Key(2024)))
        typer.echo(plot(model, folder / f"{name}.png"))


if __name__ == "__main__":
    typer.run(main)
