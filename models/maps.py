"""Networks whose outputs are maps: segmentation, detection, super-resolution. Seeded as those of `convnets`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgesparse.models.convnets import Module, chain, conv_bn, divisible, prepared


class _UNet(nn.Module):  # type: ignore[misc]
    """Down by max-pooling, up by transposed convolutions, with what came before at each size put beside."""

    def __init__(self, channels: int, levels: int, classes: int) -> None:
        super().__init__()
        sizes = [channels * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *sizes], sizes, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in reversed(sizes[:-1]))
        self.join = nn.ModuleList(_double(2 * size, size) for size in reversed(sizes[:-1]))
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Any) -> Any:
        """Scores [N, classes, H, W] of a batch of images."""
        kept = []
        for index, down in enumerate(self.down):
            x = down(x if index == 0 else self.pool(x))
            kept.append(x)
        for up, join, side in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            x = join(torch.cat([side, up(x)], 1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> Module:
    return chain(first=conv_bn(inputs, outputs, 3), second=conv_bn(outputs, outputs, 3))


def unet(*, width: float = 1.0, resolution: int = 128, classes: int = 3, seed: int = 0) -> Module:
    """U-Net (Ronneberger et al., 1505.04597) with padded convolutions and batch norm, three levels of 32 to 256
    channels; input [N, 3, resolution, resolution] of a side that 8 divides, output scores [N, classes, side, side]."""
    return prepared(lambda: _UNet(divisible(32 * width), 3, classes), resolution, seed)


class _Split(nn.Module):  # type: ignore[misc]
    """Half of the channels go through bottlenecks one after another; all that were made are put together (CSP)."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = conv_bn(inputs, outputs, 1, activation=nn.SiLU)
        self.blocks = nn.ModuleList(
            chain(first=conv_bn(half, half, 3, activation=nn.SiLU), second=conv_bn(half, half, 3, activation=nn.SiLU))
            for _ in range(depth)
        )
        self.leave = conv_bn((2 + depth) * half, outputs, 1, activation=nn.SiLU)
        self.shortcut = shortcut

    def forward(self, x: Any) -> Any:
        """Apply the block to a batch of feature maps."""
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            made = block(parts[-1])
            parts.append(parts[-1] + made if self.shortcut else made)
        return self.leave(torch.cat(parts, 1))


class _Pyramid(nn.Module):  # type: ignore[misc]
    """Maxima over windows of 5, 9 and 13 pixels beside the map itself (SPPF: three 5x5 poolings in a row)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_bn(channels, channels // 2, 1, activation=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = conv_bn(2 * channels, channels, 1, activation=nn.SiLU)

    def forward(self, x: Any) -> Any:
        """Apply the block to a batch of feature maps."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class _Detector(nn.Module):  # type: ignore[misc]
    """Backbone, a top-down path by doubling the maps, and a head for each of two sizes; boxes decoded in the graph."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        c = channels
        self.stem = conv_bn(3, c, 3, stride=2, activation=nn.SiLU)
        self.down = nn.ModuleList(conv_bn(c * 2**i, 2 * c * 2**i, 3, stride=2, activation=nn.SiLU) for i in range(3))
        self.body = nn.ModuleList(_Split(2 * c * 2**i, 2 * c * 2**i, 1, True) for i in range(3))
        self.pyramid = _Pyramid(8 * c)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.join = _Split(12 * c, 4 * c, 1, False)
        self.heads = nn.ModuleList(
            chain(inner=conv_bn(inputs, 4 * c, 3, activation=nn.SiLU), out=nn.Conv2d(4 * c, 4 + classes, 1))
            for inputs in (4 * c, 8 * c)
        )

    def forward(self, x: Any) -> Any:
        """Boxes (left, top, right, bottom, in pixels) and scores: [N, 4 + classes, cells of both sizes]."""
        x = self.stem(x)
        maps = []
        for down, body in zip(self.down, self.body, strict=True):
            x = body(down(x))
            maps.append(x)
        deep = self.pyramid(maps[2])
        fine = self.join(torch.cat([self.up(deep), maps[1]], 1))
        found = [
            self._decoded(head(part), stride)
            for head, part, stride in zip(self.heads, (fine, deep), (8, 16), strict=True)
        ]
        return torch.cat(found, 2)

    def _decoded(self, raw: Any, stride: int) -> Any:
        height, width = raw.shape[2:]
        ys = (torch.arange(height) + 0.5).view(1, 1, height, 1).expand(1, 1, height, width)
        xs = (torch.arange(width) + 0.5).view(1, 1, 1, width).expand(1, 1, height, width)
        centre = torch.cat([xs, ys], 1)
        reach = nn.functional.softplus(raw[:, :4])
        boxes = torch.cat([centre - reach[:, :2], centre + reach[:, 2:]], 1) * stride
        return torch.cat([boxes, raw[:, 4:].sigmoid()], 1).flatten(2)


def yolo(*, width: float = 1.0, resolution: int = 256, classes: int = 20, seed: int = 0) -> Module:
    """A one-stage detector in the manner of YOLOv8 n (SiLU, CSP blocks with split and concatenation, SPPF, nearest
    upsampling); input [N, 3, resolution, resolution] of a side that 16 divides, output [N, 4 + classes, cells]."""
    return prepared(lambda: _Detector(divisible(16 * width), classes), resolution, seed)


def espcn(*, width: float = 1.0, resolution: int = 96, scale: int = 3, seed: int = 0) -> Module:
    """Super-resolution by sub-pixel convolution (ESPCN, Shi et al., 1609.05158); input [N, 3, resolution,
    resolution], output [N, 3, scale * resolution, scale * resolution]."""

    def build() -> Module:
        return chain(
            first=nn.Conv2d(3, divisible(64 * width), 5, padding=2),
            act1=nn.Tanh(),
            second=nn.Conv2d(divisible(64 * width), divisible(32 * width), 3, padding=1),
            act2=nn.Tanh(),
            last=nn.Conv2d(divisible(32 * width), 3 * scale**2, 3, padding=1),
            shuffle=nn.PixelShuffle(scale),
        )

    return prepared(build, resolution, seed)
