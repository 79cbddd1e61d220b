"""More classifiers, each for something that MobileNets lack: squeeze-and-excitation, hard-swish, SiLU, many wide 3x3
convolutions, grouped convolutions. Seeded as those of `convnets`."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgesparse.models.convnets import Module, Residual, chain, classifier, conv_bn, divisible, prepared


class Gated(nn.Module):  # type: ignore[misc]
    """Squeeze-and-excitation (1709.01507): each channel times a gate in 0..1, made from all channels' means."""

    def __init__(self, channels: int, inner: int, activation: Module, gate: Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.act = activation
        self.excite = nn.Conv2d(inner, channels, 1)
        self.gate = gate

    def forward(self, x: Any) -> Any:
        """Gate a batch of feature maps."""
        return x * self.gate(self.excite(self.act(self.squeeze(self.pool(x)))))


@dataclass(frozen=True)
class _Block:
    """A row of MobileNet-v3's table: kernel, hidden and output channels, gated or not, activation, stride."""

    kernel: int
    hidden: int
    channels: int
    gated: bool
    hard: bool
    stride: int


# MobileNet-v3 large (1905.02244, table 1).
_MOBILENET_V3 = (
    _Block(3, 16, 16, False, False, 1),
    _Block(3, 64, 24, False, False, 2),
    _Block(3, 72, 24, False, False, 1),
    _Block(5, 72, 40, True, False, 2),
    _Block(5, 120, 40, True, False, 1),
    _Block(5, 120, 40, True, False, 1),
    _Block(3, 240, 80, False, True, 2),
    _Block(3, 200, 80, False, True, 1),
    _Block(3, 184, 80, False, True, 1),
    _Block(3, 184, 80, False, True, 1),
    _Block(3, 480, 112, True, True, 1),
    _Block(3, 672, 112, True, True, 1),
    _Block(5, 672, 160, True, True, 2),
    _Block(5, 960, 160, True, True, 1),
    _Block(5, 960, 160, True, True, 1),
)


def mobilenet_v3(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """MobileNet-v3 large (Howard et al., 1905.02244); input [N, 3, resolution, resolution], output logits [N,
    classes]."""

    def build() -> Module:
        channels = divisible(16 * width)
        parts = OrderedDict(stem=conv_bn(3, channels, 3, stride=2, activation=nn.Hardswish))
        for row in _MOBILENET_V3:
            hidden, outputs = divisible(row.hidden * width), divisible(row.channels * width)
            act = nn.Hardswish if row.hard else nn.ReLU
            body = chain(
                expand=conv_bn(channels, hidden, 1, activation=act) if hidden != channels else None,
                depthwise=conv_bn(hidden, hidden, row.kernel, stride=row.stride, groups=hidden, activation=act),
                gate=Gated(hidden, divisible(hidden / 4), nn.ReLU(), nn.Hardsigmoid()) if row.gated else None,
                project=conv_bn(hidden, outputs, 1, activation=None),
            )
            plain = row.stride == 1 and channels == outputs
            parts[f"block{len(parts)}"] = Residual(body) if plain else body
            channels = outputs
        last = divisible(960 * width)
        return chain(
            **parts,
            tail=conv_bn(channels, last, 1, activation=nn.Hardswish),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            hidden=nn.Linear(last, 1280),
            act=nn.Hardswish(),
            fc=nn.Linear(1280, classes),
        )

    return prepared(build, resolution, seed)


# EfficientNet-B0 (1905.11946, table 1): expansion, channels, repeats, stride, kernel.
_EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def efficientnet_b0(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """EfficientNet-B0 (Tan and Le, 1905.11946); input [N, 3, resolution, resolution], output logits [N, classes]."""

    def build() -> Module:
        channels = divisible(32 * width)
        parts = OrderedDict(stem=conv_bn(3, channels, 3, stride=2, activation=nn.SiLU))
        for expand, wanted, repeats, first, kernel in _EFFICIENTNET_B0:
            outputs = divisible(wanted * width)
            for repeat in range(repeats):
                stride = first if repeat == 0 else 1
                hidden = channels * expand
                body = chain(
                    expand=conv_bn(channels, hidden, 1, activation=nn.SiLU) if expand > 1 else None,
                    depthwise=conv_bn(hidden, hidden, kernel, stride=stride, groups=hidden, activation=nn.SiLU),
                    gate=Gated(hidden, max(1, channels // 4), nn.SiLU(), nn.Sigmoid()),
                    project=conv_bn(hidden, outputs, 1, activation=None),
                )
                parts[f"block{len(parts)}"] = Residual(body) if stride == 1 and channels == outputs else body
                channels = outputs
        last = divisible(1280 * max(width, 1.0) if width >= 1 else 1280 * width)
        return chain(**parts, tail=conv_bn(channels, last, 1, activation=nn.SiLU), head=classifier(last, classes))

    return prepared(build, resolution, seed)


def vgg11(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """VGG-11 (Simonyan and Zisserman, 1409.1556, column A) with batch norm and a global pooling for its large fully
    connected layers; input [N, 3, resolution, resolution], output logits [N, classes]."""

    def build() -> Module:
        channels, parts = 3, OrderedDict()
        for stage, depth in enumerate((1, 1, 2, 2, 2)):
            outputs = divisible(min(64 * 2**stage, 512) * width)
            for layer in range(depth):
                parts[f"conv{stage + 1}_{layer + 1}"] = conv_bn(channels, outputs, 3)
                channels = outputs
            parts[f"pool{stage + 1}"] = nn.MaxPool2d(2)
        return chain(**parts, head=classifier(channels, classes))

    return prepared(build, resolution, seed)


def regnet_x400(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """RegNetX-400MF (Radosavovic et al., 2003.13678): bottlenecks of grouped 3x3 convolutions, 16 channels a group.

    Input [N, 3, resolution, resolution], output logits [N, classes].
    """

    def build() -> Module:
        channels = divisible(32 * width)
        parts = OrderedDict(stem=conv_bn(3, channels, 3, stride=2))
        for stage, (wanted, depth) in enumerate(((32, 1), (64, 2), (160, 7), (384, 12))):
            outputs = divisible(wanted * width, 16)
            for block in range(depth):
                stride = 2 if block == 0 else 1
                body = chain(
                    reduce=conv_bn(channels, outputs, 1),
                    spatial=conv_bn(outputs, outputs, 3, stride=stride, groups=outputs // 16),
                    expand=conv_bn(outputs, outputs, 1, activation=None),
                )
                shortcut = conv_bn(channels, outputs, 1, stride=stride, activation=None) if block == 0 else None
                parts[f"stage{stage + 1}_block{block + 1}"] = Residual(body, shortcut, nn.ReLU())
                channels = outputs
        return chain(**parts, head=classifier(channels, classes))

    return prepared(build, resolution, seed)
