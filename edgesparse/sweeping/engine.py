"""Running a sweep's cells: here in processes, or on a cluster through dask.distributed; finished ones are kept.

Each cell is a process of its own, started here or by a worker of the cluster: one that crashes, or is killed, costs its
cell only. Whoever holds a cell looks first whether it is finished. A cell that another sweep holds is left for later.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from edgesparse.errors import DeviceError, UsageError
from edgesparse.sweeping.claims import physical_cores
from edgesparse.sweeping.grid import Cell
from edgesparse.sweeping.store import Store

COMMAND = (sys.executable, "-m", "edgesparse.sweeping.cell")


@dataclass(frozen=True)
class Runner:
    """What cells run on.

    Attributes
    ----------
    run:
        From a job to its answer: `{"result": ..}` or `{"error": {what, why, fix}}`.
    slots:
        Cells that it can run at a time.
    stop:
        Ends those that run.
    """

    run: Callable[[Mapping[str, Any]], dict[str, Any]]
    slots: int
    stop: Callable[[], None]


Progress = Callable[[float, str], None]
_LOOK_AGAIN = 0.5
"""Seconds between two looks at cells that another sweep holds."""


@dataclass
class Done:
    """What became of the cells: results by key, errors by key, and how many were there before."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    kept: int = 0


def run_cells(cells: Sequence[Cell], store: Store, runner: Runner, *, progress: Progress | None = None) -> Done:
    """Run all cells that are not finished, as many at a time as the runner can, and return what is known of all.

    A cell that fails is told in `errors` and tried again by the next sweep.
    """
    store.make()
    tell = progress or (lambda share, text: None)
    work = _Work(cells, store, runner, tell)
    with ThreadPoolExecutor(max_workers=runner.slots) as pool:
        threads = [pool.submit(work.loop) for _ in range(runner.slots)]
        try:
            for thread in threads:
                thread.result()
        except BaseException:
            work.stopped.set()
            runner.stop()
            raise
    return work.done


class _Work:
    """The queue that the threads of one sweep share."""

    def __init__(self, cells: Sequence[Cell], store: Store, runner: Runner, tell: Progress) -> None:
        self.store, self.runner, self.tell = store, runner, tell
        self.todo = deque(cells)
        self.total = len(cells)
        self.done = Done()
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def loop(self) -> None:
        passed = 0
        while not self.stopped.is_set():
            with self.lock:
                if not self.todo:
                    return
                cell = self.todo.popleft()
                left = len(self.todo)
            if self._one(cell):
                passed = 0
                continue
            with self.lock:
                self.todo.append(cell)
            passed += 1
            if passed > left:  # all that is left is held by others
                self.stopped.wait(_LOOK_AGAIN)
                passed = 0

    def _one(self, cell: Cell) -> bool:
        """Finish a cell; False where another process holds it."""
        with self.store.hold(cell) as held:
            found = self.store.get(cell)
            if found is not None:
                self._count(cell, kept=True, result=found)
                return True
            if not held:
                return False
            self.tell(self._share(), cell.name)
            answer = self.runner.run(cell.job)
            if "result" in answer:
                self.store.put(cell, answer["result"])
                self._count(cell, result=answer["result"])
            elif not self.stopped.is_set():
                self._count(cell, error=answer["error"])
            return True

    def _count(
        self,
        cell: Cell,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, str] | None = None,
        kept: bool = False,
    ) -> None:
        with self.lock:
            if result is not None:
                self.done.results[cell.key] = result
            if error is not None:
                self.done.errors[cell.key] = error
            self.done.kept += kept
        self.tell(self._share(), cell.name)

    def _share(self) -> float:
        return (len(self.done.results) + len(self.done.errors)) / max(self.total, 1)


def here(slots: int, command: Sequence[str] = COMMAND) -> Runner:
    """Run each cell in a process of this machine, `slots` at a time."""
    running: set[subprocess.Popen[bytes]] = set()

    def stop() -> None:
        for process in tuple(running):
            process.kill()

    return Runner(lambda job: run_process(job, command, running), slots, stop)


