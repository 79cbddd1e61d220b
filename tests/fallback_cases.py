"""ONNX graphs for the fallback lowering: name, opset, graph text. `QUICK` is what every run checks."""

from __future__ import annotations

X = "float[2,6,9,11] x"
Y = "float[2,6,9,11] y"
_TYPES = {"float": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "double": 11}

CASES: dict[str, tuple[int, str]] = {}


def _add(name: str, head: str, body: str, constants: str = "", opset: int = 17) -> None:
    held = f" <{constants}>" if constants else ""
    CASES[name] = (opset, f"g {head}{held} {{ {body} }}")


def _elementwise() -> None:
    for op in (
        *("Sigmoid", "Tanh", "Erf", "Exp", "LeakyRelu", "Elu", "Softplus", "HardSwish", "HardSigmoid", "Neg", "Abs"),
        *("Floor", "Ceil", "Round", "Relu", "Selu", "Softsign", "Reciprocal", "Sign", "Sin", "Cos", "Mish"),
        *("Identity", "Atan", "Sinh"),
    ):
        _add(op, f"({X}) => ({Y})", f"y = {op}(x)", opset=18)
    for op in ("Sqrt", "Log"):
        _add(op, f"({X}) => ({Y})", f"a = Abs(x) y = {op}(a)")
    _add("Gelu", f"({X}) => ({Y})", "y = Gelu(x)", opset=20)
    _add("Gelu tanh", f"({X}) => ({Y})", 'y = Gelu<approximate="tanh">(x)', opset=20)
    for op in ("Add", "Mul", "Sub", "Div", "Max", "Min", "PRelu"):
        for shape in ("6,1,1", "11", "9,1", "1"):
            _add(f"{op} [{shape}]", f"({X}, float[{shape}] z) => ({Y})", f"y = {op}(x, z)")
    _add("Sum", f"({X}, float[11] b, float[9,1] c) => ({Y})", "y = Sum(x, b, c)")
    _add("Pow", f"({X}, float[11] z) => ({Y})", "a = Abs(x) y = Pow(a, z)")
    _add("Pow 2", "(float[2,6] x) => (float[2,6] y)", "y = Pow(x, c)", "float c = {2.0}")
    _add("Clip", f"({X}) => ({Y})", "y = Clip(x, lo, hi)", "float lo = {-0.5}, float hi = {0.7}")
    _add("Where", f"(bool[9,11] c, {X}, float[11] z) => ({Y})", "y = Where(c, x, z)")
    _add("SiLU", f"({X}) => ({Y})", "a = Sigmoid(x) y = Mul(a, x)")
    for op in ("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"):
        _add(op, f"({X}, float[11] z) => (bool[2,6,9,11] y)", f"y = {op}(x, z)")
    for op in ("And", "Or", "Xor"):
        _add(op, "(bool[9,11] x, bool[11] z) => (bool[9,11] y)", f"y = {op}(x, z)")
    _add("Not", "(bool[9,11] x) => (bool[9,11] y)", "y = Not(x)")
    for kind in ("int32", "int64"):
        for op in ("Add", "Mul", "Sub", "Div", "Mod"):
            head = f"({kind}[9,11] x, {kind}[11] z) => ({kind}[9,11] y)"
            _add(f"{op} {kind}", head, f"w = Add(z, one) y = {op}(x, w)", f"{kind} one = {{1}}")
    for a in _TYPES:
        for b, number in _TYPES.items():
            if a != b:
                _add(f"Cast {a} {b}", f"({a}[9,11] x) => ({b}[9,11] y)", f"y = Cast<to={number}>(x)")


