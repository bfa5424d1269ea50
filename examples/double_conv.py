"""The block of U-shaped networks: two convolutions, each with batch normalisation and ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import paraminit_ext as init


class DoubleConv(nn.Module):
    """(3x3 convolution, batch normalisation, ReLU) twice: x[batch, in_channels, row, column] to out_channels.

    Args:
        in_channels: channels of the input
        out_channels: channels of both convolutions
        generator: source of the initial values, as for every function of `paraminit_ext`
    """

    def __init__(
        self, in_channels: int, out_channels: int, generator: init.Key | torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.initialize_weights(generator)

    def initialize_weights(self, generator: init.Key | torch.Generator | None = None) -> None:
        """Fill convolutions with normals of std sqrt(2 / (k * k * out)); make normalisations the identity."""
        for index, module in enumerate(self.modules()):
            source = generator.fold_in(index) if isinstance(generator, init.Key) else generator
            if isinstance(module, nn.Conv2d):
                outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                init.normal_(module.weight, 0.0, math.sqrt(2.0 / outputs), generator=source)
            elif isinstance(module, nn.BatchNorm2d):
                init.ones_(module.weight)
                init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


if __name__ == "__main__":
    model = DoubleConv(3, 64, generator=init.Key(2024))
    image = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    print(f"{tuple(image.shape)} -> {tuple(model(image).shape)}")
    for label, value in model.named_parameters():
        print(f"{label}: mean {value.mean():+.4f}, std {value.std():.4f}")
