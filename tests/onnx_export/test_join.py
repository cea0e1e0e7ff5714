"""Which matrices are joined: what may be asked for, what "auto" takes, what a report says."""

import pytest

from noble_fx import ExportError
from noble_fx.onnx_export.join import PIPELINES, check_join, chosen
from noble_fx.passes.pipeline import PIPELINES as ALL


def test_every_way_is_a_pipeline():
    assert set(PIPELINES.values()) <= set(ALL)


@pytest.mark.parametrize(
    ("join", "functions", "way", "said"),
    [
        ("auto", False, "up", "W and U one matrix (auto: measured to cost least in ONNX Runtime and in OpenVINO)"),
        ("up", False, "up", "W and U one matrix (join='up')"),
        ("down", False, "down", "W and D one matrix (join='down')"),
        (False, False, False, "every matrix apart (join=False)"),
        ("auto", True, False, "every matrix apart: functions=True shows the operands of the formula"),
        ("down", True, False, "every matrix apart: functions=True shows the operands of the formula"),
    ],
)
def test_what_is_taken_and_said(join, functions, way, said):
    check_join(join, "auto")
    assert chosen(join, functions) == (way, said)


@pytest.mark.parametrize("join", [True, None, 0, [], "Up", "no"])
def test_what_is_unknown(join):
    with pytest.raises(ExportError, match=r"is unknown; use 'auto', 'up', 'down' or False$"):
        check_join(join, "auto")


def test_auto_is_of_a_file_for_a_runtime():
    with pytest.raises(ExportError, match=r"join='auto' is unknown; use 'up', 'down' or False$"):
        check_join("auto")