def _normalisations() -> None:
    for axis in (1, 2, -1):
        _add(f"Softmax {axis}", f"({X}) => ({Y})", f"y = Softmax<axis={axis}>(x)")
        _add(f"LogSoftmax {axis}", f"({X}) => ({Y})", f"y = LogSoftmax<axis={axis}>(x)")
    _add("Softmax Mul", f"({X}) => ({Y})", "s = Softmax(x) y = Mul(s, x)")
    head = f"({X}, float[9,11] s, float[9,11] b) => ({Y})"
    _add("LayerNormalization 2", head, "y = LayerNormalization<axis=-2>(x, s, b)")
    _add("LayerNormalization", f"({X}, float[11] s, float[11] b) => ({Y})", "y = LayerNormalization(x, s, b)")
    scaled = f"({X}, float[6] s, float[6] b) => ({Y})"
    _add("InstanceNormalization", scaled, "y = InstanceNormalization(x, s, b)")
    _add("GroupNormalization", scaled, "y = GroupNormalization<num_groups=3>(x, s, b)", opset=21)
    head = f"({X}, float[6] s, float[6] b, float[6] m, float[6] v) => ({Y})"
    _add("BatchNormalization", head, "w = Abs(v) y = BatchNormalization(x, s, b, m, w)")
    _add("LRN", f"({X}) => ({Y})", "y = LRN<size=3>(x)")
    for op in (
        *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        "ReduceLogSumExp",
    ):
        for axes, shape in (("1", "2,1,9,11"), ("-1", "2,6,9,1"), ("2,3", "2,6,1,1"), ("0,2", "1,6,1,11")):
            _add(f"{op} {axes}", f"({X}) => (float[{shape}] y)", f"y = {op}<axes=[{axes}]>(x)")
        _add(f"{op} all", f"({X}) => (float[1,1,1,1] y)", f"y = {op}(x)")
    _add("ReduceSum", f"({X}) => (float[2,6,9] y)", "y = ReduceSum<keepdims=0>(x, ax)", "int64[1] ax = {3}")
    _add("ArgMax", f"({X}) => (int64[2,1,9,11] y)", "y = ArgMax<axis=1>(x)")
    _add("ArgMin", f"({X}) => (int64[2,6,9] y)", "y = ArgMin<axis=3, keepdims=0>(x)")
    _add("CumSum", "(float[4,30] x) => (float[4,30] y)", "y = CumSum(x, k)", "int64 k = {1}")


def _movements() -> None:
    for axes, shape in (
        ("0,2,3,1", "2,9,11,6"),
        ("0,1,3,2", "2,6,11,9"),
        ("3,2,1,0", "11,9,6,2"),
        ("1,0,2,3", "6,2,9,11"),
    ):
        _add(f"Transpose {axes}", f"({X}) => (float[{shape}] y)", f"y = Transpose<perm=[{axes}]>(x)")
    _add("Transpose large", "(float[37,70] x) => (float[70,37] y)", "y = Transpose<perm=[1,0]>(x)")
    _add("Transpose batch", "(float[3,37,70] x) => (float[3,70,37] y)", "y = Transpose<perm=[0,2,1]>(x)")
    _add("Reshape", f"({X}) => (float[12,99] y)", "y = Reshape(x, s)", "int64[2] s = {12, 99}")
    _add("Flatten", f"({X}) => (float[2,594] y)", "y = Flatten(x)")
    _add("Unsqueeze", "(float[2,3] x) => (float[2,1,3] y)", "y = Unsqueeze(x, s)", "int64[1] s = {1}")
    _add("Squeeze", "(float[2,1,3] x) => (float[2,3] y)", "y = Squeeze(x, s)", "int64[1] s = {1}")
    _add("Expand", "(float[2,1,3] x) => (float[2,4,3] y)", "y = Expand(x, s)", "int64[3] s = {2, 4, 3}")
    _add("Tile", "(float[2,1,3] x) => (float[4,3,9] y)", "y = Tile(x, s)", "int64[3] s = {2, 3, 3}")
    outputs = "(float[2,2,9,11] y, float[2,4,9,11] z)"
    _add("Split", f"({X}) => {outputs}", "y, z = Split<axis=1>(x, s)", "int64[2] s = {2, 4}")
    wide = ", ".join(f"float[2,1] y{i}" for i in range(20))
    names = ", ".join(f"y{i}" for i in range(20))
    _add("Split 20", f"(float[2,20] x) => ({wide})", f"{names} = Split<axis=1>(x)", opset=13)
    _add("Concat", "(float[4,8] x, float[4,3] z) => (float[4,11] y)", "y = Concat<axis=1>(x, z)")
    wide = ", ".join(f"float[1,2,3] x{i}" for i in range(20))
    names = ", ".join(f"x{i}" for i in range(20))
    _add("Concat 20", f"({wide}) => (float[1,40,3] y)", f"y = Concat<axis=1>({names})")
    ends = "int64[2] a = {1, 0}, int64[2] b = {9, 11}, int64[2] ax = {2, 3}, int64[2] st = {2, 2}"
    _add("Slice", f"({X}) => (float[2,6,4,6] y)", "c = Slice(x, a, b, ax, st) y = Neg(c)", ends)
    ends = "int64[1] a = {-1}, int64[1] b = {-100}, int64[1] ax = {1}, int64[1] st = {-1}"
    _add("Slice back", "(float[2,6] x) => (float[2,6] y)", "y = Slice(x, a, b, ax, st)", ends)
    _add("Gather", "(float[30,16] x, int64[2,5] i) => (float[2,5,16] y)", "y = Gather(x, i)")
    _add("Gather 1", "(float[4,30] x, int32[5] i) => (float[4,5] y)", "y = Gather<axis=1>(x, i)")
    _add("GatherElements", "(float[4,30] x, int64[4,5] i) => (float[4,5] y)", "y = GatherElements<axis=1>(x, i)")
    _add("GatherND", "(float[4,30] x, int64[4,2] i) => (float[4] y)", "y = GatherND(x, i)")
    head = "(float[8] x, int64[3,1] i, float[3] u) => (float[8] y)"
    _add("ScatterND", head, 'y = ScatterND<reduction="add">(x, i, u)')
    for mode in ("constant", "reflect", "edge"):
        pads = "int64[8] p = {0, 0, 1, 2, 0, 0, 2, 1}"
        _add(f"Pad {mode}", f"({X}) => (float[2,6,12,14] y)", f'y = Pad<mode="{mode}">(x, p)', pads)
    _add("Celu", f"({X}) => ({Y})", "y = Celu<alpha=0.5>(x)")
    _add("Mod float", f"({X}, float[11] z) => ({Y})", "y = Mod<fmod=1>(x, z)")
    _add("OneHot", "(int64[4] x) => (float[4,5] y)", "y = OneHot(x, d, o)", "int64 d = {5}, float[2] o = {0.0, 1.0}")
    _add("Trilu", "(float[5,5] x) => (float[5,5] y)", "y = Trilu<upper=0>(x)")
    _add("Identity", f"({X}) => ({Y})", "y = Identity(x)")


