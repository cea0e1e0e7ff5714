"""σ's backward as one stage or several: what is kept between them, what is computed again, what is refused."""

import pytest
import torch
from torch import nn

from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernels.stages import Gemm, Partial, Stage, backward_steps, forward_steps
from noble_fx.codegen.plan import make_plan
from noble_fx.errors import KernelError
from tests.codegen.one_layer import branch_of, check_group, layer_of


def steps_of(act, rank: int, preset: str = "reference"):
    return backward_steps(make_plan(layer_of([branch_of(act, rank, preset=preset)])))


def test_a_narrow_bottleneck_is_one_stage_with_all_gradients():
    steps = steps_of("cosnet", 64)
    (stage,) = steps.steps
    assert isinstance(stage, Stage)
    assert stage.name == "bottleneck_backward"
    assert [name for _, name, _ in stage.stores] == ["t", "dh"]
    assert steps.buffers() == {}
    names = [partial.name for partial in steps.partials]
    assert names[0] == "d_down_bias"
    assert {name.removeprefix("d_act_") for name in names[1:]} == {
        *("first_frequency", "first_phase", "mixer_weight", "mixer_bias", "second_frequency", "second_phase")
    }


@pytest.mark.parametrize("rank", [12, 200])
def test_partial_sums_lie_one_after_the_other(rank):
    steps = steps_of("cosnet", rank)
    offset = 0
    for partial in steps.partials:
        assert partial.offset == offset
        offset += partial.size
    assert steps.width == offset


def test_a_wide_bottleneck_is_cut_at_its_products():
    steps = steps_of("cosnet", 256).steps
    kinds = ["gemm" if isinstance(step, Gemm) else step.name for step in steps]
    assert kinds == ["activation_backward_0", "gemm", "activation_backward_1", "gemm", "activation_backward_2", "gemm"]
    forward, backward, weight = (step for step in steps if isinstance(step, Gemm))
    assert forward.right == backward.right == "act_mixer_weight"
    assert forward.right_transposed
    assert not backward.right_transposed
    assert forward.bias == "act_mixer_bias"
    assert (weight.out, weight.left_transposed) == ("d_act_mixer_weight", True)


def test_a_wide_forward_in_float32_is_cut_at_the_same_products():
    layer = layer_of([branch_of("cosnet", 100)])
    first, mixer, second = forward_steps(layer).steps
    assert (first.name, first.rows) == ("activation_forward_0", ("h",))
    assert (mixer.right, mixer.right_transposed, mixer.bias) == ("act_mixer_weight", True, "act_mixer_bias")
    assert (second.name, second.rows, second.stores) == ("activation_forward_1", (mixer.out,), ((0, "t", 100),))
    kernels = generate(make_plan(layer))
    assert [name for name in kernels if "forward" in name] == [
        "activation_forward_0",
        "activation_forward_1",
        "linear_up_forward",
    ]


@pytest.mark.parametrize("act", ["cosnet", "swiglu", "gelu"])
def test_a_wide_layer_in_float32(act):
    """Cut in both directions, against float64."""
    check_group([branch_of(act, 136, columns) for columns in (24, 40)])


def test_a_stage_reads_only_what_it_needs():
    stages = steps_of("cosnet", 256).stages
    assert [stage.rows for stage in stages] == [("h",), ("dt", "v_addmm"), ("h", "v_mm")]
    assert stages[1].width("v_addmm") == 256
    assert "act_first_frequency" not in stages[1].inputs


def test_a_stage_knows_the_width_of_its_inputs():
    stage = next(stage for stage in steps_of("swiglu", 192).stages if "v_addmm" in stage.inputs)
    assert (stage.width("v_addmm"), stage.width("dt")) == (384, 192)


def test_the_size_of_a_gradient():
    assert Partial("d_act_gain", (), 0).size == 1
    assert Partial("d_act_mixer_weight", (3, 4), 0).size == 12


class Squared(nn.Module):
    """A product with what is no parameter."""

    def __init__(self, rank):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(rank, rank) * 0.1)

    def forward(self, h):
        return h @ torch.sin(self.weight)


def test_a_product_with_what_is_no_parameter_is_refused_where_it_would_be_a_gemm():
    assert steps_of(Squared, 64).steps
    with pytest.raises(KernelError, match=r"a bottleneck of 200 channels: a product with what is no parameter of σ"):
        steps_of(Squared, 200)
