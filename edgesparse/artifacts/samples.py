"""Sample inputs with expected outputs, as an artifact carries them: `samples.npz`.

One array per port, `input.0`, `output.0`, .., in the signature's order, each with the samples along a new
first axis.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesparse.artifacts.manifest import Manifest, TensorInfo
from edgesparse.errors import ArtifactError

NAME = "samples.npz"

#: Most samples an artifact may hold.
MAX_SAMPLES = 1024

_NPY_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Sample:
    """Inputs and expected outputs by name."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def dump(samples: Sequence[Sample], inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> bytes:
    """The samples as an npz file; deterministic.

    Raises
    ------
    ValueError
        There are none, or an array is missing or not of the signature's dtype and shape.
    """
    if not 0 < len(samples) <= MAX_SAMPLES:
        raise ValueError(f"{len(samples)} samples, not 1 to {MAX_SAMPLES}")
    arrays = {}
    for kind, infos in (("input", inputs), ("output", outputs)):
        for index, info in enumerate(infos):
            stack = [getattr(sample, f"{kind}s").get(info.name) for sample in samples]
            for array in stack:
                if array is None or array.shape != info.shape or array.dtype != np.dtype(info.dtype):
                    raise ValueError(f"a sample's {kind} '{info.name}' is missing or not {info}")
            arrays[f"{kind}.{index}"] = np.stack(stack)
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def load(path: Path, manifest: Manifest) -> list[Sample]:
    """The samples of an artifact.

    Raises
    ------
    ArtifactError
        The file is not what `dump` writes for this signature.
    """
    try:
        inputs, outputs = _read(path, manifest)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(
            f"{path} holds no samples of this model", why=str(error), fix="compile the model again"
        ) from error
    ports = [*inputs.values(), *outputs.values()]
    count = len(ports[0]) if ports else 0
    return [
        Sample(
            {name: stack[index] for name, stack in inputs.items()},
            {name: stack[index] for name, stack in outputs.items()},
        )
        for index in range(count)
    ]


def _read(path: Path, manifest: Manifest) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    ports = {
        f"{kind}.{index}": info
        for kind, infos in (("input", manifest.inputs), ("output", manifest.outputs))
        for index, info in enumerate(infos)
    }
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
    if sizes.keys() != ports.keys():
        raise ValueError("its arrays are not the model's inputs and outputs")
    for name, info in ports.items():
        # Before reading: a small file may unpack to a huge array.
        one = np.dtype(info.dtype).itemsize * int(np.prod(info.shape, dtype=np.int64))
        if sizes[name] > MAX_SAMPLES * one + _NPY_HEADER_BYTES:
            raise ValueError(f"{name} is larger than {MAX_SAMPLES} samples")
    arrays: dict[str, np.ndarray] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name, info in ports.items():
            array = stored[name]
            first = next(iter(arrays.values()), array)
            if array.dtype != np.dtype(info.dtype) or array.shape[1:] != info.shape or len(array) != len(first):
                raise ValueError(f"{name} is not a stack of {info}")
            arrays[name] = array
    inputs = {info.name: arrays[f"input.{index}"] for index, info in enumerate(manifest.inputs)}
    outputs = {info.name: arrays[f"output.{index}"] for index, info in enumerate(manifest.outputs)}
    return inputs, outputs
