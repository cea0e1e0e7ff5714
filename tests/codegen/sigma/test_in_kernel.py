"""σ in one kernel: its tensors as operands, addresses and masks, results under their own names."""

import pytest
import torch
from torch import nn

from noble_fx.branches.trace import Untraceable
from noble_fx.codegen.plan import make_plan
from noble_fx.codegen.sigma import in_kernel
from noble_fx.codegen.sigma.in_kernel import Sigma, activation, is_gated, tensor_name, tensor_operands
from noble_fx.codegen.sigma.lower import outputs_of
from noble_fx.codegen.source import Source
from noble_fx.errors import KernelError
from tests.codegen.one_layer import branch_of, layer_of


class Buffers(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(rank))
        self.register_buffer("keep", torch.arange(rank) % 2 == 0)
        self.register_buffer("order", torch.arange(rank))

    def forward(self, h):
        return torch.where(self.keep, h * self.scale, h + self.order)


def sigma_of(act, rank: int, site: int | None = None, **settings):
    layer = layer_of([branch_of(act, rank)] * (1 if site is None else 2), torch.bfloat16)
    plan, program = make_plan(layer), activation(layer)
    names = ("h", *map(tensor_name, program.names))
    graph = program.forward.graph
    return Sigma(plan, Source(), plan.bottleneck_forward, graph, names, site, {outputs_of(graph)[0]: "t"}, **settings)


def lines(sigma: Sigma) -> list[str]:
    sigma.bind(sigma.inputs["h"], "h")
    sigma.low.write()
    return str(sigma.source).splitlines()


def test_tensors_are_operands_of_their_own_types():
    layer = layer_of([branch_of(Buffers, 12)] * 2, torch.bfloat16)
    program = activation(layer)
    names = ("h", *map(tensor_name, program.names))
    operands = tensor_operands(layer, program.forward.graph, names, 1)
    assert [(operand.name, operand.type, operand.shape, operand.letter) for operand in operands] == [
        ("act_scale_1", "bf16", (12,), "s"),
        ("act_keep_1", "i1", (12,), ""),
        ("act_order_1", "i64", (12,), ""),
    ]


def test_parameters_become_float32_and_what_lies_past_the_end_is_zero():
    text = lines(sigma_of("cos", 12))
    assert "act_frequency = tl.load(act_frequency_ptr + channel, mask=channel < 12, other=0).to(tl.float32)" in text
    assert text[-1] == "t = fast_cos(add)"


def test_a_site_of_several_reads_its_own_tensors():
    assert any("tl.load(act_frequency_1_ptr + channel" in line for line in lines(sigma_of("cos", 12, site=1)))


def test_a_wide_value_has_a_variable_a_tile_unless_the_grid_walks():
    assert [line.split(" = ")[0] for line in lines(sigma_of("cos", 130)) if "fast_cos" in line] == [
        "t_c0",
        "t_c64",
        "t_c128",
    ]
    walked = sigma_of("cos", 130, walk=True)
    assert [line.split(" = ")[0] for line in lines(walked) if "fast_cos" in line] == ["t"]
    assert walked.low.channel_tiles == 3


def test_a_matrix_meets_all_channels_and_is_not_walked():
    assert sigma_of("cosnet", 130, walk=True).low.channel_tiles == 1


def test_an_address_and_its_mask():
    sigma = sigma_of("cosnet", 12)
    (segment,) = sigma.segments(sigma.inputs["h"])
    address, mask = sigma.address("partials_ptr", (segment, segment), (12, 12))
    assert address == "partials_ptr + channel[:, None] * 12 + channel[None, :]"
    assert str(mask) == "(channel[:, None] < 12) & (channel[None, :] < 12)"
    assert sigma.address("partials_ptr", (), ()) == ("partials_ptr", mask.__class__())


def test_two_tensors_of_one_name_are_refused():
    class TwoNamesInOne(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.a = nn.Module()
            self.a.b = nn.Parameter(torch.rand(rank))
            self.a_b = nn.Parameter(torch.rand(rank))

        def forward(self, h):
            return h * self.a.b + self.a_b

    with pytest.raises(KernelError, match=r"two of σ's tensors have one name in a kernel: act_a_b, act_a_b"):
        activation(layer_of([branch_of(TwoNamesInOne, 12)]))


@pytest.mark.parametrize(
    ("act", "gated"),
    [("cosnet", False), ("gelu_net", False), ("none", False), ("swiglu", True), ("swiglu_net", True)],
)
def test_what_holds_more_than_the_bottleneck_is_gated(act, gated):
    assert is_gated(layer_of([branch_of(act, 12)])) == gated


def test_a_sigma_without_graphs_is_not_gated(monkeypatch):
    def refused(key, rank):
        raise Untraceable("draws random numbers")

    monkeypatch.setattr(in_kernel, "typed_program", refused)
    assert not is_gated(layer_of([branch_of("swiglu", 12)]))
