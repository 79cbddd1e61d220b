"""The bench program by itself: what it reads of the machine, which cores it takes, and what its JSON holds.

QEMU shows it a machine: files below the folder of `-L` stand before those of the system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devicekit import needs_qemu, small_artifact

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.runtimes.device import files_of

pytestmark = needs_qemu

EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm"}


@pytest.fixture(scope="module", params=["aarch64", "armv7"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def folder(made: Artifact, tmp_path: Path) -> Path:
    """A folder with what is sent to a device."""
    for name, content in files_of(made).items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            shutil.copy(content, tmp_path / name)
    (tmp_path / "bench").chmod(0o755)
    return tmp_path


def program(made: Artifact, folder: Path, *arguments: str, root: Path | None = None) -> dict[str, Any]:
    """What the program says, on a machine whose system has the files of `root`."""
    emulator = [EMULATORS[str(made.manifest.target["machine"])], *(["-L", str(root)] if root else [])]
    done = subprocess.run([*emulator, "./bench", *arguments], cwd=folder, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def machine(root: Path, strong: int) -> Path:
    """A system whose core `strong` is a big one, and all others that may be used little ones."""
    for core in sorted(os.sched_getaffinity(0)):
        files = {
            "cpu_capacity": "1024" if core == strong else "414",
            "cpufreq/scaling_governor": "schedutil" if core == strong else "powersave",
            "cpufreq/scaling_cur_freq": str(1_500_000 + core),
            "cpufreq/cpuinfo_max_freq": "2400000" if core == strong else "1800000",
        }
        for name, text in files.items():
            path = root / f"sys/devices/system/cpu/cpu{core}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    for zone, (kind, temperature) in enumerate([("cpu-thermal", "61250"), ("board", "-5300")]):
        path = root / f"sys/class/thermal/thermal_zone{zone}"
        path.mkdir(parents=True)
        (path / "type").write_text(f"{kind}\n")
        (path / "temp").write_text(f"{temperature}\n")
    return root


def test_governor_frequency_and_temperature_are_read(made: Artifact, folder: Path, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    told = program(made, folder, "info", root=machine(tmp_path / "root", cores[-1]))["machine"]
    assert [each["core"] for each in told["cores"]] == cores
    assert told["cores"][-1] == {
        "core": cores[-1],
        "governor": "schedutil",
        "khz": 1_500_000 + cores[-1],
        "max_khz": 2_400_000,
        "capacity": 1024,
    }
    assert all(each["governor"] == "powersave" for each in told["cores"][:-1])
    found = {name.split(" ", 1)[1]: value for name, value in told["temperatures"].items()}
    assert found["cpu-thermal"] == 61.2
    assert found["board"] == -5.3


def test_the_cores_that_are_asked_for_are_taken(made: Artifact, folder: Path, tmp_path: Path) -> None:
    """Big ones by their capacity (by their highest frequency where there is none), little ones, or those of a mask."""
    cores = sorted(os.sched_getaffinity(0))
    root, strong = machine(tmp_path / "root", cores[0]), cores[0]
    weak = cores[1:] or cores
    wanted = {"all": cores, "big": [strong], "little": weak}
    wanted |= {f"{1 << weak[-1]:x}": [weak[-1]], hex(1 << strong): [strong]}

    def taken(choice: str) -> list[int]:
        told = program(made, folder, "info", "--cores", choice, root=root)["machine"]
        return [each["core"] for each in told["cores"]]

    assert {choice: taken(choice) for choice in wanted} == wanted
    for path in root.glob("sys/devices/system/cpu/*/cpu_capacity"):
        path.write_text("\n")
    assert (taken("big"), taken("little")) == ([strong], weak)


def test_percentiles_profile_and_errors_are_told(made: Artifact, folder: Path) -> None:
    """Of every form, from all of its runs; the program judges its own outputs by the expected ones."""
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    (folder / "input").write_bytes(b"".join(value.tobytes() for value in sample.inputs.values()))
    (folder / "expected").write_bytes(b"".join(value.tobytes() for value in sample.outputs.values()))
    given = ["bench", "--weights", "weights.bin", "--dense", "dense.bin", "--input", "input", "--expect", "expected"]
    told = program(made, folder, *given, "--seconds", "0.05", "--runs", "40", "--warm-up", "0.05", "--profile", "5")
    assert set(told["forms"]) == {"sparse", "dense"}
    for form in told["forms"].values():
        times = np.sort([time for block in form["blocks"] for turn in block for time in turn])
        assert len(times) == form["runs"] >= 40
        shares = {"min_ns": 0, "p50_ns": 50, "p90_ns": 90, "p99_ns": 99}
        assert {key: form[key] for key in shares} == {key: times[len(times) * n // 100] for key, n in shares.items()}
        cut = len(times) // 10
        assert form["trimmed_mean_ns"] == int(times[cut : len(times) - cut].sum()) // (len(times) - 2 * cut)
        assert [layer["name"] for layer in form["layers"]] == [layer["name"] for layer in made.manifest.layers]
        assert all(layer["ns"] > 0 for layer in form["layers"])
        assert 0 <= form["error"] < 1e-5
    wrong = (folder / "expected").read_bytes()[:-4] + np.float32(1e6).tobytes()
    (folder / "expected").write_bytes(wrong)
    told = program(made, folder, *given, "--seconds", "0.01", "--runs", "2", "--warm-up", "0.01", "--profile", "0")
    assert all(form["error"] > 0.5 for form in told["forms"].values())


def test_the_program_is_static_and_small_beside_its_weights(made: Artifact) -> None:
    read = ["readelf", "-lW", str(made.module)]
    parts = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^Elf file type is (EXEC|DYN)", parts, re.MULTILINE)
    assert "LOAD" in parts
    assert not re.search(r"INTERP|NEEDED", parts)
    assert made.module.stat().st_size < 100_000
    assert made.weights.stat().st_size > 0


def test_weights_are_mapped(made: Artifact, folder: Path) -> None:
    """Not read: as the emulator tells the program's calls."""
    command = [EMULATORS[str(made.manifest.target["machine"])], "-strace", "./bench", "count", "--runs", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    opened = re.search(r'"weights\.bin".* = (\d+)$', done.stderr, re.MULTILINE)
    assert opened
    calls = done.stderr[opened.end() :]
    size, file = made.weights.stat().st_size, opened[1]
    assert re.search(rf"mmap2?\(\S*,{size},PROT_READ,[^)]*,{file},0", calls)
    assert not re.search(rf"\b(read|pread64|readv)\({file},", calls.partition(f"close({file})")[0])
