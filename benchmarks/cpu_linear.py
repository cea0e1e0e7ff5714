"""One site on the CPU: what a branch costs over the plain linear, as a module and as the operator.

    python -m benchmarks cpu_linear

`module` is the layer as one would write it by hand from the paper's formula, two nn.Linear and a sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from noble_fx import NobleLinear
from noble_fx.interleaved import Timing, interleave, machine

# (K, N, r, tokens); the first is the one that the project holds itself to.
SHAPES = [(768, 768, 64, 512), (768, 3072, 64, 512), (3072, 768, 64, 512), (1024, 1024, 64, 512)]


class ByHand(nn.Module):
    """y = linear(x) + up(cos(ω₂ ⊙ mix(cos(ω₁ ⊙ down(x) + φ₁)) + φ₂)), the formula typed in."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.down = nn.Linear(in_features, rank, bias=False)
        self.mix = nn.Linear(rank, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        self.frequency = nn.Parameter(1 + 0.1 * torch.randn(2, rank))
        self.phase = nn.Parameter(0.1 * torch.randn(2, rank))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cos(self.frequency[0] * self.down(x) + self.phase[0])
        h = torch.cos(self.frequency[1] * self.mix(h) + self.phase[1])
        return self.linear(x) + self.up(h)


def measure(in_features: int, out_features: int, rank: int, tokens: int, training: bool, rounds: int) -> list[Timing]:
    """Time the three layers on the same x [tokens, in_features]; with `training`, forward and backward."""
    torch.manual_seed(0)
    operator = NobleLinear.build(in_features, out_features, rank)
    operator.noble.unfused = ""
    layers: dict[str, nn.Module] = {
        "plain": nn.Linear(in_features, out_features),
        "module": ByHand(in_features, out_features, rank),
        "operator": operator,
    }
    x = torch.randn(tokens, in_features, requires_grad=training)
    dy = torch.randn(tokens, out_features)

    def infer(layer: nn.Module) -> Callable[[], object]:
        def call() -> None:
            with torch.inference_mode():
                layer(x)

        return call

    def train(layer: nn.Module) -> Callable[[], object]:
        inputs = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), inputs, dy)

    make = train if training else infer
    return interleave({name: make(layer) for name, layer in layers.items()}, "plain", rounds)


def run(rounds: int = 200) -> dict[str, object]:
    """All shapes, inference and training; prints a table and returns every figure."""
    table = Table(box=None, header_style="bold")
    for column in ("K → N, r, tokens", "mode", "plain", "module", "operator", "operator / module overhead"):
        table.add_column(column, justify="left" if column[0] in "Km" and column != "module" else "right")
    figures = []
    for shape in SHAPES:
        for training in (False, True):
            plain, module, operator = measure(*shape, training, rounds)
            ratio = operator.overhead / module.overhead
            mode = "training" if training else "inference"
            cells = [f"+{t.overhead:.1%}" for t in (module, operator)]
            name = f"{shape[0]} → {shape[1]}, {shape[2]}, {shape[3]}"
            table.add_row(name, mode, f"{plain.milliseconds:.2f} ms", *cells, f"{ratio:.2f}")
            timings = [vars(timing) for timing in (plain, module, operator)]
            figures.append({"shape": shape, "mode": mode, "timings": timings, "ratio": ratio})
    Console().print(table)
    return {"machine": machine(), "rounds": rounds, "figures": figures}
