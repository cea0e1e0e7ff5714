"""What a call costs in Python: layers so small that nothing else is left, on one thread.

    python -m benchmarks host

First the path that runs on the CPU, in float32. Then the path of a GPU, in bfloat16, on CPU tensors: all of its Python
runs, and the launches are counted instead of made (`stubbed.py`); a group is three sites of one input.

`guard` is what a fused call looks at before it trusts the operator (`layers/fused.py`), alone; `own σ` is an activation
of the user's, which is compared with what it was; `fx` and `export` run a graph, whose assumptions are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import noble_fx
from benchmarks.cpu_linear import ByHand
from benchmarks.stubbed import launches_stubbed
from noble_fx import schema
from noble_fx.interleaved import Timing, interleave, machine
from noble_fx.ops.operands import Operands

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
        "fused, compiled": torch.compile(made()),
    }


def cuda_calls() -> dict[str, tuple[Callable[[Tensor], Any], list[nn.Parameter]]]:
    """The layers that are measured on the path of a GPU, and their parameters."""

    def made() -> Any:
        layer = noble_fx.transform(nn.Sequential(nn.Linear(WIDTH, WIDTH)), rank=RANK, select=".*", seed=0)[0]
        return layer.bfloat16()

    group = [made() for _ in range(3)]
    operands = Operands.join([Operands.of_linear(None, *own_tensors(layer)) for layer in group])
    layers = {"nn.Linear": nn.Linear(WIDTH, WIDTH), "by hand": ByHand(WIDTH, WIDTH, RANK), "fused": made()}
    calls: dict[str, Any] = {name: (layer.bfloat16(), list(layer.parameters())) for name, layer in layers.items()}
    arguments = operands.group_args()[1:]
    calls["group of three"] = (
        lambda x: schema.LINEAR_GROUP(x, *arguments),
        [parameter for layer in group for parameter in layer.parameters()],
    )
    return calls


def own_tensors(layer: Any) -> tuple[Any, ...]:
    """W, b, D, d, U, σ's tensors and key."""
    noble = layer.noble
    return layer.weight, layer.bias, noble.down, noble.down_bias, noble.up, list(noble.act.parameters()), noble.key


def measure_cuda(training: bool, rounds: int) -> tuple[list[Timing], dict[str, float]]:
    """Microseconds of a call's Python on the path of a GPU, and launches of kernels a call."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=training)
    dy = [torch.randn(ROWS, WIDTH, dtype=torch.bfloat16) for _ in range(3)]
    launches: dict[str, float] = {}
    variants: dict[str, Callable[[], object]] = {}
    with launches_stubbed() as started, torch.set_grad_enabled(training):
        for name, (call, parameters) in cuda_calls().items():

            def once(call: Any = call, inputs: tuple[Tensor, ...] = (x, *parameters)) -> object:
                y = call(x)
                if not training:
                    return y
                return torch.autograd.grad(y, inputs, dy if isinstance(y, list) else dy[0], allow_unused=True)

            once(), once()  # resolved, then bound to what was compiled
            before = started.total()
            once()
            launches[name] = started.total() - before
            variants[name] = repeated(once)
        return interleave(variants, "nn.Linear", rounds), launches


def repeated(call: Callable[[], object]) -> Callable[[], object]:
    """Many calls, so that the clock itself does not show."""

    def calls() -> None:
        for _ in range(CALLS):
            call()

    return calls


def measure(training: bool, rounds: int) -> list[Timing]:
    """Microseconds are a call's; with `training` forward and backward."""
    torch.manual_seed(0)
    x, dy = torch.randn(ROWS, WIDTH, requires_grad=training), torch.randn(ROWS, WIDTH)
    made = layers(x.detach())
    guarded: Any = made["fused"]
    branch, weight = guarded.noble, guarded.weight

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
    for column in ("layer", "path", "mode", "µs", "× nn.Linear", "launches"):
        table.add_column(column, justify="left" if column in ("layer", "path", "mode") else "right")
    figures: list[dict[str, object]] = []
    for training in (False, True):
        mode = "forward and backward" if training else "forward"
        on_gpu, launches = measure_cuda(training, rounds)
        for path, timings in (("CPU", measure(training, rounds)), ("GPU", on_gpu)):
            for timing in timings:
                microseconds = 1e3 * timing.milliseconds / CALLS
                started = launches[timing.name] if path == "GPU" else None
                shown = f"{microseconds:.1f}", f"{timing.overhead + 1:.2f}", "" if started is None else f"{started}"
                table.add_row(timing.name, path, mode, *shown)
                row = {"layer": timing.name, "path": path, "mode": mode, "microseconds": microseconds}
                figures.append({**row, "ratio": timing.overhead + 1, "launches": started})
    Console().print(table)
    shape = {"width": WIDTH, "rank": RANK, "rows": ROWS}
    return {"machine": machine(), "rounds": rounds, "shape": shape, "figures": figures}
