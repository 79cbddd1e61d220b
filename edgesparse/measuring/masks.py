"""Pictures of where a sparse model's weights are left: a corner of each layer's mask, and the density over all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CORNER = 48
"""Most outputs and inputs of the corner that is shown weight by weight."""

GRID = 32
"""Most cells along each side of the whole mask's picture; a cell says how dense its part is, from 0 to 9."""

MOST_LAYERS = 12
"""Layers that are pictured: those with the most weights, in the order of the model."""


def picture(weight: np.ndarray, name: str, pattern: str, density: float) -> dict[str, Any]:
    """Return what a page needs to draw a mask.

    Parameters
    ----------
    weight:
        `[outputs, inputs, taps]`; what is not zero is kept.

    Returns
    -------
    dict
        `name`, `pattern`, `density`, `outputs`, `inputs` (taps are counted among them), `corner`: one text of 0 and 1
        for each output of the corner; `grid`: the same for the whole, with digits from 0 to 9 for the share that is
        left, 9 for all.
    """
    kept = (weight != 0).reshape(weight.shape[0], -1)
    return {
        "name": name,
        "pattern": pattern,
        "density": density,
        "outputs": int(kept.shape[0]),
        "inputs": int(kept.shape[1]),
        "corner": ["".join("1" if one else "0" for one in row) for row in kept[:CORNER, :CORNER]],
        "grid": ["".join(str(round(9 * float(cell))) for cell in row) for row in _grid(kept)],
    }


def _grid(kept: np.ndarray) -> np.ndarray:
    """Return the share of ones in each cell of an even grid of at most GRID x GRID."""
    shares = kept.astype(np.float64)
    for axis in (0, 1):
        size = shares.shape[axis]
        edges = np.linspace(0, size, min(size, GRID) + 1).astype(int)
        shares = np.add.reduceat(shares, edges[:-1], axis=axis)
        widths = np.diff(edges).astype(np.float64)
        shares = shares / (widths[:, None] if axis == 0 else widths[None, :])
    return shares


def mask_pictures(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return pictures of an ONNX model's largest layers that are not dense. Raises ModelError."""
    from edgesparse.passes import SIMPLIFY, load_model, run_passes, weight_layers
    from edgesparse.passes.layers import canonical_weight
    from edgesparse.pattern import find_pattern

    model = run_passes(load_model(path), SIMPLIFY).model
    found = []
    for layer in weight_layers(model):
        weight = canonical_weight(model, layer)
        pattern, density = find_pattern(weight)
        if density < 1:
            found.append((layer.params, picture(weight, layer.name, str(pattern), float(density))))
    largest = sorted(range(len(found)), key=lambda index: -found[index][0])[:MOST_LAYERS]
    return tuple(found[index][1] for index in sorted(largest))
