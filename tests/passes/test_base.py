"""The driver: checks each pass, names the guilty one, leaves the given model alone."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgesparse.errors import ModelError, Reason, UnsupportedError, UsageError
from edgesparse.passes.base import Pass, PassResult, run_passes

TEXT = "g (float[2,3] x) => (float[2,3] y) { t = Relu(x)  y = Neg(t) }"


def nothing(model: ir.Model) -> PassResult:
    return PassResult(model, False, (Reason("idle", "nothing to do"),))


def rename_output(model: ir.Model) -> PassResult:
    model.graph.outputs[0].name = "z"
    return PassResult(model, True)


def break_graph(model: ir.Model) -> PassResult:
    model.graph.node(1).op_type = "NoSuchOperator"
    return PassResult(model, True)


def crash(model: ir.Model) -> PassResult:
    raise KeyError("lost")


def refuse(model: ir.Model) -> PassResult:
    raise UnsupportedError("not this one")


IDLE = Pass("idle", nothing)


def test_steps_are_told_in_order(load) -> None:
    seen, dumped = [], []
    result = run_passes(
        load(TEXT),
        [IDLE, Pass("two", nothing), Pass("three", nothing)],
        on_step=lambda name, step: seen.append((name, step.modified)),
        stop_after="two",
        dump=lambda name, model: dumped.append(name),
    )
    assert seen == [("idle", False), ("two", False)]
    assert dumped == ["idle", "two"] == list(result.ran)
    assert not result.modified
    assert [reason.code for reason in result.reasons] == ["idle", "idle"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (rename_output, "pass bad changed the inputs or outputs.*it ran after idle"),
        (break_graph, "pass bad made an invalid model.*NoSuchOperator.*it ran after idle"),
        (crash, "pass bad crashed: KeyError.*it ran after idle"),
    ],
)
def test_the_guilty_pass_is_named(load, run, message: str) -> None:
    model = load(TEXT)
    with pytest.raises(ModelError, match=message):
        run_passes(model, [IDLE, Pass("bad", run)])
    assert model.graph.outputs[0].name == "y"
    assert model.graph.node(1).op_type == "Neg"


def test_refusals_keep_their_class(load) -> None:
    with pytest.raises(UnsupportedError, match="not this one"):
        run_passes(load(TEXT), [Pass("refuse", refuse)])


def test_unknown_step(load) -> None:
    with pytest.raises(UsageError, match=r"unknown step 'idel' \(did you mean idle\?"):
        run_passes(load(TEXT), [IDLE], stop_after="idel")
