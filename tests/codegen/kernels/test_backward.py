"""The backward kernels against float64: one kernel up to rank 128, stages whose grid walks over channels beyond."""

import re

import pytest
import torch
from torch import nn

from noble_fx.codegen.kernels.backward import bottleneck_backward, linear_backward_input
from noble_fx.codegen.plan import make_plan
from tests.codegen.one_layer import branch_of, check, check_group, layer_of
from tests.samples import long


class Window(nn.Module):
    """Pointwise, with buffers of numbers and of truth values, and a matrix whose product is taken."""

    def __init__(self, rank):
        super().__init__()
        self.scale, self.mixer = nn.Parameter(torch.rand(rank)), nn.Linear(rank, rank)
        self.register_buffer("window", torch.linspace(0.5, 1.5, rank))
        self.register_buffer("keep", torch.arange(rank) % 3 != 0)

    def forward(self, h):
        mixed = self.mixer(torch.sin(h * self.window) * self.scale)
        return torch.where(self.keep, mixed * self.window, mixed.cos())


class Centred(nn.Module):
    """One channel meets all others: a mean over the channels, and a scalar parameter."""

    def __init__(self, rank):
        super().__init__()
        self.gain, self.mixer = nn.Parameter(torch.tensor(0.8)), nn.Linear(rank, rank)

    def forward(self, h):
        return self.mixer(torch.tanh(h - h.mean(-1, keepdim=True)) * self.gain)


class Swapped(nn.Module):
    """The halves change places before a product: pieces of a wide axis, all of one size."""

    def __init__(self, rank):
        super().__init__()
        self.mixer = nn.Linear(rank, rank, bias=False)

    def forward(self, h):
        first, second = h.chunk(2, dim=-1)
        return self.mixer(torch.cat([second.sin(), first * 0.5], -1))


class OneChannel(nn.Module):
    """A single channel goes to all."""

    def __init__(self, rank):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(rank))

    def forward(self, h):
        return torch.sin(h * self.scale) * torch.sigmoid(h[..., 2:3])


def stages(act, rank: int) -> dict[str, int]:
    """How many tiles of channels the grid of each stage walks over."""
    plan = make_plan(layer_of([branch_of(act, rank)]), "interpreter")
    return {kernel.name: kernel.blocks for kernel in bottleneck_backward(plan)}


@pytest.mark.parametrize("rank", [1, 12, 64, 128])
def test_a_narrow_bottleneck_is_one_kernel(rank):
    assert stages("cosnet", rank) == {"bottleneck_backward": 1}


def test_a_pointwise_stage_walks_over_the_channels():
    assert stages("cosnet", 256) == {f"activation_backward_{level}": 4 for level in range(3)}
    assert stages("cosnet", 200) == {f"activation_backward_{level}": 4 for level in range(3)}  # the last tile is ragged
    assert stages("cos", 130) == {"activation_backward_0": 3}
    assert set(stages("swiglu", 192).values()) == {3}  # gate and value are pieces of one size
    assert stages(Swapped, 256) == {"activation_backward_0": 2, "activation_backward_1": 1}  # halves beside a whole


def test_a_stage_in_which_channels_meet_holds_them_all():
    assert stages(Centred, 200)["activation_backward_0"] == 1
    assert set(stages(OneChannel, 200).values()) == {1}


def test_a_walked_stage_is_written_once():
    """Rank 256 has the text of rank 192 but for its numbers: no line stands there for each tile of channels."""
    wide, wider = (
        [kernel.source for kernel in bottleneck_backward(make_plan(layer_of([branch_of("cosnet", rank)])))]
        for rank in (192, 256)
    )
    assert [re.sub(r"\d+", "#", source) for source in wide] == [re.sub(r"\d+", "#", source) for source in wider]
    assert "_c64" not in "".join(wider)


@pytest.mark.parametrize(
    ("act", "rank"),
    [
        *(("swiglu", 200), long("cosnet", 200), long("cos", 130), long("gelu_scale", 130)),
        *((Window, 200), long(Centred, 130), long(Swapped, 200), (OneChannel, 130)),
    ],
)
def test_wide_ranks(act, rank):
    check(branch_of(act, rank), rows=40)


@pytest.mark.parametrize("dtype", [torch.bfloat16, long(torch.float16)])
def test_a_wide_rank_in_half_precision(dtype):
    check(branch_of("cosnet", 256), rows=70, dtype=dtype)


@pytest.mark.parametrize(
    ("act", "rank", "preset"),
    [
        *(("swiglu", 20, "reference"), (Window, 136, "reference"), long("cosnet", 12, "paper")),
        *(long("cosnet", 12, "reference"), long("swiglu", 20, "paper"), long(Window, 136, "paper")),
        *(long("cosnet", 200, "paper"), long("cosnet", 200, "reference")),
    ],
)
def test_groups_of_sites(act, rank, preset):
    check_group([branch_of(act, rank, columns, preset=preset) for columns in (24, 40, 24)], rows=33)


@pytest.mark.parametrize("rank", [20, 200])
def test_gradients_are_stored_under_their_names(rank):
    plan = make_plan(layer_of([branch_of("cosnet", rank)]))
    text = "".join(kernel.source for kernel in bottleneck_backward(plan))
    stored = re.findall(
        r"tl\.store\(partials_row_ptr[^)]*?, (\w+)", text.replace("[:, None]", "").replace("[None, :]", "")
    )
    vectors = [f"d_act_{which}_{what}" for which in ("first", "second") for what in ("frequency", "phase")]
    expected = {"d_down_bias", *vectors, "d_act_mixer_bias"} | ({"d_act_mixer_weight"} if rank == 20 else set())
    assert {re.sub(r"_c\d+", "", name) for name in stored} == expected
    for tensor in ("t", "dh"):
        assert f"tl.store({tensor}_ptr + row[:, None] * {rank} + channel[None, :], {tensor}, " in text


def test_dx_is_one_sum_over_the_sites():
    plan = make_plan(layer_of([branch_of("cos", 12, columns) for columns in (24, 40)]))
    kernel = linear_backward_input(plan)
    assert kernel.source.count("tl.store(") == 1
    assert [argument.name for argument in kernel.arguments if argument.type != "i32"] == [
        *("dy_0_ptr", "weight_0_ptr", "dh_0_ptr", "down_0_ptr", "dy_1_ptr", "weight_1_ptr", "dh_1_ptr", "down_1_ptr"),
        "dx_ptr",
    ]
