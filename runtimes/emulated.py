"""Instructions that a device program executes in its kernels, counted by a plugin in QEMU's user mode.

A count is exact and the same on every machine. It says nothing of time: emulated latency is never reported.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgesparse.artifacts.artifact import Artifact
from edgesparse.building import link
from edgesparse.errors import DeviceError
from edgesparse.runtimes.device import EMULATORS

#: Seconds for one emulated run of the model.
TIMEOUT = 900.0


def count_instructions(artifact: Artifact, form: str = "sparse") -> int:
    """Instructions in the kernels of one run of the artifact's "sparse" or "dense" form.

    Raises
    ------
    DeviceError
        There is no emulator for the artifact's machine, it loads no plugins, or the program fails in it.
    """
    machine = str(artifact.manifest.target.get("machine"))
    emulator = EMULATORS.get(machine, "")
    if not emulator or shutil.which(emulator) is None:
        raise DeviceError(f"there is no emulator for {machine}", fix="apt-get install qemu-user")
    with tempfile.TemporaryDirectory(prefix="edgesparse-count-") as folder:
        room = Path(folder)
        source = link.native_folder() / "count_plugin.c"
        flags = ["-target", "x86_64-linux-gnu.2.17", "-O2", "-shared", "-fPIC", "-std=gnu99", str(source)]
        link.zig_cc([*flags, "-o", "count.so"], room, "compiling the counter")
        program = room / "bench"
        shutil.copyfile(artifact.module, program)
        program.chmod(0o755)
        low, high = json.loads(_run([emulator, str(program), "info"]))["kernels"]
        out = room / "count"
        plugin = f"{room / 'count.so'},low={low},high={high},out={out}"
        forms = ["--form", form, "--weights", str(artifact.weights)]
        forms += ["--dense", str(artifact.file("dense.bin"))] if form == "dense" else []
        _run([emulator, "-plugin", plugin, str(program), "count", "--runs", "1", *forms])
        try:
            return int(out.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise DeviceError(f"{emulator} counted nothing", why="was it built without plugins?") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{command[0]} did not end in {TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise DeviceError(f"{command[0]} failed", why=done.stderr.strip()[-300:] or f"exit code {done.returncode}")
    return done.stdout
