"""A bench on a device: both forms in one program there, statistics here. An emulated device gives counts, no times."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgesparse import stats
from edgesparse.errors import DeviceError, NumbersDifferError
from edgesparse.runtimes.device import Description, Device, files_of
from edgesparse.runtimes.emulated import count_instructions
from edgesparse.stats import Comparison, Samples, Stats

#: Largest error allowed in the program's check of itself, relative to the largest expected value.
TOLERANCE = 1e-5

EMULATED = "emulated: no latency"


@dataclass(frozen=True)
class Wanted:
    """How long and often to time each form, on which cores, and when the device counts as wedged (seconds)."""

    seconds: float = 10.0
    runs: int = 100
    cores: str = "big"
    timeout: float = 600.0


@dataclass(frozen=True)
class DeviceReport:
    """What a device bench found.

    Attributes
    ----------
    errors:
        Largest relative error of each form against the artifact's sample.
    instructions:
        Executed in the kernels in one run, by form; only where the device is emulated, and then nothing is timed.
    stats, speedup, layers, machine:
        Of a real device: times by form, sparse against dense in pairs, nanoseconds by layer and form, and what the
        device said of its cores before and after.
    """

    device: Description
    errors: Mapping[str, float]
    instructions: Mapping[str, int]
    stats: Mapping[str, Stats]
    speedup: Comparison | None = None
    layers: Mapping[str, list[tuple[str, int]]] | None = None
    machine: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """The report as JSON values."""
        data: dict[str, Any] = {
            "schema": "edgesparse.device-bench/1",
            "device": self.device.record(),
            "errors": dict(self.errors),
        }
        if self.device.emulated:
            return {**data, "note": EMULATED, "instructions": dict(self.instructions)}
        return {
            **data,
            "times": {name: vars(item) for name, item in self.stats.items()},
            "speedup": vars(self.speedup) if self.speedup else None,
            "layers": {name: dict(rows) for name, rows in (self.layers or {}).items()},
            "machine": dict(self.machine or {}),
        }


def bench_device(
    device: Device, wanted: Wanted | None = None, *, notice: Callable[[str], None] | None = None
) -> DeviceReport:
    """Measure an artifact on its device.

    Raises
    ------
    DeviceError
        The device fails; see `Device`.
    NumbersDifferError
        Its outputs there are not the expected ones.
    """
    wanted, say = wanted or Wanted(), notice or (lambda text: None)
    device.push(files_of(device.artifact))
    say(f"sent {', '.join(device.sent) or 'nothing: all was there'}")
    given = ["bench", "--dense", "dense.bin", "--input", "sample.in", "--expect", "sample.out"]
    if device.link.emulated:
        # Timed runs would only take long; one of each form is enough to check the numbers.
        given += ["--seconds", "0", "--runs", "1", "--warm-up", "0", "--profile", "0"]
        told = _read(device.program(given, timeout=wanted.timeout))
        errors = _errors(told, device)
        counts = {form: count_instructions(device.artifact, form) for form in told["forms"]}
        return DeviceReport(device.description, errors, counts, {})
    given += ["--seconds", f"{wanted.seconds:.3f}", "--runs", str(wanted.runs), "--cores", wanted.cores]
    told = _read(device.program(given, timeout=wanted.timeout))
    errors = _errors(told, device)
    samples = {name: _samples(name, form["blocks"]) for name, form in told["forms"].items()}
    return DeviceReport(
        device.description,
        errors,
        {},
        {name: stats.summarize(item) for name, item in samples.items()},
        stats.compare(samples["sparse"], samples["dense"]),
        {name: [(row["name"], row["ns"]) for row in form["layers"]] for name, form in told["forms"].items()},
        {"before": told["before"], "after": told["after"]},
    )


def _read(out: bytes) -> dict[str, Any]:
    try:
        told = json.loads(out)
        if told["schema"] != "edgesparse.device/1" or not told["forms"]:
            raise ValueError("of another schema")
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError("the device's answer cannot be read", why=str(error)[:200], fix="run it again") from error
    return dict(told)


def _errors(told: Mapping[str, Any], device: Device) -> dict[str, float]:
    errors = {name: float(form["error"]) for name, form in told["forms"].items()}
    for name, error in errors.items():
        if not error <= TOLERANCE:
            raise NumbersDifferError(
                f"the {name} form of {device.artifact.path} computes something else on {device.link.name}",
                why=f"off by {error:.2g} of the largest value; {TOLERANCE:.2g} is allowed",
                fix="please report it with the model and the device",
            )
    return errors


def _samples(name: str, blocks: list[list[list[int]]]) -> Samples:
    return Samples(name, tuple(tuple(tuple(ns / 1e9 for ns in turn) for turn in block) for block in blocks))
