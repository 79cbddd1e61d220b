"""ONNX's own tests of its operators (the `onnx` package ships them), run through the whole compiler on this machine.

    python -m edgesparse.nodetests [--match PART] [--all] [--table FILE] [--json FILE]

Every test is a graph of one operator (or of the operators that define it) with inputs and expected outputs made by
ONNX's reference, held to ONNX's own tolerance. Inputs that are shapes, axes or settings in every exported network, and
the weights of convolutions and recurrences, are made constants first (`CONSTANT_INPUTS`): a compiled program is static.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgesparse.errors import EdgesparseError, UnsupportedError
from edgesparse.target import Target

#: The operators that edgesparse claims: what exporters write for inference of networks with float32 activations.
CLAIMED = frozenset(
    re.findall(
        r"\w+",
        """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace Div Dropout Elu Equal Erf Exp
    Expand Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf
    IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mul Neg Not OneHot Or PRelu Pad Pow RMSNormalization RNN Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Where Xor
    """,
    )
)

_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")

#: Operator to the inputs that are constants in every network that exporters write.
CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    **{f"Reduce{kind}": (1,) for kind in _REDUCTIONS},
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "TopK", "CumSum", "Trilu"), (1,)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3, 4, 7)),
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "AffineGrid": (1,),
    "Clip": (1, 2),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Upsample": (1,),
}

_PLAIN = {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL, onnx.TensorProto.INT64, onnx.TensorProto.INT32}

OK, REFUSED, DISPUTED, WRONG, FAILED = "ok", "refused", "disputed", "wrong", "failed"


@dataclass(frozen=True)
class Case:
    """One test: its model with constants in place, inputs and expected outputs by position, tolerances.

    `plain` says that there are no types but float32, bool, int32 and int64; `expanded` that the graph is the
    operator's definition by other operators.
    """

    name: str
    op: str
    model: onnx.ModelProto
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    rtol: float
    atol: float
    plain: bool
    expanded: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a test.

    "ok"; "refused": one clear error, in `reason`; "disputed": equal to onnxruntime, which differs from ONNX's
    reference; "wrong": other numbers; "failed": a bug.
    """

    name: str
    op: str
    status: str
    reason: str
    plain: bool
    expanded: bool


def cases(match: str = "") -> Iterator[Case]:
    """ONNX's node tests on tensors whose name holds `match`, in the order of their names."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, out of ONNX's reference code
        found = {case.name: case for case in load_model_tests(kind="node")}
    for name in sorted(found):
        origin = found.get(re.sub(r"_expanded.*$", "", name), found[name])
        if match in name and _tensors_only(found[name]) and origin.model and len(origin.model.graph.node) == 1:
            yield _case(found[name], origin)


def _tensors_only(case: Any) -> bool:
    values = (*case.model.graph.input, *case.model.graph.output)
    return all(value.type.HasField("tensor_type") for value in values) and len(case.data_sets) > 0


def _case(case: Any, origin: Any) -> Case:
    node = origin.model.graph.node[0]
    fixed = {node.input[i] for i in CONSTANT_INPUTS.get(node.op_type, ()) if i < len(node.input)}
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs, outputs = case.data_sets[0]
    given = []
    for value, array in zip(list(model.graph.input), inputs, strict=True):
        if value.name in fixed:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
            model.graph.input.remove(value)
        else:
            given.append(np.asarray(array))
    kinds = {value.type.tensor_type.elem_type for value in (*case.model.graph.input, *case.model.graph.output)}
    return Case(
        case.name,
        node.op_type,
        model,
        tuple(given),
        tuple(np.asarray(array) for array in outputs),
        case.rtol,
        case.atol,
        kinds <= _PLAIN,
        case.name != origin.name,
    )


def outcome(case: Case, target: Target) -> Outcome:
    """Compile and run one test."""

    def told(status: str, reason: str = "") -> Outcome:
        return Outcome(case.name, case.op, status, reason, case.plain, case.expanded)

    try:
        found = _run(case, target)
    except UnsupportedError as error:
        return told(REFUSED, str(error))
    except EdgesparseError as error:
        return told(REFUSED, f"{type(error).__name__}: {error}")
    except Exception as error:  # a bug of ours, to be listed
        return told(FAILED, f"{type(error).__name__}: {error}")
    for index, (array, wanted) in enumerate(zip(found, case.outputs, strict=True)):
        why = difference(array, wanted, case.rtol, case.atol)
        if why:
            return told(DISPUTED if _as_onnxruntime(case, found) else WRONG, f"output {index}: {why}")
    return told(OK)


def _as_onnxruntime(case: Case, found: Sequence[np.ndarray]) -> bool:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = [value.name for value in case.model.graph.input]
        results: Any = session.run(None, dict(zip(names, case.inputs, strict=True)))
    except Exception:  # it has a class of its own for each kind of failure
        return False
    return not any(difference(a, b, case.rtol, case.atol) for a, b in zip(found, results, strict=True))


def difference(found: np.ndarray, wanted: np.ndarray, rtol: float, atol: float) -> str:
    """What differs beyond ``atol + rtol * |wanted|``, or nothing."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype}{list(found.shape)} where {wanted.dtype}{list(wanted.shape)} is due"
    wide = (np.float64,) if found.dtype.kind in "fV" or "float" in found.dtype.name else ()
    a, b = (found.astype(*wide), wanted.astype(*wide)) if wide else (found, wanted)
    good = np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True) if wide else a == b
    if np.all(good):
        return ""
    where = tuple(int(i) for i in np.argwhere(~np.atleast_1d(good))[0])
    return f"{int(np.sum(~good))} of {good.size} differ, first at {where}"


