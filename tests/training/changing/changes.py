"""A model on its way: a step of training, and what of an optimizer the tests compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.transform import named_branches
from tests.models import tokens, transformed


def step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> float:
    """One step on the same batch, dropout drawn the same each time; the loss before it."""
    torch.manual_seed(3)
    loss = F.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten())
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def started(steps: int = 3, **settings: Any) -> tuple[nn.Module, torch.optim.AdamW]:
    """A `Tiny` with branches in float64 that has learnt for some steps, and its AdamW."""
    model = transformed(**settings).double().train()
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1))
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def table(groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What of groups counts: names, rates, decay, and the shapes in order."""
    return [
        (
            g["name"],
            round(g["lr"], 12),
            round(g["lr_scale"], 9),
            g["weight_decay"],
            [tuple(p.shape) for p in g["params"]],
        )
        for g in groups
    ]


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything of a model and its optimizer, to be compared by equality."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        "objects": {name: id(p) for name, p in model.named_parameters()},
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "classes": [type(module) for module in model.modules()],
        "groups": [{**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups],
        "state": {
            names[id(p)]: {k: torch.as_tensor(v).tolist() for k, v in s.items()} for p, s in optimizer.state.items()
        },
        "configs": [branch.config for branch in named_branches(model).values()],
    }
