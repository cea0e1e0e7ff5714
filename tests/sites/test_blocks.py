"""What surrounds a linear map: repeated blocks, tied weights, heads, routers."""

from torch import nn

from noble_fx.sites.blocks import HEAD, ROUTER, TIED, repeated_blocks, surroundings
from noble_fx.sites.site import Site
from tests.models import tiny


def test_repeated_blocks_are_children_of_one_class_with_maps_inside():
    assert repeated_blocks(tiny()) == {"blocks.0", "blocks.1"}
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))  # maps themselves, no blocks of maps
    assert repeated_blocks(layers) == set()
    assert repeated_blocks(nn.ModuleList([layers, nn.Sequential(nn.Linear(4, 4)), nn.ReLU()])) == {"0", "1"}


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
