"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import logging
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

BUILT = ("library", "network")
"""Fixtures of a module that are built once for each of their parameters, which takes seconds."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests of one built fixture on one worker, so that no other worker builds it again."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for name in BUILT:
            if name in parameters:
                what = getattr(parameters[name], "name", parameters[name])
                item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{what}"))


@pytest.fixture(autouse=True)
def _plain_log() -> None:
    """Start each test with the log as it is on import: commands that ran in this process have set it up their way."""
    logger = logging.getLogger("edgesparse")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(autouse=True)
def _own_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test random numbers of its own: the same ones alone, in any order, and on any number of workers."""
    if hasattr(request.module, "RNG"):
        seed = zlib.crc32(request.node.nodeid.split("@")[0].encode())
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(seed))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGESPARSE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def toy_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the toy model, to read and not to change."""
    import toy

    folder = tmp_path_factory.mktemp("toy")
    return toy.build(folder / "artifact", folder).folder


@pytest.fixture
def toy_artifact(toy_built: Path, tmp_path: Path) -> Path:
    """A copy of the toy model's artifact, to be damaged."""
    return Path(shutil.copytree(toy_built, tmp_path / "toy-artifact"))
