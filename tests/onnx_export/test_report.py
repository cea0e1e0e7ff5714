"""The report as data and as a table."""

import dataclasses
from pathlib import Path

import onnx_ir as ir

from noble_fx.onnx_export.report import report_of
from noble_fx.onnx_export.verify import Verification
from noble_fx.passes.history import Step

STEPS = [
    Step("join_up", "a", "x", "y"),
    Step("join_up", "b", "x", "", "rows of 4 KiB"),
    Step("join_up", "c", "x", "", "rows of 4 KiB"),
    Step("split_group", "a", "x", "", "not told: nothing is lost"),
    Step("remove_dead", "a", "x", "y"),
]


def model():
    """One Cos of x [batch, 4], and a function of two nodes."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    cosine = ir.node("Cos", [x])
    y = cosine.outputs[0]
    y.name, y.shape, y.type = "y", x.shape, x.type
    inner = ir.Value(name="inner")
    first = ir.node("Sin", [inner])
    second = ir.node("Sin", first.outputs)
    body = ir.Graph([inner], second.outputs, nodes=[first, second], opset_imports={"": 20})
    function = ir.Function("d", "F", graph=body, attributes=[])
    return ir.Model(ir.Graph([x], [y], nodes=[cosine], opset_imports={"": 20}), ir_version=10, functions=[function])


def report(verification):
    return report_of(model(), Path("m.onnx"), 1_500_000, verification, STEPS, "W and U one matrix (join='up')")


def test_what_was_written():
    written = report(Verification(2e-6, 1e-4, ("[2, 4]", "[1, 4]"), "ONNX Runtime"))
    assert (written.opset, written.nodes, written.size) == (20, 3, 1_500_000)
    assert written.inputs == {"x": "FLOAT [batch,4]"}
    assert written.outputs == {"y": "FLOAT [batch,4]"}
    assert written.passes == {"join_up": 1}
    assert written.kept == {"join_up: rows of 4 KiB": 2}
    text = str(written)
    for part in (
        "m.onnx (1.50 MB)", "W and U one matrix (join='up')", "join_up × 1", "2 × join_up: rows of 4 KiB",
        "2.00e-06 (≤ 0.0001)", "[2, 4]; [1, 4]",
    ):  # fmt: skip
        assert part in text


def test_too_far_off_and_never_compared():
    assert "1.00e-03 (NOT ≤ 0.0001)" in str(report(Verification(1e-3, 1e-4, ("[2, 4]",), "ONNX Runtime")))
    assert "nan (NOT ≤ 0.0001)" in str(report(Verification(float("nan"), 1e-4, ("[2, 4]",), "ONNX Runtime")))
    unseen = report(None)
    assert (unseen.largest_error, unseen.tolerance, unseen.checked) == (None, None, ())
    assert "not verified" in str(unseen)


def test_names_of_a_file_are_never_markup():
    written = dataclasses.replace(report(None), inputs={"[/]\x1b[31m": "[bold]"}, path=Path("[red].onnx"))
    assert r"[/]\x1b[31m [bold]" in str(written)
    assert "[red].onnx" in str(written)
