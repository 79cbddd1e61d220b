"""Artifacts: whole or not at all, and no damage goes unnoticed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesparse import cache
from edgesparse.artifacts import artifact, manifest, packed, samples
from edgesparse.errors import ArtifactError, UsageError

import toy  # isort: skip

FILES = ("manifest.json", "model.so", "weights.bin", "model.onnx", "samples.npz")
ENTRY: dict[str, Any] = {"sha256": "0" * 63 + "1", "size": 1}
SMALL: dict[str, artifact.Content] = {"model.so": b"code", "weights.bin": [b"wei", memoryview(b"ghts")]}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = artifact.write(tmp_path / "a", toy.manifest(), SMALL)
    opened = artifact.open_artifact(tmp_path / "a")
    assert opened.manifest == written.manifest
    assert (opened.manifest.inputs, opened.manifest.layers) == (toy.manifest().inputs, toy.manifest().layers)
    assert opened.weights.read_bytes() == b"weights"
    assert set(os.listdir(tmp_path)) == {"a"}, "nothing is left beside it"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_told(toy_artifact: Path, name: str) -> None:
    size = (toy_artifact / name).stat().st_size
    for at in {0, size // 3, size // 2, size - 1}:
        flip(toy_artifact / name, at)
        with pytest.raises(ArtifactError, match=name):
            artifact.open_artifact(toy_artifact)
        flip(toy_artifact / name, at)
    artifact.open_artifact(toy_artifact)


def test_every_byte_of_the_manifest_counts(toy_artifact: Path) -> None:
    data = (toy_artifact / "manifest.json").read_bytes()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ArtifactError):
            manifest.load(changed, "it")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_truncated_or_linked_file_is_told(toy_artifact: Path, name: str, tmp_path: Path) -> None:
    path = toy_artifact / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=name):
        artifact.open_artifact(toy_artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match=name):
        artifact.open_artifact(toy_artifact)
    (tmp_path / "elsewhere").write_bytes(data)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=name):
        artifact.open_artifact(toy_artifact)


def sealed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest with something changed by somebody who knows how to seal it."""
    entry = manifest.FileInfo(**ENTRY)
    whole = replace(toy.manifest(), files={"model.so": entry, "weights.bin": entry})
    document = json.loads(manifest.dump(whole))
    change(document)
    document["digest"] = "0" * 64
    text = json.dumps(document)
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "has schema 2"),
        (lambda d: d["files"].update({"../evil": ENTRY}), "not a plain file name"),
        (lambda d: d["files"].update({"/etc/passwd": ENTRY}), "not a plain file name"),
        (lambda d: d["files"].update({".hidden": ENTRY}), "not a plain file name"),
        (lambda d: d["files"].update({"manifest.json": ENTRY}), "not a plain file name"),
        (lambda d: d["files"]["weights.bin"].update(size=-1), "out of range"),
        (lambda d: d["files"]["weights.bin"].update(size=10**12), "out of range"),
        (lambda d: d["files"]["weights.bin"].update(size=True), "expected int"),
        (lambda d: d["files"]["weights.bin"].update(sha256="zz"), "out of range"),
        (lambda d: d["files"].update({f"f{i}": ENTRY for i in range(100)}), "too many"),
        (lambda d: d["files"].pop("weights.bin"), "no file entry"),
        (lambda d: d.update(module="other.so"), "no file entry"),
        (lambda d: d.pop("inputs"), "inputs"),
        (lambda d: d["inputs"][0].update(shape=[-1]), "impossible shape"),
        (lambda d: d["inputs"][0].update(shape=[1 << 40]), "impossible shape"),
        (lambda d: d["inputs"][0].update(shape=[1.5]), "expected int"),
        (lambda d: d["inputs"][0].update(dtype="object"), "has the dtype"),
        (lambda d: d["inputs"].append(d["inputs"][0]), "share a name"),
        (lambda d: d.update(layers={}), "expected list"),
    ],
)
def test_a_well_sealed_lie_is_told(change: Callable[[dict[str, Any]], object], message: str) -> None:
    manifest.load(sealed(lambda d: None), "it")
    with pytest.raises(ArtifactError, match=message):
        manifest.load(sealed(change), "it")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"{", b"[" * 100_000, b'{"schema": 1}'])
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        manifest.load(data, "it")


def test_a_place_without_artifact_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no artifact"):
        artifact.open_artifact(tmp_path / "no")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        artifact.open_artifact(tmp_path)
    with pytest.raises(ArtifactError, match=r"has no notes\.txt"):
        artifact.write(tmp_path / "a", toy.manifest(), SMALL).file("notes.txt")


