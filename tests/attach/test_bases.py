"""The bases of a model by name, and a model that is given those that a file describes."""

import pytest
import torch
from torch import nn

from noble_fx.attach.bases import described_bases, named_bases, put_bases
from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError
from noble_fx.layers.restructure import matrix_of, structure


def model():
    return nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 12))


def compressed():
    made = model()
    base = LowRank(12, 20, 3)
    base.fill(matrix_of(made[0]))
    structure(made[0], base, torch.zeros(20))
    return made


def test_they_go_by_the_names_of_their_layers():
    made = compressed()
    assert named_bases(made) == {"0": made[0].base}
    assert named_bases(model()) == {}


def test_what_is_described_can_be_put_into_a_plain_model():
    made, plain = compressed(), model()
    put_bases(plain, described_bases(made))
    plain.load_state_dict(made.state_dict())
    x = torch.randn(4, 12)
    assert torch.equal(plain(x), made(x))
    assert plain[0].bias is not None  # which the plain layer had not


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"5": {"kind": "factorized", "rank": 3, "bias": False}}, "has no layer 5"),
        ({"1": {"kind": "factorized", "rank": 3, "bias": False}}, "1 is no linear layer"),
        ({"0": {"kind": "factorized", "rank": 3}}, "whether there is a bias"),
        ({"0": {"kind": "other", "rank": 3, "bias": True}}, "base='other' is unknown"),
        ({"0": 3}, "whether there is a bias"),
    ],
)
def test_what_does_not_fit_is_named(described, reason):
    with pytest.raises(ConfigError, match=reason):
        put_bases(model(), described)


def test_a_layer_that_has_one_already_is_refused():
    with pytest.raises(ConfigError, match="another form already"):
        put_bases(compressed(), {"0": {"kind": "factorized", "rank": 3, "bias": False}})
