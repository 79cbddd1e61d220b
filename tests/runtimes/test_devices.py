"""Devices: what is told before anything is sent, the emulator, a real sshd on loopback, adb's errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from devicekit import needs_qemu, needs_sshd, small_artifact, sshd

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.verify import compare
from edgesparse.errors import DeviceError, EdgesparseError, UnsupportedError, UsageError
from edgesparse.measuring.devicebench import bench_device
from edgesparse.runtimes import links
from edgesparse.runtimes.device import Description, Device, DeviceRunner, check_device, describe, files_of, open_device
from edgesparse.runtimes.emulated import count_instructions


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("arm"), "aarch64")


@pytest.fixture(scope="module")
def arm32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("arm32"), "armv7")


def test_the_program_is_small(arm: Artifact) -> None:
    assert arm.module.stat().st_size < 100_000


@needs_qemu
@pytest.mark.parametrize("name", ["arm", "arm32"])
def test_emulated_outputs_are_onnxruntimes(name: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    sample = samples.load(artifact.file(samples.NAME), artifact.manifest)[0]
    with open_device("qemu", artifact) as device:
        found = DeviceRunner(device).run(sample.inputs)
    for key, expected in sample.outputs.items():
        assert compare(found[key], expected)[1] < 1e-5


@needs_qemu
def test_emulated_bench_counts_and_reports_no_latency(arm: Artifact) -> None:
    with open_device("qemu", arm) as device:
        report = bench_device(device)
    record = report.record()
    assert record["note"] == "emulated: no latency"
    assert "times" not in record
    assert 0 < report.instructions["sparse"] < report.instructions["dense"]
    assert count_instructions(arm) == report.instructions["sparse"]


@needs_qemu
def test_only_what_changed_is_sent_and_nothing_stays(arm: Artifact) -> None:
    with open_device("qemu", arm, keep=True) as device:
        device.push(files_of(arm))
        assert set(device.sent) == {"bench", "weights.bin", "dense.bin", "sample.in", "sample.out"}
    with open_device("qemu", arm) as device:
        device.push({**files_of(arm), "sample.in": b"other"})
        assert device.sent == ["sample.in"]
        folder = Path(device.folder.replace("'", ""))
        assert folder.is_dir()
    assert not folder.exists()


def _description(**changes: Any) -> Description:
    return dataclasses.replace(Description("box", "aarch64", features=("fp", "asimd")), **changes)


def test_wrong_targets_are_told_before_sending(arm: Artifact, toy_artifact: Path) -> None:
    from edgesparse.artifacts.artifact import open_artifact

    check_device(arm, _description())
    with pytest.raises(DeviceError, match="the device is x86_64"):
        check_device(arm, _description(machine="x86_64"))
    with pytest.raises(DeviceError, match="lacks asimd"):
        check_device(arm, _description(features=("fp",)))
    with pytest.raises(DeviceError, match="has no qemu-aarch64"):
        check_device(arm, _description(machine="x86_64", emulated=True))
    with pytest.raises(UnsupportedError, match="no program for a device"):
        check_device(open_artifact(toy_artifact), _description())


@pytest.mark.parametrize("text", ["", "ssh://", "ssh://-oProxyCommand=x", "ssh://host:99999", "telnet://x", "adb://-x"])
def test_names_that_are_no_devices(text: str) -> None:
    with pytest.raises(UsageError):
        links.parse(text)


class FakeLink:
    """Answers the steps of a run from a table."""

    name, emulated, base = "fake", False, "/nowhere"

    def __init__(self, run: links.Done | Exception) -> None:
        self.answer = run
        self.lines: list[str] = []

    def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = 60) -> links.Done:
        self.lines.append(line)
        if "uname" in line:
            return links.Done(0, b"machine=aarch64\nfeatures= fp asimd\n", "")
        if "./bench" in line:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        if "cat >" in line and self.answer.err == "full":  # type: ignore[union-attr]
            return links.Done(1, b"", "cat: write error: No space left on device")
        return links.Done(0, b"", "")

    def close(self) -> None:
        self.lines.append("closed")


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (links.Done(132, b"", "Illegal instruction"), "illegal instruction"),
        (links.Done(126, b"", "sh: ./bench: cannot execute binary file: Exec format error"), "cannot execute"),
        (links.Done(142, b"", ""), "did not end in 5 s"),
        (links.TimedOutError("late"), "did not end in 5 s"),
        (links.Done(137, b"", ""), "out of memory"),
        (links.Done(3, b"", "bench: weights.bin: the weights file is truncated"), "truncated"),
        (links.Done(139, b"", ""), "signal 11"),
    ],
)
def test_each_way_to_fail_has_its_words(arm: Artifact, ended: Any, message: str) -> None:
    with pytest.raises(DeviceError, match=message), Device(FakeLink(ended), arm) as device:
        device.program(["run"], timeout=5)


def test_full_disk_is_told_and_cleaned_up(arm: Artifact) -> None:
    link = FakeLink(links.Done(0, b"", "full"))
    with pytest.raises(DeviceError, match="disk is full"), Device(link, arm) as device:
        device.push({"sample.in": b"x"})
    assert any(line.startswith("rm -rf") for line in link.lines)
    assert link.lines[-1] == "closed"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with serving(tmp_path, monkeypatch) as found:
        yield found


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with sshd(folder) as (address, process, config):
        monkeypatch.setenv("EDGESPARSE_SSH", f"ssh -F {config} -o LogLevel=ERROR")
        yield address, process


@needs_sshd
@needs_qemu
def test_the_whole_way_over_ssh(arm: Artifact, server: Any) -> None:
    with open_device(f"ssh+qemu://{server[0]}", arm) as device:
        folder = device.folder
        report = bench_device(device)
        assert device.link.shell(f"test -d {folder}").code == 0
    assert report.device.machine == os.uname().machine
    assert max(report.errors.values()) < 1e-5
    assert not list(Path("/tmp").glob(Path(folder).name.strip('"')))


@needs_sshd
def test_a_program_of_another_machine_is_refused_over_ssh(arm: Artifact, server: Any) -> None:
    if os.uname().machine == "aarch64":
        pytest.skip("this machine runs it")
    with pytest.raises(DeviceError, match="cannot run on ssh://"), open_device(f"ssh://{server[0]}", arm):
        pass


@needs_sshd
def test_no_server_and_no_key(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = links.parse("ssh://nobody@127.0.0.1:1")
    with pytest.raises(links.LostError, match="refused"):
        link.shell("true")
    link.close()
    monkeypatch.setenv("EDGESPARSE_SSH", "ssh -F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null")
    link = links.parse(f"ssh://{server[0]}")
    with pytest.raises(links.LostError, match="denied"):
        link.shell("true")
    link.close()


@needs_sshd
@needs_qemu
def test_a_wedged_run_is_stopped(arm: Artifact, server: Any) -> None:
    with open_device(f"ssh+qemu://{server[0]}", arm) as device:
        device.push(files_of(arm))
        with pytest.raises(DeviceError, match="did not end in 1 s"):
            device.program(["count", "--runs", "100000000"], timeout=1)


@needs_sshd
@needs_qemu
def test_a_connection_that_drops(arm: Artifact, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_device(f"ssh+qemu://{server[0]}", arm, keep=True) as device:
        device.push(files_of(arm))
        threading.Timer(1.0, lambda: _drop(server[1])).start()
        with pytest.raises(links.LostError, match="dropped the connection"):
            device.program(["count", "--runs", "100000000"], timeout=4)
        folder = Path("/tmp") / Path(device.folder).name
    assert folder.is_dir()
    # The program's own alarm ends it although nobody is there to stop it.
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and Path(f"/proc/{(folder / 'pid').read_text().strip()}").exists():
        time.sleep(0.2)
    assert not Path(f"/proc/{(folder / 'pid').read_text().strip()}").exists()
    again = tmp_path / "again"
    again.mkdir()
    with serving(again, monkeypatch) as (address, _), open_device(f"ssh+qemu://{address}", arm) as device:
        assert Path("/tmp") / Path(device.folder).name == folder
        device.push(files_of(arm))
        assert device.sent == [], "what is there is taken up"
        sample = samples.load(arm.file(samples.NAME), arm.manifest)[0]
        found = DeviceRunner(device, timeout=60).run(sample.inputs)
    assert all(compare(found[name], expected)[1] < 1e-5 for name, expected in sample.outputs.items())
    assert not folder.exists()


def _drop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the connections that it holds."""
    tree = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in tree.splitlines()]
    owned = {server.pid}
    for _ in range(3):
        owned |= {int(row[0]) for row in rows if int(row[1]) in owned and row[2].startswith("sshd")}
    for pid in owned:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb")
