"""Tuning in place: each layer gets the candidate that was least, results are kept, and no time is made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from networks import HOST_TARGETS, Net

from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.verify import verify
from edgesparse.errors import UsageError
from edgesparse.measuring import trials
from edgesparse.measuring.trials import Subject, tune_in_place
from edgesparse.pipeline import compile_model
from edgesparse.planning.algorithms import WINOGRAD, job_name
from edgesparse.planning.decide import Choice
from edgesparse.planning.place import Jobs
from edgesparse.recipe import Recipe
from edgesparse.target import Target

TARGET = HOST_TARGETS[-1]


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    net = Net(5)
    x = net.input(1, 8, 24, 24)
    for channels in (16, 24):
        x = net.conv(x, channels)
    net.outputs.append(x)
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model().SerializeToString())
    return Subject(path, TARGET, Recipe.from_dict({"pattern": "group:4x1", "density": 0.25}))


def test_measured_once_and_taken(subject: Subject, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tune_in_place(subject, 0.05, asked=Choice(True, 112))
    assert found.plan == Choice(True, 112)
    assert found.plans == ()
    artifact = compile_model(
        subject.path,
        target=TARGET,
        recipe=subject.recipe,
        output=subject.path.parent / "tuned",
        measure=found.measure,
        depth_first=True,
        band_pixels=112,
    )
    assert artifact is not None
    verify(artifact.path, run=True)
    measured = [layer for layer in artifact.manifest.layers if layer["measured_us"] is not None]
    assert len(measured) == 2
    assert all(0 < layer["measured_us"] <= layer["runner_up_us"] for layer in measured)

    def never(*arguments: object) -> list[dict[str, float]]:
        raise AssertionError("measured again")

    monkeypatch.setattr(trials, "_profiles", never)
    again = tune_in_place(subject, 0.05, asked=Choice(True, 112))
    assert again.plan == found.plan
    with pytest.raises(AssertionError, match="measured again"):
        tune_in_place(subject, 0.05, asked=Choice(True, 40))


def test_the_least_wins(subject: Subject, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times told instead of taken: the second plan and every layer's second candidate are the fastest."""

    def told(artifacts: Sequence[Artifact], device: str | None, seconds: float) -> list[dict[str, float]]:
        found = []
        for index, artifact in enumerate(artifacts):
            found.append({str(layer["name"]): abs(index - 1) + 1.0 for layer in artifact.manifest.layers})
        return found

    monkeypatch.setattr(trials, "_profiles", told)
    monkeypatch.setattr(trials, "_CLOSE", 100.0)
    found = tune_in_place(subject, 0.05)
    assert len(found.plans) > 1
    assert [seconds for _, seconds in found.plans] == sorted(seconds for _, seconds in found.plans)
    first = found.plans[0][0]
    assert found.plan == Choice(first.depth_first, first.band_pixels)
    options = {"depth_first": first.depth_first, "band_pixels": first.band_pixels}
    plain = compile_model(
        subject.path, target=TARGET, recipe=subject.recipe, output=subject.path.parent / "plain", tune=False, **options
    )
    tuned = compile_model(
        subject.path,
        target=TARGET,
        recipe=subject.recipe,
        output=subject.path.parent / "tuned",
        measure=found.measure,
        **options,
    )
    assert plain is not None
    assert tuned is not None
    pairs = list(zip(plain.manifest.layers, tuned.manifest.layers, strict=True))
    assert all(layer["runner_up"] == chosen["kernel"] for layer, chosen in pairs if layer["runner_up"])


def test_winograd_stands_beside_the_other_ways(own_cache: Path, tmp_path: Path) -> None:
    net = Net(6)
    x = net.input(1, 8, 16, 16)
    dense = net.conv(x, 16, (3, 3), pads=(1, 1, 1, 1))
    half = net.conv(dense, 16, (3, 3), pads=(1, 1, 1, 1), density=0.5)
    few = net.conv(half, 16, (3, 3), pads=(1, 1, 1, 1), density=0.1)
    net.outputs.append(few)
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model().SerializeToString())
    found = tune_in_place(Subject(path, TARGET), 0.05, asked=Choice(True, 112))
    met: dict[str, list[float]] = {}

    def measure(jobs: Jobs) -> Mapping[str, list[float]]:
        met.update(found.measure(jobs))
        return met

    artifact = compile_model(
        path, target=TARGET, output=tmp_path / "tuned", measure=measure, depth_first=True, band_pixels=112
    )
    assert artifact is not None
    verify(artifact.path, run=True)
    first, second, third = (str(layer["name"]) for layer in artifact.manifest.layers)
    assert set(met) == {first, second, third, *(job_name(name, WINOGRAD.name) for name in (first, second))}
    assert all(min(times) > 0 for times in met.values())
    by_name = {str(layer["name"]): layer for layer in artifact.manifest.layers}
    for name in (first, second):
        faster = min(met[job_name(name, WINOGRAD.name)]) <= 0.85 * min(met[name])
        assert str(by_name[name]["kernel"]).startswith("winograd dense:") == faster


def test_nothing_is_measured_elsewhere(subject: Subject) -> None:
    foreign = Subject(subject.path, Target.parse("cortex-a76"))
    with pytest.raises(UsageError, match="cannot be measured here"):
        tune_in_place(foreign, 1.0)
    with pytest.raises(UsageError, match="emulated"):
        tune_in_place(foreign, 1.0, device="qemu")
