import dataclasses
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
        ({"seed": 1.5}, "seed=1.5 must be"),
        ({"preset": ["paper"]}, r"preset=\['paper'\] is unknown"),
        ({"capture": ["auto"]}, r"capture=\['auto'\] is unknown"),
        ({"branch": ""}, "branch='' must be a name"),
        ({"select": 3}, "select=3 must be one of auto, all, attention, ffn, a regular expression or a list"),
        ({"select": ["a", 3]}, r"select=\['a', 3\] must be one of"),
        ({"select": {"a": "b"}}, "must be one of"),
        ({"select": None}, "select=None must be one of"),
        ({"select": "(" * 5000}, r"select='\(+ is not a regular expression"),
        ({"select": "a{99999999999999999999}"}, "is not a regular expression"),
        ({"exclude": b"x"}, "exclude=b'x' must be a regular expression or a list of module names"),
        ({"rank_pattern": [4]}, r"rank_pattern=\[4\] must be None or a dictionary"),
        ({"rank_pattern": {3: 4}}, "rank_pattern=3 is not a regular expression"),
        ({"rank": float("nan")}, "rank=nan is not a rank"),
        ({"rank": "9" * 400 + "%"}, "is not a rank"),
        ({"init_base": "yes"}, "init_base='yes' must be True or False"),
        ({"fuse": 1}, "fuse=1 must be True, False or 'require'"),
        ({"fuse": ["require"]}, "must be True, False or 'require'"),
        ({"scope": "blocks"}, "scope='blocks' is unknown; use one of linear, block"),
        ({"scope": ["block"]}, r"scope=\['block'\] is unknown"),
        ({"scope": "block", "select": "ffn"}, "select='ffn' is for scope='linear'"),
        ({"scope": "block", "init_base": True}, "init_base=True draws the weight beside each branch, and a block has"),
        ({"base_rank": 8}, "base_rank=8 is of another form of W: say which, base="),
        ({"guide": 0.5}, "guide=0.5 is of another form of W"),
        ({"base_settings": {"blocks": 2}}, "base_settings=.* is of another form of W"),
        ({"base": 3}, "base=3 must be None or the name of a form of W"),
        ({"base": "factorized", "base_rank": "4%"}, "base_rank='4%' is not a rank"),
        ({"base": "factorized", "guide": 1.5}, "guide=1.5 must be a share of training between 0 and 1"),
        ({"base": "factorized", "guide": True}, "guide=True must be a share"),
        ({"base": "factorized", "base_settings": [3]}, r"base_settings=\[3\] must be None or a dictionary"),
        (
            {"base": "factorized", "base_settings": {"blocks": [2]}},
            "must be None or a dictionary {name: number or text}",
        ),
        ({"base": "factorized", "base_rank": 8, "scope": "block"}, "scope='block' has branches around whole blocks"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        NobleConfig(**settings)


def test_a_pattern_that_cannot_be_printed_is_shown_all_the_same():
    with pytest.raises(ConfigError, match="is not a regular expression") as refused:
        NobleConfig(select="[\ud7fc-a]")
    assert str(refused.value).isprintable()


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="'rnak' is not a setting; nearest: 'rank'"):
        NobleConfig().replace(rnak=4)


@pytest.mark.parametrize(
    "config",
    [
        NobleConfig(),
        NobleConfig(rank="4%", act="gelu_net", select=("a.b",), exclude="x", rank_pattern={"q": 8}, seed=3),
        NobleConfig(preset=NoblePreset("mine", True, False, "normal", lr_phase=7.0)),
        NobleConfig(base="block_diagonal", base_rank=0.25, base_settings={"blocks": 2, "form": "shuffle"}, guide=0.5),
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


def test_flat_is_the_papers_branch_without_multipliers():
    multipliers = {"lr_up_exponent": 0.6, "lr_mixer_exponent": 0.45, "lr_frequency": 3.0, "lr_phase": 5.0}
    assert dataclasses.replace(PRESETS["flat"], name="paper", **multipliers) == PRESETS["paper"]


def test_the_published_numbers():
    paper, reference = PRESETS["paper"], PRESETS["reference"]
    assert (paper.lr_up_exponent, paper.lr_mixer_exponent, paper.lr_frequency, paper.lr_phase) == (0.6, 0.45, 3, 5)
    assert (reference.lr_up_exponent, reference.lr_mixer_exponent) == (0.4, 0.5)
    assert (reference.lr_frequency, reference.lr_phase) == (2, 4)
    assert not paper.decay_frequency
    assert reference.decay_frequency
