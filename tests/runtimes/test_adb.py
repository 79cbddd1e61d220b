"""Phones: the real adb client, with a small server on loopback that speaks adb's protocol."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from adbserver import Phone, adb_server
from devicekit import small_artifact

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.verify import compare
from edgesparse.errors import DeviceError
from edgesparse.runtimes import links
from edgesparse.runtimes.device import DeviceRunner, files_of, open_device

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb (make test installs it with apt-get)")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A program for devices of this machine's kind, so that the phone runs it and its times are real."""
    return small_artifact(tmp_path_factory.mktemp("adb"), "native", runner="device")


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    found = Phone()
    monkeypatch.setattr(links.AdbLink, "base", str(tmp_path))
    with adb_server(found) as port:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        yield found


def test_the_whole_way(made: Artifact, phone: Phone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgesparse.cli import main

    name = f"adb://{phone.serial}"
    arguments = ["bench", str(made.path), "--device", name, "--seconds", "0.02", "--runs", "10", "--json", "-"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert json.loads(text)
    assert "sparse" in text
    assert "dense" in text
    assert not list(tmp_path.glob("edgesparse-*")), "nothing is left behind"


def test_outputs_are_onnxruntimes(made: Artifact, phone: Phone) -> None:
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    with open_device("adb://", made) as device:
        found = DeviceRunner(device).run(sample.inputs)
    for key, expected in sample.outputs.items():
        assert compare(found[key], expected)[1] < 1e-5


def test_the_phone_is_found_and_described(phone: Phone, capsys: pytest.CaptureFixture[str]) -> None:
    from edgesparse.cli import main

    assert main(["devices", "--json", "-"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["devices"]}
    assert found[f"adb://{phone.serial}"]["machine"] == os.uname().machine


def test_files_that_are_there_are_not_sent_again(made: Artifact, phone: Phone) -> None:
    for expected in (5, 0):
        with open_device("adb://", made, keep=True) as device:
            device.push(files_of(made))
            assert len(device.sent) == expected


def test_exit_codes_and_streams_are_told(phone: Phone) -> None:
    link = links.parse("adb://")
    done = link.shell("cat; echo said >&2; exit 3", stdin=bytes(range(256)) * 500)
    assert (done.code, done.out, done.err) == (3, bytes(range(256)) * 500, "said\n")
    assert link.shell("sh -c 'kill -ILL $$'").code == 132


@pytest.mark.parametrize(
    ("state", "features", "message"),
    [
        ("unauthorized", "shell_v2", "unauthorized"),
        ("gone", "shell_v2", "not found"),
        ("device", "cmd", "older than 7"),
    ],
)
def test_phones_that_cannot_be_used(phone: Phone, made: Artifact, state: str, features: str, message: str) -> None:
    phone.state, phone.features = state, features
    with pytest.raises(DeviceError, match=message), open_device("adb://", made):
        pass


def test_the_cable_is_pulled(phone: Phone, made: Artifact, tmp_path: Path) -> None:
    with open_device("adb://", made, keep=True) as device:
        device.push(files_of(made))
        threading.Timer(0.7, phone.unplug).start()
        with pytest.raises(links.LostError, match="dropped the connection"):
            device.program(["count", "--runs", "1000000000"], timeout=2)
    room = tmp_path / Path(device.folder).name
    process = Path("/proc") / (room / "pid").read_text().strip()
    deadline = time.monotonic() + 10
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not process.exists(), "the program's own alarm ends it"
    phone.state = "device"
    with open_device("adb://", made) as device:
        device.push(files_of(made))
        assert device.sent == [], "what is there is taken up"
    assert not room.exists()


def test_a_wedged_run_is_stopped(phone: Phone, made: Artifact) -> None:
    with open_device("adb://", made) as device:
        device.push(files_of(made))
        with pytest.raises(DeviceError, match="did not end in 1 s"):
            device.program(["count", "--runs", "1000000000"], timeout=1)


def test_the_target_must_fit(phone: Phone, made: Artifact) -> None:
    other = "aarch64" if os.uname().machine != "aarch64" else "x86_64"
    manifest = dataclasses.replace(made.manifest, target={**made.manifest.target, "machine": other})
    with (
        pytest.raises(DeviceError, match="cannot run on adb"),
        open_device("adb://", dataclasses.replace(made, manifest=manifest)),
    ):
        pass
    assert not [text for text in phone.requests if "cat >" in text], "nothing was sent"
