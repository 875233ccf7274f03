"""SketchCNN: a plain VGG-style network for pictures of drawings.

After Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(2014), with batch norm (Ioffe and Szegedy, 2015) and leaky ReLU.
"""

from __future__ import annotations

import torch
from torch import nn

from quickdraw_dist.base.settings import Model


class SketchCNN(nn.Module):
    """Three blocks of two 3x3 convolutions, then a hidden layer and a linear classifier.

    Block widths are 1, 2 and 4 times `width`; by default 64-128-256, which makes 2.3 M parameters
    with 345 classes and 0.23 GFLOP per drawing and forward pass. Maximum pooling reduces the side
    from 28 to 14 to 7 pixels, average pooling from 7 to 4 (the last window of 2 is cut at the edge,
    where a drawing is empty). Pictures of another side, from 8 pixels, are pooled to 4 or fewer, so
    that the hidden layer grows with none. Convolutions are He-initialised for the leaky slope.
    """

    def __init__(
        self,
        classes: int,
        width: int = 64,
        dropout: float = 0.3,
        *,
        channels: int = 1,
        side: int = 28,
    ) -> None:
        super().__init__()
        pooled = side // 2 // 2
        window = -(-pooled // _POOLED_SIDE)
        self.features = nn.Sequential(
            *_block(channels, width),
            nn.MaxPool2d(2),  # (B, width, 14, 14)
            *_block(width, 2 * width),
            nn.MaxPool2d(2),  # (B, 2 width, 7, 7)
            *_block(2 * width, 4 * width),
            # A window at the edge is the mean of the pixels inside. Without padding the last option
            # changes no mean, but with its default the compiled gradient is wrong at the edge
            # (github.com/pytorch/pytorch/issues/198119).
            nn.AvgPool2d(window, ceil_mode=True, count_include_pad=False),  # (B, 4 width, 4, 4)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(4 * width * (-(-pooled // window)) ** 2, 256),
            nn.LeakyReLU(_SLOPE),
            nn.Dropout(dropout),
            nn.Linear(256, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, _SLOPE, mode="fan_out")

    @classmethod
    def from_settings(cls, settings: Model, classes: int, channels: int, side: int) -> SketchCNN:
        """Build it as --model.width and --model.dropout say."""
        return cls(classes, settings.width, settings.dropout, channels=channels, side=side)

    def forward(self, drawings: torch.Tensor) -> torch.Tensor:
        """Return (B, classes) logits of (B, channels, side, side) normalised float."""
        logits: torch.Tensor = self.classifier(self.features(drawings))
        return logits


_SLOPE = 0.01
_POOLED_SIDE = 4


def _block(before: int, after: int) -> list[nn.Module]:
    """Two 3x3 convolutions without bias, which batch norm has."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(_SLOPE, inplace=True),
        ]
    return layers
