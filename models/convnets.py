"""Convolutional reference networks, written from their papers as torch modules.

They are benches of speed and correctness, so their weights are random but seeded, and their batch-norm
statistics are those of one seeded batch: activations neither explode nor die out however deep the network is,
and outputs depend on the input. `torch` is imported with this module, never with `edgesparse.models`.

Every network is a tree of `nn.Sequential` with readable names and one class, `Residual`, for what a sequence
cannot say. Convolutions pad symmetrically by half the kernel, as torch users do, except in EfficientNet-lite,
whose published weights were trained with TensorFlow's "same" padding (more on the right and bottom where the
stride leaves a choice).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# torch is an optional, untyped import for mypy (see pyproject.toml), so its modules are `Any` here.
Module = Any


@dataclass(frozen=True)
class Cost:
    """Parameters (weights and biases, without batch-norm statistics) and multiply-adds of one inference."""

    parameters: int
    macs: int


class Residual(nn.Module):  # type: ignore[misc]
    """`activation(body(x) + shortcut(x))`; by default the shortcut is the identity, the activation none."""

    def __init__(self, body: Module, shortcut: Module = None, activation: Module = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Any) -> Any:
        """Apply the block to a batch of feature maps."""
        y = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return y if self.activation is None else self.activation(y)


def chain(**parts: Module) -> Module:
    """Return an `nn.Sequential` of the parts, in order, by name; parts that are None are left out."""
    return nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if part is not None))


def divisible(channels: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of `divisor`, never more than 10 % down (MobileNet-v2 and later
    papers)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "same" padding (before, after) for one axis of `size` pixels."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], Module] | None = nn.ReLU,
    size: int | None = None,
    eps: float = 1e-5,
) -> Module:
    """Return convolution, batch norm, activation; with `size` (input pixels) padded as TensorFlow does."""
    pad: Module = None
    padding = kernel // 2
    if size is not None:
        before, after = same_padding(size, kernel, stride)
        padding = before if before == after else 0
        pad = nn.ZeroPad2d((before, after, before, after)) if before != after else None
    return chain(
        pad=pad,
        conv=nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        bn=nn.BatchNorm2d(outputs, eps=eps),
        act=activation() if activation else None,
    )


def classifier(features: int, classes: int) -> Module:
    """Return the global average pooling and linear layer that end every classifier here."""
    return chain(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(features, classes))


# Output channels and stride of MobileNet-v1's thirteen separable convolutions (1704.04861, table 1).
_MOBILENET_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def mobilenet_v1(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """MobileNet-v1 (Howard et al., 1704.04861); input [N, 3, resolution, resolution], output logits [N,
    classes]."""

    def build() -> Module:
        channels = divisible(32 * width)
        parts = OrderedDict(stem=conv_bn(3, channels, 3, stride=2))
        for index, (outputs, stride) in enumerate(_MOBILENET_V1):
            outputs = divisible(outputs * width)
            parts[f"block{index + 1}"] = chain(
                depthwise=conv_bn(channels, channels, 3, stride=stride, groups=channels),
                pointwise=conv_bn(channels, outputs, 1),
            )
            channels = outputs
        return chain(**parts, head=classifier(channels, classes))

    return prepared(build, resolution, seed)


@dataclass(frozen=True)
class _Stage:
    """A row of an inverted-residual table: expansion, output channels, repeats, first stride, kernel."""

    expand: int
    channels: int
    repeats: int
    stride: int
    kernel: int = 3


# MobileNet-v2 (1801.04381, table 2).
_MOBILENET_V2 = (
    _Stage(1, 16, 1, 1),
    _Stage(6, 24, 2, 2),
    _Stage(6, 32, 3, 2),
    _Stage(6, 64, 4, 2),
    _Stage(6, 96, 3, 1),
    _Stage(6, 160, 3, 2),
    _Stage(6, 320, 1, 1),
)
# EfficientNet-B0 (1905.11946, table 1); the lite variant drops squeeze-and-excitation and swish.
_EFFICIENTNET_B0 = (
    _Stage(1, 16, 1, 1),
    _Stage(6, 24, 2, 2),
    _Stage(6, 40, 2, 2, 5),
    _Stage(6, 80, 3, 2),
    _Stage(6, 112, 3, 1, 5),
    _Stage(6, 192, 4, 2, 5),
    _Stage(6, 320, 1, 1),
)


def _inverted_residuals(
    stages: tuple[_Stage, ...], channels: int, *, width: float, size: int | None, eps: float
) -> tuple[OrderedDict[str, Module], int]:
    """Return the blocks of an inverted-residual network and its last channel count.

    `size` is the map's side in pixels where padding is TensorFlow's, else None.
    """
    blocks: OrderedDict[str, Module] = OrderedDict()
    for stage in stages:
        outputs = divisible(stage.channels * width)
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            hidden = channels * stage.expand
            wide = conv_bn(channels, hidden, 1, activation=nn.ReLU6, eps=eps) if stage.expand != 1 else None
            deep = conv_bn(
                hidden,
                hidden,
                stage.kernel,
                stride=stride,
                groups=hidden,
                activation=nn.ReLU6,
                size=size,
                eps=eps,
            )
            project = conv_bn(hidden, outputs, 1, activation=None, eps=eps)
            body = chain(expand=wide, depthwise=deep, project=project)
            blocks[f"block{len(blocks) + 1}"] = Residual(body) if stride == 1 and channels == outputs else body
            channels = outputs
            size = None if size is None else math.ceil(size / stride)
    return blocks, channels


def mobilenet_v2(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """MobileNet-v2 (Sandler et al., 1801.04381); input [N, 3, resolution, resolution], output logits [N,
    classes]."""

    def build() -> Module:
        stem = divisible(32 * width)
        blocks, channels = _inverted_residuals(_MOBILENET_V2, stem, width=width, size=None, eps=1e-5)
        last = divisible(1280 * max(width, 1.0))
        return chain(
            stem=conv_bn(3, stem, 3, stride=2, activation=nn.ReLU6),
            **blocks,
            tail=conv_bn(channels, last, 1, activation=nn.ReLU6),
            head=classifier(last, classes),
        )

    return prepared(build, resolution, seed)


def efficientnet_lite0(
    *, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0, weights: Any = None
) -> Module:
    """EfficientNet-lite0 (Tan and Le, 1905.11946, in the lite form published with the TPU models).

    Input [N, 3, resolution, resolution] as `(pixel - 127) / 128`, RGB; output logits [N, classes]. `weights`
    is a state dict in the published layout (`_conv_stem.weight`, `_blocks.0._bn1.weight`, ...); with it
    nothing is random.
    """

    def build() -> Module:
        eps = 1e-3
        half = math.ceil(resolution / 2)
        blocks, channels = _inverted_residuals(_EFFICIENTNET_B0, 32, width=width, size=half, eps=eps)
        return chain(
            stem=conv_bn(3, 32, 3, stride=2, activation=nn.ReLU6, size=resolution, eps=eps),
            **blocks,
            tail=conv_bn(channels, 1280, 1, activation=nn.ReLU6, eps=eps),
            head=classifier(1280, classes),
        )

    if weights is None:
        return prepared(build, resolution, seed)
    module = build()
    module.load_state_dict(_matched(weights, module.state_dict()))
    return module.eval()


def _matched(published: Any, own: Any) -> dict[str, Any]:
    """Return the published tensors under our names.

    Both layouts list their tensors in the order of computation, so position pairs them; kind and shape are
    checked.
    """
    kinds = [(name.rsplit(".", 1)[-1], tuple(tensor.shape)) for name, tensor in published.items()]
    if kinds != [(name.rsplit(".", 1)[-1], tuple(tensor.shape)) for name, tensor in own.items()]:
        raise ValueError("the state dict is not of this network: its tensors differ in order or shape")
    return dict(zip(own, published.values(), strict=True))


def _resnet(
    repeats_per_stage: tuple[int, ...], bottleneck: bool, width: float, resolution: int, classes: int, seed: int
) -> Module:
    """ResNet in its usual form: the stride is on the 3x3 convolution, the shortcut projects if it must."""

    def build() -> Module:
        channels = divisible(64 * width)
        parts = OrderedDict(
            stem=conv_bn(3, channels, 7, stride=2),
            pool=nn.MaxPool2d(3, 2, 1),
        )
        for stage, repeats in enumerate(repeats_per_stage):
            inner = divisible(64 * 2**stage * width)
            outputs = inner * 4 if bottleneck else inner
            for repeat in range(repeats):
                stride = 2 if stage > 0 and repeat == 0 else 1
                if bottleneck:
                    body = chain(
                        reduce=conv_bn(channels, inner, 1),
                        spatial=conv_bn(inner, inner, 3, stride=stride),
                        expand=conv_bn(inner, outputs, 1, activation=None),
                    )
                else:
                    body = chain(
                        first=conv_bn(channels, inner, 3, stride=stride),
                        second=conv_bn(inner, outputs, 3, activation=None),
                    )
                shortcut = (
                    conv_bn(channels, outputs, 1, stride=stride, activation=None)
                    if stride != 1 or channels != outputs
                    else None
                )
                parts[f"stage{stage + 1}_block{repeat + 1}"] = Residual(body, shortcut, nn.ReLU())
                channels = outputs
        return chain(**parts, head=classifier(channels, classes))

    return prepared(build, resolution, seed)


def resnet18(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """ResNet-18 (He et al., 1512.03385); input [N, 3, resolution, resolution], output logits [N, classes]."""
    return _resnet((2, 2, 2, 2), False, width, resolution, classes, seed)


def resnet50(*, width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0) -> Module:
    """ResNet-50 (He et al., 1512.03385); input [N, 3, resolution, resolution], output logits [N, classes]."""
    return _resnet((3, 4, 6, 3), True, width, resolution, classes, seed)


def prepared(build: Callable[[], Module], resolution: int | tuple[int, int], seed: int, *, channels: int = 3) -> Module:
    """Build a network with seeded weights and the batch-norm statistics of one seeded batch, in evaluation
    mode.

    `resolution` is the image's side, or its height and width. The caller's random state and thread count
    are left as they were.
    """
    threads = torch.get_num_threads()
    try:
        # One thread: the order of a sum, and so the last bit of a statistic, depends on the number of
        # threads.
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            module = build()
            generator = torch.Generator().manual_seed(seed)
            _initialize(module, generator)
            _calibrate(module, random_images(2, resolution, generator, channels))
    finally:
        torch.set_num_threads(threads)
    return module.eval()


def random_images(count: int, resolution: int | tuple[int, int], generator: Any, channels: int = 3) -> Any:
    """Return [count, channels, height, width] smooth random pictures with grain, about zero in the mean.

    White noise alone would look the same to a network after a few poolings, whatever its seed.
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    coarse = torch.randn(count, channels, 7, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return smooth + 0.5 * torch.randn(count, channels, *size, generator=generator)


def _initialize(module: Module, generator: Any) -> None:
    """Fill all weights: He's normal for convolutions, batch norms with a scale and shift that matter."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = part.weight[0].numel()
            part.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if fan_in > 9:
                # Inputs are mostly positive. Centred rows keep what they share from swamping what tells them
                # apart, which batch norm would blow up again, and rounding errors with it.
                part.weight -= part.weight.flatten(1).mean(1).view(-1, *[1] * (part.weight.dim() - 1))
            if part.bias is not None:
                part.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            part.weight.uniform_(0.5, 1.5, generator=generator)
            # Shifted up, so that most values pass the ReLU behind: each that cuts half of a normalized signal
            # makes rounding errors grow by a fifth, which 27 layers in a row turn into a hundredfold.
            part.bias.normal_(1.0, 0.2, generator=generator)
    for part in module.modules():
        if isinstance(part, Residual):
            # As training leaves them, branches are small beside their shortcut. Were they its equals, a deep
            # random network would blow up rounding errors, and comparing two engines would measure just that.
            [norm for norm in part.body.modules() if isinstance(norm, nn.BatchNorm2d)][-1].weight.mul_(0.3)


def _calibrate(module: Module, batch: Any) -> None:
    """Set every batch norm's running statistics to those of `batch`."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches: one batch, its own statistics
    module.train()
    module(batch)
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def cost(module: Module, input_shape: tuple[int, ...]) -> Cost:
    """Count parameters, and multiply-adds of the convolutions and linear layers on an input of
    `input_shape`."""
    macs = 0

    def count(part: Module, _inputs: Any, output: Any) -> None:
        nonlocal macs
        # Each element of the output is a sum over one output row of the weight.
        macs += output.numel() * part.weight[0].numel()

    hooks = [part.register_forward_hook(count) for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        module(torch.zeros(input_shape))
    for hook in hooks:
        hook.remove()
    return Cost(sum(parameter.numel() for parameter in module.parameters()), macs)
