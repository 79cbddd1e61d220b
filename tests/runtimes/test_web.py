"""Bundles in Node and in headless Chromium, against onnxruntime; what users get wrong; what npm's tools say."""

from __future__ import annotations

import functools
import json
import queue
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from webtools import MODELS, check, load, needs, said_by, tool

from edgesparse.building.modules import strip_counts
from edgesparse.cli import main
from edgesparse.errors import DeviceError, UnsupportedError, UsageError
from edgesparse.kernels import Epilogue
from edgesparse.measuring import webbench
from edgesparse.measuring.bench import Plan
from edgesparse.measuring.report import as_json
from edgesparse.measuring.schema import bench_schema, faults
from edgesparse.planning.products import Job, candidates
from edgesparse.runtimes.engines import Engine, find_package
from edgesparse.runtimes.wasm import Wasmtime
from edgesparse.target import Target
from edgesparse.web import bundle
from edgesparse.web.bundle import Bundle

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", MODELS)
def test_node_agrees_with_onnxruntime(node: Engine, made: dict[str, Bundle], name: str) -> None:
    check(node, made[name]).close()


@pytest.mark.parametrize("variant", bundle.VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_chromium_agrees_with_onnxruntime(chromium: Engine, made: dict[str, Bundle], name: str, variant: str) -> None:
    loaded = check(chromium, made[name], variant=variant)
    assert loaded.told["variant"] == variant
    loaded.close()


def test_profiles_name_the_layers(node: Engine, made: dict[str, Bundle]) -> None:
    loaded = load(node, made["pruned"])
    found = loaded.profile()
    assert [name for name, _ in found] == [layer["name"] for layer in made["pruned"].manifest["layers"]]
    assert sum(spent for _, spent in found) > 0


def test_what_users_get_wrong(made: dict[str, Bundle]) -> None:
    """The assertions are in web_usage.mjs; it prints what failed."""
    needs("node")
    script = HERE / "web_usage.mjs"
    done = subprocess.run(
        ["node", str(script), (made["pruned"].path / "index.mjs").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout


# -- the package ---------------------------------------------------------------------------------------------------


def test_the_package_is_whole(made: dict[str, Bundle]) -> None:
    it = made["pruned"]
    package = json.loads((it.path / "package.json").read_text())
    assert package["type"] == "module"
    assert package["sideEffects"] is False
    assert sorted([*package["files"], "package.json"]) == sorted(path.name for path in it.path.iterdir())
    assert it.code_gzipped < 60_000
    types = (it.path / "index.d.ts").read_text()
    assert 'readonly "in0": Tensor<Float32Array, readonly [1, 3, 40, 40]>;' in types
    listed = it.manifest["files"]
    assert listed.keys() == {path.name for path in it.path.iterdir()} - {"manifest.json"}
    assert bundle.open_bundle(it.path).manifest == it.manifest


def test_the_density_that_is_told_counts_weights(made: dict[str, Bundle]) -> None:
    model = onnx.load(made["pruned"].path.with_suffix(".onnx"))
    weights = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
    counted = [value for value in weights if value.ndim > 1]
    expected = sum(map(np.count_nonzero, counted)) / sum(value.size for value in counted)
    assert made["pruned"].manifest["density"] == pytest.approx(expected)
    assert f"{expected:.0%} of the weights are not zero" in (made["pruned"].path / "README.md").read_text()


def test_modules_for_threads(made: dict[str, Bundle]) -> None:
    """A session of two threads does not run what is cut for four."""
    counts = {threads: strip_counts(threads) for threads in (1, 2, 3, 4, 6, 8)}
    assert counts == {1: (), 2: (2,), 3: (2, 3), 4: (2, 4), 6: (2, 4, 6), 8: (2, 4, 8)}
    assert {*made["pruned"].manifest["modules"]} == {
        *bundle.VARIANTS,
        *(f"{variant}.threads{strips}" for variant in bundle.VARIANTS for strips in (2, 3)),
    }


def test_publint_finds_nothing(made: dict[str, Bundle]) -> None:
    said = said_by("node", tool("publint") / "src" / "cli.js", made["pruned"].path, "--strict", cwd=HERE)
    assert "All good!" in said


def test_types_fit_a_program(made: dict[str, Bundle], tmp_path: Path) -> None:
    compiler = tool("typescript")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "pruned").symlink_to(made["pruned"].path)
    (tmp_path / "use.mts").write_text(
        """import { createSession, inputs } from "pruned";
const side: 40 = inputs["in0"].dims[3];
const session = await createSession({ threads: 1, onProgress: (loaded: number) => console.log(loaded) });
const result: Float32Array = Object.values(await session.run({ in0: new Float32Array(4800) }))[0];
await session.run({ in0: { data: new Float32Array(4800), dims: [1, 3, 40, 40] } });
// @ts-expect-error a name that the model does not have
await session.run({ in1: new Float32Array(4800) });
// @ts-expect-error another type of array
await session.run({ in0: new Float64Array(4800) });
// @ts-expect-error another shape
await session.run({ in0: { data: new Float32Array(4800), dims: [1, 3, 40, 41] } });
const [first] = await session.profile();
console.log(side, result, first?.ms.toFixed(1));
session.dispose();
"""
    )
    flags = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2023,dom"]
    said_by("node", compiler / "bin" / "tsc", *flags, "--types", "", "use.mts", cwd=tmp_path)


def test_a_bundler_takes_the_package(node: Engine, made: dict[str, Bundle], tmp_path: Path) -> None:
    """esbuild, for the web: the scripts become one, the other files are copied beside it."""
    builder = tool("esbuild")
    source, out = made["pruned"].path, tmp_path / "out"
    flags = ["--bundle", "--format=esm", "--platform=browser", "--minify", f"--outfile={out / 'index.mjs'}"]
    said_by(builder.parent / ".bin" / "esbuild", source / "index.mjs", *flags, cwd=tmp_path)
    for path in (*source.glob("*.wasm"), source / "weights.bin", source / "worker.mjs"):
        shutil.copy(path, out)
    moved = Bundle(out, made["pruned"].manifest)
    shutil.copy(source.with_suffix(".onnx"), out.with_suffix(".onnx"))
    check(node, moved).close()
    loaded = check(node, moved, threads=2)
    assert loaded.told["threads"] == 2
    loaded.close()


# -- bench ---------------------------------------------------------------------------------------------------------


def test_bench_in_an_engine(node: Engine, made: dict[str, Bundle]) -> None:
    it = made["pruned"]
    notes: list[str] = []
    built = webbench.Built(it, it, it.path.with_suffix(".onnx"))
    plan = Plan(seconds=0.01, runs=4, warm_up=0.01, turn=0.001)
    report = webbench.bench_engine(node, built, plan, layers=True, masks=True, notice=notes.append)
    names = [item.name for item in report.outcome.measured]
    assert names[:2] == ["edgesparse", "edgesparse dense"]
    assert names[2:] == ["onnxruntime-web"] or "npm install onnxruntime-web" in notes[0]
    assert as_json(report)["subject"]["info"]["engine"].startswith("Node")
    assert len(report.layers) == len(report.dense_layers) == len(it.manifest["layers"])
    assert faults(as_json(report), bench_schema()) == []
    assert [item["name"] for item in report.masks]
    told = report.memory["edgesparse"]
    assert (told.peak_bytes, told.weights_bytes) == (None, it.manifest["files"]["weights.bin"]["size"])
    assert told.arena_bytes


class CoarseModel:
    """Runs of 3 us by a clock that ticks every 5 us; the first one takes 200 us."""

    inputs, load_seconds = (), 0.1

    def __init__(self) -> None:
        self.engine = self
        self.now = 0.0
        self.runs = 0

    def load(self, feeds: dict[str, np.ndarray]) -> None:
        assert not feeds

    def preemptions(self) -> int:
        return 0

    def step(self, count: int = 1, group: int = 1) -> list[float]:
        found = []
        for _ in range(count):
            began = self.now // 5e-6
            for _ in range(group):
                self.now += 3e-6 if self.runs else 200e-6
                self.runs += 1
            found.append((self.now // 5e-6 - began) * 5e-6 / group)
        return found


def test_runs_that_are_short_for_the_clock_are_timed_in_groups() -> None:
    contender = webbench.EngineContender("short", CoarseModel())  # type: ignore[arg-type]
    assert contender.run_once() == pytest.approx(200e-6, abs=5e-6)
    found = [contender.run_once() for _ in range(300)]
    np.testing.assert_allclose(found, 3e-6, rtol=0.11)  # a tick of 5 us in a timing of 50 us or more


def test_bench_on_threads(node: Engine, made: dict[str, Bundle]) -> None:
    it = made["pruned"]
    built = webbench.Built(it, None, it.path.with_suffix(".onnx"))
    plan = Plan(seconds=0.01, runs=4, warm_up=0.01, turn=0.001, threads=2)
    report = webbench.bench_engine(node, built, plan, onnxruntime=False)
    assert report.outcome.plan.threads == 2
    with pytest.raises(UnsupportedError, match="runs on 3 threads here, not 4"):
        webbench.bench_engine(node, built, replace(plan, threads=4), onnxruntime=False)


@pytest.mark.parametrize("variant", bundle.VARIANTS)
def test_wasmtime_agrees_with_onnxruntime(made: dict[str, Bundle], variant: str) -> None:
    with Wasmtime() as engine:
        check(engine, made["pruned"], variant=variant).close()


def test_bench_in_wasmtime(made: dict[str, Bundle]) -> None:
    it = made["pruned"]
    notes: list[str] = []
    plan = Plan(seconds=0.01, runs=4, warm_up=0.01, turn=0.001)
    with Wasmtime() as engine:
        built = webbench.Built(it, it, it.path.with_suffix(".onnx"))
        report = webbench.bench_engine(engine, built, plan, layers=True, notice=notes.append)
    assert [item.name for item in report.outcome.measured] == ["edgesparse", "edgesparse dense"]
    assert as_json(report)["subject"]["info"]["engine"].startswith("wasmtime ")
    assert len(report.layers) == len(it.manifest["layers"])
    assert notes == ["onnxruntime-web needs a JavaScript engine: it is left out"]
    with pytest.raises(UnsupportedError, match="on one thread in wasmtime"):
        webbench.check_engine("wasmtime", 2)


# -- what the commands and engines refuse ------------------------------------------------------------------------------


def test_names_of_packages() -> None:
    assert bundle.package_name(Path("My Model_v1.onnx"), None) == "my-model-v1"
    assert bundle.package_name(Path("+.onnx"), None) == "model"
    assert bundle.package_name(Path("m.onnx"), "@me/net") == "@me/net"
    with pytest.raises(UsageError, match="is no name for an npm package"):
        bundle.package_name(Path("m.onnx"), "My Net")


def test_outputs_that_are_there(made: dict[str, Bundle], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="is not a bundle"):
        bundle.check_output(tmp_path / "full", force=True)
    with pytest.raises(UsageError, match="is there already"):
        bundle.check_output(made["pruned"].path, force=False)
    bundle.check_output(made["pruned"].path, force=True)
    bundle.check_output(tmp_path / "new", force=False)
    with pytest.raises(UsageError, match="is not a bundle"):
        bundle.open_bundle(tmp_path)


def test_engines_that_cannot_be(made: dict[str, Bundle], node: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no engine"):
        Engine("spidermonkey")
    with pytest.raises(DeviceError, match="there is no node here"):
        Engine("node", program="no-such-node")
    with pytest.raises(DeviceError, match="node ended by itself"):
        Engine("node", flags=["--no-such-flag"])
    with pytest.raises(DeviceError, match=r"load failed.*unknown option"):
        load(node, made["pruned"], thread=1)
    with pytest.raises(DeviceError, match="npm package no-such-package is not installed"):
        find_package("no-such-package", tmp_path)


def test_an_engine_waits_as_long_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("node")
    waits: list[float] = []

    def get(box: queue.Queue[Any], timeout: float) -> Any:
        """Nothing comes within any wait until the third, and no wait is as long as Node's patience."""
        waits.append(timeout)
        return taken(box, timeout=0.1)

    taken = queue.Queue.get
    with Engine("node") as engine:
        monkeypatch.setattr(engine._box.jobs, "get", functools.partial(get, engine._box.jobs))
        engine.ask({"deed": "hello"})  # the wait that began before
        began = time.monotonic()
        while len(waits) < 3 and time.monotonic() - began < 20:
            time.sleep(0.05)
        assert engine.ask({"deed": "hello"})["engine"].startswith("Node")
    assert max(waits) < 300


def test_inputs_are_checked_before_they_are_sent(made: dict[str, Bundle], node: Engine) -> None:
    with pytest.raises(UsageError, match="the inputs are not those of the model"):
        load(node, made["pruned"]).run({})


def test_the_command_makes_a_package(
    made: dict[str, Bundle], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = made["pruned"].path.with_suffix(".onnx")
    out = tmp_path / "web"
    assert main(["bundle", str(model), "-o", str(out), "--name", "@me/net", "--json=-", "-q"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["name"] == "@me/net"
    assert told["weights_bytes"] == (out / "weights.bin").stat().st_size
    assert main(["bundle", str(model), "-o", str(out), "-q"]) == 2
    assert "is there already" in capfd.readouterr().err
    assert main(["bench", str(out), "--device", "node", "-q"]) == 2
    assert "is not a model" in capfd.readouterr().err


def test_tiles_fit_an_engine_registers() -> None:
    """V8 keeps some of 16 registers: 8 sums, 2 vectors of pixels and a weight are what fits without spills."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 16)).astype(np.float32) * (rng.random((32, 16)) < 0.3)
    for name in bundle.VARIANTS.values():
        target = Target.parse(name)
        assert target.tvm_target()["vector-width"] == 128
        for product in candidates(Job(weight, 112, 1, Epilogue()), target, dense_only=False):
            assert product.group * product.vectors <= target.accumulators == 8
