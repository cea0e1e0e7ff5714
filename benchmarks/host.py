"""What a call costs in Python: layers so small that nothing else is left, on one thread.

    python -m benchmarks host

`guard` is what a fused call looks at before it trusts the operator (`layers/fused.py`), alone; `own σ` is an activation
of the user's, which is compared with what it was; `fx` and `export` run a graph, whose assumptions are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import noble_fx
from benchmarks.cpu_linear import ByHand
from benchmarks.interleaved import Timing, interleave, machine

WIDTH, RANK, ROWS = 64, 16, 4
CALLS = 20  # in one timed round, so that the clock itself does not show


class Own(nn.Module):
    """An activation of the user's: three attributes, one part, a helper."""

    def __init__(self, rank: int):
        super().__init__()
        self.gain, self.offset, self.act = 1.5, 0.1, nn.GELU()

    def forward(self, h: Tensor) -> Tensor:
        return self.act(h * self.gain) + self.offset


def layers(x: Tensor) -> dict[str, nn.Module]:
    """The same linear map, plain and with a branch in every way that there is."""

    def made(**settings: object) -> nn.Module:
        examples = {"example_inputs": (x,)} if settings.get("capture") == "export" else {}
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        model = noble_fx.transform(model, rank=RANK, select=".*", seed=0, **settings, **examples)
        return model if "capture" in settings else model[0]

    return {
        "nn.Linear": nn.Linear(WIDTH, WIDTH),
        "by hand": ByHand(WIDTH, WIDTH, RANK),
        "fuse=False": made(fuse=False),
        "fused": made(),
        "fused, own σ": made(act=Own),
        "fx": made(capture="fx"),
        "export": made(capture="export"),
    }


def measure(training: bool, rounds: int) -> list[Timing]:
    """Microseconds are a call's; with `training` forward and backward."""
    torch.manual_seed(0)
    x, dy = torch.randn(ROWS, WIDTH, requires_grad=training), torch.randn(ROWS, WIDTH)
    made = layers(x.detach())
    guarded = made["fused"]
    branch, weight = guarded.noble, guarded.weight

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        def calls() -> None:
            for _ in range(CALLS):
                call()

        return calls

    def once(layer: nn.Module) -> Callable[[], object]:
        if not training:
            return lambda: layer(x)
        inputs = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), inputs, dy, allow_unused=True)

    variants = {name: repeated(once(layer)) for name, layer in made.items()}
    if not training:
        variants["guard"] = repeated(lambda: branch.bound.operands(branch, x, weight))
    with torch.set_grad_enabled(training):
        return interleave(variants, "nn.Linear", rounds)


def run(rounds: int = 300) -> dict[str, object]:
    """Inference and training; prints a table and returns every figure."""
    torch.set_num_threads(1)
    table = Table(box=None, header_style="bold")
    for column in ("layer", "mode", "µs", "× nn.Linear"):
        table.add_column(column, justify="left" if column in ("layer", "mode") else "right")
    figures = []
    for training in (False, True):
        mode = "forward and backward" if training else "forward"
        for timing in measure(training, rounds):
            microseconds = 1e3 * timing.milliseconds / CALLS
            table.add_row(timing.name, mode, f"{microseconds:.1f}", f"{timing.overhead + 1:.1f}")
            figures.append(
                {"layer": timing.name, "mode": mode, "microseconds": microseconds, "ratio": timing.overhead + 1}
            )
    Console().print(table)
    shape = {"width": WIDTH, "rank": RANK, "rows": ROWS}
    return {"machine": machine(), "rounds": rounds, "shape": shape, "figures": figures}