def test_only_an_artifact_is_overwritten(tmp_path: Path, toy_artifact: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "home", tmp_path / "file"):
        for force in (False, True):
            with pytest.raises(UsageError, match="cannot write an artifact"):
                artifact.write(path, toy.manifest(), SMALL, force=force)
    artifact.write(toy_artifact, toy.manifest(), SMALL)
    assert set(contents(toy_artifact)) == {"manifest.json", *SMALL}
    (tmp_path / "empty").mkdir()
    artifact.write(tmp_path / "empty", toy.manifest(), SMALL)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_damaged_or_extended_artifact_needs_force(toy_artifact: Path) -> None:
    (toy_artifact / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        artifact.write(toy_artifact, toy.manifest(), SMALL)
    flip(toy_artifact / "manifest.json", 5)
    with pytest.raises(UsageError, match="--force"):
        artifact.write(toy_artifact, toy.manifest(), SMALL)
    artifact.write(toy_artifact, toy.manifest(), SMALL, force=True)


def full_disk() -> artifact.Content:
    yield b"first"
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["a", "a.esp"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, name: str, own_cache: Path) -> None:
    path = tmp_path / "out" / name
    with pytest.raises(ArtifactError, match="No space left"):
        artifact.write(path, toy.manifest(), {**SMALL, "model.onnx": full_disk()})
    assert os.listdir(path.parent) == []
    artifact.write(path, toy.manifest(), SMALL)
    with pytest.raises(ArtifactError, match="No space left"):
        artifact.write(path, toy.manifest(), {**SMALL, "model.onnx": full_disk()})
    assert os.listdir(path.parent) == [name]
    assert set(artifact.open_artifact(path).manifest.files) == SMALL.keys()


def test_a_failing_rename_brings_the_old_one_back(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(toy_artifact)
    true_rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == "artifact":
            raise OSError(errno.EIO, "Input/output error")
        true_rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ArtifactError, match="Input/output error"):
        artifact.write(toy_artifact, toy.manifest(), SMALL)
    assert contents(toy_artifact) == before


def test_an_exception_during_the_claim_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), artifact.claim(tmp_path / "a"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_two_writers_into_one_place(tmp_path: Path) -> None:
    with artifact.claim(tmp_path / "a") as slot:
        with pytest.raises(UsageError, match="another edgesparse is writing there"):
            artifact.write(tmp_path / "a", toy.manifest(), SMALL)
        artifact.write(tmp_path / "b", toy.manifest(), SMALL)
        slot.write(toy.manifest(), SMALL)
    assert set(os.listdir(tmp_path)) == {"a", "b"}


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".a.partial" / "artifact").mkdir(parents=True)
    (tmp_path / ".a.partial" / "artifact" / "model.so").write_bytes(b"half")
    artifact.write(tmp_path / "a", toy.manifest(), SMALL)
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_is_not_looked_at_while_another_writes_there(tmp_path: Path) -> None:
    """Between its renames there may be anything: that is not for a second writer to judge."""
    with artifact.claim(tmp_path / "a"):
        (tmp_path / "a").write_text("in between")
        with pytest.raises(UsageError, match="cannot write") as caught:
            artifact.write(tmp_path / "a", toy.manifest(), SMALL)
        assert "another edgesparse" in str(caught.value.why)
    with pytest.raises(UsageError, match="cannot write") as caught:
        artifact.write(tmp_path / "a", toy.manifest(), SMALL)
    assert "not a folder" in str(caught.value.why)
    assert os.listdir(tmp_path) == ["a"]


def contend(path: str) -> int:
    done = 0
    for _ in range(30):
        try:
            artifact.write(Path(path), toy.manifest(), SMALL)
            done += 1
        except UsageError:
            pass  # another one is writing: any other error fails the test
    return done


