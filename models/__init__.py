"""Reference networks and data for tests, demo and benches.

`MODELS` is the table of networks, `model_path(name)` their way to an ONNX file, and `pages`, `pictures`,
`digits` and `ocr` are data with labels. Importing this package loads neither torch nor onnxruntime nor
Pillow.
"""

from edgesparse.models.data import Sample, Score, accuracy, evaluate, onnx_run
from edgesparse.models.exporting import export, model_path
from edgesparse.models.packages import MissingPackageError, PackageFile
from edgesparse.models.registry import MODELS, ModelSpec, spec

__all__ = [
    "MODELS",
    "MissingPackageError",
    "ModelSpec",
    "PackageFile",
    "Sample",
    "Score",
    "accuracy",
    "evaluate",
    "export",
    "model_path",
    "onnx_run",
    "spec",
]
