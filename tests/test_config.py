import json
import pickle

import pytest
from torch import nn

from noble_fx import ConfigError, NobleConfig, NoblePreset
from noble_fx.config import PRESETS, resolve_rank


@pytest.mark.parametrize("rank", [0, -3, True, 1.0, 0.0, -0.5, "0%", "4", "four", "4 percent", None, [4]])
def test_ranks_that_cannot_be(rank):
    with pytest.raises(ConfigError, match="is not a rank; use an integer"):
        NobleConfig(rank=rank)


@pytest.mark.parametrize("rank", [1, 64, 0.05, "4%", "0.5 %"])
def test_ranks_that_can(rank):
    assert NobleConfig(rank=rank).rank == rank


def test_a_share_is_of_the_smaller_side():
    assert resolve_rank(0.25, 64, 128) == 16
    assert resolve_rank(0.001, 64, 128) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "papper"}, "preset='papper' is unknown; use one of paper, reference"),
        ({"capture": "jit"}, "capture='jit' is unknown"),
        ({"act": 3}, "act=3 must be a name or a callable"),
        ({"select": "(q_proj"}, "select='.q_proj' is not a regular expression"),
        ({"exclude": "*"}, "exclude='.' is not a regular expression"),
        ({"rank_pattern": {"[": 4}}, "rank_pattern='.' is not a regular expression"),
        ({"rank_pattern": {"q": "4%"}}, r"rank_pattern\['q'\]='4%' is not a rank"),
        ({"seed": -1}, "seed=-1 must be"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        NobleConfig(**settings)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="'rnak' is not a setting; nearest: 'rank'"):
        NobleConfig().replace(rnak=4)


@pytest.mark.parametrize(
    "config",
    [
        NobleConfig(),
        NobleConfig(rank="4%", act="gelu_net", select=("a.b",), exclude="x", rank_pattern={"q": 8}, seed=3),
        NobleConfig(preset=NoblePreset("mine", True, False, "normal", lr_phase=7.0)),
    ],
)
def test_round_trip_through_json(config):
    again = NobleConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert again.recipe == config.recipe


def test_a_callable_cannot_be_written_and_the_error_says_what_to_do():
    with pytest.raises(ConfigError, match="register_activation"):
        NobleConfig(act=lambda rank: nn.GELU()).to_dict()
    with pytest.raises(ConfigError, match="use a regex or a list"):
        NobleConfig(select=lambda site: True).to_dict()


def test_a_config_with_a_lambda_can_be_pickled():
    again = pickle.loads(pickle.dumps(NobleConfig(act=lambda rank: nn.GELU(), rank=8)))
    assert again.rank == 8
    assert "lambda" in again.act


def test_the_published_numbers():
    paper, reference = PRESETS["paper"], PRESETS["reference"]
    assert (paper.lr_up_exponent, paper.lr_mixer_exponent, paper.lr_frequency, paper.lr_phase) == (0.6, 0.45, 3, 5)
    assert (reference.lr_up_exponent, reference.lr_mixer_exponent) == (0.4, 0.5)
    assert (reference.lr_frequency, reference.lr_phase) == (2, 4)
    assert not paper.decay_frequency
    assert reference.decay_frequency