def test_the_real_adb_says_that_there_is_no_device() -> None:
    link = links.parse("adb://no-such-serial")
    with pytest.raises(links.LostError, match="cannot be reached"):
        link.shell("true", timeout=30)


def test_missing_clients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for text, client in (("adb://x", "adb"), ("ssh://x", "ssh")):
        with pytest.raises(EdgesparseError, match=f"there is no {client}"):
            links.parse(text)


@needs_qemu
def test_the_command_line_benches_on_an_emulated_device(
    arm: Artifact, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from edgesparse.cli import main

    assert main(["bench", str(arm.path), "--device", "qemu"]) == 0
    told = capsys.readouterr().out
    assert "emulated: no latency" in told
    assert "p50" not in told
    assert main(["bench", str(arm.path), "--device", "telnet://x"]) == 2
    assert "devices are local, qemu, ssh" in capsys.readouterr().err
    assert main(["bench", str(arm.path), "--device", "qemu", "--json", "-"]) == 0
    assert '"instructions"' in capsys.readouterr().out


def test_devices_describes_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    from edgesparse.cli import main

    assert main(["devices", "local", "--json", "-"]) == 0
    assert os.uname().machine in capsys.readouterr().out


SAID = b"""machine=aarch64
system=Linux 6.6.31
cores=8
features= fp asimd asimddp
cpu= Cortex-A76
memory_kb=3884000
governor=schedutil
temperature=54321
onnxruntime=1.20.1
emulators=
"""


def test_all_that_a_device_says_of_itself_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgesparse.cli import main

    class Board(FakeLink):
        def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = 60) -> links.Done:
            return links.Done(0, SAID, "")

    board = Board(links.Done(0, b"", ""))
    said = describe(board)
    assert said == Description(
        *("fake", "aarch64", "Linux 6.6.31", "Cortex-A76", 8, ("fp", "asimd", "asimddp"), 3792, "schedutil", 54.321),
        onnxruntime="1.20.1",
    )
    monkeypatch.setattr(links, "parse", lambda _text: board)
    assert main(["devices", "ssh://board", "--json", "-"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["devices"]
    wanted = {"cores": 8, "memory_mb": 3792, "governor": "schedutil", "temperature": 54.321, "machine": "aarch64"}
    assert {key: found[key] for key in wanted} == wanted
    assert found["features"] == ["fp", "asimd", "asimddp"]
    assert main(["devices", "ssh://board"]) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in ("Cortex-A76", "3792", "schedutil", "54", "asimddp"))


@needs_sshd
def test_all_commands_go_over_one_connection(server: Any) -> None:
    """The client's port, as the server sees it, is the same: a master connection is shared, and ends with the link."""
    link = links.parse(f"ssh://{server[0]}")
    ports = {link.shell("echo $SSH_CONNECTION").out.split()[1] for _ in range(3)}
    other = links.parse(f"ssh://{server[0]}")
    ports_of_other = {other.shell("echo $SSH_CONNECTION").out.split()[1] for _ in range(2)}
    link.close()
    other.close()
    assert (len(ports), len(ports_of_other), len(ports | ports_of_other)) == (1, 1, 2)


@needs_qemu
def test_cores_that_are_not_there(arm: Artifact) -> None:
    with open_device("qemu", arm) as device:
        device.push(files_of(arm))
        for cores in ("zz", "0", "8000000000000000"):
            with pytest.raises(DeviceError, match="--cores"):
                device.program(["info", "--cores", cores], timeout=60)


@needs_qemu
def test_counting_needs_the_emulator(arm: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match="there is no emulator for aarch64"):
        count_instructions(arm)


@needs_qemu
def test_a_binary_of_no_known_format(arm: Artifact) -> None:
    """A file that is no program at all."""
    with open_device("qemu", arm) as device:
        device.push({"bench": b"\x7fELF not a program"})
        with pytest.raises(DeviceError, match=r"cannot execute|failed on qemu"):
            device.program(["info"], timeout=60)