def test_many_writers_never_mix(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.map(contend, [str(tmp_path / "a")] * 3)) > 0
    artifact.open_artifact(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_misnamed_files_are_not_written(tmp_path: Path) -> None:
    for files in ({"model.so": b""}, {**SMALL, "../x": b""}, {**SMALL, "manifest.json": b""}):
        with pytest.raises(ArtifactError, match="missing or misnamed"):
            artifact.write(tmp_path / "a", toy.manifest(), files)


# The zipped form.


def test_packing_and_opening(toy_artifact: Path, tmp_path: Path, own_cache: Path) -> None:
    one, other = (artifact.pack(toy_artifact, tmp_path / f"{name}.esp") for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    opened = artifact.open_artifact(one)
    assert contents(opened.folder) == contents(toy_artifact)
    assert artifact.open_artifact(other).folder == opened.folder, "unpacked once"
    assert not list(tmp_path.glob("*.partial"))


def test_writing_the_zipped_form(tmp_path: Path, own_cache: Path) -> None:
    for _ in range(2):
        written = artifact.write(tmp_path / "a.esp", toy.manifest(), SMALL)
        assert written.weights.read_bytes() == b"weights"
    assert zipfile.ZipFile(tmp_path / "a.esp").namelist()[0] == "manifest.json"
    (tmp_path / "b.esp").write_text("a letter")
    with pytest.raises(UsageError, match="not an artifact"):
        artifact.write(tmp_path / "b.esp", toy.manifest(), SMALL)


def test_a_damaged_copy_in_the_cache_is_replaced(toy_artifact: Path, tmp_path: Path, own_cache: Path) -> None:
    path = artifact.pack(toy_artifact, tmp_path / "a.esp")
    flip(artifact.open_artifact(path).folder / "weights.bin", 100)
    assert contents(artifact.open_artifact(path).folder) == contents(toy_artifact)


def test_a_flipped_byte_in_the_zipped_form_is_told(toy_artifact: Path, tmp_path: Path, own_cache: Path) -> None:
    path = artifact.pack(toy_artifact, tmp_path / "a.esp")
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:  # a zip's dates and its like carry no meaning: what opens must be whole
            assert contents(artifact.open_artifact(path).folder) == contents(toy_artifact)
        except ArtifactError:
            assert cache.stats().entries <= 1
        cache.clear()


def rezip(source: Path, out: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    members = contents(source)
    change(members)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            archive.writestr(name, members[name])
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"../evil": b"x"}), "evil"),
        (lambda m: m.update({"/tmp/evil": b"x"}), "evil"),
        (lambda m: m.update({"extra": b"x"}), "extra"),
        (lambda m: m.pop("weights.bin"), r"weights\.bin"),
        (lambda m: m.pop("manifest.json"), r"manifest\.json"),
        (lambda m: m.update({"weights.bin": bytes(100 << 20)}), r"weights\.bin has 104857600 bytes"),
        (lambda m: m.update({"manifest.json": bytes(65 << 20)}), "huge"),
    ],
)
def test_a_hostile_zip_is_refused(
    toy_artifact: Path, tmp_path: Path, own_cache: Path, change: Callable[[dict[str, bytes]], object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifact.open_artifact(rezip(toy_artifact, tmp_path / "a.esp", change))
    assert cache.stats().entries == 0
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil").exists()


def test_a_zip_that_lies_about_sizes_is_refused(toy_artifact: Path, tmp_path: Path, own_cache: Path) -> None:
    """The directory claims the right size, the data unpack to more."""
    path = tmp_path / "a.esp"
    right = (toy_artifact / "weights.bin").stat().st_size
    rezip(toy_artifact, path, lambda m: m.update({"weights.bin": bytes(10 << 20)}))
    data = path.read_bytes().replace((10 << 20).to_bytes(4, "little"), right.to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        artifact.open_artifact(path)
    assert cache.stats().nbytes == 0


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"x" * 1000])
def test_random_bytes_are_no_zip(tmp_path: Path, own_cache: Path, data: bytes) -> None:
    (tmp_path / "a.esp").write_bytes(data)
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.open_artifact(tmp_path / "a.esp")
    assert not packed.is_packed(tmp_path / "a.esp")


# Samples.


def test_samples_round_trip(toy_built: Path) -> None:
    opened = artifact.open_artifact(toy_built)
    loaded = samples.load(opened.file(samples.NAME), opened.manifest)
    for found, made in zip(loaded, toy.some_samples(), strict=True):
        for name, array in {**made.inputs, **made.outputs}.items():
            np.testing.assert_array_equal({**found.inputs, **found.outputs}[name], array)


def test_samples_must_fit_the_signature() -> None:
    described, (one,) = toy.manifest(), toy.some_samples(1)
    for wrong in ([], [samples.Sample({}, one.outputs)], [samples.Sample(one.inputs, {toy.OUTPUT: np.zeros(3)})]):
        with pytest.raises(ValueError, match=r"sample"):
            samples.dump(wrong, described.inputs, described.outputs)


def test_hostile_samples_are_told(tmp_path: Path) -> None:
    path, described = tmp_path / "samples.npz", toy.manifest()
    right = {
        "input.0": np.zeros((2, 5, 7), "f4"),
        "output.0": np.zeros((2, 5, 7), "f4"),
        "output.1": np.zeros((2, 5), "f4"),
    }
    for change in (
        {"input.0": np.zeros((2, 5, 8), "f4")},
        {"input.0": np.zeros((3, 5, 7), "f4")},
        {"input.0": np.zeros((), "f4")},
        {"input.0": np.zeros((2, 5, 7), "f8")},
        {"input.0": np.array([print], dtype=object)},
        {"extra": np.zeros(1)},
        {"output.1": np.zeros((math.ceil(1e6), 5), "f4")},
    ):
        np.savez_compressed(path, **{**right, **change})
        with pytest.raises(ArtifactError, match="holds no samples"):
            samples.load(path, described)
    path.write_bytes(b"random")
    with pytest.raises(ArtifactError, match="holds no samples"):
        samples.load(path, described)
    shutil.rmtree(path, ignore_errors=True)
