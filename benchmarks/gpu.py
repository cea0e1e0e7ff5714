"""Layers and a training step on a GPU, side by side in one run: what a branch costs, and by which implementation.

    python -m benchmarks gpu

    plain             nn.Linear
    eager             the branch as modules, PyTorch's own operators
    compiled          the same under torch.compile
    noble_fx          one noble_fx::linear with generated kernels

Each variant is captured in a CUDA graph, so launches cost nothing, on random data in bfloat16; the variants take turns
and the median of all rounds counts. The floor of the overhead is the branch's own FLOPs at the rate of the plain
layer's, and one extra read of x (of dy, in backward) at the bandwidth that a copy reaches. Results are compared with
float32 first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import NobleLinear
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.runtime import autotune

ROWS = 16_384
SHAPES = [(1024, 1024), (2048, 2048), (4096, 4096), (1024, 4096), (4096, 1024)]
RANKS = (16, 32, 64, 128, 256)
VARIANTS = ("plain", "eager", "compiled", "noble_fx")
GPT = {"width": 1024, "layers": 12, "heads": 16, "context": 1024}
BATCH = 16  # sequences of a training step

Call = Callable[[], object]


def layers(in_features: int, out_features: int, rank: int) -> dict[str, nn.Module]:
    """The four variants on the GPU in bfloat16, with the same numbers."""
    torch.manual_seed(0)
    fused = NobleLinear.build(in_features, out_features, rank)
    with torch.no_grad():
        fused.noble.up.normal_(std=rank**-0.5)
    fused.noble.unfused = ""
    eager = NobleLinear.build(in_features, out_features, rank)
    eager.load_state_dict(fused.state_dict())
    plain = nn.Linear(in_features, out_features)
    plain.load_state_dict({"weight": fused.weight, "bias": fused.bias})
    found = {"plain": plain, "eager": eager, "compiled": eager, "noble_fx": fused}
    found = {name: layer.to("cuda", torch.bfloat16) for name, layer in found.items()}
    return found | {"compiled": torch.compile(found["eager"], dynamic=False)}


def calls(variants: dict[str, nn.Module], training: bool, rows: int = ROWS) -> dict[str, Call]:
    """One call of each variant on the same random x and dy: forward, or forward and backward."""
    width, outputs = variants["plain"].weight.shape[1], variants["plain"].weight.shape[0]
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=training)
    dy = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)

    def infer(layer: nn.Module) -> Call:
        def call() -> None:
            with torch.no_grad():
                layer(x)

        return call

    def train(layer: nn.Module) -> Call:
        inputs = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), inputs, dy)

    return {name: train(layer) if training else infer(layer) for name, layer in variants.items()}


def captured(call: Call) -> Call:
    """The call as the replay of a CUDA graph; it runs a few times before, which compiles and chooses."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def median_ms(variants: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in turns whose order rotates."""
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + rounds // 10):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            variants[name]()
            end.record()
            end.synchronize()
            if index >= rounds // 10:
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(found) for name, found in times.items()}


