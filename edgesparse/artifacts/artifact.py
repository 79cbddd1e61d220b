"""Artifacts: the compiled form of a model for one target, as a folder or as the same folder zipped (`.esp`).

Files: `manifest.json`, the module (`model.so`), `weights.bin`, `model.onnx` (the portable form; above 2 GiB with
`model.onnx.data`), `samples.npz`. A folder is written beside its final place and renamed, so that it is there as a
whole or not at all. Everything read is taken for a stranger's: names, sizes and hashes are checked before any file is
used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgesparse import cache
from edgesparse.artifacts import manifest as manifests
from edgesparse.artifacts import packed
from edgesparse.artifacts.manifest import FileInfo, Manifest
from edgesparse.errors import ArtifactError, UsageError

#: What a file's content may be given as: bytes, a file to copy, or pieces.
Content = bytes | Path | Iterable[bytes | memoryview]

_CHUNK = 1 << 20
_MANIFEST = manifests.NAME


@dataclass(frozen=True)
class Artifact:
    """An artifact that was checked: `path` is what the user named, `folder` where its files lie."""

    path: Path
    folder: Path
    manifest: Manifest

    @property
    def module(self) -> Path:
        return self.folder / self.manifest.module

    @property
    def weights(self) -> Path:
        return self.folder / "weights.bin"

    @property
    def portable_bytes(self) -> int:
        """Size of the portable model, with that of the weights beside it where it has some."""
        return sum(info.size for name, info in self.manifest.files.items() if name in ("model.onnx", "model.onnx.data"))

    def file(self, name: str) -> Path:
        """One of the artifact's files. Raises ArtifactError if it has none of that name."""
        if name not in self.manifest.files:
            raise ArtifactError(
                f"{self.path} has no {name}", why="it was written without", fix="compile the model again"
            )
        return self.folder / name


@dataclass(frozen=True)
class Claim:
    """The right to write one artifact: nobody else writes there meanwhile."""

    path: Path
    workshop: Path
    force: bool

    def scratch(self) -> Path:
        """A folder on the same disk for files that go when the claim ends. Raises ArtifactError."""
        folder = self.workshop / "scratch"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return folder

    def write(self, manifest: Manifest, files: Mapping[str, Content]) -> Artifact:
        """Write all files, then put the artifact in its place at once.

        Parameters
        ----------
        manifest:
            Everything but `files`, which is filled in here.
        files:
            Content by file name; the module and `weights.bin` must be among them.

        Raises
        ------
        ArtifactError
            The files cannot be written (a full disk); nothing is left behind, and what was there before
            stays.
        """
        missing = {manifest.module, "weights.bin"} - files.keys()
        wrong = [name for name in files if not manifests.is_file_name(name) or name == _MANIFEST]
        if missing or wrong:
            raise ArtifactError(
                f"cannot write {self.path}", why=f"files missing or misnamed: {sorted(missing) + wrong}"
            )
        folder = self.workshop / "artifact"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            entries = {name: _write_file(folder / name, content) for name, content in files.items()}
            sealed = replace(manifest, files=entries)
            (folder / _MANIFEST).write_bytes(manifests.dump(sealed))
            if self.path.suffix == packed.SUFFIX:
                packed.pack(folder, self.workshop / "artifact.esp")
                os.replace(self.workshop / "artifact.esp", self.path)
            else:
                self._install(folder)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return open_artifact(self.path) if self.path.suffix == packed.SUFFIX else Artifact(self.path, self.path, sealed)

    def _install(self, folder: Path) -> None:
        """Rename the new folder into place; the old one moves aside first and comes back if that fails."""
        check_place(self.path, force=self.force)
        old = self.workshop / "old"
        replaced = self.path.exists()
        if replaced:
            os.rename(self.path, old)
        try:
            os.rename(folder, self.path)
        except OSError:
            if replaced:
                os.rename(old, self.path)
            raise


@contextlib.contextmanager
def claim(path: Path, *, force: bool = False) -> Iterator[Claim]:
    """Reserve the place of an artifact, for as long as the model compiles.

    Parameters
    ----------
    path:
        The folder, or a file that ends in `.esp`.
    force:
        Also replace an artifact that is damaged or has files beside its own.

    Raises
    ------
    UsageError
        What is there is not an artifact, or somebody else is writing there.
    ArtifactError
        The place cannot be written.
    """
    place = path.absolute()
    workshop = place.parent / f".{place.name}.partial"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock_folder(workshop)
    except OSError as error:
        raise _cannot_write(place, error) from error
    if handle is None:
        raise UsageError(
            f"cannot write {path}",
            why="another edgesparse is writing there now",
            fix="wait for it to end, or choose another output",
        )
    try:
        check_place(place, force=force)  # only now: nobody moves what is looked at
        yield Claim(place, workshop, force)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        os.close(handle)


