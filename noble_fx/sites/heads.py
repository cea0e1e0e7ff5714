"""Output heads: the maps that make a model's answer out of its last hidden state.

One is known by its name, or in the graph of a model with repeated blocks as the last product before the output.
"""

from __future__ import annotations

import re

_HEAD = re.compile(
    r"(?!decode_head|attn_head|attention_head)(\w+_)?heads?|head_dist|(\w+_)?classifier|score|cls|qa_outputs|embed_out"
    r"|output_projection|vocab_proj(ector)?|unembed(ding)?|(to_)?logits?(_proj)?|readout|lm_loss|predictions"
    r"|decoder_pred|(class|bbox|box|score|label)_embed"
)
# Names of a last layer which others have too: only at the top, or where no number and no attention stands before them.
_LAST = re.compile(r"output|((?!\d|\w*att)\w+\.)*(proj_out|final_layer(\.linear|\.proj\w*)?)")


def is_head_name(fqn: str) -> bool:
    """True for `lm_head`, `classifier.dense`, `output` at the top level, …"""
    return _LAST.fullmatch(fqn) is not None or any(_HEAD.fullmatch(part) for part in fqn.split("."))