def run_process(
    job: Mapping[str, Any], command: Sequence[str] = COMMAND, running: set[subprocess.Popen[bytes]] | None = None
) -> dict[str, Any]:
    """Run one cell in a process; its answer, or an error if it ends without one or after its time."""
    limit, late = float(job["timing"]["timeout"]), threading.Event()
    pipes = subprocess.PIPE
    # stdin stays open while we wait: the process ends by itself when we are gone
    with subprocess.Popen(list(command), stdin=pipes, stdout=pipes, stderr=pipes) as process:
        if running is not None:
            running.add(process)
        timer = threading.Timer(limit, _give_up, (process, late))
        timer.start()
        told = bytearray()
        drain = threading.Thread(target=_tail, args=(process.stderr, told), daemon=True)
        drain.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.read()
            process.wait()
            drain.join(timeout=5)
        finally:
            timer.cancel()
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
            if running is not None:
                running.discard(process)
    with contextlib.suppress(ValueError):
        return dict(json.loads(line))
    if late.is_set():
        return _error("the cell was given up", f"it took more than {limit:g} s", "raise bench.timeout")
    words = told.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
    return _error("the cell's process ended without a result", words[-1][:300], "")


def _give_up(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


@contextlib.contextmanager
def cluster(scheduler: str) -> Iterator[Runner]:
    """Run each cell in a process of one of a dask cluster's workers, as many at a time as these have threads.

    Cells of one device that is not its worker's own run one after another, whoever asks through that scheduler.

    Raises
    ------
    UsageError
        dask.distributed is not installed, or `scheduler` is no address.
    DeviceError
        The scheduler is not there, or has no workers.
    """
    if not re.fullmatch(r"(tcp|tls)://\S+:\d{1,5}", scheduler):
        raise UsageError(f"{scheduler!r} is no scheduler", fix="write it as tcp://HOST:PORT")
    try:
        distributed: Any = importlib.import_module("distributed")  # it tells no types
    except ImportError as error:
        raise UsageError(
            "--scheduler needs dask.distributed", why="it is not installed", fix="pip install 'edgesparse[cluster]'"
        ) from error
    try:
        client = distributed.Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot reach the scheduler {scheduler}", why=str(error).splitlines()[0][:200]) from error
    with client:
        waiting: set[Any] = set()
        slots = sum(client.nthreads().values())
        if not slots:
            raise DeviceError(f"the scheduler {scheduler} has no workers", fix=f"start some: dask worker {scheduler}")

        def run(job: Mapping[str, Any]) -> dict[str, Any]:
            future = client.submit(_on_worker, dict(job), pure=False, retries=0)
            waiting.add(future)
            try:
                return dict(future.result())
            except Exception as error:  # whatever a worker's end raises: it is told as the cell's failure
                return _error("the cluster lost the cell", f"{type(error).__name__}: {error}"[:300], "start it again")
            finally:
                waiting.discard(future)

        yield Runner(run, slots, lambda: client.cancel(list(waiting)))


def _on_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Runs on a worker."""
    device = job["device"]
    if device == "local" or "://" not in device:
        return run_process(job)
    distributed: Any = importlib.import_module("distributed")
    with distributed.Lock(f"edgesparse/{device}"):
        return run_process(job)


def local_slots(threads: int) -> int:
    """How many cells of so many threads this machine has cores for; UsageError if not even for one."""
    cores = len(physical_cores(os.sched_getaffinity(0)))
    if threads > cores:
        raise UsageError(
            f"cells of {threads} threads do not fit", why=f"there are {cores} cores", fix="lower bench.threads"
        )
    return cores // threads


def _tail(stream: Any, into: bytearray) -> None:
    """Keep the end of what a process says."""
    while piece := stream.read1(65536):
        into += piece
        del into[:-65536]


def _error(what: str, why: str, fix: str) -> dict[str, Any]:
    return {"error": {"what": what, "why": why, "fix": fix}}
