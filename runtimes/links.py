"""Ways to a device: run a shell line there, with files on its standard input. Plain `ssh` and `adb` clients.

Everything goes through a POSIX shell on the other side, so that the same few lines serve a Raspberry Pi, a phone and
this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgesparse.errors import DeviceError, UsageError

#: Seconds for one small command, and until a connection counts as impossible.
SHORT = 60.0
CONNECT = 10

_SSH_NAME = re.compile(r"(?:[\w.+-]+@)?[\w.-]+|(?:[\w.+-]+@)?\[[0-9A-Fa-f:.]+\]", re.ASCII)
_END = "edgesparse: at the end"
_SERIAL = re.compile(r"[\w.:-]+", re.ASCII)


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code as a shell gives it (128 + signal), and what it wrote."""

    code: int
    out: bytes
    err: str


class Link(Protocol):
    """One way to one device. `emulator` goes before the program's name where its code is emulated."""

    @property
    def name(self) -> str: ...

    @property
    def emulated(self) -> bool: ...

    @property
    def base(self) -> str:
        """Folder on the device under which programs may be written and executed; a shell expands it."""
        ...

    def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = SHORT) -> Done:
        """Run a shell line. DeviceError where the device cannot be reached, or the time is over."""
        ...

    def close(self) -> None: ...


class TimedOutError(DeviceError):
    """The device did not answer in time."""


class LostError(DeviceError):
    """The connection is gone, or never came."""


@dataclass(frozen=True)
class LocalLink:
    """This machine, natively or with QEMU's user mode."""

    name: str = "local"
    emulated: bool = False

    @property
    def base(self) -> str:
        return shlex.quote(tempfile.gettempdir())

    def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = SHORT) -> Done:
        return call(["sh", "-c", line], stdin, timeout, self.name)

    def close(self) -> None:
        """Nothing is open."""


class SshLink:
    """A machine over the system's ssh, with the user's own configuration and keys; one connection serves all commands.

    The client may be named, with options, in EDGESPARSE_SSH.
    """

    base = '"${TMPDIR:-/tmp}"'

    def __init__(self, host: str, port: int | None = None, *, emulated: bool = False) -> None:
        if not _SSH_NAME.fullmatch(host) or host.startswith("-"):
            raise UsageError(f"{host!r} is no host", fix="write ssh://user@host or ssh://user@host:port")
        self.name = f"ssh{'+qemu' if emulated else ''}://{host}{f':{port}' if port else ''}"
        self.emulated = emulated
        self._host = host.replace("[", "").replace("]", "")
        client = shlex.split(os.environ.get("EDGESPARSE_SSH", "ssh"))
        if not client or shutil.which(client[0]) is None:
            raise DeviceError("there is no ssh", fix="install OpenSSH's client (apt-get install openssh-client)")
        self._folder = tempfile.mkdtemp(prefix="es-ssh-")
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "auto",
            "ControlPath": f"{self._folder}/%C",
            "ControlPersist": "60",
        }
        self._command = [*client, *(f"-o{key}={value}" for key, value in options.items())]
        self._command += ["-p", str(port)] if port else []

    def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = SHORT) -> Done:
        done = call([*self._command, "--", self._host, line], stdin, timeout, self.name)
        if done.code == 255:
            raise LostError(
                f"{self.name} cannot be reached or dropped the connection",
                why=_last(done.err),
                fix=f"try `ssh {self._host}`; then run again, with --resume to go on with what is there",
            )
        return done

    def close(self) -> None:
        """End the shared connection."""
        with contextlib.suppress(OSError, DeviceError):
            call([*self._command, "-O", "exit", "--", self._host], b"", 5.0, self.name)
        shutil.rmtree(self._folder, ignore_errors=True)


