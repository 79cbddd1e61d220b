"""A bench on a device: both forms in one program there, statistics here. An emulated device gives counts, no times.

The program makes the blocks by the same protocol as `bench.measure`, so the report is the same as of a bench here.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from edgesparse import environment
from edgesparse.errors import DeviceError, NumbersDifferError, UsageError
from edgesparse.measuring.bench import ENOUGH_RUNS, Measured, Plan, Progress, conclude
from edgesparse.measuring.conditions import Conditions
from edgesparse.measuring.memory import Memory
from edgesparse.measuring.report import LayerTime, Report, as_json, layer_times
from edgesparse.measuring.session import DENSE, ORT, SPARSE, subject
from edgesparse.measuring.stats import Comparison, Samples, Stats, goes_on, summarize
from edgesparse.runtimes.device import RIVAL, Description, Device, files_of
from edgesparse.runtimes.emulated import count_instructions

#: Largest error allowed in the program's check of itself, relative to the largest expected value.
TOLERANCE = 1e-5

EMULATED = "emulated: no latency"

NAMES: Mapping[str, str] = {"sparse": SPARSE, "dense": DENSE, "onnxruntime": ORT}
"""What reports call the program's forms, and what ran beside it."""


@dataclass(frozen=True)
class Wanted:
    """How to time, on which cores, when the device counts as wedged (seconds), whether to report layers, and whether to
    time onnxruntime as well where the device's python3 has it.
    """

    plan: Plan = field(default=Plan())
    cores: str = "big"
    timeout: float = 600.0
    layers: bool = True
    onnxruntime: bool = True


@dataclass(frozen=True)
class DeviceReport:
    """What a device bench found.

    Attributes
    ----------
    errors:
        Largest relative error of each form against the artifact's sample.
    instructions:
        Executed in the kernels in one run, by form; only where the device is emulated, and then nothing is timed.
    report:
        Of a real device: the same report as of a bench here.
    """

    device: Description
    errors: Mapping[str, float]
    instructions: Mapping[str, int]
    report: Report | None = None

    @property
    def stats(self) -> Mapping[str, Stats]:
        """Statistics by form ("sparse", "dense"); none of an emulated device."""
        measured = self.report.outcome.measured if self.report else ()
        return {form: item.stats for form, name in NAMES.items() for item in measured if item.name == name}

    @property
    def speedup(self) -> Comparison | None:
        """Sparse against dense in pairs."""
        return next(iter(self.report.outcome.comparisons), None) if self.report else None

    def record(self) -> dict[str, Any]:
        """The report as JSON values: `edgesparse.bench/1`, or `edgesparse.device-bench/1` of an emulated device."""
        if self.report is not None:
            return as_json(self.report)
        return {
            "schema": "edgesparse.device-bench/1",
            "device": self.device.record(),
            "errors": dict(self.errors),
            "note": EMULATED,
            "instructions": dict(self.instructions),
        }


