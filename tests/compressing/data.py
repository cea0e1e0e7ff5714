"""A matrix and inputs by which methods differ: channels of very different sizes that depend on each other."""

import torch

from noble_fx.compressing.problem import Problem


def skewed(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs [rows, width], float64: scales from 1 to 1/30, channels mixed, and a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, width, dtype=torch.float64)[torch.randperm(width, generator=generator)]
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) * width**-0.5
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * scales
    return x + x @ mixing + 0.3


def matrix(outputs: int, inputs: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def problem(outputs: int, inputs: int, rows: int = 200) -> tuple[Problem, torch.Tensor]:
    """Inputs of rows about their mean, and what a method knows of them."""
    x, weight = skewed(rows, inputs), matrix(outputs, inputs)
    x = x - x.mean(0)
    return Problem(weight, inputs=x.T @ x, total=float((x @ weight.T).square().sum())), x
