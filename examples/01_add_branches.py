"""Add branches to a model, look at what was chosen, switch them off, take them out again.

python examples/01_add_branches.py
"""

import torch

import noble_fx

model = torch.nn.TransformerEncoder(
    torch.nn.TransformerEncoderLayer(d_model=128, nhead=4, batch_first=True), num_layers=2
)
x = torch.randn(2, 16, 128)
model.eval()
before = model(x)

# What would be done; nothing changes yet.
for site in noble_fx.transform(model, dry_run=True):
    print(f"{site.fqn:<28} {site.role:<14} rank {site.rank or '–':<4} {site.reason}")

model = noble_fx.transform(model)
print(noble_fx.explain(model))

with noble_fx.disabled(model):  # the plain model, bit for bit
    assert torch.equal(model(x), before)

plain = noble_fx.remove(model)  # the same object, without branches
assert torch.equal(plain(x), before)
