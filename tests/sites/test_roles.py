"""What a linear map does, from its name, what encloses it, its shape and what stands beside it."""

import pytest
from torch import nn

from noble_fx.sites.roles import role_from_name, role_in

# (models that call it so, name, shape K × N, role)
BY_NAME = [
    ("Llama", "model.layers.0.self_attn.q_proj", (8, 8), "attention.q"),
    ("Llama", "model.layers.0.self_attn.o_proj", (8, 8), "attention.out"),
    ("Llama", "model.layers.0.mlp.gate_proj", (8, 32), "ffn.gate"),
    ("Llama", "model.layers.0.mlp.up_proj", (8, 32), "ffn.in"),
    ("Llama", "model.layers.0.mlp.down_proj", (32, 8), "ffn.out"),
    ("GPT-2", "transformer.h.0.attn.c_attn", (8, 24), "attention.qkv"),
    ("GPT-2", "transformer.h.0.attn.c_proj", (8, 8), "attention.out"),
    ("GPT-2", "transformer.h.0.mlp.c_fc", (8, 32), "ffn.in"),
    ("GPT-2", "transformer.h.0.mlp.c_proj", (32, 8), "ffn.out"),
    ("BERT", "encoder.layer.0.attention.self.query", (8, 8), "attention.q"),
    ("BERT", "encoder.layer.0.attention.output.dense", (8, 8), "attention.out"),
    ("BERT", "encoder.layer.0.intermediate.dense", (8, 32), "ffn.in"),
    ("BERT", "encoder.layer.0.output.dense", (32, 8), "ffn.out"),
    ("T5", "block.0.layer.0.SelfAttention.k", (8, 8), "attention.k"),
    ("T5", "block.0.layer.1.DenseReluDense.wo", (32, 8), "ffn.out"),
    ("T5", "block.0.layer.1.DenseReluDense.wi_0", (8, 32), "ffn.gate"),
    ("T5", "block.0.layer.1.DenseReluDense.wi_1", (8, 32), "ffn.in"),
    ("torchtitan", "layers.0.attention.wo", (8, 8), "attention.out"),
    ("torchtitan", "layers.0.feed_forward.w1", (8, 32), "ffn.gate"),
    ("torchtitan", "layers.0.feed_forward.w2", (32, 8), "ffn.out"),
    ("torchtitan", "layers.0.feed_forward.w3", (8, 32), "ffn.in"),
    ("torchtitan", "layers.0.mlp.router.gate", (32, 32), "router"),
    ("timm", "blocks.0.mlp.w12", (8, 64), "ffn.in"),
    ("timm", "blocks.0.mlp.w3", (32, 8), "ffn.out"),
    ("nn.Sequential", "blocks.0.mlp.0", (8, 32), "ffn.in"),
    ("nn.Sequential", "blocks.0.mlp.2", (32, 8), "ffn.out"),
    ("nn.Transformer", "transformer.layers.0.linear2", (32, 8), "ffn.out"),
    ("BART", "model.encoder.layers.0.fc1", (8, 32), "ffn.in"),
    ("BLOOM", "h.0.self_attention.query_key_value", (8, 24), "attention.qkv"),
    ("BLOOM", "h.0.self_attention.dense", (8, 8), "attention.out"),
    ("BLOOM", "h.0.mlp.dense_h_to_4h", (8, 32), "ffn.in"),
    ("BLOOM", "h.0.mlp.dense_4h_to_h", (32, 8), "ffn.out"),
    ("ModernBERT", "layers.0.attn.Wqkv", (8, 24), "attention.qkv"),
    ("ModernBERT", "layers.0.mlp.Wi", (8, 64), "ffn.in"),
    ("ModernBERT", "layers.0.mlp.Wo", (32, 8), "ffn.out"),
    ("DeepSeek V3", "layers.0.self_attn.kv_a_proj_with_mqa", (32, 20), "attention.kv"),
    ("DeepSeek V3", "layers.0.self_attn.q_b_proj", (16, 32), "attention.q"),
    ("DeepSeek V3.2", "layers.0.self_attn.indexer.wq_b", (16, 32), "position"),
    ("Mamba", "layers.0.mixer.in_proj", (32, 128), "mixer.in"),
    ("Mamba", "layers.0.mixer.x_proj", (64, 12), "mixer.state"),
    ("Mamba", "layers.0.mixer.out_proj", (64, 32), "mixer.out"),
    ("Jamba, Zamba2", "layers.0.mamba.in_proj", (32, 128), "mixer.in"),
    ("wav2vec 2", "encoder.layers.0.feed_forward.intermediate_dense", (32, 48), "ffn.in"),
    ("wav2vec 2", "encoder.layers.0.feed_forward.output_dense", (48, 32), "ffn.out"),
    ("wav2vec 2", "feature_projection.projection", (48, 32), "embedding"),
    ("XLNet", "transformer.layer.0.ff.layer_1", (32, 48), "ffn.in"),
    ("XLNet", "transformer.layer.0.ff.layer_2", (48, 32), "ffn.out"),
    ("Flux, SD3", "transformer_blocks.0.attn.add_q_proj", (32, 32), "attention.q"),
    ("Flux, SD3", "transformer_blocks.0.attn.to_add_out", (32, 32), "attention.out"),
    ("Flux, SD3", "transformer_blocks.0.ff_context.net.2", (128, 32), "ffn.out"),
    ("Flux, SD3", "transformer_blocks.0.norm1_context.linear", (32, 192), "modulation"),
    ("DiT", "blocks.0.adaLN_modulation.1", (32, 192), "modulation"),
    ("DiT", "t_embedder.mlp.0", (64, 32), "modulation"),
    ("UNet", "down_blocks.0.resnets.0.time_emb_proj", (64, 32), "modulation"),
    ("vit-pytorch", "layers.0.0.to_out.0", (128, 32), "attention.out"),
    ("vit-pytorch", "layers.0.0.to_qkv", (32, 384), "attention.qkv"),
    ("vit-pytorch", "layers.0.1.net.1", (32, 48), "ffn.in"),
    ("vit-pytorch", "layers.0.1.net.4", (48, 32), "ffn.out"),
    ("litgpt", "h.0.mlp.fc", (32, 128), "ffn.in"),
    ("litgpt", "h.0.mlp.proj", (128, 32), "ffn.out"),
    ("FT-Transformer", "blocks.0.attention.W_q", (32, 32), "attention.q"),
    ("ConvNeXt", "stages.0.layers.0.pwconv1", (8, 32), "ffn.in"),
    ("BLIP-2", "layers.0.self_attn.projection", (32, 32), "attention.out"),
    ("Conformer", "layers.0.conv_module.pointwise_conv1", (32, 64), "mixer.in"),
    ("Conformer", "layers.0.self_attn.linear_pos", (32, 32), "position"),
    ("deformable DETR", "layers.0.encoder_attn.sampling_offsets", (32, 64), "position"),
    ("Swin v2", "layers.0.attention.self.continuous_position_bias_mlp.0", (2, 512), "position"),
    ("Qwen2-MoE", "layers.0.mlp.shared_expert_gate", (32, 1), "router"),
    ("ALBERT", "encoder.embedding_hidden_mapping_in", (16, 32), "embedding"),
    ("LLaVA", "multi_modal_projector.linear_1", (32, 64), "embedding"),
    ("Qwen2-VL", "visual.merger.mlp.0", (32, 64), "embedding"),
    ("PEFT", "layers.0.self_attn.q_proj.base_layer", (8, 8), "attention.q"),
    ("PEFT", "layers.0.q_proj.base_layer", (8, 8), "attention.q"),
    ("checkpointed", "layers.0._checkpoint_wrapped_module.mlp.fc1", (8, 32), "ffn.in"),
    ("compiled", "layers.0.self_attn.q_proj._orig_mod", (8, 8), "attention.q"),
    ("any", "embed_tokens_proj", (8, 8), "embedding"),
    ("any", "fusion.linear", (8, 8), "other"),
    ("a stage's projection", "hiera.encoder.stages.1.layers.0.proj", (96, 192), "other"),
]  # fmt: skip


