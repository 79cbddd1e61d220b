"""Two bench reports beside each other: is the second slower? Pure: reports in, a verdict out.

Two reports were never measured together, so their times cannot be paired. Where both hold the same reference
(onnxruntime of one version), each report's paired ratio to it is compared instead, in its calm blocks: what made the
whole machine slower that day cancels. Only without one are the times themselves compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse.measuring.calm import calm_blocks
from edgesparse.measuring.intervals import MIN_BLOCKS, Floats, contrast

Data = Mapping[str, Any]

TOLERANCE = 0.03
"""Share by which two runs of the same bench may differ for reasons that no interval within one of them holds."""

REFERENCES = ("onnxruntime", "onnxruntime-web")
"""Contenders that serve as a reference, best first, where their version is the same."""

SAME = (
    ("environment", "cpu", "another processor"),
    ("environment", "architecture", "another architecture"),
    ("environment", "features", "other processor features"),
    ("subject", "target", "another target"),
    ("settings", "threads", "another number of threads"),
    ("settings", "percentile", "another protocol"),
)
"""What must be the same for two reports to be comparable: section, field, words."""


@dataclass(frozen=True)
class Row:
    """One contender that is in both reports.

    Attributes
    ----------
    before, after:
        Median latency in seconds.
    speed:
        How many times as fast it is in the second report; `low` and `high` bound it.
    reference:
        What its ratio was taken to; "" where the times themselves are compared.
    verdict:
        "faster", "slower" or "no difference": beyond the tolerance, with the whole interval beyond 1.
    """

    name: str
    before: float
    after: float
    speed: float
    low: float
    high: float
    reference: str
    verdict: str


@dataclass(frozen=True)
class Findings:
    """All contenders of both reports, what one alone has, what makes them not comparable, and what is to be known.

    The first row is the one that is judged: the first contender of the first report.
    """

    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether what is judged became slower."""
        return self.rows[0].verdict == "slower"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values: schema `edgesparse.compare/1`."""
        return {
            "schema": "edgesparse.compare/1",
            "rows": [vars(row) for row in self.rows],
            "missing": list(self.missing),
            "obstacles": list(self.obstacles),
            "notes": list(self.notes),
            "regressed": self.regressed,
        }


def compare_reports(before: Data, after: Data, *, tolerance: float = TOLERANCE) -> Findings:
    """Compare two reports, contender by contender.

    Parameters
    ----------
    tolerance:
        A smaller change than this share is no difference, however narrow its interval.

    Raises
    ------
    UsageError
        The first contender of the first report is not in the second: nothing can be judged.
    """
    old, new = _by_name(before), _by_name(after)
    judged = before["contenders"][0]["name"]
    if judged not in new:
        raise UsageError(
            f"the second report has no {judged}", why=f"it has {', '.join(new)}", fix="compare benches of the same kind"
        )
    rows = tuple(_row(name, old, new, before, after, tolerance) for name in old if name in new)
    missing = tuple([*(f"{name}: only in the first" for name in old if name not in new)])
    missing += tuple(f"{name}: only in the second" for name in new if name not in old)
    return Findings(rows, missing, tuple(_obstacles(before, after)), tuple(_notes(before, after, judged)))


def _row(
    name: str, old: Mapping[str, Data], new: Mapping[str, Data], before: Data, after: Data, tolerance: float
) -> Row:
    reference = _reference(name, old, new, before, after)
    times: list[Floats] = []
    loads: list[NDArray[np.intp]] = []
    for report, whole in ((old, before), (new, after)):
        own = np.asarray(report[name]["block_seconds"], dtype=np.float64)
        load_of = np.arange(len(own)) % int(whole["settings"].get("loads", 1))
        if reference:
            other = np.asarray(report[reference]["block_seconds"], dtype=np.float64)
            calm = slice(None) if whole["settings"].get("keep_all") else calm_blocks(own, other, load_of=load_of)
            own, load_of = (own / other)[calm], load_of[calm]
        times.append(own)
        loads.append(load_of)
    slower, least, most = contrast(*times, loads=(loads[0], loads[1]))
    speed, low, high = 1 / slower, 1 / most, 1 / least
    verdict = "no difference"
    if low > 1 and speed > 1 + tolerance:
        verdict = "faster"
    if high < 1 and speed < 1 - tolerance:
        verdict = "slower"
    medians = [float(report[name]["latency"]["p50"]) for report in (old, new)]
    return Row(name, medians[0], medians[1], speed, low, high, reference, verdict)


def _reference(name: str, old: Mapping[str, Data], new: Mapping[str, Data], before: Data, after: Data) -> str:
    """Return the contender to take ratios to, or "" where none is the same in both reports and in the same blocks."""
    for candidate in REFERENCES:
        if candidate == name or candidate not in old or candidate not in new:
            continue
        paired = all(
            len(report[name]["block_seconds"]) == len(report[candidate]["block_seconds"]) for report in (old, new)
        )
        tools = [report["environment"]["tools"].get(candidate) for report in (before, after)]
        if paired and tools[0] == tools[1]:
            return candidate
    return ""


def _obstacles(before: Data, after: Data) -> list[str]:
    found = []
    for section, key, words in SAME:
        pair = [report[section].get(key) for report in (before, after)]
        if pair[0] != pair[1] and None not in pair:
            found.append(f"{words}: {_plain(pair[0])} before, {_plain(pair[1])} after")
    names = [(report.get("device") or {}).get("name") for report in (before, after)]
    if names[0] != names[1]:
        found.append(f"another device: {names[0] or 'this machine'} before, {names[1] or 'this machine'} after")
    return found


def _notes(before: Data, after: Data, judged: str) -> list[str]:
    found = []
    for name, report in (("first", before), ("second", after)):
        for item in report["contenders"]:
            if item["unstable"]:
                found.append(f"{item['name']} is unstable in the {name} report: {'; '.join(item['unstable'])}")
        blocks = len(_by_name(report)[judged]["block_seconds"])
        if blocks < MIN_BLOCKS:
            found.append(f"the {name} report has only {blocks} blocks: its interval is their whole range")
    models = [report["subject"].get("model_sha256") for report in (before, after)]
    if models[0] != models[1]:
        found.append("the models differ: the change may be theirs")
    tools = [report["environment"]["tools"] for report in (before, after)]
    changed = sorted(name for name in tools[0].keys() | tools[1].keys() if tools[0].get(name) != tools[1].get(name))
    found += [f"{name}: {tools[0].get(name)} before, {tools[1].get(name)} after" for name in changed]
    return found


def _by_name(report: Data) -> dict[str, Data]:
    return {str(item["name"]): item for item in report["contenders"]}


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
