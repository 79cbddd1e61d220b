"""Attention is found however its turning is spelt, and gives what onnxruntime gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, check_against_onnx, text_model

from edgesparse.graph.ops import Attention, Graph, Linear, View
from edgesparse.graph.recognise import recognise
from edgesparse.passes import SIMPLIFY, model_from_proto, run_passes

B, T, H, D = 2, 19, 3, 8
F = H * D
HEAD = f"g (float[{B},{T},{F}] x, float[{B},1,1,{T}] mask) => (float[{B},{T},{F}] y)"
FOOT = "r = MatMul(p, vt) rt = Transpose<perm=[0,2,1,3]>(r) f = Reshape(rt, back) y = MatMul(f, wo)"
APART = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    qs = Reshape(q, heads) ks = Reshape(k, heads) vs = Reshape(v, heads)
    qt = Transpose<perm=[0,2,1,3]>(qs) vt = Transpose<perm=[0,2,1,3]>(vs) """
KEYS = "kt = Transpose<perm=[0,2,3,1]>(ks) s = MatMul(qt, kt) "
#: As torch exports BERT, timm's ViT, SVTR (PaddleOCR), and scaled_dot_product_attention with a mask.
SPELLINGS = {
    "apart": f"{APART} {KEYS} d = Div(s, root) p = Softmax(d) {FOOT}",
    "masked": f"""{APART} {KEYS} d = Mul(s, part) dm = Add(d, mask) p = Softmax(dm) {FOOT}""",
    "scaled": f"""{APART} kp = Transpose<perm=[0,2,1,3]>(ks) kt = Transpose<perm=[0,1,3,2]>(kp) qx = Mul(qt, part)
        kx = Mul(part, kt) s = MatMul(qx, kx) p = Softmax(s) {FOOT}""",
    "split": f"""a = MatMul(x, wqkv) z = Reshape(a, three) t = Transpose<perm=[2,0,3,1,4]>(z)
        u, w, o = Split<axis=0, num_outputs=3>(t) qt = Squeeze(u, zero) ks = Squeeze(w, zero) vt = Squeeze(o, zero)
        kt = Transpose<perm=[0,1,3,2]>(ks) s = MatMul(qt, kt) p = Softmax(s) {FOOT}""",
    "cut": f"""a = MatMul(x, wqkv) q = Slice(a, c0, c1, two) v = Slice(a, c2, c3, two)
        z = Reshape(a, three) t = Transpose<perm=[2,0,3,1,4]>(z) kg = Gather<axis=0>(t, one)
        qs = Reshape(q, heads) vs = Reshape(v, heads) qt = Transpose<perm=[0,2,1,3]>(qs)
        vt = Transpose<perm=[0,2,1,3]>(vs) kt = Transpose<perm=[0,1,3,2]>(kg) s = MatMul(qt, kt) d = Div(s, root)
        flat = Reshape(d, rows) e = Softmax(flat) p = Reshape(e, square) {FOOT}""",
}
#: What is added to the scores, constant and computed: causal, for each head, for each image, for all.
MASKS = {
    "causal": ([T, T], ""),
    "keys": ([T], ""),
    "images": ([B, 1, 1, T], ""),
    "biases": ([1, H, T, T], ""),
    "all": ([B, H, T, T], ""),
    "computed": ([B, 1, T, T], "l = Transpose<perm=[0,1,3,2]>(mask) computed = Add(l, mask)"),
    "for_heads": ([B, H, T, T], "l = Add(mask, biases) for_heads = Mul(l, tenth)"),
}
#: What looks like it and is not.
OTHERS = {
    "heads inside out": f"""q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) qs = Reshape(q, inner)
        ks = Reshape(k, heads) vs = Reshape(v, heads) qt = Transpose<perm=[0,3,1,2]>(qs)
        vt = Transpose<perm=[0,2,1,3]>(vs) {KEYS} p = Softmax(s) {FOOT}""",
    "softmax over queries": f"{APART} {KEYS} p = Softmax<axis=2>(s) {FOOT}",
    "a row for each head": f"{APART} {KEYS} d = Add(s, rowwise) p = Softmax(d) {FOOT}",
    "scores shared": f"{APART} {KEYS} p = Softmax(s) r = MatMul(p, vt) rs = MatMul(s, vt) ra = Add(r, rs) "
    "rt = Transpose<perm=[0,2,1,3]>(ra) f = Reshape(rt, back) y = MatMul(f, wo)",
}


def model(body: str) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    constants: dict[str, Any] = {
        name: rng.standard_normal((F, F)).astype(np.float32) / 3 for name in ("wq", "wk", "wv", "wo")
    }
    constants |= {"wqkv": rng.standard_normal((F, 3 * F)).astype(np.float32) / 3}
    constants |= {"root": np.float32(D**0.5), "part": np.float32(D**-0.25)}
    shapes = {"keys": [T], "images": [B, 1, 1, T], "biases": [1, H, T, T], "all": [B, H, T, T], "rowwise": [1, H, 1, T]}
    constants |= {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    constants |= {"causal": np.triu(np.full((T, T), -np.inf, np.float32), 1)}
    constants |= {"tenth": np.float32(0.1)}
    lists = {"heads": [B, T, H, D], "inner": [B, T, D, H], "back": [B, T, F], "three": [B, T, 3, H, D], "zero": [0]}
    lists |= {"c0": [0], "c1": [F], "c2": [2 * F], "c3": [3 * F], "two": [2]}
    lists |= {"rows": [B * H * T, T], "square": [B, H, T, T]}
    constants |= {name: np.array(numbers, np.int64) for name, numbers in lists.items()}
    constants["one"] = np.array(1, np.int64)
    used = {
        name: value
        for name, value in constants.items()
        if name in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    return text_model(f"{HEAD} {{ {body} }}", used, opset=20)


def graph_of(proto: onnx.ModelProto) -> Graph:
    return recognise(run_passes(model_from_proto(proto), SIMPLIFY).model)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_operation(name: str, tmp_path: Path) -> None:
    proto = model(SPELLINGS[name])
    graph = graph_of(proto)
    assert {type(op) for op in graph.ops} <= {Linear, Attention, View}
    found = [op for op in graph.ops if isinstance(op, Attention)]
    assert [(op.batch, op.heads, op.queries, op.keys, op.width, op.depth) for op in found] == [(B, H, T, T, D, D)]
    check_against_onnx(proto, tmp_path, HOST_TARGETS[-1], threads=3 if name == "cut" else 1)


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_part_of_it(name: str, tmp_path: Path) -> None:
    extents, made = MASKS[name]
    proto = model(f"{made} {APART} {KEYS} sm = Add({name}, s) p = Softmax(sm) {FOOT}")
    (op,) = [op for op in graph_of(proto).ops if isinstance(op, Attention)]
    assert op.mask is not None
    assert (op.mask.batch, op.mask.heads, op.mask.queries) == (*(1,) * (4 - len(extents)), *extents[:-1])
    assert (op.mask.values is None) == bool(made)
    check_against_onnx(proto, tmp_path, HOST_TARGETS[-1], threads=2 if name == "for_heads" else 1)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_it_is_left_alone(name: str, tmp_path: Path) -> None:
    proto = model(OTHERS[name])
    assert not any(isinstance(op, Attention) for op in graph_of(proto).ops)
    check_against_onnx(proto, tmp_path, HOST_TARGETS[-1])
