"""Bundles: a model as a package for the web, in a folder that npm, bundlers and plain pages take as it is.

Both variants of the code (plain and relaxed SIMD) share one weights file. The folder is made beside its place and then
renamed, so that it is there as a whole or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse import cache
from edgesparse.artifacts.artifact import Artifact
from edgesparse.building.link import compile_probe, native_folder, zig_version
from edgesparse.building.modules import strip_counts, threaded
from edgesparse.errors import CompileError, UsageError
from edgesparse.passes.write import DATA
from edgesparse.pipeline import PORTABLE, compile_model
from edgesparse.recipe import Recipe
from edgesparse.target import Target
from edgesparse.web import webpackage
from edgesparse.web.webpackage import Description

SCHEMA = "edgesparse.bundle/1"

#: Variant to target, the plainest first.
VARIANTS: Mapping[str, str] = {"simd": "wasm-simd", "relaxed": "wasm-relaxed"}

#: What every bundle holds of `runtimes/web`.
SCRIPTS = ("runtime.mjs", "weights.mjs", "warming.mjs", "threads.mjs", "worker.mjs")

#: Threads that a bundle can use unless told otherwise: phones have four fast cores or fewer.
THREADS = 4

#: Pages of 64 KiB that a module needs beside its file's size (tables), weights, arena and a page of stack for each
#: thread: its own variables and the model's record.
_PAGE, _SPARE_PAGES = 65536, 4

#: Bytes of weights that are hashed at once, so that they are still in the processor's caches; more of them where there
#: would be too many hashes.
_PART, _MOST_PARTS = 1 << 19, 64

#: npm's rules, for names without a scope or with one.
_PACKAGE = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*", re.ASCII)

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was made: its folder, and its manifest's values."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def code_gzipped(self) -> int:
        """Bytes of one variant's code and the JavaScript when compressed: the larger variant."""
        scripts = sum(_gzipped(self.path / name) for name in ("index.mjs", *SCRIPTS))
        return scripts + max(_gzipped(self.path / name) for name in self.manifest["modules"].values())


def bundle_model(
    path: Path | str,
    *,
    output: Path,
    name: str | None = None,
    recipe: Recipe | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    seed: int = 0,
    dense: bool = False,
    portable: Path | None = None,
    threads: int = THREADS,
    finish: Callable[[Bundle], object] | None = None,
) -> Bundle:
    """Compile a model into a package for the web.

    Parameters
    ----------
    path, recipe, shapes, seed, dense:
        As for `compile_model`.
    output:
        The folder to make.
    name:
        Of the package; by default made from the model's file name.
    portable:
        Where to write the ONNX model that the bundle computes, if that is wanted too.
    threads:
        The most threads that the bundle can use. With more than one, each variant has further modules for pages that
        allow threads, of which a session loads one: see `strip_counts`.
    finish:
        Called with the bundle before it is put in its place, to add to its folder.

    Raises
    ------
    EdgesparseError
        One of its kinds; what was at `output` before stays as it was.
    """
    tell = progress or (lambda share, text: None)
    package = package_name(Path(path), name)
    check_output(output, force=force)
    with tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
        artifacts: dict[str, Artifact] = {}
        source: Path | str = path
        for index, (variant, target) in enumerate(VARIANTS.items()):
            made = compile_model(
                source,
                target=Target.parse(target),
                output=Path(room) / variant,
                recipe=recipe if index == 0 else None,
                shapes=shapes if index == 0 else None,
                progress=lambda share, text, at=index: tell((at + share) / len(VARIANTS), text),  # type: ignore[misc]
                notice=notice if index == 0 else None,
                seed=seed,
                dense=dense,
                tune=False,
                threads=threads,
            )
            assert made is not None, "only stop_after ends without an artifact"
            artifacts[variant] = made
            source = made.file(PORTABLE)
        if portable is not None:
            shutil.copyfile(source, portable)
            beside = Path(source).with_name(f"{PORTABLE}{DATA}")
            if beside.exists():
                shutil.copyfile(beside, portable.with_name(beside.name))
        return _write(package, artifacts, output, Path(path), threads, finish)


def package_name(model: Path, name: str | None) -> str:
    """The package's name: as given, if npm takes it, else the model's file name made to fit. UsageError."""
    if name is not None:
        if len(name) > 214 or not _PACKAGE.fullmatch(name):
            raise UsageError(
                f"{name[:80]!r} is no name for an npm package",
                why="npm takes lower-case letters, digits, dots, hyphens and underscores, and a scope: @me/model",
            )
        return name
    return re.sub(r"[^a-z0-9]+", "-", model.stem.lower()).strip("-")[:200] or "model"


def check_output(output: Path, *, force: bool) -> None:
    """Make sure that a folder may be written; only an empty folder or an older bundle is replaced. UsageError."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or _schema(output) != SCHEMA:
        raise UsageError(f"{output} is there already and is not a bundle", fix="choose another --output")
    if not force:
        raise UsageError(f"{output} is there already", fix="choose another --output, or --force to replace it")


def open_bundle(path: Path) -> Bundle:
    """A bundle that was made before. Raises UsageError."""
    if _schema(path) != SCHEMA:
        raise UsageError(f"{path} is not a bundle", fix="make one with edgesparse bundle MODEL.onnx")
    return Bundle(path, json.loads((path / "manifest.json").read_bytes()))


def web_folder() -> Path:
    """The folder with the web runtime's sources."""
    return native_folder().parent / "web"


