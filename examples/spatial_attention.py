"""Spatial attention: weights for the places of a feature map, computed from its channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import paraminit_ext as init


class SpatialAttention(nn.Module):
    """Scales x[batch, channel, row, column] by sigmoid(conv(mean and maximum over channels)).

    Args:
        kernel_size: side of the convolution's window, odd, in pixels
        generator: source of the initial values, as for every function of `paraminit_ext`
    """

    def __init__(self, kernel_size: int = 7, generator: init.Key | torch.Generator | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: init.Key | torch.Generator | None = None) -> None:
        """Fill weights by Glorot's rule, biases uniformly on [0, 1). With a Key, each has its own key."""
        for index, parameter in enumerate(self.parameters()):
            source = generator.fold_in(index) if isinstance(generator, init.Key) else generator
            if parameter.dim() > 1:
                init.xavier_uniform_(parameter, generator=source)
            else:
                init.uniform_(parameter, generator=source)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        weight: Tensor = torch.sigmoid(self.conv(pooled))
        return x * weight


if __name__ == "__main__":
    layer = SpatialAttention(generator=init.Key(2024))
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    print(f"{tuple(image.shape)} -> {tuple(layer(image).shape)}")
    for label, value in layer.named_parameters():
        print(f"{label}: mean {value.mean():+.4f}, from {value.min():+.4f} to {value.max():+.4f}")
