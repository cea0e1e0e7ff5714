"""A small exported file that several tests of this room run."""

import pytest
import torch
from torch import nn

import noble_fx


class Add(nn.Module):
    """Two inputs, three outputs of three types."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x, y):
        out = self.linear(x) + y
        return out, out > 0, out.argmax(-1)


@pytest.fixture(scope="session")
def exported_add(tmp_path_factory):
    """The live model in eval mode, and its file."""
    file = tmp_path_factory.mktemp("onnx") / "add.onnx"
    model = noble_fx.transform(Add(), rank=2)
    noble_fx.export_onnx(model, (torch.randn(3, 8), torch.randn(3, 4)), file)
    return model.eval(), file


@pytest.fixture
def assert_same():
    """Compares the three outputs of `Add`."""

    def compare(outputs, expected):
        torch.testing.assert_close(outputs[0], expected[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(outputs[1], expected[1])
        assert torch.equal(outputs[2], expected[2])

    return compare
