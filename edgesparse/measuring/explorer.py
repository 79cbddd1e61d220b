"""Layer times as node data for Google's Model Explorer.

`{graph: {"results": {tensor: {"value": ..}}, "gradient": [..]}}`: nodes are found by the name of an output tensor. The
format is that of `node_data_builder.py` in google-ai-edge/model-explorer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesparse.measuring.report import LayerTime

GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e8710a"})
"""From the quickest layer to the slowest."""


def node_data(layers: Sequence[LayerTime], tensors: Mapping[str, str], graph: str = "main") -> dict[str, Any]:
    """Return microseconds by the tensor that each layer makes; layers that make none of the model's are left out."""
    results = {tensors[item.name]: {"value": round(1e6 * item.seconds, 3)} for item in layers if item.name in tensors}
    return {graph: {"results": results, "gradient": [dict(stop) for stop in GRADIENT]}}


def layer_tensors(records: Sequence[Mapping[str, Any]], model: Path) -> tuple[dict[str, str], str]:
    """Return the output tensor of each layer of a manifest, by the layer's name, and the graph's name.

    A layer is known by the last of its `nodes` that the ONNX file has.
    """
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    outputs = {node.name: node.output[0] for node in graph.node if node.output}
    found = {}
    for record in records:
        made = [outputs[str(name)] for name in record.get("nodes") or (record["name"],) if str(name) in outputs]
        if made:
            found[str(record["name"])] = made[-1]
    return found, str(graph.name) or "main"
