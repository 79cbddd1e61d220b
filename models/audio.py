"""Small networks over sound: keyword spotting, voice activity. Inputs are features of short frames."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from edgesparse.models.convnets import Module, chain, classifier, conv_bn, divisible, prepared
from edgesparse.models.transformers import seeded


def ds_cnn(*, width: float = 1.0, frames: int = 49, classes: int = 12, seed: int = 0) -> Module:
    """DS-CNN S for keyword spotting (Zhang et al., 1711.07128): depthwise separable convolutions over 10 cepstral
    coefficients of each frame; input [N, 1, frames, 10], output logits [N, classes]."""

    def build() -> Module:
        channels = divisible(64 * width)
        parts = OrderedDict(
            stem=chain(
                conv=nn.Conv2d(1, channels, (10, 4), 2, (5, 1), bias=False),
                bn=nn.BatchNorm2d(channels),
                act=nn.ReLU(),
            )
        )
        for block in range(4):
            parts[f"block{block + 1}"] = chain(
                depthwise=conv_bn(channels, channels, 3, groups=channels), pointwise=conv_bn(channels, channels, 1)
            )
        return chain(**parts, head=classifier(channels, classes))

    return prepared(build, (frames, 10), seed, channels=1)


class _Recurrent(nn.Module):  # type: ignore[misc]
    """Frames through a layer each, then a recurrent layer, then a probability for every frame."""

    def __init__(self, cell: type[Module], features: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.act = nn.ReLU()
        self.cell = cell(width, width, batch_first=True)
        self.leave = nn.Linear(width, 1)

    def forward(self, x: Any) -> Any:
        """Probabilities [N, frames, 1] of speech, of features [N, frames, features]."""
        return self.leave(self.cell(self.act(self.enter(x)))[0]).sigmoid()


def voice_lstm(*, width: int = 128, features: int = 40, seed: int = 0) -> Module:
    """Voice activity by an LSTM; input [N, frames, features], output probabilities [N, frames, 1]."""
    return seeded(lambda: _Recurrent(nn.LSTM, features, width), seed)


def voice_gru(*, width: int = 128, features: int = 40, seed: int = 0) -> Module:
    """Voice activity by a GRU; input [N, frames, features], output probabilities [N, frames, 1]."""
    return seeded(lambda: _Recurrent(nn.GRU, features, width), seed)
