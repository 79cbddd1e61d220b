"""Every family of kernels at shapes of real networks: GFLOP/s, share of the core's peak, and what bounds it.

    python benchmarks/kernels.py -o out/kernels.md

Each case is a model of one layer, compiled and profiled as any other, so tiles are chosen and epilogues run as in a
network; inputs lie in the cache as a layer before would leave them. GFLOP/s count the multiply-adds that are done, as
two; a sparse layer does its non-zeros only.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesparse.measuring.layerwork import profile_artifact
from edgesparse.measuring.roofline import measure_roofline
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.target import Target


@dataclass(frozen=True)
class Case:
    """A convolution ``[N, C / groups, k, k]`` over `size` x `size` pixels; size 1: a fully connected layer."""

    channels: int
    outputs: int
    size: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    pattern: str = "dense"
    density: float = 1.0

    @property
    def name(self) -> str:
        """As the table says it."""
        kind = "depthwise" if self.groups == self.channels > 1 else "linear" if self.size == 1 else "conv"
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{kind} {self.kernel}x{self.kernel}{stride} {self.channels}-{self.outputs} at {self.size}"

    def model(self) -> onnx.ModelProto:
        """The layer alone, with relu."""
        rng = np.random.default_rng(0)
        shape = (self.outputs, self.channels // self.groups, self.kernel, self.kernel)
        weight = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        bias = rng.standard_normal(self.outputs).astype(np.float32)
        pad = (self.kernel - 1) // 2
        nodes = [
            helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["c"],
                name="layer",
                kernel_shape=[self.kernel] * 2,
                strides=[self.stride] * 2,
                pads=[pad] * 4,
                group=self.groups,
            ),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ]
        out = (self.size + 2 * pad - self.kernel) // self.stride + 1
        graph = helper.make_graph(
            nodes,
            "case",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, self.channels, self.size, self.size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, self.outputs, out, out])],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def cases() -> list[Case]:
    """Dense and sparse products, depthwise, first convolutions, k x k, fully connected."""
    found = []
    for channels, outputs, size in ((32, 64, 112), (128, 128, 56), (256, 256, 28), (512, 512, 14), (1024, 1024, 7)):
        found.append(Case(channels, outputs, size))
        found += [Case(channels, outputs, size, pattern="group:8x1", density=each) for each in (0.5, 0.2, 0.1, 0.05)]
    for pattern in ("group:4x1", "group:2x1", "unstructured"):
        found.append(Case(512, 512, 14, pattern=pattern, density=0.1))
    for channels, size, stride in ((32, 112, 1), (64, 112, 2), (128, 56, 1), (256, 28, 1), (512, 14, 1), (1024, 7, 1)):
        found.append(Case(channels, channels, size, 3, stride, channels))
    found += [Case(240, 240, 28, 5, 1, 240), Case(480, 480, 14, 5, 1, 480)]
    found += [Case(3, 32, 224, 3, 2), Case(3, 64, 224, 7, 2), Case(64, 64, 56, 3), Case(256, 256, 14, 3)]
    found += [Case(256, 256, 14, 3, pattern="group:8x1", density=0.1), Case(1024, 1000, 1)]
    found += [Case(1024, 1000, 1, pattern="group:8x1", density=0.1)]
    return found


@click.command()
@click.option("--target", default="native", show_default=True)
@click.option("--runs", default=200, show_default=True, help="Profile runs of each case.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out/kernels.md"), show_default=True)
def main(target: str, runs: int, output: Path) -> None:
    """Measure all cases and write the table."""
    chosen = Target.parse(target)
    roof = measure_roofline(chosen)
    lines = [
        f"{chosen}; peak {roof.gflops:.0f} GFLOP/s; loads, GB/s: "
        + ", ".join(f"{level} {rate:.0f}" for level, rate in roof.gbytes.items()),
        "",
        "| layer | pattern | density | us | GFLOP/s | of peak | bound by | kernel |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases():
        with tempfile.TemporaryDirectory() as room:
            path = Path(room) / "case.onnx"
            path.write_bytes(case.model().SerializeToString())
            recipe = None
            if case.pattern != "dense":
                recipe = Recipe.from_dict({"pattern": case.pattern, "density": case.density, "targets": ["layer"]})
            artifact = compile_model(path, target=chosen, recipe=recipe, output=Path(room) / "artifact")
            assert artifact is not None
            row = max(profile_artifact(artifact, roof, runs=runs), key=lambda each: each.flops)
        cells = (
            case.name,
            case.pattern,
            case.density,
            f"{row.seconds * 1e6:.1f}",
            f"{row.gflops:.0f}",
            f"{row.peak_share:.0%}",
            row.bound,
            row.kernel,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        click.echo(lines[-1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
