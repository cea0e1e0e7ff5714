"""What a linear map does in its model, read from its name and the names around it.

Names come first, because they say the same in every capture; `dataflow.py` fills in where they say nothing.
"""

from __future__ import annotations

import re

OTHER = "other"

# Last component of the name -> role. A name that means two things is decided by its surroundings, below.
_BY_NAME = {
    "attention.q": r"q|query|(q|query)_proj|wq|to_q|q_lin|(linear|lin)_q|q_[ab]_proj|Wq|query_layer",
    "attention.k": r"k|key|(k|key)_proj|wk|to_k|k_lin|(linear|lin)_k|Wk|key_layer",
    "attention.v": r"v|value|(v|value)_proj|wv|to_v|v_lin|(linear|lin)_v|Wv|value_layer",
    "attention.qkv": r"c_attn|w?qkv|Wqkv|(qkv|in)_proj|query_key_value|to_(qk|kv|qkv)|kv_[ab]_proj\w*|kv_proj|attn_qkv",
    "attention.out": r"o_proj|o|to_out|out_lin|attn_out|out_proj",
    "ffn.gate": r"gate_proj|wi_0|w1|gate",
    "ffn.in": r"up_proj|fc1|fc_in|c_fc|lin1|linear1|wi|wi_1|w3|dense_h_to_4h|gate_up_proj|Wi|fc_1|up",
    "ffn.out": r"down_proj|fc2|fc_out|lin2|linear2|w2|dense_4h_to_h|Wo_mlp|fc_2|down",
}
_BY_NAME_COMPILED = {role: re.compile(pattern) for role, pattern in _BY_NAME.items()}

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_FFN = re.compile(r"mlp|ffn|feed_?forward|^ff$|dense_?relu|intermediate|experts?$", re.IGNORECASE)
_OUTPUT = re.compile(r"wo|Wo|dense|proj|c_proj|out|output|out_proj|\d+")
_INPUT = re.compile(r"dense|proj|in|\d+")


def role_from_name(fqn: str, in_features: int, out_features: int) -> str:
    """`attention.q`, `ffn.in`, … or `other`; the shape decides where a name could be either end of an FFN."""
    *parents, last = fqn.split(".")
    around = _surroundings(parents)
    for role, pattern in _BY_NAME_COMPILED.items():
        if pattern.fullmatch(last) and (not around or role.startswith(around)):
            return role
    if around == "attention" and _OUTPUT.fullmatch(last):
        return "attention.out"
    if around == "ffn" and in_features > out_features and _OUTPUT.fullmatch(last):
        return "ffn.out"
    if around == "ffn" and out_features > in_features and _INPUT.fullmatch(last):
        return "ffn.in"
    return OTHER


def _surroundings(parents: list[str]) -> str:
    """`attention`, `ffn` or nothing, from the nearest enclosing name that says so."""
    for name in reversed(parents):
        if _ATTENTION.search(name):
            return "attention"
        if _FFN.search(name):
            return "ffn"
    return (
        "ffn" if "output" in parents else ""
    )  # BERT's `layer.0.output.dense`; its `attention.output` was caught above
