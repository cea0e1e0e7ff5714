"""What modules around a linear map say of it, by the words of their classes and names."""

import pytest

from noble_fx.sites.enclosing import kind_of, letters_of, surroundings, words_of


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("patch_embed", ("patch", "embed")),
        ("PatchEmbed", ("patch", "embed")),
        ("wi_0", ("wi", "0")),
        ("fc1", ("fc", "1")),
        ("Qwen2MoeMLP", ("qwen", "2", "moe", "mlp")),
        ("NemotronHMLP", ("nemotron", "h", "mlp")),
        ("", ()),
    ],
)
def test_words(name, words):
    assert words_of(name) == words


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RwkvFeedForward", "ffn"),
        ("RwkvSelfAttention", "mixer"),
        ("JambaMLP", "ffn"),
        ("JambaMambaMixer", "mixer"),
        ("BertSelfOutput", "attention"),
        ("BertOutput", "ffn"),
        ("EmbeddingGemma2MLP", "ffn"),
        ("ViTEmbeddings", "embedding"),
        ("class_embed", ""),
        ("MixtralSparseMoeBlock", "ffn"),
        ("Qwen2MoeAttention", "attention"),
        ("BartEncoderLayer", "tower"),
        ("BertForMaskedLM", "tower"),
        ("LlamaRMSNorm", ""),
        ("cpb_mlp", "position"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "letters"),
    [("q_proj", "q"), ("Wqkv", "qkv"), ("query_key_value", "qkv"), ("to_kv", "kv"), ("wk", "k"), ("out_proj", "")],
)
def test_letters(name, letters):
    assert letters_of(words_of(name)) == letters


def test_the_nearest_enclosing_module_decides_and_a_layer_of_a_list_ends_the_search():
    assert surroundings(["", "layers", "0", "self_attn"], ())[0] == "attention"
    assert surroundings(["", "attention_tower", "layers", "0"], ())[0] == ""
    assert surroundings(["", "ffn", "experts", "0"], ())[0] == "ffn"
    assert surroundings(["", "time_embed", "mlp"], ())[0] == "modulation"
