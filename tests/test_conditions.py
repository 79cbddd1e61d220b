"""Why times are unstable: what is read of a machine, and the verdict from it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgesparse.measuring.conditions import Cause, Conditions, Look, between, diagnose, look


def codes(found: tuple[Cause, ...]) -> list[str]:
    return [item.code for item in found]


def test_a_machine_is_read_from_its_files(tmp_path: Path) -> None:
    files = {
        "proc/stat": "cpu  9 9 9 9 0 0 0 0\ncpu0 100 0 50 900 7 0 0 25 0 0\ncpu1 1 2 3 900 7 0 0 0 0 0\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
        "sys/class/thermal/thermal_zone0/temp": "70000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    tick = os.sysconf("SC_CLK_TCK")
    found = look((1,), tmp_path)
    assert (found.governor, found.frequency_mhz, found.temperature_c) == ("schedutil", 2000.0, 70.0)
    assert (found.busy, found.stolen) == (6 / tick, 0.0)
    both = look((0, 1), tmp_path)
    assert (both.governor, both.frequency_mhz) == (None, 1500.0)
    assert both.busy == pytest.approx((175 + 6) / tick)
    assert both.stolen == pytest.approx(25 / tick)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = look((0,), tmp_path)
    assert (found.governor, found.frequency_mhz, found.temperature_c, found.busy) == (None,) * 4
    seen = between(found, look((0,), tmp_path))
    assert (seen.others_share, seen.stolen_share) == (None, None)


def test_this_machine_is_busy_with_us() -> None:
    before = look()
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    seen = between(before, look(), os.cpu_count() or 1)
    assert seen.others_share is None or 0 <= seen.others_share <= 1


def test_shares_of_the_cores() -> None:
    before = Look(10.0, busy=100.0, stolen=5.0, own=20.0)
    after = Look(20.0, busy=117.0, stolen=6.0, own=30.0, governor="performance", load_1min=1.5)
    seen = between(before, after, 2)
    assert seen.stolen_share == pytest.approx(1 / 20)
    assert seen.others_share == pytest.approx((17 - 10 - 1) / 20)
    assert (seen.governor, seen.load_1min) == ("performance", 1.5)
    assert between(before, after, 2, own=False).others_share is None
    assert seen.as_dict()["frequency_mhz"] == [None, None]


def test_no_cause_is_guessed() -> None:
    quiet = Conditions("performance", (2400.0, 2390.0), (50.0, 55.0), 0.5, 0.01, 0.0)
    assert codes(diagnose([0.0, 0.2], 0.0, quiet)) == ["unknown"]
    assert codes(diagnose([0.2, 0.2], 0.0, quiet)) == ["unknown"], "slower alike, yet neither hot nor clocked down"
    assert codes(diagnose([], 0.0, Conditions())) == ["unknown"]


def test_each_cause_has_its_words() -> None:
    hot = Conditions("performance", (2400.0, 1700.0), (50.0, 95.0))
    [cause] = diagnose([0.2, 0.3], 0.0, hot)
    assert str(cause).startswith("throttling: all became slower alike, by 20 to 30 %, and the cores fell from 2400 to")
    assert codes(diagnose([0.2, 0.0], 0.0, hot)) == ["unknown"], "one alone slows down: no throttling"
    [cause] = diagnose([0.0], 0.4, Conditions(load_1min=9.0), cores_allowed=2)
    assert cause.message.count("40 % of the runs were interrupted, the load average is 9.0 on 2 cores") == 1
    busy = Conditions("powersave", (800.0, 3000.0), others_share=0.3)
    assert codes(diagnose([0.0], 0.0, busy)) == ["load", "governor"]
    assert "from 800 to 3000 MHz" in diagnose([0.0], 0.0, busy)[1].message
