"""Sweeps that are killed, that run beside each other, whose cells crash; cores that are never shared."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesparse.errors import UsageError
from edgesparse.sweeping.claims import claim_cores, claim_device, physical_cores
from edgesparse.sweeping.engine import Runner, cluster, here, local_slots, run_cells
from edgesparse.sweeping.grid import cells_of
from edgesparse.sweeping.spec import load_sweep
from edgesparse.sweeping.store import Store

DRIVER = Path(__file__).with_name("driver.py")


def start(folder: Path, seconds: float, slots: int = 1) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(DRIVER), str(folder), str(seconds), str(slots)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def starts(folder: Path) -> list[tuple[int, str]]:
    """Process and density of every cell that was begun."""
    with contextlib.suppress(FileNotFoundError):
        return [(int(pid), share) for pid, share in map(str.split, (folder / "log").read_text().splitlines())]
    return []


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    return state != "Z"


def test_killed_in_the_middle_and_resumed(folder: Path) -> None:
    sweep = start(folder, 1.5)
    until(lambda: len(starts(folder)) == 2)
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    second = starts(folder)[1][0]
    until(lambda: not alive(second))  # the cell ends with its sweep
    kept = list((folder / "out/cells").iterdir())
    assert len(kept) == 1
    again = start(folder, 0.0)
    told = json.loads(again.communicate(timeout=60)[0])
    assert told == {"shares": [0.2, 0.4, 0.6], "kept": 1, "errors": []}
    assert [share for _, share in starts(folder)] == ["0.2", "0.4", "0.4", "0.6"]
    assert all(not name.name.startswith(".") for name in (folder / "out/cells").iterdir())


def test_two_at_once_share_the_work(folder: Path) -> None:
    sweeps = [start(folder, 0.5), start(folder, 0.5)]
    told = [json.loads(sweep.communicate(timeout=60)[0]) for sweep in sweeps]
    assert [one["shares"] for one in told] == [[0.2, 0.4, 0.6]] * 2
    assert sorted(share for _, share in starts(folder)) == ["0.2", "0.4", "0.6"]
    assert sum(one["kept"] for one in told) == 3


def test_a_cell_that_crashes_costs_itself_only(folder: Path) -> None:
    text = (folder / "sweep.yaml").read_text(encoding="utf-8")
    (folder / "sweep.yaml").write_text(text.replace("0.2, 0.4, 0.6", "0.99, 0.4"), encoding="utf-8")
    told = json.loads(start(folder, 0.0, 2).communicate(timeout=60)[0])
    assert told["shares"] == [0.4]
    assert [error["what"] for error in told["errors"]] == ["the cell's process ended without a result"]


def answer(density: float) -> dict[str, object]:
    return {"result": {"density": density}}


def test_a_damaged_cell_is_measured_again(folder: Path) -> None:
    cells, _ = cells_of(load_sweep(folder / "sweep.yaml"))
    store, count = Store(folder / "out"), [0]

    def run(job: object) -> dict[str, object]:
        count[0] += 1
        return answer(0.5)

    runner = Runner(run, 1, lambda: None)
    assert run_cells(cells, store, runner).kept == 0
    assert (run_cells(cells, store, runner).kept, count[0]) == (3, 3)
    first, second, _ = sorted((folder / "out/cells").iterdir())
    first.write_text(first.read_text(encoding="utf-8").replace("0.5", "0.9"), encoding="utf-8")
    second.write_bytes(second.read_bytes()[:100])
    assert (run_cells(cells, store, runner).kept, count[0]) == (1, 5)


def test_an_error_is_told_and_tried_again(folder: Path) -> None:
    cells, _ = cells_of(load_sweep(folder / "sweep.yaml"))
    error = {"what": "a", "why": "b", "fix": "c"}
    store = Store(folder / "out")
    done = run_cells(cells, store, Runner(lambda job: {"error": error}, 2, lambda: None))
    assert list(done.errors.values()) == [error] * 3
    done = run_cells(cells, store, Runner(lambda job: answer(1.0), 2, lambda: None))
    assert (len(done.results), done.errors, done.kept) == (3, {}, 0)


def test_an_interrupt_stops_what_runs(folder: Path) -> None:
    cells, _ = cells_of(load_sweep(folder / "sweep.yaml"))
    stopped: list[bool] = []

    def run(job: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, Store(folder / "out"), Runner(run, 1, lambda: stopped.append(True)))
    assert stopped == [True]
    assert not list((folder / "out/cells").iterdir())


def test_a_cell_that_takes_too_long_is_given_up(folder: Path) -> None:
    text = (folder / "sweep.yaml").read_text(encoding="utf-8").replace("[0.2, 0.4, 0.6]", "[0.2]")
    (folder / "sweep.yaml").write_text(f"{text}\nbench: {{timeout: 1}}", encoding="utf-8")
    cells, _ = cells_of(load_sweep(folder / "sweep.yaml"))
    sleeper = (sys.executable, "-c", "import time; time.sleep(60)")
    done = run_cells(cells, Store(folder / "out"), here(1, sleeper))
    assert [error["what"] for error in done.errors.values()] == ["the cell was given up"]


HOLD = """
import sys, time
from edgesparse.sweeping.claims import claim_cores
with claim_cores(1) as cores:
    begin = time.monotonic()
    time.sleep(0.3)
    print(*cores, begin, time.monotonic())
