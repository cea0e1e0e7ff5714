"""Which modules are blocks, how wide their hidden state is, and why others are none."""

import pytest
from torch import nn

import noble_fx
from noble_fx.sites.block_maps import at_scope, block_maps, runs_its_children
from noble_fx.sites.find import find_maps
from tests.models import Block, Tiny, tiny


def found(model):
    return {entry.site.fqn: entry for entry in block_maps(model, find_maps(model))}


def reasons(model):
    return {name: entry.obstacle.reason if entry.obstacle else "" for name, entry in found(model).items()}


def test_the_blocks_of_a_stack():
    model = tiny()
    assert [
        (e.site.fqn, e.site.kind, e.site.role, e.site.in_features, e.site.out_features) for e in found(model).values()
    ] == [
        ("blocks.0", "Block", "block", 16, 16),
        ("blocks.1", "Block", "block", 16, 16),
    ]
    assert at_scope(model, find_maps(model), "linear") == find_maps(model)


def test_the_same_blocks_once_some_have_branches():
    model = noble_fx.transform(tiny(layers=3), rank=4, scope="block", exclude=r"\.1$")
    assert list(found(model)) == ["blocks.0", "blocks.1", "blocks.2"]
    assert [site.selected for site in noble_fx.sites(model)] == [True, False, True]


class Wide(Block):
    """A block whose experts are a stack of their own."""

    def __init__(self, width):
        super().__init__(width)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, 8), nn.Linear(8, width)) for _ in range(2))


class Stage(nn.Module):
    """Blocks, and a map to the next width, as in Swin."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.reduction = nn.Linear(width, 2 * width)


class Lists(nn.Module):
    def __init__(self, *entries):
        super().__init__()
        self.layers = nn.ModuleList(entries)


def test_what_is_inside_a_block_is_none():
    assert list(found(Lists(Wide(16), Wide(16)))) == ["layers.0", "layers.1"]


def test_a_stage_is_looked_into():
    widths = {name: entry.site.in_features for name, entry in found(Lists(Stage(16), Stage(32))).items()}
    assert widths == {
        "layers.0.blocks.0": 16,
        "layers.0.blocks.1": 16,
        "layers.1.blocks.0": 32,
        "layers.1.blocks.1": 32,
    }


def test_a_block_under_two_names_is_one():
    block = Block(16)
    (entry,) = block_maps(model := Lists(block, block), find_maps(model))
    assert (entry.site.fqn, entry.site.aliases) == ("layers.0", ("layers.1",))


def test_out_of_a_wrapper_around_it():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Lists(checkpoint_wrapper(Block(16)), Block(16))
    assert list(reasons(model).items()) == [("layers.0._checkpoint_wrapped_module", ""), ("layers.1", "")]


class Convolutional(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 32), nn.Linear(32, width)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha, self.beta = nn.Linear(16, 16), nn.Linear(16, 16)


class Narrowing(Block):
    def __init__(self, width):
        super().__init__(width)
        self.o_proj, self.fc2 = nn.Linear(width, 8), nn.Linear(2 * width, 8)


class Otherwise(Block):
    def __init__(self, width):
        super().__init__(width)
        self.norm = nn.LayerNorm(2 * width)


class OverChildren(Block):
    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def patched():
    block = Block(16)
    block.forward = block.forward
    return block


def with_a_name():
    block = Block(16)
    block.noble = 3
    return block


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Convolutional, "a block of convolutions, whose channels may not be the last dimension"),
        (Unknown, "the width of its hidden state is not certain: into its parts go nothing known"),
        (lambda: Narrowing(16), "into its parts go 16, out of them come 8, its norms have 16"),
        (lambda: Otherwise(16), "its norms have 32"),
        (lambda: nn.MultiheadAttention(16, 2), "a MultiheadAttention is a layer, not a block"),
        (lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), "runs whatever children it has"),
        (lambda: OverChildren(16), "OverChildren runs whatever children it has"),
        (lambda: nn.ModuleList([nn.Linear(16, 16)]), "a ModuleList, which is never called itself"),
        (patched, "its forward was replaced on the instance"),
        (with_a_name, "it already has an attribute named 'noble'"),
    ],
)
def test_what_is_no_block_says_why(make, reason):
    assert reason in reasons(Lists(make(), make()))["layers.0"]
    with pytest.raises(noble_fx.ConfigError, match=r"select names 'layers\.0', which cannot carry a branch"):
        noble_fx.transform(Lists(make(), make()), rank=2, scope="block", select=["layers.0"])


def test_a_short_convolution_over_time_inside_a_mixer_is_no_obstacle():
    block = Block(16)
    block.conv1d = nn.Conv1d(16, 16, 4, groups=16)
    assert reasons(Lists(block, block))["layers.0"] == ""


def test_heads_are_none():
    model = nn.Module()
    model.lm_heads = nn.ModuleList([Block(16), Block(16)])
    assert {str(entry.against) for entry in found(model).values()} == {"an output head"}


def test_norms_decide_between_two_widths():
    block = Block(16)
    block.token_mlp = nn.ModuleDict({"fc1": nn.Linear(5, 8), "fc2": nn.Linear(8, 5)})  # over positions
    assert found(Lists(block, block))["layers.0"].site.in_features == 16


def test_who_runs_his_children():
    assert not runs_its_children(Block(16))
    assert not runs_its_children(Tiny())
    assert runs_its_children(nn.Sequential())
