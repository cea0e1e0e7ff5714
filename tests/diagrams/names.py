"""Names that would be markup, escapes or syntax, in one language or another, if they were not written as text."""

from __future__ import annotations

from torch import nn

import noble_fx

NAMES = [
    'a"quote\\"',
    "[link](x)",
    "{%%{init: {}}%%}",
    "<b>bold</b>",
    "two\nlines",
    "two\\nlines",
    "\\N \\l &amp; &lt;",
    "\x1b[31m\x00\ufffe",
    " _x_ **y** `z`",
    "end; } ]",
    "- 1) #35; fa:fa-car",
    "日本 é 😀",
]


class Marked(nn.Module):
    """A layer of each name, in a holder of that name."""

    def __init__(self):
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.ModuleDict({name: nn.Linear(8, 8)}))


def explanation() -> noble_fx.Explanation:
    """The account of a model with all these names."""
    return noble_fx.explain(noble_fx.transform(Marked(), rank=2, select="all", seed=0))
