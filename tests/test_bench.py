"""One layer timed: what is timed is right, and the answer says where."""

import json

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.bench import BY_HAND, OURS, PLAIN, ByHand, bench
from noble_fx.config import NobleConfig
from noble_fx.tables import as_text


def test_by_hand_is_the_formula():
    config = NobleConfig(rank=4, preset="reference", seed=0)
    ours = noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), config=config)
    hand, branch = ByHand(nn.Linear(8, 6), 4, config), ours[0].noble
    hand.linear.load_state_dict({"weight": ours[0].weight, "bias": ours[0].bias})
    hand.down.load_state_dict({"weight": branch.down, "bias": branch.down_bias})
    hand.up.load_state_dict({"weight": branch.up})
    hand.act.load_state_dict(branch.act.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(hand(x), ours(x))


def test_every_layer_in_both_modes():
    before = torch.get_rng_state()
    result = bench(16, 12, 4, rows=3, rounds=4, device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    told = result.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert {mode: [each["name"] for each in timed] for mode, timed in told["timings"].items()} == {
        "inference": [PLAIN, BY_HAND, OURS],
        "training": [PLAIN, BY_HAND, OURS],
    }
    assert all(each.milliseconds > 0 for timed in result.timings.values() for each in timed)
    assert {"device", "threads", "torch", "noble-fx", "triton"} <= told["machine"].keys()
    assert (told["layer"]["in"], told["layer"]["rank"], told["rounds"]) == (16, 4, 4)
    text = as_text(result)
    assert "in 16, out 12, rank 4, σ cosnet, rows 3" in text
    assert "device cpu" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_features": 0}, "in_features=0 must be at least 1"),
        ({"rows": -1}, "rows=-1 must be at least 1"),
        ({"rounds": 1}, "rounds=1 must be at least 2"),
        ({"device": "gpu"}, "device='gpu' cannot be used here"),
        ({"rank": 99}, "99"),
        ({"act": "cosnot"}, "cosnet"),
    ],
)
def test_what_cannot_be_timed(settings, message):
    with pytest.raises(noble_fx.ConfigError, match=message):
        bench(**{"in_features": 8, "out_features": 8, "rank": 2, "device": "cpu", **settings})
