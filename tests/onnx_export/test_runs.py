"""One run of a session in each of its variants, and which of them is chosen."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export.runs import DTYPES, Arrays, Bound, FixedShapes, choose_run
from noble_fx.runtime import OnnxModel
from tests.samples import sampled

CPU = torch.device("cpu")


class Described:
    """A session's account of its inputs and outputs."""

    def __init__(self, *types):
        self.values = [type("Value", (), {"name": f"v{i}", "type": name})() for i, name in enumerate(types)]

    def get_inputs(self):
        return self.values[:1]

    def get_outputs(self):
        return self.values[1:]


@pytest.mark.parametrize(
    ("types", "device", "cuda_graph", "variant"),
    [
        (("tensor(float)", "tensor(bool)"), "cpu", False, Arrays),
        (("tensor(float)", "tensor(bfloat16)"), "cpu", False, Bound),
        (("tensor(bfloat16)", "tensor(float)"), "cpu", False, Bound),
        (("tensor(float)", "tensor(float)"), "cuda", False, Bound),
        (("tensor(float)", "tensor(float)"), "cuda", True, FixedShapes),
    ],
)
def test_the_variant(types, device, cuda_graph, variant):
    assert type(choose_run(Described(*types), torch.device(device), cuda_graph)) is variant


class Echo(nn.Module):
    """Returns its input, moved through an operator that every dtype has."""

    def forward(self, x):
        return x.reshape(-1, 2)


IN_SUITE = {f"tensor({name})" for name in ("float", "bfloat16", "int64", "bool")}


@pytest.mark.parametrize("name", sampled(list(DTYPES), IN_SUITE))
def test_every_dtype_goes_in_and_out(name, tmp_path):
    dtype, _ = DTYPES[name]
    x = (torch.arange(6) % 2).reshape(2, 3).to(dtype)
    noble_fx.export_onnx(Echo(), (x,), tmp_path / "m.onnx", dtype=dtype if dtype.is_floating_point else None)
    model = OnnxModel(tmp_path / "m.onnx", device="cpu")
    assert model.inputs["x"].type == name
    for run in (model._run, Bound(model._session, CPU)):
        (output,) = run.run({"x": x})
        assert output.dtype == dtype
        assert torch.equal(output, x.reshape(-1, 2))


def test_fixed_shapes_reuse_their_memory(exported_add, assert_same):
    """What CUDA graphs need, on the CPU: the same addresses for the same shapes, and results that stay."""
    live, path = exported_add
    model = OnnxModel(path)
    model._run = run = FixedShapes(model._session, model.device)
    x, y = torch.randn(5, 8), torch.randn(5, 4)
    with torch.no_grad():
        expected, other = live(x, y), live(x + 1, y)
    first = model(x, y)
    (recording,) = run._recordings.values()
    addresses = [tensor.data_ptr() for tensor in (*recording.inputs.values(), *recording.outputs)]
    assert_same(model(x + 1, y), other)
    assert_same(first, expected)
    model(torch.randn(2, 8), torch.randn(2, 4))
    assert len(run._recordings) == 2
    assert_same(model(x, y), expected)
    assert len(run._recordings) == 2
    assert addresses == [tensor.data_ptr() for tensor in (*recording.inputs.values(), *recording.outputs)]


@pytest.mark.parametrize("variant", [lambda s: Arrays(s), lambda s: Bound(s, CPU), lambda s: FixedShapes(s, CPU)])
def test_a_run_that_fails_says_so(variant, exported_add):
    run = variant(OnnxModel(exported_add[1])._session)
    with pytest.raises(ExportError, match="ONNX Runtime failed on these inputs"):
        run.run({"x": torch.ones(3, 8), "y": torch.ones(2, 4)})
