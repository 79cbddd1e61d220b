"""The figures for ARM, in one command: `python benchmarks/arm.py`. No ARM machine is needed, and none is timed.

Inner loops: instructions per vector multiply-add, spills, and multiply-adds per cycle by LLVM's models of two cores;
whether earlier loads would help an in-order core, by its model.
The whole MobileNet-v1: instructions executed in kernels under QEMU, at several densities. Needs qemu-user, llvm-19.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from edgesparse import pipeline
from edgesparse.building.assembly import Loop, inner_loops, llvm_mca, predicted_cycles
from edgesparse.building.codegen import compile_asm
from edgesparse.kernels import Epilogue, Spmm
from edgesparse.models import export
from edgesparse.planning.products import accumulators, tile_widths
from edgesparse.recipe import Recipe
from edgesparse.runtimes.emulated import count_instructions
from edgesparse.target import Target

#: Vector multiply-adds of 128 bits that the core starts in a cycle; LLVM's model of the A55 allows two, the core one.
PEAK = {"neoverse-n1": 2.0, "cortex-a55": 1.0}


def widest_loop(target: Target, group: int, vectors: int, dense: bool) -> Loop:
    """The inner loop of a product's full tile."""
    spec = Spmm(
        group,
        4 * vectors * target.lanes,
        vectors,
        target.lanes,
        dense,
        Epilogue("relu"),
        target.by_lane,
        few=target.few,
    )
    loops = inner_loops(compile_asm({spec.symbol: spec.build()}, target.tvm_target()), least=4)
    return max(loops, key=lambda loop: loop.multiply_adds)


def show_loops() -> None:
    print("| code for | kernel | instructions / FMA | spills | of peak, n1 model | FMA / cycle, a55 model |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ("aarch64", "cortex-a53", "cortex-a55", "cortex-a76", "armv7"):
        target = Target.parse(name)
        for group in (4, 8):
            vectors = tile_widths(group, accumulators(target))[0]
            for dense in (False, True):
                loop = widest_loop(target, group, vectors, dense)
                cells = ["", ""]
                if name != "armv7" and llvm_mca():
                    cells = [f"{loop.multiply_adds / predicted_cycles(loop, cpu) / PEAK[cpu]:.2f}" for cpu in PEAK]
                kind = f"{'dense' if dense else 'sparse'} {4 * vectors} px x {group} oc"
                print(f"| {name} | {kind} | {loop.per_multiply_add:.2f} | {loop.spills} | {' | '.join(cells)} |")


_LOAD = re.compile(r"^\s+ld(?:u?r|p)\w*\s")
_REGISTER = re.compile(r"\b([vqdsxw])(\d+)\b")


def registers(text: str) -> set[tuple[bool, int]]:
    """The registers of a piece of assembly: (is it a vector, number)."""
    return {(kind in "vqds", int(number)) for kind, number in _REGISTER.findall(text)}


def loads_early(loop: Loop) -> Loop:
    """The same loop with every load moved up to where its registers are first free and its address is known."""
    lines = list(loop.body)
    for index, line in enumerate(lines):
        place, _, address = line.partition("[")
        if not _LOAD.match(line) or not address.endswith("]"):  # those that change their address stay
            continue
        made, needed = registers(place), registers(address)
        at = index
        while at > 0:
            before = lines[at - 1]
            wrote = registers(before.partition("[")[0] if _LOAD.match(before) else before.partition(",")[0])
            if made & registers(before) or needed & (wrote | (registers(before) if "]," in before else set())):
                break
            lines[at], lines[at - 1] = lines[at - 1], lines[at]
            at -= 1
    return Loop(tuple(lines))


def show_order() -> None:
    """Whether loads that are issued earlier would pay on an in-order core, by its model."""
    print("\n| code for | kernel | cycles of a loop, a55 model | with all loads as early as can be |")
    print("| --- | --- | --- | --- |")
    for name in ("cortex-a53", "cortex-a55"):
        target = Target.parse(name)
        for group in (4, 8):
            vectors = tile_widths(group, accumulators(target))[0]
            for dense in (False, True):
                loop = widest_loop(target, group, vectors, dense)
                cycles = [predicted_cycles(each, "cortex-a55") for each in (loop, loads_early(loop))]
                kind = f"{'dense' if dense else 'sparse'} {4 * vectors} px x {group} oc"
                print(f"| {name} | {kind} | {cycles[0]:.0f} | {cycles[1]:.0f} |")


def show_network(name: str, densities: list[float]) -> None:
    target = Target.parse(name)
    with tempfile.TemporaryDirectory(prefix="edgesparse-arm-") as folder:
        model = export("mobilenet-v1", Path(folder) / "model.onnx")
        print(f"\nMobileNet-v1 for {name}, groups of 8, instructions executed in kernels (emulated: no latency)\n")
        print("| density | million instructions | per 4 multiply-adds | fewer than dense |")
        print("| --- | --- | --- | --- |")
        dense = 0
        for density in densities:
            made = pipeline.compile_model(
                model,
                target=target,
                output=Path(folder) / f"at-{density}",
                recipe=Recipe.from_dict({"pattern": "group:8x1", "density": density}),
            )
            assert made is not None
            if not dense:
                dense = count_instructions(made, "dense")
                macs = sum(int(layer["macs"]) for layer in made.manifest.layers)
                print(f"| 1.0 | {dense / 1e6:.1f} | {dense / (macs / 4):.2f} | 1 |", flush=True)
            count = count_instructions(made)
            print(f"| {density} | {count / 1e6:.1f} | | {dense / count:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="aarch64")
    parser.add_argument("--densities", type=float, nargs="*", default=[0.7, 0.3, 0.1])
    arguments = parser.parse_args()
    show_loops()
    if llvm_mca():
        show_order()
    if arguments.densities:
        show_network(arguments.target, arguments.densities)


if __name__ == "__main__":
    main()
