"""Bundles and engines, made once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
import webtools

from edgesparse.runtimes.engines import Engine
from edgesparse.web import bundle
from edgesparse.web.bundle import Bundle


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The bundles by name; each has the ONNX model that it must agree with beside it, as NAME.onnx."""
    room = tmp_path_factory.mktemp("web")
    found = {}
    for name, build in webtools.MODELS.items():
        onnx.save(build(), room / f"{name}.onnx")
        threads = webtools.MORE if name == "pruned" else webtools.THREADS
        with pytest.MonkeyPatch.context() as patch:
            if name == "pruned":
                patch.setattr(bundle, "_PART", webtools.PART)
            found[name] = bundle.bundle_model(room / f"{name}.onnx", output=room / name, threads=threads)
    return found


@pytest.fixture(scope="session")
def node() -> Iterator[Engine]:
    webtools.needs("node")
    with Engine("node") as engine:
        yield engine


@pytest.fixture(scope="session")
def chromium() -> Iterator[Engine]:
    webtools.needs("chromium")
    with Engine("chromium") as engine:
        yield engine