def check(variants: dict[str, nn.Module], rows: int = 512) -> float:
    """The largest error of noble_fx against the eager branch in float32, over the result's size; too large raises."""
    x = torch.randn(rows, variants["plain"].weight.shape[1], device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        found = variants["noble_fx"](x).float()
        state = {name: value.float() for name, value in variants["eager"].state_dict().items()}
        truth = torch.func.functional_call(variants["eager"], state, (x.float(),))
    error = ((found - truth).abs().max() / truth.abs().max()).item()
    if not error < 2e-2:
        raise RuntimeError(f"noble_fx is off by {error:.3g} of the result; its time means nothing")
    return error


def bandwidth(rounds: int) -> float:
    """Bytes per second that a large copy reaches, read and written."""
    source = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    milliseconds = median_ms({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    return 2 * source.numel() / (1e-3 * milliseconds)


def one_layer(shape: tuple[int, int], rank: int, training: bool, rounds: int, rate: float) -> dict[str, object]:
    """Milliseconds of every variant of one layer, overheads over the plain one, and their floor."""
    torch._dynamo.reset()
    variants = layers(*shape, rank)
    error = check(variants)
    times = median_ms({name: captured(call) for name, call in calls(variants, training).items()}, rounds)
    (inputs, outputs), passes = shape, 3 if training else 1
    extra = rank * (inputs + outputs + rank) / (inputs * outputs)
    read = 2 * ROWS * (inputs + (outputs if training else 0)) / rate
    return {
        "shape": shape,
        "rank": rank,
        "mode": "forward and backward" if training else "forward",
        "milliseconds": times,
        "overhead": {name: times[name] / times["plain"] - 1 for name in VARIANTS[1:]},
        "floor": extra + 1e3 * read / times["plain"],
        "plain_tflops": 2e-9 * passes * ROWS * inputs * outputs / times["plain"],
        "error": error,
    }


def training_step(rounds: int) -> dict[str, object]:
    """Milliseconds of a whole training step of a 12-layer GPT, not captured: forward, backward and fused AdamW."""

    def step(model: nn.Module, compile_with: str | None, **settings: object) -> Call:
        model = noble_fx.transform(model, rank=64, seed=0, **settings) if settings else model
        model.to("cuda")
        groups = noble_fx.param_groups(model, lr=1e-4) if settings else [{"params": list(model.parameters())}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        run = torch.compile(model, backend=compile_with, dynamic=False) if compile_with else model
        ids = torch.randint(256, (BATCH, GPT["context"] + 1), device="cuda")

        def call() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(run(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return call

    def gpt() -> ByteGPT:
        torch.manual_seed(0)
        return ByteGPT(**GPT)

    steps = {
        "plain": step(gpt(), None),
        "plain, compiled": step(gpt(), "inductor"),
        "eager": step(gpt(), None, capture="modules", fuse=False),
        "compiled": step(gpt(), "inductor", capture="modules", fuse=False),
        "noble_fx": step(gpt(), None, capture="modules"),
        "noble_fx, compiled": step(gpt(), "noble_fx", capture="modules"),
    }
    for call in steps.values():
        for _ in range(3):
            call()
    times = median_ms(steps, max(10, rounds // 10))
    return {"model": GPT, "tokens": BATCH * GPT["context"], "rank": 64, "milliseconds": times}


def gpu() -> dict[str, object]:
    """What a figure depends on."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver, highest clock, power limit": said[torch.cuda.current_device()] if said else "unknown",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "python": sys.version.split()[0],
    }


def run(rounds: int = 200) -> dict[str, object]:
    """Every layer and the training step; prints a table and returns every figure."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks gpu needs a CUDA GPU, and this machine has none; nothing was measured")
    rate = bandwidth(rounds)
    table = Table(box=None, header_style="bold")
    for column in ("K → N, r", "mode", "plain", *(f"+{name}" for name in VARIANTS[1:]), "+floor"):
        table.add_column(column, justify="left" if column in ("K → N, r", "mode") else "right")
    figures = []
    for shape in SHAPES:
        for rank in RANKS:
            for training in (False, True):
                found = one_layer(shape, rank, training, rounds, rate)
                figures.append(found)
                overheads = [f"{share:.1%}" for share in found["overhead"].values()]  # type: ignore[attr-defined]
                milliseconds = found["milliseconds"]["plain"]  # type: ignore[index]
                name = f"{shape[0]} → {shape[1]}, {rank}"
                table.add_row(name, found["mode"], f"{milliseconds:.3f} ms", *overheads, f"{found['floor']:.1%}")
    step = training_step(rounds)
    Console().print(table)
    Console().print(step)
    chosen = [{"question": question, "variant": variant} for question, variant in autotune.answers().items()]
    about = {"machine": gpu(), "rounds": rounds, "rows": ROWS, "bandwidth": rate}
    return {**about, "figures": figures, "training_step": step, "choices": chosen}
