"""edgesparse: a sparse deployment compiler for the edge. ONNX in, measured group-sparse programs out."""

__version__ = "0.1.0"