def write(path: Path, manifest: Manifest, files: Mapping[str, Content], *, force: bool = False) -> Artifact:
    """Claim a place and write an artifact there: see `claim` and `Claim.write`."""
    with claim(path, force=force) as slot:
        return slot.write(manifest, files)


def check_place(path: Path, *, force: bool = False) -> None:
    """Raise UsageError unless an artifact may be written to `path`: nothing there, or an artifact."""
    if path.suffix == packed.SUFFIX:
        if path.is_dir() or (path.exists() and not packed.is_packed(path)):
            raise _occupied(path, "it is not an artifact", "choose another output")
        return
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise _occupied(path, "it is not a folder", "choose another output")
    names = set(os.listdir(path))
    if not names:
        return
    if _MANIFEST not in names:
        raise _occupied(path, "the folder holds other things than an artifact", "choose another output")
    if force:
        return
    try:
        known = read_manifest(path).files.keys() | {_MANIFEST}
    except ArtifactError as error:
        raise _occupied(path, f"there is a damaged artifact: {error.what}", "use --force to replace it") from error
    foreign = sorted(names - known)
    if foreign:
        why = f"the artifact there has files beside its own: {', '.join(foreign[:5])}"
        raise _occupied(path, why, "move them, or use --force to delete them")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact's folder, its own seal checked but not its files. Raises ArtifactError."""
    path = folder / _MANIFEST
    if not folder.exists():
        raise ArtifactError(f"there is no artifact {folder}", fix="compile one: edgesparse compile MODEL -o PATH")
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(f"{folder} is not an artifact", why=f"it has no {_MANIFEST}")
    try:
        with path.open("rb") as file:
            data = file.read(manifests.MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}", why=error.strerror or str(error)) from error
    return manifests.load(data, str(path))


def open_artifact(path: Path) -> Artifact:
    """Open an artifact and check all of it before anything is used.

    A `.esp` file is unpacked into the cache, keyed by its content.

    Raises
    ------
    ArtifactError
        Not an artifact, of another schema, or damaged: names the file.
    """
    folder = path
    if path.is_file():
        folder = packed.unpack(path)
        try:
            return Artifact(path, folder, _checked(folder))
        except ArtifactError:
            # Not the user's file but our copy may be what is damaged: take a fresh one.
            cache.drop_folder(packed.cache_key(path))
            folder = packed.unpack(path)
    return Artifact(path, folder, _checked(folder))


def pack(folder: Path, out: Path) -> Path:
    """Zip an artifact's folder into a `.esp` file; equal artifacts give equal bytes. Raises ArtifactError."""
    artifact = open_artifact(folder)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        packed.pack(artifact.folder, partial)
        os.replace(partial, out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return out


def _checked(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            if path.is_symlink() or not path.is_file():
                raise ArtifactError(f"{path} is missing", why="the manifest lists it", fix="copy the artifact again")
            found = FileInfo("", path.stat().st_size)
            if found.size == expected.size:
                with path.open("rb") as file:
                    found = FileInfo(hashlib.file_digest(file, "sha256").hexdigest(), found.size)
        except OSError as error:
            raise ArtifactError(f"cannot read {path}", why=error.strerror or str(error)) from error
        if found != expected:
            same = found.size == expected.size
            raise ArtifactError(
                f"{path} is damaged",
                why="its SHA-256 is not the manifest's" if same else f"{found.size} bytes, not {expected.size}",
                fix="copy the artifact again, or compile the model again",
            )
    return manifest


def _write_file(path: Path, content: Content) -> FileInfo:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in _pieces(content):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return FileInfo(digest.hexdigest(), size)


def _pieces(content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Path):
        with content.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece
    else:
        yield from content


def _lock_folder(workshop: Path) -> int | None:
    """Make a folder and lock it: a handle to keep open, or None where another process holds it.

    The lock tells a live writer from a folder that a killed one left behind, which is taken over.
    """
    for _ in range(100):
        with contextlib.suppress(FileExistsError):
            workshop.mkdir()
        try:
            handle = os.open(workshop, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # Its owner has just finished and removed it.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), workshop.stat()):
                return handle
        os.close(handle)
    return None


def _occupied(path: Path, why: str, fix: str) -> UsageError:
    return UsageError(f"cannot write an artifact to {path}", why=why, fix=fix)


def _cannot_write(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot write {path}",
        why=error.strerror or str(error),
        fix="nothing was left behind; free some space or choose another output",
    )
