"""What the modules around a linear map say of it: the words of their classes and names.

An RwkvFeedForward called `feed_forward` encloses a feed-forward part, a NemotronHAttention called `mixer` an attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from noble_fx.wrappers import own_name

# What the words of a module's class or name say of what lies inside it. Those of `_SPECIAL` count wherever they
# stand, of the others the last word does: an RwkvFeedForward is a feed-forward part.
_SPECIAL = {
    "mixer": r"focal_net_modulation|(conv|convolution)_module|(short|light)_conv",
    "modulation": r"ada(_layer|_group|ptive)?_?(ln|norm)|modulation|film|timestep|t_embedder|scale_shift|emb_layers"
    r"|time_(text_|guidance_|cond_)*(emb|embed|embedding|embedder|mlp|in|proj)|(guidance|vector|label)_(in|embedder)"
    r"|^norm(_context|_out)?$",
    "position": r"positional|relative_position|position_bias|rel_pos|cpb|rpe|indexer|sampling_offsets"
    r"|pos_(mlp|bias|net|embed|embedding)",
    "embedding": r"embeds?|embeddings?|embedder|projector|connector|merger|aligner"
    r"|(feature|modality|language|text|image|audio|vision|visual)_projection",
}
_SPECIAL_COMPILED = {kind: re.compile(rf"(?<![a-z])({pattern})(?![a-z])") for kind, pattern in _SPECIAL.items()}
APART = ("modulation", "position", "embedding")  # surroundings that are a role by themselves
_HEADS_OF_DETR = re.compile(r"(class|bbox|box|label|score|mask)_embed")
_WORDS = {
    "router": "router routing",
    "attention": "attention attentions attn att mha",
    "ffn": "mlp mlps ffn ffnn ff forward feedforward intermediate expert experts glu geglu swiglu act relu moe",
    "mixer": "mamba mixer ssm rglru recurrent delta retention hyena lightning lstm",
}
_KIND = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_WITHOUT_SOFTMAX = {"rwkv", "delta", "lightning", "linear", "retention", "mamba"}  # an attention of these is a mixer
_FILLERS = {"block", "blocks", "layer", "module", "net", "network", "sparse", "top"}
_TOWERS = {"model", "encoder", "decoder", "transformer", "stage", "stack", "lm", "classification"}
_LISTS = re.compile(r"h|(\w*_)?(layers?|blocks?|stages?)")


@cache
def words_of(name: str) -> tuple[str, ...]:
    """`patch_embed` and `PatchEmbed` are (patch, embed), `wi_0` is (wi, 0), `Qwen2MoeMLP` is (qwen, 2, moe, mlp)."""
    spaced = re.sub("MoE|MLP|FFN|GLU|QKV", lambda known: known[0].capitalize(), name)
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", spaced))


@cache
def kind_of(name: str) -> str:
    """What a module of this name or class is: one of the surroundings, "tower" for a whole model, or ""."""
    words = [word for word in words_of(name) if not word.isdigit()]
    joined = "_".join(words)
    if _HEADS_OF_DETR.search(joined):
        return ""
    while words and words[-1] in _FILLERS:
        words.pop()
    if words and words[-1] in _TOWERS:
        return "tower"
    said = [_KIND[word] for word in words if word in _KIND and (word != "moe" or word == words[-1])]
    for kind, pattern in _SPECIAL_COMPILED.items():
        if pattern.search(joined) and not (kind == "embedding" and said and name[:1].isupper()):
            return kind  # an EmbeddingGemmaMLP is no embedding
    if joined.endswith("_output") and name[:1].isupper():
        return "attention" if {"self", "cross", "attention"} & set(words) else "ffn"
    if said and said[-1] == "attention" and _WITHOUT_SOFTMAX & set(words):
        return "mixer"
    return said[-1] if said else ""


def is_wrapper(name: str) -> bool:
    """True for `_orig_mod` and its like, which are not in the user's model."""
    return name != own_name(name)


def surroundings(names: Sequence[str], classes: Sequence[str]) -> tuple[str, Sequence[str]]:
    """What the nearest enclosing module that says so is, and the names from there inwards; ("", ()) where none does."""
    said = [(kind, place) for place, kind in _outwards(names, classes) if kind]
    if not said and "output" in names[-1:]:
        return "ffn", names[-1:]  # BERT's `layer.0.output.dense`
    if not said:
        return "", ()
    kind, place = said[0]
    if kind == "ffn":  # an MLP of something special is a part of that: a timestep's, a projector's
        kind = next((outer for outer, _ in said[1:2] if outer in APART), kind)
    return kind, names[place:]


def _outwards(names: Sequence[str], classes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Enclosing modules from the innermost, each with its kind, up to a tower or an entry of a list of layers."""
    for place in reversed(range(len(names))):
        if is_wrapper(names[place]):
            continue
        kind = (kind_of(classes[place]) if classes else "") or kind_of(names[place])
        kind = "attention" if names_letters(words_of(names[place])) else kind
        if kind == "tower":
            return
        yield place, kind
        if place and names[place].isdigit() and _LISTS.fullmatch(names[place - 1]) and not kind_of(names[place - 1]):
            return


# Words of a name that says q, k and v and nothing else.
_AROUND_LETTERS = {*"abcw", "proj", "projection", "project", "to", "lin", "linear", "layer", "add", "attn", "self"}
_AROUND_LETTERS |= {"with", "mqa"}
_LETTERS = {"query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v", "values": "v"}


def letters_of(words: tuple[str, ...]) -> str:
    """Which of q, k and v a name stands for: "qkv" of `query_key_value` and of `Wqkv`."""
    found = set()
    for word in words:
        letters = _LETTERS.get(word, word.removeprefix("w") if len(word) > 1 else word)
        if letters and set(letters) <= set("qkv") and len(set(letters)) == len(letters):
            found |= set(letters)
    return "".join(letter for letter in "qkv" if letter in found)


def names_letters(words: tuple[str, ...]) -> bool:
    """True for `q_proj`, `to_kv`, `queries_keys_values`: nothing but q, k and v is said."""
    return bool(letters_of(words)) and all(letters_of((word,)) or word in _AROUND_LETTERS for word in words)
