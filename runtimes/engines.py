"""JavaScript engines as devices: Node and headless Chromium run bundles, and ONNX models through onnxruntime-web.

An engine is a process that is told what to do through a mailbox (`serving`). Several models live in one engine, so that
they can be measured in turn.
"""

from __future__ import annotations

import base64
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import DeviceError, UsageError
from edgesparse.measuring.cores import preemptions_of
from edgesparse.runtimes.base import Closing, check_feeds
from edgesparse.runtimes.serving import Mailbox

#: Engine to the programs that may be it.
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "node": ("node", "nodejs"),
    "chromium": ("chromium", "chromium-browser", "google-chrome", "chrome"),
}
#: What to do where an engine is missing.
_INSTALL = {"node": "install Node 20 or newer", "chromium": "apt-get install chromium"}

#: Seconds until an engine that does not answer counts as lost: at the start, and later.
START, TIMEOUT = 60.0, 600.0

_WEB = Path(__file__).resolve().parent / "web"

_CHROMIUM = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
)


class Engine(Closing):
    """One running engine.

    Parameters
    ----------
    kind:
        "node" or "chromium".
    program:
        The program to start; by default the one on the path.
    flags:
        Further arguments of the program.
    isolated:
        Whether pages are served with the headers that allow threads and fine clocks.
    pace:
        Bytes per second that files are served to pages with; as fast as can be if 0.

    Raises
    ------
    DeviceError
        The program is missing, or does not come up.
    """

    def __init__(
        self,
        kind: str,
        *,
        program: str | None = None,
        flags: Sequence[str] = (),
        isolated: bool = True,
        pace: float = 0,
    ) -> None:
        if kind not in PROGRAMS:
            raise UsageError(f"there is no engine {kind!r}", fix=f"engines are {', '.join(PROGRAMS)}")
        self.kind = kind
        path = find_program(kind, program)
        self._room = tempfile.TemporaryDirectory(prefix="edgesparse-", ignore_cleanup_errors=True)
        self._log = Path(self._room.name) / "log"
        self._box = Mailbox(_WEB / "host.mjs", isolated=isolated, pace=pace)
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        self._runners: list[int] | None = None
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [path, *self._arguments(flags)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # What it writes there and does not clear away goes with the room.
                    env={**os.environ, "TMPDIR": self._room.name},
                )
            self.told = self.ask({"deed": "hello"}, limit=START)
        except OSError as error:
            self.close()
            raise DeviceError(f"{path} cannot be started", why=error.strerror or str(error)) from error
        except BaseException:  # an interruption too
            self.close()
            raise

    def _arguments(self, flags: Sequence[str]) -> list[str]:
        if self.kind == "node":
            return [*flags, str(_WEB / "host.mjs"), self._box.base]
        # Chromium's sandbox does not start for root.
        own = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        profile = f"--user-data-dir={self._room.name}/profile"
        return [*_CHROMIUM, *own, profile, *flags, f"{self._box.base}/page.html"]

    def address(self, folder: Path) -> str:
        """The folder as the engine reaches it."""
        return folder.resolve().as_uri() if self.kind == "node" else self._box.share(folder)

    def ask(self, job: Mapping[str, Any], *, limit: float = TIMEOUT) -> dict[str, Any]:
        """Have one thing done: what the engine answers.

        Raises
        ------
        DeviceError
            The engine ends, does not answer in `limit` seconds, or fails at it.
        """
        self._box.jobs.put(dict(job))
        deadline = time.monotonic() + limit
        while True:
            try:
                answer = self._box.results.get(timeout=0.5)
                break
            except queue.Empty:
                if self._process is not None and self._process.poll() is not None:
                    raise DeviceError(f"{self.kind} ended by itself", why=self._last_words()) from None
                if time.monotonic() > deadline:
                    raise DeviceError(f"{self.kind} did not answer in {limit:.0f} s", why=self._last_words()) from None
        if "error" in answer:
            raise DeviceError(f"{self.kind}: {job['deed']} failed", why=str(answer["error"])[:500])
        return answer

    def load_bundle(
        self, folder: Path, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], **options: Any
    ) -> EngineModel:
        """Load a bundle. Raises DeviceError."""
        job = {"kind": "ours", "url": f"{self.address(folder)}/index.mjs", "options": options}
        return self._load(job, inputs, outputs)

    def load_onnx(
        self, library: Path, model: Path, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], threads: int = 1
    ) -> EngineModel:
        """Load an ONNX model in onnxruntime-web; `library` is the folder of its package. Raises DeviceError."""
        name = "ort.node.min.mjs" if self.kind == "node" else "ort.wasm.min.mjs"
        url = f"{self.address(library / 'dist')}/{name}"
        job = {"kind": "ort", "url": url, "model": f"{self.address(model.parent)}/{model.name}", "threads": threads}
        return self._load(job, inputs, outputs)

    def _load(self, job: dict[str, Any], inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> EngineModel:
        self._count += 1
        name = f"model{self._count}"
        told = self.ask({"deed": "load", "id": name, **job})
        return EngineModel(self, name, tuple(inputs), tuple(outputs), told)

    def preemptions(self) -> int:
        """How often the system has taken a core away from what runs models: Node, or the browser's pages."""
        if self._process is None:
            return 0
        if self._runners is None:
            self._runners = [self._process.pid] if self.kind == "node" else _renderers(self._process.pid)
        return sum(preemptions_of(process) for process in self._runners)

    def close(self) -> None:
        """End the engine and its server. Closing twice is allowed."""
        if self._process is not None and self._process.poll() is None:
            # Its own session: the group holds the browser's helpers as well, and nothing else.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        if self._box is not None:
            self._box.close()
            self._room.cleanup()
            del self._box
        self._box = None  # type: ignore[assignment]

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-6:])[-600:]


