"""What a pair of matrices says of itself."""

import torch
from torch import nn

from noble_fx.branches.factors import Factors


def test_its_product_is_the_branch():
    import noble_fx

    torch.manual_seed(0)
    model = noble_fx.transform(nn.Linear(6, 5), rank=2, act="identity", select="all")
    (pair,) = model.noble.factors()
    assert isinstance(pair, Factors)
    x = torch.randn(3, 6)
    torch.testing.assert_close(model.noble(x), pair.scale * x @ (pair.up @ pair.down).T)
