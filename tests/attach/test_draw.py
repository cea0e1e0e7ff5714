"""How branches are drawn: from the seed and the layer's name alone, in the layer's dtype, mode and place."""

import torch
from torch import nn

from noble_fx import NobleConfig
from noble_fx.attach.draw import build_branches, draw_base
from noble_fx.branches.drawing import drawing
from noble_fx.sites.site import Site

SITE = Site("0", "ffn.in", "Linear", 8, 6, 2, True, "named", 28, action="add")


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def build(model: nn.Module, site: Site = SITE, **settings):
    (branch,) = build_branches(model, site, NobleConfig(rank=2, **settings))
    return branch


def test_a_seed_and_a_name_give_a_branch_whatever_was_drawn_before():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(8, 6))
    first = build(model, seed=1)
    torch.randn(7)
    assert same(first, build(model, seed=1))
    assert not same(first, build(model, seed=2))
    other = Site(**{**vars(SITE), "fqn": "1"})
    assert not same(first, build(model, other, seed=1))


def test_a_seed_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    build(nn.Sequential(nn.Linear(8, 6)), seed=1)
    torch.manual_seed(5)
    with drawing(NobleConfig(seed=1), "0"):
        torch.randn(100)
    assert torch.equal(torch.randn(3), expected)


def test_a_branch_follows_its_layer():
    layer = nn.Linear(8, 6).to(torch.bfloat16).eval()
    branch = build(nn.Sequential(layer), seed=1)
    assert {p.dtype for p in branch.parameters()} == {torch.bfloat16}
    assert (branch.training, branch.role, branch.site) == (False, "ffn.in", SITE)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 6))
    assert all(p.is_meta for p in build(model, seed=1).parameters())


def test_what_a_site_says_against_the_operator_is_the_branchs_reason():
    model = nn.Sequential(nn.Linear(8, 6))
    assert build(model).unfused == ""
    assert build(model, fuse=False).unfused == "fuse=False"
    assert build(model, Site(**{**vars(SITE), "unfused": "an einsum"})).unfused == "an einsum"


def test_the_base_is_drawn_at_the_presets_scale_with_a_zero_bias():
    model = nn.Sequential(nn.Linear(256, 200))
    site = Site("0", "other", "Linear", 256, 200, 2, True, "named", 0, action="add")
    draw_base(model, site, NobleConfig(seed=0))
    assert model[0].bias.count_nonzero() == 0
    assert abs(model[0].weight.std() * 256**0.5 - 0.5) < 0.01
