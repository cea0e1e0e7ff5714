"""What surrounds a linear map: repeated blocks, tied weights, heads, routers."""

import pytest
from torch import nn

import noble_fx
from noble_fx.sites.blocks import HEAD, ROUTER, TIED, repeated_blocks, surroundings
from noble_fx.sites.site import Site
from tests.models import tiny


def test_repeated_blocks_are_children_of_one_class_with_maps_inside():
    assert repeated_blocks(tiny()) == {"blocks.0", "blocks.1"}
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))  # maps themselves, no blocks of maps
    assert repeated_blocks(layers) == set()
    assert repeated_blocks(nn.Sequential(layers, nn.Sequential(nn.Linear(4, 4)), nn.ReLU())) == {"0", "1"}


def test_in_a_block_goes_by_whole_names():
    around = surroundings(tiny())
    assert around.in_block("blocks.1.fc1")
    assert not around.in_block("blocks.10.fc1")
    assert not around.in_block("head")


def test_why_a_preset_passes_over_a_map():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lm_head, self.own_head = nn.Embedding(9, 4), nn.Linear(4, 9), nn.Linear(4, 9)
            self.lm_head.weight = self.embed.weight
            self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def get_output_embeddings(self):
            return self.own_head

    model = Mixture()
    around = surroundings(model)

    def against(fqn):
        module = model.get_submodule(fqn)
        site = Site(fqn, "other", "Linear", module.in_features, module.out_features, 0, False, "", 0)
        return around.against(site, fqn, fqn, module.weight)

    assert [against(n) for n in ("lm_head", "own_head", "gate", "experts.0")] == [TIED, HEAD, ROUTER, None]


def chosen(model: nn.Module) -> list[str]:
    return [site.fqn for site in noble_fx.sites(model, rank=2) if site.selected]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


class Other(Layer):
    """Another class of layers."""


class Model(nn.Module):
    def __init__(self, **parts: nn.Module):
        super().__init__()
        self.before = nn.Linear(4, 4)
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize(
    "parts",
    [
        {"layers": nn.ModuleList([Layer(), Other(), Other()])},  # a hybrid stack
        {
            "layers": nn.ModuleList([nn.ModuleList([Layer(), Other()]), nn.ModuleList([Layer(), Other()])])
        },  # vit-pytorch
        {"encoder": nn.ModuleList([Layer(), Layer()]), "decoder": nn.ModuleList([Other()])},  # towers
        {"attentions": nn.ModuleList([Layer()]), "resnets": nn.ModuleList([Other(), Other()])},  # a UNet's middle
        {"layers": nn.ModuleList([Layer(), Layer()]), "last": Layer()},  # SAM's last attention
        {"layers": nn.ModuleDict({"one": Layer(), "two": Layer()})},
        {"layers": nn.Sequential(Layer(), Layer())},
        {"layer1": nn.Sequential(Layer(), nn.ReLU()), "layer2": nn.Sequential(Layer(), nn.ReLU())},
        {"layer_1": Layer(), "layer_2": Layer()},
    ],
)
def test_every_layer_of_every_stack_is_in_a_block(parts):
    model = Model(**parts)
    found = chosen(model)
    assert found == [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "before"
    ]
    assert {s.fqn: s.reason for s in noble_fx.sites(model, rank=2)}["before"] == "outside the repeated blocks"


@pytest.mark.parametrize(
    "parts",
    [
        {"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)},  # maps themselves
        {"encoder": Layer(), "decoder": Other()},
        {"parts": nn.ModuleDict({"encoder": Layer(), "decoder": Other()})},
        {"layers": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])},
        {"layers": nn.ModuleList([nn.ReLU()])},
    ],
)
def test_what_is_no_stack(parts):
    assert repeated_blocks(Model(**parts)) == set()
    assert "before" in chosen(Model(**parts))


def test_layers_that_share_a_weight_get_a_branch_each():
    model = Model(layers=nn.ModuleList([Layer(), Layer()]), embed=nn.Embedding(4, 4), out=nn.Linear(4, 4))
    model.layers[1].a.weight = model.layers[0].a.weight  # Zamba2's shared block
    model.out.weight = model.embed.weight
    sites = {site.fqn: site for site in noble_fx.sites(model, rank=2)}
    shared = "in a repeated block; its weight is shared with 1 other layer, and each has a branch of its own"
    assert [sites[f"layers.{i}.a"].reason for i in range(2)] == [shared] * 2
    assert sites["out"].reason == "its weight is tied to another module's"
    noble_fx.transform(model, rank=2)
    assert model.layers[0].a.noble is not model.layers[1].a.noble
