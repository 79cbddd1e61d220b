"""Data sets and published models: right labels, right preprocessing, the accuracy that is known."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgesparse.errors import ModelError, UsageError
from edgesparse.models import MODELS, MissingPackageError, accuracy, evaluate, model_path, onnx_run
from edgesparse.models.text import FONTS

Image = pytest.importorskip("PIL.Image", reason="data is drawn and read with Pillow")
from edgesparse.models import digits, ocr, pages, pictures  # noqa: E402

#: A folder of pictures whose names begin with their ImageNet class: not shipped, so named by the environment.
PICTURES = Path(os.environ.get("EDGESPARSE_PICTURES", ""))
# The font that Pillow carries: these tests run without any data package.
BUILTIN = ("builtin",)


def packaged(name: str) -> Path:
    """Return the file of a model that a package ships, or skip the test."""
    try:
        for file in FONTS.values():
            file.locate()
        return model_path(name)
    except MissingPackageError as error:
        pytest.skip(str(error))


def one_hot(label: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[[label]]


def test_scores_count_top1_top5_and_classes():
    samples = [(one_hot(label), label) for label in (0, 1, 2, 2)]
    score = evaluate(lambda value: value * np.float32([1, 1, -1, 1]), iter(samples))
    assert (score.count, score.top1, score.top5, score.worst) == (4, 0.5, 1.0, 0.0)
    assert score.per_class == {0: 1.0, 1: 1.0, 2: 0.0}
    assert str(score) == "50.0 % of 4"
    with pytest.raises(UsageError, match="no samples"):
        accuracy(lambda value: value, [])


def test_pages_follow_from_seed_and_number():
    one = [pages.picture(index, seed=1, damage=pages.HARD, fonts=BUILTIN) for index in range(5)]
    assert [label for _, label in one] == [0, 1, 2, 3, 0]
    again, _ = pages.picture(3, seed=1, damage=pages.HARD, fonts=BUILTIN)
    other, _ = pages.picture(3, seed=2, damage=pages.HARD, fonts=BUILTIN)
    assert one[3][0].tobytes() == again.tobytes() != other.tobytes()


def test_a_page_is_turned_clockwise():
    upright = np.asarray(pages.page(np.random.default_rng([0, 1]), fonts=BUILTIN))
    turned, label = pages.picture(1, fonts=BUILTIN)
    assert pages.ROTATIONS[label] == 90
    assert np.array_equal(np.asarray(turned)[:, :, 0], np.rot90(upright, k=-1))


def test_page_preprocessing_is_the_networks():
    flat = Image.new("RGB", (300, 400), (255, 128, 0))
    value = pages.preprocess(flat)
    assert value.shape == (1, 3, 224, 224)
    assert value.dtype == np.float32
    expected = [
        (level / 255 - mean) / dev
        for level, mean, dev in zip((0, 128, 255), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    assert value[0, :, 100, 100] == pytest.approx(expected, abs=1e-5)


def test_orientation_of_easy_pages_is_always_seen():
    run = onnx_run(packaged("page-orientation"))
    assert accuracy(run, pages.samples(24)) == 1.0


@pytest.mark.long
def test_orientation_of_hard_pages_is_mostly_seen():
    run = onnx_run(packaged("page-orientation"))
    assert 0.93 <= accuracy(run, pages.samples(400, damage=pages.HARD)) <= 0.99


def test_lines_of_text_are_read():
    path = packaged("ppocr-rec")
    decode = ocr.decoder(ocr.characters(path))
    run = onnx_run(path)
    assert accuracy(run, ocr.samples(20), decode=decode) == 1.0
    assert accuracy(run, ocr.samples(20, damage=ocr.WORN), decode=decode) >= 0.9


def test_reading_merges_repeats_and_drops_blanks():
    steps = [1, 1, 0, 1, 2, 2, 3, 0]
    assert ocr.decoder(("", "a", "b", " "))(np.eye(4)[None, steps]) == ["aab"]


def test_a_model_without_an_alphabet_is_refused():
    with pytest.raises(ModelError, match="no list of characters"):
        ocr.characters(packaged("ppocr-det"))


def test_a_line_that_is_too_long_is_squeezed():
    long = Image.new("L", (2000, 48), 255)
    assert ocr.preprocess(long).shape == (1, 3, 48, 320)
    assert ocr.preprocess(long, width=None).shape == (1, 3, 48, 2000)
    assert (ocr.preprocess(Image.new("L", (48, 48), 255))[:, :, :, 48:] == 0).all()


@pytest.mark.parametrize("name", [n for n, model in MODELS.items() if not (model.builder or model.reader)])
def test_packaged_models_are_as_the_table_says(name):
    session = onnxruntime.InferenceSession(packaged(name), providers=["CPUExecutionProvider"])
    model = MODELS[name]
    assert [value.name for value in session.get_inputs()] == [model.input_name]
    assert [value.name for value in session.get_outputs()] == [model.output_name]
    (out,) = session.run(None, {model.input_name: np.zeros(model.input_shape, np.float32)})
    assert np.isfinite(out).all()


def test_pictures_are_found_labelled_and_scaled(tmp_path):
    for name in ("12.png", "3.jpg", "7-b.jpeg"):
        Image.new("RGB", (224, 224), (127, 255, 0)).save(tmp_path / name)
    (tmp_path / "5").mkdir()
    Image.new("L", (300, 500)).save(tmp_path / "5" / "grey.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = list(pictures.samples(tmp_path))
    assert [label for _, label in found] == [3, 5, 7, 12]
    assert all(value.shape == (1, 3, 224, 224) for value, _ in found)
    assert found[3][0][0, :, 0, 0] == pytest.approx([0, 1, -127 / 128])
    assert len(list(pictures.samples(tmp_path, limit=2))) == 2


def test_folders_without_labelled_pictures_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        pictures.files(tmp_path / "none")
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        pictures.files(folder)
    Image.new("RGB", (8, 8)).save(folder / "cat.png")
    with pytest.raises(UsageError, match=r"cannot tell the class of .*cat\.png"):
        pictures.files(folder)


def test_published_efficientnet_knows_photographs():
    if "EDGESPARSE_PICTURES" not in os.environ:
        pytest.skip("EDGESPARSE_PICTURES names no folder of pictures to measure on")
    pytest.importorskip("torch")
    packaged("efficientnet-lite0-imagenet")
    assert accuracy(onnx_run(model_path("efficientnet-lite0-imagenet")), pictures.samples(PICTURES)) >= 0.88


def test_digits_are_learned_in_seconds():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    score = evaluate(onnx_run(model_path("digits")), digits.samples())
    assert score.count == 360
    assert score.top1 >= 0.98


def test_digits_training_is_the_same_for_the_same_seed():
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    one, two = (digits.trained(seed=2, epochs=1).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
