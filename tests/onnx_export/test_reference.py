"""The reference evaluator gives what PyTorch gives, in dtypes that ONNX Runtime lacks on the CPU."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from noble_fx.onnx_export.reference import reference

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float64: TensorProto.DOUBLE,
}


def write(path, dtype, node, *shapes):
    values = [helper.make_tensor_value_info(f"x{i}", TYPES[dtype], shape) for i, shape in enumerate(shapes)]
    out = helper.make_tensor_value_info("y", TYPES[dtype], None)
    graph = helper.make_graph([node], "g", values, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)]), path)
    return reference(path)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_products(dtype, bias, tmp_path):
    """512 products of ones and a bit: summed in bfloat16 or float16, the bits would be lost."""
    a, b = torch.full((3, 512), 1.0078125, dtype=dtype), torch.ones(4, 512, dtype=dtype)
    c = torch.full((4,), 2.0, dtype=dtype)
    inputs = ["x0", "x1", "x2"][: 2 + bias]
    gemm = helper.make_node("Gemm", inputs, ["y"], transB=1, alpha=0.5, beta=2.0)
    run = write(tmp_path / "gemm.onnx", dtype, gemm, a.shape, b.shape, *([c.shape] if bias else []))
    (y,) = run([a, b, *([c] if bias else [])])
    assert torch.equal(y.float(), torch.full((3, 4), 258.0 + 4 * bias, dtype=dtype).float())
    run = write(tmp_path / "matmul.onnx", dtype, helper.make_node("MatMul", ["x0", "x1"], ["y"]), (3, 512), (512, 4))
    (y,) = run([a, b.t().contiguous()])
    assert torch.equal(y.float(), torch.full((3, 4), 516.0, dtype=dtype).float())


@pytest.mark.parametrize("dtype", TYPES)
def test_what_goes_in_comes_out(dtype, tmp_path):
    x = torch.tensor([[1.5, -2.0], [0.0, float("inf")]], dtype=dtype)
    (y,) = write(tmp_path / "m.onnx", dtype, helper.make_node("Identity", ["x0"], ["y"]), x.shape)([x])
    assert torch.equal(y.double(), x.double())
    assert y.dtype == dtype
