"""Pairs of sentences and their cosines, and MiniLM-L6 where its package is installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgesparse.models import MissingPackageError, model_path, onnx_run, sentences
from edgesparse.models.text import WORDS


@pytest.fixture
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    listed = ["[PAD]", *reversed(WORDS), "[CLS]", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join(listed))
    monkeypatch.setattr(sentences, "VOCABULARY_FILE", SimpleNamespace(locate=lambda: tmp_path / "vocab.txt"))
    return listed


def test_pairs_share_words_in_place(vocabulary: list[str]) -> None:
    drawn = sentences.pairs(40, seed=3, tokens=12)
    shares = []
    for one, other in drawn:
        assert one.dtype == np.int64
        assert one.shape == other.shape == (1, 12)
        for ids in (one[0], other[0]):
            assert (vocabulary[ids[0]], vocabulary[ids[-1]]) == ("[CLS]", "[SEP]")
            assert all(vocabulary[i] in WORDS for i in ids[1:-1])
        shares.append(float(np.mean(one[0, 1:-1] == other[0, 1:-1])))
    assert min(shares) < 0.2
    assert max(shares) > 0.8
    again, other = sentences.pairs(2, seed=3, tokens=12), sentences.pairs(2, seed=4, tokens=12)
    assert np.array_equal(drawn[1], again[1])
    assert not np.array_equal(drawn[1], other[1])


def test_cosines() -> None:
    table = np.eye(3)[[0, 1, 2, 0]]
    pair = (np.array([[0]]), np.array([[3]]))
    far = (np.array([[1]]), np.array([[2]]))
    assert sentences.cosines(lambda ids: table[ids[0]], [pair, far]).tolist() == [1.0, 0.0]


def test_published_embeddings_follow_the_words() -> None:
    """The more words two sentences share, the closer they are: so with the published weights, not with random ones."""
    try:
        run = onnx_run(model_path("minilm-l6-sentences"))
    except MissingPackageError as error:
        pytest.skip(str(error))
    drawn = sentences.pairs(30, seed=5)
    shared = [float(np.mean(one == other)) for one, other in drawn]
    assert np.allclose([np.linalg.norm(run(one)) for one, _ in drawn[:3]], 1.0, atol=1e-5)
    assert np.corrcoef(sentences.cosines(run, drawn), shared)[0, 1] > 0.9
