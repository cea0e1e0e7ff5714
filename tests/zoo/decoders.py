"""Language models that continue a text: attention, mixtures of experts, recurrences, and stacks of several kinds."""

from __future__ import annotations

from typing import Any

from tests.zoo.entry import DECODER, ENCODER, SPECIAL, Entry, hugging_face, tokens

_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, **SPECIAL}
_TWO_HEADS = {**DECODER, "head_dim": 16}
_EXPERTS: dict[str, Any] = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 3, "num_experts_per_tok": 2}
_SHARED: dict[str, Any] = {**_EXPERTS, "shared_expert_intermediate_size": 24}
_LATENT: dict[str, Any] = {
    **DECODER, "num_hidden_layers": 2, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_HEADS_OF_16: dict[str, Any] = {"mamba_d_state": 8, "mamba_chunk_size": 4}


def _lm(name: str, model: str, **settings: Any) -> Entry:
    return Entry(name, hugging_face(model, **settings), tokens)


DECODERS = [
    _lm("GPT-2", "GPT2LMHeadModel", **_GPT),
    _lm("GPT-Neo", "GPTNeoForCausalLM", hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]],
        num_heads=2, intermediate_size=48, max_position_embeddings=32, window_size=4, **SPECIAL),
    _lm("GPT-J", "GPTJForCausalLM", **_GPT, rotary_dim=8),
    _lm("GPT-NeoX", "GPTNeoXForCausalLM", **ENCODER),
    _lm("CodeGen", "CodeGenForCausalLM", **{**_GPT, "n_head": 4}, rotary_dim=8, n_ctx=32),
    _lm("BLOOM", "BloomForCausalLM", hidden_size=32, n_layer=1, n_head=2, **SPECIAL),
    _lm("OPT", "OPTForCausalLM", hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, **SPECIAL),
    _lm("MPT", "MptForCausalLM", d_model=32, n_layers=1, n_heads=2, expansion_ratio=2, max_seq_len=32, **SPECIAL),
    # Its linears are a subclass with a forward of its own; its head is tied.
    _lm("Falcon", "FalconForCausalLM", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **SPECIAL),
    _lm("Llama", "LlamaForCausalLM", **DECODER),
    _lm("Mistral", "MistralForCausalLM", **_TWO_HEADS, sliding_window=4),
    _lm("Qwen2", "Qwen2ForCausalLM", **DECODER),
    _lm("Qwen3", "Qwen3ForCausalLM", **_TWO_HEADS),
    _lm("Gemma", "GemmaForCausalLM", **_TWO_HEADS),
    _lm("Gemma 2", "Gemma2ForCausalLM", **_TWO_HEADS),
    _lm("Gemma 3", "Gemma3ForCausalLM", **_TWO_HEADS),
    _lm("OLMo", "OlmoForCausalLM", **DECODER),
    _lm("OLMo 2", "Olmo2ForCausalLM", **DECODER),
    _lm("Phi", "PhiForCausalLM", **DECODER),
    _lm("Phi-3", "Phi3ForCausalLM", **DECODER),
    _lm("StableLM", "StableLmForCausalLM", **DECODER),
    _lm("Cohere", "CohereForCausalLM", **DECODER),
    _lm("Starcoder2", "Starcoder2ForCausalLM", **DECODER),
    _lm("XLNet", "XLNetLMHeadModel", d_model=32, n_layer=1, n_head=2, d_inner=48, **SPECIAL),
    # Mixtures of experts.
    _lm("Mixtral", "MixtralForCausalLM", **DECODER, num_local_experts=3, num_experts_per_tok=3),
    _lm("Phi-3.5-MoE", "PhimoeForCausalLM", **DECODER, **_LOCAL_EXPERTS),  # its router, an nn.Linear, returns a tuple
    _lm("Qwen2-MoE", "Qwen2MoeForCausalLM", **DECODER, **_SHARED, decoder_sparse_step=1),
    _lm("Qwen3-MoE", "Qwen3MoeForCausalLM", **_TWO_HEADS, **_EXPERTS),
    _lm("DeepSeek V2", "DeepseekV2ForCausalLM", **_LATENT),
    _lm("DeepSeek V3", "DeepseekV3ForCausalLM", **_LATENT),
    _lm("GraniteMoE", "GraniteMoeForCausalLM", **DECODER, **_LOCAL_EXPERTS),
    _lm("JetMoE", "JetMoeForCausalLM", hidden_size=32, num_hidden_layers=1, num_key_value_heads=2, kv_channels=16,
        intermediate_size=48, max_position_embeddings=32, **_LOCAL_EXPERTS, **SPECIAL),
    _lm("gpt-oss", "GptOssForCausalLM", **_TWO_HEADS, **_LOCAL_EXPERTS, sliding_window=4),
    _lm("Llama 4", "Llama4ForCausalLM", **_TWO_HEADS, num_local_experts=3, num_experts_per_tok=1,
        intermediate_size_mlp=48, interleave_moe_layer_step=1),
    # Recurrences, and stacks of recurrences and attention.
    _lm("Mamba", "MambaForCausalLM", hidden_size=32, num_hidden_layers=1, state_size=4, **SPECIAL),
    _lm("Mamba 2", "Mamba2ForCausalLM", hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, state_size=8,
        n_groups=2, chunk_size=4, **SPECIAL),
    _lm("FalconMamba", "FalconMambaForCausalLM", hidden_size=32, num_hidden_layers=1, state_size=4, **SPECIAL),
    _lm("RWKV", "RwkvForCausalLM", hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48,
        context_length=32, **SPECIAL),
    _lm("RecurrentGemma", "RecurrentGemmaForCausalLM", **{**DECODER, "num_hidden_layers": 3}, lru_width=32,
        attention_window_size=8),
    _lm("Jamba", "JambaForCausalLM", **{**DECODER, "num_hidden_layers": 2}, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, num_experts=3, num_experts_per_tok=2, mamba_d_state=4,
        mamba_dt_rank=4, use_mamba_kernels=False),
    _lm("Bamba", "BambaForCausalLM", **{**DECODER, "num_hidden_layers": 2}, attn_layer_indices=[1], mamba_n_heads=4,
        mamba_d_head=16, mamba_n_groups=1, **_HEADS_OF_16),
    _lm("Zamba2", "Zamba2ForCausalLM", **{**DECODER, "num_hidden_layers": 2}, layers_block_type=["mamba", "hybrid"],
        hybrid_layer_ids=[1], mamba_d_state=8, mamba_headdim=16, n_mamba_heads=4, mamba_ngroups=1, num_mem_blocks=1,
        adapter_rank=4, chunk_size=4, use_mem_eff_path=False),
    _lm("Nemotron-H", "NemotronHForCausalLM", **{**_TWO_HEADS, "num_hidden_layers": 3},
        layers_block_type=["mamba", "attention", "moe"], ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=16,
        n_groups=1, chunk_size=4, n_routed_experts=3, num_experts_per_tok=2, moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=24, moe_latent_size=None),
    _lm("Qwen3-Next", "Qwen3NextForCausalLM", **{**_TWO_HEADS, "num_hidden_layers": 2}, **_SHARED,
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8),
]  # fmt: skip
