"""torch.compile, and the graphs behind a model: what the passes made of it.

python examples/08_compile.py
"""

import torch

import noble_fx

model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
model = noble_fx.transform(model, rank=16, seed=0)
x = torch.randn(8, 64)

compiled = torch.compile(model)  # as any other model
print(f"largest difference to eager: {(compiled(x) - model(x)).abs().max():.1e}")

(program,) = noble_fx.programs(model)  # a graph to look at
for step in program.history:
    print(f"{step.rule:<14} {step.node:<10} {step.skipped or step.after}")
print(program.graph_module.code)
