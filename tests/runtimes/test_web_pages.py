"""Bundles in pages of headless Chromium: threads, workers, the cache, and what a bundler makes of them.

The checks themselves are in web_checks.mjs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from webtools import THREADS, check, needs

from edgesparse.bundle import VARIANTS, Bundle
from edgesparse.runtimes.engines import Engine

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def plain_page() -> Iterator[Engine]:
    """A page that is served without the headers that allow threads."""
    needs("chromium")
    with Engine("chromium", isolated=False) as engine:
        yield engine


def ask(engine: Engine, name: str, made: Bundle, *args: object) -> Any:
    """What a check of web_checks.mjs tells of a bundle."""
    url = f"{engine.address(HERE)}/web_checks.mjs"
    return engine.ask({"deed": "call", "url": url, "args": [name, engine.address(made.path), *args]}, limit=60)[
        "result"
    ]


@pytest.mark.parametrize("name", ["pruned", "random0"])
def test_threads_compute_the_same_bits(chromium: Engine, made: dict[str, Bundle], name: str) -> None:
    told = ask(chromium, "threads", made[name], THREADS)
    assert told == {**{variant: {"threads": THREADS, "equal": True} for variant in VARIANTS}, "warnings": []}


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_agree_with_onnxruntime(chromium: Engine, made: dict[str, Bundle], variant: str) -> None:
    loaded = check(chromium, made["pruned"], variant=variant, threads=THREADS)
    assert loaded.told["threads"] == THREADS
    loaded.close()


def test_a_page_without_special_headers(plain_page: Engine, made: dict[str, Bundle]) -> None:
    assert plain_page.told["isolated"] is False
    told = ask(plain_page, "threads", made["pruned"], THREADS)
    (warning,) = told["warnings"]
    assert "2 threads were asked for" in warning
    assert "Cross-Origin-Opener-Policy: same-origin" in warning
    assert all(told[variant] == {"threads": 1, "equal": True} for variant in VARIANTS)
    loaded = check(plain_page, made["pruned"], threads=THREADS)
    assert loaded.told["threads"] == 1


def test_threads_that_nobody_asked_for(chromium: Engine, plain_page: Engine, made: dict[str, Bundle]) -> None:
    """Half of the cores, where that is allowed and the package was made for it."""
    assert [ask(chromium, "byItself", made["pruned"], cores) for cores in (1, 2, 4, 16)] == [1, 1, 2, THREADS]
    assert ask(plain_page, "byItself", made["pruned"], 16) == 1


def test_workers_that_do_not_start(chromium: Engine, made: dict[str, Bundle]) -> None:
    told = ask(chromium, "withoutWorkers", made["pruned"])
    assert told == {kind: {"threads": 1, "equal": True, "warnings": 1} for kind in ("refused", "missing")}


def test_a_session_in_a_worker_leaves_the_page_free(chromium: Engine, made: dict[str, Bundle]) -> None:
    told = ask(chromium, "inWorker", made["pruned"])
    assert told["threads"] == 2
    assert told["equal"] is True
    assert told["runs"] >= 1
    assert told["turns"] >= 10  # of some sixty that fit into the time


def test_the_cache_keeps_the_weights(chromium: Engine, made: dict[str, Bundle]) -> None:
    """Fetched at first, not again; again, once, after each damage to what is kept."""
    assert ask(chromium, "cache", made["pruned"]) == {"fetched": [1, 0, 1, 0, 1, 0, 1, 0], "equal": True}
