"""Output heads by name."""

import pytest

from noble_fx.sites.heads import is_head_name


@pytest.mark.parametrize("fqn", ["lm_head", "output", "classifier.dense", "cls.predictions.decoder", "embed_out"])
def test_heads_by_name(fqn):
    assert is_head_name(fqn)


@pytest.mark.parametrize("fqn", ["layers.0.output", "layers.0.mlp.fc1", "encoder"])
def test_what_no_name_calls_a_head(fqn):
    assert not is_head_name(fqn)
