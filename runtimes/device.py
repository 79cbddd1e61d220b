"""Run an artifact's bench program on a device: look at the device, send what it has not yet, run, clean up.

All of it happens in one folder on the device, named after the artifact. A file counts as there when its SHA-256 is the
right one, so an interrupted transfer is simply made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import DeviceError, UnsupportedError, UsageError
from edgesparse.runtimes import links
from edgesparse.runtimes.base import Closing, check_feeds
from edgesparse.runtimes.links import Done, Link

#: What times onnxruntime on the device.
RIVAL = "rival.py"
#: Bytes a second that a slow connection still carries, for the time limit of a transfer.
_SLOWEST = 200_000
#: QEMU's user mode program for a target's machine.
EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64"}
#: Machines that also run programs of another kind.
_ALSO = {"armv8l": ("armv7l",), "aarch64": ("armv7l",)}

_DESCRIBE = r"""
echo machine=$(uname -m); echo system=$(uname -s -r)
echo cores=$(grep -c '^processor' /proc/cpuinfo)
echo features=$(grep -m1 -E '^(Features|flags)' /proc/cpuinfo | cut -d: -f2)
echo cpu=$(grep -m1 -E '^(model name|Model|Hardware)' /proc/cpuinfo | cut -d: -f2)
echo memory_kb=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)
echo governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)
echo temperature=$(cat /sys/class/thermal/thermal_zone0/temp 2>/dev/null)
echo onnxruntime=$(python3 -c 'import onnxruntime; print(onnxruntime.__version__)' 2>/dev/null)
echo emulators=$(for e in qemu-aarch64 qemu-arm qemu-x86_64; do command -v $e; done 2>/dev/null)
"""


@dataclass(frozen=True)
class Description:
    """What a device says of itself; empty or 0 where it says nothing. Temperature in degrees Celsius."""

    name: str
    machine: str
    system: str = ""
    cpu: str = ""
    cores: int = 0
    features: tuple[str, ...] = ()
    memory_mb: int = 0
    governor: str = ""
    temperature: float | None = None
    onnxruntime: str = ""
    emulators: tuple[str, ...] = ()
    emulated: bool = False

    def record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def describe(link: Link) -> Description:
    """Ask a device what it is. Raises DeviceError."""
    done = link.shell(_DESCRIBE)
    found = dict(line.split("=", 1) for line in done.out.decode(errors="replace").splitlines() if "=" in line)
    if not found.get("machine"):
        raise DeviceError(f"{link.name} does not say what it is", why=done.err.strip()[-300:], fix="is there a shell?")
    heat = found.get("temperature", "")
    return Description(
        link.name,
        found["machine"].strip(),
        found.get("system", ""),
        found.get("cpu", "").strip(),
        _number(found.get("cores", "")),
        tuple(found.get("features", "").split()),
        _number(found.get("memory_kb", "")) // 1024,
        found.get("governor", ""),
        int(heat) / 1000 if heat.lstrip("-").isdigit() else None,
        found.get("onnxruntime", ""),
        tuple(Path(path).name for path in found.get("emulators", "").split()),
        link.emulated,
    )


def check_device(artifact: Artifact, device: Description) -> None:
    """Make sure that a device can run an artifact's program, before anything is sent.

    Raises
    ------
    UnsupportedError
        The artifact is not a program for devices.
    DeviceError
        The device is another kind of machine, lacks instructions, or lacks the emulator.
    """
    target = artifact.manifest.target
    name, machine = str(target.get("name")), str(target.get("machine"))
    if target.get("runner") != "device":
        raise UnsupportedError(
            f"{artifact.path} is no program for a device",
            why=f"it was compiled for {name}",
            fix="compile it with --target aarch64, armv7 or another of `edgesparse targets` that runs on a device",
        )
    if device.emulated:
        if EMULATORS[machine] not in device.emulators:
            raise DeviceError(
                f"{device.name} has no {EMULATORS[machine]}", fix="apt-get install qemu-user (on that machine)"
            )
        return
    if machine not in (device.machine, *_ALSO.get(device.machine, ())):
        raise DeviceError(
            f"{artifact.path} cannot run on {device.name}",
            why=f"it was compiled for {name} ({machine}), the device is {device.machine}",
            fix="compile it for that machine, or emulate it with --device qemu",
        )
    needs = {str(flag) for flag in target.get("needs", ())}
    if machine != device.machine:
        needs = set()  # a 64-bit system names the features of its 32-bit mode differently
    lacking = sorted(needs - set(device.features)) if device.features else []
    if lacking:
        raise DeviceError(
            f"{artifact.path} cannot run on {device.name}",
            why=f"it was compiled for {name}, and the processor lacks {', '.join(lacking)}",
            fix="compile it with --target aarch64, which is safe everywhere",
        )


class Device(Closing):
    """One artifact's folder on one device.

    Parameters
    ----------
    link:
        The way there.
    artifact:
        What to run.
    keep:
        Leave the files on the device, so that the next time only what changed is sent (`--resume`).

    Raises
    ------
    DeviceError
        The device cannot be reached or cannot run the artifact.
    """

    def __init__(self, link: Link, artifact: Artifact, *, keep: bool = False) -> None:
        self.link, self.artifact, self.keep = link, artifact, keep
        self.description = describe(link)
        check_device(artifact, self.description)
        seal = hashlib.sha256((artifact.folder / "manifest.json").read_bytes()).hexdigest()
        self.folder = f"{link.base}/edgesparse-{seal[:16]}"
        self.sent: list[str] = []
        self._used = False
        self._running = False

    def push(self, files: Mapping[str, Path | bytes]) -> None:
        """Send the files that the device has not; `bench` becomes executable. Raises DeviceError."""
        self._used = True
        self._checked(self.link.shell(f"mkdir -p {self.folder}"), "making a folder")
        there = self._hashes(files)
        for name, content in files.items():
            if there.get(name) == _sha256(content):
                continue
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            spot = f"{self.folder}/{shlex.quote(name)}"
            line = f"rm -f {spot} && cat > {spot}.part && chmod 755 {spot}.part && mv {spot}.part {spot}"
            done = self.link.shell(line, stdin=content, timeout=links.SHORT + size / _SLOWEST)
            self._checked(done, f"sending {name}")
            self.sent.append(name)
        wrong = [name for name, digest in self._hashes(files).items() if digest != _sha256(files[name])]
        if wrong:
            raise DeviceError(
                f"{self.link.name}: {', '.join(wrong)} did not arrive whole", fix="is its disk full? try again"
            )

    def program(self, arguments: Sequence[str], *, timeout: float, under: str = "") -> bytes:
        """Run the bench program to its end and return its stdout.

        Parameters
        ----------
        timeout:
            Seconds after which it counts as wedged; it then ends itself, even when the connection is gone.
        under:
            A command on the device that runs the program, which is appended to it.

        Raises
        ------
        DeviceError
            It cannot be started, crashes, or does not end.
        """
        machine = str(self.artifact.manifest.target.get("machine"))
        start = f"{EMULATORS[machine]} " if self.link.emulated else f"{under} " if under else ""
        words = shlex.join([*arguments, "--timeout", str(max(1, int(timeout)))])
        # Waited for by the shell, which tells the signal that ended it; ssh alone would only say 255.
        line = f"cd {self.folder} || exit 1; {start}./bench {words} & p=$!; echo $p > pid; wait $p"
        self._running = True
        try:
            done = self.link.shell(line, timeout=timeout + 15)
        except links.TimedOutError as error:
            raise _wedged(self.link.name, timeout) from error
        self._running = False
        self._check_run(done, timeout)
        return done.out

    def pull(self, name: str) -> bytes:
        """A file's content. Raises DeviceError."""
        done = self.link.shell(f"cat {self.folder}/{shlex.quote(name)}", timeout=links.SHORT * 5)
        self._checked(done, f"fetching {name}")
        return done.out

    def close(self) -> None:
        """End what still runs and remove the folder, if the device can still be reached."""
        if self._used:
            # Only what may still run is ended: the number of a program that is done may be another's by now.
            lines = [f"kill $(cat {self.folder}/pid) 2>/dev/null"] if self._running else []
            lines += [f"rm -f {self.folder}/pid" if self.keep else f"rm -rf {self.folder}"]
            line = "; ".join(lines)
            with contextlib.suppress(DeviceError):
                self.link.shell(line, timeout=20)
            self._used = False
        self.link.close()

    def _hashes(self, names: Mapping[str, Any]) -> dict[str, str]:
        """SHA-256 of those of the files that are there."""
        spots = " ".join(shlex.quote(name) for name in names)
        done = self.link.shell(f"cd {self.folder} && sha256sum {spots} 2>/dev/null", timeout=links.SHORT * 5)
        lines = (line.split(None, 1) for line in done.out.decode(errors="replace").splitlines())
        return {parts[1].strip().lstrip("*"): parts[0] for parts in lines if len(parts) == 2}

    def _checked(self, done: Done, what: str) -> None:
        if done.code == 0:
            return
        full = "No space left" in done.err
        raise DeviceError(
            f"{self.link.name}: {what} failed",
            why="its disk is full" if full else done.err.strip()[-300:] or f"exit code {done.code}",
            fix="free some space there" if full else "",
        )

    def _check_run(self, done: Done, timeout: float) -> None:
        if done.code == 0:
            return
        name, path, target = self.link.name, self.artifact.path, self.artifact.manifest.target.get("name")
        said = done.err.strip()[-300:]
        if done.code == 132 or "llegal instruction" in said:
            raise DeviceError(
                f"{path} hit an illegal instruction on {name}",
                why=f"its processor lacks what {target} code uses",
                fix="compile it with --target aarch64 (or armv7), which is safe everywhere",
            )
        if done.code == 126 or "xec format error" in said or "cannot execute" in said:
            raise DeviceError(
                f"{name} cannot execute {path}",
                why=said or "its system does not know this binary format",
                fix=f"{target} is for another kind of machine; see `edgesparse devices`",
            )
        if done.code in (142, 128 + 15):
            raise _wedged(name, timeout)
        signal = f"signal {done.code - 128}" if done.code > 128 else f"exit code {done.code}"
        fix = "it may have run out of memory" if done.code == 137 else ""
        raise DeviceError(f"{path} failed on {name}", why=said or signal, fix=fix)