def _images() -> None:
    for mode in ("nearest", "linear", "cubic"):
        for frame in ("asymmetric", "half_pixel", "align_corners"):
            rounding = "floor" if frame == "asymmetric" else "round_prefer_floor"
            options = f'mode="{mode}", coordinate_transformation_mode="{frame}", nearest_mode="{rounding}"'
            _add(
                f"Resize {mode} {frame}",
                f"({X}) => (float[2,6,18,22] y)",
                f"y = Resize<{options}>(x, , s)",
                "float[4] s = {1.0, 1.0, 2.0, 2.0}",
            )
    for mode in ("nearest", "linear", "cubic"):
        for frame in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
            options = f'mode="{mode}", coordinate_transformation_mode="{frame}"'
            _add(
                f"Resize {mode} {frame} 0.6",
                f"({X}) => (float[2,6,5,17] y)",
                f"y = Resize<{options}>(x, , s)",
                "float[4] s = {1.0, 1.0, 0.6, 1.6}",
            )
            sized = "int64[4] n = {2, 6, 7, 13}"
            text = f"y = Resize<{options}>(x, , , n)"
            _add(f"Resize {mode} {frame} sizes", f"({X}) => (float[2,6,7,13] y)", text, sized)
    for mode in ("linear", "cubic"):
        text = f'y = Resize<mode="{mode}", antialias=1>(x, , , n)'
        _add(f"Resize {mode} antialias", f"({X}) => (float[2,6,4,5] y)", text, "int64[4] n = {2, 6, 4, 5}", opset=18)
    _add("DepthToSpace", "(float[1,8,5,6] x) => (float[1,2,10,12] y)", "y = DepthToSpace<blocksize=2>(x)")
    head = "(float[1,8,5,6] x) => (float[1,2,10,12] y)"
    _add("DepthToSpace CRD", head, 'y = DepthToSpace<blocksize=2, mode="CRD">(x)')
    _add("SpaceToDepth", "(float[1,2,10,12] x) => (float[1,8,5,6] y)", "y = SpaceToDepth<blocksize=2>(x)")
    _add("MaxPool", f"({X}) => ({Y})", "y = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x)")
    pool = "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"
    _add("MaxPool 2", f"({X}) => (float[2,6,5,6] y)", f"y = MaxPool<{pool}>(x)")
    _add("AveragePool", f"({X}) => (float[2,6,5,6] y)", f"y = AveragePool<{pool}>(x)")
    _add("AveragePool padded", f"({X}) => (float[2,6,5,6] y)", f"y = AveragePool<{pool}, count_include_pad=1>(x)")
    _add("GlobalAveragePool", f"({X}) => (float[2,6,1,1] y)", "y = GlobalAveragePool(x)")
    _add("GlobalMaxPool", f"({X}) => (float[2,6,1,1] y)", "y = GlobalMaxPool(x)")
    head = "(float[1,6,9,11] x, float[8,6,3,3] w, float[8] b) => (float[1,8,9,11] y)"
    _add("Conv Relu", head, "c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c)")
    head = "(float[1,6,9,11] x, float[8,3,3,3] w) => (float[1,8,5,6] y)"
    _add("Conv groups", head, "y = Conv<pads=[1,1,1,1], strides=[2,2], group=2>(x, w)")
    _add("Conv 1d", "(float[1,6,19] x, float[8,6,3] w) => (float[1,8,17] y)", "y = Conv(x, w)")
    head = "(float[1,6,9,11] x, float[6,8,2,2] w, float[8] b) => (float[1,8,18,22] y)"
    _add("ConvTranspose", head, "y = ConvTranspose<strides=[2,2]>(x, w, b)")
    head = "(float[1,6,9,11] x, float[6,8,4,4] w) => (float[1,8,18,22] y)"
    _add("ConvTranspose 4", head, "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)")
    _add("GridSample", "(float[1,2,5,5] x, float[1,4,4,2] z) => (float[1,2,4,4] y)", "y = GridSample(x, z)", opset=16)


