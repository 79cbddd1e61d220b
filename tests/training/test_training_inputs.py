"""Inputs without labels: how they are read, and how they are changed at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import graph

from edgesparse.errors import UsageError
from edgesparse.training.inputs import augment, crop, read_inputs


def test_inputs_that_do_not_load(tmp_path: Path) -> None:
    model = graph("agraph (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="there is no calibration data"):
        read_inputs(tmp_path / "none", model)
    with pytest.raises(UsageError, match=r"no file ends in .*\.npy"):
        read_inputs(tmp_path, model)
    file = tmp_path / "x.npy"
    file.write_bytes(b"\x93NUMPY rubbish")
    with pytest.raises(UsageError, match=r"cannot read .*x.npy"):
        read_inputs(tmp_path, model)
    np.save(file, np.zeros((2, 4), np.float32))
    with pytest.raises(UsageError, match=r"x.npy: .*of shape 1x4.*the input is 1x3"):
        read_inputs(tmp_path, model)
    np.save(file, np.array([[1, np.nan, 2]], np.float32))
    with pytest.raises(UsageError, match=r"x.npy: .*NaN or infinite"):
        read_inputs(tmp_path, model)
    np.save(file, np.array([1, 2, 3], np.float32))
    np.save(tmp_path / "y.npy", np.zeros((2, 3), np.uint8))
    assert read_inputs(tmp_path, model).shape == (3, 3)


def test_pictures_as_inputs(tmp_path: Path) -> None:
    from PIL import Image

    from edgesparse.sections import Calibration

    model = graph("agraph (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    found = read_inputs(tmp_path, model, Calibration(mean=(100.0,), scale=(50.0,), limit=1))  # trained on all of them
    assert np.allclose(found.numpy(), (pixels.transpose(0, 3, 1, 2).astype(np.float32) - 100) / 50)
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"cannot read picture .*2.png"):
        read_inputs(tmp_path, model)


@pytest.mark.parametrize("kind", ["shift", "crop", "strong"])
def test_augmentation_depends_on_its_source_alone(kind: str) -> None:
    batch = torch.randn(6, 3, 32, 32)
    first, again, other = (augment(batch, torch.Generator().manual_seed(seed), kind) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == batch.shape
    assert augment(batch, torch.Generator(), "none") is batch


def test_crops_are_parts_of_the_picture() -> None:
    # a picture whose values are its coordinates, so that each crop tells where it is from
    down, right = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    made = crop(torch.stack([down, right]).repeat(64, 1, 1, 1), torch.Generator().manual_seed(3))
    assert made.abs().max() <= 1.0
    across = made[:, 1, 32, -1] - made[:, 1, 32, 0]  # negative where mirrored
    tall = made[:, 0, -1, 32] - made[:, 0, 0, 32]
    assert 16 < int((across < 0).sum()) < 48
    share = (across.abs() / 2) * (tall / 2)
    assert 0.3 < float(share.min()) < 0.45
    assert float(share.max()) > 0.8
    assert float((across.abs() / tall).min()) > 0.7


@pytest.mark.parametrize("kind", ["crop", "strong"])
def test_smaller_crops_have_the_shorter_side_asked_for(kind: str) -> None:
    made = augment(torch.ones(5, 3, 32, 48), torch.Generator().manual_seed(2), kind, 20)
    assert made.shape == (5, 3, 20, 30)