class AdbLink:
    """An Android device (7 or later) through the `adb` client, by its serial number; "" for the only one there is."""

    base = "/data/local/tmp"
    emulated = False

    def __init__(self, serial: str = "") -> None:
        if serial and (not _SERIAL.fullmatch(serial) or serial.startswith("-")):
            raise UsageError(f"{serial!r} is no serial number", fix="`adb devices` lists them")
        if shutil.which("adb") is None:
            raise DeviceError("there is no adb", fix="install Android's platform tools (apt-get install adb)")
        self.name = f"adb://{serial}"
        self._command = ["adb", *(["-s", serial] if serial else [])]
        self._able = False

    def shell(self, line: str, *, stdin: bytes | Path = b"", timeout: float = SHORT) -> Done:
        if not self._able:
            self._check_able()
        # Where the connection ends early the client says 0: what came to its end says so.
        whole = f"( {line}\n); code=$?; echo {_END} >&2; exit $code"
        done = self._client(["shell", "-T", whole], stdin, timeout)
        said, mark, _ = done.err.rpartition(_END)
        if not mark:
            raise self._lost(done.err)
        return Done(done.code, done.out, said)

    def _client(self, arguments: Sequence[str], stdin: bytes | Path, timeout: float) -> Done:
        return call([*self._command, *arguments], stdin, timeout, self.name)

    def _check_able(self) -> None:
        """Only the shell's second protocol tells exit codes, and keeps what is written apart from what is said."""
        done = self._client(["features"], b"", SHORT)
        if done.code != 0:
            raise self._lost(done.err)
        if b"shell_v2" not in done.out.split():
            raise DeviceError(f"{self.name} cannot be used", why="its Android is older than 7", fix="use a newer one")
        self._able = True

    def _lost(self, said: str) -> LostError:
        return LostError(
            f"{self.name} cannot be reached or dropped the connection",
            why=_last(said),
            fix="plug it in, allow USB debugging on its screen, and see `adb devices`",
        )

    def close(self) -> None:
        """adb keeps its own server."""


def parse(text: str) -> Link:
    """The way that `local`, `qemu`, `ssh://[user@]host[:port]`, `ssh+qemu://..` or `adb://[serial]` names.

    Raises
    ------
    UsageError
        It names none.
    DeviceError
        The client that it needs is missing.
    """
    if text in ("local", "qemu"):
        return LocalLink(text, text == "qemu")
    kind, mark, rest = text.partition("://")
    if (mark and kind == "adb") or text == "adb":
        return AdbLink(rest)
    if mark and kind in ("ssh", "ssh+qemu"):
        found = re.fullmatch(r"(.+?)(?::(\d{1,5}))?/?", rest, re.ASCII)
        if found:
            port = int(found[2]) if found[2] else None
            if port is None or 0 < port < 65536:
                return SshLink(found[1], port, emulated=kind == "ssh+qemu")
    raise UsageError(
        f"unknown device {text!r}",
        fix="devices are local, qemu, ssh://user@host:port, ssh+qemu://user@host:port, adb://serial",
    )


def adb_devices() -> list[str]:
    """Names of the devices that adb sees; none where there is no adb."""
    if shutil.which("adb") is None:
        return []
    with contextlib.suppress(DeviceError):
        lines = call(["adb", "devices"], b"", CONNECT, "adb").out.decode(errors="replace").splitlines()[1:]
        return [f"adb://{line.split()[0]}" for line in lines if line.strip()]
    return []


def call(command: Sequence[str], stdin: bytes | Path, timeout: float, name: str) -> Done:
    """Run a client to its end. DeviceError where it is missing, TimedOutError where it does not end."""
    source = stdin.open("rb") if isinstance(stdin, Path) else None
    try:
        done = subprocess.run(
            command,
            input=None if isinstance(stdin, Path) else stdin,
            stdin=source,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(f"{name} did not answer in {timeout:.0f} s", fix="is it busy, asleep or gone?") from error
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started", why=error.strerror or str(error)) from error
    finally:
        if source is not None:
            source.close()
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return Done(code, done.stdout, done.stderr.decode(errors="replace"))


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it gave no reason"
