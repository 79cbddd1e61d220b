"""Evaluation against plain counting in numpy, and labels from names, tables and arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr

from edgesparse.advice.evaluate import BINS, Evaluation, evaluate, onnx_model
from edgesparse.advice.labels import label_of, read_labelled
from edgesparse.errors import ModelError, UsageError
from edgesparse.passes import load_model

RNG = np.random.default_rng(11)
DENSE = RNG.normal(size=(60, 7))
SPARSE = DENSE + 0.8 * RNG.normal(size=(60, 7))
TRUTH = RNG.integers(0, 5, 60)


def plays(scores: np.ndarray):
    """A model that looks its answer up, and the samples that ask for it."""
    return lambda feeds: {"y": scores[int(feeds["x"])][None]}


def pairs(truth: np.ndarray | None = None):
    return [({"x": np.asarray(i)}, None if truth is None else truth[i]) for i in range(60)]


def test_agreement_with_the_dense_model() -> None:
    found = evaluate(plays(SPARSE), pairs(), against=plays(DENSE)).agreement
    assert found is not None
    assert (found.rows, found.top1) == (60, np.mean(DENSE.argmax(1) == SPARSE.argmax(1)))
    p, q = log_softmax(DENSE, axis=1), log_softmax(SPARSE, axis=1)
    assert found.kl == pytest.approx(float((np.exp(p) * (p - q)).sum(1).mean()), rel=1e-12)
    angles = (DENSE * SPARSE).sum(1) / np.linalg.norm(DENSE, axis=1) / np.linalg.norm(SPARSE, axis=1)
    assert (found.cosine, found.worst_cosine) == (pytest.approx(angles.mean()), pytest.approx(angles.min()))
    same = evaluate(plays(DENSE), pairs(), against=plays(softmax(DENSE, axis=1)))
    assert same.agreement is not None
    assert (same.agreement.top1, same.quality, same.drop) == (1.0, None, 0.0)
    assert same.agreement.kl == pytest.approx(0.0, abs=1e-12), "logits and probabilities say the same"


def test_quality_on_labels() -> None:
    result = evaluate(plays(SPARSE), pairs(TRUTH), against=plays(DENSE))
    found = result.quality
    assert found is not None
    assert result.dense is not None
    right = SPARSE.argmax(1) == TRUTH
    assert found.top1 == right.mean()
    assert found.top5 == np.mean([t in np.argsort(-row)[:5] for row, t in zip(SPARSE, TRUTH, strict=True)])
    for label, score in found.per_class.items():
        assert (score.rows, score.top1) == ((label == TRUTH).sum(), right[label == TRUTH].mean())
    assert found.per_class[found.worst].top1 == min(score.top1 for score in found.per_class.values())
    sure = softmax(SPARSE, axis=1).max(1)
    want = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (sure > low) & (sure <= low + 1 / BINS)
        if inside.any():
            want += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert found.calibration_error == pytest.approx(want, rel=1e-9)
    assert result.drop == pytest.approx(100 * (np.mean(DENSE.argmax(1) == TRUTH) - right.mean()))


def test_a_constant_output_is_not_right() -> None:
    found = evaluate(plays(np.zeros((60, 7))), pairs(np.zeros(60, int))).quality
    assert found is not None
    assert (found.top1, found.top5) == (0.0, 0.0)


def test_rows_of_one_sample_have_labels_each() -> None:
    scores, truth = RNG.normal(size=(1, 9, 4)), RNG.integers(0, 4, (3, 9))
    found = evaluate(lambda feeds: {"y": scores}, [({}, row) for row in truth]).quality
    assert found is not None
    assert (found.rows, found.top1) == (27, np.mean(scores[0].argmax(1) == truth))


def test_any_metric() -> None:
    def spearman(outputs, labels) -> float:
        return float(spearmanr([one["y"][0, 0] for one in outputs], labels).statistic)

    result = evaluate(plays(SPARSE), pairs(TRUTH), against=plays(DENSE), metrics={"spearman": spearman})
    assert result.metrics["spearman"] == pytest.approx(spearmanr(SPARSE[:, 0], TRUTH).statistic)
    assert result.dense_metrics["spearman"] == pytest.approx(spearmanr(DENSE[:, 0], TRUTH).statistic)


@pytest.mark.parametrize(
    ("model", "samples", "options", "message"),
    [
        (plays(SPARSE), [], {}, "no samples"),
        (plays(SPARSE), pairs(), {"output": "z"}, "no output 'z'"),
        (plays(np.full((60, 7), np.nan)), pairs(), {}, "NaN or infinite entries on sample 0"),
        (plays(SPARSE), pairs(np.full(60, 7)), {}, "label of sample 0 is no class.*it is 7, classes are 0 to 6"),
        (plays(SPARSE), pairs(np.full(60, -1)), {}, "it is -1"),
        (plays(SPARSE), pairs(np.full(60, 0.5)), {}, "does not fit"),
        (plays(SPARSE), pairs() + pairs(TRUTH), {}, "sample 60 has a label"),
        (plays(SPARSE), pairs(TRUTH) + pairs(), {}, "sample 60 lacks a label"),
        (plays(SPARSE), pairs(), {"against": plays(DENSE[:, :5])}, "differ in shape on sample 0"),
    ],
)
def test_bad_evaluations(model, samples, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(model, samples, **options)


def test_no_drop_without_a_dense_model() -> None:
    with pytest.raises(UsageError, match="no drop without a dense model"):
        _ = Evaluation(1).drop


# --- labels


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Scores are the four inputs."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (float[1,4] x) => (float[1,4] y) { [id] y = Identity(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "3").mkdir(parents=True)
    for name, row in {"0.npy": [9, 1, 1, 1], "1-b.npy": [1, 9, 1, 1], "3/a.npy": [9, 1, 1, 5]}.items():
        np.save(folder / name, np.asarray([row], np.float32))
    return folder


def test_labels_from_names_tables_and_arrays(dense: Path, data: Path, tmp_path: Path) -> None:
    model = load_model(dense)
    assert label_of(Path("12/7b.jpg")) == 7
    table, stack = tmp_path / "labels.csv", tmp_path / "labels.npy"
    table.write_text("file,class\n0.npy,0\n1-b,1\n3/a.npy,3\n")
    np.save(stack, np.asarray([0, 1, 3]))
    for labels in ("names", table, stack):
        found = read_labelled(data, model, None, labels)
        assert [int(label) for _, label in found] == [0, 1, 3]
        quality = evaluate(onnx_model(dense), found).quality
        assert quality is not None
        assert quality.top1 == pytest.approx(2 / 3)
    assert [label for _, label in read_labelled(data, model)] == [None] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "0.npy,0\n0.npy,1\n", "line 2.*there twice"),
        ("a.csv", "0.npy,0\n1-b.npy,one\n", "line 2.*not `file,class`"),
        ("a.csv", "0.npy,0\n", "do not have '1-b.npy'"),
        ("a.npy", np.asarray([0, 1]), "end before sample 2"),
        ("a.npy", np.asarray([0, 1, 2, 3]), "are 4.*there are 3 samples"),
        ("a.npy", np.asarray([0.5]), "no array of whole numbers"),
        ("a.json", "{}", "give names, a .csv or a .npy"),
        ("none.csv", None, "cannot read labels"),
    ],
)
def test_bad_labels(dense: Path, data: Path, tmp_path: Path, name: str, content, message: str) -> None:
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    with pytest.raises(UsageError, match=message):
        list(read_labelled(data, load_model(dense), None, tmp_path / name))


def test_a_file_without_a_class(dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
    with pytest.raises(UsageError, match=r"cannot tell the class of .*x\.npy"):
        list(read_labelled(tmp_path / "x.npy", load_model(dense), None, "names"))


def test_onnxruntime_refuses(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot run"):
        onnx_model(tmp_path / "broken.onnx")
    with pytest.raises(ModelError, match="cannot run"):
        onnx_model(dense)({"x": np.zeros((2, 2), np.float32)})