"""


def test_no_core_is_held_twice_at_a_time() -> None:
    holders = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(5)]
    spans: dict[int, list[tuple[float, float]]] = {}
    for holder in holders:
        core, begin, end = holder.communicate(timeout=60)[0].split()
        spans.setdefault(int(core), []).append((float(begin), float(end)))
    assert sum(map(len, spans.values())) == 5
    for taken in spans.values():
        taken.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(taken))


def test_a_claim_pins_and_ends_with_its_holder() -> None:
    before = os.sched_getaffinity(0)
    holder = subprocess.Popen([sys.executable, "-c", HOLD.replace("0.3", "60")])
    time.sleep(0.3)
    holder.kill()
    holder.wait()
    every = len(physical_cores(before))
    with claim_cores(every) as cores, claim_device("ssh://a"):
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == every
    assert os.sched_getaffinity(0) == before
    with pytest.raises(UsageError, match="threads need as many cores"), claim_cores(every + 1):
        pass
    with pytest.raises(UsageError, match="do not fit"):
        local_slots(every + 1)


def test_hardware_threads_of_one_core_count_as_that_core(tmp_path: Path) -> None:
    for cpu, text in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text, encoding="ascii")
    assert physical_cores({0, 1, 2, 3}, tmp_path) == {0: 0, 1: 1}
    assert physical_cores({2, 3}, tmp_path) == {0: 2, 1: 3}
    assert physical_cores({7}, tmp_path) == {7: 7}


def test_on_a_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    from edgesparse.sweeping import engine

    fake = (sys.executable, str(DRIVER.with_name("fakecell.py")), str(folder / "log"), "0")
    monkeypatch.setattr(engine, "_on_worker", lambda job: engine.run_process(job, fake))
    cells, _ = cells_of(load_sweep(folder / "sweep.yaml"), cluster=True)
    options = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "processes": False,
        "protocol": "tcp",
        "dashboard_address": None,
    }
    with distributed.LocalCluster(**options) as made, cluster(made.scheduler_address) as runner:
        assert runner.slots == 2
        done = run_cells(cells, Store(folder / "out"), runner)
    assert sorted(result["density"] for result in done.results.values()) == [0.2, 0.4, 0.6]


def test_no_cluster() -> None:
    with pytest.raises(UsageError, match="'nonsense' is no scheduler"), cluster("nonsense"):
        pass
