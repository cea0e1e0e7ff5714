"""The model of the examples: traceable as one graph, and causal."""

import torch
from torch import nn

from noble_fx.demo.byte_gpt import ByteGPT


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return ByteGPT(width=32, layers=2, heads=2, context=32)


def test_symbolic_trace_of_the_model_is_the_model() -> None:
    model = tiny()
    traced = torch.fx.symbolic_trace(model.train())
    assert str(traced.graph) == str(torch.fx.symbolic_trace(model.eval()).graph)
    for shape in ((3, 32), (1, 7)):
        idx = torch.randint(256, shape)
        assert torch.equal(traced(idx), model(idx))


def test_a_later_byte_changes_no_earlier_logit() -> None:
    model, idx = tiny(), torch.randint(256, (1, 20))
    changed = idx.clone()
    changed[0, 12] = (idx[0, 12] + 1) % 256
    torch.testing.assert_close(model(changed)[:, :12], model(idx)[:, :12])
    assert not torch.equal(model(changed)[:, 12:], model(idx)[:, 12:])
