"""Verification: hashes, samples, and onnxruntime on the portable model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgesparse.artifacts import artifact, samples
from edgesparse.artifacts.verify import compare, verify
from edgesparse.errors import ArtifactError, NumbersDifferError
from edgesparse.lowering import arena

import toy  # isort: skip


def changed(folder: Path, **files: artifact.Content) -> Path:
    """The artifact with other files, sealed."""
    opened = artifact.open_artifact(folder)
    out = folder.with_name("changed")
    kept: dict[str, artifact.Content] = {name: folder / name for name in opened.manifest.files}
    kept |= {name.replace("_", "."): content for name, content in files.items()}
    artifact.write(out, opened.manifest, {name: content for name, content in kept.items() if content != b""})
    return out


def test_hashes_only(toy_built: Path) -> None:
    result = verify(toy_built)
    assert set(result.files) == {"model.so", "weights.bin", "model.onnx", "samples.npz"}
    assert (result.errors, result.worst, result.same) == ((), None, True)


def test_the_numbers_agree(toy_built: Path) -> None:
    result = verify(toy_built, run=True)
    assert {(e.reference, e.sample, e.output) for e in result.errors} == {
        (reference, sample, name)
        for reference in ("samples", "onnxruntime")
        for sample in (0, 1)
        for name in (toy.OUTPUT, toy.SUMS)
    }
    assert result.same
    assert result.worst is not None
    assert result.worst.relative < 1e-6


def test_other_samples_are_told(toy_artifact: Path) -> None:
    described = toy.manifest()
    (one,) = toy.some_samples(1)
    off = {toy.OUTPUT: one.outputs[toy.OUTPUT] + np.float32(0.01), toy.SUMS: one.outputs[toy.SUMS]}
    wrong = samples.dump([samples.Sample(one.inputs, off)], described.inputs, described.outputs)
    path = changed(toy_artifact, samples_npz=wrong)
    with pytest.raises(NumbersDifferError, match="is not what samples says on sample 0") as caught:
        verify(path, run=True)
    assert caught.value.exit_code == 3
    assert not verify(path, run=True, must_agree=False).same
    assert verify(path, run=True, tolerance=0.1).same
    assert verify(path).same, "the hashes are right"


def test_another_portable_model_is_told(toy_artifact: Path) -> None:
    model = toy.portable().replace(np.float32(0.25).tobytes(), np.float32(0.75).tobytes())
    assert model != toy.portable()
    with pytest.raises(NumbersDifferError, match="onnxruntime"):
        verify(changed(toy_artifact, model_onnx=model), run=True)


def test_a_wrong_program_is_told(toy_artifact: Path, tmp_path: Path) -> None:
    other = arena.assign(toy.program(np.ones(toy.COLUMNS, np.float32)))
    files = toy.files(other, toy.library(tmp_path, other))
    artifact.write(toy_artifact, toy.manifest(), files)
    with pytest.raises(NumbersDifferError):
        verify(toy_artifact, run=True)


def test_what_cannot_be_compared_is_told(toy_artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be run by onnxruntime"):
        verify(changed(toy_artifact, model_onnx=b"random"), run=True)
    renamed = toy.portable().replace(b"\x01x", b"\x01q")
    with pytest.raises(ArtifactError, match="contradicts itself"):
        verify(changed(toy_artifact, model_onnx=renamed), run=True)
    with pytest.raises(ArtifactError, match=r"has no samples\.npz"):
        verify(changed(toy_artifact, samples_npz=b""), run=True)
    with pytest.raises(ArtifactError, match="holds no samples"):
        verify(changed(toy_artifact, samples_npz=b"random"), run=True)


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        ([1, 2], [1, 2], (0, 0)),
        ([1, 3], [1, 2], (1, 0.5)),
        ([0.5], [0], (0.5, 0.5)),
        ([np.nan, 1], [np.nan, 1], (0, 0)),
        ([np.nan, 1], [1, 1], (np.inf, np.inf)),
        ([np.inf], [-np.inf], (np.inf, np.inf)),
        ([np.inf, 1], [np.inf, 2], (1, 0.5)),
        ([], [], (0, 0)),
    ],
)
def test_compare(found: list[float], reference: list[float], expected: tuple[float, float]) -> None:
    assert compare(np.array(found, np.float32), np.array(reference, np.float32)) == expected
