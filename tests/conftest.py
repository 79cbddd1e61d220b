"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import logging
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BUILT = re.compile(
    r"(tests/kernels/\w+\.py)::\w+\[(x86-64-v\d)|"
    r"(tests/runtimes/test_web_networks\.py)::\w+\[(mobilenet-v\d|efficientnet-lite0|resnet18)|"
    r"(tests/runtimes/test_)(?:rival|devices|device_bench|interrupted|adb)\.py"
)
"""Tests that belong together: of one fixture that is built once for a module and takes seconds (its parameter is in
their names), and those that bench the same artifact on one device, which is this machine.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shapes", type=int, default=4, help="random networks of each kind in test_arm_shapes.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that belong together on one worker: no other builds their fixture again, or takes their device."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = BUILT.match(nodeid)
            return "-".join(filter(None, found.groups())) if found else nodeid

    return ByFixture(config, log) if config.getvalue("dist") == "load" else None


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
        seed = zlib.crc32(request.node.nodeid.encode())
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
