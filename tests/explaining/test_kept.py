"""What a backward keeps of each row, in words."""

from torch import nn

import noble_fx
from noble_fx.explaining.kept import told_kept


def model(**settings: object) -> nn.Module:
    return noble_fx.transform(nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8)), rank=4, select="all", **settings)


def kept(made: nn.Module) -> str:
    return told_kept([(layer, layer.noble) for layer in made])


def test_x_and_h():
    assert kept(model()) == f"{4 * (12 + 20 + 2 * 4)} bytes a row at 2 fused sites: h, and x at 2 of them"
    assert (
        kept(model().bfloat16()) == f"{2 * (12 + 20) + 4 * 2 * 4} bytes a row at 2 fused sites: h, and x at 2 of them"
    )


def test_without_x():
    made = model(branch="lora")
    made[0].noble.adapters.default.down.requires_grad_(False)
    assert kept(made) == f"{4 * (20 + 2 * 4)} bytes a row at 2 fused sites: h, and x at 1 of them"
    assert kept(made.requires_grad_(False)) == ""


def test_beside_a_factorized_weight():
    made = model(base="factorized", base_rank=2)
    assert kept(made) == f"{4 * (12 + 20 + 2 * 4 + 2 * 2)} bytes a row at 2 fused sites: h, and x at 2 of them"
    for layer in made:
        layer.base.down.requires_grad_(False)
        layer.noble.down.requires_grad_(False)
    assert kept(made) == f"{4 * (2 * 4 + 2 * 2)} bytes a row at 2 fused sites: h, and x at 0 of them"


def test_explain_says_it_where_something_is_frozen():
    made = model(branch="lora")
    assert "backward keeps: 160 bytes a row at 2 fused sites" in str(noble_fx.explain(made))
    assert "backward keeps" not in str(noble_fx.explain(model()))
    assert "adapters: default r 4 at 2 layers" in str(noble_fx.explain(made))
    noble_fx.use_adapters(made, {"default": 0.5})
    assert "adapters: default r 4 × 0.5 at 2 layers" in str(noble_fx.explain(made))
