from torch import fx, nn

from noble_fx.passes.listing import Listing, lines_of
from noble_fx.report.folding import Folding, in_block
from tests.models import tiny


def listing(model: nn.Module) -> Listing:
    return Listing("", lines_of(fx.symbolic_trace(model).graph))


class Alternating(nn.Module):
    """Blocks of two kinds in turn, one of which reads the input as well."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) if i % 2 else nn.LayerNorm(4) for i in range(6)])

    def forward(self, x):
        y = x
        for at, layer in enumerate(self.layers):
            y = layer(y) if at % 2 else layer(y) + x
        return y


def test_equal_blocks_are_shown_once():
    only = listing(tiny(layers=5))
    folding = Folding([only])
    shown = [line.text for line in folding.shown(only)]
    assert shown[2:4] == ["# block = self.blocks[0], one of 5 that are equal", "blocks_0_norm = block.norm(embed)"]
    assert "# blocks.1–4: 4 blocks equal to blocks.0" in shown
    assert len(shown) == len(list(Folding([listing(tiny(layers=50))]).shown(only)))
    assert folding.copies("blocks.0") == [f"blocks.{i}" for i in range(5)]


def test_what_is_not_equal_is_shown():
    model = tiny(layers=3)
    model.blocks[1].fc1 = nn.Sequential(model.blocks[1].fc1, nn.Identity())
    only = listing(model)
    shown = [line.text for line in Folding([only]).shown(only)]
    assert "# block = self.blocks[1]" in shown
    assert "# blocks.2: equal to blocks.0" in shown


def test_blocks_of_two_kinds_in_turn():
    only = listing(Alternating())
    shown = [line.text for line in Folding([only]).shown(only)]
    assert shown[-3:] == [
        "# layers.3, 5: 2 blocks equal to layers.1",
        "# layers.4: equal to layers.2",  # layers.0 reads one tensor twice
        "return layers_5",
    ]


def test_a_block_is_folded_only_where_every_listing_has_it_equal():
    before, other = listing(tiny(layers=2)), tiny(layers=2)
    other.blocks[1].dropout = nn.Sequential(nn.Dropout(), nn.Dropout())
    folding = Folding([before, listing(other)])
    assert folding.like == {"blocks.0": "blocks.0", "blocks.1": "blocks.1"}


def test_a_block_by_its_own_name():
    assert in_block("a.1", "y = F.linear(x, self.a[1].w, self.a[10].w)") == "y = F.linear(x, block.w, self.a[10].w)"
    assert in_block("a.1", "y = self.a[1](x)") == "y = block(x)"
    assert in_block("", "y = self.a(x)") == "y = self.a(x)"
