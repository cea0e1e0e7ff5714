"""One layer timed on this machine, in turns: plain, with a branch as one writes it by hand, and by noble_fx."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noble_fx.branches.activations import build_activation
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, printable
from noble_fx.interleaved import Timing, interleave, machine
from noble_fx.onnx_export.account import version_of
from noble_fx.random_states import undisturbed
from noble_fx.tables import group, plain, table
from noble_fx.transform import transform

if TYPE_CHECKING:
    from rich.console import Group

PLAIN, BY_HAND, OURS = "plain layer", "by hand", "noble_fx"
MODES = ("inference", "training")


class ByHand(nn.Module):
    """y = linear(x) + up(σ(down(x))), the formula typed in, of the same sizes as NOBLE's branch."""

    def __init__(self, linear: nn.Linear, rank: int, config: NobleConfig):
        super().__init__()
        recipe = config.recipe
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=recipe.down_bias)
        self.act = build_activation(config.act, rank, recipe)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.up(self.act(self.down(x)))
        return y


@dataclass(frozen=True)
class BenchResult:
    """What was timed and where; `print` it by rich for a table, `to_dict()` for plain JSON values."""

    layer: dict[str, Any]  # sizes, σ, dtype
    machine: dict[str, Any]  # device, threads, versions
    rounds: int
    timings: dict[str, list[Timing]]  # by mode; overheads are medians of ratios to the plain layer in the same round

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        timings = {
            mode: [asdict(each) | {"spread": list(each.spread)} for each in ts] for mode, ts in self.timings.items()
        }
        return {"layer": self.layer, "machine": self.machine, "rounds": self.rounds, "timings": timings}

    def __rich__(self) -> Group:
        shown = table(
            "mode", "layer", "median", "over the plain layer", "quartiles", header_style="bold", padding=(0, 1)
        )
        for mode, timings in self.timings.items():
            for each in timings:
                over = [f"{value:+.1%}" for value in (each.overhead, *each.spread)]
                cells = (over[0], f"{over[1]} … {over[2]}") if each.name != PLAIN else ("", "")
                shown.add_row(*map(plain, (mode, each.name, f"{each.milliseconds:.3f} ms", *cells)))
        told = [", ".join(f"{name} {value}" for name, value in facts.items()) for facts in (self.layer, self.machine)]
        return group(*map(plain, told), shown)


def bench(
    in_features: int,
    out_features: int,
    rank: int,
    act: str = "cosnet",
    rows: int = 512,
    rounds: int = 100,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    preset: str = "paper",
    device: str | None = None,
) -> BenchResult:
    """Time x [rows, K] -> y [rows, N] in inference and in training; raises `ConfigError` for what cannot be."""
    for name, value in (("in_features", in_features), ("out_features", out_features), ("rows", rows)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    if rounds < 2:
        raise ConfigError(f"rounds={rounds} must be at least 2, for there are quartiles of it")
    where, config = _device(device), NobleConfig(rank=rank, act=act, preset=preset, select="all", seed=0)
    with undisturbed(), torch.enable_grad():
        torch.manual_seed(0)
        layers = _layers(in_features, out_features, rank, config, bias)
        for layer in layers.values():
            layer.to(where, dtype)
        x = torch.randn(rows, in_features, device=where, dtype=dtype)
        dy = torch.randn(rows, out_features, device=where, dtype=dtype)
        timings = {mode: _timed(mode, layers, x, dy, rounds) for mode in MODES}
    sizes = {"in": in_features, "out": out_features, "rank": rank, "σ": act, "rows": rows}
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    versions = {package: version_of(package) for package in ("noble-fx", "triton")}
    return BenchResult(
        layer={**sizes, "dtype": str(dtype).removeprefix("torch."), "bias": bias, "preset": preset},
        machine={"device": name, **machine(), **versions},
        rounds=rounds,
        timings=timings,
    )


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:  # an unknown word; a build without CUDA
        reason = printable(str(error).partition("\n")[0])
        raise ConfigError(f"device={name!r} cannot be used here: {reason}; use cpu or cuda") from None
    return device


def _layers(k: int, n: int, rank: int, config: NobleConfig, bias: bool) -> dict[str, nn.Module]:
    plain_layer, ours = nn.Linear(k, n, bias=bias), nn.Sequential(nn.Linear(k, n, bias=bias))
    return {
        PLAIN: plain_layer,
        BY_HAND: ByHand(nn.Linear(k, n, bias=bias), rank, config),
        OURS: transform(ours, config=config),
    }


def _timed(mode: str, layers: dict[str, nn.Module], x: Tensor, dy: Tensor, rounds: int) -> list[Timing]:
    calls = {name: _call(mode, layer, x, dy) for name, layer in layers.items()}
    return interleave(calls, PLAIN, rounds, warmup=10, clock=_clock(x.device))


def _call(mode: str, layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    if mode == "training":
        inputs = [x.clone().requires_grad_(), *layer.parameters()]
        return lambda: torch.autograd.grad(layer(inputs[0]), inputs, dy)

    def infer() -> None:
        with torch.inference_mode():
            layer(x)

    return infer


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, once the device has done what it was given."""
    if device.type != "cuda":
        return time.perf_counter

    def seconds() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return seconds
