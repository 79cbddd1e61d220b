"""The demo page in headless Chromium, used as people use it, against Pillow, numpy and onnxruntime.

What is done in the page is in demo_checks.mjs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
from webtools import needs, said_by, tool

from edgesparse.cli import main
from edgesparse.errors import UnsupportedError, UsageError
from edgesparse.runtimes.engines import Engine
from edgesparse.web import bundle, pictures, webdemo
from edgesparse.web.bundle import Bundle
from edgesparse.web.pictures import Preparation

HERE = Path(__file__).resolve().parent

#: Other than the defaults, so that a page that ignores its settings is found out.
PREPARATION = Preparation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bgr", 0.8)
RNG = np.random.default_rng(0)
#: Wider and higher than the model's input.
PICTURES = [RNG.integers(0, 256, shape, np.uint8) for shape in ((90, 130, 3), (201, 77, 3))]


@pytest.fixture(scope="module")
def demo(made: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bundle with the page."""
    room = tmp_path_factory.mktemp("demo")
    copied = Bundle(Path(shutil.copytree(made["pruned"].path, room / "web")), made["pruned"].manifest)
    (room / "labels.txt").write_text("".join(f"thing {index}\n" for index in range(10)))
    model = made["pruned"].path.with_suffix(".onnx")
    page = webdemo.add_demo(copied, model, labels=room / "labels.txt", preparation=PREPARATION)
    assert page.is_file()
    return copied.path


def ask(engine: Engine, name: str, demo: Path, *args: object) -> Any:
    """What a check of demo_checks.mjs tells of the page."""
    url = f"{engine.address(HERE)}/demo_checks.mjs"
    page = f"{engine.address(demo)}/demo/index.html"
    return engine.ask({"deed": "call", "url": url, "args": [name, page, *args]}, limit=60)["result"]


def best(model: Path, pixels: np.ndarray) -> list[tuple[str, float]]:
    """The five best classes and their shares in percent, by onnxruntime."""
    x = pictures.to_tensor(pixels, (1, 3, 40, 40), PREPARATION)
    (scores,) = networks.onnx_outputs(onnx.load(model).SerializeToString(), {"in0": x}).values()
    shares = np.exp(scores.ravel().astype(np.float64))
    order = np.argsort(-shares)[:5]
    return [(f"thing {index}", 100 * float(shares[index] / shares.sum())) for index in order]


