"""Forms of layers against each other, each with the tile that is its fastest in the same run.

    python benchmarks/forms.py windows [--seconds 0.3]
    python benchmarks/forms.py mlp [--seconds 0.3]

*windows*: a sparse 3x3 convolution whose product reads a panel that has every pixel nine times, or the input shifted
by the taps' columns, or the input padded, both through a table of offsets (`edgesparse.planning.gathering`).

*mlp*: the two products of a transformer's MLP, a band of tokens through both before the next, instead of all tokens
through each (BLaST, arXiv 2507.03117). The band's hidden features stay in the inner caches, the weights are read anew
for every band.

All are compared with numpy first. Ratios are medians of paired blocks in alternation, with their 95 % interval. What
calling from Python takes by itself is taken off. `--only-build` compiles first, so that measuring can wait for a quiet
machine.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgesparse.building.build import build_kernels
from edgesparse.building.link import link_objects
from edgesparse.kernels import Epilogue, KernelSpec, Panel, Spmm
from edgesparse.kernels.window import Window
from edgesparse.measuring.bench import Plan, measure
from edgesparse.measuring.stats import compare
from edgesparse.planning.gathering import forms
from edgesparse.planning.packing import Packed, pack
from edgesparse.planning.plan import band_rows, pitch_of
from edgesparse.planning.products import Job, Product, kernel_of
from edgesparse.target import Target

#: Channels in and out, size of the image, stride: the 3x3 layers of ResNet-50 and of VGG.
WINDOWS = (
    ("ResNet-50", 64, 56, 1),
    ("ResNet-50", 128, 28, 1),
    ("ResNet-50", 256, 14, 1),
    ("ResNet-50", 512, 7, 1),
    ("ResNet-50", 128, 56, 2),
    ("ResNet-50", 256, 28, 2),
    ("ResNet-50", 512, 14, 2),
    ("VGG", 128, 112, 1),
    ("VGG", 256, 56, 1),
    ("VGG", 512, 28, 1),
)


@dataclass
class Form:
    """Kernel calls in order, as a contender of `measure`."""

    name: str
    library: ctypes.CDLL
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    load_seconds: float = 0.0

    def call(self, spec: KernelSpec, pointers: Sequence[tuple[np.ndarray, int]], args: list[int], extent: int) -> None:
        """Add a call; a pointer is an array and the element that it points to."""
        table = np.array(args, np.int32)
        self.kept += [table, *(array for array, _ in pointers)]
        given = [ctypes.c_void_p(array.ctypes.data + 4 * at) for array, at in (*pointers, (table, 0))]
        self.calls.append((spec.symbol, (*given, ctypes.c_int32(0), extent)))

    def product(
        self, spec: Spmm, part: Packed, columns: np.ndarray, x: tuple[np.ndarray, int], y: tuple[np.ndarray, int, int]
    ) -> None:
        """Add the product with a packed part, whose non-zeros' inputs begin at `columns` (dense: the pitch of x).

        y is an array, a first element, a pitch. Bias is zero.
        """
        bias = np.zeros(part.groups * part.group, np.float32)
        target, at, pitch = y
        out = (target, at + part.first * pitch)
        if part.start is None or part.column is None:
            self.call(spec, [x, (part.values, 0), (bias, 0), out], [pitch, 0, int(columns[0]), part.depth], part.groups)
            return
        tables = [(part.values, 0), (part.start, 0), (columns, 0)]
        self.call(spec, [x, *tables, (bias, 0), out], [pitch, 0, 0, 0], part.groups)

    def run_once(self) -> float:
        """Run all calls; seconds, without those of calling."""
        if not self.idle:
            self.idle.append(min(self._seconds(0) for _ in range(5)))
        return max(self._seconds(1) - self.idle[0], 1e-9)

    def _seconds(self, share: int) -> float:
        ready = []
        for symbol, arguments in self.calls:
            *pointers, end = arguments
            ready.append((getattr(self.library, symbol), (*pointers, ctypes.c_int32(share * end))))
        started = time.perf_counter()
        for function, arguments in ready:
            function(*arguments)
        return time.perf_counter() - started


def library_of(specs: Sequence[KernelSpec], target: Target, folder: Path) -> ctypes.CDLL:
    """The kernels in one library."""
    named = {spec.symbol: spec for spec in specs}
    path = folder / f"kernels{len(list(folder.iterdir()))}.so"
    link_objects(list(build_kernels(named, target).values()), path, target.triple)
    return ctypes.CDLL(str(path))


def weights(rows: int, depth: int, density: float, rng: np.random.Generator) -> np.ndarray:
    """Random weights in groups of 8 outputs, of one density."""
    kept = rng.random((rows // 8, 1, depth)) < density
    values = rng.standard_normal((rows // 8, 8, depth)).astype(np.float32) * (density * depth) ** -0.5
    return np.where(kept, values, 0).astype(np.float32).reshape(rows, depth)


#: Tiles of sparse products that are tried for each form.
TILES = tuple(Product(group, vectors, False) for group, vectors in ((8, 3), (8, 2), (4, 6), (4, 5)))


def windows(
    channels: int, size: int, stride: int, density: float, target: Target, folder: Path
) -> dict[str, list[Form]]:
    """A layer in each form, with every tile; all checked."""
    rng = np.random.default_rng(0)
    out = size // stride
    rows = band_rows(out, out, target.lanes)
    bands = out // rows
    weight = weights(channels, channels * 9, density, rng)
    image = rng.standard_normal((channels, size, size), np.float32)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    exact = np.einsum(
        "okyx,kabyx->oab", weight.reshape(channels, channels, 3, 3).astype(np.float64), views, optimize=True
    )
    wanted = np.maximum(exact, 0)

    nothing = np.zeros(size + 64, np.float32)
    joined = np.concatenate([nothing, image.reshape(-1), nothing])  # rows are told from one start
    window = Window((3, 3), (stride, stride), (1, 1), 1, 1, size, out, rows, stride == 1 and rows == size)
    job = Job(weight, rows * out, bands, Epilogue("relu"), window)
    ways = {replace(product, form=form): job.gathering(form) for form in forms(window) for product in TILES}
    specs = {product: job.spec(product, product.group, target) for product in ways}
    panels = [Panel(where.copied, target.lanes) for where in ways.values()]
    library = library_of([*panels, *specs.values()], target, folder)
    pitch = pitch_of(rows * out)
    found: dict[str, list[Form]] = {}
    for product, where in ways.items():
        (part,) = pack(weight, product.group)
        form = Form(str(product), library)
        block = np.zeros((channels * len(where.copied.taps), where.pitch), np.float32)
        made = np.zeros((bands, channels, pitch), np.float32)
        offsets = where.offsets(part)
        for band in range(bands):
            inside = [band * rows * stride - 1 + row for row in where.order]
            at = [nothing.size + row * size if 0 <= row < size else 0 for row in inside]
            table = [*at, *(size * size if 0 <= row < size else 0 for row in inside)]
            if where.copied.flat:
                table = [nothing.size, size * size]
            form.call(Panel(where.copied, target.lanes), [(joined, 0), (block, 0)], [where.pitch, 0, *table], channels)
            for call in range(where.calls):
                place = (made, band * channels * pitch + call * where.pixels, pitch)
                form.product(specs[product], part, offsets, (block, where.start(call)), place)
        form.run_once()
        one = (
            made[:, :, : rows * out].reshape(-1, channels, rows, out).transpose(1, 0, 2, 3).reshape(channels, out, out)
        )
        np.testing.assert_allclose(one, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        found.setdefault(product.form or "panel", []).append(form)
    return found


def mlp(
    tokens: int, width: int, hidden: int, density: float, bands: Sequence[int], target: Target, folder: Path
) -> dict[str, list[Form]]:
    """Both products of all tokens in turn, and band by band, one after the other, each with every tile; all checked."""
    rng = np.random.default_rng(0)
    first, second = (weights(*shape, density, rng) for shape in ((hidden, width), (width, hidden)))
    pitch = pitch_of(tokens)
    x = np.zeros((width, pitch), np.float32)
    x[:, :tokens] = rng.standard_normal((width, tokens))
    between = first.astype(np.float64) @ x[:, :tokens]
    wanted = second.astype(np.float64) @ (between * (1 + np.vectorize(math.erf)(between / math.sqrt(2))) / 2)
    sizes = [tokens, *bands]
    products = [replace(product, dense=density >= 1) for product in TILES]
    specs = {
        (product, size): [
            kernel_of(product, product.group, size, matrix.shape[1], epilogue, target)
            for matrix, epilogue in ((first, Epilogue("gelu")), (second, Epilogue()))
        ]
        for product in products
        for size in sizes
    }
    library = library_of([spec for pair in specs.values() for spec in pair], target, folder)
    found: dict[str, list[Form]] = {}
    for (product, size), (up, down) in specs.items():
        (up_part,), (down_part,) = (pack(matrix, product.group, dense=product.dense) for matrix in (first, second))
        wide = pitch_of(size)
        middle, y = np.zeros((hidden, wide), np.float32), np.zeros((width, pitch), np.float32)
        up_columns, down_columns = (
            np.array([far]) if product.dense else part.offsets(far)
            for part, far in ((up_part, pitch), (down_part, wide))
        )
        name = "in turn" if size == tokens else f"bands of {size}"
        form = Form(f"{name}, {product}", library)
        for at in range(0, tokens, size):
            form.product(up, up_part, up_columns, (x, at), (middle, 0, wide))
            form.product(down, down_part, down_columns, (middle, 0), (y, at, pitch))
        form.run_once()
        np.testing.assert_allclose(y[:, :tokens], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        found.setdefault(name, []).append(form)
    return found


def single_row(features: int, density: float, target: Target, folder: Path) -> dict[str, list[Form]]:
    """A fully connected layer of one row in groups of each size, and dense; all checked."""
    rng = np.random.default_rng(0)
    weight = np.zeros((features, features), np.float32)
    for line in weight:
        kept = rng.choice(features, round(density * features), replace=False)
        line[kept] = rng.standard_normal(kept.size)
    x = rng.standard_normal((features, 1)).astype(np.float32)
    wanted = np.maximum(weight.astype(np.float64) @ x, 0)
    job = Job(weight, 1, 1, Epilogue("relu"))
    ways = {f"{group}": [Product(group, 1, False)] for group in (1, 2, 4, 8)}
    ways["dense"] = [Product(group * target.lanes, 1, True) for group in (1, 2, 4)]
    specs = {product: job.spec(product, product.group, target) for each in ways.values() for product in each}
    library = library_of(list(specs.values()), target, folder)
    found: dict[str, list[Form]] = {}
    for name, each in ways.items():
        for product in each:
            (part,) = pack(weight, product.group, dense=product.dense)
            y = np.zeros((features, 1), np.float32)
            form = Form(str(product), library)
            columns = np.array([1]) if product.dense else part.offsets(1)
            form.product(specs[product], part, columns, (x, 0), (y, 0, 1))
            form.run_once()
            np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
            found.setdefault(name, []).append(form)
    return found


def rows(before: Sequence[str], ways: dict[str, list[Form]], usual: str, seconds: float) -> None:
    """Measure all tiles of all forms together; print each form's fastest against the usual one's."""
    everything = [form for each in ways.values() for form in each]
    outcome = measure(everything, Plan(seconds=seconds, runs=20, warm_up=0.05))
    best = {name: min((outcome[w.name] for w in each), key=lambda one: one.stats.p50) for name, each in ways.items()}
    base = best.pop(usual)
    for name, one in best.items():
        found = compare(one.samples, base.samples)
        tiles = [each.name.partition(", ")[2] or each.name for each in (one, base)]
        times = [f"{1e6 * each.stats.p50:.0f}" for each in (one, base)]
        gain = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"
        click.echo("| " + " | ".join((*before, name, tiles[0], times[0], tiles[1], times[1], gain)) + " |")


def head(*cells: str) -> None:
    """Print the head of a table."""
    click.echo("| " + " | ".join(cells) + " |\n| " + " | ".join("---" for _ in cells) + " |")


seconds_option = click.option(
    "--seconds", default=0.3, show_default=True, help="Timed seconds of each tile of each form."
)
only_build_option = click.option("--only-build", is_flag=True, help="Compile, measure nothing.")
target_option = click.option("--target", default="native", show_default=True)


@click.group()
def main() -> None:
    """Measure forms of layers against each other."""


@main.command("windows")
@seconds_option
@target_option
@click.option("--densities", default="0.2,0.1", show_default=True)
@click.option("--networks", default="ResNet-50,VGG", show_default=True)
@only_build_option
def windows_command(seconds: float, target: str, densities: str, networks: str, only_build: bool) -> None:
    """3x3 convolutions through offsets against the gathered panel."""
    if not only_build:
        head("network", "layer", "density", "form", "tile", "us", "panel's tile", "us", "gain")
    with tempfile.TemporaryDirectory() as folder:
        for network, channels, size, stride in (layer for layer in WINDOWS if layer[0] in networks.split(",")):
            for density in densities.split(","):
                ways = windows(channels, size, stride, float(density), Target.parse(target), Path(folder))
                if not only_build:
                    rows((network, f"{channels} at {size} /{stride}", density), ways, "panel", seconds)


@main.command("mlp")
@seconds_option
@target_option
@click.option("--densities", default="1,0.2,0.1", show_default=True)
@click.option("--bands", default="16,32,64", show_default=True)
@only_build_option
def mlp_command(seconds: float, target: str, densities: str, bands: str, only_build: bool) -> None:
    """MiniLM's MLP, 384 to 1536 to 384 features of 128 tokens, fused by bands against one product after the other."""
    if not only_build:
        head("density", "form", "tile", "us", "tile in turn", "us", "gain by fusing")
    with tempfile.TemporaryDirectory() as folder:
        for density in densities.split(","):
            each = [int(band) for band in bands.split(",")]
            ways = mlp(128, 384, 1536, float(density), each, Target.parse(target), Path(folder))
            if not only_build:
                rows((density,), ways, "in turn", seconds)


@main.command("row")
@seconds_option
@target_option
@click.option("--densities", default="0.2,0.1,0.05", show_default=True)
@click.option("--features", default=2048, show_default=True)
@only_build_option
def row_command(seconds: float, target: str, densities: str, features: int, only_build: bool) -> None:
    """One row times weights of constant fan-in (SRigL, arXiv 2305.02299): unions of so many rows against dense."""
    if not only_build:
        head("density", "rows in a group", "kernel", "us", "dense", "us", "gain")
    with tempfile.TemporaryDirectory() as folder:
        for density in densities.split(","):
            ways = single_row(features, float(density), Target.parse(target), Path(folder))
            if not only_build:
                rows((density,), ways, "dense", seconds)


if __name__ == "__main__":
    main()
