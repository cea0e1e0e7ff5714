"""Output heads: the maps that make a model's answer out of its last hidden state."""

from __future__ import annotations

import re

_HEAD = re.compile(
    r"(lm_|mlm_|nsp_|cls_|class_|classification_|prediction_|output_)?heads?|classifier|score|cls|qa_outputs|embed_out"
    r"|output_projection|vocab_proj(ector)?|unembed(ding)?|proj_out|logits?(_proj)?|out_head|readout"
)


def is_head_name(fqn: str) -> bool:
    """True for `lm_head`, `classifier.dense`, `output` at the top level, …"""
    return fqn == "output" or any(_HEAD.fullmatch(part) for part in fqn.split("."))
