"""What is expected of every architecture: roles, what is left out and why, sites of the graph captures."""

from tests.zoo.entry import Found

EXPECTED: dict[str, Found] = {
    "GPT-2": Found("attention: qkv out · ffn: in out", "tied weight", {"export": 4}),
    "GPT-Neo": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×2", "tied weight", {"export": 12}),
    "GPT-J": Found("attention: q k v out · ffn: in out", "head", {"export": 6}),
    "GPT-NeoX": Found("attention: qkv out · ffn: in out", "head", {"export": 4}),
    "CodeGen": Found("attention: qkv out · ffn: in out", "head", {"export": 4}),
    "BLOOM": Found("attention: qkv out · ffn: in out", "tied weight", {"export": 4}),
    "OPT": Found("attention: q k v out · ffn: in out · embedding×2", "tied weight", {"export": 8}),
    "MPT": Found("attention: qkv out · ffn: in out", "tied weight", {"export": 4}),
    "Falcon": Found("attention: qkv out · ffn: in out", "tied weight", {"export": 4}),
    "Llama": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Mistral": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Qwen2": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Qwen3": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Gemma": Found("attention: q k v out · ffn: in gate out", "tied weight", {"export": 7}),
    "Gemma 2": Found("attention: q k v out · ffn: in gate out", "tied weight", {"export": 7}),
    "Gemma 3": Found("attention: q k v out · ffn: in gate out", "tied weight", {"export": 7}),
    "OLMo": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "OLMo 2": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Phi": Found("attention: q k v out · ffn: in out", "head", {"export": 6}),
    "Phi-3": Found("attention: qkv out · ffn: in out", "head", {"export": 4}),
    "StableLM": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Cohere": Found("attention: q k v out · ffn: in gate out", "tied weight", {"export": 7}),
    "Starcoder2": Found("attention: q k v out · ffn: in out", "tied weight", {"export": 6}),
    "XLNet": Found("ffn: in out", "tied weight, bare parameter×6", {"export": 7}),
    "Mixtral": Found("attention: q k v out · ffn: in out", "head, router", {"export": 6}),
    "Phi-3.5-MoE": Found(
        "attention: q k v out · ffn: in out", "router, head", export_refuses="gives other gradients"
    ),
    "Qwen2-MoE": Found("attention: q k v out · ffn: in×2 gate out×2", "router×2, head", {"export": 9}),
    "Qwen3-MoE": Found("attention: q k v out · ffn: in out", "head, router", {"export": 6}),
    "DeepSeek V2": Found(
        "attention: q×4 kv×4 out×2 · ffn: in×3 gate×2 out×3", "head, router", {"export": 18}
    ),
    "DeepSeek V3": Found(
        "attention: q×4 kv×4 out×2 · ffn: in×3 gate×2 out×3", "head, router", {"export": 18}
    ),
    "GraniteMoE": Found("attention: q k v out · ffn: in out", "head, router", {"export": 6}),
    "JetMoE": Found("attention: kv qkv out · ffn: in out", "router×2, tied weight", {"export": 5}),
    "gpt-oss": Found("attention: q k v out · ffn: in out", "head, router", {"export": 6}),
    "Llama 4": Found("attention: q k v out · ffn: in×2 gate out×2", "router, head", {"export": 9}),
    "Mamba": Found("mixer: in state out", "too narrow, tied weight", {"export": 3}),
    "Mamba 2": Found("mixer: in out", "head", {"export": 2}),
    "FalconMamba": Found("mixer: in state out", "too narrow, tied weight", {"export": 3}),
    "RWKV": Found("ffn: in×2 gate×2 out×2 · mixer: in×6 out×2", "head", export_refuses="forward changes a tensor"),
    "RecurrentGemma": Found(
        "attention: q k v out · ffn: in×3 gate×3 out×3 · mixer: in×2 gate×2 out×2",
        "tied weight, bare parameter×4",
        export_refuses="forward sets 'model.layers.0.temporal_block.rg_lru.recurrent_states'",
    ),
    # It reads the weight and does not call the layer.
    "Jamba": Found(
        "attention: q k v out · ffn: in×2 gate out×2 · mixer: in state×2 out",
        "head, router",
        {"export": 12},
        silent="mamba.dt_proj",
    ),
    "Bamba": Found("attention: q k v out · ffn: in×2 gate×2 out×2 · mixer: in out", "head", {"export": 12}),
    "Zamba2": Found("attention: q k v out · ffn: in×3 out · mixer: in×2 out×2 · other", "tied weight", {"export": 13}),
    "Nemotron-H": Found(
        "attention: q k v out · ffn: in×2 out×2 · mixer: in out", "head, router", {"export": 10}
    ),
    "Qwen3-Next": Found(
        "attention: q k v out · ffn: in×4 gate×2 out×4 · mixer: in state out",
        "router×4, head",
        {"export": 17},
    ),
    "BERT": Found("attention: q k v out · ffn: in out", "head, tied weight", {"export": 6}),
    "RoBERTa": Found("attention: q k v out · ffn: in out", "head, tied weight", {"export": 6}),
    "DistilBERT": Found("attention: q k v out · ffn: in out · other", "tied weight", {"export": 7}),
    "ALBERT": Found("attention: q k v out · ffn: in out · embedding", "head, tied weight", {"export": 7}),
    "ELECTRA": Found("attention: q k v out · ffn: in out · embedding · other", "tied weight", {"export": 8}),
    "MobileBERT": Found(
        "attention: q k v out · ffn: in×2 out×2 · embedding · other×3", "head×2, tied weight", {"export": 12}
    ),
    "DeBERTa v2": Found("attention: q k v out · ffn: in out · position×2", "head, tied weight", {"export": 8}),
    "ModernBERT": Found("attention: qkv out · ffn: in out", "head, tied weight", {"export": 4}),
    "ESM": Found("attention: q k v out · ffn: in out · other", "head", {"export": 7}),
    "FNet": Found("ffn: in out · embedding · other", "", {"export": 4}),
    "Funnel": Found(
        "attention: q×3 k×3 v×3 out×3 · ffn: in×3 out×3",
        "tied weight, bare parameter×6",
        export_refuses="forward sets 'funnel.encoder.attention_structure.pooling_mult'",
    ),
    "T5": Found("attention: q×3 k×3 v×3 out×3 · ffn: in×2 out×2", "tied weight", {"export": 16}),
    "BART": Found("attention: q×3 k×3 v×3 out×3 · ffn: in×2 out×2", "tied weight", {"export": 16}),
    "Pegasus": Found("attention: q×3 k×3 v×3 out×3 · ffn: in×2 out×2", "tied weight", {"export": 16}),
    "Whisper": Found("attention: q×3 k×3 v×3 out×3 · ffn: in×2 out×2", "tied weight", {"export": 16}),
    "Wav2Vec2": Found(
        "attention: q k v out · ffn: in out · embedding", "head", export_refuses="random numbers of NumPy's"
    ),
    "HuBERT": Found(
        "attention: q k v out · ffn: in out · embedding", "head", export_refuses="random numbers of NumPy's"
    ),
    "Conformer": Found(
        "attention: q k v out · ffn: in×2 out×2 · mixer: in out · embedding · position",
        "head",
        export_refuses="random numbers of NumPy's",
    ),
    "ViT": Found("attention: q k v out · ffn: in out", "head", {"export": 6}),
    "DeiT": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×2", "head", {"export": 12}),
    "BEiT": Found("attention: q k v out · ffn: in out", "head", {"export": 6}),
    "DINOv2": Found("attention: q k v out · ffn: in gate out", "head", {"export": 7}),
    "Swin": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×2 · other", "head", {"export": 13}),
    "Swin v2": Found(
        "attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×2 · position×2 · other", "too narrow×2, head", {"export": 15}
    ),
    "SegFormer": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×4 · other", "head", {"export": 15}),
    "ConvNeXt": Found("ffn: in×2 out×2", "head", {"export": 4}),
    # The first layer's queries are zeros.
    "DETR": Found(
        "attention: q×5 k×5 v×5 out×5 · ffn: in×3 out×3 · other×5",
        "head",
        export_refuses="decides on the values of a tensor",
        silent="decoder.layers.0.self_attn.v_proj",
    ),
    "CLIP": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×2 · embedding×2", "", {"export": 14}),
    "SigLIP": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 out×2", "head×5", {"export": 12}),
    "LLaVA": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×2 gate out×2 · embedding×2", "head", {"export": 15}),
    "nanoGPT": Found("attention: qkv×2 out×2 · ffn: in×2 out×2", "tied weight", {"export": 8}),
    "torchtitan": Found("attention: q×2 k×2 v×2 out×2 · ffn: in×4 gate×4 out×4", "router, head", {"export": 20}),
    "DiT": Found("attention: qkv×2 out×2 · ffn: in×2 out×2 · embedding · modulation×4", "head", {"export": 13}),
    "vit-pytorch": Found("attention: qkv×2 out×2 · ffn: in×2 out×2 · embedding", "head", {"export": 9}),
    "nn.Transformer": Found("attention: qkv×3 out×3 · ffn: in×2 out×2", "", {"export": 10}),
    "nn.TransformerEncoder": Found("attention: qkv×2 out×2 · ffn: in×2 out×2", "", {"export": 8}),
    "CNN + MLP": Found("ffn: in out · other", "", {"fx": 3, "export": 3}),
    "LSTM classifier": Found(
        "ffn: in",
        "recurrent: its products lie inside one opaque operator, where no branch can be added, head",
        {"fx": 1, "export": 1},
    ),
    "decides on values": Found("other×2", export_refuses="decides on the values of a tensor"),
    "tied weights": Found("ffn: in", "tied weight", {"fx": 1, "export": 1}),
    "a block called twice": Found("ffn: in out · other", "", {"fx": 3, "export": 3}),
    "bare parameters": Found("", "bare parameter×3", {"export": 5}),
}
