"""Torch in one thread, its random state left as it was, and a trained network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgesparse.models import digits
from edgesparse.models.exporting import to_onnx
from edgesparse.models.registry import spec


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits network as ONNX, beside a folder of inputs without labels."""
    folder = tmp_path_factory.mktemp("digits")
    proto = to_onnx(digits.trained(epochs=12), spec("digits"))
    (folder / "digits.onnx").write_bytes(proto.SerializeToString())
    (folder / "inputs").mkdir()
    np.save(folder / "inputs" / "a.npy", digits.load()[0][0][:600])
    return folder