def _run(case: Case, target: Target) -> list[np.ndarray]:
    from edgesparse.pipeline import compile_model
    from edgesparse.runtimes.local import LocalRunner

    with tempfile.TemporaryDirectory(prefix="edgesparse-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(case.model.SerializeToString())
        artifact = compile_model(path, target=target, output=Path(folder) / "out", tune=False)
        assert artifact is not None
        names = [value.name for value in case.model.graph.input]
        with LocalRunner(artifact) as runner:
            results = runner.run(dict(zip(names, case.inputs, strict=True)))
        return [results[value.name] for value in case.model.graph.output]


#: In the reasons of tests that ask for what no network in use has: training, and tensors without elements.
OUTSIDE = ("training_mode", "dimension of 0")

_HEAD = """# Operators

ONNX ships tests of its operators. `python -m edgesparse.nodetests --all --table docs/operators.md` compiles and runs
them all and writes this page (onnx {}). Shapes, axes and the weights of convolutions and recurrences are made
constants, as exporters write them. A test passes if all outputs are within ONNX's own tolerance of ONNX's own results.
*Plain* tests use float32, bool, int32 and int64 only; tests in which an operator is spelt out by others count with it.
"""


def table(found: Sequence[Outcome]) -> str:
    """The page of operators: tests passed of each claimed operator, and why the others are refused."""
    claimed = [each for each in found if each.op in CLAIMED]
    plain = [each for each in claimed if each.plain]
    passed = sum(each.status == OK for each in plain)
    share = f"{100 * passed / max(len(plain), 1):.1f} %"
    inside = [each for each in plain if not any(mark in each.reason for mark in OUTSIDE)]
    inner = f"{100 * passed / max(len(inside), 1):.1f} %"
    wrong = sum(each.status == WRONG for each in found)
    lines = [
        _HEAD.format(onnx.__version__),
        f"**{passed} of {len(plain)} plain tests of the claimed operators pass ({share}); {wrong} numbers are wrong.**",
        f"Without training mode and tensors without elements, which are refused by design: {inner} of {len(inside)}.",
        "",
        "| operator | plain tests | tests of other types | what does not pass |",
        "| --- | --- | --- | --- |",
    ]
    for op in sorted({each.op for each in claimed}):
        rows = [each for each in claimed if each.op == op]
        lines.append(f"| {op} | {_count(rows, True)} | {_count(rows, False)} | {_reasons(rows)} |")
    others = sorted({each.op for each in found if each.op not in CLAIMED})
    pass_too = [op for op in others if any(each.op == op and each.status == OK and each.plain for each in found)]
    lines += ["", "Operators beside these, of which some tests pass: " + ", ".join(pass_too) + "."]
    refused = [op for op in others if op not in pass_too]
    lines += ["", "Refused, each by one error that names it: " + ", ".join(refused) + "."]
    lines += [
        "",
        "A *disputed* test is one where ONNX's reference and onnxruntime differ: edgesparse follows onnxruntime.",
    ]
    return "\n".join(lines) + "\n"


def _count(rows: Sequence[Outcome], plain: bool) -> str:
    mine = [each for each in rows if each.plain == plain]
    return f"{sum(each.status == OK for each in mine)} / {len(mine)}" if mine else ""


#: What a reason is called on the page.
_SHORT = (
    ("dimension of 0", "tensors without elements"),
    ("its type is", "the type is not taken"),
    ("onnxruntime cannot run", "onnxruntime does not run it"),
    ("training_mode", "training mode"),
    ("opset 1:", "opset 1"),
    ("frontend ONNX", "not in TVM"),
)


def _reasons(rows: Sequence[Outcome]) -> str:
    told: Counter[str] = Counter()
    for each in rows:
        if each.status != OK:
            short = next((text for mark, text in _SHORT if mark in each.reason), "")
            why = each.reason.partition(": ")[2].partition(" (")[0].partition("\n")[0][:90]
            told[f"{each.status if each.status != REFUSED else ''} {short or why}".strip()] += 1
    return "; ".join(f"{count} x {text}".replace("|", "/") for text, count in told.most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; ends with 1 if a number is wrong or something broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only tests whose name holds this")
    parser.add_argument("--all", action="store_true", help="also operators and types that are not claimed")
    parser.add_argument("--share", default="0/1", help="I/N: the tests with number I modulo N")
    parser.add_argument("--json", type=Path, help="write each test's outcome")
    parser.add_argument("--table", type=Path, help="write the page of operators")
    given = parser.parse_args(arguments)
    target = Target.parse("native")
    part, of = (int(number) for number in given.share.split("/"))
    found = []
    for number, case in enumerate(cases(given.match)):
        if number % of != part or not (given.all or (case.op in CLAIMED and case.plain)):
            continue
        found.append(outcome(case, target))
        if found[-1].status != OK:
            print(f"{found[-1].status:8}{case.name}: {found[-1].reason}", flush=True)
    counts = Counter(each.status for each in found)
    print(", ".join(f"{counts[status]} {status}" for status in (OK, REFUSED, DISPUTED, WRONG, FAILED)))
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    if given.table:
        given.table.write_text(table(found))
    return 1 if counts[WRONG] or counts[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