def probe() -> bytes:
    """The module that tells whether and how fast relaxed SIMD is on an engine."""
    source = (web_folder() / "probe.c").read_text(encoding="utf-8")
    key = cache.key_of("probe", source, zig_version())
    found = cache.get(key)
    if found is None:
        found = compile_probe(source)
        cache.put(key, found)
    return found


def _write(
    package: str,
    artifacts: Mapping[str, Artifact],
    output: Path,
    model: Path,
    threads: int,
    finish: Callable[[Bundle], object] | None,
) -> Bundle:
    first = next(iter(artifacts.values()))
    manifest = first.manifest
    weights = manifest.files["weights.bin"]
    if any(item.manifest.files["weights.bin"] != weights for item in artifacts.values()):
        raise CompileError("the variants' weights differ", fix="this is a bug in edgesparse; please report it")
    modules = {variant: (f"model.{variant}.wasm", item.module) for variant, item in artifacts.items()}
    pages = {}
    for strips in strip_counts(threads):
        for variant, item in artifacts.items():
            key = f"{variant}.threads{strips}"
            modules[key] = (f"model.{key}.wasm", item.file(threaded(strips)))
            pages[key] = _pages(item, strips)
    layers = [dict(layer) for layer in manifest.layers]
    it = Description(
        package,
        "1.0.0",
        manifest.inputs,
        manifest.outputs,
        {key: name for key, (name, _) in modules.items()},
        weights.sha256,
        weights.size,
        *hash_parts(first.weights),
        probe(),
        layers,
        density(layers),
        threads,
        tuple(VARIANTS),
        strip_counts(threads),
        pages,
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".edgesparse-", dir=output.parent) as room:
            folder = Path(room) / "bundle"
            folder.mkdir()
            for name, module in modules.values():
                shutil.copyfile(module, folder / name)
            shutil.copyfile(first.weights, folder / "weights.bin")
            for name in SCRIPTS:
                shutil.copyfile(web_folder() / name, folder / name)
            texts = {
                "index.mjs": webpackage.index_mjs(it),
                "index.d.ts": webpackage.index_dts(it),
                "README.md": webpackage.readme(it),
            }
            files = sorted([*(path.name for path in folder.iterdir()), *texts, "manifest.json"])
            texts["package.json"] = webpackage.package_json(it, files)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            values = _manifest(it, first, folder, model)
            (folder / "manifest.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            if finish is not None:
                finish(Bundle(folder, values))
            if output.exists():
                output.rename(Path(room) / "before")
            folder.rename(output)
    except OSError as error:
        raise UsageError(f"cannot write {output}", why=error.strerror or str(error)) from error
    return Bundle(output, values)


def hash_parts(weights: Path) -> tuple[int, tuple[str, ...]]:
    """Bytes of a part, and the SHA-256 of each part: a session checks one while the next ones are coming."""
    step = max(_PART, -(-weights.stat().st_size // (_PART * _MOST_PARTS)) * _PART)
    with weights.open("rb") as file:
        return step, tuple(hashlib.sha256(part).hexdigest() for part in iter(lambda: file.read(step), b""))


def _pages(artifact: Artifact, strips: int) -> int:
    """Pages of shared memory for a model with its threads."""
    files, arena = artifact.manifest.files, int(artifact.manifest.info["arena_bytes"])
    nbytes = files[threaded(strips)].size + files["weights.bin"].size + arena
    return -(-nbytes // _PAGE) + strips + _SPARE_PAGES


def density(layers: list[dict[str, Any]]) -> float:
    """Share of non-zero weights over all layers that tell their density."""
    known = [(math.prod(layer["shape"]), layer["density"]) for layer in layers if layer.get("density") is not None]
    total = sum(weights for weights, _ in known)
    return sum(weights * share for weights, share in known) / total if total else 1.0


def _manifest(it: Description, artifact: Artifact, folder: Path, model: Path) -> dict[str, Any]:
    manifest = artifact.manifest
    hashed = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        hashed[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return {
        "schema": SCHEMA,
        "name": it.name,
        "model": {"file": model.name, "sha256": manifest.info.get("model_sha256"), "bytes": model.stat().st_size},
        "modules": dict(it.modules),
        "threads": it.threads,
        "inputs": [{"name": x.name, "dtype": x.dtype, "shape": list(x.shape)} for x in it.inputs],
        "outputs": [{"name": x.name, "dtype": x.dtype, "shape": list(x.shape)} for x in it.outputs],
        "recipe": manifest.recipe,
        "info": dict(manifest.info),
        "tools": dict(manifest.tools),
        "density": it.density,
        "layers": list(it.layers),
        "files": hashed,
    }


def _schema(path: Path) -> str | None:
    try:
        values = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    found = values.get("schema") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _gzipped(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 9))