class DeviceRunner(Closing):
    """A `Runner` on a device: every run sends the inputs and fetches the outputs."""

    def __init__(self, device: Device, *, timeout: float = 600.0) -> None:
        self.device, self.timeout = device, timeout
        device.push(files_of(device.artifact, dense=False))

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self.device.artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self.device.artifact.manifest.outputs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name. Raises UsageError and DeviceError."""
        arrays = check_feeds(self.inputs, feeds)
        self.device.push({"input.raw": b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)})
        self.device.program(["run", "--input", "input.raw", "--output", "output.raw"], timeout=self.timeout)
        raw, found, at = self.device.pull("output.raw"), {}, 0
        for info in self.outputs:
            count = int(np.prod(info.shape, dtype=np.int64))
            size = count * np.dtype(info.dtype).itemsize
            if at + size > len(raw):
                raise DeviceError(f"{self.device.link.name} gave too few bytes of output")
            found[info.name] = np.frombuffer(raw, info.dtype, count, at).reshape(info.shape).copy()
            at += size
        return found

    def profile(self) -> list[tuple[str, int]]:
        """Name and nanoseconds of each layer, of a run of its own."""
        if self.device.link.emulated:
            raise UsageError("an emulated device has no latency to profile", fix="run on a real device")
        arguments = ["bench", "--seconds", "0", "--runs", "1", "--warm-up", "0", "--profile", "20"]
        told = json.loads(self.device.program(arguments, timeout=self.timeout))
        return [(layer["name"], layer["ns"]) for layer in told["forms"]["sparse"]["layers"]]

    def close(self) -> None:
        self.device.close()


@contextlib.contextmanager
def open_device(text: str, artifact: Artifact, *, keep: bool = False) -> Iterator[Device]:
    """Connect to the device that `text` names, for one artifact; the connection ends with the block."""
    link = links.parse(text)
    try:
        device = Device(link, artifact, keep=keep)
    except BaseException:
        link.close()
        raise
    with device:
        yield device


def files_of(artifact: Artifact, *, dense: bool = True, rival: bool = False) -> dict[str, Path | bytes]:
    """The files a device needs: program, weights, the first sample as raw bytes, and what onnxruntime there needs."""
    wanted = ["bench", "weights.bin", *(["dense.bin"] if dense else [])]
    if rival:
        wanted += ["model.onnx", *(name for name in artifact.manifest.files if name == "model.onnx.data")]
    found: dict[str, Path | bytes] = {name: artifact.file(name) for name in wanted}
    if rival:
        found[RIVAL] = Path(__file__).with_name(RIVAL)
    manifest = artifact.manifest
    sample = samples.load(artifact.file(samples.NAME), manifest)[0]
    found["sample.in"] = b"".join(sample.inputs[info.name].tobytes() for info in manifest.inputs)
    found["sample.out"] = b"".join(sample.outputs[info.name].tobytes() for info in manifest.outputs)
    return found


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wedged(name: str, timeout: float) -> DeviceError:
    return DeviceError(
        f"the run on {name} did not end in {timeout:.0f} s", why="it was stopped", fix="give it more with --timeout"
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
