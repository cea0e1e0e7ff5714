"""What cannot be asked for is refused before any work, with what can."""

import sys

import pytest
import torch

from noble_fx import ExportError
from noble_fx.onnx_export.request import (
    check_request,
    checked_dtype,
    checked_path,
    default_opset,
    dtypes_of,
    need_onnx,
)
from tests.models import tiny


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"verify": "maybe"}, "verify='maybe' is unknown; use True, False or 'warn'"),
        ({"join": "some"}, "join='some' is unknown; use 'auto', 'up', 'down' or False"),
        ({"join": []}, r"join=\[\] is unknown"),
        ({"opset": 9}, "opset=9 cannot be written; use 18 to"),
        ({"opset": 10_000}, "opset=10000 cannot be written"),
        ({"opset": 20.0}, "opset=20.0 cannot be written"),
        ({"opset": "20"}, "opset='20' cannot be written"),
        ({"model": tiny(layers=1).to("meta")}, "meta device and has no values"),
    ],
)
def test_what_cannot_be(setting, message):
    request = {"model": tiny(layers=1), "verify": True, "join": "up", "opset": None}
    check_request(**request)
    with pytest.raises(ExportError, match=message):
        check_request(**{**request, **setting})


def test_paths(tmp_path):
    assert checked_path(str(tmp_path / "m.onnx")) == tmp_path / "m.onnx"
    with pytest.raises(ExportError, match=r"is a folder; pass the path of the file in it, as .*model.onnx"):
        checked_path(tmp_path)
    with pytest.raises(ExportError, match="None is no path"):
        checked_path(None)


def test_dtypes():
    assert checked_dtype(torch.bfloat16) is torch.bfloat16
    with pytest.raises(ExportError, match=r"dtype=torch.int8 cannot be exported; use one of float64, float32, float16"):
        checked_dtype(torch.int8)
    assert checked_dtype(None) is None
    assert dtypes_of(tiny(layers=1).half()) == (torch.float16,)
    assert dtypes_of(torch.nn.Identity()) == ()
    assert default_opset({torch.float32, torch.bfloat16}) == 22  # Cos takes bfloat16 from there on
    assert default_opset({torch.float32, torch.int64}) is None


@pytest.mark.parametrize("package", ["onnx", "onnx_ir", "onnxruntime", "onnxscript"])
def test_a_package_that_is_not_installed_is_named(package, monkeypatch):
    need_onnx()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf'needs {package}: pip install "noble-fx\[onnx\]"'):
        need_onnx()
