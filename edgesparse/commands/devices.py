"""`devices`: what can be reached; and the bench of an artifact on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    from edgesparse.artifact import Artifact
    from edgesparse.devicebench import DeviceReport
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
    columns = ("device", "machine", "cpu", "cores", "memory MB", "governor", "temperature", "features", "can emulate")
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
            " ".join(item.emulators),
        )
        for item in found
    ]
    console.table(columns, rows, text_columns=tuple(columns[index] for index in (0, 1, 2, 5, 7, 8)))


def bench_on(
    console: Console,
    artifact: Artifact,
    name: str,
    *,
    seconds: float,
    runs: int,
    cores: str,
    timeout: float,
    resume: bool,
    json_to: str | None,
) -> DeviceReport:
    """Bench an artifact on the device `name`, print what was found, and return it."""
    from edgesparse.devicebench import Wanted, bench_device
    from edgesparse.runtimes.device import open_device

    with open_device(name, artifact, keep=resume) as device:
        report = bench_device(device, Wanted(seconds, runs, cores, timeout), notice=console.notice)
    if json_to:
        console.json(report.record(), json_to)
        if json_to == "-":
            return report
    show(console, artifact.path, report)
    return report


def show(console: Console, path: Path, report: DeviceReport) -> None:
    """Print a device's bench."""
    from edgesparse.devicebench import EMULATED

    console.result(f"{path} on {report.device.name} ({report.device.machine}, {report.device.cpu})")
    worst = max(report.errors.values())
    console.result(f"  outputs checked there: largest error {worst:.2g} of the largest value")
    if report.device.emulated:
        console.result(f"  {EMULATED}; instructions executed in kernels, one run:")
        rows = [(form, f"{count / 1e6:.2f}") for form, count in report.instructions.items()]
        console.table(("form", "million instructions"), rows, text_columns=("form",))
        sparse, dense = report.instructions["sparse"], report.instructions.get("dense")
        if dense:
            console.result(f"  {dense / sparse:.2f} times fewer instructions than dense (not a speedup)")
        return
    columns = ("form", "n", "min ms", "p50 ms", "p90 ms", "p99 ms")
    rows_ms = [
        (name, str(item.n), *(f"{1e3 * value:.3f}" for value in (item.min, item.p50, item.p90, item.p99)))
        for name, item in report.stats.items()
    ]
    console.table(columns, rows_ms, text_columns=("form",))
    for name, item in report.stats.items():
        for cause in item.unstable:
            console.result(f"note: {name} is unstable: {cause}")
    if report.speedup:
        found = report.speedup
        console.result(f"  {found.ratio:.2f} times as fast as dense (95 %: {found.low:.2f} to {found.high:.2f})")


def _features(item: Description) -> str:
    told = ("neon", "vfpv4", "asimd", "asimddp", "asimdhp", "i8mm", "sve", "avx2", "avx512f")
    return " ".join(name for name in told if name in item.features)
