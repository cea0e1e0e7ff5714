"""What the tests compress: a small transformer, and rows for it."""

from __future__ import annotations

import torch
from torch import nn

import noble_fx
from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.places import Place, find_places
from tests.models import Tiny, tiny


def batches(count: int = 4, seed: int = 0, rows: int = 8) -> list[torch.Tensor]:
    """Tokens [rows, 12] for `Tiny`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 20, (rows, 12), generator=generator) for _ in range(count)]


def exact(width: int = 16, layers: int = 2) -> Tiny:
    """A `Tiny` in float64."""
    return tiny(width=width, layers=layers).double()


def with_branches(rank: int = 4, model: nn.Module | None = None) -> nn.Module:
    """One whose branches have something to say."""
    model = noble_fx.transform(model or exact(), rank=rank, seed=0, select="fc1|q_proj|k_proj")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, noble_fx.NobleBranch):
                module.up.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model.eval()


def places_of(model: nn.Module, select: object = "auto") -> list[Place]:
    return find_places(model, select, None)[0]


def calibration(count: int = 4) -> Calibration:
    return Calibration(batches(count))


def track(items, text, count):
    """No progress bar."""
    return iter(items)


def inputs_of(model: nn.Module, name: str, given: list[torch.Tensor]) -> torch.Tensor:
    """What a layer reads [rows, K], in float64."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda layer, args: found.append(args[0].detach()))
    with torch.no_grad():
        for batch in given:
            model(batch)
    handle.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in found]).double()
