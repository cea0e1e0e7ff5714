"""Options that several commands share."""

import argparse

import pytest

from noble_fx.cli.arguments import PIPE_WIDTH, add_layer, add_model, add_settings, console, settings


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_model(parser, "a model")
    add_settings(parser)
    return parser.parse_args(["m", *arguments])


@pytest.mark.parametrize(("text", "rank"), [("8", 8), ("0.25", 0.25), ("4%", "4%"), ("x", "x")])
def test_a_rank_is_a_number_a_share_or_a_budget(text, rank):
    assert settings(parsed("--rank", text)) == {"rank": rank}


def test_what_was_not_given_is_no_setting():
    assert settings(parsed()) == {}
    assert settings(parsed("--act", "gelu", "--select", "ffn")) == {"act": "gelu", "select": "ffn"}


def test_the_defaults_of_a_layer_are_those_of_its_command():
    parser = argparse.ArgumentParser()
    add_layer(parser, in_features=3, dtype="fp32")
    args = parser.parse_args([])
    assert (args.in_features, args.out_features, args.dtype, args.no_bias) == (3, 4096, "fp32", False)


def test_a_pipe_is_wide(capsys):
    assert console().width == PIPE_WIDTH
