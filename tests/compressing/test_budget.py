"""A share, a rank or an error becomes the rank of each layer."""

import pytest
import torch

from noble_fx.compressing.allocation.base import DENSE
from noble_fx.compressing.budget import TOO_SMALL, Budget
from noble_fx.errors import ConfigError
from tests.compressing.allocation.layers import layer

LAYERS = [layer("blocks.0.q", decay=0.3), layer("blocks.0.up", 256, 64, decay=0.1, role="ffn.in")]


def budget(keep=None, rank=None, error=None, allocate="auto", round_to=8, none=False):
    return Budget.of(keep, rank, error, allocate, round_to, "marginal", none)


def ranks(layers=LAYERS, **settings):
    return {name.rpartition(".")[2]: rank for name, (rank, _) in budget(**settings).decide(layers).items()}


def test_ranks():
    assert ranks(rank=20) == {"q": 20, "up": 20}  # an integer is taken at its word
    assert ranks(rank=0.3) == {"q": 16, "up": 16}  # 0.3 of 64 is 19
    assert ranks(rank=0.01) == {"q": 8, "up": 8}
    assert ranks(rank={"up": 24, "q|up": 9}) == {"q": 9, "up": 24}


def test_a_rank_from_break_even_on_leaves_the_layer_dense():
    decided = budget(rank=32).decide(LAYERS)
    assert decided["blocks.0.q"] == (DENSE, "rank 32 saves nothing: two factors are smaller than it up to rank 31")
    assert decided["blocks.0.up"] == (32, "")
    assert budget(rank=0.5).decide(LAYERS)["blocks.0.q"][0] == DENSE


def test_a_layer_that_no_pattern_names():
    assert budget(rank={"up": 8}).decide(LAYERS)["blocks.0.q"] == (DENSE, "no pattern of rank matches it")
    with pytest.raises(ConfigError, match=r"rank names 'upp', which matches no chosen layer; nearest: 'blocks\.0\.up'"):
        budget(rank={"upp": 8}).decide(LAYERS)


@pytest.mark.parametrize("error", [0.3, 0.1, 0.03])
def test_an_error_takes_the_least_rank_that_reaches_it(error):
    for each in LAYERS:
        rank, why = budget(error=error).decide([each])[each.name]
        if rank == DENSE:
            assert each.lost(each.ranks[-1]) > error**2
            assert f"reaches error {error}" in why
        else:
            assert each.lost(rank) <= error**2
            assert rank == each.ranks[0] or each.lost(rank - 8) > error**2


def test_a_share_is_spread_as_asked():
    assert ranks(keep=0.5, allocate="uniform") == {"q": 16, "up": 24}
    decided = budget(keep=0.5).decide([*LAYERS, layer("tiny", 2, 2)])
    assert decided["tiny"] == (DENSE, TOO_SMALL)
    spread = budget(keep=0.8).decide([layer("steep", decay=0.5), layer("flat", decay=0.0)])
    assert spread["flat"] == (DENSE, "stays dense: the budget is spent best so")


def test_round_to():
    assert budget(keep=0.5, allocate="uniform", round_to=1).round_to == 1
    one = layer("a", step=1)
    assert budget(keep=0.5, allocate="uniform").decide([one])["a"][0] == 16
    assert budget(keep=0.45, allocate="uniform").decide([one])["a"][0] == 14


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "exactly one of keep=0.7, rank=64 and error=0.05; got none"),
        ({"keep": 0.5, "rank": 8}, "got keep and rank"),
        ({"keep": 1.0}, "keep=1.0 must be a number between 0 and 1"),
        ({"keep": True}, "keep=True"),
        ({"keep": "0.5"}, "keep='0.5'"),
        ({"error": 0}, "error=0 must be"),
        ({"error": float("nan")}, "error=nan"),
        ({"rank": 0}, "rank=0 is not a rank"),
        ({"rank": "4%"}, "rank='4%' is not a rank"),
        ({"rank": {}}, "names no layer"),
        ({"rank": {"(": 3}}, "not a regular expression"),
        ({"rank": {"q": 1.5}}, r"rank\['q'\]=1.5 is not a rank"),
        ({"keep": 0.5, "allocate": "even"}, "allocate='even' is unknown; use 'auto' or one of marginal"),
        ({"keep": 0.5, "round_to": 0}, "round_to=0 must be an integer"),
        ({"keep": 0.5, "round_to": 1.5}, "round_to=1.5"),
    ],
)
def test_what_is_no_budget(settings, match):
    with pytest.raises(ConfigError, match=match):
        budget(**settings)


def test_none_is_one_to_look_with():
    assert budget(none=True).is_none
    assert not budget(rank=3).is_none
    assert not budget(none=True).by_budget
    assert budget(keep=0.5).by_budget


def test_numbers_of_other_kinds():
    numpy = pytest.importorskip("numpy")
    assert ranks(rank=numpy.int64(16)) == {"q": 16, "up": 16}
    assert torch.tensor(0.5).item() == budget(keep=float(torch.tensor(0.5))).keep
