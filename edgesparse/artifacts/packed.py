"""The zipped form of an artifact (`.esp`): packing it, and unpacking a stranger's into the cache."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from pathlib import Path

from edgesparse import cache
from edgesparse.artifacts import manifest as manifests
from edgesparse.errors import ArtifactError

SUFFIX = ".esp"

#: The oldest time a zip can tell: the same for all files, so that equal content gives equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20

#: What zipfile raises over damaged, encrypted or exotic archives.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError)


def pack(folder: Path, out: Path) -> None:
    """Zip an artifact's files, the manifest first. Raises OSError."""
    names = [manifests.NAME, *sorted(path.name for path in folder.iterdir() if path.name != manifests.NAME)]
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(info, "w") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)


def is_packed(path: Path) -> bool:
    """Whether a file looks like a packed artifact: a zip that holds a manifest."""
    try:
        with zipfile.ZipFile(path) as archive:
            return manifests.NAME in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def cache_key(path: Path) -> str:
    """The key under which a packed artifact is unpacked: the hash of its bytes. Raises ArtifactError."""
    try:
        with path.open("rb") as file:
            return f"esp-{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise ArtifactError(f"cannot read {path}", why=error.strerror or str(error)) from error


def unpack(path: Path) -> Path:
    """Unpack into the cache, unless it is there: the folder. Its files' hashes are for the caller to check.

    Raises
    ------
    ArtifactError
        Not a zip, or one with names or sizes that an artifact cannot have.
    """

    def fill(folder: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                _extract(archive, path, folder)
        except _UNREADABLE as error:
            raise _bad(path, f"it is not a readable zip file: {error}") from error

    return cache.folder(cache_key(path), fill)


def _bad(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is not an artifact", why=why, fix="copy the artifact again")


def _extract(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    """Extract exactly the manifest and the files it lists, each with the size it lists."""
    members = {member.filename: member for member in archive.infolist()}
    first = members.get(manifests.NAME)
    if first is None or first.file_size > manifests.MAX_MANIFEST_BYTES:
        raise _bad(path, f"it has no {manifests.NAME}, or a huge one")
    _copy(archive, first, folder, path, first.file_size)
    manifest = manifests.load((folder / manifests.NAME).read_bytes(), f"{path}/{manifests.NAME}")
    expected = manifest.files.keys() | {manifests.NAME}
    if len(archive.infolist()) != len(members) or members.keys() != expected:
        odd = sorted(members.keys() ^ expected)
        raise _bad(path, f"its members are not those of its manifest: {', '.join(odd)[:200] or 'one comes twice'}")
    for name, entry in manifest.files.items():
        if members[name].file_size != entry.size:
            raise _bad(path, f"{name} has {members[name].file_size} bytes, not {entry.size}")
        _copy(archive, members[name], folder, path, entry.size)


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: Path, size: int) -> None:
    """Copy one member, never more than the bytes it should have."""
    left = size
    with archive.open(member) as source, (folder / member.filename).open("xb") as sink:
        while piece := source.read(min(_CHUNK, left + 1)):
            left -= len(piece)
            if left < 0:
                raise _bad(path, f"{member.filename} unpacks to more than its {size} bytes")
            sink.write(piece)
    if left:
        raise _bad(path, f"{member.filename} is truncated")
