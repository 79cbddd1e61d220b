"""A small server that speaks to the real adb client as its own server does, with this machine's shell as the phone.

After the protocol's description in Android's sources (OVERVIEW.TXT, SERVICES.TXT, shell_service.h): a request is four
hex digits of length and a text, the answer OKAY or FAIL; shells talk in packets of one byte of kind, four of length.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: What the client of platform tools 29 to 35 wants; with any other it ends the server and starts its own.
VERSION = 41
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
#: Chunks of output, as adbd sends them.
CHUNK = 32768


class Phone:
    """One device: its serial number, state, what its adbd can, and the shells that run on it."""

    def __init__(self, serial: str = "emulator-5554", features: str = "shell_v2,cmd", state: str = "device") -> None:
        self.serial, self.features, self.state = serial, features, state
        self.requests: list[str] = []
        self.environment = dict(os.environ)
        self.shells: list[tuple[subprocess.Popen[bytes], socket.socket]] = []

    def unplug(self) -> None:
        """The cable is pulled: connections end, shells run on, nobody is there."""
        self.state = "gone"
        for _, connection in self.shells:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End what still runs."""
        for shell, _ in self.shells:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


@contextmanager
def adb_server(phone: Phone) -> Iterator[int]:
    """Serve one phone: the port to set as ANDROID_ADB_SERVER_PORT."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, EOFError):
                while self.answer(_request(self.request)):
                    pass

        def answer(self, text: str) -> bool:
            """One request; False where the connection is over."""
            phone.requests.append(text)
            connection: socket.socket = self.request
            if text == "host:version":
                _okay(connection, f"{VERSION:04x}")
            elif text in ("host:devices", "host:devices-l"):
                _okay(connection, f"{phone.serial}\t{phone.state}\n" if phone.state != "gone" else "")
            elif text == "host:host-features":
                _okay(connection, "shell_v2,cmd,stat_v2,apex")
            elif phone.state != "device":
                gone = f"device '{phone.serial}' not found"
                _fail(connection, "device unauthorized." if phone.state == "unauthorized" else gone)
            elif text in (f"host-serial:{phone.serial}:features", "host:features"):
                _okay(connection, phone.features)
            elif text in (f"host:transport:{phone.serial}", "host:transport-any"):
                connection.sendall(b"OKAY")
                return True
            elif text in (f"host:tport:serial:{phone.serial}", "host:tport:any"):
                connection.sendall(b"OKAY" + struct.pack("<Q", 1))
                return True
            elif text.startswith("shell,v2"):
                connection.sendall(b"OKAY")
                _shell(connection, phone, text.partition(":")[2])
            else:
                _fail(connection, "device not found")
            return False

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that are killed break off."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        phone.end()
        server.shutdown()
        server.server_close()
        thread.join(5)


def _shell(connection: socket.socket, phone: Phone, line: str) -> None:
    """Run a line; forward its streams as packets, and at the end its exit code as adbd gives it (128 + signal)."""
    shell = subprocess.Popen(
        ["sh", "-c", line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=phone.environment,
        start_new_session=True,
    )
    phone.shells.append((shell, connection))
    lock = threading.Lock()

    def forward(kind: int, source: Any) -> None:
        while data := source.read1(CHUNK):
            with lock, contextlib.suppress(OSError):
                connection.sendall(struct.pack("<BI", kind, len(data)) + data)

    def feed() -> None:
        assert shell.stdin
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, size = struct.unpack("<BI", _exactly(connection, 5))
                data = _exactly(connection, size)
                if kind == STDIN:
                    shell.stdin.write(data)
                elif kind == CLOSE_STDIN:
                    shell.stdin.close()

    threads = [threading.Thread(target=forward, args=pair) for pair in ((STDOUT, shell.stdout), (STDERR, shell.stderr))]
    feeder = threading.Thread(target=feed, daemon=True)
    for thread in (*threads, feeder):
        thread.start()
    for thread in threads:
        thread.join()
    code = shell.wait()
    with contextlib.suppress(OSError):
        connection.sendall(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))
        connection.shutdown(socket.SHUT_RDWR)
    feeder.join(5)
    for stream in (shell.stdin, shell.stdout, shell.stderr):
        assert stream
        with contextlib.suppress(OSError):
            stream.close()


def _request(connection: socket.socket) -> str:
    return _exactly(connection, int(_exactly(connection, 4), 16)).decode()


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = connection.recv(size - len(found))
        if not data:
            raise EOFError
        found += data
    return found


def _okay(connection: socket.socket, text: str) -> None:
    connection.sendall(f"OKAY{len(text):04x}{text}".encode())


def _fail(connection: socket.socket, text: str) -> None:
    connection.sendall(f"FAIL{len(text):04x}{text}".encode())