def bench_device(
    device: Device,
    wanted: Wanted | None = None,
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> DeviceReport:
    """Measure an artifact on its device.

    Raises
    ------
    DeviceError
        The device fails; see `Device`.
    NumbersDifferError
        Its outputs there are not the expected ones.
    UsageError
        Several threads are asked for: the program there has one.
    """
    wanted, say, tick = wanted or Wanted(), notice or (lambda text: None), progress or (lambda share, text: None)
    plan = wanted.plan
    if plan.threads > 1:
        raise UsageError(f"a bench on a device runs on one thread, not {plan.threads}", fix="leave --threads out")
    rival = wanted.onnxruntime and bool(device.description.onnxruntime) and not device.link.emulated
    tick(0.0, "sending")
    device.push(files_of(device.artifact, rival=rival))
    say(f"sent {', '.join(device.sent) or 'nothing: all was there'}")
    given = ["bench", "--dense", "dense.bin", "--input", "sample.in", "--expect", "sample.out"]
    if device.link.emulated:
        # Timed runs would only take long; one of each form is enough to check the numbers.
        given += ["--seconds", "0", "--runs", "1", "--warm-up", "0", "--profile", "0", "--keep-all", "1"]
        told = _read(device.program(given, timeout=wanted.timeout))
        errors = _errors(told, device)
        counts = {form: count_instructions(device.artifact, form) for form in told["forms"]}
        return DeviceReport(device.description, errors, counts)

    def timed(times: float, text: str) -> dict[str, Any]:
        """What the program tells of so many times the planned length."""
        length = ["--seconds", _text(times * plan.seconds), "--runs", str(math.ceil(times * plan.runs))]
        length += ["--warm-up", _text(plan.warm_up), "--loads", str(plan.loads), "--most", _text(times * plan.limit)]
        how = ["--keep-all", str(int(plan.keep_all)), "--cores", wanted.cores]
        how += [] if wanted.layers else ["--profile", "0"]
        under = f"python3 {RIVAL}" if rival else ""
        with waiting(tick, (2 + rival) * (times * plan.seconds * 1.3 + plan.warm_up / 2), text):
            return _read(device.program([*given, *length, *how], timeout=wanted.timeout, under=under))

    told, planned = timed(1.0, "measuring on the device"), None
    found = _all_measured(told)
    patience = 1.0 if plan.keep_all or _short(found, plan) else plan.patience
    # The program makes its blocks by itself and cannot go on: it begins again, for as long as patience lasts.
    if goes_on([each.samples for each in found], _made(found), patience):
        planned = _made(found)
        told = timed(patience, "measuring longer, for want of calm")
    memory = {NAMES[form]: _memory(device, form, wanted.timeout) for form in ("sparse", "dense")}
    tick(1.0, "done")
    errors = _errors(told, device)
    return DeviceReport(device.description, errors, {}, _report(told, device, plan, planned, errors, memory))


@contextlib.contextmanager
def waiting(progress: Progress, seconds: float, text: str) -> Iterator[None]:
    """Show progress by the clock while something runs that tells nothing until it is done, in about `seconds`."""
    done, started = threading.Event(), time.monotonic()

    def count() -> None:
        while not done.wait(0.2):
            progress(min((time.monotonic() - started) / seconds, 0.99), text)

    watch = threading.Thread(target=count, daemon=True)
    progress(0.0, text)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _report(
    told: Mapping[str, Any],
    device: Device,
    plan: Plan,
    planned: int | None,
    errors: Mapping[str, float],
    memory: Mapping[str, Memory],
) -> Report:
    """Return what the program told as a report."""
    artifact, forms = device.artifact, told["forms"]
    loads = int(told.get("loads", 1))
    measured = _all_measured(told)
    fewest = min(item.stats.n for item in measured)
    notes = [f"onnxruntime {device.description.onnxruntime} of the device"] if "onnxruntime" in forms else []
    notes += [f"{loads} loads of each instead of {plan.loads}: memory"] if loads < plan.loads else []
    ended = f"ended before {plan.seconds:g} s and {plan.runs} runs of each, with {fewest} runs"
    before, after = (told[key] for key in ("before", "after"))
    cores = tuple(int(core["core"]) for core in before["cores"])
    outcome = conclude(
        plan,
        measured,
        planned=planned,
        cores=cores,
        notes=(*notes, ended) if _short(measured, plan) and fewest < ENOUGH_RUNS else tuple(notes),
        conditions=_conditions(before, after),
    )
    files = artifact.manifest.files
    program = files[artifact.manifest.module].size
    dense = forms.get("dense", {}).get("layers", ())
    macs = {str(record.get("name")): record.get("macs") or 0 for record in artifact.manifest.layers}
    return Report(
        outcome,
        subject(artifact),
        _environment(device.description, before),
        memory,
        {
            SPARSE: files["weights.bin"].size + program,
            DENSE: files["dense.bin"].size + program,
            ORT: artifact.portable_bytes,
        },
        layer_times([[(row["name"], row["ns"]) for row in forms["sparse"]["layers"]]], artifact.manifest.layers),
        dense_layers=tuple(
            LayerTime(row["name"], row["ns"] / 1e9, 2.0 * macs.get(row["name"], 0), "dense", "dense", 1.0)
            for row in dense
        ),
        device=device.description.record(),
        errors={NAMES[form]: error for form, error in errors.items()},
    )


def _all_measured(told: Mapping[str, Any]) -> list[Measured]:
    return [_measured(NAMES[form], values, int(told.get("loads", 1))) for form, values in told["forms"].items()]


def _made(measured: Sequence[Measured]) -> int:
    return len(measured[0].samples.blocks)


def _short(measured: Sequence[Measured], plan: Plan) -> bool:
    """Whether it ended before what was planned."""
    few = min(item.stats.n for item in measured) < plan.runs
    return few or min(float(item.samples.flat.sum()) for item in measured) < plan.seconds


def _measured(name: str, form: Mapping[str, Any], loads: int) -> Measured:
    blocks = tuple(tuple(tuple(ns / 1e9 for ns in turn) for turn in block) for block in form["blocks"])
    samples = Samples(name, blocks, loads)
    return Measured(
        samples,
        summarize(samples),
        form["load_ns"] / 1e9,
        form["first_ns"] / 1e9,
        bool(form["settled"]),
        int(form["warm_up_runs"]) + 1,
        int(form["disturbed"]),
        int(form["interrupted"]),
    )


def _conditions(before: Mapping[str, Any], after: Mapping[str, Any]) -> Conditions:
    looks = (before, after)
    speeds = [[core["khz"] / 1000 for core in look["cores"] if core.get("khz")] for look in looks]
    heat = [max(look["temperatures"].values(), default=None) for look in looks]
    load = str(after.get("load", "")).split()
    return Conditions(
        after["cores"][0].get("governor") if after["cores"] else None,
        (mean(speeds[0]) if speeds[0] else None, mean(speeds[1]) if speeds[1] else None),
        (heat[0], heat[1]),
        float(load[0]) if load else None,
    )


def _environment(said: Description, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the device in the words of `environment.record`; the tools are those that made the artifact."""
    seen = _conditions(before, before)
    return {
        "cpu": said.cpu or said.machine,
        "architecture": said.machine,
        "features": sorted(environment.FEATURES & set(said.features)),
        "cores": said.cores or None,
        "cores_allowed": len(before["cores"]) or None,
        "governor": seen.governor or said.governor or None,
        "frequency_mhz": seen.frequency_mhz[0],
        "temperature_c": seen.temperature_c[0],
        "virtual": None,
        "os": said.system,
        "load_1min": seen.load_1min,
        "python": None,
        "tools": {name: environment.version(name) for name in environment.TOOLS},
    }


def _memory(device: Device, form: str, timeout: float) -> Memory:
    given = ["memory", "--form", form, "--input", "sample.in", "--dense", "dense.bin"]
    try:
        return Memory(**json.loads(device.program(given, timeout=timeout)))
    except (ValueError, TypeError) as error:
        raise DeviceError("the device's answer cannot be read", why=str(error)[:200], fix="run it again") from error


def _text(seconds: float) -> str:
    return f"{seconds:.3f}"


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
        # What another onnxruntime on another machine computes is told, and not ours to judge.
        if name != "onnxruntime" and not error <= TOLERANCE:
            raise NumbersDifferError(
                f"the {name} form of {device.artifact.path} computes something else on {device.link.name}",
                why=f"off by {error:.2g} of the largest value; {TOLERANCE:.2g} is allowed",
                fix="please report it with the model and the device",
            )
    return errors