class EngineModel:
    """One model in an engine: a `Runner`. `told` is what the engine said when it was loaded."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        told: Mapping[str, Any],
    ) -> None:
        self.engine = engine
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.told = told

    @property
    def load_seconds(self) -> float:
        return float(self.told["seconds"])

    def load(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Put inputs in place for `step`. UsageError for wrong names, shapes or dtypes."""
        arrays = check_feeds(self.inputs, feeds)
        tensors = {
            info.name: {
                "dtype": info.dtype,
                "dims": list(info.shape),
                "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
            }
            for info, array in zip(self.inputs, arrays, strict=True)
        }
        self.engine.ask({"deed": "feed", "id": self.name, "tensors": tensors})

    def step(self, count: int = 1, group: int = 1) -> list[float]:
        """Run on the inputs that are in place: the seconds that each run took by the engine's clock.

        With a `group`, each of the `count` numbers is the mean over so many runs.
        """
        job = {"deed": "run", "id": self.name, "count": count, "group": group}
        return [float(each) for each in self.engine.ask(job)["seconds"]]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name. UsageError, DeviceError."""
        self.load(feeds)
        self.step()
        texts = self.engine.ask({"deed": "outputs", "id": self.name})["tensors"]
        return {
            info.name: np.frombuffer(base64.b64decode(texts[info.name]), info.dtype).reshape(info.shape).copy()
            for info in self.outputs
        }

    def profile(self) -> list[tuple[str, int]]:
        """Name and nanoseconds of each layer in one run of its own, on the inputs of the last run."""
        found = self.engine.ask({"deed": "profile", "id": self.name})["layers"]
        return [(str(name), int(spent)) for name, spent in found]

    def close(self) -> None:
        """Give the model's memory back."""
        self.engine.ask({"deed": "unload", "id": self.name})


def _renderers(session: int) -> list[int]:
    """The processes of a browser's session that run pages; none where the system does not tell."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # processes may end meanwhile
            process = int(place.name)
            if os.getsid(process) == session and b"--type=renderer" in (place / "cmdline").read_bytes():
                found.append(process)
    return found


def find_program(kind: str, program: str | None = None) -> str:
    """The path of an engine's program. Raises DeviceError."""
    names = (program,) if program else PROGRAMS[kind]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise DeviceError(f"there is no {kind} here", why=f"looked for {', '.join(names)}", fix=_INSTALL[kind])


def find_package(name: str, start: Path | None = None) -> Path:
    """The folder of an installed npm package: in `node_modules` here or above, or in NODE_PATH. Raises DeviceError."""
    here = (start or Path.cwd()).resolve()
    places = [folder / "node_modules" for folder in (here, *here.parents)]
    places += [Path(part) for part in os.environ.get("NODE_PATH", "").split(os.pathsep) if part]
    places.append(here / "build" / "web" / "node_modules")
    for place in places:
        if (place / name / "package.json").is_file():
            return place / name
    raise DeviceError(f"the npm package {name} is not installed here", fix=f"npm install {name}")
