"""Fashion-MNIST: the reader of its files, on ones made here, and the network."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from edgesparse.errors import EdgesparseError
from edgesparse.models import fashion
from edgesparse.models.packages import MissingPackageError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four files as the package's, of few pictures."""
    monkeypatch.setenv("EDGESPARSE_FASHION_MNIST", str(tmp_path))
    for half, count in (("train", 5), ("t10k", 3)):
        pixels = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8).tobytes()
        _write(tmp_path / f"{half}-images-idx3-ubyte.gz", struct.pack(">4I", 2051, count, 28, 28) + pixels)
        _write(tmp_path / f"{half}-labels-idx1-ubyte.gz", struct.pack(">2I", 2049, count) + bytes(range(count)))
    return tmp_path


def _write(path: Path, raw: bytes) -> None:
    with gzip.open(path, "wb") as file:
        file.write(raw)


def test_pictures_and_classes(data: Path) -> None:
    (pictures, classes), (held, labels) = fashion.load()
    assert pictures.shape == (5, 1, 28, 28)
    assert pictures.dtype == np.float32
    assert held.shape == (3, 1, 28, 28)
    assert classes.tolist() == [0, 1, 2, 3, 4]
    assert labels.tolist() == [0, 1, 2]
    assert pictures[0, 0, 0, 1] == pytest.approx((1 / 255 - 0.2860) / 0.3530)


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPARSE_FASHION_MNIST", str(tmp_path))
    with pytest.raises(MissingPackageError, match="apt install dataset-fashion-mnist"):
        fashion.load()


@pytest.mark.parametrize("damage", ["short", "magic", "no gzip", "cut"])
def test_damaged_files(data: Path, damage: str) -> None:
    path = data / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    if damage == "short":
        _write(path, struct.pack(">2I", 2049, 9) + b"123")
    elif damage == "magic":
        _write(path, struct.pack(">2I", 2051, 3) + b"123")
    else:
        path.write_bytes(b"not gzip" if damage == "no gzip" else whole[:-12])
    with pytest.raises(EdgesparseError, match=r"train-labels"):
        fashion.load()


def test_the_network_has_55_thousand_weights() -> None:
    torch = pytest.importorskip("torch")
    model = fashion.network()
    assert sum(value.numel() for value in model.parameters()) == 54_922
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
