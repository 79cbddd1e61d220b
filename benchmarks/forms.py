"""Two forms of layers that edgesparse does not take, against the ones it takes: what they could gain at best.

    python benchmarks/forms.py windows [--seconds 2]
    python benchmarks/forms.py mlp [--seconds 2]

*windows*: a sparse 3x3 convolution that reads its band through a table of offsets, with padding (with stride 2 in four
phases), instead of a panel that has every pixel nine times. The band is copied so first. One vector runs over the ends
of rows, so the result has columns between its rows that somebody must leave out: that is not in the times.

*mlp*: the two products of a transformer's MLP, a band of tokens through both before the next, instead of all tokens
through each (BLaST, arXiv 2507.03117). The band's hidden features stay in the inner caches, the weights are read anew
for every band. *Cut* runs the same bands, but all of them through the first product before the second: what it gains
too comes from the shape of the tiles, not from keeping the hidden features close.

The same kernels run in both forms, so tiles and code are equal; both are compared with numpy first. Ratios are medians
of paired blocks in alternation, with their 95 % interval.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from edgesparse.building.build import build_kernels
from edgesparse.building.link import link_objects
from edgesparse.kernels import Epilogue, KernelSpec, Panel, Spmm
from edgesparse.kernels.window import Window
from edgesparse.measuring.bench import Plan, measure
from edgesparse.planning.packing import Packed, pack
from edgesparse.planning.place import Job, candidates, kernel_of
from edgesparse.planning.plan import BAND_PIXELS, pitch_of
from edgesparse.planning.tune import measure_products
from edgesparse.target import Target

#: Images of up to so many pixels are one band, as in the plans.
_WHOLE = 256

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
    calls: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    load_seconds: float = 0.0

    def call(self, spec: KernelSpec, pointers: Sequence[tuple[np.ndarray, int]], args: list[int], extent: int) -> None:
        """Add a call; a pointer is an array and the element that it points to."""
        table = np.array(args, np.int32)
        self.kept += [table, *(array for array, _ in pointers)]
        given = [ctypes.c_void_p(array.ctypes.data + 4 * at) for array, at in (*pointers, (table, 0))]
        self.calls.append((spec.symbol, (*given, ctypes.c_int32(0), ctypes.c_int32(extent))))

    def product(
        self, spec: Spmm, part: Packed, columns: np.ndarray, x: tuple[np.ndarray, int], y: tuple[np.ndarray, int, int]
    ) -> None:
        """Add the product with a packed part; y is an array, a first element, a pitch. Bias is zero."""
        bias = np.zeros(part.groups * part.group, np.float32)
        target, at, pitch = y
        out = (target, at + part.first * pitch)
        if part.start is None or part.column is None:
            self.call(spec, [x, (part.values, 0), (bias, 0), out], [pitch, 0, int(columns[0]), part.depth], part.groups)
            return
        tables = [(part.values, 0), (part.start, 0), (columns[part.column].astype(np.int32), 0)]
        self.call(spec, [x, *tables, (bias, 0), out], [pitch, 0, 0, 0], part.groups)

    def run_once(self) -> float:
        """Run all calls; seconds."""
        ready = [(getattr(self.library, symbol), arguments) for symbol, arguments in self.calls]
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


def best_kernel(weight: np.ndarray, pixels: int, epilogue: Epilogue, target: Target) -> tuple[Spmm, Packed]:
    """The kernel that is fastest for a product, measured, and the packed weights (rows are a multiple of its group)."""
    job = Job(weight, pixels, 1, epilogue)
    ranked = candidates(job, target, dense_only=bool((weight != 0).all()))
    if (weight == 0).any():
        ranked = [product for product in ranked if not product.dense]
    ranked = ranked[:6]
    times = measure_products({"layer": (job, ranked)}, target)["layer"]
    product = ranked[int(np.argmin(times))]
    (part,) = pack(weight, product.group, dense=product.dense)
    return kernel_of(product, part.group, pixels, weight.shape[1], epilogue, target), part


def windows(channels: int, size: int, stride: int, density: float, target: Target, folder: Path) -> list[Form]:
    """The offsets' form and the panel's, both checked."""
    rng = np.random.default_rng(0)
    out = size // stride
    rows = out if out * out <= _WHOLE else max(1, BAND_PIXELS // out)
    weight = weights(channels, channels * 9, density, rng)
    image = rng.standard_normal((channels, size, size), np.float32)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    exact = np.einsum("okyx,kabyx->oab", weight.reshape(channels, channels, 3, 3).astype(np.float64), views)

    # As it is: bands of rows, gathered into a panel, then the product.
    pitch, height = pitch_of(rows * out), pitch_of(size * size)
    plane = np.zeros((channels, height), np.float32)
    plane[:, : size * size] = image.reshape(channels, -1)
    nothing = np.zeros(size + 64, np.float32)
    joined = np.concatenate([nothing, plane.reshape(-1)])  # rows are told from one start
    flat = stride == 1 and rows == size
    window = Window((3, 3), (stride, stride), (1, 1), 1, 1, size, out, rows, flat)
    panel = Panel(window, target.lanes)
    spec, part = best_kernel(weight, rows * out, Epilogue("relu"), target)
    gathered = np.zeros((channels * 9, pitch), np.float32)
    made = np.zeros((out // rows, channels, pitch), np.float32)

    # Through offsets: the band is copied with its padding, in phases; rows of the result have columns between them.
    wide, taller = out + 2 // stride, rows + 2 // stride
    span = (rows - 1) * wide + out
    offset_spec, offset_part = best_kernel(weight, span, Epilogue("relu"), target)
    copied = Window((stride, stride), (stride, stride), (1, 1), 1, 1, size, wide, taller)
    copy = Panel(copied, target.lanes)
    far = pitch_of(taller * wide)
    block = np.zeros((channels * stride * stride, far), np.float32)
    taps = [
        ((y % stride) * stride + x % stride) * far + (y // stride) * wide + x // stride
        for y in range(3)
        for x in range(3)
    ]
    offsets = (np.arange(channels)[:, None] * stride * stride * far + np.array(taps)).reshape(-1)
    y_pitch = pitch_of(span)
    through = np.zeros((out // rows, channels, y_pitch), np.float32)

    library = library_of([panel, copy, spec, offset_spec], target, folder)
    usual, other = Form("panel", library), Form("offsets", library)
    for band in range(out // rows):

        def table(rows_in: int, whole: bool = False, band: int = band) -> list[int]:
            if whole:
                return [nothing.size, height]
            inside = range(band * rows * stride - 1, band * rows * stride - 1 + rows_in)
            at = [nothing.size + row * size if 0 <= row < size else 0 for row in inside]
            return [*at, *(height if 0 <= row < size else 0 for row in inside)]

        usual.call(panel, [(joined, 0), (gathered, 0)], [pitch, 0, *table(window.rows_in, flat)], channels)
        other.call(copy, [(joined, 0), (block, 0)], [far, 0, *table(copied.rows_in)], channels)
        columns = np.arange(channels * 9) * pitch if part.start is not None else np.array([pitch])
        usual.product(spec, part, columns, (gathered, 0), (made, band * channels * pitch, pitch))
        where = (through, band * channels * y_pitch, y_pitch)
        other.product(offset_spec, offset_part, offsets, (block, 0), where)
    usual.run_once()
    other.run_once()
    wanted = np.maximum(exact, 0)
    one = made[:, :, : rows * out].reshape(-1, channels, rows, out).transpose(1, 0, 2, 3).reshape(channels, out, out)
    index = (np.arange(rows)[:, None] * wide + np.arange(out)).reshape(-1)
    two = through[:, :, index].reshape(-1, channels, rows, out).transpose(1, 0, 2, 3).reshape(channels, out, out)
    for found in (one, two):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    return [other, usual]


def mlp(tokens: int, width: int, hidden: int, density: float, band: int, target: Target, folder: Path) -> list[Form]:
    """Both products band by band, one after the other, and so but each cut into bands; all checked."""
    rng = np.random.default_rng(0)
    first, second = (weights(*shape, density, rng) for shape in ((hidden, width), (width, hidden)))
    pitch = pitch_of(tokens)
    x = np.zeros((width, pitch), np.float32)
    x[:, :tokens] = rng.standard_normal((width, tokens))
    forms = []
    results = []
    chosen = {n: [best_kernel(first, n, Epilogue("gelu"), target), best_kernel(second, n, Epilogue(), target)]
              for n in (band, tokens)}  # fmt: skip
    library = library_of([spec for pair in chosen.values() for spec, _ in pair], target, folder)
    for name, size, turn in (("fused", band, band), ("in turn", tokens, tokens), ("cut", band, tokens)):
        (up, up_part), (down, down_part) = chosen[size]
        wide = pitch_of(size if turn == band else tokens)
        middle, y = np.zeros((hidden, wide), np.float32), np.zeros((width, pitch), np.float32)
        up_columns = np.arange(width) * pitch if up_part.start is not None else np.array([pitch])
        down_columns = np.arange(hidden) * wide if down_part.start is not None else np.array([wide])
        form = Form(name, library)
        for first_token in range(0, tokens, turn):
            bands = range(first_token, first_token + turn, size)
            for at in bands:
                form.product(up, up_part, up_columns, (x, at), (middle, at - first_token, wide))
            for at in bands:
                form.product(down, down_part, down_columns, (middle, at - first_token), (y, at, pitch))
        form.run_once()
        forms.append(form)
        results.append(y[:, :tokens])
    between = first.astype(np.float64) @ x[:, :tokens]
    wanted = second.astype(np.float64) @ (between * (1 + np.vectorize(math.erf)(between / math.sqrt(2))) / 2)
    for found in results:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    return forms


def row(cells: Sequence[object], forms: list[Form], seconds: float) -> None:
    """Measure forms and print a row: their least times, then how many times as fast the first is as each other."""
    outcome = measure(forms, Plan(seconds=seconds, runs=20, warm_up=0.3))
    times = [f"{1e6 * each.stats.min:.1f}" for each in outcome.measured]
    gains = [f"{each.ratio:.2f} ({each.low:.2f} to {each.high:.2f})" for each in outcome.comparisons]
    click.echo("| " + " | ".join(map(str, [*cells, *times, *gains])) + " |")


def head(*cells: str) -> None:
    """Print the head of a table."""
    click.echo("| " + " | ".join(cells) + " |\n| " + " | ".join("---" for _ in cells) + " |")


seconds_option = click.option("--seconds", default=2.0, show_default=True, help="Timed seconds of each form.")
target_option = click.option("--target", default="native", show_default=True)


@click.group()
def main() -> None:
    """Measure what other forms of layers could gain."""


@main.command("windows")
@seconds_option
@target_option
@click.option("--densities", default="0.3,0.1", show_default=True)
def windows_command(seconds: float, target: str, densities: str) -> None:
    """3x3 convolutions through offsets against the gathered panel."""
    head("network", "layer", "density", "offsets us", "panel us", "gain at best")
    with tempfile.TemporaryDirectory() as folder:
        for network, channels, size, stride in WINDOWS:
            for density in densities.split(","):
                forms = windows(channels, size, stride, float(density), Target.parse(target), Path(folder))
                row((network, f"{channels} at {size} /{stride}", density), forms, seconds)


@main.command("mlp")
@seconds_option
@target_option
@click.option("--densities", default="1,0.2,0.1", show_default=True)
@click.option("--bands", default="16,32,64", show_default=True)
def mlp_command(seconds: float, target: str, densities: str, bands: str) -> None:
    """MiniLM's MLP, 384 to 1536 to 384 features of 128 tokens, fused by bands against one product after the other."""
    head("density", "tokens in a band", "fused us", "in turn us", "cut us", "against in turn", "against cut")
    with tempfile.TemporaryDirectory() as folder:
        for density in densities.split(","):
            for band in bands.split(","):
                forms = mlp(128, 384, 1536, float(density), int(band), Target.parse(target), Path(folder))
                row((density, band), forms, seconds)


if __name__ == "__main__":
    main()