def test_pictures_are_classified_as_by_onnxruntime(
    chromium: Engine, made: dict[str, Bundle], demo: Path, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    for index, pixels in enumerate(PICTURES):
        image.fromarray(pixels).save(tmp_path / f"{index}.png")
    place = chromium.address(tmp_path)
    told = ask(chromium, "pictures", demo, f"{place}/0.png", f"{place}/1.png")
    model = made["pruned"].path.with_suffix(".onnx")
    for kind, pixels in (("drop", PICTURES[0]), ("paste", PICTURES[1]), ("pick", PICTURES[0])):
        expected = best(model, pixels)
        assert [name for name, _, _ in told[kind]] == [name for name, _ in expected]
        shares = [float(share.removesuffix(" %")) for _, _, share in told[kind]]
        np.testing.assert_allclose(shares, [share for _, share in expected], rtol=0, atol=0.051)  # one decimal
    assert told["drop"] != told["paste"]
    assert told["contenders"] == ["sparse", "dense", "sparse, two threads"]
    sizes = {"sparse": demo, "dense": demo / "demo" / "dense"}
    for name, folder in sizes.items():
        expected_mb = webdemo.download_bytes(bundle.open_bundle(folder)) / 1e6
        assert told["sizes"][name] == pytest.approx(expected_mb, abs=0.0051)
    assert told["note"].startswith("Medians of 20 runs")


def test_onnxruntime_web_joins_where_it_was_put(
    chromium: Engine, made: dict[str, Bundle], demo: Path, tmp_path: Path
) -> None:
    library = tool("onnxruntime-web") / "dist"
    web = shutil.copytree(demo, tmp_path / "web")
    ort = web / "demo" / "ort"
    ort.mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(library / name, ort)
    shutil.copy(made["pruned"].path.with_suffix(".onnx"), web / "demo" / "model.onnx")
    page = f"{chromium.address(web)}/demo/index.html"
    said = chromium.ask({"deed": "visit", "url": page}, limit=90)["text"]
    assert "times as fast as onnxruntime-web" in said
    whole = sum(path.stat().st_size for path in (*ort.iterdir(), web / "demo" / "model.onnx"))
    assert f"onnxruntime-web\n{whole / 1e6:.2f}" in said
    assert "weights are not zero" in said


def test_troubles_are_told(chromium: Engine, demo: Path) -> None:
    told = ask(chromium, "trouble", demo)
    assert told["fine"] is False
    assert told["file"] == ["notes.txt is not a picture that this browser can read.", True]
    assert told["NotAllowedError"][0].startswith("The camera was not allowed.")
    assert told["NotFoundError"] == ["There is no camera here. Pick a picture instead.", True]
    assert told["AbortError"] == ["No camera: words", True]
    assert "https or localhost" in told["insecure"][0]
    said, trouble = told["after"]
    assert (said.startswith("Medians of 20 runs in turn."), trouble) == (True, False)


def test_the_camera_runs_until_it_is_stopped(chromium: Engine, demo: Path) -> None:
    told = ask(chromium, "camera", demo)
    assert told["running"] == ["Stop the camera", "true", "off"]
    assert told["stopped"] == ["Use the camera", "false", "polite"]
    assert told["ended"] is True
    assert np.abs(np.array(told["pixel"]) - [0xC8, 0x32, 0x14, 255]).max() <= 8  # through a video


def test_keyboard_and_screen_readers(chromium: Engine, demo: Path) -> None:
    told = ask(chromium, "access", demo)
    assert told["reached"] == [
        ["Pick a picture", True],
        ["Use the camera", True],
        ["Compare with onnxruntime-web", True],
    ]
    assert told["picks"] == 1
    assert told["language"] == "en"
    assert told["picture"] == "The picture as the network sees it"
    assert (told["status"], told["barsHidden"]) == ("status", True)
    assert all(told["sections"])


# -- from pixels to the model's input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "crop", "size"),
    [(24, 32, 0.875, (300, 417)), (24, 32, 1.0, (20, 30)), (64, 64, 0.5, (33, 64)), (7, 7, 1.0, (7, 7))],
)
def test_pictures_become_smaller_as_in_pillow(height: int, width: int, crop: float, size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    step = min(size[1] / width, size[0] / height) * crop
    left, top = (size[1] - step * width) / 2, (size[0] - step * height) / 2
    box = (left, top, left + step * width, top + step * height)
    expected = np.asarray(image.fromarray(pixels).resize((width, height), image.Resampling.BILINEAR, box=box), float)
    found = pictures.take_middle(pixels, height, width, crop)
    assert np.abs(found - expected).max() <= 1.0 + 1e-9  # Pillow rounds to whole numbers after each axis


def test_channels_are_scaled_and_ordered() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (5, 6, 4), np.uint8)
    found = pictures.to_tensor(pixels, (1, 3, 5, 6), Preparation(order="bgr", crop=1.0))
    scaled = (pixels[..., 2::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found[0], scaled.transpose(2, 0, 1), rtol=0, atol=1e-6)
    grey = pictures.to_tensor(pixels, (1, 1, 5, 6), Preparation((0.5,), (0.25,), crop=1.0))
    luma = pixels[..., :3] @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(grey[0, 0], (luma / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)


def test_python_and_javascript_make_the_same_input(tmp_path: Path) -> None:
    needs("node")
    script = tmp_path / "run.mjs"
    for channels, size, preparation in (
        (3, (60, 45), PREPARATION),
        (1, (5, 9), Preparation()),
        (3, (8, 7), Preparation((0.5,), (0.5,), crop=1.0)),
    ):
        pixels = RNG.integers(0, 256, (*size, 4), np.uint8)
        dims = [1, channels, 8, 7]
        settings = json.dumps(preparation.settings(channels))
        script.write_text(
            f"""import {{ takeMiddle, toTensor }} from {json.dumps((bundle.web_folder() / "picture.mjs").as_uri())};
const picture = {{ data: {pixels.ravel().tolist()}, width: {size[1]}, height: {size[0]} }};
const values = takeMiddle(picture, {dims}, {settings});
console.log(JSON.stringify(Array.from(toTensor(values, {dims}, {settings}))));"""
        )
        found = np.array(json.loads(said_by("node", script, cwd=tmp_path)), np.float32)
        expected = pictures.to_tensor(pixels, dims, preparation)
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=2e-6)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_models_without_a_demo_page(made: dict[str, Bundle], tmp_path: Path) -> None:
    inputs = [{"name": "x", "dtype": "float32", "shape": [1, 16]}]
    flat = Bundle(tmp_path, {**made["pruned"].manifest, "inputs": inputs})
    with pytest.raises(UnsupportedError, match="no demo page for this model"):
        webdemo.add_demo(flat, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="cannot read the labels"):
        webdemo.read_labels(tmp_path / "nothing.txt")


def test_preparations_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="deviations are above 0"):
        Preparation(std=(0.0,))
    with pytest.raises(UsageError, match="rgb or bgr"):
        Preparation(crop=1.5)
    with pytest.raises(UsageError, match="2 numbers for 3 channels"):
        Preparation((0.5, 0.5)).settings(3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--labels", "x.txt"], "--labels is for the demo page"),
        (["--crop", "0.9"], "--crop is for the demo page"),
        (["--demo", "--mean", "a,b"], "--mean 'a,b' is no list of numbers"),
        (["--demo", "--mean", "0.1,0.2"], "2 numbers for 3 channels"),
    ],
)
def test_options_of_the_page(
    made: dict[str, Bundle], tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    model = made["pruned"].path.with_suffix(".onnx")
    assert main(["bundle", str(model), "-o", str(tmp_path / "web"), "-q", *options]) == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "web").exists()
