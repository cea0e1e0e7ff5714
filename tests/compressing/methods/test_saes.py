"""`saes`: corrected for a mixed target, then truncated, is the best of its rank for that target."""

import pytest
import torch

from noble_fx.compressing.methods.saes import Saes
from noble_fx.compressing.problem import Problem, best_outputs
from noble_fx.compressing.residual import residual
from noble_fx.compressing.target import Terms, corrected
from noble_fx.errors import ConfigError
from tests.compressing.data import matrix, skewed


def with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)


@pytest.mark.parametrize("rank", [1, 3])
def test_it_minimises_its_objective(rank):
    """‖x Ŵᵀ − x Wᵀ‖² + α ‖x Ŵᵀ − x_f Wᵀ‖², α = β / (1 − β): alternating fits find no less."""
    beta, weight = 0.4, matrix(6, 8)
    original = skewed(400, 8)
    x = original + 0.2 * skewed(400, 8, seed=7)
    x, original = x - x.mean(0), original - original.mean(0)
    alpha = beta / (1 - beta)

    def objective(low):
        local, whole = (x @ low.T - x @ weight.T).square().sum(), (x @ low.T - original @ weight.T).square().sum()
        return local + alpha * whole

    v, aimed = with_one(x), with_one((1 - beta) * x + beta * original)
    terms = Terms(weight, weight.new_zeros(6, 0), None)
    fitted = corrected(terms, v.T @ v, aimed.T @ v, True).weight
    rest = residual(v.T @ v, 0, True).rest
    found = objective(torch.matmul(*Saes(beta).factorise(Problem(fitted, inputs=rest)).at(rank)))
    target = aimed[:, :-1] @ weight.T
    for seed in range(5):
        down = matrix(rank, 8, seed=seed + 30)
        for _ in range(300):
            up = torch.linalg.lstsq(x @ down.T, target).solution.T
            down = torch.linalg.lstsq(x, target @ up @ torch.linalg.inv(up.T @ up)).solution.T
        assert objective(up @ down) >= found * (1 - 1e-6)
    plain = best_outputs(Problem(weight, inputs=rest))
    assert objective(torch.matmul(*plain.at(rank))) > found


@pytest.mark.parametrize("beta", [-0.1, 1.5, True, "half", float("nan")])
def test_a_mixture_that_is_none(beta):
    with pytest.raises(ConfigError, match="beta="):
        Saes(beta)