@pytest.mark.parametrize(("_model", "fqn", "shape", "role"), BY_NAME, ids=[f"{m}: {n}" for m, n, *_ in BY_NAME])
def test_roles_from_names(_model, fqn, shape, role):
    assert role_from_name(fqn, *shape) == role


# What a class says outweighs a name: (class of the enclosing module, its name, the map's, role)
BY_CLASS = [
    ("NemotronHAttention", "mixer", "q_proj", "attention.q"),
    ("NemotronHMLP", "mixer", "up_proj", "ffn.in"),
    ("NemotronHMamba2Mixer", "mixer", "in_proj", "mixer.in"),
    ("Qwen3NextGatedDeltaNet", "linear_attn", "in_proj_qkvz", "mixer.in"),
    ("Qwen3NextGatedDeltaNet", "linear_attn", "in_proj_ba", "mixer.state"),
    ("RwkvSelfAttention", "attention", "key", "mixer.in"),
    ("RwkvSelfAttention", "attention", "output", "mixer.out"),
    ("RwkvFeedForward", "feed_forward", "key", "ffn.in"),
    ("RwkvFeedForward", "feed_forward", "receptance", "ffn.gate"),
    ("RwkvFeedForward", "feed_forward", "value", "ffn.out"),
    ("RecurrentGemmaRecurrentBlock", "temporal_block", "linear_y", "mixer.gate"),
    ("RecurrentGemmaSdpaAttention", "temporal_block", "q_proj", "attention.q"),
    ("BertSelfOutput", "output", "dense", "attention.out"),
    ("LxmertOutput", "visn_output", "dense", "ffn.out"),
    ("EmbeddingGemma2MLP", "mlp", "up_proj", "ffn.in"),
    ("Transformer2DModel", "attentions", "proj_in", "other"),
    ("FocalNetModulation", "modulation", "projection_in", "mixer.in"),
    ("AdaLayerNormZero", "norm1", "linear", "modulation"),
    ("DogeAttention", "self_attn", "dt_proj", "other"),
    ("MLPLayerWithBN", "queries_keys_values", "linear", "attention.qkv"),
]


