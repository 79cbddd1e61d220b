"""Transformers and their like as torch modules, with seeded weights of the size that training leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgesparse.models.convnets import Module, chain


class Attention(nn.Module):  # type: ignore[misc]
    """Self-attention of several heads (1706.03762): queries, keys and values by layers of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        """Mix the tokens of [N, tokens, width]."""
        batch, tokens, width = x.shape

        def split(y: Any) -> Any:
            return y.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        mixed = scores.softmax(-1) @ value
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Encoder(nn.Module):  # type: ignore[misc]
    """Attention and a two-layer network, each with a shortcut; norms before (ViT) or after the sum (BERT)."""

    def __init__(self, width: int, heads: int, inner: int, *, before: bool, eps: float) -> None:
        super().__init__()
        self.before = before
        self.attention = Attention(width, heads)
        self.wide, self.act, self.narrow = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Any) -> Any:
        """Apply the block to [N, tokens, width]."""
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + self.narrow(self.act(self.wide(self.norm2(x))))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.narrow(self.act(self.wide(x))))


class _Bert(nn.Module):  # type: ignore[misc]
    def __init__(self, vocabulary: int, tokens: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Encoder(width, heads, 4 * width, before=False, eps=1e-12) for _ in range(depth))

    def forward(self, ids: Any) -> Any:
        """Embeddings [N, width] of length one, of token ids [N, tokens]: the mean over the tokens, normalised."""
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
        for block in self.blocks:
            x = block(x)
        return nn.functional.normalize(x.mean(1), dim=1)


def minilm_l6(*, width: int = 384, depth: int = 6, tokens: int = 128, vocabulary: int = 30522, seed: int = 0) -> Module:
    """MiniLM-L6 as a sentence encoder (Wang et al., 2002.10957: BERT, 1810.04805, of 6 layers, 384 wide, 12 heads).

    Input token ids int64 [N, tokens], all of them attended to; output [N, width], of length one.
    """
    return seeded(lambda: _Bert(vocabulary, tokens, width, depth, 12), seed)


class _Vit(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, depth: int, heads: int, patch: int, resolution: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.mark = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, (resolution // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads, 4 * width, before=True, eps=1e-6) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        """Logits [N, classes] of a batch of images."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.mark.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_tiny(
    *, width: int = 192, depth: int = 12, resolution: int = 224, patch: int = 16, classes: int = 1000, seed: int = 0
) -> Module:
    """ViT-Ti/16 (Dosovitskiy et al., 2010.11929; the size of 2012.12877), three heads; input [N, 3, resolution,
    resolution], output logits [N, classes]."""
    return seeded(lambda: _Vit(width, depth, 3, patch, resolution, classes), seed)


class _Mix(nn.Module):  # type: ignore[misc]
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = chain(wide=nn.Linear(tokens, width // 2), act=nn.GELU(), narrow=nn.Linear(width // 2, tokens))
        self.within = chain(wide=nn.Linear(width, 4 * width), act=nn.GELU(), narrow=nn.Linear(4 * width, width))

    def forward(self, x: Any) -> Any:
        """Mix [N, tokens, width] across tokens, then within each."""
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class _Mixer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, depth: int, patch: int, resolution: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(_Mix((resolution // patch) ** 2, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        """Logits [N, classes] of a batch of images."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def mixer_s16(
    *, width: int = 512, depth: int = 8, resolution: int = 224, patch: int = 16, classes: int = 1000, seed: int = 0
) -> Module:
    """MLP-Mixer S/16 (Tolstikhin et al., 2105.01601); input [N, 3, resolution, resolution], output logits [N,
    classes]."""
    return seeded(lambda: _Mixer(width, depth, patch, resolution, classes), seed)


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """Build a network with seeded weights, in evaluation mode; the caller's random state is left as it was.

    Matrices keep the size of what goes through them, norms have a scale and shift that matter.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = build()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel() if "places" not in name and "mark" not in name else 1
                parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
            elif name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
    return module.eval()
