"""What a linear map does, from its name and the names around it."""

import pytest

from noble_fx.sites.roles import role_from_name


@pytest.mark.parametrize(
    ("fqn", "shape", "role"),
    [
        ("model.layers.0.self_attn.q_proj", (8, 8), "attention.q"),
        ("model.layers.0.self_attn.o_proj", (8, 8), "attention.out"),
        ("model.layers.0.mlp.gate_proj", (8, 32), "ffn.gate"),
        ("model.layers.0.mlp.up_proj", (8, 32), "ffn.in"),
        ("model.layers.0.mlp.down_proj", (32, 8), "ffn.out"),
        ("transformer.h.0.attn.c_attn", (8, 24), "attention.qkv"),
        ("transformer.h.0.attn.c_proj", (8, 8), "attention.out"),
        ("transformer.h.0.mlp.c_fc", (8, 32), "ffn.in"),
        ("transformer.h.0.mlp.c_proj", (32, 8), "ffn.out"),
        ("encoder.layer.0.attention.self.query", (8, 8), "attention.q"),
        ("encoder.layer.0.attention.output.dense", (8, 8), "attention.out"),
        ("encoder.layer.0.intermediate.dense", (8, 32), "ffn.in"),
        ("encoder.layer.0.output.dense", (32, 8), "ffn.out"),
        ("block.0.layer.0.SelfAttention.k", (8, 8), "attention.k"),
        ("block.0.layer.1.DenseReluDense.wo", (32, 8), "ffn.out"),
        ("block.0.layer.1.DenseReluDense.wi_0", (8, 32), "ffn.gate"),
        ("layers.0.attention.wo", (8, 8), "attention.out"),
        ("layers.0.feed_forward.w1", (8, 32), "ffn.gate"),
        ("blocks.0.mlp.0", (8, 32), "ffn.in"),
        ("blocks.0.mlp.2", (32, 8), "ffn.out"),
        ("transformer.layers.0.linear2", (32, 8), "ffn.out"),
        ("embed_tokens_proj", (8, 8), "other"),
    ],
)
def test_roles_from_names(fqn, shape, role):
    assert role_from_name(fqn, *shape) == role
