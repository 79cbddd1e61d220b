"""A sparse model with its whole groups of output channels in another order, to time what that order is worth.

    python benchmarks/locality.py SPARSE.onnx LENGTH.onnx --order length
    edgesparse compile LENGTH.onnx ...; python benchmarks/pair.py GIVEN.esp LENGTH.esp

`length` puts groups with many non-zeros first, so that groups of like length run one after another. `inputs` chains
groups that read the same inputs; for the layer behind, inputs that are used together then lie together as far as whole
groups go. `random` is neither. No weight changes, and no group does.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edgesparse.passes import SIMPLIFY, load_model, run_passes, save_model, weight_layers
from edgesparse.passes.couple import apply_order, couple
from edgesparse.passes.graph import Array
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.sides import Place, place_of
from edgesparse.pattern import DENSE_FROM, density


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--order", type=click.Choice(("length", "inputs", "random")), required=True)
@click.option("--size", default=4, show_default=True, help="Channels of a group.")
def main(source: Path, target: Path, order: str, size: int) -> None:
    """Write TARGET."""
    model = run_passes(load_model(source), SIMPLIFY).model
    coupling = couple(model)
    rows: dict[int, list[Array]] = {}
    for layer in weight_layers(model):
        kept = canonical_weight(model, layer) != 0
        place = place_of(coupling, layer)
        if layer.default and isinstance(place, Place) and place.repeat == 1 and density(kept) < DENSE_FROM:
            rows.setdefault(place.space, []).append(kept.reshape(len(kept), -1))
    found = {space: _order(np.concatenate(parts, axis=1), order, size) for space, parts in rows.items()}
    apply_order(model, coupling, found)
    save_model(model, target)
    click.echo(f"{len(found)} sets of channels in groups by {order}")


def _order(rows: Array, order: str, size: int) -> Array:
    whole = len(rows) // size * size
    groups = np.arange(whole).reshape(-1, size)
    used = np.stack([rows[one].any(axis=0) for one in groups]) if len(groups) else np.zeros((0, 1), bool)
    if order == "random":
        ranks = np.random.default_rng(0).permutation(len(groups))
    elif order == "length":
        ranks = np.argsort(-used.sum(axis=1), kind="stable")
    else:
        ranks = _chain(used.astype(np.float32))
    return np.concatenate([groups[ranks].reshape(-1), np.arange(whole, len(rows))])


def _chain(used: Array) -> Array:
    """Each group followed by the one left that shares most of its inputs, from the longest on."""
    left = list(np.argsort(-used.sum(axis=1), kind="stable"))
    found = [left.pop(0)] if left else []
    while left:
        common = used[left] @ used[found[-1]] / np.maximum(used[left].sum(axis=1), 1)
        found.append(left.pop(int(common.argmax())))
    return np.asarray(found, np.int64)


if __name__ == "__main__":
    main()
