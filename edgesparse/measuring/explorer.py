"""Layer times as node data for Google's Model Explorer.

`{graph: {"results": {node: {"value": ..}}, "gradient": [..]}}`: the format of `node_data_builder.py` in
google-ai-edge/model-explorer. Graphs and nodes go by the ids that the adapter for ONNX gives them, which are their
names in the file (model-explorer-onnx; it does not keep the `tensor_name` that tensors would be found by).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesparse.measuring.report import LayerTime

GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e8710a"})
"""From the quickest layer to the slowest."""


def node_data(layers: Sequence[LayerTime], nodes: Mapping[str, str], graph: str = "main") -> dict[str, Any]:
    """Return microseconds by the node that stands for each layer; layers without one are left out."""
    results = {nodes[item.name]: {"value": round(1e6 * item.seconds, 3)} for item in layers if item.name in nodes}
    return {graph: {"results": results, "gradient": [dict(stop) for stop in GRADIENT]}}


def layer_nodes(records: Sequence[Mapping[str, Any]], model: Path) -> tuple[dict[str, str], str]:
    """Return the node that stands for each layer of a manifest, by the layer's name, and the graph's name.

    It is the node of the layer's own name, else the last of its `nodes` that the ONNX file has.
    """
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    names = {node.name for node in graph.node if node.name}
    found = {}
    for record in records:
        mine = [str(name) for name in (*(record.get("nodes") or ()), record["name"]) if str(name) in names]
        if mine:
            found[str(record["name"])] = mine[-1]
    return found, str(graph.name) or "main"
