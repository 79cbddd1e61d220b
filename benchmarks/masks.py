"""The picture of docs/rearrangement.md: one layer's mask in the given order of channels and in the one found.

    python benchmarks/masks.py --out docs/masks.png

The page-orientation network on generated pages, group:4x1 at density 0.5. White is kept; the third picture shows the
saliencies themselves in the order found, so that the groups can be seen that the search put together.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from edgesparse.models import pages
from edgesparse.models.exporting import model_path
from edgesparse.passes import weight_layers
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.observe import input_moments
from edgesparse.passes.permute import View, by_norm, retained, search, unstructured
from edgesparse.passes.surgeon import obs
from edgesparse.pattern import SparsePattern, best_mask
from edgesparse.portable import prepare

SIZE, DENSITY = 4, 0.5


@click.command()
@click.option("--layer", default="Conv.12", show_default=True, help="A 1x1 convolution.")
@click.option("--samples", default=32, show_default=True, help="Calibration pages.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/masks.png"), show_default=True)
def main(layer: str, samples: int, out: Path) -> None:
    """Draw the masks and print what they retain."""
    model = prepare(model_path("page-orientation"), None, {"x": (1, 3, 224, 224)})
    (chosen,) = [one for one in weight_layers(model) if one.name == layer]
    inputs = [{"x": value} for value, _ in pages.samples(samples, seed=11, damage=pages.HARD)]
    scores = obs(canonical_weight(model, chosen), input_moments(model, [chosen], inputs)[layer])
    view = View(scores[:, :, 0].astype(np.float32), DENSITY, SIZE)
    plain, found = np.arange(len(scores)), search([view])
    for name, order in (("given", plain), ("by norm", by_norm([view])), ("found", found)):
        click.echo(f"{name}: {retained([view], order):.4f} of the saliency retained")
    click.echo(f"unstructured: {unstructured([view]):.4f}")
    pattern = SparsePattern("group", SIZE, 1)
    parts = [best_mask(pattern, scores[order], DENSITY)[:, :, 0] * 255 for order in (plain, found)]
    top = np.quantile(scores, 0.95)
    parts.append(255 * np.sqrt(np.minimum(scores[found][:, :, 0] / top, 1.0)))
    gap = np.full((len(scores), 8), 128)
    strip = np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=1)
    Image.fromarray(strip.astype(np.uint8)).resize((strip.shape[1] * 2, strip.shape[0] * 2), 0).save(out, optimize=True)


if __name__ == "__main__":
    main()