@pytest.mark.parametrize(("cls", "parent", "name", "role"), BY_CLASS, ids=[f"{c}.{n}" for c, _, n, _ in BY_CLASS])
def test_roles_from_classes(cls, parent, name, role):
    classes = ["SomeModel", "ModuleList", "SomeLayer", cls]
    assert role_from_name(f"layers.0.{parent}.{name}", 8, 8, classes) == role


def module(name: str, **children: nn.Module) -> nn.Module:
    """A module of a class of this name."""
    made = type(name, (nn.Module,), {})()
    for child, value in children.items():
        made.add_module(child, value)
    return made


def roles(model: nn.Module) -> dict[str, str]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: role_in(model, name, layer.in_features, layer.out_features) for name, layer in layers.items()}


def test_what_stands_beside_it_decides():
    two = module("MLP", w1=nn.Linear(8, 32), w2=nn.Linear(32, 8))
    assert roles(two) == {"w1": "ffn.in", "w2": "ffn.out"}
    three = module("MLP", w1=nn.Linear(8, 32), w2=nn.Linear(32, 8), w3=nn.Linear(8, 32))
    assert roles(three) == {"w1": "ffn.gate", "w2": "ffn.out", "w3": "ffn.in"}
    xformers = module("SwiGLU", w1=nn.Linear(8, 32), w2=nn.Linear(8, 32), w3=nn.Linear(32, 8))
    assert roles(xformers) == {"w1": "ffn.gate", "w2": "ffn.in", "w3": "ffn.out"}


def test_the_gate_beside_experts_is_a_router_and_another_gate_is_not():
    expert = module("Expert", gate=nn.Linear(8, 32), up=nn.Linear(8, 32), down=nn.Linear(32, 8))
    model = module("Model", mlp=module("MoEBlock", gate=nn.Linear(8, 4), experts=nn.ModuleList([expert])))
    assert roles(model) == {
        "mlp.gate": "router",
        "mlp.experts.0.gate": "ffn.gate",
        "mlp.experts.0.up": "ffn.in",
        "mlp.experts.0.down": "ffn.out",
    }


def test_an_mlp_of_equal_widths_is_read_in_order():
    model = module("Model", mlp=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    assert roles(model) == {"mlp.0": "ffn.in", "mlp.2": "other", "mlp.4": "ffn.out"}


def test_a_lone_layer_and_a_lone_block_have_roles():
    assert role_in(nn.Linear(8, 8), "", 8, 8) == "other"
    assert roles(module("LlamaMLP", gate_proj=nn.Linear(8, 32))) == {"gate_proj": "ffn.gate"}
