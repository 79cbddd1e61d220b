"""`devices`: what can be reached; and the bench of an artifact on one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.artifacts.artifact import Artifact
    from edgesparse.measuring.devicebench import DeviceReport, Wanted
    from edgesparse.runtimes.device import Description


@click.command()
@click.argument("names", nargs=-1)
@common.json_option
@common.verbosity_options
@click.pass_obj
def devices(console: Console, names: tuple[str, ...], json_to: str | None) -> None:
    """Describe the devices NAMES (ssh://user@host, adb://serial, ..); without, what is here and on adb."""
    from edgesparse.errors import DeviceError
    from edgesparse.runtimes import links
    from edgesparse.runtimes.device import describe

    found: list[Description] = []
    for name in names or ("local", *links.adb_devices()):
        try:
            link = links.parse(name)
            try:
                found.append(describe(link))
            finally:
                link.close()
        except DeviceError as error:
            if len(names) == 1:
                raise
            console.notice(f"{name}: {error}")
    if json_to:
        data = {"schema": "edgesparse.devices/1", "devices": [item.record() for item in found]}
        console.json(data, json_to)
        return
    hardware = ("device", "machine", "cpu", "cores", "memory MB", "governor", "temperature", "features")
    columns = (*hardware, "onnxruntime", "can emulate")
    rows = [
        (
            item.name,
            item.machine,
            item.cpu,
            str(item.cores or ""),
            str(item.memory_mb or ""),
            item.governor,
            "" if item.temperature is None else f"{item.temperature:.0f}",
            _features(item),
            item.onnxruntime,
            " ".join(item.emulators),
        )
        for item in found
    ]
    console.table(columns, rows, text_columns=tuple(columns[index] for index in (0, 1, 2, 5, 7, 8, 9)))


def bench_on(
    console: Console,
    artifact: Artifact,
    name: str,
    wanted: Wanted,
    accuracy: Mapping[str, float],
    *,
    resume: bool,
    json_to: str | None,
    html: Path | None = None,
) -> DeviceReport:
    """Bench an artifact on the device `name`, print what was found, and return it."""
    from edgesparse.commands import benching
    from edgesparse.measuring.devicebench import bench_device
    from edgesparse.runtimes.device import open_device

    with open_device(name, artifact, keep=resume) as device, console.progress("bench") as tick:
        found = bench_device(device, wanted, progress=tick, notice=console.notice)
    if found.report is not None:
        worst = max(found.errors.values())
        if json_to != "-":
            console.result(f"outputs checked on {found.device.name}: largest error {worst:.2g} of the largest value")
        benching.show(console, replace(found.report, accuracy=accuracy), json_to, html)
        return found
    if html is not None:
        console.notice(f"no page: {name} is emulated and has no latency")
    if json_to:
        console.json(found.record(), json_to)
        if json_to == "-":
            return found
    show_emulated(console, artifact.path, found)
    return found


def show_emulated(console: Console, path: Path, report: DeviceReport) -> None:
    """Print what an emulated device can tell."""
    from edgesparse.measuring.devicebench import EMULATED

    console.result(f"{path} on {report.device.name} ({report.device.machine}, {report.device.cpu})")
    worst = max(report.errors.values())
    console.result(f"  outputs checked there: largest error {worst:.2g} of the largest value")
    console.result(f"  {EMULATED}; instructions executed in kernels, one run:")
    rows = [(form, f"{count / 1e6:.2f}") for form, count in report.instructions.items()]
    console.table(("form", "million instructions"), rows, text_columns=("form",))
    sparse, dense = report.instructions["sparse"], report.instructions.get("dense")
    if dense:
        console.result(f"  {dense / sparse:.2f} times fewer instructions than dense (not a speedup)")


def _features(item: Description) -> str:
    told = ("neon", "vfpv4", "asimd", "asimddp", "asimdhp", "i8mm", "sve", "avx2", "avx512f")
    return " ".join(name for name in told if name in item.features)
