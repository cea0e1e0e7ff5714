"""Which layers get a branch, and how wide it is: by role, by name, by a budget, by a rule of your own.

python examples/06_choose.py
"""

from typing import Any

import torch

import noble_fx

with torch.device("meta"):  # names and shapes, no memory
    model = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(d_model=512, nhead=8, dim_feedforward=2048, batch_first=True), num_layers=6
    )


def show(text: str, **settings: Any) -> None:
    """One line: how many layers, which ranks, how many parameters."""
    chosen = [site for site in noble_fx.sites(model, **settings) if site.selected]
    ranks = sorted({site.rank for site in chosen})
    print(f"{text:<44} {len(chosen):>3} layers, rank {ranks}, {sum(site.params for site in chosen):,} parameters")


show("everything in the blocks, rank 64")
show("attention only", select="attention")
show("feed-forward only, a sixteenth of min(K, N)", select="ffn", rank=1 / 16)
show("4 % more parameters, spread over all", rank="4%")
show("by a regular expression", select=r"layers\.[0-2]\..*linear2")
show("another rank for some", rank=32, rank_pattern={r"linear[12]": 128})
show("by a rule", select=lambda site: site.out_features > site.in_features)
show("all but the first layer", exclude=r"layers\.0\.")
