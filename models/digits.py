"""Handwritten digits: scikit-learn's 8x8 pictures and a tiny network that learns them in seconds.

The data ships inside scikit-learn (1797 pictures). A seeded fifth of it is held back for evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.models.data import Array, Sample
from edgesparse.models.packages import require

SPLIT_SEED = 1234  # of the split alone: every network, whatever its own seed, is measured on the same pictures


def load() -> tuple[tuple[Array, NDArray[np.int64]], tuple[Array, NDArray[np.int64]]]:
    """Return (training, evaluation), each pictures [N, 1, 8, 8] in 0..1 and classes [N]; 1437 and 360."""
    require("sklearn", "the digits data")
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = (np.asarray(data.images, dtype=np.float32) / np.float32(16))[:, None]
    classes = np.asarray(data.target, dtype=np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(classes))
    held = len(classes) // 5 + 1
    train, test = order[held:], order[:held]
    return (pictures[train], classes[train]), (pictures[test], classes[test])


def samples(*, evaluation: bool = True) -> Iterator[Sample]:
    """Yield (picture [1, 1, 8, 8], class) of the pictures held back, or of those for training."""
    pictures, classes = load()[1 if evaluation else 0]
    for picture, label in zip(pictures, classes, strict=True):
        yield picture[None], int(label)


def network() -> Any:
    """Return the untrained module: input [N, 1, 8, 8], output logits [N, 10], about 9 k weights."""
    from edgesparse.models.convnets import chain, classifier, conv_bn

    return chain(
        stem=conv_bn(1, 16, 3),
        expand=conv_bn(16, 32, 1),
        depthwise=conv_bn(32, 32, 3, stride=2, groups=32),
        pointwise=conv_bn(32, 64, 1),
        depthwise2=conv_bn(64, 64, 3, groups=64),
        pointwise2=conv_bn(64, 64, 1),
        head=classifier(64, 10),
    )


def trained(*, seed: int = 0, epochs: int = 40) -> Any:
    """Train `network` on the training pictures and return it in evaluation mode; the same for the same seed.

    The caller's random state and thread count are left as they were.
    """
    import torch
    from torch import nn

    (pictures, classes), _ = load()
    inputs, targets = torch.from_numpy(pictures), torch.from_numpy(classes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # the maps are tiny, and sums keep one order
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = network()
            batch = 64
            steps = epochs * (len(targets) // batch)
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
            module.train()
            for _ in range(epochs):
                order = torch.randperm(len(targets))[: steps // epochs * batch]
                for rows in order.split(batch):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(module(_shifted(inputs[rows])), targets[rows]).backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return module.eval()


def _shifted(pictures: Any) -> Any:
    """Return the batch moved by up to one pixel each way: the only augmentation that 8x8 pictures bear."""
    import torch
    from torch import nn

    down, right = torch.randint(0, 3, (2,)).tolist()
    padded = nn.functional.pad(pictures, (1, 1, 1, 1))
    return padded[:, :, down : down + 8, right : right + 8]
