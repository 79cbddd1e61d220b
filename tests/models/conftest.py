"""Reference models go into a folder of the test run, never the user's cache."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPARSE_MODELS", str(tmp_path_factory.mktemp("cache")))
        yield
