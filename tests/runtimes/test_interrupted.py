"""A bench that is interrupted or ended: one line, and nothing is left on the device, or of the browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
import pytest
from adbserver import Phone, adb_server
from devicekit import needs_sshd, small_artifact, sshd
from webtools import needs, pruned_network

from edgesparse.artifacts.artifact import Artifact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("interrupted"), "native", runner="device")


def interrupt(made: Artifact, device: str, base: Path, *options: str) -> tuple[int, str, str, Path]:
    """Bench on a device, and interrupt everything of it as a terminal does as soon as the program runs there: how it
    ended, what it wrote, and the folder on the device.
    """
    code = (
        "import sys; from edgesparse.runtimes import links; from edgesparse.cli import main;"
        f"links.AdbLink.base = links.SshLink.base = {str(base)!r}; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "bench", str(made.path), "--device", device, "--seconds", "60", *options]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # Where the tests run in the background of a shell, the signal is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (spots := list(base.glob("edgesparse-*/pid"))) or not spots[0].read_text().strip():
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process = Path("/proc") / spots[0].read_text().strip()
    assert process.exists()
    os.killpg(started.pid, signal.SIGINT)
    out, err = started.communicate(timeout=60)
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists(), "the program was ended there"
    return started.returncode, out, err, spots[0].parent


@pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb (make test installs it with apt-get)")
@pytest.mark.parametrize("resume", [False, True])
def test_on_a_phone(resume: bool, made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with adb_server(Phone()) as port:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        code, out, err, folder = interrupt(made, "adb://", tmp_path, *["--resume"] * resume)
    assert code == 130
    assert out == ""
    assert "Traceback" not in err
    assert folder.exists() == resume
    if resume:
        assert {item.name for item in folder.iterdir()} >= {"bench", "weights.bin", "dense.bin"}
        assert not (folder / "pid").exists()


@needs_sshd
def test_over_ssh(made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sshd(tmp_path) as (address, _, config):
        monkeypatch.setenv("EDGESPARSE_SSH", f"ssh -F {config} -o LogLevel=ERROR")
        code, out, err, folder = interrupt(made, f"ssh://{address}", tmp_path)
    assert code == 130
    assert out == ""
    assert "Traceback" not in err
    assert not folder.exists()


def commands_with(text: str) -> list[str]:
    """The commands of all processes that have a text in theirs."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # processes may end meanwhile
            found.append((place / "cmdline").read_bytes().decode(errors="replace"))
    return [command for command in found if text in command]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_browser_is_left(ending: signal.Signals, tmp_path: Path) -> None:
    """The signal goes to the bench alone, and its browser, that one's helpers and its profile go with it."""
    needs("chromium")
    room = Path(tempfile.mkdtemp(prefix="es-"))  # Chromium needs a short path for its socket
    onnx.save(pruned_network(), tmp_path / "model.onnx")
    command = [sys.executable, "-m", "edgesparse", "bench", str(tmp_path / "model.onnx"), "--device", "chromium"]
    started = subprocess.Popen(
        [*command, "--seconds", "60", "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(room)},
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (ending, signal.SIGINT)],
    )
    deadline = time.monotonic() + 120
    while not any("--type=renderer" in command for command in commands_with(str(room))):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(ending)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (128 + ending, "")
    assert err.strip() == "interrupted; nothing half-written was kept"
    while commands_with(str(room)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert commands_with(str(room)) == []
    assert [item.name for item in room.glob("[!.]*")] == []
    shutil.rmtree(room)  # libraries may leave a hidden file