def _products() -> None:
    for a, b, c in (
        ("5,7", "7,9", "5,9"),
        ("3,5,17", "3,17,40", "3,5,40"),
        ("3,5,17", "17,40", "3,5,40"),
        ("2,3,8,64", "2,3,64,33", "2,3,8,33"),
        ("19,33", "33,61", "19,61"),
        ("64", "64,10", "10"),
        ("4,64", "64", "4"),
    ):
        _add(f"MatMul {a} {b}", f"(float[{a}] x, float[{b}] z) => (float[{c}] y)", "y = MatMul(x, z)")
    head = "(float[4,8,16] x, float[4,16,20] w, float[20] b) => (float[4,8,20] y)"
    _add("MatMul Add Relu", head, "a = MatMul(x, w) c = Add(a, b) y = Relu(c)")
    head = "(float[5,40] x, float[23,40] w, float[23] b) => (float[5,23] y)"
    _add("Gemm", head, "y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)")
    head = "(float[40,5] x, float[40,23] w, float[23] b) => (float[5,23] y)"
    _add("Gemm A", head, "y = Gemm<transA=1>(x, w, b)")
    _add("Einsum", "(float[2,3,8] x, float[2,8,5] z) => (float[2,3,5] y)", 'y = Einsum<equation="bij,bjk->bik">(x, z)')


_elementwise()
_normalisations()
_movements()
_images()
_products()

QUICK = [
    *("Celu", "Resize cubic half_pixel 0.6", "Resize nearest half_pixel sizes"),
    *("Sigmoid", "Gelu", "Round", "Add [6,1,1]", "Div [11]", "PRelu [9,1]", "Pow", "Clip", "Where", "Less", "And"),
    *("Div int64", "Cast float bool", "Cast double float16", "Softmax -1", "Softmax 1", "LayerNormalization", "LRN"),
    *("InstanceNormalization", "BatchNormalization", "ReduceMean 1", "ReduceMax 2,3", "ReduceProd all", "ArgMax"),
    *("CumSum", "Transpose 0,1,3,2", "Transpose large", "Reshape", "Split 20", "Concat 20", "Slice", "Gather"),
    *(
        "ScatterND",
        "Pad constant",
        "Pad reflect",
        "OneHot",
        "Identity",
        "Mod float",
        "Resize linear half_pixel",
        "DepthToSpace",
    ),
    *("MaxPool", "AveragePool", "Conv Relu", "ConvTranspose", "MatMul 19,33 33,61", "MatMul Add Relu", "Gemm"),
]
