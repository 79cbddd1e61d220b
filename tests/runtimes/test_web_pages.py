"""Bundles in pages of headless Chromium: threads, workers, the cache, and what a bundler makes of them.

The checks themselves are in web_checks.mjs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
from webtools import MORE, THREADS, check, needs, said_by, tool

from edgesparse.runtimes.engines import Engine
from edgesparse.web.bundle import VARIANTS, Bundle

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


@pytest.mark.parametrize(("name", "threads"), [("pruned", THREADS), ("pruned", MORE), ("random0", THREADS)])
def test_threads_compute_the_same_bits(chromium: Engine, made: dict[str, Bundle], name: str, threads: int) -> None:
    told = ask(chromium, "threads", made[name], threads)
    assert told == {**{variant: {"threads": threads, "equal": True} for variant in VARIANTS}, "warnings": []}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [THREADS, MORE])
def test_threads_agree_with_onnxruntime(chromium: Engine, made: dict[str, Bundle], variant: str, threads: int) -> None:
    loaded = check(chromium, made["pruned"], variant=variant, threads=threads)
    assert loaded.told["threads"] == threads
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
    assert [ask(chromium, "byItself", made["pruned"], cores) for cores in (1, 2, 4, 16)] == [1, 1, 2, MORE]
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


def test_vite_builds_a_page(chromium: Engine, made: dict[str, Bundle], tmp_path: Path) -> None:
    """Vite finds all files by itself, the worker's too: what it builds runs in a page, on two threads."""
    builder = tool("vite")
    packages = tmp_path / "node_modules"
    packages.mkdir()
    (packages / "pruned").symlink_to(made["pruned"].path)
    (tmp_path / "index.html").write_text('<!doctype html><body><script type="module" src="./main.mjs"></script>')
    (tmp_path / "main.mjs").write_text(
        """import { createSession } from "pruned";
const session = await createSession({ threads: 2 });
const x = Float32Array.from({ length: 4800 }, (_, at) => Math.sin(at));
const [scores] = Object.values(await session.run({ in0: x }));
document.body.append(JSON.stringify({ threads: session.threads, scores: Array.from(scores) }));
document.body.dataset.ready = "yes";
"""
    )
    settings = 'export default { base: "./", build: { target: "esnext" }, logLevel: "warn" };\n'
    (tmp_path / "vite.config.mjs").write_text(settings)
    said_by("node", builder / "bin" / "vite.js", "build", cwd=tmp_path)
    page = f"{chromium.address(tmp_path / 'dist')}/index.html"
    told = json.loads(chromium.ask({"deed": "visit", "url": page}, limit=90)["text"])
    assert told["threads"] == 2
    np.testing.assert_allclose(told["scores"], expected_scores(made["pruned"]), rtol=0, atol=1e-5)


def test_deno_runs_the_package(made: dict[str, Bundle], tmp_path: Path) -> None:
    """Also in sessions that end at once after a run: a worker that comes late to it must end too, or Deno would not."""
    program = tool("deno").parent / ".bin" / "deno"
    script = tmp_path / "run.mjs"
    script.write_text(
        f"""import {{ createSession }} from "{(made["pruned"].path / "index.mjs").as_uri()}";
const x = Float32Array.from({{ length: 4800 }}, (_, at) => Math.sin(at));
for (const threads of [1, ...Array(100).fill(2)]) {{
  const session = await createSession({{ threads }});
  console.log(JSON.stringify([session.threads, Array.from(Object.values(session.runSync({{ in0: x }}))[0])]));
  session.dispose();
}}
"""
    )
    said = said_by(program, "run", "--no-remote", "--allow-read", script, cwd=tmp_path).splitlines()
    threads, scores = zip(*map(json.loads, said), strict=True)
    assert threads == (1, *[2] * 100)
    assert all(each == scores[0] for each in scores)
    np.testing.assert_allclose(scores[0], expected_scores(made["pruned"]), rtol=0, atol=1e-5)


def expected_scores(made: Bundle) -> np.ndarray:
    """What onnxruntime makes of sines."""
    x = np.sin(np.arange(4800)).astype(np.float32).reshape(1, 3, 40, 40)
    model = onnx.load(made.path.with_suffix(".onnx"))
    (scores,) = networks.onnx_outputs(model.SerializeToString(), {"in0": x}).values()
    return np.asarray(scores).ravel()
